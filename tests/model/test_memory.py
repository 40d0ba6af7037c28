"""Sizes, free memory within control groups, and the scratch folder."""

import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from prunekit.errors import InputError
from prunekit.model import memory
from prunekit.model.memory import Scratch, free_memory, parse_size

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("text", "size"),
    [("8GiB", 8 * 2**30), ("5GB", 5 * 10**9), ("500 MB", 5 * 10**8), ("1.5kib", 1536),
     ("4096", 4096), ("7b", 7)],
)  # fmt: skip
def test_sizes(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "8", "GiB", "-1GB", "8 giga", "1e9", "0", "0.1", "nan", "8GiBs"]
)
def test_sizes_that_are_none(text: str) -> None:
    if text == "8":
        assert parse_size(text) == 8
        return
    with pytest.raises(InputError, match="give one such as 8GiB"):
        parse_size(text)


def test_free_memory_respects_a_control_group(monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "/proc/meminfo": "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n",
        "/proc/self/cgroup": "0::/job/step\n",
        "/sys/fs/cgroup/job/step/memory.max": "max\n",
        "/sys/fs/cgroup/job/step/memory.current": "10\n",
        "/sys/fs/cgroup/job/memory.max": "3000000\n",
        "/sys/fs/cgroup/job/memory.current": "1000000\n",
        "/sys/fs/cgroup/job/memory.stat": "anon 5\ninactive_file 500000\n",
    }
    monkeypatch.setattr(memory, "_text", lambda file: files.get(str(file), ""))
    assert free_memory(CPU) == 2_500_000
    files["/sys/fs/cgroup/job/memory.max"] = "max\n"
    assert free_memory(CPU) == 8000 * 1024


def test_free_memory_of_this_machine() -> None:
    assert 2**26 < free_memory(CPU) < 2**50


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_kept_state_is_the_same_and_leaves_nothing(tmp_path: Path, dtype: torch.dtype) -> None:
    state = torch.randn(2, 3, 5).to(dtype)
    with Scratch(tmp_path) as scratch:
        kept = scratch.keep(state.transpose(0, 1))
        assert torch.equal(kept, state.transpose(0, 1))
        (folder,) = tmp_path.iterdir()
        assert not list(folder.iterdir())
    assert torch.equal(kept, state.transpose(0, 1))
    assert not list(tmp_path.iterdir())


def test_a_scratch_folder_that_is_full(tmp_path: Path) -> None:
    """A file may grow to 1 MiB only, as on a full disk: one line, and nothing is left."""
    script = f"""
import resource, signal, torch
from pathlib import Path
from prunekit.errors import InputError
from prunekit.model.memory import Scratch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, ({2**20}, {2**20}))
try:
    with Scratch(Path({str(tmp_path)!r})) as scratch:
        scratch.keep(torch.zeros(2**20))
except InputError as error:
    print(error)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert "can't write states to the scratch folder" in done.stdout
    assert "--scratch" in done.stdout
    assert not list(tmp_path.iterdir())
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 2**20
