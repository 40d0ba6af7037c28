"""Compare: what every criterion and chooser takes out, and what is lost by it, side by side."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from pathlib import Path
from random import Random
from typing import Any, Unpack

from prunekit import plugins
from prunekit.criteria._criterion import Criterion
from prunekit.errors import InputError
from prunekit.measures.perplexity import LARGEST
from prunekit.model.load import How, Loaded
from prunekit.model.loss import Divergence, Logits, Loss
from prunekit.model.units import DENSE, Unit, Variant
from prunekit.model.walk import Observer
from prunekit.plan.choose import check_request, choose, needs_judge
from prunekit.plan.scores import Kind, Scores
from prunekit.text.packing import Text, check_disjoint
from prunekit.verbs.evaluate import TEST, refuse_seen
from prunekit.verbs.prune import with_halves
from prunekit.verbs.score import (
    CALIBRATE,
    batch_size,
    make_criterion,
    open_model,
    pack_for,
    pack_to_calibrate,
    run,
)
from prunekit.verbs.search import count_of, search_for, trial_judge
from prunekit.verbs.watch import Watch, unwatched

CONTROL = "random"
DRAWS = 5  # of the control


@dataclass(frozen=True)
class Entry:
    """What one method took out, and what that cost on the test text.

    `perplexity` and `divergence` (KL from the whole model, nats a token) are means over `draws`
    draws of the control, with the lowest and the highest perplexity in `spread`; `gone` is its
    first draw. `seconds` is the time to find `gone`: criteria that share a walk share its time.
    """

    criterion: str
    chooser: str
    drop: int
    gone: tuple[Unit, ...]
    perplexity: float
    divergence: float
    seconds: float
    draws: int = 1
    spread: tuple[float, float] | None = None


@dataclass(frozen=True)
class Comparison:
    """Entries by drop and then by perplexity, the whole model's perplexity, and on what."""

    model: str
    layers: int
    dense: float
    entries: list[Entry]
    calibration_text: dict[str, Any]
    text: dict[str, Any]
    context: dict[str, Any]


def compare(
    model: str | Path | Loaded,
    *,
    drop: Sequence[int],
    criteria: str | Sequence[str] = "all",
    choosers: Sequence[str] = ("block", "lowest", "greedy", "evolve"),
    by: str = "divergence",
    options: Mapping[str, Any] | None = None,
    unit: Kind = "layer",
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
) -> Comparison:
    """Choose by every criterion and chooser that go together, and measure all choices in one walk.

    `criteria` are names, or `all` that the installation has. Choosers that search judge `by` a
    criterion that can, and start from the scores by `cosine`, or by the first criterion. `random`
    is the control, and always there. Raises InputError for anything a user can mend.
    """
    names = _criteria(criteria)
    judge = trial_judge(by)
    shared = dict(options or {})
    judges: dict[str, Criterion] = {}
    for name in names:
        judges[name] = make_criterion(name, with_halves(name, shared, unit), shared=True)
    loaded = open_model(model, **how)
    depth = loaded.family.depth
    for amount in drop:
        halves = None if unit == "layer" else count_of(loaded, amount, unit).savings
        check_request(depth, amount, protect, halves)
    calibrate = pack_to_calibrate(loaded, text, samples=samples, length=length, seed=seed)
    unseen = pack_for(loaded, test, samples=test_samples, length=length)
    check_disjoint(calibrate, unseen)
    refuse_seen(loaded.checkpoint, unseen)
    scores, seconds = _scores(loaded, judges, calibrate, batch, seed, watch)
    found: list[tuple[str, str, int, Variant, float]] = []
    for chooser in choosers:
        for amount in drop:
            if needs_judge(chooser):
                begin = time.perf_counter()
                plan = search_for(
                    loaded, count_of(loaded, amount, unit), judge, calibrate, chooser=chooser,
                    protect=protect, scores=scores.get("cosine", scores[names[0]]), batch=batch,
                    seed=seed, watch=watch,
                )  # fmt: skip
                found.append((by, chooser, amount, plan.variant, time.perf_counter() - begin))
                continue
            for name in names:
                if _goes(scores[name], chooser, unit):
                    plan = choose(
                        scores[name], drop=amount, chooser=chooser, protect=protect, unit=unit
                    )
                    found.append((name, chooser, amount, plan.variant, seconds[name]))
    control = _control(loaded, drop, unit, protect, seed)
    variants = [variant for *_, variant, _ in found]
    variants += [variant for draws in control.values() for variant in draws]
    losses, way = _measure(loaded, variants, unseen, batch, watch)
    entries = []
    for name, chooser, amount, variant, taken in found:
        lost, apart = losses[variant]
        entries.append(Entry(name, chooser, amount, tuple(sorted(variant)), lost, apart, taken))
    for amount, draws in control.items():
        many, aparts = zip(*(losses[variant] for variant in draws), strict=True)
        entries.append(
            Entry(
                CONTROL, "lowest", amount, tuple(sorted(draws[0])), sum(many) / DRAWS,
                sum(aparts) / DRAWS, 0.0, DRAWS, (min(many), max(many)),
            )
        )  # fmt: skip
    return Comparison(
        model=loaded.checkpoint.name,
        layers=depth,
        dense=losses[DENSE][0],
        entries=sorted(entries, key=lambda entry: (entry.drop, entry.perplexity)),
        calibration_text=calibrate.describe(),
        text=unseen.describe(),
        context={**loaded.context(), "walk": way, "seed": seed},
    )


def _criteria(asked: str | Sequence[str]) -> list[str]:
    """Names of criteria without the control. `all` leaves out what is not installed."""
    every = [name for name in plugins.names("criteria") if name != CONTROL]
    if asked != "all":
        given = [asked] if isinstance(asked, str) else list(asked)
        return [name for name in given if name != CONTROL]
    there = []
    for name in every:
        try:
            make_criterion(name, {})
        except InputError:
            continue
        there.append(name)
    return there


def _goes(scores: Scores, chooser: str, unit: Kind) -> bool:
    """Whether a chooser makes sense of scores: blocks need scores of their own."""
    if unit != "layer":
        return chooser == "lowest" and bool(scores.halves)
    return chooser == "lowest" or len(scores.blocks) > 1


def _scores(
    loaded: Loaded,
    judges: Mapping[str, Criterion],
    text: Text,
    batch: int | None,
    seed: int,
    watch: Watch,
) -> tuple[dict[str, Scores], dict[str, float]]:
    """Scores by each criterion, and how long what it needed took."""
    scores: dict[str, Scores] = {}
    seconds: dict[str, float] = {}
    for needs in ("weights", "states", "trials", "gradients"):
        together = {name: judge for name, judge in judges.items() if judge.needs == needs}
        if not together:
            continue
        begin = time.perf_counter()
        made = run(loaded, together, text, batch, seed, watch)
        taken = time.perf_counter() - begin
        scores |= {each.criterion: each for each in made}
        seconds |= dict.fromkeys(together, taken)
    return scores, seconds


def _control(
    loaded: Loaded, drop: Sequence[int], unit: Kind, protect: Sequence[int], seed: int
) -> dict[int, list[Variant]]:
    """Random choices, from as many seeds."""
    free = sorted(count_of(loaded, 0, unit).savings)
    kept = {layer % loaded.family.depth for layer in protect}
    free = [one for one in free if one[0] not in kept]
    return {
        amount: [frozenset(Random(seed + draw).sample(free, amount)) for draw in range(DRAWS)]
        for amount in drop
    }


def _measure(
    loaded: Loaded, variants: Sequence[Variant], text: Text, batch: int | None, watch: Watch
) -> tuple[dict[Variant, tuple[float, float]], str]:
    """Perplexity and divergence of every variant, and of the whole model, from one walk."""
    size = batch_size(batch, text.length)
    dense = Logits()
    means = {variant: (Loss(), Divergence(dense)) for variant in [DENSE, *variants]}
    watching: dict[Variant, list[Observer]] = {
        variant: list(pair) if variant else [pair[0], dense] for variant, pair in means.items()
    }
    steps = loaded.family.depth * -(-len(text.tokens) // size)
    with watch(f"measuring {len(means)} variants{loaded.where}", steps) as observer:
        watching[DENSE].append(observer)
        way = loaded.walk_variants(text.batches(size), watching)
    return {
        variant: (exp(min(loss.mean, LARGEST)), apart.mean if variant else 0.0)
        for variant, (loss, apart) in means.items()
    }, way
