"""How much must go: what leaving out each unit saves, and how much all must save together."""

import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field

from prunekit.errors import InputError
from prunekit.model.units import HALVES, Unit, Variant


@dataclass(frozen=True)
class Target:
    """What each unit that may go saves, and the amount that must be saved in all.

    `what` says the amount in words, `shown` any other amount in the same words. A layer's saving
    includes its halves'.
    """

    savings: Mapping[Unit, float]
    amount: float
    what: str
    shown: Callable[[float], str] | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        for unit, saving in self.savings.items():
            if not math.isfinite(saving):
                raise InputError(f"leaving out the {unit[1]} of layer {unit[0]} saves {saving}")
        if not math.isfinite(self.amount):
            raise InputError(f"can't save {self.what}: that is no amount")

    def saving(self, unit: Unit) -> float:
        """What leaving out a unit saves; nothing where a measured saving is below zero."""
        layer, part = unit
        own = max(0.0, self.savings.get(unit, 0.0))
        if part != "layer":
            return own
        return max(own, math.fsum(self.saving((layer, half)) for half in HALVES))

    def saved(self, variant: Variant) -> float:
        """What a variant saves: a half of a layer that goes counts with the layer only."""
        return math.fsum(self.saving(unit) for unit in normal(variant))

    def met(self, variant: Variant) -> bool:
        return self.reached(self.saved(variant))

    def reached(self, saved: float) -> bool:
        """Whether that much is enough, rounding errors aside."""
        return saved >= self.amount - 1e-9 * abs(self.amount)

    def say(self, saved: float) -> str:
        """An amount in the target's words."""
        return self.shown(saved) if self.shown else f"{saved:g} of {self.amount:g}"


def normal(variant: Iterable[Unit]) -> Variant:
    """A variant without the halves of layers that it lacks altogether."""
    units = frozenset(variant)
    return frozenset(
        (layer, part) for layer, part in units if part == "layer" or (layer, "layer") not in units
    )


def count(units: Iterable[Unit], amount: int) -> Target:
    """So many layers, or halves of layers; where both may go, a layer counts as two halves."""
    units = list(units)
    kind = "halves" if any(part != "layer" for _, part in units) else "layers"
    savings = {unit: 2.0 if (kind, unit[1]) == ("halves", "layer") else 1.0 for unit in units}
    return Target(savings, amount, f"{amount} {kind}", lambda saved: f"{saved:.0f} {kind}")


def share(savings: Mapping[Unit, float], part: float, whole: float, of: str) -> Target:
    """A share of a whole, such as 0.25 of 8.03e9 `parameters`."""
    if not 0 <= part <= 1:
        raise InputError(f"can't save {100 * part:g}% of the {of}; 0 to 100% are possible")
    size = re.sub(r"e\+?0*", "e", f"{whole:.3g}")
    return Target(
        savings,
        part * whole,
        f"{100 * part:g}% of {size} {of}",
        lambda saved: f"{math.floor(1000 * saved / whole) / 10:g}% of {size} {of}",
    )


def faster(savings: Mapping[Unit, float], times: float, seconds: float) -> Target:
    """So many times the speed of a model that takes `seconds`; units save seconds."""
    if not times >= 1:
        raise InputError(f"{times:g}x the speed is no gain; 1 or more is possible")

    def shown(saved: float) -> str:
        left = seconds - saved
        return f"{math.floor(100 * seconds / left) / 100:g}x the speed" if left > 0 else "any speed"

    return Target(savings, seconds * (1 - 1 / times), f"{times:g}x the speed", shown)
