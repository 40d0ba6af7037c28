"""Plans: what a person may write, what comes back from YAML, and what is refused."""

from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import InputError
from prunekit.plan.plan import Drop, Plan, blocks, parse_layers, read_plan, runs
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


def read(text: str, folder: Path, layers: int | None = None) -> Plan:
    file = folder / "plan.yaml"
    file.write_text(text, encoding="utf-8")
    return read_plan(file, layers)


@given(st.lists(LAYERS, max_size=3), st.none() | BASES, MAPPINGS, st.none() | MAPPINGS)
def test_a_plan_comes_back_from_yaml_as_it_was(
    drops: list[set[int]], base: Base | None, made_by: dict[str, Any], text: dict[str, Any] | None
) -> None:
    plan = Plan(tuple(Drop(tuple(sorted(drop))) for drop in drops), base, made_by, text)
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
    ("edits: [{mute: 2}]", "no edit called 'mute'"),
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


@given(st.text(" \n-:[]{},'\"!&*#?|>%0159drop edits base slices\t\x00\x85", max_size=60))
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
