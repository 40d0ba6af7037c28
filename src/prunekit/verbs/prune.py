"""Prune: score, plan, cut, and perplexity before and after."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Unpack

from prunekit import plugins
from prunekit.criteria._criterion import OfTrials
from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.load import How, Loaded
from prunekit.model.units import HALVES
from prunekit.plan.choose import check_request, needs_judge
from prunekit.plan.plan import Plan
from prunekit.plan.scores import Kind, Scores
from prunekit.plan.target import Target
from prunekit.surgery.apply import base_of, tell
from prunekit.surgery.write import refuse_existing
from prunekit.text.packing import check_disjoint
from prunekit.verbs.cut import cut
from prunekit.verbs.edits import make_edit
from prunekit.verbs.evaluate import TEST, Results, facts, measure_perplexity
from prunekit.verbs.score import (
    CALIBRATE,
    make_criterion,
    open_model,
    pack_for,
    pack_to_calibrate,
    run,
)
from prunekit.verbs.search import count_of, search_for, trial_judge
from prunekit.verbs.watch import Watch, unwatched


@dataclass(frozen=True)
class Pruned:
    """A new checkpoint, how it came about, and what it cost. `shared` is the share of the test
    text's lines that the calibration text has too."""

    checkpoint: Checkpoint
    scores: Scores
    plan: Plan
    dense: Results
    pruned: Results
    shared: float


def prune(
    model: str | Path,
    out: str | Path,
    *,
    drop: int,
    criterion: str = "angular",
    options: Mapping[str, Any] | None = None,
    chooser: str = "block",
    choose_options: Mapping[str, Any] | None = None,
    unit: Kind = "layer",
    edit: str = "drop",
    edit_options: Mapping[str, Any] | None = None,
    protect: Sequence[int] = (),
    text: str = CALIBRATE,
    samples: int | None = None,
    test: str = TEST,
    test_samples: int | None = None,
    length: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    watch: Watch = unwatched,
    **how: Unpack[How],
) -> Pruned:
    """Remove `drop` layers from `model`, or mute as many halves of the kind `unit`, and write the
    result to the new folder `out`.

    A chooser that searches starts from the scores, and tries variants on the calibration text by
    the criterion, if that judges trials, or else by divergence. The `edit` is drop, replace or
    fold: see `prunekit.plan.edits`.
    The dense model is measured first, on `test`, which must not be the calibration `text`. The
    measures are kept in the checkpoint's prunekit.json. Raises InputError for anything a user can
    mend, with nothing written.
    """
    refuse_existing(Path(out))
    choose_options = dict(choose_options or {})
    shape = make_edit(edit, edit_options, unit)
    judge = make_criterion(criterion, with_halves(criterion, dict(options or {}), unit))
    # Quantised weights may choose what goes; what is measured and cut is the model itself.
    whole: How = {**how, "quantize": None}
    loaded = open_model(model, **whole)
    # What can't be chosen is said now, and not after the walks.
    target = count_of(loaded, drop, unit)
    searching = needs_judge(chooser)
    if searching and edit == "replace":
        raise InputError("--edit replace needs blocks; take --choose block or blocks")
    if searching:
        check_request(
            loaded.family.depth, drop, protect, None if unit == "layer" else target.savings
        )
    else:
        shape.plan(_blank(loaded, target), drop=drop, chooser=chooser, protect=protect, unit=unit,
                   options=choose_options)  # fmt: skip
    calibrate = pack_to_calibrate(loaded, text, samples=samples, length=length, seed=seed)
    unseen = pack_for(loaded, test, samples=test_samples, length=length)
    shared = check_disjoint(calibrate, unseen)
    dense = Results(**facts(loaded), perplexity=measure_perplexity(loaded, unseen, batch, watch))
    if how.get("quantize"):
        loaded = open_model(model, **how)
    (scores,) = run(loaded, {criterion: judge}, calibrate, batch, seed, watch)
    if searching:
        by = judge if isinstance(judge, OfTrials) else trial_judge("divergence")
        plan = search_for(
            loaded, target, by, calibrate, chooser=chooser, options=choose_options,
            protect=protect, scores=scores, batch=batch, seed=seed, watch=watch,
        )  # fmt: skip
    else:
        plan = shape.plan(
            scores, drop=drop, chooser=chooser, protect=protect, unit=unit, options=choose_options
        )
    checkpoint = loaded.checkpoint
    with TemporaryDirectory() as folder:
        if edit == "fold" and loaded.quantize:
            loaded = open_model(model, **whole)
        plan = shape.finish(plan, loaded, calibrate, Path(folder, "maps.safetensors"), batch)
        del loaded  # the cut opens the model anew, to check itself against it: hold it once
        made = open_model(cut(checkpoint, plan, out).folder, **whole)
    after = Results(**facts(made), perplexity=measure_perplexity(made, unseen, batch, watch))
    tell(made.checkpoint, {"dense": asdict(dense), "pruned": asdict(after)})
    return Pruned(made.checkpoint, scores, plan, dense, after, shared)


def with_halves(criterion: str, options: dict[str, Any], unit: Kind) -> dict[str, Any]:
    """A criterion's options, with halves scored where they are wanted."""
    if unit != "layer" and "halves" in plugins.options(plugins.find("criteria", criterion)):
        return {"halves": True, **options}
    return options


def _blank(loaded: Loaded, target: Target) -> Scores:
    """Scores that prefer no unit to another."""
    base = base_of(loaded.checkpoint, loaded.family)
    halves: dict[str, list[float | None]] = {
        half: [0.0 if (layer, half) in target.savings else None for layer in range(base.layers)]
        for half in HALVES
    }
    return Scores("none", {}, base, {1: [0.0] * base.layers}, halves=halves)
