"""The single layers with the lowest scores, wherever they lie (ShortGPT, PruneGPT)."""

from dataclasses import dataclass

from prunekit.plan.scores import Scores


@dataclass(frozen=True)
class Lowest:
    """In order of removal; ties go to the lower layer."""

    def choose(self, scores: Scores, drop: int, protected: frozenset[int]) -> list[int]:
        free = [layer for layer in range(scores.base.layers) if layer not in protected]
        return sorted(free, key=lambda layer: scores.layers[layer])[:drop]
