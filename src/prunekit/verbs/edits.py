"""What `--edit` makes of the layers that are chosen: dropped, replaced or folded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prunekit import plugins
from prunekit.errors import InputError
from prunekit.model.load import Loaded
from prunekit.plan.choose import choose, choose_to_replace
from prunekit.plan.plan import Plan
from prunekit.plan.scores import Kind, Scores
from prunekit.text.packing import Text
from prunekit.verbs.fold import RIDGE, fold_plan


@dataclass(frozen=True)
class Dropped:
    """What is chosen goes, or, if it is halves, is muted."""

    def plan(self, scores: Scores, *, unit: Kind, **choice: Any) -> Plan:
        """What goes, by scores."""
        return choose(scores, unit=unit, **choice)

    def finish(self, plan: Plan, loaded: Loaded, text: Text, maps: Path, batch: int | None) -> Plan:
        """The plan with what takes the model to work out."""
        return plan


@dataclass(frozen=True)
class Replaced(Dropped):
    """The first layers of each block stand in the place of all of it."""

    by: Literal["layer", "mlp"] = "layer"
    keep: int = 1

    def plan(self, scores: Scores, *, unit: Kind, **choice: Any) -> Plan:
        return choose_to_replace(scores, by=self.by, keep=self.keep, **choice)


@dataclass(frozen=True)
class Folded(Dropped):
    """The MLP before each block takes a linear map that was fitted to it."""

    ridge: float = RIDGE
    diagonal: bool = False

    def finish(self, plan: Plan, loaded: Loaded, text: Text, maps: Path, batch: int | None) -> Plan:
        return fold_plan(loaded, plan, text, maps, ridge=self.ridge, diagonal=self.diagonal,
                         batch=batch)  # fmt: skip


EDITS: dict[str, type[Dropped]] = {"drop": Dropped, "replace": Replaced, "fold": Folded}
ELSEWHERE = {"mute": "--unit attention, mlp or half", "merge": "--choose pairs"}


def make_edit(name: str, options: Mapping[str, Any] | None, unit: Kind) -> Dropped:
    """An edit with its options. Raises InputError for what there is not."""
    if name not in EDITS:
        hint = f"; take {ELSEWHERE[name]}" if name in ELSEWHERE else plugins.nearest(name, [*EDITS])
        raise InputError(f"no --edit {name!r}{hint}")
    if name != "drop" and unit != "layer":
        raise InputError(f"--edit {name} is of whole layers; leave --unit away")
    return plugins.fill(EDITS[name], "edit", name, options)
