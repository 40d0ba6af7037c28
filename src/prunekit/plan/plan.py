"""A plan: the edits to make and the model they were made for, as YAML that a person can change."""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml

from prunekit.errors import InputError
from prunekit.model.units import HALVES, Part, Unit, Variant, blocks
from prunekit.plan.scores import Base, parse_base

HEADER = (
    "# A prunekit plan. Layers are counted from 0 in the base model; 5:9 stands for the layers\n"
    "# 5 to 8. Apply it with: prunekit cut MODEL THIS_FILE -o OUT\n"
)
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
                raise InputError(f"merge.weights: {_shown(weight)} is not a number from 0 to 1")
        if len(self.weights) != len(self.layers):
            raise InputError(
                f"merge.weights: {len(self.weights)} for {len(self.layers)} layers; "
                "each layer needs one"
            )
        if self.norms not in ("interpolate", "keep"):
            raise InputError(f"merge.norms: {_shown(self.norms)} is neither interpolate nor keep")

    def record(self) -> dict[str, Any]:
        merge = {"into": self.into, "layers": list(self.layers)}
        return {"merge": {**merge, "weights": [*map(float, self.weights)], "norms": self.norms}}


Edit = Drop | Mute | Merge


@dataclass(frozen=True)
class Plan:
    """The edits and, if known, the model they were made for.

    All layers are numbered as in the base model, and no edit touches what another one removes, so
    their order is without effect. `made_by` records criterion, chooser and options; `text` the
    calibration text's record.
    """

    edits: tuple[Edit, ...]
    base: Base | None = None
    made_by: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] | None = None

    @property
    def dropped(self) -> tuple[int, ...]:
        """The layers that `drop` removes, ascending."""
        drops = [edit for edit in self.edits if isinstance(edit, Drop)]
        return tuple(sorted(layer for edit in drops for layer in edit.layers))

    @property
    def merges(self) -> tuple[Merge, ...]:
        return tuple(edit for edit in self.edits if isinstance(edit, Merge))

    @property
    def removed(self) -> tuple[int, ...]:
        """All layers that go, dropped or merged into others, ascending."""
        merged = [layer for edit in self.merges for layer in edit.layers]
        return tuple(sorted([*self.dropped, *merged]))

    @property
    def muted(self) -> tuple[Unit, ...]:
        """The halves that do nothing, ascending."""
        mutes = [edit for edit in self.edits if isinstance(edit, Mute)]
        return tuple(sorted(unit for edit in mutes for unit in edit.units))

    @property
    def variant(self) -> Variant:
        """What the model does without: the layers that go and the muted halves."""
        return frozenset([*((layer, "layer") for layer in self.removed), *self.muted])

    def kept(self, layers: int) -> list[int]:
        """The layers of the base model that stay, ascending: neither dropped nor merged away.

        Raises InputError if the plan does not fit a model of that many layers, or its edits do not
        fit each other.
        """
        for problem in self._problems(layers):
            raise InputError(f"the plan {problem}")
        return sorted(set(range(layers)).difference(self.removed))

    def _problems(self, layers: int) -> Iterator[str]:
        removed, muted = Counter(self.removed), Counter(self.muted)
        into = Counter(edit.into for edit in self.merges)
        drops = "removes" if self.merges else "drops"
        named = {drops: removed, "merges into": into, "mutes": Counter(n for n, _ in muted)}
        for does, among in named.items():
            for layer in among:
                if not 0 <= layer < layers:
                    yield f"{does} layer {layer}; the model has layers 0 to {layers - 1}"
        for layer, times in removed.items():
            if times > 1:
                yield f"{drops} layer {layer} twice"
        for layer, times in into.items():
            if times > 1:
                yield f"has two merges into layer {layer}; write them as one"
            if layer in removed:
                yield f"merges into layer {layer}, which it removes"
        for (layer, half), times in muted.items():
            if times > 1:
                yield f"mutes the {half} of layer {layer} twice"
            if layer in removed:
                yield f"mutes the {half} of layer {layer}, which it removes"
        if len(removed) >= layers:
            yield f"{drops} all {layers} layers; at least one must stay"

    def check(self, base: Base) -> list[int]:
        """The layers that stay, if this plan was made for `base` (or for no model in particular).

        Raises InputError if it was made for another model.
        """
        if self.base is not None and self.base.digest != base.digest:
            raise InputError(
                f"the plan was made for {self.base.name!r} ({self.base.model_type}, "
                f"{self.base.layers} layers, digest {self.base.digest[:12]}), "
                f"not for {base.name!r} ({base.model_type}, {base.layers} layers, "
                f"digest {base.digest[:12]}); "
                "to apply it all the same, delete its `base`"
            )
        return self.kept(base.layers)

    def write(self, file: Path) -> None:
        file.write_text(self.to_yaml(), encoding="utf-8")

    def to_yaml(self) -> str:
        record = {
            "base": asdict(self.base) if self.base else None,
            "edits": [edit.record() for edit in self.edits],
            "made_by": self.made_by or None,
            "text": self.text,
        }
        present = {key: value for key, value in record.items() if value is not None}
        return HEADER + yaml.safe_dump(present, sort_keys=False, default_flow_style=None, width=100)


def edits_of(variant: Iterable[Unit]) -> tuple[Edit, ...]:
    """The edits that make a variant: its layers dropped, its halves muted."""
    by_part: dict[Part, list[int]] = {"layer": [], "attention": [], "mlp": []}
    for layer, part in sorted(variant):
        by_part[part].append(layer)
    drop = Drop(tuple(by_part["layer"]))
    mute = Mute(tuple(by_part["attention"]), tuple(by_part["mlp"]))
    return (*([drop] if drop.layers else []), *([mute] if mute.units else []))


def read_plan(file: Path, layers: int | None = None) -> Plan:
    """A plan from its YAML file, or from mergekit's passthrough YAML.

    `layers` is how many the model has: mergekit's file tells only what stays. Raises InputError,
    naming the key, if the file is neither.
    """
    try:
        record = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except OSError as error:
        raise InputError(f"can't read plan {str(file)!r}: {error.strerror}") from None
    # PyYAML lets ValueError, LookupError and AttributeError out of bad dates, numbers and tags.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise InputError(f"{file}: not YAML: {' '.join(str(error).split())[:200]}") from None
    if not isinstance(record, dict):
        raise InputError(f"{file}: not a plan: a mapping with `edits` is expected")
    if "slices" in record:
        from prunekit.plan.mergekit import from_mergekit

        return from_mergekit(record, file, layers)
    unknown = record.keys() - {"base", "edits", "made_by", "text"}
    if unknown:
        raise InputError(
            f"{file}: unknown key {_shown(min(map(str, unknown)))}; "
            "a plan has base, edits, made_by, text"
        )
    edits = record.get("edits")
    if not isinstance(edits, list):
        raise InputError(f"{file}: `edits` must be a list such as [{{drop: [5, 6]}}]")
    return Plan(
        tuple(_edit(edit, f"{file}: edits[{number}]") for number, edit in enumerate(edits)),
        _base(record.get("base"), file),
        _mapping(record.get("made_by"), "made_by", file) or {},
        _mapping(record.get("text"), "text", file),
    )


class _Loader(yaml.SafeLoader):
    """Knows decimal integers only: YAML 1.1 would read the block 21:29 as 21 * 60 + 29."""

    yaml_implicit_resolvers = {  # noqa: RUF012, as PyYAML has it
        first: [
            (tag, re.compile(r"[-+]?(0|[1-9][0-9]*)$") if tag.endswith(":int") else pattern)
            for tag, pattern in resolvers
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _edit(edit: Any, where: str) -> Edit:
    if not isinstance(edit, dict) or len(edit) != 1:
        raise InputError(f"{where}: one edit such as `drop: [5, 6]` is expected")
    ((kind, value),) = edit.items()
    if kind not in _EDITS:
        raise InputError(f"{where}: no edit called {_shown(kind)}; there are: {', '.join(_EDITS)}")
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


_EDITS: dict[Any, Callable[[Any], Edit]] = {"drop": _drop, "mute": _mute, "merge": _merge}


def _keys(value: Any, where: str, possible: Sequence[str]) -> dict[str, Any]:
    """A mapping that has these keys only."""
    if not isinstance(value, dict):
        raise InputError(f"{where}: a mapping with {', '.join(possible)} is expected")
    if unknown := value.keys() - set(possible):
        raise InputError(
            f"{where}: unknown key {_shown(min(map(str, unknown)))}; "
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
            raise InputError(f"{where}: {_shown(entry)} is neither a layer (5) nor a block (5:9)")
        layers.extend(range(start, end))
    return tuple(layers)


def _shown(value: Any) -> str:
    """A value from a file, short: YAML's aliases can make a small file's value endless."""
    if isinstance(value, list | dict | set):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _base(record: Any, file: Path) -> Base | None:
    if record is None:
        return None
    try:
        return parse_base(record)
    except InputError as error:
        raise InputError(f"{file}: {error}, or be left out") from None


def _mapping(value: Any, key: str, file: Path) -> dict[str, Any] | None:
    if value is not None and not isinstance(value, dict):
        raise InputError(f"{file}: `{key}` must be a mapping")
    return value
