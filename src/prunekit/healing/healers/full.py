"""Train every weight."""

from dataclasses import dataclass

from torch import nn

from prunekit.healing.healers._healer import Healer, Patient


@dataclass
class Full(Healer):
    rate = 5e-4

    def choose(self, patient: Patient) -> list[nn.Parameter]:
        return list(patient.model.parameters())
