"""Angular distance between the states entering and leaving a block (Gromov et al. 2024, PruneMe).

arXiv 2403.17887: d = arccos(cos(x[s], x[s+n])) / pi, averaged over samples; x are raw
states. The paper, and PruneMe, look at each sample's last token.
"""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from prunekit.criteria._criterion import Criterion, PairMeans


@dataclass
class Angular(Criterion):
    tokens: Literal["last", "all"] = "last"

    def begin(self, layers: int, seed: int) -> None:
        self.means = PairMeans(layers, self.tokens, lambda cosine: cosine.arccos() / math.pi)

    def see(self, layer: int, batch: int, entering: Tensor, leaving: Tensor) -> None:
        self.means.see(layer, batch, entering, leaving)

    def blocks(self) -> dict[int, list[float]]:
        return self.means.blocks()
