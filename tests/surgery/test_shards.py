"""Which files a cut writes: the input's shards, shards of a size, and links to the input's."""

import errno
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model
from transformers import AutoModelForCausalLM

from prunekit.errors import InputError
from prunekit.model.checkpoint import INDEX, Checkpoint
from prunekit.plan.edits import Drop
from prunekit.plan.plan import Plan
from prunekit.verbs.cut import cut

LAST = Plan((Drop((6, 7)),))  # so that the layers before it keep their names


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of 8 layers in several shards. Never write to it."""
    folder = tmp_path_factory.mktemp("models") / "sharded"
    tiny_model("llama").save_pretrained(folder, max_shard_size="60KB")
    return folder


def shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return {name: t for file in shards(folder) for name, t in load_file(file).items()}


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[n], second[n]) for n in first)


@pytest.mark.parametrize("size", [1, "30KB", "100KiB", "1 MB"])
def test_shards_of_a_size(model: Path, tmp_path: Path, size: str | int) -> None:
    as_input = cut(model, LAST, tmp_path / "as input", check=False)
    made = cut(model, LAST, tmp_path / "out", shard_size=size, check=size == "30KB")
    files = shards(made.folder)
    assert same(weights(made.folder), weights(as_input.folder))
    if size == "1 MB":
        assert [file.name for file in files] == ["model.safetensors"]
        assert not (made.folder / INDEX).exists()
        return
    count = len(files)
    assert [file.name for file in files] == [
        f"model-{number:05}-of-{count:05}.safetensors" for number in range(1, count + 1)
    ]
    index = json.loads((made.folder / INDEX).read_text())
    assert index["metadata"]["total_size"] == made.bytes
    assert index["weight_map"] == {name: t.file.name for name, t in made.tensors.items()}
    most = {1: 1, "30KB": 30_000, "100KiB": 102_400}[size]
    for file in files:
        held = [tensor.bytes for tensor in made.tensors.values() if tensor.file == file]
        assert sum(held) <= most or len(held) == 1
    AutoModelForCausalLM.from_pretrained(made.folder)


def test_unchanged_shards_are_linked(model: Path, tmp_path: Path) -> None:
    written = cut(model, LAST, tmp_path / "written", check=False)
    linked = cut(model, LAST, tmp_path / "linked", link=True)
    assert same(weights(linked.folder), weights(written.folder))
    of_input = {file.stat().st_ino: file for file in shards(model)}
    shared = [file for file in shards(linked.folder) if file.stat().st_ino in of_input]
    kept = {name for name, t in weights(model).items() if torch.equal(t, t)} & set(linked.tensors)
    whole = [file for file in shards(model) if set(load_file(file)) <= kept]
    assert [of_input[file.stat().st_ino] for file in shared] == whole
    assert 0 < len(shared) < len(shards(linked.folder))
    fresh = sum(file.stat().st_size for file in shards(linked.folder) if file.stat().st_nlink == 1)
    changed = {file.name for file in shards(linked.folder)} - {file.name for file in shared}
    assert fresh == sum((written.folder / name).stat().st_size for name in changed)
    assert written.folder.stat().st_nlink == 2  # nothing is linked that nobody asked for
    assert all(file.stat().st_nlink == 1 for file in shards(written.folder))


def test_links_lead_past_the_hub_cache_s_own(model: Path, tmp_path: Path) -> None:
    """In a hub cache a model's files are symbolic links to blobs."""
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshot"
    blobs.mkdir()
    snapshot.mkdir()
    for number, file in enumerate(sorted(model.iterdir())):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(blobs / str(number))
    made = cut(snapshot, LAST, tmp_path / "out", link=True, check=False)
    assert same(weights(made.folder), weights(cut(model, LAST, tmp_path / "b").folder))
    assert not any(file.is_symlink() for file in made.folder.iterdir())
    assert {f.stat().st_ino for f in shards(made.folder)} & {
        f.stat().st_ino for f in blobs.iterdir()
    }


def test_link_without_a_change_in_names_links_all_but_what_changes(
    model: Path, tmp_path: Path
) -> None:
    """A shard that loses a tensor, or holds one that is renamed, is written."""
    made = cut(model, Plan((Drop((0,)),)), tmp_path / "out", link=True, check=False)
    base = Checkpoint.open(model)
    of_input = {file.stat().st_ino: file for file in shards(model)}
    for file in shards(made.folder):
        if source := of_input.get(file.stat().st_ino):
            assert not any(
                ".layers." in name for name, t in base.tensors.items() if t.file == source
            )


def test_what_links_cannot_do(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="can't go with --shard-size"):
        cut(model, LAST, tmp_path / "out", link=True, shard_size="1GB")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(InputError, match=r"can't link model-00001.*cross-device.*leave --link"):
        cut(model, LAST, tmp_path / "out", link=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size", ["", "0", "5 XB", "-5GB", "five"])
def test_sizes_that_are_none(model: Path, tmp_path: Path, size: str) -> None:
    with pytest.raises(InputError, match="give one such as"):
        cut(model, LAST, tmp_path / "out", shard_size=size)
    assert not list(tmp_path.iterdir())
