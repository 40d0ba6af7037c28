"""A plan: the edits to make and the model they were made for, as YAML that a person can change."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

from prunekit.errors import InputError
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


@dataclass(frozen=True)
class Plan:
    """An ordered list of edits and, if known, the model they were made for.

    `made_by` records criterion, chooser and options; `text` the calibration text's record.
    """

    edits: tuple[Drop, ...]
    base: Base | None = None
    made_by: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] | None = None

    @property
    def dropped(self) -> tuple[int, ...]:
        """All layers that go, ascending."""
        return tuple(sorted(layer for edit in self.edits for layer in edit.layers))

    def kept(self, layers: int) -> list[int]:
        """The layers of the base model that stay, ascending.

        Raises InputError if the plan does not fit a model of that many layers.
        """
        dropped = Counter(self.dropped)
        wrong = [layer for layer in dropped if not 0 <= layer < layers]
        if wrong:
            raise InputError(
                f"the plan drops layer {wrong[0]}; the model has layers 0 to {layers - 1}"
            )
        twice = [layer for layer, times in dropped.items() if times > 1]
        if twice:
            raise InputError(f"the plan drops layer {twice[0]} twice")
        if len(dropped) >= layers:
            raise InputError(f"the plan drops all {layers} layers; at least one must stay")
        return [layer for layer in range(layers) if layer not in dropped]

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
            "edits": [{"drop": blocks(edit.layers)} for edit in self.edits],
            "made_by": self.made_by or None,
            "text": self.text,
        }
        present = {key: value for key, value in record.items() if value is not None}
        return HEADER + yaml.safe_dump(present, sort_keys=False, default_flow_style=None, width=100)


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


def _edit(edit: Any, where: str) -> Drop:
    if not isinstance(edit, dict) or len(edit) != 1:
        raise InputError(f"{where}: one edit such as `drop: [5, 6]` is expected")
    ((kind, value),) = edit.items()
    if kind != "drop":
        raise InputError(f"{where}: no edit called {_shown(kind)}; there are: drop")
    return Drop(parse_layers(value, f"{where}.drop"))


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
