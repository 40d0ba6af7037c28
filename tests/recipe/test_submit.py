"""A recipe sent as a job: here to this machine, which submitit calls local."""

import json
import time
from pathlib import Path

import pytest

from prunekit.errors import InputError
from prunekit.recipe.submit import submit
from prunekit.verbs.fetch import fetch


def test_a_job_runs_the_recipe(tiny_llama: Path, words: tuple[Path, Path], tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    file = tmp_path / "study.yaml"
    file.write_text(
        f"model: {tiny_llama}\nlength: 16\ntext: {{calibrate: {words[0]}, test: {words[1]}}}\n"
        "steps:\n- prune: {drop: 1}\n"
    )
    job = submit(str(file), tmp_path / "run", changes=["prune.drop=2"], cluster="local",
                 settings={"timeout_min": 5})  # fmt: skip
    assert job
    results = tmp_path / "run" / "results.json"
    for _ in range(600):
        if results.is_file():
            break
        time.sleep(0.1)
    (record,) = json.loads(results.read_text())
    assert len(record["removed"]) == 2


def test_what_can_not_be_sent_is_refused(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    with pytest.raises(InputError, match="no recipe called 'mkaa'"):
        submit("mkaa", tmp_path / "run")
    with pytest.raises(InputError, match="slurm does not take the job"):
        submit("mka", tmp_path / "run")


def test_fetched_is_what_opens(tiny_llama: Path, words: tuple[Path, Path]) -> None:
    fetched = fetch(str(tiny_llama), [str(words[0])])
    assert fetched.bytes > 100_000
    assert fetched.tokens == {str(words[0]): 2000}
    with pytest.raises(InputError):
        fetch(str(tiny_llama), ["gone.txt"])
