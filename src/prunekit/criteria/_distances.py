"""Means of Euclidean distances, which euclidean and magnitude_ratio share."""

from abc import abstractmethod

import torch
from torch import Tensor

from prunekit.criteria._criterion import CHUNK
from prunekit.criteria._depths import OfDepths


class OfDistances(OfDepths):
    """The mean, over tokens, of a function of the distance between the states at any two depths.

    Differences are taken before they are squared: states of neighbouring depths are so alike that
    the distance would drown in the rounding of |a|^2 + |b|^2 - 2ab in float32.
    """

    @abstractmethod
    def of(self, distance: Tensor, norm: Tensor) -> Tensor:
        """From ||x[e] - x[s]|| (token, s, e) and ||x[e]|| (token, 1, e), element by element."""

    def begin(self, layers: int, seed: int) -> None:
        super().begin(layers, seed)
        self.total = torch.zeros(layers + 1, layers + 1, dtype=torch.float64)
        self.count = torch.zeros((), dtype=torch.float64)

    def sums(self) -> list[Tensor]:
        return [self.total, self.count]

    def add(self, batch: int, states: list[Tensor]) -> None:
        for chunk in zip(*(state.split(CHUNK) for state in states), strict=True):
            stacked = torch.stack(chunk, dim=1).float()  # (token, depth, hidden)
            distance = torch.cdist(
                stacked, stacked, compute_mode="donot_use_mm_for_euclid_dist"
            )  # (token, depth, depth)
            norm = stacked.norm(dim=-1).unsqueeze(1)
            self.total += self.of(distance, norm).double().sum(0).cpu()
            self.count += len(stacked)

    def blocks(self) -> dict[int, list[float]]:
        mean = self.total / self.count
        return {length: mean.diagonal(length).tolist() for length in range(1, self.layers + 1)}
