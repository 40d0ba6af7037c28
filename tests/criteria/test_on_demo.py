"""The published choices on the demo model, each against its formula in a few lines of torch."""

import math

import pytest
import torch
from hooks import hooked_states
from torch import Tensor

from prunekit.model.checkpoint import Checkpoint
from prunekit.model.load import Loaded, load
from prunekit.plan.choose import choose
from prunekit.plan.scores import Scores
from prunekit.text.packing import load_text
from prunekit.verbs.score import score

SOURCE, SAMPLES, LENGTH = "stdlib/calibrate", 8, 256


@pytest.fixture(scope="module")
def demo() -> Loaded:
    return load(Checkpoint.open("demo"), dtype="float32")


@pytest.fixture(scope="module")
def states(demo: Loaded) -> Tensor:
    text = load_text(SOURCE, demo.checkpoint.tokenizer, length=LENGTH, samples=SAMPLES, seed=0)
    return hooked_states(demo, text.tokens)


def scored(demo: Loaded, criterion: str, tokens: str) -> Scores:
    (scores,) = score(
        demo, criterion=criterion, options={"tokens": tokens}, text=SOURCE, samples=SAMPLES,
        length=LENGTH,
    )  # fmt: skip
    return scores


@pytest.mark.parametrize("length", [1, 4, 8])
def test_block_of_pruneme(demo: Loaded, states: Tensor, length: int) -> None:
    last = states[:, :, -1]
    cosine = torch.cosine_similarity(last[1:-length], last[1 + length :], dim=-1).clamp(-1, 1)
    start = 1 + int((cosine.arccos() / math.pi).mean(-1).argmin())
    plan = choose(scored(demo, "angular", "last"), drop=length, protect=[0])
    assert plan.dropped == tuple(range(start, start + length))


def test_order_of_shortgpt(demo: Loaded, states: Tensor) -> None:
    influence = 1 - torch.cosine_similarity(states[:-1], states[1:], dim=-1).mean((1, 2))
    scores = scored(demo, "cosine", "all")
    assert scores.layers == pytest.approx(influence.tolist(), abs=1e-6)
    order = choose(scores, drop=15, chooser="lowest").made_by["layers_in_order"]
    assert order == influence.argsort().tolist()[:15]


@pytest.mark.parametrize("tokens", ["last", "all"])
@pytest.mark.parametrize("criterion", ["angular", "cosine"])
def test_order_of_prunegpt(demo: Loaded, states: Tensor, criterion: str, tokens: str) -> None:
    """Its four settings, with protected layers kept for good (skip_blocks was only a tie)."""
    picked = states[:, :, -1] if tokens == "last" else states.flatten(1, 2)
    cosine = torch.cosine_similarity(picked[:-1], picked[1:], dim=-1).clamp(-1, 1)
    distance = (cosine.arccos() / math.pi if criterion == "angular" else 1 - cosine).mean(-1)
    expected = [layer for layer in distance.argsort().tolist() if layer not in (0, 15)]
    scores = scored(demo, criterion, tokens)
    plan = choose(scores, drop=14, chooser="lowest", protect=[0, -1])
    assert plan.made_by["layers_in_order"] == expected
