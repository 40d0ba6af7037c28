"""Demo: the whole flow on the small trained model that ships with the package; no network."""

from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

from prunekit import plugins
from prunekit.measures.latency import decode_speed
from prunekit.plan.choose import choose
from prunekit.surgery.write import refuse_existing
from prunekit.verbs.cut import cut
from prunekit.verbs.evaluate import TEST, Results, facts, measure_perplexity
from prunekit.verbs.score import CALIBRATE, open_model, pack_for, pack_to_calibrate, run
from prunekit.verbs.watch import Watch, unwatched

# Each criterion with the chooser of the paper that it comes from.
METHODS = {"angular": "block", "cosine": "lowest", "random": "lowest"}
DROPS = (2, 4, 6)
KEPT = ("angular", 4)  # the checkpoint that the user is left with
SAMPLES = 64


@dataclass(frozen=True)
class Row:
    """One checkpoint of the demo: by which criterion, which layers went, and what was measured."""

    criterion: str
    dropped: tuple[int, ...]
    results: Results


def demo(out: str | Path, *, device: str = "cpu", watch: Watch = unwatched) -> list[Row]:
    """Score, plan, cut and measure with 0, 2, 4 and 6 layers off by each of three criteria.

    Every row is a checkpoint that was written, opened by plain transformers and measured; the one
    with four layers off by `angular` is left at `out`. Decode speeds are taken side by side, for
    the dense model and the three cuts by `angular` (they depend on how many layers go, not which).
    """
    refuse_existing(Path(out))
    dense = open_model("demo", device=device)
    calibrate = pack_to_calibrate(dense, CALIBRATE, samples=SAMPLES, length=None, seed=0)
    test = pack_for(dense, TEST, samples=SAMPLES, length=None)
    judges = {name: plugins.make("criteria", name) for name in METHODS}
    loss = measure_perplexity(dense, test, None, watch)
    rows = [Row("dense", (), Results(**facts(dense), perplexity=loss))]
    timed = [dense]
    with TemporaryDirectory() as scratch:
        for scores in run(dense, judges, calibrate, None, 0, watch):
            name = scores.criterion
            for count in DROPS:
                plan = choose(scores, drop=count, chooser=METHODS[name])
                folder = Path(out) if (name, count) == KEPT else Path(scratch, f"{name}-{count}")
                made = open_model(cut(dense.checkpoint, plan, folder).folder, device=device)
                loss = measure_perplexity(made, test, None, watch)
                rows.append(Row(name, plan.dropped, Results(**facts(made), perplexity=loss)))
                if name == KEPT[0]:
                    timed.append(made)
        speeds = dict(
            zip([model.family.depth for model in timed], decode_speed(timed), strict=True)
        )
    return [
        replace(row, results=replace(row.results, latency=speeds[row.results.layers]))
        for row in rows
    ]
