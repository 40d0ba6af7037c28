"""The schedule ends at its floor; samples come once a pass; masks hold."""

import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from prunekit.errors import InputError
from prunekit.healing.trainer import Schedule, _Loop
from prunekit.healing.zeros import Zeros


def schedule(**more: float) -> Schedule:
    return Schedule(**{"steps": 1000, "batch": 4, "micro": 2, "rate": 2e-4, **more})


def test_the_rate_reaches_its_floor_and_stays_there() -> None:
    """LLM-Streamline's ended at 97.5 % of the peak, or rose again to all of it."""
    plan = schedule(warmup=0.005, floor=0.25)
    factors = [plan.factor(step) for step in range(plan.steps)]
    assert factors[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert factors[-1] == pytest.approx(0.25)
    assert all(after <= before for before, after in pairwise(factors[5:]))
    half = 5 + (999 - 5) // 2
    assert factors[half] == pytest.approx(0.25 + 0.75 * 0.5, abs=1e-2)
    assert plan.factor(5000) == pytest.approx(0.25)  # clamped
    assert factors[300] == pytest.approx(
        0.25 + 0.75 * (1 + math.cos(math.pi * (300 - 5) / (999 - 5))) / 2
    )


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_short_schedules(steps: int) -> None:
    plan = schedule(steps=steps)
    assert all(0 < plan.factor(step) <= 1 for step in range(steps))
    assert plan.evaluated_at() >= {0, steps}


@pytest.mark.parametrize(
    "wrong", [{"warmup": 2}, {"floor": -1}, {"rate": 0}, {"clip": float("nan")},
              {"weight_decay": -1}, {"evaluations": 0}, {"patience": 0}, {"rate": float("inf")}]
)  # fmt: skip
def test_numbers_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=next(iter(wrong))):
        schedule(**wrong)


class OneProcess:
    rank, ranks, device = 0, 1, torch.device("cpu")


class NoTask:
    weights = (1.0,)
    names = ("language",)


def test_every_sample_comes_once_a_pass() -> None:
    samples = torch.zeros(22, 8, dtype=torch.long)
    loop = _Loop(OneProcess(), NoTask(), nn.Identity(), samples, samples[:2], schedule())
    rows = [loop._rows(step).tolist() for step in range(15)]
    for one_pass in (rows[:5], rows[5:10], rows[10:]):
        seen = [row for few in one_pass for row in few]
        assert len(set(seen)) == len(seen) == 20
    assert rows[:5] != rows[5:10]
    assert rows[3] == loop._rows(3).tolist()


def test_masked_weights_never_move() -> None:
    """Not by momentum, nor by weight decay, nor where clipping scales what is left."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.randn(6, 6))
    weight.data[::2] = 0
    zeros = Zeros([weight])
    optimiser = torch.optim.AdamW([weight], lr=0.1, weight_decay=0.5)
    for _ in range(5):
        (weight @ torch.randn(6, 3)).square().sum().backward()
        zeros.mask_gradients()
        assert not weight.grad[::2].any()
        optimiser.step()
        optimiser.zero_grad()
    assert not weight[::2].any()
    assert weight[1::2].all()
