"""Targets: what variants save, and what is said of an amount."""

import math

import pytest

from prunekit.errors import InputError
from prunekit.model.units import Unit
from prunekit.plan.target import Target, count, faster, normal, share

BOTH: dict[Unit, float] = {
    (0, "layer"): 5.0, (0, "attention"): 2.0, (0, "mlp"): 3.0, (1, "layer"): 6.0, (1, "mlp"): 3.0,
}  # fmt: skip


def test_a_half_of_a_layer_that_goes_is_not_counted_twice() -> None:
    target = Target(BOTH, 6, "6")
    assert target.saved(frozenset()) == 0
    assert target.saved(frozenset({(0, "attention"), (1, "mlp")})) == 5
    assert target.saved(frozenset({(0, "layer"), (0, "attention"), (0, "mlp")})) == 5
    assert target.saved(frozenset({(0, "layer"), (1, "layer"), (1, "mlp")})) == 11
    assert normal([(0, "layer"), (0, "mlp"), (1, "mlp")]) == {(0, "layer"), (1, "mlp")}


def test_a_layer_saves_at_least_what_its_halves_do() -> None:
    """Times of layers and halves are measured one by one, and need not add up."""
    target = Target({(0, "layer"): 1.0, (0, "attention"): 0.7, (0, "mlp"): 0.5}, 1, "1")
    assert target.saving((0, "layer")) == pytest.approx(1.2)
    assert Target({(0, "mlp"): 0.5}, 1, "1").saving((0, "layer")) == 0.5


def test_a_target_is_met_from_its_amount_on() -> None:
    target = Target(BOTH, 6, "6")
    assert not target.met(frozenset({(0, "layer")}))
    assert target.met(frozenset({(1, "layer")}))
    assert target.met(frozenset({(0, "mlp"), (1, "mlp")}))
    tenths = Target({(layer, "layer"): 0.1 for layer in range(3)}, 0.3, "0.3")
    assert tenths.met(frozenset(tenths.savings)), "0.1 + 0.1 + 0.1 is 0.3"
    assert Target({}, 0, "nothing").met(frozenset())


def test_counts_of_layers_of_halves_and_of_both() -> None:
    layers: list[Unit] = [(0, "layer"), (1, "layer")]
    halves: list[Unit] = [(0, "attention"), (0, "mlp"), (1, "mlp")]
    assert count(layers, 2) == Target(dict.fromkeys(layers, 1.0), 2, "2 layers")
    assert count(halves, 2) == Target(dict.fromkeys(halves, 1.0), 2, "2 halves")
    both = count([*layers, *halves], 3)
    assert (both.what, both.say(4.0)) == ("3 halves", "4 halves")
    assert both.saved(frozenset({(0, "layer"), (1, "mlp")})) == 3


def test_a_share_and_a_speed_in_words() -> None:
    target = share({(0, "layer"): 2e9}, 0.25, 8.03e9, "parameters")
    assert target.what == "25% of 8.03e9 parameters"
    assert target.amount == pytest.approx(2.0075e9)
    assert target.say(2e9) == "24.9% of 8.03e9 parameters", "never more than that"
    speed = faster({(0, "layer"): 0.1}, 1.25, 1.0)
    assert (speed.what, speed.amount) == ("1.25x the speed", pytest.approx(0.2))
    assert (speed.say(0.1), speed.say(1.0)) == ("1.11x the speed", "any speed")
    assert Target({}, 8, "8 things").say(2.5) == "2.5 of 8"


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: share({}, 1.5, 8.0, "bytes"), "can't save 150% of the bytes; 0 to 100% are"),
        (lambda: share({}, math.nan, 8.0, "bytes"), "can't save nan% of the bytes"),
        (lambda: faster({}, 0.5, 1.0), "0.5x the speed is no gain"),
        (lambda: faster({}, math.nan, 1.0), "nanx the speed is no gain"),
        (lambda: faster({}, 2.0, math.inf), "can't save 2x the speed: that is no amount"),
        (lambda: Target({(3, "mlp"): math.nan}, 1, "1"), "the mlp of layer 3 saves nan"),
    ],
)
def test_what_is_no_target_is_refused(make: object, said: str) -> None:
    with pytest.raises(InputError, match=said):
        make()  # type: ignore[operator]
