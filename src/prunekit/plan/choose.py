"""From scores to a plan: asks a chooser, with protected layers out of its reach."""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal, Protocol

from prunekit import plugins
from prunekit.errors import InputError
from prunekit.model.units import Unit
from prunekit.plan.edits import Merge, Replace, edits_of
from prunekit.plan.plan import Plan
from prunekit.plan.scores import Kind, Scores

Choice = int | Unit | Merge


class Chooser(Protocol):
    """A file in `choosers/` holds one dataclass of this form, or of Searcher's.

    One that can choose halves has an option `unit`.
    """

    def choose(self, scores: Scores, drop: int, protected: frozenset[int]) -> Sequence[Choice]:
        """`drop` units, none of them in a protected layer, in order of removal: layers (5), halves
        ((5, "mlp")), or layers that are merged. Raises InputError if there is no such choice."""
        ...


def choose(
    scores: Scores,
    *,
    drop: int,
    chooser: str = "block",
    protect: Sequence[int] = (),
    options: dict[str, Any] | None = None,
    unit: Kind = "layer",
) -> Plan:
    """A plan that removes `drop` layers, or mutes as many halves of the kind `unit`. A protected
    layer is never touched, but others may be merged into it; negative ones count from the end.

    Raises InputError if that many can't go.
    """
    if needs_judge(chooser):
        raise InputError(
            f"chooser {chooser!r} needs the model: `prunekit prune` or `prunekit search` give it"
        )
    options = {**(options or {}), **({} if unit == "layer" else {"unit": unit})}
    if "unit" in options and "unit" not in plugins.options(plugins.find("plan.choosers", chooser)):
        raise InputError(f"chooser {chooser!r} takes whole layers only; 'lowest' takes halves")
    made = plugins.make("plan.choosers", chooser, options)
    kind: Kind = getattr(made, "unit", "layer")
    protected = check_request(
        scores.base.layers, drop, protect, None if kind == "layer" else scores.of(kind)
    )
    chosen = list(made.choose(scores, drop, protected))
    gone = [unit for choice in chosen for unit in _units(choice)]
    free = {unit for unit in scores.of(kind) if unit[0] not in protected}
    if len(gone) != drop or len(free.intersection(gone)) != drop:
        what = "layers" if kind == "layer" else "halves"
        raise InputError(f"chooser {chooser!r} gave {chosen}, not {drop} unprotected {what}")
    merges = [choice for choice in chosen if isinstance(choice, Merge)]
    merged = {unit for merge in merges for unit in _units(merge)}
    made_by = {
        "criterion": scores.criterion,
        "options": scores.options,
        "choose": chooser,
        **({"choose_options": options} if options else {}),
        "protect": sorted(protected),
        **in_order(gone),
    }
    plan = Plan((*edits_of(set(gone) - merged), *merges), scores.base, made_by, scores.text)
    plan.kept(scores.base.layers)
    return plan


def choose_to_replace(
    scores: Scores,
    *,
    drop: int,
    by: Literal["layer", "mlp"] = "layer",
    keep: int = 1,
    chooser: str = "block",
    protect: Sequence[int] = (),
    options: dict[str, Any] | None = None,
) -> Plan:
    """A plan that removes `drop` layers, where the first `keep` of each chosen block stand in the
    place of all of it (LLM-Streamline): the blocks are as much longer.

    Raises InputError if that many can't go, or the chooser does not choose blocks.
    """
    if chooser not in ("block", "blocks"):
        raise InputError(f"chooser {chooser!r} chooses no blocks to replace; take block or blocks")
    made = plugins.make("plan.choosers", chooser, dict(options or {}))
    count = int(getattr(made, "count", 1))
    if drop < 1 or keep < 1:
        raise InputError(f"drop {drop}, keep {keep}: to replace a block takes 1 of each at least")
    plan = choose(scores, drop=drop + keep * count, chooser=chooser, protect=protect,
                  options=options)  # fmt: skip
    chosen = plan.made_by["layers_in_order"]
    length = len(chosen) // count
    edits = tuple(
        Replace(tuple(chosen[at : at + length]), by, keep) for at in range(0, len(chosen), length)
    )
    return replace(plan, edits=edits)


def needs_judge(chooser: str) -> bool:
    """Whether a chooser asks a judge, and so belongs to `search`. Raises InputError for no such
    chooser."""
    return getattr(plugins.find("plan.choosers", chooser), "needs_judge", False)


def in_order(units: Sequence[Unit]) -> dict[str, Any]:
    """What went, as a plan's `made_by` records it: layers by number, else with their parts."""
    if all(part == "layer" for _, part in units):
        return {"layers_in_order": [layer for layer, _ in units]}
    return {"units_in_order": [f"{layer} {part}" for layer, part in units]}


def check_request(
    layers: int, drop: int, protect: Sequence[int], halves: Iterable[Unit] | None = None
) -> frozenset[int]:
    """The protected layers, counted from 0, if `drop` of the others, or of their `halves`, can go.

    Raises InputError if not.
    """
    if halves is not None:
        protected = resolve(protect, layers)
        free = [half for half in halves if half[0] not in protected]
        if not 0 <= drop <= len(free):
            raise InputError(f"can't mute {drop} halves; 0 to {len(free)} unprotected are possible")
        return protected
    if not 0 <= drop < layers:
        raise InputError(f"can't drop {drop} of {layers} layers; 0 to {layers - 1} are possible")
    protected = resolve(protect, layers)
    if drop > layers - len(protected):
        raise InputError(
            f"can't drop {drop} layers: {len(protected)} of {layers} are protected, "
            f"which leaves {layers - len(protected)}"
        )
    return protected


def resolve(protect: Sequence[int], layers: int) -> frozenset[int]:
    """Protected layers counted from 0; negative numbers count from the end.

    Raises InputError if one is out of range.
    """
    for layer in protect:
        if not -layers <= layer < layers:
            raise InputError(
                f"can't protect layer {layer}: the model has layers 0 to {layers - 1} "
                f"(or {-layers} to -1 from the end)"
            )
    return frozenset(layer % layers for layer in protect)


def _units(choice: Choice) -> list[Unit]:
    if isinstance(choice, Merge):
        return [(layer, "layer") for layer in choice.layers]
    return [choice] if isinstance(choice, tuple) else [(int(choice), "layer")]
