"""Questions of MMLU's CSV files as prompts: question, four choices, `Answer:`; no header, no shots.

Hendrycks et al. 2021, arXiv 2009.03300: a file `subject_split.csv` has no head, and the columns
question, A, B, C, D, answer. MKA calibrates on such prompts.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

from prunekit.errors import InputError

LETTERS = "ABCD"


def prompts(folder: Path) -> Iterator[str]:
    """The prompts of all files of a folder such as mmlu/dev, subjects in order of their names.

    Raises InputError if there is no such file, or a row of another form.
    """
    found = sorted(folder.glob("*_*.csv"))
    if not found:
        raise InputError(f"no MMLU questions in {str(folder)!r}: subject_split.csv are expected")
    for file in found:
        with file.open(encoding="utf-8", newline="") as stream:
            for number, row in enumerate(csv.reader(stream), 1):
                if len(row) != len(LETTERS) + 2 or row[-1] not in LETTERS:
                    raise InputError(
                        f"{file}, question {number}: question, A, B, C, D and the answer's letter "
                        f"are expected, not {len(row)} columns"
                    )
                yield prompt(row[0], row[1:-1])


def prompt(question: str, choices: list[str]) -> str:
    lines = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=True)]
    return "\n".join([question, *lines, "Answer:"])
