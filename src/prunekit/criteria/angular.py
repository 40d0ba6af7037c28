"""Angular distance between the states entering and leaving a block (Gromov et al. 2024, PruneMe).

arXiv 2403.17887: d = arccos(cos(x[s], x[s+n])) / pi, averaged over samples; x are raw
states. The paper, and PruneMe, look at each sample's last token.
"""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from prunekit.criteria._depths import OfPairs, cosines


@dataclass
class Angular(OfPairs):
    tokens: Literal["last", "all"] = "last"

    def of(self, states: Tensor) -> Tensor:
        return cosines(states).arccos() / math.pi
