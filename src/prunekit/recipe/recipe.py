"""Reads a recipe: the model, the texts, and the steps, checked before anything runs.

    model: demo
    text: {calibrate: stdlib/calibrate, train: stdlib/train, test: stdlib/test}
    steps:
      - prune: {criterion: angular, drop: 4}
      - repeat: {times: 2, steps: [heal: {how: lora, rank: 8, tokens: 250k}]}
      - evaluate: [perplexity]
    sweep: {prune.drop: [2, 4]}

A step's keys are its verb's options. What is wrong is told with its line.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from prunekit.errors import InputError
from prunekit.plan.plan import Loader
from prunekit.plugins import folder, nearest
from prunekit.recipe.steps import KINDS, check

TEXTS = {"calibrate": "stdlib/calibrate", "train": "stdlib/train", "test": "stdlib/test"}
SHARED = ("samples", "test_samples", "length", "seed", "dtype", "device", "walk", "memory",
          "scratch")  # fmt: skip
KEYS = ("model", "text", "steps", "sweep", *SHARED)
MOST = 1000  # steps in all variants; more is a slip


@dataclass(frozen=True)
class Step:
    """One thing to do: a kind, its options, and its line in the recipe."""

    kind: str
    options: Mapping[str, Any]
    line: int = 0


@dataclass(frozen=True)
class Variant:
    """One way through a recipe: what the sweep set, and the steps in order."""

    set: Mapping[str, Any]
    steps: Sequence[Step]


@dataclass(frozen=True)
class Recipe:
    """A recipe as it was read. `text` names the sources; `shared` are options of all steps."""

    source: str
    model: str
    text: Mapping[str, str]
    shared: Mapping[str, Any]
    variants: Sequence[Variant]
    record: Mapping[str, Any] = field(repr=False)


def read_recipe(name: str | Path, changes: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe from its file, or one that ships with prunekit by its name.

    `changes` are keys set anew: {"model": ..., "text.test": ..., "prune.drop": 6}. Raises
    InputError, with the line, for whatever is wrong in it.
    """
    file = find_recipe(name)
    node, record = _load(file)
    lines = _Lines(file, node)
    if not isinstance(record, dict):
        raise InputError(f"{file}: not a recipe: a mapping with model and steps is expected")
    lines.known(record, KEYS, ())
    record = _changed(record, changes or {}, file)
    for key in ("model", "steps"):
        if key not in record:
            raise InputError(f"{file}: a recipe needs `{key}`")
    if not isinstance(record["model"], str | int):
        raise lines.wrong(("model",), "a folder, a hub id or `demo` is expected")
    text = record.get("text") or {}
    lines.known(text, [*TEXTS, *SHARED[:3]], ("text",))
    given = {**{key: text[key] for key in SHARED[:3] if key in text},
             **{key: record[key] for key in SHARED if key in record}}  # fmt: skip
    steps = list(_steps(record["steps"], lines, ("steps",)))
    if not steps:
        raise lines.wrong(("steps",), "no step to do")
    variants = [
        Variant(chosen, [_set(step, chosen) for step in steps])
        for chosen in _sweep(record.get("sweep") or {}, steps, lines)
    ]
    if sum(len(variant.steps) for variant in variants) > MOST:
        raise InputError(f"{file}: more than {MOST} steps in all")
    sources = {key: str(text.get(key, usual)) for key, usual in TEXTS.items()}
    for variant in variants:
        for step in variant.steps:
            try:
                check(step.kind, step.options, {**given, "seed": given.get("seed", 0)})
            except InputError as error:
                raise InputError(f"{file}, line {step.line}: {step.kind}: {error}") from None
    return Recipe(str(name), str(record["model"]), sources, given, variants, record)


def parse_changes(given: Sequence[str]) -> dict[str, Any]:
    """KEY=VALUE, values as YAML has them. Raises InputError for anything else."""
    found = {}
    for entry in given:
        key, equals, value = entry.partition("=")
        if not equals:
            raise InputError(f"{entry!r}: give KEY=VALUE, such as prune.drop=6")
        try:
            found[key] = yaml.safe_load(value)
        except yaml.YAMLError:
            raise InputError(f"{entry!r}: the value is not YAML") from None
    return found


def shipped() -> dict[str, str]:
    """Name -> first comment of every recipe that ships with prunekit."""
    found = {}
    for file in sorted((folder("recipe") / "shipped").glob("*.yaml")):
        first = file.read_text("utf-8").partition("\n")[0]
        found[file.stem] = first.removeprefix("#").strip()
    return found


def find_recipe(name: str | Path) -> Path:
    """The file of a recipe. Raises InputError if there is none."""
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.exists():
        if not path.is_file():
            raise InputError(f"no recipe file {str(path)!r}")
        return path
    file = folder("recipe") / "shipped" / f"{name}.yaml"
    if not file.is_file():
        raise InputError(f"no recipe called {str(name)!r}{nearest(str(name), list(shipped()))}")
    return file


class _Lines:
    """Where each key of a recipe stands."""

    def __init__(self, file: Path, node: yaml.Node | None) -> None:
        self.file = file
        self.at: dict[tuple[Any, ...], int] = {}
        if node:
            self._note(node, ())

    def _note(self, node: yaml.Node, path: tuple[Any, ...]) -> None:
        self.at.setdefault(path, node.start_mark.line + 1)
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                self.at[*path, str(key.value)] = key.start_mark.line + 1
                self._note(value, (*path, str(key.value)))
        elif isinstance(node, yaml.SequenceNode):
            for number, value in enumerate(node.value):
                self._note(value, (*path, number))

    def of(self, path: tuple[Any, ...]) -> int:
        while path and path not in self.at:
            path = path[:-1]
        return self.at.get(path, 1)

    def wrong(self, path: tuple[Any, ...], said: str) -> InputError:
        where = ".".join(map(str, path))
        return InputError(f"{self.file}, line {self.of(path)}: {where}: {said}")

    def known(self, record: Any, possible: Sequence[str], path: tuple[Any, ...]) -> None:
        """Raises InputError unless `record` is a mapping with these keys only."""
        if not isinstance(record, dict):
            raise self.wrong(path, f"a mapping with {', '.join(possible)} is expected")
        for key in record:
            if key not in possible:
                near = nearest(str(key), list(possible))
                raise self.wrong((*path, str(key)), f"no such key{near}")


def _load(file: Path) -> tuple[yaml.Node | None, Any]:
    try:
        text = file.read_text("utf-8")
        return yaml.compose(text, Loader), yaml.load(text, Loader)
    except OSError as error:
        raise InputError(f"can't read recipe {str(file)!r}: {error.strerror}") from None
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, RecursionError) as error:
        raise InputError(f"{file}: not YAML: {' '.join(str(error).split())[:200]}") from None


def _steps(given: Any, lines: _Lines, path: tuple[Any, ...]) -> Iterator[Step]:
    """The steps in order, repeats unrolled."""
    if not isinstance(given, list):
        raise lines.wrong(path, "a list of steps such as `- prune: {drop: 4}` is expected")
    for number, entry in enumerate(given):
        here = (*path, number)
        if not isinstance(entry, dict) or len(entry) != 1:
            raise lines.wrong(here, "one step such as `prune: {drop: 4}` is expected")
        ((kind, options),) = entry.items()
        if kind == "repeat":
            here = (*here, "repeat")
            lines.known(options, ("times", "steps"), here)
            times = options.get("times")
            if type(times) is not int or not 0 < times <= MOST:
                raise lines.wrong(here, f"times: a number from 1 to {MOST} is expected")
            inside = list(_steps(options.get("steps"), lines, (*here, "steps")))
            yield from inside * times
        elif kind in KINDS:
            if isinstance(options, list):  # evaluate: [perplexity, latency]
                options = {"measure": options}
            if options is not None and not isinstance(options, dict):
                raise lines.wrong((*here, kind), "a mapping of options is expected")
            yield Step(kind, options or {}, lines.of((*here, kind)))
        else:
            raise lines.wrong(here, f"no step {kind!r}{nearest(str(kind), [*KINDS, 'repeat'])}")


def _sweep(sweep: Any, steps: Sequence[Step], lines: _Lines) -> list[dict[str, Any]]:
    """Every combination of what is swept over: {"prune.drop": 2}, ..."""
    if not isinstance(sweep, dict):
        raise lines.wrong(("sweep",), "a mapping such as {prune.drop: [2, 4]} is expected")
    for key, values in sweep.items():
        kind, dot, option = str(key).partition(".")
        if not dot or not option or kind not in (step.kind for step in steps):
            raise lines.wrong(("sweep", str(key)), "no step of this recipe has that option")
        if not isinstance(values, list) or not values:
            raise lines.wrong(("sweep", str(key)), "a list of values is expected")
    return [dict(zip(sweep, values, strict=True)) for values in product(*sweep.values())]


def _set(step: Step, chosen: Mapping[str, Any]) -> Step:
    own = {key.partition(".")[2]: value for key, value in chosen.items()
           if key.partition(".")[0] == step.kind}  # fmt: skip
    return Step(step.kind, {**step.options, **own}, step.line)


def _changed(record: dict[str, Any], changes: Mapping[str, Any], file: Path) -> dict[str, Any]:
    """The recipe with keys set from outside; steps' options in all steps of the kind."""
    for key, value in changes.items():
        first, dot, rest = key.partition(".")
        if not dot and first in KEYS and first not in ("steps", "sweep", "text"):
            record = {**record, first: value}
        elif first == "text" and rest:
            record = {**record, "text": {**(record.get("text") or {}), rest: value}}
        elif dot and first in KINDS:
            steps, found = _changed_steps(record.get("steps"), first, rest, value)
            if not found:
                raise InputError(f"{key}={value}: {file} has no step {first!r}")
            sweep = {name: values for name, values in (record.get("sweep") or {}).items()
                     if name != key}  # fmt: skip
            record = {**record, "steps": steps, "sweep": sweep}
        else:
            raise InputError(
                f"{key}={value}: give model=..., text.test=... or an option of a step, such as "
                "prune.drop=6"
            )
    return record


def _changed_steps(steps: Any, kind: str, option: str, value: Any) -> tuple[Any, bool]:
    if not isinstance(steps, list):
        return steps, False
    changed, found = [], False
    for entry in steps:
        made = entry
        if isinstance(entry, dict) and kind in entry:
            options = entry[kind]
            options = {"measure": options} if isinstance(options, list) else options or {}
            made, found = {kind: {**options, option: value}}, True
        elif isinstance(entry, dict) and isinstance(entry.get("repeat"), dict):
            inside, again = _changed_steps(entry["repeat"].get("steps"), kind, option, value)
            made, found = {"repeat": {**entry["repeat"], "steps": inside}}, found or again
        changed.append(made)
    return changed, found
