"""Angular and cosine against their formulas written again, and the traps of published code."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hooks import hooked_states
from torch import Tensor

from prunekit.criteria.angular import Angular
from prunekit.criteria.cosine import Cosine
from prunekit.criteria.random import RandomControl
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.load import Loaded, load
from prunekit.plan.choose import choose
from prunekit.text.packing import load_text
from prunekit.verbs.score import score

LENGTH, SAMPLES = 32, 7


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path) -> Loaded:
    return load(Checkpoint.open(tiny_llama))


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    generator = torch.Generator().manual_seed(1)
    file.write_text(" ".join(f"w{n}" for n in torch.randint(0, 40, (900,), generator=generator)))
    return str(file)


@pytest.fixture(scope="module")
def states(loaded: Loaded, calibration: str) -> Tensor:
    text = load_text(
        calibration, loaded.checkpoint.tokenizer, length=LENGTH, samples=SAMPLES, seed=0
    )
    return hooked_states(loaded, text.tokens)


def scores_of(loaded: Loaded, calibration: str, criterion: str, **options: str) -> dict:
    (scores,) = score(
        loaded, criterion=criterion, options=options, text=calibration, samples=SAMPLES,
        length=LENGTH, batch=3,
    )  # fmt: skip
    return scores


@pytest.mark.parametrize("tokens", ["last", "all"])
def test_angular_is_the_formula_for_every_block(
    loaded: Loaded, calibration: str, states: Tensor, tokens: str
) -> None:
    scores = scores_of(loaded, calibration, "angular", tokens=tokens)
    picked = states[:, :, -1] if tokens == "last" else states.flatten(1, 2)
    for length in range(1, 9):
        for start in range(9 - length):
            cos = torch.cosine_similarity(
                picked[start].double(), picked[start + length].double(), dim=-1
            )
            expected = (cos.clamp(-1, 1).arccos() / math.pi).mean().item()
            assert scores.blocks[length][start] == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("tokens", ["last", "all"])
def test_cosine_is_block_influence(
    loaded: Loaded, calibration: str, states: Tensor, tokens: str
) -> None:
    scores = scores_of(loaded, calibration, "cosine", tokens=tokens)
    picked = states[:, :, -1] if tokens == "last" else states.flatten(1, 2)
    influence = [
        1 - torch.cosine_similarity(before, after, dim=-1).mean().item()
        for before, after in pairwise(picked)
    ]
    assert scores.layers == pytest.approx(influence, abs=1e-6)
    order = sorted(range(8), key=influence.__getitem__)
    assert choose(scores, drop=3, chooser="lowest").made_by["layers_in_order"] == order[:3]


def test_pruneme_block_for_a_given_length(loaded: Loaded, calibration: str, states: Tensor) -> None:
    """PruneMe: start 0 is no candidate; the first minimum wins."""
    scores = scores_of(loaded, calibration, "angular")
    for length in (2, 3, 5):
        last = states[:, :, -1]
        distances = {
            start: (
                torch.cosine_similarity(last[start], last[start + length], dim=-1)
                .clamp(-1, 1).arccos().mean().item()
            )
            for start in range(1, 9 - length)
        }  # fmt: skip
        start = min(distances, key=distances.__getitem__)
        plan = choose(scores, drop=length, protect=[0])
        assert plan.dropped == tuple(range(start, start + length))


def test_cosine_runs_along_the_hidden_axis() -> None:
    """PruneGPT took the cosine of (batch, token, hidden) states along tokens for `all`."""
    b, t, j = torch.meshgrid(torch.arange(2.0), torch.arange(3.0), torch.arange(4.0), indexing="ij")
    entering = torch.sin(1 + 5 * b + 3 * t + j).double()
    leaving = entering + 0.5 * torch.cos(7 * entering)
    judge = Cosine(tokens="all")
    judge.begin(1, 0)
    judge.see(0, 0, entering, leaving)
    assert judge.blocks()[1][0] == pytest.approx(0.0882513850, abs=1e-6)
    assert judge.blocks()[1][0] != pytest.approx(0.1680179940, abs=1e-2)


def test_fixture_of_similarities() -> None:
    j = torch.arange(8.0).double()
    a = torch.sin(j + 1)
    b = a + 0.1 * torch.cos(3 * j)
    for judge, expected in ((Cosine(), 0.0062693798), (Angular(), 0.0356619079)):
        judge.begin(1, 0)
        judge.see(0, 0, a.view(1, 1, 8), b.view(1, 1, 8))
        assert judge.blocks()[1][0] == pytest.approx(expected, abs=1e-6)


def test_last_block_is_scored_on_raw_states_not_after_the_final_norm(
    loaded: Loaded, calibration: str, states: Tensor
) -> None:
    """Everyone who reads hidden_states[-1] scores the last block on a normed state."""
    scores = scores_of(loaded, calibration, "cosine")
    final = states[-1]
    with torch.no_grad():
        normed = loaded.model.model.norm(final)

    def influence(after):
        return 1 - torch.cosine_similarity(states[-2], after, dim=-1).mean().item()

    raw, after_norm = influence(final), influence(normed)
    assert abs(raw - after_norm) > 1e-3
    assert scores.layers[-1] == pytest.approx(raw, abs=1e-6)


def test_last_token_is_a_real_token(loaded: Loaded, calibration: str) -> None:
    """PruneGPT and others looked at position -1 of padded batches: a pad token."""
    text = load_text(calibration, loaded.checkpoint.tokenizer, length=LENGTH, samples=SAMPLES)
    stream = loaded.checkpoint.tokenizer(Path(calibration).read_text())["input_ids"]
    assert text.tokens.flatten().tolist() == stream[: SAMPLES * LENGTH]
    one, many = (
        score(loaded, text=calibration, samples=SAMPLES, length=LENGTH, batch=batch)[0]
        for batch in (1, SAMPLES)
    )
    for length, row in one.blocks.items():
        assert row == pytest.approx(many.blocks[length], abs=1e-5)


def test_identity_layer_is_the_one_to_remove(loaded: Loaded, calibration: str) -> None:
    """Index maths (short-transformers and LLM-Drop were off by one): a layer that does nothing, and
    a block that undoes itself, get the lowest score of their length."""
    model = loaded.model
    layer = model.model.layers[4]
    saved = [layer.self_attn.o_proj.weight.clone(), layer.mlp.down_proj.weight.clone()]
    with torch.no_grad():
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
    try:
        for name in ("angular", "cosine"):
            scores = scores_of(loaded, calibration, name)
            assert min(range(8), key=scores.layers.__getitem__) == 4
            assert scores.layers[4] == pytest.approx(0, abs=2e-4)
            assert choose(scores, drop=1).dropped == (4,)
            # A block of two that ends or starts with the idle layer is as long as its other layer.
            assert scores.blocks[2][4] == pytest.approx(scores.layers[5], abs=1e-4)
            assert scores.blocks[2][3] == pytest.approx(scores.layers[3], abs=1e-4)
    finally:
        with torch.no_grad():
            layer.self_attn.o_proj.weight.copy_(saved[0])
            layer.mlp.down_proj.weight.copy_(saved[1])


def test_half_precision_states_keep_small_distances_apart() -> None:
    """In bf16 itself no angular distance below 0.028 can be told from zero."""
    generator = torch.Generator().manual_seed(0)
    entering = torch.randn(1, 64, 512, generator=generator)
    means = []
    for noise in (0.01, 0.02):
        leaving = entering + noise * torch.randn(1, 64, 512, generator=generator)
        judge = Angular(tokens="all")
        judge.begin(1, 0)
        judge.see(0, 0, entering.bfloat16(), leaving.bfloat16())
        means.append(judge.blocks()[1][0])
    assert 0.001 < means[0] < means[1] < 0.01


def test_every_token_weighs_the_same() -> None:
    means = Cosine(tokens="all")
    means.begin(1, 0)
    ones = torch.ones(1, 3, 2)
    means.see(0, 0, ones, ones)  # three tokens with cosine 1
    means.see(0, 1, ones[:, :1], torch.tensor([[[1.0, -1.0]]]))  # one with cosine 0
    assert means.blocks()[1][0] == pytest.approx(0.25)


def test_random_depends_on_the_seed_alone(loaded: Loaded) -> None:
    def draw(seed: int) -> dict[int, list[float]]:
        judge = RandomControl()
        judge.begin(8, seed)
        return judge.blocks()

    assert draw(0) == draw(0) != draw(1)
    (scores,) = score(loaded, criterion="random", text="stdlib/calibrate", samples=1, length=16)
    assert scores.text is None


def test_several_criteria_share_one_walk(loaded: Loaded, calibration: str) -> None:
    together = score(
        loaded, criterion=["angular", "cosine"], text=calibration, samples=SAMPLES, length=LENGTH
    )
    for scores in together:
        (alone,) = score(
            loaded, criterion=scores.criterion, text=calibration, samples=SAMPLES, length=LENGTH
        )
        assert scores.blocks == alone.blocks
