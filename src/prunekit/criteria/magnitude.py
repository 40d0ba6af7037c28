"""Sum of a layer's weights' absolute values, each to a power; needs no text (Shortened LLaMA).

Kim et al. 2024, arXiv 2402.02834. It says little of depth: the paper protects the first four and
the last two layers (`--protect 0,1,2,3,-2,-1`), and most models break without that.
"""

from dataclasses import dataclass

from torch import nn

from prunekit.criteria._criterion import OfLayers, salience


@dataclass
class Magnitude(OfLayers):
    power: float = 1.0

    needs = "weights"

    def see_weights(self, layer: int, module: nn.Module) -> None:
        self.scores[layer] = salience(module.parameters(), self.power)
