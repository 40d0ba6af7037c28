"""Running recipes: done once, carried on, and never silently reused."""

import json
import os
import signal
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from prunekit.errors import InputError
from prunekit.recipe.recipe import read_recipe, shipped
from prunekit.recipe.run import Watching, carry_out, place
from prunekit.verbs.watch import unwatched

RECIPE = """\
model: {model}
text: {{calibrate: {calibrate}, train: {calibrate}, test: {test}}}
length: 16
samples: 8
steps:
  - prune: {{drop: 2}}
  - heal: {{how: full, batch: 4, tokens: 512, rate: 1.0e-3, evaluations: 2}}
  - evaluate: [perplexity]
sweep: {{heal.how: [full, last]}}
"""


class Said:
    def __init__(self) -> None:
        self.lines: list[str] = []

    @property
    def watching(self) -> Watching:
        return Watching(self.lines.append, unwatched, lambda: nullcontext(None))

    @property
    def really_run(self) -> int:
        told = ("done before", "nothing was gained")
        return sum(not any(words in line for words in told) for line in self.lines)


@pytest.fixture
def recipe(tiny_llama: Path, words: tuple[Path, Path], tmp_path: Path) -> Path:
    file = tmp_path / "study.yaml"
    file.write_text(RECIPE.format(model=tiny_llama, calibrate=words[0], test=words[1]))
    return file


def run(recipe: Path, out: Path, **changes: Any) -> tuple[list[dict[str, Any]], int]:
    said = Said()
    records = carry_out(read_recipe(recipe, changes), out, said.watching)
    return records, said.really_run


def test_shared_steps_are_done_once_and_nothing_twice(recipe: Path, tmp_path: Path) -> None:
    records, ran = run(recipe, tmp_path / "run")
    assert (len(records), ran) == (6, 5)  # both variants start from one cut
    results = (tmp_path / "run" / "results.json").read_bytes()
    again, ran = run(recipe, tmp_path / "run")
    assert (again, ran) == (records, 0)
    assert (tmp_path / "run" / "results.json").read_bytes() == results
    last = tmp_path / "run" / records[-1]["step"]
    assert json.loads((last / "results.json").read_text())["result"]["perplexity"]


def test_only_what_depends_on_a_change_runs_anew(
    recipe: Path, words: tuple[Path, Path], tmp_path: Path
) -> None:
    run(recipe, tmp_path / "run")
    assert run(recipe, tmp_path / "run", **{"heal.rate": 2e-3})[1] == 4
    words[1].write_text(words[1].read_text() + "\nw1 w2 w3 w4\n")  # of prune's test, so of all
    assert run(recipe, tmp_path / "run")[1] == 5


def test_a_private_criterion_s_code_counts(recipe: Path, tmp_path: Path) -> None:
    from prunekit import plugins

    file = tmp_path / "mine.py"
    file.write_text((plugins.folder("criteria") / "angular.py").read_text())
    changes = {"prune.criterion": str(file)}
    run(recipe, tmp_path / "run", **changes)
    assert run(recipe, tmp_path / "run", **changes)[1] == 0
    file.write_text(file.read_text() + "\n# changed\n")
    assert run(recipe, tmp_path / "run", **changes)[1] == 5


def test_folders_changed_by_hand_are_not_reused(recipe: Path, tmp_path: Path) -> None:
    records, _ = run(recipe, tmp_path / "run")
    done = tmp_path / "run" / records[0]["step"] / "done.json"
    done.write_text("{}")
    with pytest.raises(InputError, match="changed by hand"):
        run(recipe, tmp_path / "run")


def test_two_processes_do_not_run_into_one_folder(recipe: Path, tmp_path: Path) -> None:
    import fcntl

    (tmp_path / "run").mkdir()
    with (tmp_path / "run" / ".lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_SH)
        with pytest.raises(InputError, match="another process is running into"):
            run(recipe, tmp_path / "run")


def test_a_killed_run_is_carried_on_to_the_same_results(recipe: Path, tmp_path: Path) -> None:
    """Killed outright, at the start of a cut and of a training."""
    whole, _ = run(recipe, tmp_path / "whole")
    command = [sys.executable, "-m", "prunekit", "run", str(recipe), "-o", str(tmp_path / "run")]
    for kind in (b"-prune-", b"-heal-"):
        with subprocess.Popen(command, stderr=subprocess.PIPE, env={**os.environ}) as process:
            assert process.stderr
            for line in process.stderr:
                if kind in line and b"done before" not in line:
                    break
            process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "run" / "results.json").exists()
    records, _ = run(recipe, tmp_path / "run")

    def bare(found: list[dict[str, Any]]) -> str:
        text = json.dumps(found, default=str)
        return text.replace(str(tmp_path / "run"), "RUN").replace(str(tmp_path / "whole"), "RUN")

    assert bare(records) == bare(whole)


def test_a_model_that_is_not_there_leaves_no_folder(recipe: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model 'gone"):
        run(recipe, tmp_path / "run", model="gone/")
    assert not (tmp_path / "run").exists()


def test_places_are_told_without_running(recipe: Path, tmp_path: Path) -> None:
    rows = place(read_recipe(recipe), tmp_path / "run")
    assert [step.done for row in rows for step in row] == [False] * 6
    assert rows[0][0].folder == rows[1][0].folder
    assert not (tmp_path / "run").exists()


SMALL = {
    "text.train": "stdlib/calibrate",
    "text.samples": 6,
    "text.length": 32,
    "text.test_samples": 2,
}
OF_HEALING = {"heal.tokens": 1024, "heal.batch": 4, "heal.length": 32, "heal.evaluations": 1}
OF_SEARCH = {"search.options": {"generations": 1, "offspring": 2}}


@pytest.mark.parametrize("name", list(shipped()))
def test_shipped_recipes_run_on_the_demo_model(name: str, tmp_path: Path) -> None:
    kinds = {step.kind for step in read_recipe(name).variants[0].steps}
    changes = {**SMALL, **(OF_HEALING if "heal" in kinds else {})}
    changes |= OF_SEARCH if "search" in kinds else {}
    said = Said()
    recipe = read_recipe(name, changes)
    records = carry_out(recipe, tmp_path / "run", said.watching)
    for variant in recipe.variants:
        own = [record for record in records if record["set"] == variant.set]
        assert own[-1]["result"]["perplexity"]["perplexity"] > 1
