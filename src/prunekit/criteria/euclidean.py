"""Euclidean distance between the states entering and leaving a block (short-transformers).

E[||x[s+n] - x[s]||] over tokens, x raw states. States grow with depth, so early blocks look small;
magnitude_ratio divides by that growth.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from prunekit.criteria._depths import OfPairs, distances


@dataclass
class Euclidean(OfPairs):
    tokens: Literal["last", "all"] = "all"

    def of(self, states: Tensor) -> Tensor:
        return distances(states)
