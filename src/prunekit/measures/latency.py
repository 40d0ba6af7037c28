"""Decode speed: tokens per second of greedy generation with a cache, models taken in turn."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from prunekit.model.load import Loaded


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
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - start
