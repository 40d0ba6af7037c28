"""The contiguous block of layers with the lowest score (Gromov et al. 2024; PruneMe)."""

from dataclasses import dataclass

from prunekit.errors import InputError
from prunekit.plan.scores import Scores


@dataclass(frozen=True)
class Block:
    """Ties go to the first block."""

    def choose(self, scores: Scores, drop: int, protected: frozenset[int]) -> list[int]:
        if drop == 0:
            return []
        row = scores.block(drop)
        starts = [
            start
            for start in range(len(row))
            if not protected.intersection(range(start, start + drop))
        ]
        if not starts:
            raise InputError(
                f"no block of {drop} layers avoids the protected layers "
                f"{', '.join(map(str, sorted(protected)))}; protect fewer or choose 'lowest'"
            )
        best = min(starts, key=lambda start: row[start])
        return list(range(best, best + drop))
