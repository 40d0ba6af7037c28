"""Evaluate: measures of one or more checkpoints on the same text, in the order given."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from prunekit.errors import InputError
from prunekit.measures.latency import Decode, decode_speed
from prunekit.measures.perplexity import Perplexity, perplexity
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.lineage import texts_seen
from prunekit.model.load import How, Loaded
from prunekit.plugins import names, nearest
from prunekit.text.packing import Text
from prunekit.verbs.score import batch_size, open_model, pack_for
from prunekit.verbs.watch import Watch, unwatched

TEST = "stdlib/test"


@dataclass(frozen=True)
class Results:
    """What was measured of one model; a measure that was not asked for is None."""

    model: str
    digest: str
    layers: int
    parameters: int
    bytes: int
    perplexity: Perplexity | None = None
    latency: Decode | None = None


def evaluate(
    models: Sequence[str | Path | Loaded],
    *,
    measure: Sequence[str] = ("perplexity",),
    text: str = TEST,
    samples: int | None = None,
    length: int | None = None,
    batch: int | None = None,
    watch: Watch = unwatched,
    **how: Unpack[How],
) -> list[Results]:
    """Measure every model; `samples` counts from the text's start, all if None.

    Raises InputError if a model was calibrated on this text, or for anything else a user can mend.
    """
    for name in measure:
        if name not in (possible := list(names("measures"))):
            raise InputError(f"no measure called {name!r}{nearest(name, possible)}")
    opened = [open_model(model, **how) for model in models]
    measured = []
    for loaded in opened:
        lost = None
        if "perplexity" in measure:
            packed = pack_for(loaded, text, samples=samples, length=length)
            lost = measure_perplexity(loaded, packed, batch, watch)
        measured.append(lost)
    speeds: Sequence[Decode | None] = [None] * len(opened)
    if "latency" in measure:
        for loaded in opened:
            if loaded.layers is not None:
                raise InputError(
                    f"{loaded.checkpoint.name}: latency needs the whole model in memory, and it is "
                    "walked from disk; measure perplexity alone, or take --walk memory"
                )
        speeds = decode_speed(opened)
    return [
        Results(**facts(loaded), perplexity=lost, latency=speed)
        for loaded, lost, speed in zip(opened, measured, speeds, strict=True)
    ]


def measure_perplexity(loaded: Loaded, text: Text, batch: int | None, watch: Watch) -> Perplexity:
    """Perplexity on a text that the model was neither cut by nor healed with.

    Raises InputError if it was.
    """
    refuse_seen(loaded.checkpoint, text)
    size = batch_size(batch, text.length)
    steps = loaded.family.depth * -(-len(text.tokens) // size)
    with watch(f"perplexity of {loaded.checkpoint.name}{loaded.where}", steps) as observer:
        return perplexity(loaded, text, batch=size, observers=[observer])


def refuse_seen(checkpoint: Checkpoint, text: Text) -> None:
    """Raises InputError if a model was calibrated on or healed with this text."""
    if text.digest in texts_seen(checkpoint):
        raise InputError(
            f"{checkpoint.name} was calibrated on {text.source!r}, or healed with it; "
            "measure on a text that it has not seen"
        )


def facts(loaded: Loaded) -> dict[str, Any]:
    """What Results says of a model whatever is measured."""
    checkpoint = loaded.checkpoint
    return {
        "model": checkpoint.name,
        "digest": checkpoint.digest,
        "layers": loaded.family.depth,
        "parameters": checkpoint.parameters,
        "bytes": checkpoint.bytes,
    }
