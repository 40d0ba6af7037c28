"""One minus the mutual information of the manifolds that samples form at two depths (MKA).

Liu et al. 2024, arXiv 2406.16330: each sample's state at a depth is a point; a diffusion map lays
the points out in two dimensions; two depths are alike if one layout tells the other, by nearest
neighbours (NPIB: mutual information over the root of the two entropies). Needs scikit-learn.

The paper ranks the coordinates and takes entropies of those, which are never above zero; here ranks
become normal quantiles, the entropy is Kozachenko and Leonenko's, and the similarity is held in
[0, 1]. `legacy` is the arithmetic of MKA's code on the same samples: layers' inputs are compared,
and a layer's score is the share of it that its fold keeps (1 - lambda), 1 for layer 0.
"""

import json
import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from prunekit.criteria._depths import OfDepths
from prunekit.errors import InputError

Points = np.ndarray[Any, Any]
SCALE, POWER, SIZE = 8.0, 0.5, 2  # sigma, alpha and dimensions of the paper's diffusion map
NEIGHBOURS = 50  # for entropies, as the paper has it, or a quarter of the samples


@dataclass
class Manifold(OfDepths):
    """`pool` makes one point of a sample: the mean of its tokens' states, or the last token's.

    `neighbours` are those that mutual information is estimated with. `save` names a new folder for
    the layouts (`layouts.npy`: depth, sample, 2) and the similarities (`similarities.json`).
    """

    pool: Literal["mean", "last"] = "mean"
    neighbours: int = 5
    legacy: bool = False
    save: str = ""

    tokens = "last"  # so that little is held

    def __post_init__(self) -> None:
        if not find_spec("sklearn"):
            raise InputError(
                "criterion 'manifold' needs scikit-learn; pip install 'prunekit[manifold]'"
            )
        if self.neighbours < 1:
            raise InputError(
                f"criterion 'manifold', option neighbours={self.neighbours}: 1 or more"
            )
        if self.save and Path(self.save).exists():
            raise InputError(f"criterion 'manifold', option save: {self.save!r} exists")

    def begin(self, layers: int, seed: int) -> None:
        super().begin(layers, seed)
        self.seed = seed
        self.points: list[list[Tensor]] = [[] for _ in range(layers + 1)]

    def pick(self, states: Tensor) -> Tensor:
        pooled = states.float().mean(1) if self.pool == "mean" else states[:, -1].float()
        return pooled.cpu()

    def add(self, states: list[Tensor]) -> None:
        for depth, pooled in zip(self.points, states, strict=True):
            depth.append(pooled)

    def blocks(self) -> dict[int, list[float]]:
        depths = self.points[:-1] if self.legacy else self.points
        samples = sum(len(pooled) for pooled in self.points[0])
        least = max(self.neighbours, NEIGHBOURS if self.legacy else 4) + 1
        if samples < least:
            raise InputError(
                f"criterion 'manifold': {samples} samples, and it needs at least {least}, more "
                "than its nearest neighbours; better 100 and more"
            )
        layouts = [diffusion_map(torch.cat(pooled).numpy()) for pooled in depths]
        alike = self._alike(layouts)
        if self.save:
            self._save(layouts, alike)
        if self.legacy:
            return {
                1: [1.0, *(1 - kept(alike, layer - 1, layer) for layer in range(1, len(alike)))]
            }
        apart = 1 - alike
        return {n: apart.diagonal(n).tolist() for n in range(1, self.layers + 1)}

    def _alike(self, layouts: list[Points]) -> Points:
        """The similarity of every two layouts."""
        draws = np.random.RandomState(self.seed)
        if self.legacy:
            ranked = [ranks(layout) for layout in layouts]
            entropies = [ranked_entropy(points) for points in ranked]
        else:
            ranked = [normal_scores(layout) for layout in layouts]
            entropies = [entropy(points) for points in ranked]
            for depth, value in enumerate(entropies):
                if value <= 0:
                    raise InputError(
                        f"criterion 'manifold': the samples lie on a line at depth {depth} "
                        f"(entropy {value:.3g}); take more, or more different, samples"
                    )
        alike = np.zeros((len(ranked), len(ranked)))
        for i, first in enumerate(ranked):
            for j, second in enumerate(ranked[i:], i):
                shared = information(first, second, self.neighbours, draws)
                similar = shared / math.sqrt(entropies[i] * entropies[j])
                alike[i, j] = alike[j, i] = similar if self.legacy else min(1.0, max(0.0, similar))
        return alike

    def _save(self, layouts: list[Points], alike: Points) -> None:
        folder = Path(self.save)
        folder.mkdir(parents=True)
        np.save(folder / "layouts.npy", np.stack(layouts))
        # Layer l is folded into the one before it: the depths l and l + 1 (legacy: l - 1 and l).
        pairs = [
            {"into": layer - 1, "layer": layer, "similarity": alike[at, at + 1],
             "ratio": kept(alike, at, at + 1) if self.legacy else alike[at, at + 1]}
            for layer in range(1, self.layers)
            for at in [layer - 1 if self.legacy else layer]
        ]  # fmt: skip
        record = {"similarities": alike.tolist(), "pairs": pairs, "legacy": self.legacy}
        (folder / "similarities.json").write_text(json.dumps(record, indent=1) + "\n")


def diffusion_map(points: Points) -> Points:
    """(sample, feature) -> (sample, SIZE), as the paper's code has it but for its errors."""
    points = points.astype(np.float32)
    squares = (points**2).sum(1)
    squared = np.abs(squares[:, None] + squares[None, :] - 2 * points @ points.T)
    np.fill_diagonal(squared, 0)
    kernel = np.exp(-np.sqrt(np.sqrt(squared) / SCALE))
    mass = kernel.sum(0)
    kernel = kernel / np.outer(mass, mass) ** POWER
    root = np.sqrt(kernel.sum(0))
    left, _, _ = np.linalg.svd(kernel / np.outer(root, root))
    first = np.where(np.abs(left[:, :1]) > 0, left[:, :1], 1e-8)
    return (left[:, : SIZE + 1] / first)[:, 1:]


def ranks(layout: Points) -> Points:
    """Each column's ranks, from 0 to below 1."""
    return layout.argsort(0, kind="stable").argsort(0, kind="stable") / len(layout)


def normal_scores(layout: Points) -> Points:
    """Each column's ranks as quantiles of the normal distribution."""
    middle = torch.from_numpy(ranks(layout) + 0.5 / len(layout))
    return torch.special.ndtri(middle).numpy()


def information(first: Points, second: Points, neighbours: int, draws: Any) -> float:
    """Mean mutual information, in nats, of a column of one and a column of the other."""
    from sklearn.feature_selection import mutual_info_regression

    columns = [
        mutual_info_regression(first, column, n_neighbors=neighbours, random_state=draws).mean()
        for column in second.T
    ]
    return float(np.mean(columns))


def entropy(points: Points) -> float:
    """In nats, from the distance to the k-th neighbour (Kozachenko and Leonenko 1987)."""
    samples, size = points.shape
    count = min(NEIGHBOURS, samples // 4)
    ball = math.pi ** (size / 2) / math.gamma(size / 2 + 1)
    reach = np.maximum(_reach(points, count), 1e-12)
    digamma = torch.special.digamma(torch.tensor([samples, count], dtype=torch.float64)).tolist()
    return digamma[0] - digamma[1] + math.log(ball) + size * float(np.log(reach).mean())


def ranked_entropy(points: Points) -> float:
    """As MKA's code has it: no digamma, no ball; never above zero on ranks."""
    samples, size = points.shape
    return -float(np.log(NEIGHBOURS / (samples * _reach(points, NEIGHBOURS) ** size)).mean())


def kept(alike: Points, stays: int, goes: int) -> float:
    """MKA's weight of the layer that stays: lambda = sigmoid(s / (s + s')), s row means."""
    own, other = alike[stays].mean(), alike[goes].mean()
    return float(1 / (1 + np.exp(-own / (own + other))))


def _reach(points: Points, count: int) -> Points:
    """The distance of every point to its `count`-th neighbour, itself not counted."""
    from sklearn.neighbors import NearestNeighbors

    distances, _ = NearestNeighbors(n_neighbors=count + 1).fit(points).kneighbors(points)
    return distances[:, -1]
