"""MMLU's questions as prompts."""

from pathlib import Path

import pytest

from prunekit.errors import InputError
from prunekit.text.sources import open_source


def test_prompts_in_order_of_subjects(tmp_path: Path) -> None:
    (tmp_path / "b_dev.csv").write_text('Second?,1,2,3,4,B\n"Third, with comma",None,NA,,x,D\n')
    (tmp_path / "a_dev.csv").write_text('"First\nof two lines",w,x,y,z,A\n')
    source = open_source(f"mmlu:{tmp_path}")
    assert source.texts == [
        "First\nof two lines\nA. w\nB. x\nC. y\nD. z\nAnswer:",
        "Second?\nA. 1\nB. 2\nC. 3\nD. 4\nAnswer:",
        # No parser may read None and NA as missing numbers.
        "Third, with comma\nA. None\nB. NA\nC. \nD. x\nAnswer:",
    ]


def test_what_is_no_mmlu(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"subject_split\.csv are expected"):
        open_source(f"mmlu:{tmp_path}")
    (tmp_path / "a_dev.csv").write_text("What?,1,2,A\n")
    with pytest.raises(InputError, match=r"question 1: .* not 4 columns"):
        open_source(f"mmlu:{tmp_path}")


def test_real_questions(shared: Path) -> None:
    texts = open_source(f"mmlu:{shared / 'mmlu/dev'}").texts
    assert len(texts) == 285
    assert all(text.endswith("\nAnswer:") for text in texts)
