"""What can be left out of a model on trial: a layer, or the attention or MLP half of one."""

from collections.abc import Iterable, Sequence
from typing import Literal

Part = Literal["layer", "attention", "mlp"]
HALVES: tuple[Part, Part] = ("attention", "mlp")
Unit = tuple[int, Part]  # (layer, counted from 0, and which part of it)
Variant = frozenset[Unit]  # the units that a variant of the model does without
DENSE: Variant = frozenset()  # the model as it is


def named(variant: Iterable[Unit]) -> str:
    """A variant's units in words: layers 3, 5:7, the mlp of 4."""
    by_part: dict[str, list[int]] = {}
    for layer, part in sorted(variant):
        by_part.setdefault("layers" if part == "layer" else f"the {part} of", []).append(layer)
    said = [f"{part} {', '.join(map(str, blocks(by_part[part])))}" for part in sorted(by_part)]
    return ", ".join(said) or "nothing"


def blocks(layers: Sequence[int]) -> list[int | str]:
    """Layers with runs written as half-open blocks: [3, "5:9"]."""
    written: list[int | str] = []
    for start, end in runs(layers):
        written.append(start if end == start + 1 else f"{start}:{end}")
    return written


def runs(layers: Sequence[int]) -> list[tuple[int, int]]:
    """Half-open blocks of consecutive layers, ascending."""
    found: list[tuple[int, int]] = []
    for layer in sorted(layers):
        if found and found[-1][1] == layer:
            found[-1] = (found[-1][0], layer + 1)
        else:
            found.append((layer, layer + 1))
    return found
