"""Search: layers and halves that go together, by trying variants of the model on a text."""

import random
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import torch

from prunekit.criteria._criterion import OfTrials
from prunekit.errors import InputError
from prunekit.measures.latency import layer_times
from prunekit.model.load import How, Loaded
from prunekit.model.memory import parse_size
from prunekit.model.units import DENSE, HALVES, Unit, Variant
from prunekit.model.walk import Observer
from prunekit.plan import search as plans
from prunekit.plan.plan import Plan
from prunekit.plan.scores import Kind, Scores
from prunekit.plan.target import Target, count, faster, share
from prunekit.surgery.apply import base_of
from prunekit.text.packing import Text
from prunekit.verbs.score import (
    CALIBRATE,
    batch_size,
    make_criterion,
    open_model,
    pack_to_calibrate,
    units,
)
from prunekit.verbs.watch import Watch, unwatched


def search(
    model: str | Path | Loaded,
    *,
    drop: int | None = None,
    params: float | None = None,
    bytes: str | float | None = None,
    speed: float | str | None = None,
    kv_cache: float | None = None,
    chooser: str = "evolve",
    options: Mapping[str, Any] | None = None,
    by: str = "divergence",
    unit: Kind = "layer",
    protect: Sequence[int] = (),
    scores: Scores | None = None,
    text: str = CALIBRATE,
    samples: int | None = None,
    length: int | None = None,
    batch: int | None = None,
    seed: int = 0,
    watch: Watch = unwatched,
    **how: Unpack[How],
) -> Plan:
    """A plan that meets one target with as low a loss as the chooser finds on `text`.

    Targets: `drop` so many units of a kind; keep the share `params` of the parameters, `bytes` (a
    share, or a size such as 12GiB) or the share `kv_cache` of the cache; be `speed` times as fast
    on this machine, by the measured times of layers and halves. Muted halves are zeros: only
    `speed` counts them, as `prunekit.load` skips them. `by` is the criterion that judges; `scores`
    give some choosers a start. Raises InputError for anything a user can mend.
    """
    judge = trial_judge(by)
    wanted = {"drop": drop, "params": params, "bytes": bytes, "speed": speed, "kv_cache": kv_cache}
    given = [name for name, value in wanted.items() if value is not None]
    if len(given) != 1:
        raise InputError(
            f"give one target of {', '.join(wanted)}, not {' and '.join(given) or 'none'}"
        )
    if unit != "layer" and given[0] not in ("drop", "speed"):
        raise InputError(
            f"muted halves are zeros and save no {given[0].replace('_', ' ')}: that target takes "
            "whole layers"
        )
    loaded = open_model(model, **how)
    packed = pack_to_calibrate(loaded, text, samples=samples, length=length, seed=seed)
    target = _target(loaded, given[0], wanted[given[0]], unit, packed.length)
    return search_for(
        loaded, target, judge, packed, chooser=chooser, options=options, protect=protect,
        scores=scores, batch=batch, seed=seed, watch=watch,
    )  # fmt: skip


def search_for(
    loaded: Loaded,
    target: Target,
    judge: OfTrials,
    text: Text,
    *,
    chooser: str,
    options: Mapping[str, Any] | None = None,
    protect: Sequence[int] = (),
    scores: Scores | None = None,
    batch: int | None = None,
    seed: int = 0,
    watch: Watch = unwatched,
) -> Plan:
    """A plan that meets a target, on a text that is packed already."""
    draws = random.Random(seed)
    size = batch_size(batch, text.length)

    def losses(variants: Sequence[Variant], tokens: int | None = None) -> list[float]:
        rows = text.tokens
        if tokens is not None:
            many = min(len(rows), max(1, -(-tokens // text.length)))
            rows = rows[sorted(draws.sample(range(len(rows)), many))]
        judge.begin(loaded.family.depth, seed)
        asked = [variant for variant in variants if variant]
        trials = {variant: judge.watch() for variant in asked}
        watching: dict[Variant, list[Observer]] = {DENSE: [judge.dense]}
        watching |= {variant: [trial] for variant, trial in trials.items()}
        steps = loaded.family.depth * -(-len(rows) // size)
        with watch(f"trying {len(asked)} variants{loaded.where}", steps) as observer:
            watching[DENSE].append(observer)
            loaded.walk_variants(rows.split(size), watching)
        return [judge.of(trials[variant]) if variant else 0.0 for variant in variants]

    return plans.search(
        losses, target, base=base_of(loaded.checkpoint, loaded.family), chooser=chooser,
        protect=protect, options=dict(options or {}), scores=scores, text=text.describe(),
    )  # fmt: skip


def trial_judge(name: str) -> OfTrials:
    """The criterion of a name. Raises InputError if it does not judge trials."""
    judge = make_criterion(name, {})
    if not isinstance(judge, OfTrials):
        raise InputError(
            f"criterion {name!r} can't judge trials; 'divergence' and 'perplexity' can"
        )
    return judge


def count_of(loaded: Loaded, drop: int, unit: Kind) -> Target:
    """So many units of a kind."""
    return count(_of_kind(loaded, unit), drop)


def _of_kind(loaded: Loaded, unit: Kind) -> list[Unit]:
    parts = HALVES if unit == "half" else (unit,)
    return [one for one in units(loaded, halves=unit != "layer") if one[1] in parts]


def _target(loaded: Loaded, name: str, value: Any, unit: Kind, length: int) -> Target:
    checkpoint = loaded.checkpoint
    whole = units(loaded, halves=False)
    if name == "drop":
        return count_of(loaded, value, unit)
    if name == "speed":
        times = float(re.sub(r"x$", "", str(value))) if _is_number(str(value)) else -1.0
        if times < 1:
            raise InputError(f"speed {value!r}: times the dense speed, such as 1.3x")
        savings, seconds = layer_times(loaded, units(loaded, halves=True))
        return faster({key: savings[key] for key in _kinds(savings, unit)}, times, seconds)
    sizes = layer_parameters(loaded)
    if name == "kv_cache":
        cache = layer_caches(loaded, length)
        kept = _share(name, value)
        return share(dict(zip(whole, cache, strict=True)), 1 - kept, sum(cache), "KV cache")
    if name == "bytes":
        each = checkpoint.bytes / checkpoint.parameters
        kept = _share(name, value, checkpoint.bytes)
        savings = {key: each * size for key, size in zip(whole, sizes, strict=True)}
        return share(savings, 1 - kept, checkpoint.bytes, "bytes")
    savings = dict(zip(whole, map(float, sizes), strict=True))
    return share(savings, 1 - _share(name, value), checkpoint.parameters, "parameters")


def _kinds(savings: Mapping[Unit, float], unit: Kind) -> list[Unit]:
    """Speed is over layers and halves together, unless one kind of half is asked for."""
    wanted = ("layer", *HALVES) if unit == "layer" else HALVES if unit == "half" else (unit,)
    return [key for key in savings if key[1] in wanted]


def _share(name: str, value: Any, whole: int | None = None) -> float:
    """The share to keep, from a number or, of a whole, a size. Raises InputError."""
    kept = float(value) if _is_number(str(value)) else None
    if kept is None and whole:
        kept = parse_size(str(value)) / whole
    if kept is None or not 0 < kept <= 1:
        what = " or a size such as 12GiB" if whole else ""
        raise InputError(f"{name} {value!r}: the share to keep, such as 0.75{what}")
    return kept


def _is_number(value: str) -> bool:
    return re.fullmatch(r"\d*\.?\d+x?", value) is not None


def layer_parameters(loaded: Loaded) -> list[int]:
    """How many parameters each layer has."""
    layers = loaded.family.layers(loaded.family.skeleton)
    return [sum(weight.numel() for weight in layer.parameters()) for layer in layers]


def layer_caches(loaded: Loaded, length: int) -> list[float]:
    """Numbers that each layer keeps in the cache of a sequence of `length` tokens.

    Raises InputError for model types whose cache can't be told.
    """
    tokens = torch.zeros(1, 2, dtype=torch.long, device="meta")
    try:
        with torch.no_grad():
            skeleton: Any = loaded.family.skeleton
            cache = skeleton(tokens, use_cache=True).past_key_values
        sizes = []
        for layer in cache.layers:
            window = getattr(layer, "sliding_window", None) or length
            held = [layer.keys, layer.values]
            sizes.append(sum(t.numel() / t.shape[-2] for t in held) * min(length, window))
    except Exception as error:
        raise InputError(
            f"can't tell the cache of model type {loaded.checkpoint.model_type!r}; give another "
            "target"
        ) from error
    if len(sizes) != loaded.family.depth:
        raise InputError(
            f"model type {loaded.checkpoint.model_type!r} has {len(sizes)} caches for "
            f"{loaded.family.depth} layers; give another target"
        )
    return sizes
