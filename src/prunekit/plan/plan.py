"""A plan: the edits to make and the model they were made for, as YAML that a person can change."""

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from prunekit.errors import InputError
from prunekit.model.units import Unit, Variant
from prunekit.plan.edits import Drop, Edit, Fold, Merge, Mute, Replace, parse_edit, shown
from prunekit.plan.scores import Base, parse_base

HEADER = (
    "# A prunekit plan. Layers are counted from 0 in the base model; 5:9 stands for the layers\n"
    "# 5 to 8. Apply it with: prunekit cut MODEL THIS_FILE -o OUT\n"
)


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
        """The layers that go whole, ascending: all that go but those merged into others."""
        gone = [
            *(edit.layers for edit in self.edits if isinstance(edit, Drop | Fold)),
            *(edit.removed for edit in self.replacements),
        ]
        return tuple(sorted(layer for layers in gone for layer in layers))

    @property
    def replacements(self) -> tuple[Replace, ...]:
        return tuple(edit for edit in self.edits if isinstance(edit, Replace))

    @property
    def folds(self) -> tuple[Fold, ...]:
        return tuple(edit for edit in self.edits if isinstance(edit, Fold))

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
        mutes = [edit.units for edit in self.edits if isinstance(edit, Mute)]
        by_mlp: list[list[Unit]] = [
            [(layer, "attention") for layer in edit.kept]
            for edit in self.replacements
            if edit.by == "mlp"
        ]
        return tuple(sorted(unit for units in [*mutes, *by_mlp] for unit in units))

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
        instead = Counter(layer for edit in self.replacements for layer in edit.kept)
        drops = "removes" if self.merges else "drops"
        taking = {"merges into": into, "puts in the place of a block": instead}
        named = {drops: removed, "mutes": Counter(layer for layer, _ in muted), **taking}
        for does, layer in _all(named):
            if not 0 <= layer < layers:
                yield f"{does} layer {layer}; the model has layers 0 to {layers - 1}"
        for layer in _twice(removed):
            yield f"{drops} layer {layer} twice"
        for layer in _twice(into):
            yield f"has two merges into layer {layer}; write them as one"
        for does, layer in _all(taking):
            if layer in removed:
                yield f"{does} layer {layer}, which it removes"
        for layer, half in _twice(muted):
            yield f"mutes the {half} of layer {layer} twice"
        for layer, half in muted:
            if layer in removed:
                yield f"mutes the {half} of layer {layer}, which it removes"
        yield from self._folded_wrong()
        if len(removed) >= layers:
            yield f"{drops} all {layers} layers; at least one must stay"

    def _folded_wrong(self) -> Iterator[str]:
        for layer in (edit.layers[0] - 1 for edit in self.folds):
            if layer in self.removed:
                yield f"folds into layer {layer}, which it removes; fold both blocks as one"
            if (layer, "mlp") in self.muted or layer in (edit.into for edit in self.merges):
                yield f"folds into layer {layer}, whose mlp it changes"

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


def read_plan(file: Path, layers: int | None = None) -> Plan:
    """A plan from its YAML file, or from mergekit's passthrough YAML.

    `layers` is how many the model has: mergekit's file tells only what stays. Raises InputError,
    naming the key, if the file is neither.
    """
    try:
        record = yaml.load(file.read_text(encoding="utf-8"), Loader)
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
            f"{file}: unknown key {shown(min(map(str, unknown)))}; "
            "a plan has base, edits, made_by, text"
        )
    edits = record.get("edits")
    if not isinstance(edits, list):
        raise InputError(f"{file}: `edits` must be a list such as [{{drop: [5, 6]}}]")
    parsed = (parse_edit(edit, f"{file}: edits[{number}]") for number, edit in enumerate(edits))
    return Plan(
        tuple(
            replace(edit, maps=file.parent / edit.maps) if isinstance(edit, Fold) else edit
            for edit in parsed
        ),
        _base(record.get("base"), file),
        _mapping(record.get("made_by"), "made_by", file) or {},
        _mapping(record.get("text"), "text", file),
    )


class Loader(yaml.SafeLoader):
    """Knows decimal integers only: YAML 1.1 would read the block 21:29 as 21 * 60 + 29."""

    yaml_implicit_resolvers = {  # noqa: RUF012, as PyYAML has it
        first: [
            (tag, re.compile(r"[-+]?(0|[1-9][0-9]*)$") if tag.endswith(":int") else pattern)
            for tag, pattern in resolvers
        ]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }


def _all(named: dict[str, Counter[int]]) -> Iterator[tuple[str, int]]:
    return ((does, layer) for does, among in named.items() for layer in among)


def _twice(counted: Counter[Any]) -> list[Any]:
    return [item for item, times in counted.items() if times > 1]


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
