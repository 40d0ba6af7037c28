"""Train every weight."""

from dataclasses import dataclass

from torch import nn

from prunekit.heal.healers._healer import Healer, Patient


@dataclass
class Full(Healer):
    def choose(self, patient: Patient) -> list[nn.Parameter]:
        return list(patient.model.parameters())
