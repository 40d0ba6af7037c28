"""Train the layers that stand in the place of removed blocks (LLM-Streamline).

Chen et al., arXiv 2403.19135. Where a block was replaced, that is what it was replaced by; where
layers were dropped, it is the layer before them.
"""

from dataclasses import dataclass

from torch import nn

from prunekit.healing.healers._healer import Healer, Patient


@dataclass
class Block(Healer):
    rate = 3e-3

    def choose(self, patient: Patient) -> list[nn.Parameter]:
        return [
            weight for layer in patient.replaced for weight in patient.layers[layer].parameters()
        ]
