"""The kinds of steps a recipe has: each is a verb, and its options are the verb's."""

import inspect
import typing
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from prunekit import plugins
from prunekit.errors import InputError

CHECKPOINT = "checkpoint"
GIVEN = ("model", "models", "out", "watch", "report", "plan")  # by the runner, not a recipe


@dataclass(frozen=True)
class Kind:
    """A step's verb. `texts` gives the recipe's text for each of the verb's text options, and
    `shared` the recipe's option for each of the verb's; `makes` tells whether a checkpoint comes
    of it."""

    verb: str
    texts: Mapping[str, str]
    shared: Mapping[str, str]
    makes: bool = True


HOW = {key: key for key in ("length", "dtype", "device", "walk", "memory", "scratch")}
DRAWN = {**HOW, "samples": "samples", "seed": "seed"}
KINDS = {
    "prune": Kind("prune", {"text": "calibrate", "test": "test"},
                  {**DRAWN, "test_samples": "test_samples"}),
    "search": Kind("search", {"text": "calibrate"}, DRAWN),
    "heal": Kind("heal", {"text": "train"}, {**HOW, "seed": "seed"}),
    "evaluate": Kind("evaluate", {"text": "test"}, {**HOW, "samples": "test_samples"}, makes=False),
}  # fmt: skip
ALIASES = {"choose": "chooser"}  # as the command line has them


def check(kind: str, options: Mapping[str, Any], shared: Mapping[str, Any]) -> dict[str, Any]:
    """The verb's arguments, of the right types, but for models and texts.

    Raises InputError for options that the verb has not, or values that are none.
    """
    from pydantic import TypeAdapter, ValidationError

    verb = _verb(kind)
    hints = _hints(verb)
    wanted = {**_shared(kind, shared), **{ALIASES.get(key, key): value
                                          for key, value in options.items()}}  # fmt: skip
    if kind == "heal":
        wanted = _with_healer(wanted, hints)
    if kind == "evaluate" and isinstance(wanted.get("measure"), str):
        wanted["measure"] = [wanted["measure"]]
    found = {}
    for key, value in wanted.items():
        if key not in hints:
            said = {name: alias for alias, name in ALIASES.items()}
            possible = sorted(said.get(name, name) for name in hints)
            raise InputError(f"no option {key!r}{plugins.nearest(key, possible)}")
        try:
            found[key] = TypeAdapter(hints[key]).validate_python(value)
        except ValidationError as error:
            raise InputError(f"{key}={value!r}: {error.errors()[0]['msg']}") from None
    _check_names(found)
    for name, parameter in inspect.signature(verb).parameters.items():
        needed = parameter.default is inspect.Parameter.empty
        if needed and name in hints and name not in found:
            raise InputError(f"needs the option {name!r}")
    return found


def _check_names(arguments: Mapping[str, Any]) -> None:
    """Raises InputError for plug-ins that there are not, and numbers of tokens that are none."""
    for option, room in (("criterion", "criteria"), ("chooser", "plan.choosers")):
        if option in arguments:
            plugins.find(room, arguments[option])
    possible = list(plugins.names("measures"))
    for name in arguments.get("measure", ()):
        if name not in possible:
            raise InputError(f"no measure called {name!r}{plugins.nearest(name, possible)}")
    if "tokens" in arguments:
        from prunekit.verbs.heal import parse_count

        parse_count(arguments["tokens"])


def do(
    kind: str, model: str, folder: Path, arguments: Mapping[str, Any], **watching: Any
) -> dict[str, Any]:
    """Do a step: a checkpoint in `folder`, if one comes of it, and what was measured.

    Raises InputError for anything a user can mend.
    """
    verb = _verb(kind)
    out = folder / CHECKPOINT
    if kind == "prune":
        made = verb(model, out, watch=watching["watch"], **arguments)
        made.plan.write(folder / "plan.yaml")
        made.scores.write(folder / "scores.json")
        return {"dense": asdict(made.dense), "result": asdict(made.pruned),
                "removed": list(made.plan.removed), "muted": list(made.plan.muted)}  # fmt: skip
    if kind == "search":
        from prunekit.verbs.cut import cut

        plan = verb(model, watch=watching["watch"], **arguments)
        plan.write(folder / "plan.yaml")
        cut(model, plan, out)
        return {"removed": list(plan.removed), "muted": list(plan.muted)}
    if kind == "heal":
        healed = verb(model, out, report=watching["report"], **arguments)
        history = asdict(healed.history)
        timed = {key: history.pop(key) for key in ("seconds", "tokens_per_second")}
        return {"history": history, "trained": healed.trained, "timed": timed}
    (results,) = verb([model], watch=watching["watch"], **arguments)
    return {"result": asdict(results)}


def _verb(kind: str) -> Callable[..., Any]:
    verb: Callable[..., Any] = getattr(import_module(f"prunekit.verbs.{KINDS[kind].verb}"), kind)
    return verb


def _hints(verb: Callable[..., Any]) -> dict[str, Any]:
    """Option -> type of a verb, with how models are opened."""
    from prunekit.model.load import How

    hints = typing.get_type_hints(verb)
    found = {}
    for name, parameter in inspect.signature(verb).parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found.update(typing.get_type_hints(How))
        elif name not in GIVEN:
            found[name] = hints[name]
    return found


def _shared(kind: str, shared: Mapping[str, Any]) -> dict[str, Any]:
    return {
        option: shared[theirs] for option, theirs in KINDS[kind].shared.items() if theirs in shared
    }


def _with_healer(wanted: Mapping[str, Any], hints: Mapping[str, Any]) -> dict[str, Any]:
    """Options of the healer, such as a rank, may stand among those of the step."""
    how = str(wanted.get("how", "auto"))
    if how == "auto":
        return dict(wanted)
    healer = plugins.options(plugins.find("healing.healers", how))
    own = {key: value for key, value in wanted.items() if key in healer and key not in hints}
    rest = {key: value for key, value in wanted.items() if key not in own}
    return {**rest, "options": {**(wanted.get("options") or {}), **own}} if own else rest
