"""The single layers, or halves of layers, with the lowest scores (ShortGPT, PruneGPT, LLM-Drop)."""

from dataclasses import dataclass

from prunekit.model.units import Unit
from prunekit.plan.scores import Kind, Scores


@dataclass(frozen=True)
class Lowest:
    """In order of removal; ties go to the lower layer, and to attention.

    `unit` half ranks attention and MLP halves together (He et al. 2024, arXiv 2406.15786).
    """

    unit: Kind = "layer"

    def choose(self, scores: Scores, drop: int, protected: frozenset[int]) -> list[Unit]:
        ranked = sorted((score, unit) for unit, score in scores.of(self.unit).items())
        return [unit for _, unit in ranked if unit[0] not in protected][:drop]
