"""Folds layers into others: weighted means of their weights (MKA, Liu et al. 2024).

arXiv 2406.16330, equation 8: W = a W_into + (1 - a) W_layer, computed in float32, one tensor at a
time, and stored in the tensor's own dtype. With a = 1 the layer is dropped.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial

import torch

from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.family import NORM, Family
from prunekit.model.names import disk_prefix
from prunekit.model.tensors import Tensor
from prunekit.plan.edits import Merge
from prunekit.surgery.write import Part, bytes_of, read_tensor

FLOATS = ("F32", "F16", "BF16", "F64")


def merge(
    parts: Iterable[Part], checkpoint: Checkpoint, family: Family, merges: Sequence[Merge]
) -> list[Part]:
    """The parts with the layers that stay holding those that are folded into them.

    Raises InputError if two layers are not of one form, or their weights are not floats.
    """
    prefix = disk_prefix(checkpoint, family)
    folded = {}
    for edit in merges:
        own = _of_layer(checkpoint, f"{prefix}{edit.into}.")
        others = [_of_layer(checkpoint, f"{prefix}{layer}.") for layer in edit.layers]
        for layer, other in zip(edit.layers, others, strict=True):
            _check_alike(checkpoint, own, other, edit.into, layer)
        for name, tensor in own.items():
            if edit.norms == "interpolate" or not is_norm(name):
                given = [other[name] for other in others]
                folded[tensor.name] = partial(_fold, tensor, given, edit.weights)
    return [
        replace(part, content=folded[part.source.name]) if part.source.name in folded else part
        for part in parts
    ]


def is_norm(name: str) -> bool:
    """Whether a parameter, named within its layer, belongs to a norm."""
    return any(NORM.search(word) for word in name.lower().split("."))


def mean(into: torch.Tensor, other: torch.Tensor, weight: float) -> torch.Tensor:
    """One fold, in float32."""
    return weight * into.float() + (1 - weight) * other.float()


def _of_layer(checkpoint: Checkpoint, prefix: str) -> dict[str, Tensor]:
    """A layer's tensors by their names within it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in checkpoint.tensors.items()
        if name.startswith(prefix)
    }


def _check_alike(
    checkpoint: Checkpoint, own: dict[str, Tensor], other: dict[str, Tensor], into: int, layer: int
) -> None:
    for name in sorted(own.keys() | other.keys()):
        forms = [(held[name].dtype, held[name].shape) if name in held else None
                 for held in (own, other)]  # fmt: skip
        if forms[0] != forms[1]:
            raise InputError(
                f"{checkpoint.name}: layer {layer} can't be merged into layer {into}: they differ "
                f"in {name!r}"
            )
        if own[name].dtype not in FLOATS:
            raise InputError(
                f"{checkpoint.name}: layers of {own[name].dtype} weights can't be merged; start "
                "from the model in full precision"
            )


def _fold(into: Tensor, others: Sequence[Tensor], weights: Sequence[float]) -> bytes:
    result = read_tensor(into)
    for other, weight in zip(others, weights, strict=True):
        result = mean(result, read_tensor(other), weight)
    return bytes_of(result, into.dtype)
