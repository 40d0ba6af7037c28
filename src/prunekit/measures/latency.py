"""Decode speed: tokens per second of greedy generation with a cache, models taken in turn."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prunekit.errors import InputError
from prunekit.model.load import Loaded
from prunekit.model.mute import Halves
from prunekit.model.units import Unit

REPEATS = 15  # of each timed forward


@dataclass(frozen=True)
class Decode:
    """Median tokens per second over `repeats` turns, and the slowest and fastest turn."""

    tokens_per_second: float
    slowest: float
    fastest: float
    prompt: int
    new_tokens: int
    repeats: int


def decode_speed(
    models: Sequence[Loaded], *, prompt: int = 32, new_tokens: int = 64, repeats: int = 5
) -> list[Decode]:
    """Time every model in turn (A B A B ...), after one warm-up each, at batch 1.

    The time includes running the prompt, as a user waits for it too.
    """
    speeds: list[list[float]] = [[] for _ in models]
    for turn in range(repeats + 1):
        for number, loaded in enumerate(models):
            seconds = _generate(loaded, prompt, new_tokens)
            if turn:  # turn 0 warms up
                speeds[number].append(new_tokens / seconds)
    return [
        Decode(statistics.median(s), min(s), max(s), prompt, new_tokens, repeats) for s in speeds
    ]


def _generate(loaded: Loaded, prompt: int, new_tokens: int) -> float:
    model = loaded.model
    tokens = torch.full((1, prompt), 5, device=model.device)
    start = time.perf_counter()
    model.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=new_tokens,
        min_new_tokens=new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    return _now(model.device) - start


def layer_times(loaded: Loaded, timed: Sequence[Unit]) -> tuple[dict[Unit, float], float]:
    """Seconds that each unit takes of a forward of one token, and the whole forward, the fastest of
    several: where other programs want the same cores, a whole forward is interrupted, and the
    layers' share of its median is too small.

    Raises InputError for a model that is not in memory.
    """
    if loaded.layers is not None:
        raise InputError("speed is measured on a model in memory; give another target")
    model, halves = loaded.model, Halves(loaded.family)
    tokens = torch.full((1, 1), 5, device=model.device)
    taken: dict[Unit, list[float]] = {unit: [] for unit in timed}
    hooks = []
    for unit in timed:
        layer = loaded.family.layers(model)[unit[0]]
        if unit[1] == "layer":
            modules = [layer]
        else:
            names = {name.partition(".")[0] for name in halves.writers(*unit)}
            modules = [layer.get_submodule(name) for name in sorted(names)]
        for module in modules:
            hooks += _timed(module, taken[unit], new=module is modules[0], on=model.device)
    whole: list[float] = []
    try:
        with torch.no_grad():
            for turn in range(REPEATS + 3):
                if turn == 3:  # the first warm up
                    for values in taken.values():
                        values.clear()
                    whole.clear()
                begin = _now(model.device)
                model(input_ids=tokens, use_cache=False)
                whole.append(_now(model.device) - begin)
    finally:
        for hook in hooks:
            hook.remove()
    return {unit: min(times) for unit, times in taken.items()}, min(whole)


def _timed(module: nn.Module, into: list[float], *, new: bool, on: torch.device) -> list[Any]:
    begun: list[float] = []

    def begin(*_: object) -> None:
        begun.append(_now(on))

    def end(*_: object) -> None:
        seconds = _now(on) - begun.pop()
        if new:
            into.append(seconds)
        else:
            into[-1] += seconds

    return [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
