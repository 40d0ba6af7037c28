"""An evolutionary search over what goes together, judged as a whole (EvoPress)."""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from prunekit.errors import InputError
from prunekit.model.units import DENSE, Part, Unit, Variant
from prunekit.plan.search import Trials

LAYER: Part = "layer"


@dataclass(frozen=True)
class Evolve:
    """Sieberling et al. 2024, arXiv 2410.14649.

    The best of `initial` random variants, and of those with the lowest scores if there are scores,
    is the first parent. Each of `generations` has `offspring` mutants of the parent: one to three
    units come back, random others go until the target is met, superfluous ones come back. The best
    of all, the parent included, is the next parent. Where hardly any such mutant is
    new, random variants take their place.

    `stages`, such as `8:1024,2:8192`, make that cheaper where the judge can draw tokens: the best 8
    on 1024 fresh tokens, and of these the best 2 on 8192, meet the parent on all tokens. A variant
    that lost on all tokens is not tried again. The default of `generations` is the paper's, k (n -
    k) / 1.5 for k of n units.
    """

    generations: int | None = None
    offspring: int = 32
    initial: int = 64
    stages: str = "2:2048"
    seed: int = 0

    needs_judge: ClassVar[bool] = True

    def __post_init__(self) -> None:
        for name, least in {"generations": 0, "offspring": 1, "initial": 1}.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"chooser 'evolve', option {name}={value}: at least {least}")
        if not re.fullmatch(r"([1-9]\d*:[1-9]\d*(,[1-9]\d*:[1-9]\d*)*)?", self.stages):
            raise InputError(
                f"chooser 'evolve', option stages={self.stages!r}: survivors:tokens such as "
                "8:1024,2:8192 are expected"
            )

    def search(self, trials: Trials) -> list[Unit]:
        draw = random.Random(self.seed)
        first = [_complete(trials, DENSE, draw) for _ in range(self.initial)]
        best = self._select(trials, first, _by_scores(trials, draw))
        usual = round(len(best) * (len(trials.units) - len(best)) / 1.5)
        generations = usual if self.generations is None else self.generations
        done = 0
        for done in range(1, generations + 1):
            offspring = self._offspring(trials, best, draw)
            if not offspring:  # all that could be was judged
                break
            best = self._select(trials, offspring, [best])
            trials.progress(done, generations)
        trials.notes["generations"] = done
        return sorted(best)

    def _offspring(self, trials: Trials, parent: Variant, draw: random.Random) -> list[Variant]:
        found: dict[Variant, None] = {}
        tries = 10 * self.offspring if parent else 0
        for attempt in range(tries):
            swaps = min(draw.randint(1, 3), draw.randint(1, 3), len(parent))
            back = draw.sample(sorted(parent), swaps)
            if attempt < tries / 2:
                child = _complete(trials, parent.difference(back), draw, back)
            else:  # hardly a new one is that near
                child = _complete(trials, DENSE, draw)
            if not trials.known(child):
                found[child] = None
            if len(found) == self.offspring:
                break
        return list(found)

    def _select(
        self, trials: Trials, variants: Sequence[Variant], elite: Sequence[Variant]
    ) -> Variant:
        """The best on all tokens of the elite and of the variants that survive the stages."""
        variants = list(dict.fromkeys(variants))
        for survivors, tokens in self._stages() if trials.samples else []:
            if len(variants) > survivors:
                losses = dict(zip(variants, trials.losses(variants, tokens), strict=True))
                variants = sorted(variants, key=lambda variant: losses[variant])[:survivors]
        finalists = [*elite, *variants]
        losses = dict(zip(finalists, trials.losses(finalists), strict=True))
        return min(finalists, key=lambda variant: (losses[variant], trials.target.saved(variant)))

    def _stages(self) -> list[tuple[int, int]]:
        pairs = (stage.split(":") for stage in self.stages.split(",") if stage)
        return [(int(survivors), int(tokens)) for survivors, tokens in pairs]


def _complete(
    trials: Trials, variant: Variant, draw: random.Random, avoid: Sequence[Unit] = ()
) -> Variant:
    """Random units more until the target is met, then fewer while it still is.

    `avoid` names units that are taken only if no others are left.
    """
    while not trials.target.met(variant):
        rest = trials.rest(variant)
        others = [unit for unit in rest if unit not in avoid]
        variant = trials.without(variant, draw.choice(others or rest))
    while less := trials.less(variant):
        variant = draw.choice(less)
    return variant


def _by_scores(trials: Trials, draw: random.Random) -> list[Variant]:
    """The units with the lowest scores for what they save, and the best block of as many layers."""
    if trials.scores is None:
        return []
    scored = trials.scores.units
    lowest = DENSE
    for unit in sorted(
        (unit for unit in trials.units if unit in scored),
        key=lambda unit: scored[unit] / trials.target.saving(unit),
    ):
        if not trials.target.met(lowest) and unit in trials.rest(lowest):
            lowest = trials.without(lowest, unit)
    row = trials.scores.block(len(lowest)) if lowest else []
    ends = [(start, start + len(lowest)) for start in range(len(row))]
    blocks = [frozenset((layer, LAYER) for layer in range(*end)) for end in ends]
    possible = [(row[start], start) for start, block in enumerate(blocks) if trials.possible(block)]
    starts = [lowest, *(blocks[start] for _, start in sorted(possible)[:1])]
    return [_complete(trials, start, draw) for start in starts]
