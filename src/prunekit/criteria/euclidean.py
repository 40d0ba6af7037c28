"""Euclidean distance between the states entering and leaving a block (short-transformers).

E[||x[s+n] - x[s]||] over tokens, x raw states. States grow with depth, so early blocks look small;
magnitude_ratio divides by that growth.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from prunekit.criteria._distances import OfDistances


@dataclass
class Euclidean(OfDistances):
    tokens: Literal["last", "all"] = "all"

    def of(self, distance: Tensor, norm: Tensor) -> Tensor:
        return distance
