"""Losses, by their formulas written again, and logits that exist a chunk of tokens at a time."""

import pytest
import torch
from tiny import tiny_model
from torch import Tensor

from prunekit.errors import InputError
from prunekit.healing import losses
from prunekit.healing.head import Head
from prunekit.healing.losses import TopK, parse_losses
from prunekit.healing.student import Student, View
from prunekit.model.family import Family

KINDS = ("llama", "gemma2", "gpt2", "opt", "granite", "cohere", "qwen3_moe", "phi", "mamba")
TOKENS = torch.randint(3, 100, (3, 12), generator=torch.Generator().manual_seed(5))


def some(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_is_the_teacher_s(temperature: float) -> None:
    student, teacher = some(7, 11), some(7, 11, seed=1)
    p, q = (logits.div(temperature).softmax(-1) for logits in (teacher, student))
    expected = temperature**2 * (p * (p / q).log()).sum()
    found = losses.divergence(student, teacher, temperature)
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_of_the_largest_logits_all_others_are_one() -> None:
    student, teacher = some(5, 9), some(5, 9, seed=1)
    best = teacher.log_softmax(-1).topk(3)
    p, q = teacher.softmax(-1), student.softmax(-1)
    expected = torch.tensor(0.0, dtype=torch.float64)
    for row in range(5):
        kept = best.indices[row]
        for one, other in zip(p[row, kept], q[row, kept], strict=True):
            expected += one * (one / other).log()
        rest = [1 - held[row, kept].sum() for held in (p, q)]
        expected += rest[0] * (rest[0] / rest[1]).log()
    found = losses.divergence(student, TopK(best.values, best.indices), 1.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


def test_distances() -> None:
    own, its = some(2, 3, 4), some(2, 3, 4, seed=1)
    assert losses.distance(own, its).item() == pytest.approx(
        ((own - its).norm() / its.norm()).square().item(), rel=1e-6
    )
    assert losses.mse(own, its).item() == pytest.approx(
        (own - its).square().mean().item(), rel=1e-6
    )
    cosines = (own * its).sum(-1) / own.norm(dim=-1) / its.norm(dim=-1)
    assert losses.cosine(own, its).item() == pytest.approx((1 - cosines.mean()).item(), rel=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_chunks_give_the_whole_model_s_loss_and_gradients(kind: str) -> None:
    """Whatever stands behind the output embedding: soft caps, scales, biases."""
    model = tiny_model(kind, 3).eval()
    if hasattr(model.config, "router_aux_loss_coef"):
        model.config.router_aux_loss_coef = 0.0
    expected = model(TOKENS, use_cache=False).logits[:, :-1].flatten(0, 1)
    right = torch.nn.functional.cross_entropy(expected, TOKENS[:, 1:].flatten())
    right.backward()
    gradients = {name: weight.grad.clone() for name, weight in model.named_parameters()
                 if weight.grad is not None}  # fmt: skip
    model.zero_grad()
    family = Family.of(model.config)
    student = Student(model, family.layers(model), {"language": 1.0})
    assert student.chunked
    student.head.chunk = 5
    (found,) = student(TOKENS, View())
    found.backward()
    assert found.item() == pytest.approx(right.item(), rel=1e-6)
    for name, weight in model.named_parameters():
        if name in gradients:
            torch.testing.assert_close(weight.grad, gradients[name], rtol=1e-4, atol=1e-7)


def test_the_decoder_is_put_back() -> None:
    model = tiny_model("llama", 2).eval()
    decoder = model.model
    head = Head(model)
    assert head.can_chunk
    assert model.model is decoder


def test_weights_of_zero_leave_a_loss_away() -> None:
    assert parse_losses({"language": 1, "logits": 0}) == {"language": 1.0}
    for wrong in ({"language": -1}, {"logits": float("nan")}, {}, {"language": 0}):
        with pytest.raises(InputError):
            parse_losses(wrong)
