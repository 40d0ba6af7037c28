"""From trials to a plan: a searching chooser asks a judge for the loss of many variants at once."""

import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any, ClassVar, Protocol

from prunekit import plugins
from prunekit.errors import InputError
from prunekit.model.units import DENSE, HALVES, Unit, Variant, named
from prunekit.plan.choose import in_order, needs_judge, resolve
from prunekit.plan.edits import edits_of
from prunekit.plan.plan import Plan
from prunekit.plan.scores import Base, Scores
from prunekit.plan.target import Target, normal

# The loss of each variant, lower is better; DENSE is the model as it is. A judge that also takes
# `tokens=n` gives losses on about n tokens, drawn anew at each call and the same for all its
# variants.
Judge = Callable[..., Sequence[float]]


class Searcher(Protocol):
    """A file in `choosers/` holds one dataclass of this form, or of Chooser's."""

    needs_judge: ClassVar[bool] = True

    def search(self, trials: "Trials") -> Sequence[Unit]:
        """Units that meet the target, in order of removal."""
        ...


def search(
    judge: Judge,
    target: Target,
    *,
    base: Base,
    chooser: str = "evolve",
    protect: Sequence[int] = (),
    options: dict[str, Any] | None = None,
    scores: Scores | None = None,
    text: dict[str, Any] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Plan:
    """A plan that meets the target with as low a loss as the chooser finds.

    A protected layer is never touched, nor are its halves; negative ones count from the end. Some
    choosers start from `scores`. Raises InputError if the target can't be met, or a loss is not
    finite.
    """
    if not needs_judge(chooser):
        raise InputError(f"chooser {chooser!r} does not search, it needs scores: `prunekit plan`")
    if scores and scores.base.digest != base.digest:
        raise InputError(f"the scores are of {scores.base.name!r}, not of {base.name!r}")
    made = plugins.make("plan.choosers", chooser, options)
    protected = resolve(protect, base.layers)
    trials = Trials(judge, target, base.layers, protected, scores, progress)
    (dense,) = trials.losses([DENSE])
    gone = list(made.search(trials))
    variant = frozenset(gone)
    if len(gone) != len(normal(gone)) or not variant <= set(trials.units):
        raise InputError(f"chooser {chooser!r} gave {gone}, not units that may go, each once")
    if not target.met(variant):
        raise InputError(f"chooser {chooser!r} gave {gone}, which falls short of {target.what}")
    (loss,) = trials.losses([variant])
    made_by = {
        **({"criterion": scores.criterion, "options": scores.options} if scores else {}),
        "choose": chooser,
        "choose_options": asdict(made),
        "target": target.what,
        "saved": target.say(target.saved(variant)),
        "protect": sorted(protected),
        **in_order(gone),
        "loss": loss,
        "dense_loss": dense,
        "judged": trials.judged,
        **trials.notes,
    }
    plan = Plan(edits_of(gone), base, made_by, text)
    plan.kept(base.layers)
    return plan


class Trials:
    """What a searching chooser works with: the units that may go, the target, the losses.

    All its variants can be completed to meet the target with one layer left, and none holds a half
    of a layer that it lacks altogether. `notes` become part of the plan's record.
    """

    def __init__(
        self,
        judge: Judge,
        target: Target,
        layers: int,
        protected: frozenset[int] = frozenset(),
        scores: Scores | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.units = sorted(
            unit for unit in target.savings if unit[0] not in protected and target.saving(unit) > 0
        )
        self.target = target
        self.scores = scores
        self.progress = progress or (lambda done, total: None)
        self.samples = "tokens" in inspect.signature(judge).parameters
        self.judged = 0
        self.notes: dict[str, Any] = {}
        self._free = frozenset(self.units)
        self._judge = judge
        self._known: dict[Variant, float] = {}
        self._layers = layers
        self._all = target.saved(self._free)
        whole = [layer for layer, part in self.units if part == "layer"]
        # If every layer may go, one has to stay, without its attention or its MLP at most.
        self._one_stays = len(whole) == layers
        self._loose = not self._one_stays or target.reached(
            self._all - max(target.saving((layer, "layer")) for layer in whole)
        )
        if not target.reached(self.most()):
            halves = all(part != "layer" for _, part in self.units) and self.units
            raise InputError(
                f"asked for {target.what}; removing every unprotected "
                f"{'half' if halves else 'layer'}{' but one' if self._one_stays else ''} "
                f"comes to {target.say(self.most())}"
            )

    def losses(self, variants: Sequence[Variant], tokens: int | None = None) -> list[float]:
        """The loss of each variant on all tokens, asked for once only; or on a fresh draw of
        `tokens`. Raises InputError if one is not finite."""
        if tokens is not None:
            return self._ask(variants, tokens=tokens)
        new = [variant for variant in dict.fromkeys(variants) if variant not in self._known]
        self._known.update(zip(new, self._ask(new), strict=True))
        return [self._known[variant] for variant in variants]

    def known(self, variant: Variant) -> bool:
        """Whether a variant's loss on all tokens is known."""
        return variant in self._known

    def rest(self, variant: Variant) -> list[Unit]:
        """The units that can go next: each saves something and leaves the target within reach."""
        saved = self.target.saved(variant)
        return [
            unit
            for unit in self.units
            if unit not in variant
            and (unit[0], "layer") not in variant
            and self.target.saved(further := self.without(variant, unit)) > saved
            and self._within_reach(further)
        ]

    def without(self, variant: Variant, unit: Unit) -> Variant:
        """The variant that lacks one unit more; without both its halves a layer goes whole."""
        layer = (unit[0], "layer")
        further = variant | {unit}
        if layer in self._free and all((unit[0], half) in further for half in HALVES):
            further |= {layer}
        return normal(further)

    def less(self, variant: Variant) -> list[Variant]:
        """The variants that have one unit of this one back, or half a layer, and still meet the
        target."""
        back = []
        for unit in sorted(variant):
            back.append(variant - {unit})
            if unit[1] == "layer":
                halves = [half for half in self.units if half[0] == unit[0] and half != unit]
                back += [variant - {unit} | {half} for half in halves]
        return [variant for variant in back if self.target.met(variant)]

    def possible(self, variant: Variant) -> bool:
        """Whether all its units may go, and the target can be met without them."""
        return variant <= self._free and self._within_reach(variant)

    def most(self, variant: Variant = DENSE) -> float:
        """The most that variants save which lack at least these units."""
        if not self._one_stays:
            return self._all
        stays = dict.fromkeys(range(self._layers), 0.0)  # and what its halves can save
        for layer, part in self.units:
            if part != "layer":
                stays[layer] = max(stays[layer], self.target.saving((layer, part)))
        for layer, part in variant:
            if part == "layer":
                del stays[layer]
            else:
                stays[layer] = self.target.saving((layer, part))
        costs = [self.target.saving((layer, "layer")) - saved for layer, saved in stays.items()]
        return self._all - min(costs) if costs else -math.inf

    def _within_reach(self, variant: Variant) -> bool:
        if self._loose and sum(part == "layer" for _, part in variant) < self._layers:
            return True
        return self.target.reached(self.most(variant))

    def _ask(self, variants: Sequence[Variant], **how: int) -> list[float]:
        if not variants:
            return []
        self.judged += len(variants)
        losses = [float(loss) for loss in self._judge(variants, **how)]
        for variant, loss in zip(variants, losses, strict=True):
            if not math.isfinite(loss):
                what = f"without {named(variant)}" if variant else "of the dense model"
                raise InputError(
                    f"the loss {what} is {loss}, which can't be compared; try dtype float32"
                    + (", or protect what breaks the model" if variant else "")
                )
        return losses
