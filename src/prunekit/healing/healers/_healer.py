"""What every healer is: a choice of what is trained, in a model that is opened to be trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from prunekit.errors import InputError
from prunekit.model.family import Family
from prunekit.model.lineage import Seam

WIDTH = 128  # hidden size of the model whose best rates are known


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
    """Base of healers. `rate` is the learning rate that was best on a model of hidden size 128, see
    `usual_rate`; `quantize` how its model is opened."""

    rate: float
    quantize: str | None = None

    def usual_rate(self, hidden: int) -> float:
        """The learning rate for a model of this hidden size, unless one is given.

        It falls with the width, as steps of Adam on hidden matrices do if they are to change a wide
        model's states as much as a narrow one's (Yang et al., arXiv 2203.03466).
        """
        return self.rate * min(1.0, WIDTH / hidden)

    def choose(self, patient: Patient) -> list[nn.Parameter]:
        """The parameters that are trained."""
        raise NotImplementedError

    def adapt(self, patient: Patient) -> nn.Module:
        """The model to train, with what it needs added; by default as it is."""
        return patient.model
