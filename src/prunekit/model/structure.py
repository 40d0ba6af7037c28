"""Compares two models without weights: are the kept layers in the new model what they were?

A layer's modules, their plain attributes (window sizes, attention kinds, scales that depend on the
layer's position) and the shapes of its parameters must all be equal. Outside the layers, a
parameter may shrink only along one axis, in proportion to the layers: it then packs something for
each layer.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import numpy as np
import torch
from torch import nn

from prunekit.errors import InputError
from prunekit.model.family import Family
from prunekit.model.oddities import IDLE, because

# Where a layer stands, by which it finds its place in the cache.
POSITION = re.compile(r"^(layer_?(idx|id|index|number|num)|.*_?layer_idx)$")


@dataclass(frozen=True)
class Packed:
    """A parameter outside the layers that holds `size` rows for each layer along `axis`."""

    name: str
    axis: int
    size: int


def compare(old: Family, new: Family, keep: Sequence[int]) -> list[Packed]:
    """The parameters outside the layers that must be sliced along with them.

    Raises InputError, naming the layer and what differs, if any kept layer would become another.
    """
    kind = old.config.model_type
    before, after = old.layers(old.skeleton), new.layers(new.skeleton)
    if len(after) != len(keep):
        raise InputError(f"model type {kind!r}: {len(after)} layers stand where {len(keep)} should")
    for position, index in enumerate(keep):
        was, becomes = _facts(before[index]), _facts(after[position])
        for fact in sorted(was.keys() | becomes.keys()):
            if _idle(kind, fact) or _same(was.get(fact), becomes.get(fact), old.depth, keep):
                continue
            raise InputError(
                f"model type {kind!r}: layer {index} would stand at position {position}, where "
                f"its {fact} would be {becomes.get(fact)} and not {was.get(fact)}{because(kind)}"
            )
    return _packed(old, new, keep)


def _facts(layer: nn.Module) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for path, module in layer.named_modules():
        dot = f"{path}." if path else ""
        facts[f"{dot}class"] = type(module).__qualname__
        for name, value in vars(module).items():
            if not name.startswith("_") and _plain(value) and not POSITION.search(name):
                facts[f"{dot}{name}"] = value
    for name, tensor in [*layer.named_parameters(), *layer.named_buffers()]:
        facts[f"{name} shape"] = tuple(tensor.shape)
    return facts


def _plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_plain(entry) for entry in value)
    if isinstance(value, dict):
        return all(_plain(entry) for entry in value.values())
    return value is None or isinstance(value, (bool, int, float, str, FunctionType, torch.dtype))


def _idle(kind: str, fact: str) -> bool:
    return any(type_ in ("", kind) and fact.endswith(name) for type_, name in IDLE)


def _same(was: Any, becomes: Any, depth: int, keep: Sequence[int]) -> bool:
    if isinstance(was, (list, tuple)) and len(was) == depth and was != becomes:
        # A list of the config that every layer holds: sliced, like the config.
        return list(becomes) == [was[index] for index in keep]
    if isinstance(was, float) and isinstance(becomes, float):
        # Beside tensors of float32 or less, torch computes with a float32 scalar.
        return bool(np.float32(was) == np.float32(becomes))
    return bool(was == becomes)


def _packed(old: Family, new: Family, keep: Sequence[int]) -> list[Packed]:
    kind = old.config.model_type
    before, after = _outside(old), _outside(new)
    if before.keys() != after.keys():
        raise InputError(
            f"model type {kind!r}: parameters outside the layers come or go with this cut: "
            f"{', '.join(sorted(before.keys() ^ after.keys())[:3])}"
        )
    packed = []
    for name, shape in before.items():
        axes = [axis for axis, sizes in enumerate(zip(shape, after[name], strict=True))
                if sizes[0] != sizes[1]]  # fmt: skip
        if not axes:
            continue
        size, rest = divmod(shape[axes[0]], old.depth)
        if len(axes) > 1 or rest or after[name][axes[0]] != size * len(keep):
            raise InputError(
                f"model type {kind!r}: {name} would change its shape {shape} to {after[name]}, "
                "which is not one part for each layer"
            )
        packed.append(Packed(name, axes[0], size))
    return packed


def _outside(family: Family) -> dict[str, tuple[int, ...]]:
    inside = f"{family.path}."
    return {
        name: tuple(tensor.shape)
        for name, tensor in family.skeleton.state_dict().items()
        if not name.startswith(inside)
    }
