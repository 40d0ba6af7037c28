"""Random numbers from a seed: the control that any criterion must beat."""

from dataclasses import dataclass
from random import Random

from prunekit.criteria._criterion import Criterion


@dataclass
class RandomControl(Criterion):
    needs = "nothing"

    def begin(self, layers: int, seed: int) -> None:
        self.layers, self.seed = layers, seed

    def blocks(self) -> dict[int, list[float]]:
        source = Random(self.seed)
        return {
            length: [source.random() for _ in range(self.layers - length + 1)]
            for length in range(1, self.layers + 1)
        }
