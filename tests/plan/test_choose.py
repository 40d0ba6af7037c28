"""Choosing: the best block by brute force, the lowest layers by hand, protection always."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import InputError
from prunekit.plan.choose import choose, needs_judge, resolve
from prunekit.plan.edits import Merge, Mute
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


def halved(attention: list[float | None], mlp: list[float | None]) -> Scores:
    layers = len(attention)
    base = Base("org/model", "llama", layers, "ab" * 32)
    halves = {"attention": attention, "mlp": mlp}
    return Scores("cosine", {}, base, {1: [0.0] * layers}, halves=halves)


def test_lowest_halves_by_hand() -> None:
    """LLM-Drop's mlp, attn and all, which ranks both together."""
    measured = halved([0.3, 0.1, None, 0.4], [0.2, 0.5, 0.05, 0.1])
    plan = choose(measured, drop=2, chooser="lowest", unit="attention")
    assert plan.edits == (Mute(attention=(0, 1)),)
    assert choose(measured, drop=2, chooser="lowest", unit="mlp").edits == (Mute(mlp=(2, 3)),)
    plan = choose(measured, drop=4, chooser="lowest", unit="half", protect=[2])
    assert plan.edits == (Mute((0, 1), (0, 3)),)
    assert plan.made_by["units_in_order"] == ["1 attention", "3 mlp", "0 mlp", "0 attention"]
    assert plan.made_by["choose_options"] == {"unit": "half"}
    assert plan.dropped == plan.removed == ()
    assert plan.kept(4) == [0, 1, 2, 3]
    same = choose(measured, drop=4, chooser="lowest", options={"unit": "half"}, protect=[2])
    assert same == plan
    assert choose(measured, drop=0, chooser="lowest", unit="half").edits == ()


def test_halves_that_cannot_go_are_refused_in_one_line() -> None:
    measured = halved([0.3, 0.1, None, 0.4], [0.2, 0.5, 0.05, 0.1])
    assert len(choose(measured, drop=3, chooser="lowest", unit="attention").variant) == 3
    with pytest.raises(InputError, match="can't mute 4 halves; 0 to 3 unprotected are possible"):
        choose(measured, drop=4, chooser="lowest", unit="attention")
    with pytest.raises(InputError, match="can't mute 6 halves; 0 to 5 unprotected"):
        choose(measured, drop=6, chooser="lowest", unit="half", protect=[-1])
    with pytest.raises(InputError, match="'block' takes whole layers only; 'lowest' takes halves"):
        choose(measured, drop=1, chooser="block", unit="half")
    with pytest.raises(InputError, match="takes whole layers only"):
        choose(measured, drop=1, chooser="pairs", options={"unit": "mlp"})
    with pytest.raises(InputError, match="option unit='norm'"):
        choose(measured, drop=1, chooser="lowest", options={"unit": "norm"})
    with pytest.raises(InputError, match="'angular' have none of mlp halves"):
        choose(scores([1.0, 2.0]), drop=1, chooser="lowest", unit="mlp")


def test_blocks_by_hand() -> None:
    row = [9.0, 1.0, 2.0, 9.0, 9.0, 3.0, 3.0, 9.0]
    plan = choose(scores(row), drop=4, chooser="blocks")
    assert plan.dropped == (1, 2, 5, 6)
    assert plan.made_by["layers_in_order"] == [1, 2, 5, 6]
    three = choose(scores(row), drop=3, chooser="blocks", options={"count": "3"})
    assert three.made_by["layers_in_order"] == [1, 2, 5]
    assert choose(scores(row), drop=4, chooser="blocks", protect=[2]).dropped == (0, 1, 5, 6)
    assert choose(scores(row), drop=0, chooser="blocks").dropped == ()


def test_blocks_leave_room_for_the_next() -> None:
    """ReplaceMe's greedy choice takes [1, 3) of four layers, and finds no second block."""
    measured = scores({1: [1.0] * 4, 2: [5.0, 0.0, 5.0]})
    assert choose(measured, drop=2, chooser="block").dropped == (1, 2)
    with pytest.raises(InputError, match="2 blocks of 2 layers don't fit beside the protected"):
        choose(scores([1.0] * 6), drop=4, chooser="blocks", protect=[1, 4])
    five = scores({1: [1.0] * 5, 2: [5.0, 0.0, 5.0, 4.0]})
    assert choose(five, drop=4, chooser="blocks").made_by["layers_in_order"] == [1, 2, 3, 4]
    tight = scores({1: [1.0] * 5, 2: [5.0, 0.0, 5.0, 4.0]})
    assert choose(tight, drop=4, chooser="blocks", protect=[-1]).dropped == (0, 1, 2, 3)


@pytest.mark.parametrize(("drop", "count"), [(3, 2), (4, 3), (1, 2), (2, 0), (2, -1)])
def test_layers_that_are_no_blocks_of_equal_length_are_refused(drop: int, count: int) -> None:
    with pytest.raises(InputError, match=f"can't drop {drop} layers as {count} blocks"):
        choose(scores([1.0] * 9), drop=drop, chooser="blocks", options={"count": count})


@given(cases(), st.integers(1, 3))
def test_blocks_never_overlap_nor_touch_a_protected_layer(
    case: tuple[Scores, int, list[int]], count: int
) -> None:
    measured, drop, protect = case
    try:
        plan = choose(
            measured, drop=drop, chooser="blocks", options={"count": count}, protect=protect
        )
    except InputError:
        return
    order = plan.made_by["layers_in_order"]
    length = drop // count
    assert len(set(order)) == drop
    assert not resolve(protect, measured.base.layers).intersection(order)
    for first in range(0, drop, length or 1):
        block = order[first : first + length]
        assert block == list(range(block[0], block[0] + length))


def test_pairs_by_hand() -> None:
    """MKA: each layer into the nearest one before it that stays, weighed by their similarity."""
    measured = scores([0.0, 0.9, 0.2, 0.25, 0.8, 0.125, 0.7])
    plan = choose(measured, drop=3, chooser="pairs")
    assert plan.edits == (
        Merge(1, (2, 3), (0.8, 0.75), "interpolate"),
        Merge(4, (5,), (0.875,), "interpolate"),
    )
    assert plan.dropped == ()
    assert plan.removed == (2, 3, 5)
    assert plan.kept(7) == [0, 1, 4, 6]
    assert plan.made_by["layers_in_order"] == [2, 3, 5]
    options = {"ratio": "0.5", "norms": "keep"}
    plan = choose(measured, drop=1, chooser="pairs", options=options, protect=[5])
    assert plan.edits == (Merge(1, (2,), (0.5,), "keep"),)
    wild = scores([1.0, -3.0, 9.0, 5.0])
    assert choose(wild, drop=3, chooser="pairs").edits == (Merge(0, (1, 2, 3), (1.0, 0.0, 0.0)),)


def test_layer_0_is_never_merged_away() -> None:
    measured = scores([0.0, 0.5, 0.6])
    assert choose(measured, drop=1, chooser="pairs").removed == (1,)
    assert choose(measured, drop=2, chooser="pairs", protect=[0]).removed == (1, 2)
    with pytest.raises(InputError, match="can't merge 2 layers: only 1 of those after layer 0"):
        choose(measured, drop=2, chooser="pairs", protect=[1])


@pytest.mark.parametrize("ratio", [1.5, -0.1, "nan", "much"])
def test_a_ratio_that_is_no_weight_is_refused(ratio: float | str) -> None:
    with pytest.raises(InputError):
        choose(scores([1.0, 2.0]), drop=1, chooser="pairs", options={"ratio": ratio})


@given(st.lists(st.floats(0, 1), min_size=2, max_size=7), st.data())
def test_the_tail_is_mixed_as_from_the_end(row: list[float], data: st.DataObject) -> None:
    """MKA's order: the last two layers that remain, until enough are gone."""
    drop = data.draw(st.integers(1, len(row) - 1))
    plan = choose(scores(row), drop=drop, chooser="pairs", options={"tail": True})
    (merge,) = plan.merges
    assert merge.into == len(row) - 1 - drop
    assert merge.layers == tuple(range(len(row) - drop, len(row)))
    numbers = [float(10**layer) for layer in range(len(row))]  # what stands for the weights
    mixed = list(numbers)
    for _ in range(drop):
        gone = mixed.pop()
        similarity = 1 - row[len(mixed)]
        mixed[-1] = similarity * mixed[-1] + (1 - similarity) * gone
    folded = numbers[merge.into]
    for layer, weight in zip(merge.layers, merge.weights, strict=True):
        folded = weight * folded + (1 - weight) * numbers[layer]
    assert folded == pytest.approx(mixed[-1])


def test_a_protected_tail_is_refused() -> None:
    with pytest.raises(
        InputError, match="can't merge 2 layers: only 1 of the last 2 layers may go"
    ):
        choose(scores([1.0] * 4), drop=2, chooser="pairs", options={"tail": True}, protect=[-1])


@pytest.mark.parametrize("chooser", ["greedy", "evolve"])
def test_a_chooser_that_needs_the_model_says_so(chooser: str) -> None:
    assert needs_judge(chooser)
    with pytest.raises(InputError, match=f"'{chooser}' needs the model: `prunekit prune` or"):
        choose(scores([1.0, 2.0]), drop=1, chooser=chooser)
    assert not needs_judge("block")


NONSENSE = """
from dataclasses import dataclass
from prunekit.plan.edits import Merge

@dataclass(frozen=True)
class Nonsense:
    def choose(self, scores, drop, protected):
        return [Merge(0, (1,), (0.5,)), 0]
"""


def test_a_private_chooser_may_not_merge_into_what_it_removes(tmp_path: Path) -> None:
    file = tmp_path / "nonsense.py"
    file.write_text(NONSENSE)
    with pytest.raises(InputError, match="merges into layer 0, which it removes"):
        choose(scores([1.0, 2.0, 3.0]), drop=2, chooser=str(file))
    with pytest.raises(InputError, match="not 2 unprotected layers"):
        choose(scores([1.0, 2.0, 3.0]), drop=2, chooser=str(file), protect=[1])
