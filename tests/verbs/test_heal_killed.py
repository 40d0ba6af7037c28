"""Several processes that were killed go on as if they had not been; zeros stay with each engine."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunekit.model.checkpoint import Checkpoint
from prunekit.plan.edits import Drop
from prunekit.plan.plan import Plan
from prunekit.surgery.apply import apply

SCRIPT = """
import sys
from prunekit.verbs.heal import heal

model, out, text, shard, last = sys.argv[1:]

def die(step, *_):
    if step == int(last):
        raise MemoryError

heal(model, out, how="full", text=text, shard=shard, length=16, batch=8, tokens=1024, rate=1e-3,
     evaluations=2, weight_decay=0.1, save_every=0 if int(last) else 300, report=die)
"""


@pytest.mark.slow
@pytest.mark.parametrize("shard", ["none", "fsdp", "zero2", "zero3"])
def test_killed_processes_go_on_and_zeros_stay(
    shard: str, tiny_llama: Path, words: tuple[Path, Path], tmp_path: Path
) -> None:
    if shard.startswith("zero"):
        pytest.importorskip("deepspeed")
    pruned = apply(Plan((Drop((3, 4)),)), Checkpoint.open(tiny_llama), tmp_path / "cut").folder
    weights = load_file(pruned / "model.safetensors")
    for name, tensor in weights.items():
        if "layers" in name and tensor.ndim == 2:
            tensor[:, ::2] = 0
    save_file(weights, pruned / "model.safetensors", {"format": "pt"})
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)

    def run(out: str, last: int) -> int:
        return subprocess.run(
            [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node",
             "2", str(script), str(pruned), str(tmp_path / out), str(words[0]), shard, str(last)],
            env={**os.environ, "OMP_NUM_THREADS": "1"}, check=False, capture_output=True,
        ).returncode  # fmt: skip

    assert run("whole", 0) == 0
    assert run("killed", 5) != 0
    assert not (tmp_path / "killed").exists()
    assert run("killed", 0) == 0
    lines = (tmp_path / "killed" / "losses.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "rate" in line] == list(range(1, 9))
    whole, killed = (
        load_file(tmp_path / name / "model.safetensors") for name in ("whole", "killed")
    )
    for name, tensor in whole.items():
        torch.testing.assert_close(killed[name], tensor, rtol=1e-5, atol=1e-7)
        if "layers" in name and tensor.ndim == 2:
            assert torch.equal(tensor == 0, weights[name] == 0)
