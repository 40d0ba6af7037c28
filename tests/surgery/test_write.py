"""Checkpoints appear whole or not at all."""

import errno
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from prunekit.errors import InputError
from prunekit.model.structure import Packed
from prunekit.model.tensors import read_header
from prunekit.surgery import write
from prunekit.surgery.drop import sliced
from prunekit.surgery.write import Part, by_size, whole_folder, write_shards


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


@pytest.mark.parametrize("lacking", [["copy_file_range"], ["copy_file_range", "sendfile"]])
def test_every_way_to_copy_gives_the_same_bytes(
    parts: list[Part], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lacking: list[str]
) -> None:
    def refuse(*_: object, **__: object) -> int:
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    write_shards(tmp_path, [parts])
    first = (tmp_path / "model.safetensors").read_bytes()
    monkeypatch.setattr(write, "COPY", 7)  # in many small pieces
    for name in lacking:
        monkeypatch.setattr(os, name, refuse)
    write_shards(tmp_path, [parts])
    assert (tmp_path / "model.safetensors").read_bytes() == first


@pytest.mark.parametrize("window", [64, 2**20])  # rows longer than it, and shorter
@pytest.mark.parametrize("axis", [0, 1])
def test_packed_tensors_lose_the_parts_of_dropped_layers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, axis: int, window: int
) -> None:
    monkeypatch.setattr(write, "WINDOW", window)
    whole = torch.randn(12 * (1 + 2 * (axis == 0)), 36).to(torch.bfloat16)  # 12 layers of 3 rows
    save_file({"packed": whole}, tmp_path / "in.safetensors")
    (tensor,) = read_header(tmp_path / "in.safetensors")
    keep = [0, 1, 4, 7, 8, 9]
    write_shards(tmp_path, [[sliced(tensor, Packed("packed", axis, 3), keep)]])
    found = load_file(tmp_path / "model.safetensors")["packed"]
    layers = whole.unflatten(axis, (12, 3)).index_select(axis, torch.tensor(keep))
    assert torch.equal(found, layers.flatten(axis, axis + 1))


def test_packed_tensors_are_not_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write, "WINDOW", 2**18)
    save_file({"packed": torch.zeros(2**18, 64, dtype=torch.uint8)}, tmp_path / "in.safetensors")
    (tensor,) = read_header(tmp_path / "in.safetensors")
    part = sliced(tensor, Packed("packed", 1, 8), [0, 2, 3, 5])
    assert part.bytes == 2**23
    tracemalloc.start()
    write_shards(tmp_path, [[part]])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10 * 2**18  # a window, its pieces and Python's bookkeeping of them


def test_a_tensor_that_changes_brings_its_bytes(parts: list[Part], tmp_path: Path) -> None:
    changed = replace(parts[1], content=lambda: bytes(parts[1].bytes))
    assert not replace(changed, name=changed.source.name).unchanged
    write_shards(tmp_path, [[parts[0], changed, *parts[2:]]])
    found = load_file(tmp_path / "model.safetensors")
    for name, tensor in load_file(tmp_path / "in.safetensors").items():
        wanted = torch.zeros_like(tensor) if f"new.{name}" == changed.name else tensor
        assert torch.equal(found[f"new.{name}"], wanted)


def test_shards_are_filled_in_order(parts: list[Part]) -> None:
    sizes = [6, 12, 18, 24, 30]
    assert [part.bytes for part in parts] == sizes
    for most, wanted in {
        1: [[6], [12], [18], [24], [30]],  # what is larger than a shard has one of its own
        18: [[6, 12], [18], [24], [30]],
        42: [[6, 12, 18], [24], [30]],
        1000: [sizes],
    }.items():
        assert [[part.bytes for part in shard] for shard in by_size(parts, most)] == wanted
    empty = replace(parts[0], source=replace(parts[0].source, bytes=0))
    assert by_size([empty], 1) == [[empty]]


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
