"""Train the layers beside the places where layers went."""

from dataclasses import dataclass

from torch import nn

from prunekit.errors import InputError
from prunekit.healing.healers._healer import Healer, Patient


@dataclass
class Seam(Healer):
    width: int = 1  # layers before a seam, and as many behind it

    rate = 3e-3

    def choose(self, patient: Patient) -> list[nn.Parameter]:
        if self.width < 1:
            raise InputError(f"healer 'seam', width={self.width}: at least 1")
        near = patient.beside_seams(self.width)
        return [weight for layer in near for weight in patient.layers[layer].parameters()]
