"""Scores: what is refused, what comes back from a file, and the CSV that PruneMe's readers know."""

import json
import math
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunekit.errors import InputError
from prunekit.plan.scores import Base, Scores, read_scores, to_csv

BASE = Base("org/model", "llama", 3, "ab" * 32)
FINITE = st.floats(allow_nan=False, allow_infinity=False)


def scores(
    blocks: dict[int, list[float]],
    layers: int = 3,
    halves: dict[str, list[float | None]] | None = None,
) -> Scores:
    base = Base("org/model", "llama", layers, "ab" * 32)
    return Scores("angular", {}, base, blocks, halves=halves or {})


@st.composite
def any_scores(draw: st.DrawFn) -> Scores:
    layers = draw(st.integers(1, 6))
    lengths = draw(st.sets(st.integers(2, layers))) if layers > 1 else set()
    blocks = {
        length: draw(st.lists(FINITE, min_size=layers - length + 1, max_size=layers - length + 1))
        for length in {1, *lengths}
    }
    values = st.lists(st.none() | FINITE, min_size=layers, max_size=layers)
    halves = draw(st.dictionaries(st.sampled_from(["attention", "mlp"]), values))
    plain = st.dictionaries(st.text(), st.none() | st.booleans() | FINITE | st.text(), max_size=3)
    return Scores(
        draw(st.text()),
        draw(plain),
        Base(draw(st.text()), draw(st.text()), layers, draw(st.text())),
        blocks,
        draw(st.none() | plain),
        draw(plain),
        halves,
    )


@given(any_scores())
def test_scores_come_back_from_their_file_as_they_were(written: Scores) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder, "scores.json")
        written.write(file)
        assert read_scores(file) == written


def test_a_block_has_its_own_score_if_there_is_one_and_else_the_sum_of_its_layers() -> None:
    measured = scores({1: [1.0, 2.0, 4.0], 2: [0.5, 0.25]})
    assert measured.layers == [1.0, 2.0, 4.0]
    assert measured.block(2) == [0.5, 0.25]
    assert measured.block(3) == [7.0]
    assert scores({1: [1.0, 2.0, 4.0]}).block(2) == [3.0, 6.0]


@pytest.mark.parametrize(
    ("blocks", "said"),
    [
        ({1: [1.0, 2.0]}, "2 values, 3 expected"),
        ({1: [1.0, 2.0, 3.0], 2: [1.0, 2.0, 3.0]}, "blocks of 2: 3 values, 2 expected"),
        ({1: [1.0, math.nan, 3.0]}, r"block \[1, 2\) is nan"),
        ({1: [1.0, 2.0, 3.0], 2: [1.0, -math.inf]}, r"block \[1, 3\) is -inf"),
        ({2: [1.0, 2.0]}, "without blocks of length 1"),
        ({1: [1.0, 2.0, 3.0], 4: []}, "blocks of 4 for 3 layers"),
        ({1: [1.0, 2.0, 3.0], 0: [1.0] * 4}, "blocks of 0 for 3 layers"),
    ],
)
def test_scores_that_do_not_fit_the_model_are_refused(
    blocks: dict[int, list[float]], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        scores(blocks)


def test_units_have_their_scores_and_a_half_that_a_layer_lacks_has_none() -> None:
    measured = scores(
        {1: [1.0, 2.0, 4.0]}, halves={"attention": [0.5, None, 0.25], "mlp": [3.0, 2.0, 1.0]}
    )
    attention = {(0, "attention"): 0.5, (2, "attention"): 0.25}
    mlp = {(0, "mlp"): 3.0, (1, "mlp"): 2.0, (2, "mlp"): 1.0}
    assert measured.of("layer") == {(0, "layer"): 1.0, (1, "layer"): 2.0, (2, "layer"): 4.0}
    assert measured.of("attention") == attention
    assert measured.of("mlp") == mlp
    assert measured.of("half") == attention | mlp
    with pytest.raises(InputError, match="these scores by 'angular' have none of attention halves"):
        scores({1: [1.0, 2.0, 4.0]}, halves={"mlp": [1.0, 1.0, 1.0]}).of("half")


@pytest.mark.parametrize(
    ("halves", "said"),
    [
        ({"norm": [1.0, 2.0, 3.0]}, "scores of 'norm' halves; there are: attention, mlp"),
        ({"mlp": [1.0, 2.0]}, "scores of mlp halves: 2 values for 3 layers"),
        ({"mlp": [1.0, None, math.nan]}, "the score of the mlp of layer 2 is nan"),
        ({"attention": [1.0, math.inf, 2.0]}, "the score of the attention of layer 1 is inf"),
    ],
)
def test_halves_that_do_not_fit_the_model_are_refused(
    halves: dict[str, list[float | None]], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        scores({1: [1.0, 2.0, 3.0]}, halves=halves)


def test_a_file_without_halves_is_written_and_read_as_before(tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    scores({1: [1.0, 2.0, 3.0]}).write(file)
    assert "halves" not in json.loads(file.read_text())
    assert read_scores(file).halves == {}


def test_csv_has_the_columns_of_pruneme_and_exact_numbers() -> None:
    assert to_csv(scores({2: [0.5, 0.25], 1: [0.1, 2.0, 1 / 3]})) == (
        "block_start,block_end,average_distance\n"
        "0,1,0.1\n1,2,2.0\n2,3,0.3333333333333333\n0,2,0.5\n1,3,0.25\n"
    )


def record(**changes: Any) -> dict[str, Any]:
    good: dict[str, Any] = {
        "prunekit_scores": 1,
        "criterion": "angular",
        "options": {},
        "base": {"name": "m", "model_type": "llama", "layers": 2, "digest": "ab"},
        "blocks": {"1": [1.0, 2.0]},
        "text": None,
        "context": {},
    }
    merged = good | changes
    return {key: value for key, value in merged.items() if value is not ...}


def test_the_record_that_the_bad_ones_below_are_made_from_is_good(tmp_path: Path) -> None:
    file = tmp_path / "scores.json"
    file.write_text(json.dumps(record()))
    assert read_scores(file).layers == [1.0, 2.0]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "not a scores file"),
        (b'"text"', "not a scores file"),
        (b"{}", "not a scores file"),
        (record(prunekit_scores=2), "not a scores file that this version reads"),
        (record(base=...), "`base` must have"),
        (record(base=5), "`base` must have"),
        (record(base={"name": "m"}), "`base` must have"),
        (record(base=record()["base"] | {"more": 1}), "`base` must have"),
        (record(base=record()["base"] | {"digest": 12}), "`base` must have"),
        (record(base=record()["base"] | {"layers": True}), "`base` must have"),
        (record(base=record()["base"] | {"layers": "2"}), "`base` must have"),
        (record(base=record()["base"] | {"layers": 0}), "`base` must have"),
        (record(blocks=...), "`blocks` must map"),
        (record(blocks=[1.0, 2.0]), "broken scores file"),
        (record(blocks={"one": [1.0]}), "broken scores file"),
        (record(blocks={"1": 5}), "broken scores file"),
        (record(blocks={"1": [1.0]}), "1 values, 2 expected"),
        (record(blocks={"1": [None, 1.0]}), "broken scores file"),
        (record(blocks={"1": ["x", 1.0]}), "broken scores file"),
        (record(blocks={"1": [10**400, 1.0]}), "broken scores file"),
        (record(blocks={"1": [math.nan, 1.0]}), "must be finite"),
        (record(criterion=...), "criterion"),
        (record(criterion=5), "`criterion` is of the wrong kind"),
        (record(options=[]), "`options` is of the wrong kind"),
        (record(text="wikitext"), "`text` is of the wrong kind"),
        (record(context=None), "`context` is of the wrong kind"),
        (record(extra=1), "extra"),
        (record(halves=[]), "broken scores file"),
        (record(halves={"mlp": 5}), "broken scores file"),
        (record(halves={"mlp": ["x", 1.0]}), "broken scores file"),
        (record(halves={"mlp": [1.0]}), "mlp halves: 1 values for 2 layers"),
        (record(halves={"norm": [1.0, 2.0]}), "scores of 'norm' halves"),
        (record(halves={"mlp": [math.inf, 1.0]}), "must be finite"),
    ],
)
def test_a_broken_file_is_refused_in_one_line(
    content: bytes | dict[str, Any], said: str, tmp_path: Path
) -> None:
    file = tmp_path / "scores.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    with pytest.raises(InputError, match=said) as caught:
        read_scores(file)
    assert "\n" not in str(caught.value)
    assert str(file) in str(caught.value)


def test_a_missing_file_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"can't read scores .*nowhere.json.*No such file"):
        read_scores(tmp_path / "nowhere.json")
