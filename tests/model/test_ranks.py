"""Several processes share a text: the same numbers, said once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

COMMON = ["demo", "--samples", "5", "--length", "64", "--batch", "1"]


def prunekit(*args: str, processes: int = 1) -> subprocess.CompletedProcess[str]:
    launcher = [] if processes == 1 else [
        "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes),
        "--no-python", sys.executable,
    ]  # fmt: skip
    return subprocess.run(
        [sys.executable, *launcher, "-m", "prunekit", *args],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, timeout=120,
        check=False,
    )  # fmt: skip


def test_scores_of_two_processes_equal_those_of_one(tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone.json", tmp_path / "shared.json"
    options = [*COMMON, "-O", "tokens=all"]
    assert prunekit("score", *options, "-o", str(alone)).returncode == 0
    done = prunekit("score", *options, "-o", str(shared), processes=2)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("angular of demo") == 1
    one, two = (json.loads(file.read_text()) for file in (alone, shared))
    assert two["context"]["processes"] == 2
    assert "processes" not in one["context"]
    for length, row in one["blocks"].items():
        assert two["blocks"][length] == pytest.approx(row, abs=1e-12)
    assert one["text"] == two["text"]


def test_perplexity_of_two_processes_equals_that_of_one() -> None:
    one, two = (
        json.loads(prunekit("evaluate", *COMMON, "--json", processes=n).stdout)[0]["perplexity"]
        for n in (1, 2)
    )
    assert two["predicted"] == one["predicted"] == 5 * 63
    assert two["loss"] == pytest.approx(one["loss"], abs=1e-12)


def test_what_can_not_be_shared_says_so(tmp_path: Path) -> None:
    plan = tmp_path / "plan.yaml"
    plan.write_text("edits: [{drop: [3]}]\n")
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "0"}
    done = subprocess.run(
        [sys.executable, "-m", "prunekit", "cut", "demo", str(plan), "-o", str(tmp_path / "out")],
        capture_output=True, text=True, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "2 processes can share `score`, `evaluate`, `heal`" in done.stderr
    assert not (tmp_path / "out").exists()
