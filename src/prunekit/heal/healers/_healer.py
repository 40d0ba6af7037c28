"""What every healer is: a choice of what is trained, in a model that is opened to be trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from prunekit.errors import InputError
from prunekit.model.family import Family
from prunekit.model.lineage import Seam


@dataclass(frozen=True)
class Patient:
    """The model to heal. `seams` are where its layers went, `replaced` the layers that stand in
    the place of blocks, in the model's own numbering."""

    model: Any
    family: Family
    seams: Sequence[Seam]
    replaced: Sequence[int]

    @property
    def layers(self) -> nn.ModuleList:
        return self.family.layers(self.model)

    def beside_seams(self, width: int) -> list[int]:
        """The layers within `width` of a seam, before and behind it. Raises InputError if there is
        no seam."""
        if not self.seams:
            raise InputError(
                "no layer was removed from this model, as far as its prunekit.json tells, so there "
                "is no seam; take --how lora, last or full"
            )
        depth = len(self.layers)
        near = {at + step for at in (seam.start for seam in self.seams)
                for step in range(-width, width)}  # fmt: skip
        return sorted(layer for layer in near if 0 <= layer < depth)


class Healer:
    """Base of healers. `rate` is the usual learning rate; `quantize` how its model is opened."""

    rate = 1e-4
    quantize: str | None = None

    def choose(self, patient: Patient) -> list[nn.Parameter]:
        """The parameters that are trained."""
        raise NotImplementedError

    def adapt(self, patient: Patient) -> nn.Module:
        """The model to train, with what it needs added; by default as it is."""
        return patient.model
