"""Train the output embedding, the final norm and the last layers.

Reassessing layer pruning in LLMs, Lu et al., arXiv 2411.15558. An output embedding that is tied to
the input embedding is trained as both.
"""

from dataclasses import dataclass

from torch import nn

from prunekit.errors import InputError
from prunekit.healing.healers._healer import Healer, Patient


@dataclass
class Last(Healer):
    layers: int = 3

    rate = 5e-4

    def choose(self, patient: Patient) -> list[nn.Parameter]:
        depth = len(patient.layers)
        if not 0 <= self.layers <= depth:
            raise InputError(f"healer 'last', layers={self.layers}: the model has {depth}")
        decoder = patient.model.get_decoder()
        around = {*patient.layers.parameters(), *patient.model.get_input_embeddings().parameters()}
        norms = [weight for weight in decoder.parameters() if weight not in around]
        last = [*patient.layers][depth - self.layers :]
        head = patient.model.get_output_embeddings()
        found = [weight for layer in last for weight in layer.parameters()]
        return [*dict.fromkeys([*found, *norms, *(head.parameters() if head else ())])]
