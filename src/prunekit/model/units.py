"""What can be left out of a model on trial: a layer, or the attention or MLP half of one."""

from typing import Literal

Part = Literal["layer", "attention", "mlp"]
HALVES: tuple[Part, Part] = ("attention", "mlp")
Unit = tuple[int, Part]  # (layer, counted from 0, and which part of it)
Variant = frozenset[Unit]  # the units that a variant of the model does without
