"""Merges the layers with the lowest scores into the nearest kept layer before them (MKA)."""

from dataclasses import dataclass
from typing import Literal

from prunekit.errors import InputError
from prunekit.model.units import runs
from prunekit.plan.edits import Merge
from prunekit.plan.scores import Scores


@dataclass(frozen=True)
class Pairs:
    """Liu et al. 2024, arXiv 2406.16330. A run of layers is folded layer by layer into the one
    before it. There is none before layer 0, so that always stays.

    `ratio` weighs what stays: `similarity`, 1 - the score of the layer that goes, as the paper has
    it; or a number. With `tail` the order is that of MKA's code: the last two layers that remain,
    again and again, so that the last layers go whatever their scores.
    """

    ratio: Literal["similarity"] | float = "similarity"
    norms: Literal["interpolate", "keep"] = "interpolate"
    tail: bool = False

    def choose(self, scores: Scores, drop: int, protected: frozenset[int]) -> list[Merge]:
        layers = scores.base.layers
        free = [layer for layer in range(1, layers) if layer not in protected]
        if self.tail:
            free = [layer for layer in free if layer >= layers - drop]
        if drop > len(free):
            among = f"the last {drop} layers" if self.tail else "those after layer 0"
            raise InputError(f"can't merge {drop} layers: only {len(free)} of {among} may go")
        gone = sorted(free, key=lambda layer: scores.layers[layer])[:drop]
        return [self._merge(scores, start, end) for start, end in runs(gone)]

    def _merge(self, scores: Scores, start: int, end: int) -> Merge:
        layers = tuple(range(start, end))
        if self.ratio == "similarity":
            weights = [min(1.0, max(0.0, 1 - scores.layers[layer])) for layer in layers]
        else:
            weights = [self.ratio] * len(layers)
        if self.tail:
            weights = _from_the_end(weights)
        return Merge(start - 1, layers, tuple(weights), self.norms)


def _from_the_end(weights: list[float]) -> list[float]:
    """The weights for folding from the front that mix what these do from the end.

    From the end, layer l is folded into l - 1, that into l - 2, and so on; so layer l's share is
    its weight in the next fold times what all folds before leave over.
    """
    shares, over = [], 1.0
    for weight in weights:
        shares.append(over * weight)
        over *= 1 - weight
    shares.append(over)
    folded, before = [], shares[0]
    for share in shares[1:]:
        folded.append(before / (before + share) if before + share > 0 else 1.0)
        before += share
    return folded
