"""How large what a block adds is beside the state that leaves it (short-transformers).

Relative magnitude ||f(x)|| / (||x + f(x)|| + 1e-6) with f(x) = x[s+n] - x[s], what the block adds
to the residual stream; averaged over tokens, x raw states.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from prunekit.criteria._depths import OfPairs, distances

EPSILON = 1e-6  # a state of zeros has no ratio


@dataclass
class MagnitudeRatio(OfPairs):
    tokens: Literal["last", "all"] = "all"

    def of(self, states: Tensor) -> Tensor:
        return distances(states) / (states.norm(dim=-1).unsqueeze(1) + EPSILON)
