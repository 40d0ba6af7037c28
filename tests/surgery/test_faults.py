"""What goes wrong while a checkpoint is cut: one clear line, exit code 2, nothing half-written."""

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tiny import tiny_model

from prunekit.errors import InputError
from prunekit.model.checkpoint import INDEX, Checkpoint
from prunekit.plan.edits import Drop
from prunekit.plan.plan import Plan
from prunekit.surgery.apply import apply
from prunekit.verbs.cut import cut

PLAN = Plan((Drop((2, 5)),))
# The command line, each tensor of which takes its time.
SLOW = """
import time
from prunekit.surgery import write
put = write._put
write._put = lambda *given: (time.sleep(0.1), put(*given))
from prunekit.cli.app import main
main()
"""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 8 layers in several shards. Never write to it."""
    folder = tmp_path_factory.mktemp("models") / "sharded"
    tiny_model("llama").save_pretrained(folder, max_shard_size="60KB")
    return folder


@pytest.fixture
def mine(model: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may break."""
    return shutil.copytree(model, tmp_path / "mine")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a file system in memory with options such as size=1m; its folder."""
    folder = tmp_path / "mounted"
    folder.mkdir()

    def mount(options: str) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", options, "prunekit", str(folder)]
        mounts = shutil.which("mount") is not None
        if not mounts or subprocess.run(command, check=False, capture_output=True).returncode:
            pytest.skip("can't mount a file system here; that takes root")
        return folder

    yield mount
    if folder.is_mount():
        subprocess.run(["umount", str(folder)], check=True)


def command(model: Path, out: Path, *more: str) -> list[str]:
    plan = out.absolute().parent / "plan.yaml"
    if not plan.exists() and os.access(plan.parent, os.W_OK):
        plan = model.parent / "plan.yaml"
    plan.write_text("edits: [{drop: [2, 5]}]")
    return ["cut", str(model), str(plan), "-o", str(out), *more]


def assert_refused(done: subprocess.CompletedProcess[str], said: str, out: Path) -> None:
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("prunekit: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert said in done.stderr
    assert_nothing(out)


def assert_nothing(out: Path) -> None:
    assert not out.exists()
    assert not (out.parent / f".{out.name}.partial").exists()


def last_shard(folder: Path) -> Path:
    return max(folder.glob("*.safetensors"))


def test_shard_that_ends_early(mine: Path, tmp_path: Path) -> None:
    os.truncate(last_shard(mine), last_shard(mine).stat().st_size - 1)
    with pytest.raises(InputError, match=r"of-\d+\.safetensors ends early"):
        cut(mine, PLAN, tmp_path / "out")
    assert_nothing(tmp_path / "out")


@pytest.mark.parametrize("link", [False, True])
def test_shard_that_is_cut_short_after_it_was_opened(
    mine: Path, tmp_path: Path, link: bool
) -> None:
    checkpoint = Checkpoint.open(mine)
    assert checkpoint.digest
    os.truncate(last_shard(mine), last_shard(mine).stat().st_size // 2)
    with pytest.raises(InputError, match=r"ended early while|ends early"):
        apply(PLAN, checkpoint, tmp_path / "out", check=False, link=link)
    assert_nothing(tmp_path / "out")


def test_shard_that_vanishes_after_it_was_opened(mine: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(mine)
    assert checkpoint.digest
    last_shard(mine).unlink()
    with pytest.raises(InputError, match=f"No such file.*{last_shard(mine).name[:6]}"):
        apply(PLAN, checkpoint, tmp_path / "out", check=False)
    assert_nothing(tmp_path / "out")


def test_index_that_names_the_wrong_shard(mine: Path, tmp_path: Path) -> None:
    index = json.loads((mine / INDEX).read_text())
    shards = sorted(set(index["weight_map"].values()))
    name = next(name for name, shard in index["weight_map"].items() if shard == shards[0])
    index["weight_map"][name] = shards[1]
    (mine / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match=f"says '{name}' is in {shards[1]}, and it is not there"):
        cut(mine, PLAN, tmp_path / "out")
    assert_nothing(tmp_path / "out")


@pytest.mark.parametrize("total", [0, 1, 10**15, "a lot", None])
def test_index_with_a_wrong_total_is_mended(
    model: Path, mine: Path, tmp_path: Path, total: object
) -> None:
    """No loader reads the total, and published indices are wrong about it: the headers count."""
    index = json.loads((mine / INDEX).read_text())
    index["metadata"] = {"total_size": total} if total is not None else {}
    (mine / INDEX).write_text(json.dumps(index))
    made = cut(mine, PLAN, tmp_path / "out", check=False)
    written = json.loads((made.folder / INDEX).read_text())
    assert written["metadata"]["total_size"] == made.bytes
    assert written == json.loads(
        (cut(model, PLAN, tmp_path / "right", check=False).folder / INDEX).read_text()
    )


# In the header, in a shard, in a later one.
@pytest.mark.parametrize("most", [100, 50_000, 150_000])
def test_files_may_not_grow(model: Path, tmp_path: Path, most: int) -> None:
    before = {file.name: file.read_bytes() for file in model.iterdir()}
    done = subprocess.run(
        [sys.executable, "-m", "prunekit", *command(model, tmp_path / "out", "--no-check"),
         "--shard-size", "200KB"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (most, most)),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert_refused(done, os.strerror(errno.EFBIG), tmp_path / "out")
    assert {file.name: file.read_bytes() for file in model.iterdir()} == before


def test_disk_that_fills(model: Path, tmp_path: Path, mounted: Callable[[str], Path]) -> None:
    out = mounted("size=128k") / "out"
    done = subprocess.run(
        [sys.executable, "-m", "prunekit", *command(model, out, "--no-check")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert_refused(done, os.strerror(errno.ENOSPC), out)
    assert not list(out.parent.iterdir())


def test_cut_to_another_file_system(
    model: Path, tmp_path: Path, mounted: Callable[[str], Path]
) -> None:
    folder = mounted("size=10m")
    there = cut(model, PLAN, folder / "out", check=False)
    here = cut(model, PLAN, tmp_path / "out", check=False)
    for file in here.folder.iterdir():
        assert (there.folder / file.name).read_bytes() == file.read_bytes()
    with pytest.raises(InputError, match="leave --link away"):
        cut(model, Plan((Drop((7,)),)), folder / "linked", link=True)
    assert_nothing(folder / "linked")


def test_folder_that_cannot_be_written(
    model: Path, tmp_path: Path, mounted: Callable[[str], Path]
) -> None:
    if os.geteuid():
        folder = tmp_path / "locked"
        folder.mkdir(mode=0o555)
    else:  # no mode keeps root out
        folder = mounted("ro")
    with pytest.raises(InputError, match="can't write in"):
        cut(model, PLAN, folder / "out")
    assert_nothing(folder / "out")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupted_copy(model: Path, tmp_path: Path, number: signal.Signals) -> None:
    """Stopped between tensors of a shard; the same command then ends as if it had not been."""
    arguments = command(model, tmp_path / "out", "--no-check")
    child = subprocess.Popen(
        [sys.executable, "-c", SLOW, *arguments], stderr=subprocess.PIPE, text=True
    )
    partial = tmp_path / ".out.partial"
    while child.poll() is None and len(list(partial.glob("*.safetensors"))) < 2:
        time.sleep(0.01)
    child.send_signal(number)
    _, err = child.communicate(timeout=60)
    assert not (tmp_path / "out").exists()
    if number == signal.SIGINT:
        assert child.returncode == 130
        assert err == "prunekit: interrupted; nothing half-written was left behind\n"
        assert_nothing(tmp_path / "out")
    else:
        assert partial.exists()
    again = subprocess.run(
        [sys.executable, "-m", "prunekit", *arguments], capture_output=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert not partial.exists()
    undisturbed = cut(model, PLAN, tmp_path / "undisturbed", check=False)
    for file in undisturbed.folder.iterdir():
        if file.name != "prunekit.json":
            assert (tmp_path / "out" / file.name).read_bytes() == file.read_bytes()
