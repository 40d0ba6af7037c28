"""Writes safetensors checkpoints by copying byte ranges: no tensor is decoded that does not change.

Every output file is written whole beside its final name; `whole_folder` makes a folder appear only
when all of it is there.
"""

import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prunekit.errors import InputError
from prunekit.model.checkpoint import INDEX
from prunekit.model.tensors import Tensor

COPY = 64 * 2**20  # bytes copied by one system call: progress and interrupts get their turn


@dataclass(frozen=True)
class Part:
    """A tensor to write: its new name and shape, and where its bytes come from."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Tensor
    content: bytes | None = None  # bytes that take the place of the source's

    @property
    def bytes(self) -> int:
        return self.source.bytes if self.content is None else len(self.content)


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A scratch folder beside `out` that takes its name when the block ends without an error.

    Raises InputError if `out` exists or can't be made.
    """
    refuse_existing(out)
    scratch = out.absolute().parent / f".{out.name}.partial"
    try:
        shutil.rmtree(scratch, ignore_errors=True)  # what a killed run left
        scratch.mkdir(parents=True)
        yield scratch
        refuse_existing(out)
        scratch.rename(out)
    except OSError as error:
        raise InputError(
            f"can't write {str(out)!r}: {error.strerror or error}; nothing was left behind"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def refuse_existing(out: Path) -> None:
    """Raises InputError if there is something at `out`: nothing is ever overwritten."""
    if out.exists() or out.is_symlink():
        raise InputError(f"output {str(out)!r} exists; remove it or give another name")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"output {str(out)!r}: can't write in {str(parent)!r}")


def write_shards(folder: Path, shards: Sequence[Sequence[Part]]) -> None:
    """Write non-empty shards as model.safetensors, or as numbered files with an index."""
    shards = [shard for shard in shards if shard]
    if len(shards) == 1:
        write_file(folder / "model.safetensors", shards[0])
        return
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        write_file(folder / name, shard)
        weight_map.update({part.name: name for part in shard})
    total = {
        "total_size": sum(part.bytes for shard in shards for part in shard),
        "total_parameters": sum(math.prod(part.shape) for shard in shards for part in shard),
    }
    index = {"metadata": total, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_file(file: Path, parts: Sequence[Part]) -> None:
    """Write one safetensors file: header, then every part's bytes in order."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for part in parts:
        header[part.name] = {
            "dtype": part.dtype,
            "shape": list(part.shape),
            "data_offsets": [end, end + part.bytes],
        }
        end += part.bytes
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # the format asks that the tensors start at a multiple of eight
    with file.open("wb") as target:
        target.write(len(raw).to_bytes(8, "little") + raw)
        target.flush()
        for part in parts:
            if part.content is None:
                _copy(part.source, target.fileno())
            else:
                target.write(part.content)
                target.flush()
        os.fsync(target.fileno())


def _copy(tensor: Tensor, target: int) -> None:
    with tensor.file.open("rb") as source:
        offset, left = tensor.offset, tensor.bytes
        while left:
            copied = _copy_range(source.fileno(), target, min(left, COPY), offset)
            if not copied:
                raise InputError(f"{tensor.file}: ended early while {tensor.name!r} was copied")
            offset, left = offset + copied, left - copied


def _copy_range(source: int, target: int, count: int, offset: int) -> int:
    """Copy within the kernel where the system can, else through a buffer; bytes copied."""
    if hasattr(os, "copy_file_range"):
        try:
            return os.copy_file_range(source, target, count, offset_src=offset)
        except OSError:
            pass  # another file system, or one without the call: the plain way says what is wrong
    return os.write(target, os.pread(source, count, offset))
