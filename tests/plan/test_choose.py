"""Choosing: the best block by brute force, the lowest layers by hand, protection always."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import InputError
from prunekit.plan.choose import choose, resolve
from prunekit.plan.scores import Base, Scores


def scores(blocks: dict[int, list[float]] | list[float]) -> Scores:
    blocks = blocks if isinstance(blocks, dict) else {1: blocks}
    base = Base("org/model", "llama", len(blocks[1]), "ab" * 32)
    return Scores("angular", {"tokens": "last"}, base, blocks, {"source": "stdlib/calibrate"})


@st.composite
def cases(draw: st.DrawFn) -> tuple[Scores, int, list[int]]:
    """Scores with blocks of every length or of single layers only, with many ties."""
    layers = draw(st.integers(1, 9))
    longest = draw(st.sampled_from([1, layers]))
    value = st.integers(0, 5).map(float)
    blocks = {
        length: draw(st.lists(value, min_size=layers - length + 1, max_size=layers - length + 1))
        for length in range(1, longest + 1)
    }
    protect = draw(st.lists(st.integers(-layers, layers - 1), max_size=4))
    return scores(blocks), draw(st.integers(0, layers - 1)), protect


@given(cases())
def test_block_is_the_best_of_all_that_touch_no_protected_layer(
    case: tuple[Scores, int, list[int]],
) -> None:
    measured, drop, protect = case
    layers = measured.base.layers
    away = {layer if layer >= 0 else layers + layer for layer in protect}
    possible = {}
    for start in range(layers - drop + 1):
        block = tuple(range(start, start + drop))
        if drop and not away & set(block):
            if drop in measured.blocks:
                possible[block] = measured.blocks[drop][start]
            else:
                possible[block] = sum(measured.blocks[1][layer] for layer in block)
    if drop == 0:
        assert choose(measured, drop=0, protect=protect).dropped == ()
    elif not possible:
        with pytest.raises(InputError):
            choose(measured, drop=drop, protect=protect)
    else:
        dropped = choose(measured, drop=drop, protect=protect).dropped
        lowest = min(possible.values())
        assert dropped == next(block for block, value in possible.items() if value == lowest)


@given(cases())
def test_lowest_leaves_nothing_lower_behind(case: tuple[Scores, int, list[int]]) -> None:
    measured, drop, protect = case
    layers = measured.base.layers
    away = {layer if layer >= 0 else layers + layer for layer in protect}
    if drop > layers - len(away):
        with pytest.raises(InputError):
            choose(measured, drop=drop, chooser="lowest", protect=protect)
        return
    plan = choose(measured, drop=drop, chooser="lowest", protect=protect)
    assert len(set(plan.dropped)) == drop
    assert not away & set(plan.dropped)
    stay = set(range(layers)) - away - set(plan.dropped)
    for gone in plan.dropped:
        for left in stay:
            assert (measured.layers[gone], gone) < (measured.layers[left], left)


@pytest.mark.parametrize("chooser", ["block", "lowest"])
def test_protected_layers_are_never_removed_when_too_many_are_asked_for(chooser: str) -> None:
    """PruneGPT and Shortened-LLM went on into the protected layers when the others ran out."""
    measured = scores([0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    plan = choose(measured, drop=3, chooser=chooser, protect=[0, 1, -1])
    assert plan.dropped == (2, 3, 4)
    with pytest.raises(InputError, match="3 of 6 are protected, which leaves 3"):
        choose(measured, drop=4, chooser=chooser, protect=[0, 1, -1])
    with pytest.raises(InputError, match="6 of 6 are protected"):
        choose(measured, drop=1, chooser=chooser, protect=range(6))


def test_a_block_that_would_have_to_cross_a_protected_layer_is_an_error() -> None:
    measured = scores([0.1] * 7)
    assert choose(measured, drop=3, protect=[3]).dropped == (0, 1, 2)
    with pytest.raises(InputError, match="no block of 4 layers avoids the protected layers 3;"):
        choose(measured, drop=4, protect=[3])
    assert choose(measured, drop=4, protect=[3], chooser="lowest").dropped == (0, 1, 2, 4)


def test_block_of_n_is_scored_over_n_layers() -> None:
    """short-transformers and LLM-Drop compared the states around n - 1 or n + 1 layers."""
    torch = pytest.importorskip("torch")
    from prunekit.criteria.angular import Angular

    turns = [0.30, 0.05, 0.20, -0.20, 0.10, 0.02]  # of pi, by each layer
    criterion = Angular()
    criterion.begin(layers=6, seed=0)
    angle = 0.0
    for layer, turn in enumerate(turns):
        entering = torch.tensor([[[math.cos(angle), math.sin(angle)]]])
        angle += turn * math.pi
        leaving = torch.tensor([[[math.cos(angle), math.sin(angle)]]])
        criterion.see(layer, 0, entering, leaving)
    measured = scores(criterion.blocks())
    for length in range(1, 7):
        by_hand = [abs(sum(turns[start : start + length])) for start in range(7 - length)]
        assert measured.block(length) == pytest.approx(by_hand, abs=1e-3)
    # Layers 2 and 3 undo each other: the best two of all, though neither is a good single layer.
    assert choose(measured, drop=2).dropped == (2, 3)
    assert choose(measured, drop=2, chooser="lowest").dropped == (1, 5)


def test_block_reaches_both_ends_of_the_model() -> None:
    assert choose(scores([1.0, 1.0, 9.0, 9.0, 9.0]), drop=2).dropped == (0, 1)
    assert choose(scores([9.0, 9.0, 9.0, 1.0, 1.0]), drop=2).dropped == (3, 4)
    assert choose(scores([9.0, 1.0, 1.0, 1.0, 1.0]), drop=4).dropped == (1, 2, 3, 4)


def test_lowest_by_hand() -> None:
    measured = scores([0.9, 0.2, 0.5, 0.1, 0.3])
    plan = choose(measured, drop=3, chooser="lowest")
    assert plan.dropped == (1, 3, 4)
    assert plan.made_by["layers_in_order"] == [3, 1, 4]


def test_ties_go_to_the_first() -> None:
    measured = scores([0.5, 0.1, 0.1, 0.1, 0.1])
    assert choose(measured, drop=2).dropped == (1, 2)
    assert choose(measured, drop=2, chooser="lowest").dropped == (1, 2)
    assert choose(measured, drop=2, chooser="lowest", protect=[1]).dropped == (2, 3)


def test_a_negative_protected_layer_counts_from_the_end() -> None:
    assert resolve([0, -1, -2, 7], 8) == {0, 6, 7}
    assert resolve([-8], 8) == {0}
    assert choose(scores([3.0, 2.0, 1.0]), drop=1, protect=[-1]).dropped == (1,)
    for wrong in (8, -9):
        with pytest.raises(InputError, match=f"can't protect layer {wrong}: .*0 to 7"):
            resolve([wrong], 8)


@pytest.mark.parametrize("drop", [-1, 3, 4])
def test_a_number_of_layers_that_cannot_go_is_refused(drop: int) -> None:
    with pytest.raises(InputError, match=f"can't drop {drop} of 3 layers; 0 to 2 are possible"):
        choose(scores([1.0, 2.0, 3.0]), drop=drop)


def test_the_plan_records_how_it_was_made() -> None:
    measured = scores([3.0, 2.0, 1.0])
    plan = choose(measured, drop=1, protect=[-1, 0])
    assert plan.base == measured.base
    assert plan.text == measured.text
    assert plan.made_by == {
        "criterion": "angular",
        "options": {"tokens": "last"},
        "choose": "block",
        "protect": [0, 2],
        "layers_in_order": [1],
    }


PRIVATE = """
from dataclasses import dataclass

@dataclass(frozen=True)
class Fixed:
    first: int = 0
    twice: bool = False

    def choose(self, scores, drop, protected):
        return tuple([self.first] * drop if self.twice else range(self.first, self.first + drop))
"""


def test_a_private_chooser_is_held_to_the_protected_layers(tmp_path: Path) -> None:
    file = tmp_path / "fixed.py"
    file.write_text(PRIVATE)
    measured = scores([1.0, 2.0, 3.0, 4.0])
    plan = choose(measured, drop=2, chooser=str(file), protect=[0], options={"first": "1"})
    assert plan.dropped == (1, 2)
    assert plan.made_by["choose_options"] == {"first": "1"}
    for options in ({}, {"first": 3}, {"first": 1, "twice": True}):
        with pytest.raises(InputError, match="not 2 unprotected layers"):
            choose(measured, drop=2, chooser=str(file), protect=[0], options=options)


def test_an_unknown_chooser_is_named_with_the_nearest() -> None:
    with pytest.raises(InputError, match="no chooser called 'blok'; did you mean 'block'"):
        choose(scores([1.0, 2.0]), drop=1, chooser="blok")


def test_lowest_removes_the_same_layers_and_one_more_when_one_more_is_asked_for() -> None:
    measured = scores([float(value) for value in (5, 1, 4, 2, 3, 0)])
    removed = [set(choose(measured, drop=n, chooser="lowest").dropped) for n in range(6)]
    assert all(fewer < more for fewer, more in pairwise(removed))
