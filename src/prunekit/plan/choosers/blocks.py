"""Several blocks of one length that do not overlap, lowest scores first (ReplaceMe)."""

from dataclasses import dataclass

from prunekit.errors import InputError
from prunekit.model.units import runs
from prunekit.plan.scores import Scores


@dataclass(frozen=True)
class Blocks:
    """Shopkhoev et al. 2025, arXiv 2505.02819, whose greedy choice may leave no room for the last
    blocks: here a block is taken only if the rest still fit. Ties go to the first."""

    count: int = 2

    def choose(self, scores: Scores, drop: int, protected: frozenset[int]) -> list[int]:
        if self.count < 1 or drop % self.count:
            raise InputError(f"can't drop {drop} layers as {self.count} blocks of equal length")
        if drop == 0:
            return []
        length = drop // self.count
        row = scores.block(length)
        free = set(range(scores.base.layers)) - protected
        chosen: list[int] = []
        for left in reversed(range(self.count)):
            possible = [
                start
                for start in range(len(row))
                if free.issuperset(range(start, start + length))
                and _room(free.difference(range(start, start + length)), length) >= left
            ]
            if not possible:
                raise InputError(
                    f"{self.count} blocks of {length} layers don't fit beside the protected "
                    "layers; protect fewer, take shorter blocks or choose 'lowest'"
                )
            best = min(possible, key=lambda start: row[start])
            chosen += range(best, best + length)
            free.difference_update(chosen)
        return chosen


def _room(free: set[int], length: int) -> int:
    """How many blocks of `length` fit into free layers."""
    return sum((end - start) // length for start, end in runs(list(free)))
