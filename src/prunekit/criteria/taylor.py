"""First-order estimate of what the loss loses with a layer: |weight x gradient|, summed.

Kim et al. 2024, arXiv 2402.02834: gradients of the loss are added up over all batches, signed, and
only then multiplied by the weights and summed as absolute values to a power. The paper's Taylor+
protects the first four and the last two layers (`--protect 0,1,2,3,-2,-1`).
"""

from dataclasses import dataclass

from torch import nn

from prunekit.criteria._criterion import OfLayers, salience


@dataclass
class Taylor(OfLayers):
    power: float = 1.0

    needs = "gradients"

    def see_gradients(self, layer: int, module: nn.Module) -> None:
        self.scores[layer] = salience(
            (weight * weight.grad for weight in module.parameters() if weight.grad is not None),
            self.power,
        )
