"""The edits of a plan: what is done to which layers, all numbered as in the base model."""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prunekit.errors import InputError
from prunekit.model.units import HALVES, Part, Unit, blocks

BLOCK = re.compile(r"([0-9]{1,4}):([0-9]{1,4})")


@dataclass(frozen=True)
class Drop:
    """Remove whole layers, by their numbers in the base model."""

    layers: tuple[int, ...]

    def record(self) -> dict[str, Any]:
        return {"drop": blocks(self.layers)}


@dataclass(frozen=True)
class Mute:
    """Let the attention or the MLP half of layers do nothing: zeros; the layers stay."""

    attention: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()

    @property
    def units(self) -> list[Unit]:
        return [(layer, half) for half in HALVES for layer in getattr(self, half)]

    def record(self) -> dict[str, Any]:
        halves = {half: blocks(getattr(self, half)) for half in HALVES}
        return {"mute": {half: layers for half, layers in halves.items() if layers}}


@dataclass(frozen=True)
class Merge:
    """Fold `layers`, which go, one after the other into the layer `into`, which stays.

    Each fold is W <- w * W_into + (1 - w) * W_layer with its weight w of `weights`: with weight 1
    the layer is dropped. Norms are interpolated like that too, or kept as they are in `into`.
    """

    into: int
    layers: tuple[int, ...]
    weights: tuple[float, ...]
    norms: Literal["interpolate", "keep"] = "interpolate"

    def __post_init__(self) -> None:
        for weight in self.weights:
            number = isinstance(weight, int | float) and not isinstance(weight, bool)
            if not number or not 0 <= weight <= 1:  # NaN is not
                raise InputError(f"merge.weights: {shown(weight)} is not a number from 0 to 1")
        if len(self.weights) != len(self.layers):
            raise InputError(
                f"merge.weights: {len(self.weights)} for {len(self.layers)} layers; "
                "each layer needs one"
            )
        if self.norms not in ("interpolate", "keep"):
            raise InputError(f"merge.norms: {shown(self.norms)} is neither interpolate nor keep")

    def record(self) -> dict[str, Any]:
        merge = {"into": self.into, "layers": list(self.layers)}
        return {"merge": {**merge, "weights": [*map(float, self.weights)], "norms": self.norms}}


@dataclass(frozen=True)
class Replace:
    """Let the first `keep` layers of the block `layers` stand in the place of all of it; the others
    go (LLM-Streamline, arXiv 2403.19135).

    By `layer` they stay whole, by `mlp` their attention is muted. They are trained afterwards:
    `prunekit heal --how block`.
    """

    layers: tuple[int, ...]
    by: Literal["layer", "mlp"] = "layer"
    keep: int = 1

    def __post_init__(self) -> None:
        _check_block(self.layers, "replace")
        if self.by not in ("layer", "mlp"):
            raise InputError(f"replace.by: {shown(self.by)} is neither layer nor mlp{_NO_FORM}")
        if type(self.keep) is not int or not 0 < self.keep < len(self.layers):
            raise InputError(
                f"replace.keep: {shown(self.keep)}; of {len(self.layers)} layers 1 to "
                f"{len(self.layers) - 1} can stand for all"
            )

    @property
    def kept(self) -> tuple[int, ...]:
        return self.layers[: self.keep]

    @property
    def removed(self) -> tuple[int, ...]:
        return self.layers[self.keep :]

    def record(self) -> dict[str, Any]:
        (block,) = blocks(self.layers)
        return {"replace": {"layers": block, "by": self.by, "keep": self.keep}}


@dataclass(frozen=True)
class Fold:
    """Remove the block `layers`, and multiply what the MLP before it writes by a linear map
    (ReplaceMe, arXiv 2505.02819).

    `maps` is the safetensors file that holds the map, under the block's name: a matrix (hidden,
    hidden), or its diagonal. It lies beside the plan's file.
    """

    layers: tuple[int, ...]
    maps: Path

    def __post_init__(self) -> None:
        _check_block(self.layers, "fold")
        if not self.layers[0]:
            raise InputError("fold.layers: no layer before layer 0 could take the map; drop it")

    @property
    def name(self) -> str:
        return f"{self.layers[0]}:{self.layers[-1] + 1}"

    def record(self) -> dict[str, Any]:
        return {"fold": {"layers": self.name, "maps": self.maps.name}}


# Published replacements that no stock class can hold where a block was.
_NO_FORM = "; a linear map is what `fold` makes, and nothing in the place of a block is `drop`"

Edit = Drop | Mute | Merge | Replace | Fold


def edits_of(variant: Iterable[Unit]) -> tuple[Edit, ...]:
    """The edits that make a variant: its layers dropped, its halves muted."""
    by_part: dict[Part, list[int]] = {"layer": [], "attention": [], "mlp": []}
    for layer, part in sorted(variant):
        by_part[part].append(layer)
    drop = Drop(tuple(by_part["layer"]))
    mute = Mute(tuple(by_part["attention"]), tuple(by_part["mlp"]))
    return (*([drop] if drop.layers else []), *([mute] if mute.units else []))


def parse_edit(edit: Any, where: str) -> Edit:
    if not isinstance(edit, dict) or len(edit) != 1:
        raise InputError(f"{where}: one edit such as `drop: [5, 6]` is expected")
    ((kind, value),) = edit.items()
    if kind not in _EDITS:
        raise InputError(f"{where}: no edit called {shown(kind)}; there are: {', '.join(_EDITS)}")
    try:
        return _EDITS[kind](value)
    except InputError as error:
        raise InputError(f"{where}.{error}") from None


def _drop(value: Any) -> Drop:
    return Drop(parse_layers(value, "drop"))


def _mute(value: Any) -> Mute:
    given = _keys(value, "mute", HALVES)
    return Mute(**{half: parse_layers(layers, f"mute.{half}") for half, layers in given.items()})


def _merge(value: Any) -> Merge:
    given = _keys(value, "merge", ("into", "layers", "weights", "norms"))
    for key in ("into", "layers", "weights"):
        if key not in given:
            raise InputError(f"merge: `{key}` is missing")
    into = parse_layers(given.pop("into"), "merge.into")
    if len(into) != 1:
        raise InputError(f"merge.into: {len(into)} layers; a merge goes into one")
    layers = parse_layers(given.pop("layers"), "merge.layers")
    weights = given.pop("weights")
    return Merge(
        into[0], layers, tuple(weights if isinstance(weights, list) else [weights]), **given
    )


def _replace(value: Any) -> Replace:
    given = _keys(value, "replace", ("layers", "by", "keep"))
    layers = parse_layers(given.pop("layers", []), "replace.layers")
    return Replace(layers, **given)


def _fold(value: Any) -> Fold:
    given = _keys(value, "fold", ("layers", "maps"))
    if not isinstance(given.get("maps"), str):
        raise InputError("fold.maps: the file that `prunekit fold` wrote is expected")
    return Fold(parse_layers(given.get("layers", []), "fold.layers"), Path(given["maps"]))


def _check_block(layers: Sequence[int], where: str) -> None:
    start = layers[0] if layers else 0
    if not layers or list(layers) != list(range(start, start + len(layers))):
        raise InputError(f"{where}.layers: one block such as 5:9 is expected")


_EDITS: dict[Any, Callable[[Any], Edit]] = {
    "drop": _drop, "mute": _mute, "merge": _merge, "replace": _replace, "fold": _fold,
}  # fmt: skip


def _keys(value: Any, where: str, possible: Sequence[str]) -> dict[str, Any]:
    """A mapping that has these keys only."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: a mapping with {', '.join(possible)} is expected")
    if unknown := value.keys() - set(possible):
        raise InputError(
            f"{where}: unknown key {shown(min(map(str, unknown)))}; "
            f"there are: {', '.join(possible)}"
        )
    return dict(value)


def parse_layers(value: Any, where: str) -> tuple[int, ...]:
    """Layer numbers from 5, "5:9" (half-open) or a list of those. Raises InputError."""
    layers: list[int] = []
    for entry in value if isinstance(value, list) else [value]:
        if type(entry) is int and entry >= 0:
            layers.append(entry)
            continue
        block = BLOCK.fullmatch(entry) if isinstance(entry, str) else None
        start, end = map(int, block.groups()) if block else (0, 0)
        if start >= end:
            raise InputError(f"{where}: {shown(entry)} is neither a layer (5) nor a block (5:9)")
        layers.extend(range(start, end))
    return tuple(layers)


def shown(value: Any) -> str:
    """A value from a file, short: YAML's aliases can make a small file's value endless."""
    if isinstance(value, list | dict | set):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
