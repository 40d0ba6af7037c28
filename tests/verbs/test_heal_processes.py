"""Two processes train as one does: the same loss curve for the same batch, and the same weights."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.plan.edits import Drop
from prunekit.plan.plan import Plan
from prunekit.surgery.apply import apply
from prunekit.verbs.heal import heal

SETTINGS = {"length": 16, "batch": 8, "tokens": 1024, "rate": 1e-3, "evaluations": 2}


@pytest.fixture(scope="module")
def pruned(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("pruned") / "model"
    return apply(Plan((Drop((3, 4)),)), Checkpoint.open(tiny_llama), out).folder


def curve(folder: Path) -> list[float]:
    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    return [line["logits"] for line in lines if "rate" in line] + [
        line["held_out"]["logits"] for line in lines if "held_out" in line
    ]


@pytest.mark.parametrize(
    ("how", "shard"),
    [("lora", "none"), ("full", "fsdp"), ("lora", "fsdp"), ("full", "zero2"), ("lora", "zero3")],
)
def test_two_processes_train_as_one(
    pruned: Path, words: tuple[Path, Path], tmp_path: Path, how: str, shard: str
) -> None:
    if shard.startswith("zero"):
        pytest.importorskip("deepspeed")
    one = heal(pruned, tmp_path / "one", how=how, text=str(words[0]), **SETTINGS)
    flags = [f"--{key}={value}" for key, value in SETTINGS.items()]
    ended = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
         "-m", "prunekit", "heal", str(pruned), "-o", str(tmp_path / "two"), "--how", how,
         "--text", str(words[0]), "--shard", shard, "--processes", "2", *flags],
        capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-2000:]
    assert ended.stdout.count("weights trained on") == 1  # one of them speaks
    assert curve(tmp_path / "two") == pytest.approx(curve(one.folder), rel=1e-4)
    expected, found = (
        load_file(folder / "model.safetensors") for folder in (one.folder, tmp_path / "two")
    )
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-2, atol=1e-4)


def test_fewer_processes_than_asked_for_is_an_error(
    pruned: Path, words: tuple[Path, Path], tmp_path: Path
) -> None:
    """`accelerate launch` on a CPU silently runs one."""
    with pytest.raises(InputError, match=r"2 processes were asked for and 1 came up.*torchrun"):
        heal(pruned, tmp_path / "out", text=str(words[0]), processes=2, **SETTINGS)
    with pytest.raises(InputError, match="shares a model among processes; there is one"):
        heal(pruned, tmp_path / "out", text=str(words[0]), shard="fsdp", **SETTINGS)


def test_a_batch_that_can_not_be_shared_evenly_is_refused(
    pruned: Path, words: tuple[Path, Path], tmp_path: Path
) -> None:
    from prunekit.verbs.heal import _micro

    with pytest.raises(InputError, match="2 processes can't share it evenly"):
        _micro(None, 7, 2, 16)
    with pytest.raises(InputError, match="a process has 4 samples a step"):
        heal(pruned, tmp_path / "out", text=str(words[0]), length=16, batch=4, micro=5)
