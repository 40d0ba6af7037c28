"""Checkpoints appear whole or not at all."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunekit.errors import InputError
from prunekit.model.tensors import read_header
from prunekit.plan.plan import Drop, Plan
from prunekit.surgery import write
from prunekit.surgery.write import Part, whole_folder, write_shards
from prunekit.verbs.cut import cut


@pytest.fixture
def parts(tmp_path: Path) -> list[Part]:
    tensors = {f"t{n}": torch.randn(n + 1, 3).to(torch.bfloat16) for n in range(5)}
    save_file(tensors, tmp_path / "in.safetensors")
    return [
        Part(f"new.{tensor.name}", tensor.dtype, tensor.shape, tensor)
        for tensor in read_header(tmp_path / "in.safetensors")
    ]


def test_what_is_written_is_what_safetensors_reads(parts: list[Part], tmp_path: Path) -> None:
    write_shards(tmp_path, [parts])
    found = load_file(tmp_path / "model.safetensors")
    for name, tensor in load_file(tmp_path / "in.safetensors").items():
        assert torch.equal(found[f"new.{name}"], tensor)


def test_plain_copy_is_the_same_as_the_kernel_s(
    parts: list[Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_shards(tmp_path, [parts])
    first = (tmp_path / "model.safetensors").read_bytes()
    monkeypatch.setattr(write, "COPY", 7)  # in many small pieces
    monkeypatch.delattr(os, "copy_file_range", raising=False)
    write_shards(tmp_path, [parts])
    assert (tmp_path / "model.safetensors").read_bytes() == first


def test_input_that_shrinks_while_it_is_copied(parts: list[Part], tmp_path: Path) -> None:
    os.truncate(tmp_path / "in.safetensors", 200)
    with pytest.raises(InputError, match="ended early"), whole_folder(tmp_path / "out") as folder:
        write_shards(folder, [parts])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["in.safetensors"]


def test_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), whole_folder(tmp_path / "out") as folder:
        (folder / "half").write_text("half")
        raise ZeroDivisionError
    with pytest.raises(InputError, match="No space left"), whole_folder(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_folder_made_meanwhile_is_not_overwritten(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="exists"), whole_folder(tmp_path / "out"):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "mine").write_text("mine")
    assert (tmp_path / "out" / "mine").read_text() == "mine"
    assert len(list(tmp_path.iterdir())) == 1


def test_killed_cut_is_carried_on_by_the_same_command(tiny_llama: Path, tmp_path: Path) -> None:
    """SIGKILL at the first sight of the unfinished folder; the same command then ends as ever."""
    (tmp_path / "plan.yaml").write_text("edits: [{drop: [2, 5]}]")
    command = [sys.executable, "-m", "prunekit", "cut", str(tiny_llama), "plan.yaml", "-o", "out"]
    child = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.DEVNULL)
    partial = tmp_path / ".out.partial"
    while child.poll() is None and not partial.exists():
        time.sleep(0.002)
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert not (tmp_path / "out").exists()
    subprocess.run(command, cwd=tmp_path, check=True, stderr=subprocess.DEVNULL)
    assert not partial.exists()
    undisturbed = cut(tiny_llama, Plan((Drop((2, 5)),)), tmp_path / "again")
    for file in undisturbed.folder.iterdir():
        if file.name != "prunekit.json":
            assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
