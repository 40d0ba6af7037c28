"""Plans: what a person may write, what comes back from YAML, and what is refused."""

import math
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import InputError
from prunekit.model.units import blocks, runs
from prunekit.plan.edits import Drop, Edit, Merge, Mute, parse_layers
from prunekit.plan.plan import Plan, read_plan
from prunekit.plan.scores import Base

BASE = Base("org/model", "llama", 32, "0123456789abcdef" * 4)
PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
MAPPINGS = st.dictionaries(st.text(), PLAIN, max_size=4)
DIGESTS = st.text("0123456789abcdef", min_size=1) | st.text("0123456789e:._+-")
BASES = st.builds(Base, st.text(), st.text(), st.integers(1, 200), DIGESTS)
LAYERS = st.sets(st.integers(0, 199))
SORTED = LAYERS.map(sorted).map(tuple)
FOLDS = st.lists(st.tuples(st.integers(0, 199), st.floats(0, 1)), max_size=5)
EDITS = (
    st.builds(Drop, SORTED)
    | st.builds(Mute, SORTED, SORTED)
    | st.builds(
        lambda into, folds, norms: Merge(
            into, tuple(layer for layer, _ in folds), tuple(weight for _, weight in folds), norms
        ),
        st.integers(0, 199),
        FOLDS,
        st.sampled_from(["interpolate", "keep"]),
    )
)


def read(text: str, folder: Path, layers: int | None = None) -> Plan:
    file = folder / "plan.yaml"
    file.write_text(text, encoding="utf-8")
    return read_plan(file, layers)


@given(st.lists(EDITS, max_size=4), st.none() | BASES, MAPPINGS, st.none() | MAPPINGS)
def test_a_plan_comes_back_from_yaml_as_it_was(
    edits: list[Edit], base: Base | None, made_by: dict[str, Any], text: dict[str, Any] | None
) -> None:
    plan = Plan(tuple(edits), base, made_by, text)
    with TemporaryDirectory() as folder:
        file = Path(folder, "plan.yaml")
        plan.write(file)
        assert read_plan(file) == plan


@given(LAYERS)
def test_layers_written_as_blocks_are_the_same_layers(layers: set[int]) -> None:
    assert parse_layers(blocks(sorted(layers)), "here") == tuple(sorted(layers))
    ends = runs(sorted(layers))
    assert [layer for start, end in ends for layer in range(start, end)] == sorted(layers)
    assert all(later > end for (_, end), (later, _) in pairwise(ends))


def test_a_plan_reads_as_a_person_expects() -> None:
    text = Plan((Drop((3, 5, 6, 7, 8)),), BASE).to_yaml()
    assert text.startswith("# A prunekit plan. Layers are counted from 0")
    assert "- drop: [3, '5:9']\n" in text
    assert blocks([0, 1, 5]) == ["0:2", 5]
    mute = Plan((Mute((3, 5, 6, 7, 8), (7,)), Mute(mlp=(9,)))).to_yaml()
    assert "- mute:\n    attention: [3, '5:9']\n    mlp: [7]\n- mute:\n    mlp: [9]\n" in mute
    merge = Plan((Merge(4, (5, 6), (0.62, 0.5)),)).to_yaml()
    assert (
        "- merge:\n    into: 4\n    layers: [5, 6]\n    weights: [0.62, 0.5]\n"
        "    norms: interpolate\n"
    ) in merge


def test_edits_as_a_person_writes_them(tmp_path: Path) -> None:
    text = """
    edits:
    - drop: [1]
    - mute: {attention: [3, "7:9"], mlp: 7}
    - merge: {into: 4, layers: [5, 6], weights: [0.62, 1], norms: keep}
    - merge: {into: 9, layers: 10, weights: 0.5}
    """
    plan = read(text, tmp_path)
    assert plan.edits == (
        Drop((1,)),
        Mute((3, 7, 8), (7,)),
        Merge(4, (5, 6), (0.62, 1.0), "keep"),
        Merge(9, (10,), (0.5,), "interpolate"),
    )
    assert plan.dropped == (1,)
    assert plan.removed == (1, 5, 6, 10)
    assert plan.merges == plan.edits[2:]
    assert plan.muted == ((3, "attention"), (7, "attention"), (7, "mlp"), (8, "attention"))
    assert plan.variant == {
        (1, "layer"), (5, "layer"), (6, "layer"), (10, "layer"),
        (3, "attention"), (7, "attention"), (8, "attention"), (7, "mlp"),
    }  # fmt: skip
    assert plan.kept(12) == [0, 2, 3, 4, 7, 8, 9, 11]


@pytest.mark.parametrize(
    ("written", "layers"),
    [
        ("5", (5,)),
        ("[5, 6]", (5, 6)),
        ("'5:9'", (5, 6, 7, 8)),
        ("[3, '5:7']", (3, 5, 6)),
        ("[]", ()),
        ("\n  - 1\n  - 4:6\n", (1, 4, 5)),
    ],
)
def test_layers_may_be_written_in_many_ways(
    written: str, layers: tuple[int, ...], tmp_path: Path
) -> None:
    assert read(f"edits:\n- drop: {written}\n", tmp_path).dropped == layers


def test_a_block_without_quotes_is_a_block_and_not_a_number_in_base_60(tmp_path: Path) -> None:
    assert read("edits: [{drop: [21:29]}]", tmp_path).dropped == tuple(range(21, 29))
    assert read("edits: [{drop: 21:29}]", tmp_path).dropped == tuple(range(21, 29))


def test_kept_is_what_is_not_dropped() -> None:
    assert Plan((Drop((1, 2)), Drop((4,)))).kept(6) == [0, 3, 5]
    assert Plan(()).kept(2) == [0, 1]


@pytest.mark.parametrize(
    ("drops", "said"),
    [
        ([(1, 1)], "drops layer 1 twice"),
        ([(1,), (2, 1)], "drops layer 1 twice"),
        ([(3,)], "drops layer 3; the model has layers 0 to 2"),
        ([(-1,)], "drops layer -1; the model has layers 0 to 2"),
        ([(0, 1), (2,)], "drops all 3 layers"),
    ],
)
def test_a_plan_that_does_not_fit_the_model_is_refused(
    drops: list[tuple[int, ...]], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        Plan(tuple(map(Drop, drops))).kept(3)


@pytest.mark.parametrize(
    ("edits", "said"),
    [
        ([Drop((1,)), Merge(0, (1,), (0.5,))], "removes layer 1 twice"),
        ([Merge(0, (1, 1), (0.5, 0.5))], "removes layer 1 twice"),
        ([Merge(0, (1,), (0.5,)), Merge(2, (1,), (0.5,))], "removes layer 1 twice"),
        ([Merge(1, (1,), (0.5,))], "merges into layer 1, which it removes"),
        ([Drop((0,)), Merge(0, (1,), (0.5,))], "merges into layer 0, which it removes"),
        ([Merge(0, (1,), (0.5,)), Merge(1, (2,), (0.5,))], "merges into layer 1, which it removes"),
        ([Merge(0, (1,), (1,)), Merge(0, (2,), (1,))], "two merges into layer 0; write them as on"),
        ([Merge(4, (1,), (0.5,))], "merges into layer 4; the model has layers 0 to 3"),
        ([Merge(0, (4,), (0.5,))], "removes layer 4; the model has layers 0 to 3"),
        ([Mute((4,))], "mutes layer 4; the model has layers 0 to 3"),
        ([Mute(mlp=(-1,))], "mutes layer -1; the model has layers 0 to 3"),
        ([Mute((1, 1))], "mutes the attention of layer 1 twice"),
        ([Mute(mlp=(1,)), Mute((1,), (1,))], "mutes the mlp of layer 1 twice"),
        ([Drop((1,)), Mute(mlp=(1,))], "mutes the mlp of layer 1, which it removes"),
        ([Mute((1,)), Merge(0, (1,), (0,))], "mutes the attention of layer 1, which it removes"),
        ([Drop((0, 1)), Merge(4, (2, 3), (0, 0))], "merges into layer 4"),
    ],
)
def test_edits_that_do_not_fit_each_other_are_refused(edits: list[Edit], said: str) -> None:
    with pytest.raises(InputError, match=f"^the plan (has )?{said}") as caught:
        Plan(tuple(edits)).kept(4)
    assert "\n" not in str(caught.value)


def test_a_layer_may_lose_both_halves_and_be_merged_into() -> None:
    plan = Plan((Mute((0, 1), (1,)), Merge(0, (2,), (0.5,))))
    assert plan.kept(3) == [0, 1]


@pytest.mark.parametrize("weight", [-0.1, 1.1, math.nan, math.inf, True, "0.5", None])
def test_a_weight_is_a_number_from_0_to_1(weight: Any) -> None:
    with pytest.raises(InputError, match=r"merge\.weights: .* is not a number from 0 to 1"):
        Merge(0, (1,), (weight,))


def test_a_huge_plan_is_refused_at_once() -> None:
    with pytest.raises(InputError, match="the model has layers 0 to 2"):
        Plan((Drop(tuple(range(300_000))),)).kept(3)
    with pytest.raises(InputError, match="twice"):
        Plan((Drop((1,) * 300_000),)).kept(3)


def test_a_plan_for_another_model_is_refused() -> None:
    other = Base("org/other", "qwen3", 32, "f" * 64)
    assert Plan((Drop((1,)),), BASE).check(BASE) == [0, *range(2, 32)]
    assert Plan((Drop((1,)),)).check(other) == [0, *range(2, 32)]
    moved = Base("/elsewhere/model", "llama", 32, BASE.digest)
    assert Plan((Drop((1,)),), BASE).check(moved) == [0, *range(2, 32)]
    with pytest.raises(InputError, match=r"made for 'org/model'.*not for 'org/other'") as caught:
        Plan((Drop((1,)),), BASE).check(other)
    assert "\n" not in str(caught.value)


BOMB = "\n".join(
    ["made_by:", " a: &a0 [x, x]"]
    + [f" b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 12)]
    + ["edits: [{drop: [*a11]}]"]
)


def merge(
    layers: str = "[5, 6]", weights: str = "[0.5, 0.5]", into: str = "4", norms: str = "keep",
    more: str = "",
) -> str:  # fmt: skip
    keys = f"into: {into}, layers: {layers}, weights: {weights}, norms: {norms}, {more}"
    return f"edits: [drop: 1, merge: {{{keys}}}]"


BAD = [
    ("", "not a plan"),
    ("[1, 2]", "not a plan"),
    ("drop", "not a plan"),
    ("{", "not YAML"),
    ("a: b: c", "not YAML"),
    ("\tedits: []", "not YAML"),
    ("edits: !!python/object/apply:os.system [true]", "not YAML"),
    ("edits: 2001-99-99", "not YAML"),
    ("edits: !!int ''", "not YAML"),
    ("edits: !!bool maybe", "not YAML"),
    ("edits: !!timestamp x", "not YAML"),
    ("[" * 600, "not YAML"),
    ("{}", "`edits` must be a list"),
    ("edits:", "`edits` must be a list"),
    ("edits: {drop: 5}", "`edits` must be a list"),
    ("edits: []\nbasis: 1", "unknown key 'basis'"),
    ("edits: []\n5: 1", "unknown key '5'"),
    (BOMB, "neither a layer"),  # 9 ** 11 letters if it were shown whole
    ("edits: [5]", r"edits\[0\]: one edit"),
    ("edits: [{drop: 1}, {}]", r"edits\[1\]: one edit"),
    ("edits: [{drop: 1, mute: 2}]", r"edits\[0\]: one edit"),
    ("edits: [{melt: 2}]", "no edit called 'melt'; there are: drop, mute, merge"),
    ("edits: [{[drop]: 2}]", "not YAML"),
    ("edits: [{5: 2}]", "no edit called 5"),
    ("edits: [{mute: 2}]", r"edits\[0\].mute: a mapping with attention, mlp is expected"),
    (
        "edits: [{mute: {norm: 2}}]",
        r"edits\[0\].mute: unknown key 'norm'; there are: attention, ml",
    ),
    ("edits: [{mute: {mlp: two}}]", r"edits\[0\].mute.mlp: 'two' is neither a layer"),
    ("edits: [{mute: {mlp: }}]", r"edits\[0\].mute.mlp: None is neither a layer"),
    ("edits: [{merge: [1, 2]}]", r"edits\[0\].merge: a mapping with into, layers, weights, norms"),
    (merge("[5, 6]", more="1: 2"), r"edits\[1\].merge: unknown key '1'"),
    ("edits: [{merge: {into: 1, layers: 2}}]", r"edits\[0\].merge: `weights` is missing"),
    ("edits: [{merge: {layers: 2, weights: 1}}]", r"edits\[0\].merge: `into` is missing"),
    ("edits: [{merge: {into: 1, weights: []}}]", r"edits\[0\].merge: `layers` is missing"),
    (merge(into="[3, 4]"), r"edits\[1\].merge.into: 2 layers; a merge goes into one"),
    (merge(into="[]"), r"edits\[1\].merge.into: 0 layers; a merge goes into one"),
    (merge(into="-1"), r"edits\[1\].merge.into: -1 is neither"),
    (merge("[5, x]"), r"edits\[1\].merge.layers: 'x' is neither"),
    (merge("[5]"), r"edits\[1\].merge.weights: 2 for 1 layers; each layer needs one"),
    (merge(weights="[0.5, 1.5]"), r"edits\[1\].merge.weights: 1.5 is not a number from 0 to 1"),
    (merge(weights="[0.5, .nan]"), r"edits\[1\].merge.weights: nan is not a number"),
    (merge(weights="[0.5, half]"), r"edits\[1\].merge.weights: 'half' is not a number"),
    (merge(weights="[0.5, true]"), r"edits\[1\].merge.weights: True is not a number"),
    (merge(weights=f"[0.5, 1{'0' * 400}]"), r"edits\[1\].merge.weights: 1000.* is not a number"),
    (merge(weights="{5: 0.5}"), r"edits\[1\].merge.weights: a dict is not a number"),
    (merge(norms="drop"), r"edits\[1\].merge.norms: 'drop' is neither interpolate nor keep"),
    (merge(norms="[keep]"), r"edits\[1\].merge.norms: a list is neither"),
    ("edits: [{drop: }]", "None is neither a layer"),
    ("edits: [{drop: five}]", "'five' is neither"),
    ("edits: [{drop: 1.5}]", "1.5 is neither"),
    ("edits: [{drop: true}]", "True is neither"),
    ("edits: [{drop: [[1]]}]", "neither a layer"),
    ("edits: [{drop: 9:5}]", "'9:5' is neither"),
    ("edits: [{drop: '5:5'}]", "'5:5' is neither"),
    ("edits: [{drop: '5:'}]", "neither a layer"),
    ("edits: [{drop: '-3:-1'}]", "neither a layer"),
    ("edits: [{drop: '0:99999999999'}]", "neither a layer"),
    (f"edits: [{{drop: '0:{'9' * 5000}'}}]", "neither a layer"),
    ("edits: [{drop: 010}]", "neither a layer"),
    ("edits: [{drop: {5: 6}}]", "neither a layer"),
    ("edits: []\nbase: m", "`base` must have"),
    ("edits: []\nbase: {name: m}", "`base` must have"),
    ("edits: []\nbase: {name: m, model_type: l, layers: 2, digest: 12}", "`base` must have"),
    ("edits: []\nbase: {name: m, model_type: l, layers: two, digest: a}", "`base` must have"),
    ("edits: []\nbase: {1: 2}", "`base` must have"),
    ("edits: []\nmade_by: me", "`made_by` must be a mapping"),
    ("edits: []\ntext: [1]", "`text` must be a mapping"),
]


@pytest.mark.parametrize(("text", "said"), BAD, ids=range(len(BAD)))
def test_a_bad_file_is_refused_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=said) as caught:
        read(text, tmp_path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 500
    assert "plan.yaml" in str(caught.value)


def test_bytes_that_are_not_text_and_a_missing_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "plan.yaml"
    with pytest.raises(InputError, match=r"can't read plan .*No such file"):
        read_plan(file)
    file.write_bytes(b"\xff\xfe\xfd")
    with pytest.raises(InputError, match="not YAML"):
        read_plan(file)
    with pytest.raises(InputError, match="can't read plan"):
        read_plan(tmp_path)


@given(
    st.text(
        " \n-:[]{},'\"!&*#?|>%0159drop edits base slices mute merge weights\t\x00\x85", max_size=60
    )
)
def test_any_text_at_all_gives_a_plan_or_one_line(text: str) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder, "plan.yaml")
        file.write_text(text, encoding="utf-8")
        try:
            plan = read_plan(file, 8)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017, a plan is as good
        else:
            assert isinstance(plan, Plan)
