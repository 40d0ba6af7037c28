"""Layers that run without one of their halves: the half is not computed, and adds nothing.

Equal, to the bit, to a half whose projections into the residual stream are zeros: that is how a
muted half is written, since every stock model class has the weights.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from prunekit.errors import InputError
from prunekit.model.family import Family
from prunekit.model.units import Part, Unit


class Halves:
    """Mutes halves of the layers of a family."""

    def __init__(self, family: Family) -> None:
        self.family = family
        self._forms: dict[tuple[str, type], Form | None] = {}
        self._writers: dict[Unit, list[str]] = {}

    def has(self, layer: int, half: Part) -> bool:
        """Whether a layer has such a half, and zeros can take it away."""
        return bool(self.writers(layer, half))

    def writers(self, layer: int, half: Part) -> list[str]:
        """The half's projections into the residual stream; see Family."""
        if (layer, half) not in self._writers:
            self._writers[layer, half] = self.family.writers(layer, half)
        return self._writers[layer, half]

    @contextmanager
    def muted(self, index: int, layer: nn.Module, halves: Sequence[Part]) -> Iterator[None]:
        """Within the block `layer`, which is layer `index`, runs without these halves.

        Raises InputError if it has no such half.
        """
        replaced = [entry for half in halves for entry in self.silence(index, layer, half)]
        try:
            yield
        finally:
            for parent, name, child in replaced:
                setattr(parent, name, child)

    def silence(self, index: int, layer: nn.Module, half: Part) -> list[tuple[nn.Module, str, Any]]:
        """Put modules that give zeros in the place of a half's; what was replaced: parent, name
        and module. Raises InputError if the layer has no such half."""
        writers = self.writers(index, half)
        if not writers:
            raise InputError(
                f"model type {self.family.config.model_type!r}: layer {index} has no {half} half "
                "that zeros could take away"
            )
        replaced = []
        for child in dict.fromkeys(name.partition(".")[0] for name in writers):
            inside = [name.partition(".")[2] for name in writers if name.startswith(f"{child}.")]
            real = getattr(layer, child)
            setattr(layer, child, _Silent(real, inside, child, self._forms))
            replaced.append((layer, child, real))
        return replaced


# What a half gives beside its state: how many Nones follow it in a tuple; None: a plain tensor.
Form = tuple[torch.dtype, int | None]


class _Silent(nn.Module):
    """Gives zeros of the form that a module gives, which its first call shows."""

    def __init__(
        self,
        real: nn.Module,
        writers: list[str],
        name: str,
        forms: dict[tuple[str, type], Form | None],
    ) -> None:
        super().__init__()
        # Not registered as a submodule: the layer's parameters must not be found twice.
        object.__setattr__(self, "real", real)
        self.writers = writers
        self.forms = forms
        self.key = (name, type(real))

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "real"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        entering = next(value for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
        width = self._width(entering)
        if self.key not in self.forms:
            output = self._zeroed(*args, **kwargs)
            self.forms[self.key] = _form(output, (*entering.shape[:-1], width))
            return output
        form = self.forms[self.key]
        if form is None:
            return self._zeroed(*args, **kwargs)
        dtype, nones = form
        zeros = entering.new_zeros((*entering.shape[:-1], width), dtype=dtype)
        return zeros if nones is None else (zeros, *[None] * nones)

    def _width(self, entering: Tensor) -> int:
        real = object.__getattribute__(self, "real")
        if isinstance(real, nn.Linear):
            return real.out_features
        return real.nf if isinstance(real, Conv1D) else entering.shape[-1]

    def _zeroed(self, *args: Any, **kwargs: Any) -> Any:
        """The module's own output with its writers zero."""
        real = object.__getattribute__(self, "real")
        zeros = {name: torch.zeros_like(real.get_parameter(name)) for name in self.writers}
        return torch.func.functional_call(real, zeros, args, kwargs)


def _form(output: Any, shape: tuple[int, ...]) -> Form | None:
    """None if the output holds more than a state of zeros: then it has to be computed."""
    if isinstance(output, Tensor):
        return (output.dtype, None) if output.shape == shape else None
    if not isinstance(output, tuple) or not isinstance(output[0], Tensor):
        return None
    if output[0].shape != shape or any(value is not None for value in output[1:]):
        return None
    return output[0].dtype, len(output) - 1
