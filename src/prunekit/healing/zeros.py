"""What was removed stays removed: weights that are zero when training starts stay zero.

The zeros of a checkpoint's decoder layers are its mask: those of their matrices, and the biases of
muted halves; those of a new adapter are none of it. Gradients are masked before they are clipped:
AdamW's moments of a zero then stay zero, and so do its steps and its weight decay.
"""

from collections.abc import Iterable

from torch import Tensor, nn


class Zeros:
    """The zeros of some parameters, to be kept."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self.masks: dict[nn.Parameter, Tensor] = {}
        for parameter in parameters:
            zero = _local(parameter) == 0
            if zero.any():
                self.masks[parameter] = zero

    def mask_gradients(self) -> None:
        for parameter, zero in self.masks.items():
            if parameter.grad is not None:
                _local(parameter.grad).masked_fill_(zero, 0)


def _local(tensor: Tensor) -> Tensor:
    """This process's part of a tensor, where several hold it."""
    tensor = tensor.detach()
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor
