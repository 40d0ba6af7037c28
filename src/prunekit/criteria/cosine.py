"""One minus the cosine of the states entering and leaving a block (ShortGPT's block influence).

arXiv 2403.03853: BI = 1 - E[cos(x[l], x[l+1])], averaged over tokens; x are raw states.
PruneGPT scores single layers so; LLM-Streamline (arXiv 2403.19135) blocks.
"""

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from prunekit.criteria._criterion import Criterion, PairMeans


@dataclass
class Cosine(Criterion):
    tokens: Literal["last", "all"] = "all"

    def begin(self, layers: int, seed: int) -> None:
        self.means = PairMeans(layers, self.tokens, lambda cosine: 1 - cosine)

    def see(self, layer: int, batch: int, entering: Tensor, leaving: Tensor) -> None:
        self.means.see(layer, batch, entering, leaving)

    def blocks(self) -> dict[int, list[float]]:
        return self.means.blocks()
