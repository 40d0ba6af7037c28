"""The unit whose loss costs least, again and again on what remains (SLEB)."""

import math
from dataclasses import dataclass
from typing import ClassVar

from prunekit.model.units import DENSE, Unit, Variant
from prunekit.plan.search import Trials


@dataclass(frozen=True)
class Greedy:
    """Song et al. 2024, arXiv 2402.09025. Each round judges all that can go, in one call.

    Ties go to what saves less, then to the lower layer. With `per_saving` a rise in loss is divided
    by what the unit saves, as far as that is still needed; a unit without which the loss falls goes
    before all others. At the end, what has become superfluous comes back if that is no worse.
    """

    per_saving: bool = True

    needs_judge: ClassVar[bool] = True

    def search(self, trials: Trials) -> list[Unit]:
        order: list[Unit] = []
        variant = DENSE
        while not trials.target.met(variant):
            variant = self._next(trials, variant)
            order = _follow(order, variant)
            left = trials.target.amount - trials.target.saved(variant)
            rounds = math.ceil(left / max(map(trials.target.saving, trials.units)) - 1e-9)
            trials.progress(len(order), len(order) + max(0, rounds))  # at least
        while less := trials.less(variant):
            losses = dict(zip(less, trials.losses(less), strict=True))
            best = min(less, key=lambda fewer: (losses[fewer], trials.target.saved(fewer)))
            if losses[best] > trials.losses([variant])[0]:
                break
            variant = best
            order = _follow(order, variant)
        return order

    def _next(self, trials: Trials, variant: Variant) -> Variant:
        """The variant without the unit that costs least."""
        saved = trials.target.saved(variant)
        needed = trials.target.amount - saved
        further = [trials.without(variant, unit) for unit in trials.rest(variant)]
        (before,) = trials.losses([variant])
        losses = dict(zip(further, trials.losses(further), strict=True))

        def cost(option: Variant) -> tuple[float, float]:
            gain = trials.target.saved(option) - saved
            rise = losses[option] - before
            return rise / min(gain, needed) if self.per_saving and rise > 0 else rise, gain

        return min(further, key=cost)


def _follow(order: list[Unit], variant: Variant) -> list[Unit]:
    """The order of removal so far, without what came back and with what went last."""
    return [*(unit for unit in order if unit in variant), *sorted(variant.difference(order))]
