"""One minus the cosine of the states entering and leaving a block (ShortGPT's block influence).

arXiv 2403.03853: BI = 1 - E[cos(x[l], x[l+1])], averaged over tokens; x are raw states.
PruneGPT scores single layers so; LLM-Streamline (arXiv 2403.19135) blocks.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from prunekit.criteria._depths import OfPairs, cosines


@dataclass
class Cosine(OfPairs):
    tokens: Literal["last", "all"] = "all"

    def of(self, states: Tensor) -> Tensor:
        return 1 - cosines(states)
