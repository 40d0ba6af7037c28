"""mergekit's passthrough YAML: written, read, and refused where no drop can do it."""

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import InputError
from prunekit.plan.edits import Drop, Edit, Merge, Mute
from prunekit.plan.mergekit import to_mergekit
from prunekit.plan.plan import Plan, read_plan
from prunekit.plan.scores import Base


def base(layers: int, name: str = "org/model") -> Base:
    return Base(name, "llama", layers, "ab" * 32)


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    layers = draw(st.integers(1, 40))
    gone = draw(st.sets(st.integers(0, layers - 1), max_size=layers - 1))
    return Plan((Drop(tuple(sorted(gone))),), base(layers, draw(st.text())))


@given(plans())
def test_a_plan_comes_back_from_mergekit_as_it_was(plan: Plan) -> None:
    assert plan.base is not None
    with TemporaryDirectory() as folder:
        file = Path(folder, "mergekit.yaml")
        file.write_text(to_mergekit(plan), encoding="utf-8")
        back = read_plan(file, plan.base.layers)
    assert back.dropped == plan.dropped
    assert back.kept(plan.base.layers) == plan.kept(plan.base.layers)
    assert back.base is None  # mergekit's file has no digest to tell the model by


def test_the_example_of_pruneme() -> None:
    """PruneMe's README: the block 21 to 28 of 32 layers goes."""
    plan = Plan((Drop(tuple(range(21, 29))),), base(32, "arcee-ai/sec-mistral-7b-instruct-1.6"))
    record = yaml.safe_load(to_mergekit(plan))
    model = "arcee-ai/sec-mistral-7b-instruct-1.6"
    assert record == {
        "slices": [
            {"sources": [{"model": model, "layer_range": [0, 21]}]},
            {"sources": [{"model": model, "layer_range": [29, 32]}]},
        ],
        "merge_method": "passthrough",
        "dtype": "bfloat16",
    }
    assert yaml.safe_load(to_mergekit(plan, dtype="float16"))["dtype"] == "float16"


def test_mergekits_own_way_of_writing_is_read(tmp_path: Path) -> None:
    file = tmp_path / "slice.yaml"
    file.write_text(
        "slices:\n"
        "  - sources:\n      - model: org/model\n        layer_range: [0, 21]\n"
        "  - sources:\n      - model: org/model\n        layer_range: [29,32]\n"
        "merge_method: passthrough\ndtype: bfloat16\n"
    )
    plan = read_plan(file, 32)
    assert plan.dropped == tuple(range(21, 29))
    assert plan.made_by["mergekit"] == "slice.yaml"


def test_a_plan_that_names_no_model_or_drops_everything_is_not_written() -> None:
    with pytest.raises(InputError, match="names no base model"):
        to_mergekit(Plan((Drop((1,)),)))
    with pytest.raises(InputError, match="drops all 2 layers"):
        to_mergekit(Plan((Drop((0, 1)),), base(2)))


@pytest.mark.parametrize(
    ("edit", "name"), [(Mute(mlp=(1,)), "mute"), (Merge(1, (2,), (0.5,)), "merge")]
)
def test_edits_that_passthrough_cannot_make_are_refused(edit: Edit, name: str) -> None:
    with pytest.raises(InputError, match=f"the plan has a `{name}`; mergekit's passthrough can on"):
        to_mergekit(Plan((Drop((0,)), edit), base(4)))


def slices(*ranges: object, more: str = "", model: str = "m") -> str:
    parts = [f"{{sources: [{{model: {model}, layer_range: {r}{more}}}]}}" for r in ranges]
    return f"slices: [{', '.join(parts)}]\n"


TWO_MODELS = slices([0, 2]).strip()[:-1] + ", {sources: [{model: other, layer_range: [2, 4]}]}]"
BAD = [
    (slices([0, 4]) + "merge_method: slerp", "merge_method 'slerp', not passthrough"),
    ("slices:", "every slice must have one source"),
    ("slices: text", "every slice must have one source"),
    ("slices: [{}]", "every slice must have one source"),
    ("slices: [{sources: []}]", "every slice must have one source"),
    (
        "slices: [{sources: [{model: m, layer_range: [0, 2]}, {model: m, layer_range: [0, 2]}]}]",
        "every slice must have one source",
    ),
    ("slices: [{sources: [{layer_range: [0, 2]}]}]", "every slice must have one source"),
    ("slices: [{sources: [{model: m}]}]", "every slice must have one source"),
    (slices([0]), "every slice must have one source"),
    (slices("[0, 1.5]"), "every slice must have one source"),
    (slices("[0, .inf]"), "every slice must have one source"),
    (slices("[0, true]"), "every slice must have one source"),
    (slices("[a, b]"), "every slice must have one source"),
    ("slices: []", "slices of 0 models"),
    (TWO_MODELS, "slices of 2 models"),
    (slices([0, 3], [2, 4]), r"layer_range \[2, 4\] repeats or reorders"),
    (slices([2, 4], [0, 2]), r"layer_range \[0, 2\] repeats or reorders"),
    (slices([0, 4], [0, 4]), r"layer_range \[0, 4\] repeats or reorders"),
    (slices([2, 2]), r"layer_range \[2, 2\] repeats or reorders"),
    (slices([-2, 2]), r"layer_range \[-2, 2\] repeats or reorders"),
    (slices([0, 2], [3, 9]), "ends at 9, the model has 8 layers"),
    (slices([0, 10**12]), "ends at 1000000000000"),
    (slices([0, 4], more=", parameters: {scale: 0}"), "`parameters` change weights"),
    (slices([0, 4]) + "parameters: {scale: 0.5}", "`parameters` change weights"),
]


@pytest.mark.parametrize(("text", "said"), BAD, ids=range(len(BAD)))
def test_what_no_drop_can_do_is_refused_in_one_line(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "mergekit.yaml"
    file.write_text(text)
    with pytest.raises(InputError, match=said) as caught:
        read_plan(file, 8)
    assert "\n" not in str(caught.value)
    assert "mergekit.yaml" in str(caught.value)


def test_without_the_model_the_file_does_not_say_what_goes(tmp_path: Path) -> None:
    file = tmp_path / "mergekit.yaml"
    file.write_text(slices([0, 4]))
    with pytest.raises(InputError, match="does not say how many layers"):
        read_plan(file)
