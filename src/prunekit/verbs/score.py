"""Score: what one walk over a text says about every block of layers, by any number of criteria."""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Unpack

from prunekit import plugins
from prunekit.criteria._criterion import Criterion, OfTrials
from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.load import How, Loaded, load
from prunekit.model.mute import Halves
from prunekit.model.ranks import add_up, ranks, share
from prunekit.model.units import DENSE, HALVES, Unit, Variant
from prunekit.model.walk import Observer
from prunekit.plan.scores import Scores
from prunekit.surgery.apply import base_of
from prunekit.text.packing import Text, load_text
from prunekit.verbs.watch import Watch, unwatched

LENGTH = 2048  # tokens per sample if the model takes as many; never the config's maximum as it is
SAMPLES = 128
CALIBRATE = "stdlib/calibrate"


def score(
    model: str | Path | Loaded,
    *,
    criterion: str | Sequence[str] = "angular",
    options: Mapping[str, Any] | None = None,
    text: str = CALIBRATE,
    samples: int | None = None,
    length: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    watch: Watch = unwatched,
    **how: Unpack[How],
) -> list[Scores]:
    """Scores of every block length by each criterion, in the order asked for, from one walk.

    `options` are the criterion's own (with several criteria, each takes those it has); `samples` is
    128, or as many as the text has, unless given; `seed` draws them. Raises InputError for anything
    a user can mend.
    """
    wanted = [criterion] if isinstance(criterion, str) else list(criterion)
    shared = len(wanted) > 1
    judges = {name: make_criterion(name, dict(options or {}), shared=shared) for name in wanted}
    loaded = open_model(model, **how)
    packed = pack_to_calibrate(loaded, text, samples=samples, length=length, seed=seed)
    return run(loaded, judges, packed, batch, seed, watch)


def run(
    loaded: Loaded,
    judges: Mapping[str, Criterion],
    text: Text,
    batch: int | None,
    seed: int,
    watch: Watch,
) -> list[Scores]:
    """Show every criterion what it needs, in as few walks as there are kinds of need, and take down
    what each says."""
    depth = loaded.family.depth
    size = batch_size(batch, text.length)
    needs: dict[str, list[Criterion]] = {}
    for judge in judges.values():
        judge.begin(depth, seed)
        needs.setdefault(judge.needs, []).append(judge)
    weights, gradients = needs.get("weights", []), needs.get("gradients", [])
    if loaded.quantize and (weights or gradients):
        raise InputError("quantised weights can't be scored themselves; leave --quantize away")
    if weights:
        for index, layer in enumerate(loaded.each_layer()):
            for judge in weights:
                judge.see_weights(index, layer)
    variants = _variants(loaded, needs)
    _check_shared(judges)
    context = {**loaded.context(), "batch": size, "seed": seed, "prunekit": version("prunekit")}
    steps = depth * -(-len(text.tokens) // size) // ranks()
    if any(variants.values()):
        with watch(f"scoring{loaded.where}", steps) as observer:
            variants[DENSE].append(observer)
            context["walk"] = loaded.walk_variants(share(text.batches(size)), variants)
    if gradients:
        context["walk"] = loaded.walk_back(share(text.batches(size)), *gradients)
    add_up(total for judge in judges.values() if _reads(judge) for total in judge.sums())
    base = base_of(loaded.checkpoint, loaded.family)
    return [
        Scores(
            criterion=name,
            options={key: getattr(judge, key) for key in plugins.options(type(judge))},
            base=base,
            blocks=judge.blocks(),
            halves=judge.scores_of_halves(),
            text=text.describe() if _reads(judge) else None,
            context=context,
        )
        for name, judge in judges.items()
    ]


def _variants(
    loaded: Loaded, needs: Mapping[str, Sequence[Criterion]]
) -> dict[Variant, list[Observer]]:
    """Who watches which variant of the model: the whole one first."""
    variants: dict[Variant, list[Observer]] = {DENSE: list(needs.get("states", []))}
    for judge in needs.get("trials", []):
        assert isinstance(judge, OfTrials)
        variants[DENSE].append(judge.dense)
        for unit in units(loaded, halves=judge.halves):
            variants.setdefault(frozenset([unit]), []).append(judge.watch_without(unit))
    return variants


def units(loaded: Loaded, *, halves: bool) -> list[Unit]:
    """All layers, and if asked for every half that can go."""
    has = Halves(loaded.family).has
    layers = range(loaded.family.depth)
    whole: list[Unit] = [(layer, "layer") for layer in layers]
    return whole + [
        (layer, half) for layer in layers for half in HALVES if halves and has(layer, half)
    ]


def _reads(judge: Criterion) -> bool:
    """Whether what a criterion says depends on the text."""
    return judge.needs not in ("nothing", "weights")


def _check_shared(judges: Mapping[str, Criterion]) -> None:
    """Raises InputError if a criterion must see all batches itself, and would not."""
    for name, judge in judges.items():
        if ranks() > 1 and _reads(judge) and not judge.sums():
            raise InputError(
                f"criterion {name!r} must see all samples, so it runs in one process, not {ranks()}"
            )


def open_model(model: str | Path | Loaded, **how: Unpack[How]) -> Loaded:
    """A model ready to run, opened unless it already is."""
    return model if isinstance(model, Loaded) else load(Checkpoint.open(model), **how)


def pack_to_calibrate(
    loaded: Loaded, source: str, *, samples: int | None, length: int | None, seed: int
) -> Text:
    """Samples drawn from a source by `seed`; SAMPLES of them, or as many as there are, if None."""
    return pack_for(
        loaded, source, samples=SAMPLES if samples is None else samples, length=length, seed=seed,
        at_most=samples is None,
    )  # fmt: skip


def pack_for(
    loaded: Loaded,
    source: str,
    *,
    samples: int | None,
    length: int | None,
    seed: int | None = None,
    at_most: bool = False,
) -> Text:
    """A source as samples that the model takes.

    Raises InputError if `length` is more than the model's positions.
    """
    return load_text(
        source, loaded.checkpoint.tokenizer, length=sample_length(loaded.checkpoint, length),
        samples=samples, seed=seed, at_most=at_most,
    )  # fmt: skip


def sample_length(checkpoint: Checkpoint, length: int | None, usual: int = LENGTH) -> int:
    """Tokens per sample: as asked for, else the usual, or as many as the model takes.

    Raises InputError if `length` is more than the model's positions.
    """
    most = getattr(checkpoint.config.get_text_config(), "max_position_embeddings", None)
    if length is None:
        return min(usual, most) if isinstance(most, int) and most > 0 else usual
    if isinstance(most, int) and length > most > 0:
        raise InputError(f"length {length}: {checkpoint.name} takes at most {most} tokens")
    return length


def batch_size(batch: int | None, length: int) -> int:
    """Samples run at once: as asked for, else about 2048 tokens."""
    if batch is not None and batch < 1:
        raise InputError(f"batch {batch}: at least one sample must be run at once")
    return batch or max(1, LENGTH // length)


def make_criterion(name: str, options: dict[str, Any], *, shared: bool = False) -> Criterion:
    """A criterion with its options; with `shared` options, those of them that it has."""
    if shared:
        known = plugins.options(plugins.find("criteria", name))
        options = {key: value for key, value in options.items() if key in known}
    judge = plugins.make("criteria", name, options)
    if not isinstance(judge, Criterion):
        raise InputError(f"{name}: a criterion's class must derive from Criterion")
    return judge
