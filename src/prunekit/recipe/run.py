"""Runs a recipe into a folder, a step at a time; what is done already is not done again.

A step's folder is named by the digest of all that it depends on: the step before it, its options,
its text's files, and the code of private plug-ins. `done.json` is written last, so a folder without
it holds a step that was interrupted, and is filled anew; a training goes on from its saved state.
"""

import fcntl
import hashlib
import importlib.metadata
import json
import platform
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import InputError
from prunekit.recipe.recipe import Recipe, Step
from prunekit.recipe.steps import CHECKPOINT, KINDS, check, do

DONE = "done.json"
RESULTS = "results.json"


@dataclass(frozen=True)
class Placed:
    """A step of a variant, with its folder: `number` counts from 0."""

    step: Step
    number: int
    folder: Path
    arguments: Mapping[str, Any]
    digest: str
    model: str  # what it starts from

    @property
    def said(self) -> str:
        """What it does, in a line."""
        options = ", ".join(f"{key} {value}" for key, value in self.step.options.items())
        return f"{self.folder.name}: {options or 'as usual'}"

    @property
    def done(self) -> bool:
        """Whether it was done. Raises InputError if what stands there is not what was."""
        file = self.folder / DONE
        if not file.is_file():
            return False
        try:
            record = json.loads(file.read_text("utf-8"))
            right = record["digest"] == self.digest
        except (ValueError, KeyError, TypeError):
            right = False
        missing = KINDS[self.step.kind].makes and not (self.folder / CHECKPOINT).is_dir()
        if not right or missing:
            said = "its checkpoint is gone" if right else "its done.json is not what was written"
            raise InputError(f"{str(self.folder)!r} was changed by hand ({said}); remove it")
        return True


@dataclass(frozen=True)
class Watching:
    """How a run shows what it does: `say` prints a line, `watch` and `training` are bars."""

    say: Callable[[str], None]
    watch: Callable[..., Any]
    training: Callable[[], AbstractContextManager[Any]]


def place(recipe: Recipe, run: Path) -> list[list[Placed]]:
    """Where each step of each variant goes. Raises InputError for texts or models that are not
    there."""
    from prunekit.model.checkpoint import Checkpoint

    start = Checkpoint.open(recipe.model)
    texts: dict[str, str] = {}
    placed = []
    for variant in recipe.variants:
        digest, model = start.digest, recipe.model
        row = []
        for number, step in enumerate(variant.steps):
            arguments = check(step.kind, step.options, recipe.shared)
            for option, name in KINDS[step.kind].texts.items():
                arguments.setdefault(option, recipe.text[name])
            content = {
                "version": importlib.metadata.version("prunekit"),
                "before": digest,
                "kind": step.kind,
                "arguments": arguments,
                "files": [_text_digest(arguments[option], texts)
                          for option in KINDS[step.kind].texts],
                "code": [_file_digest(Path(value)) for value in arguments.values()
                         if isinstance(value, str) and value.endswith(".py")],
            }  # fmt: skip
            made = json.dumps(content, sort_keys=True, default=str)
            own = hashlib.sha256(made.encode()).hexdigest()
            folder = run / f"{number:02}-{step.kind}-{own[:8]}"
            row.append(Placed(step, number, folder, arguments, own, model))
            if KINDS[step.kind].makes:
                digest, model = own, str(folder / CHECKPOINT)
        placed.append(row)
    return placed


def carry_out(recipe: Recipe, run: Path, watching: Watching) -> list[dict[str, Any]]:
    """Do every step that is not done; the results of all, which are in results.json too.

    Raises InputError for anything a user can mend.
    """
    placed = place(recipe, run)  # before there is a folder: what can't be found is said first
    run.mkdir(parents=True, exist_ok=True)
    with _alone(run):
        _put(run / "recipe.json", recipe.record)
        _put(run / "environment.json", _environment())
        records = []
        for variant, row in zip(recipe.variants, placed, strict=True):
            for step in row:
                if step.done:
                    watching.say(f"{step.folder.name}: done before")
                else:
                    _do(step, run, watching)
                record = json.loads((step.folder / RESULTS).read_text("utf-8"))
                records.append({"set": dict(variant.set), "step": step.folder.name, **record})
        _put(run / RESULTS, records)
    return records


def _do(step: Placed, run: Path, watching: Watching) -> None:
    watching.say(step.said)
    step.folder.mkdir(exist_ok=True)
    for entry in step.folder.iterdir():
        if entry.name == f".{CHECKPOINT}.healing":  # a training that goes on
            continue
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()
    start = time.monotonic()
    _log(run, {"step": step.folder.name, "event": "started"})
    with watching.training() as report:
        results = do(step.step.kind, step.model, step.folder, _within(step.arguments, step.folder),
                     watch=watching.watch, report=report)  # fmt: skip
    if results.get("history", {}).get("best_step") == 0:
        watching.say(f"{step.folder.name}: nothing was gained; the weights are as they were")
    timed = {"seconds": time.monotonic() - start, **results.pop("timed", {})}
    _put(
        step.folder / RESULTS, {"kind": step.step.kind, "options": dict(step.arguments), **results}
    )
    _put(step.folder / DONE, {"digest": step.digest, **timed})
    _log(run, {"step": step.folder.name, "event": "done", **timed})


def _within(value: Any, folder: Path) -> Any:
    """`{step}` in options is the step's folder."""
    if isinstance(value, str):
        return value.replace("{step}", str(folder))
    if isinstance(value, dict):
        return {key: _within(inside, folder) for key, inside in value.items()}
    return value


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Within the block no other process runs into this folder. Raises InputError if one does."""
    with (run / ".lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another process is running into {str(run)!r}") from None
        yield


def _text_digest(source: str, known: dict[str, str]) -> str:
    """Of the files behind a text source, or its name if it is no file."""
    if source not in known:
        path = Path(source.partition(":")[0] if not Path(source).exists() else source)
        if source.startswith("mmlu:"):
            path = Path(source.removeprefix("mmlu:"))
        files = sorted(path.rglob("*")) if path.is_dir() else [path] if path.is_file() else []
        digests = [_file_digest(file) for file in files if file.is_file()]
        known[source] = hashlib.sha256(" ".join([source, *digests]).encode()).hexdigest()
    return known[source]


def _file_digest(file: Path) -> str:
    if not file.is_file():
        raise InputError(f"no file {str(file)!r}")
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _environment() -> dict[str, str]:
    packages = ("prunekit", "torch", "transformers", "tokenizers", "peft", "accelerate")
    found = {name: importlib.metadata.version(name) for name in packages if _installed(name)}
    return {"python": platform.python_version(), "machine": platform.machine(), **found}


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _log(run: Path, record: dict[str, Any]) -> None:
    with (run / "log.jsonl").open("a", encoding="utf-8") as stream:
        stream.write(json.dumps({"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), **record}) + "\n")


def _put(file: Path, record: Any) -> None:
    """Written whole, or not at all."""
    scratch = file.with_suffix(".partial")
    scratch.write_text(json.dumps(record, indent=2, default=str) + "\n", "utf-8")
    scratch.replace(file)
