"""Layers marked by a rule (every n-th, from here to there) in configs that take no list of them."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedConfig

from prunekit.errors import InputError

Values = tuple[int, ...]


@dataclass(frozen=True)
class Stride:
    """Config fields that mark layers together: which layer `marks` says, what values there are
    `choices` says (given the marked layers and their number), and `list` is the field that, where
    the config has it, takes the place of them all."""

    fields: tuple[str, ...]
    marks: Callable[[Values, int], bool]
    choices: Callable[[list[int], int], Iterator[Values]]
    list: str = ""


def _periods(_: list[int], depth: int) -> Iterator[Values]:
    yield from ((period,) for period in range(1, depth + 2))


def _periods_and_offsets(_: list[int], depth: int) -> Iterator[Values]:
    yield from ((p, offset) for p in range(1, depth + 2) for offset in range(p))


def _ranges(marked: list[int], depth: int) -> Iterator[Values]:
    start, end = (marked[0], marked[-1]) if marked else (depth, depth)
    yield from ((period, start, end) for period in range(1, depth + 2))


def _starts_period(values: Values, layer: int) -> bool:
    return layer % values[0] == 0


def _ends_period(values: Values, layer: int) -> bool:
    return (layer + 1) % values[0] == 0


def _at_offset(values: Values, layer: int) -> bool:
    return layer % values[0] == values[1]


def _in_range(values: Values, layer: int) -> bool:
    return (layer + 1) % values[0] == 0 and values[1] <= layer <= values[2]


STRIDES = (
    Stride(("attn_layer_period", "attn_layer_offset"), _at_offset, _periods_and_offsets,
           "layer_types"),
    Stride(("expert_layer_period", "expert_layer_offset"), _at_offset, _periods_and_offsets,
           "mlp_layer_types"),
    Stride(("global_attn_every_n_layers",), _ends_period, _periods, "layer_types"),
    Stride(("full_attention_interval",), _ends_period, _periods, "layer_types"),
    Stride(("sliding_window_pattern",), _ends_period, _periods, "layer_types"),
    Stride(("moe_layer_frequency",), _starts_period, _periods, "mlp_layer_types"),
    Stride(("moe_layer_interval", "moe_layer_start_index", "moe_layer_end_index"), _in_range,
           _ranges),
)  # fmt: skip


def refit(text: PreTrainedConfig, keep: Sequence[int], depth: int) -> dict[str, int]:
    """Values of the strides that mark the same layers after the cut.

    Raises InputError where there are none.
    """
    stored = text.to_dict()
    changes: dict[str, int] = {}
    for stride in STRIDES:
        values = tuple(stored.get(field) for field in stride.fields)
        if stored.get(stride.list) or not all(type(value) is int for value in values):
            continue
        if values[0] >= 1:
            changes.update(_refit(text.model_type, stride, values, keep))
    return changes


def _refit(kind: str, stride: Stride, values: Values, keep: Sequence[int]) -> dict[str, int]:
    marked = [position for position, layer in enumerate(keep) if stride.marks(values, layer)]
    for choice in (values, *stride.choices(marked, len(keep))):
        if marked == [i for i in range(len(keep)) if stride.marks(choice, i)]:
            return dict(zip(stride.fields, choice, strict=True))
    said = ", ".join(f"{f}={v}" for f, v in zip(stride.fields, values, strict=True))
    raise InputError(
        f"model type {kind!r} marks layers by a stride ({said}) and takes no list; after this cut "
        f"the marked layers would be {marked} of {len(keep)}, which is no stride: drop whole "
        f"periods of {values[0]} layers, or layers at the end"
    )
