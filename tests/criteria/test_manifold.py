"""MKA's arithmetic against numbers of its own code, and what is done instead."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from prunekit.criteria.manifold import (
    Manifold,
    diffusion_map,
    entropy,
    information,
    kept,
    normal_scores,
    ranked_entropy,
    ranks,
)
from prunekit.errors import InputError

ROW, COLUMN = np.arange(60)[:, None], np.arange(5)[None, :]
POINTS = {
    "P": np.sin(0.9 * ROW + 1.1 * COLUMN) + 0.05 * ROW,
    "Q": np.sin(0.9 * ROW + 1.1 * COLUMN + 0.4) + 0.04 * ROW,
    "R": np.cos(2.1 * ROW * (COLUMN + 1)),
}
# The published code's kernel over these 60 points (rows 0, 1 and 59; signs are arbitrary).
LAYOUTS = {
    "P": [(1.384850, 0.739322), (1.477169, 1.145185), (1.349707, 0.343574)],
    "Q": [(1.392921, 0.961848), (1.594330, 0.974671), (1.302562, 0.751383)],
    "R": [(1.618337, 0.096986), (0.808169, 0.033659), (0.559847, 1.275510)],
}


def layouts() -> dict[str, np.ndarray]:
    return {name: np.abs(diffusion_map(points)) for name, points in POINTS.items()}


def test_the_diffusion_map_is_the_published_one() -> None:
    for name, layout in layouts().items():
        assert layout[[0, 1, 59]] == pytest.approx(np.array(LAYOUTS[name]), abs=5e-5)


def test_legacy_entropy_similarity_and_ratio_are_the_published_ones() -> None:
    ranked = {name: ranks(layout) for name, layout in layouts().items()}
    entropies = [ranked_entropy(points) for points in ranked.values()]
    assert entropies == pytest.approx([-0.367881, -0.338811, -0.251564], abs=1e-5)
    draws = np.random.RandomState(1)
    alike = np.zeros((3, 3))
    for i, first in enumerate(ranked.values()):
        for j, second in list(enumerate(ranked.values()))[i:]:
            shared = information(first, second, 5, draws)
            alike[i, j] = alike[j, i] = shared / math.sqrt(entropies[i] * entropies[j])
    expected = [[3.359832, 1.086491, 0.045633], [1.086491, 3.423485, 0.134101],
                [0.045633, 0.134101, 6.867317]]  # fmt: skip
    assert alike == pytest.approx(np.array(expected), abs=2e-3)
    assert kept(alike, 0, 1) == pytest.approx(0.620501, abs=2e-4)
    assert kept(alike, 1, 2) == pytest.approx(0.598022, abs=2e-4)


def test_entropy_of_independent_normal_coordinates() -> None:
    points = np.random.default_rng(0).normal(size=(4000, 2))
    assert entropy(points) == pytest.approx(math.log(2 * math.pi * math.e), abs=0.05)


def test_normal_scores_keep_the_order() -> None:
    column = np.random.default_rng(0).normal(size=(50, 1)) ** 3
    scores = normal_scores(column)
    assert (scores.argsort(0) == column.argsort(0)).all()
    assert scores.std() == pytest.approx(1, abs=0.05)


def seen(criterion: Manifold, states: list[Tensor]) -> Manifold:
    """A walk of layers whose states are given: (sample, token, hidden) at each depth."""
    criterion.begin(len(states) - 1, 0)
    for start in range(0, len(states[0]), 10):
        batch = slice(start, start + 10)
        for layer in range(len(states) - 1):
            criterion.see(layer, start // 10, states[layer][batch], states[layer + 1][batch])
    return criterion


def cloud(seed: int, samples: int = 60) -> Tensor:
    """Samples on a surface of two dimensions, four tokens each."""
    draw = torch.Generator().manual_seed(seed)
    places = torch.randn(samples, 1, 2, generator=draw) * torch.tensor([3.0, 1.0])
    return places @ torch.randn(2, 8, generator=draw) * torch.linspace(0.9, 1.1, 4)[:, None]


def test_a_layer_that_changes_nothing_scores_lowest_whichever_samples_show_it() -> None:
    """MKA's kernel sees the first tokens of the first samples only."""
    first, other = cloud(0), cloud(1)
    scores = seen(Manifold(), [first, first * 1.5 + 0.01 * cloud(2), other, other]).blocks()
    assert set(scores) == {1, 2, 3}
    assert scores[1][0] + 0.2 < scores[1][1]
    assert scores[1][2] + 0.2 < scores[1][1]
    assert scores[2][0] > 0.5
    changed = torch.cat([first[:30], cloud(3)[30:]])
    again = seen(Manifold(), [changed, first, other, other]).blocks()
    assert again[1][0] > scores[1][0] + 0.2


def test_pooling_and_batches() -> None:
    states = [cloud(0), cloud(0) + 0.1 * cloud(1)]
    mean = seen(Manifold(), states).blocks()
    pooled = seen(Manifold(pool="last"), [s.mean(1, keepdim=True) for s in states]).blocks()
    assert mean[1] == pytest.approx(pooled[1])
    assert seen(Manifold(pool="last"), states).blocks() != mean


def test_legacy_scores_are_what_folds_lose(tmp_path: Path) -> None:
    states = [cloud(seed) for seed in range(4)]
    folder = tmp_path / "mka"
    (singles,) = seen(Manifold(legacy=True, save=str(folder)), states).blocks().values()
    record = json.loads((folder / "similarities.json").read_text())
    assert np.load(folder / "layouts.npy").shape == (3, 60, 2)
    alike = np.array(record["similarities"])
    means = alike.mean(1)
    ratio = means[0] / (means[0] + means[1])
    assert singles[0] == 1
    assert singles[1] == pytest.approx(1 - 1 / (1 + math.exp(-ratio)))
    assert [pair["layer"] for pair in record["pairs"]] == [1, 2]
    assert record["pairs"][0]["ratio"] == pytest.approx(1 - singles[1])
    assert record["pairs"][0]["similarity"] == alike[0, 1]


def test_too_few_samples() -> None:
    with pytest.raises(InputError, match="5 samples, and it needs at least 6"):
        seen(Manifold(), [cloud(0, 5), cloud(1, 5)]).blocks()
    with pytest.raises(InputError, match="50 samples, and it needs at least 51"):
        seen(Manifold(legacy=True), [cloud(0, 50), cloud(1, 50)]).blocks()


def test_what_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neighbours=0"):
        Manifold(neighbours=0)
    with pytest.raises(InputError, match="exists"):
        Manifold(save=str(tmp_path))
