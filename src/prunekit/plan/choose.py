"""From scores to a plan: asks a chooser, with protected layers out of its reach."""

from collections.abc import Sequence
from typing import Any, Protocol

from prunekit import plugins
from prunekit.errors import InputError
from prunekit.plan.plan import Drop, Plan
from prunekit.plan.scores import Scores


class Chooser(Protocol):
    """A file in `choosers/` holds one dataclass of this form."""

    def choose(self, scores: Scores, drop: int, protected: frozenset[int]) -> list[int]:
        """`drop` layers, none of them protected. Raises InputError if there is no such choice."""
        ...


def choose(
    scores: Scores,
    *,
    drop: int,
    chooser: str = "block",
    protect: Sequence[int] = (),
    options: dict[str, Any] | None = None,
) -> Plan:
    """A plan that drops `drop` layers. A protected layer is never removed; negative ones count
    from the end.

    Raises InputError if that many can't go.
    """
    protected = check_request(scores.base.layers, drop, protect)
    chosen = list(plugins.make("plan.choosers", chooser, options).choose(scores, drop, protected))
    free = set(range(scores.base.layers)) - protected
    if len(chosen) != drop or len(free.intersection(chosen)) != drop:
        raise InputError(f"chooser {chooser!r} gave {chosen}, not {drop} unprotected layers")
    made_by = {
        "criterion": scores.criterion,
        "options": scores.options,
        "choose": chooser,
        **({"choose_options": options} if options else {}),
        "protect": sorted(protected),
        "layers_in_order": chosen,
    }
    return Plan((Drop(tuple(sorted(chosen))),), scores.base, made_by, scores.text)


def check_request(layers: int, drop: int, protect: Sequence[int]) -> frozenset[int]:
    """The protected layers, counted from 0, if `drop` of the others can go.

    Raises InputError if not.
    """
    if not 0 <= drop < layers:
        raise InputError(f"can't drop {drop} of {layers} layers; 0 to {layers - 1} are possible")
    protected = resolve(protect, layers)
    if drop > layers - len(protected):
        raise InputError(
            f"can't drop {drop} layers: {len(protected)} of {layers} are protected, "
            f"which leaves {layers - len(protected)}"
        )
    return protected


def resolve(protect: Sequence[int], layers: int) -> frozenset[int]:
    """Protected layers counted from 0; negative numbers count from the end.

    Raises InputError if one is out of range.
    """
    for layer in protect:
        if not -layers <= layer < layers:
            raise InputError(
                f"can't protect layer {layer}: the model has layers 0 to {layers - 1} "
                f"(or {-layers} to -1 from the end)"
            )
    return frozenset(layer % layers for layer in protect)
