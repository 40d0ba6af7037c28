"""Writes safetensors checkpoints by copying byte ranges: no tensor is decoded that does not change.

`whole_folder` makes a folder appear only when all of it is there, and on the disk.
"""

import json
import math
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from prunekit.errors import InputError
from prunekit.model.checkpoint import INDEX
from prunekit.model.stream import TORCH
from prunekit.model.tensors import Tensor, read_header

COPY = 64 * 2**20  # bytes copied by one system call: progress and interrupts get their turn
WINDOW = 8 * 2**20  # bytes read at once where only pieces of them are written


@dataclass(frozen=True)
class Part:
    """A tensor to write: its new name and shape, and where its bytes come from.

    `source` is seen as rows of `row` bytes (all of it is one row if None), and of each row the
    byte ranges `kept` are copied (all of it if None). A tensor that changes has `content` instead,
    which gives as many bytes as the source has, when their turn to be written comes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    source: Tensor
    row: int | None = None
    kept: tuple[tuple[int, int], ...] | None = None
    content: Callable[[], bytes] | None = None

    @property
    def bytes(self) -> int:
        if self.kept is None:
            return self.source.bytes
        of_a_row = sum(end - start for start, end in self.kept)
        return of_a_row * (self.source.bytes // (self.row or self.source.bytes))

    @property
    def unchanged(self) -> bool:
        """Whether it stays as it is, under its own name."""
        return self.name == self.source.name and self.kept is None and self.content is None


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A scratch folder beside `out` that takes its name when the block ends without an error and
    all its files are on the disk.

    Raises InputError if `out` exists or can't be made.
    """
    refuse_existing(out)
    scratch = out.absolute().parent / f".{out.name}.partial"
    try:
        shutil.rmtree(scratch, ignore_errors=True)  # what a killed run left
        scratch.mkdir(parents=True)
        yield scratch
        refuse_existing(out)
        _sync(scratch)  # only now, so that the disk is busy while what was written is checked
        scratch.rename(out)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        raise InputError(
            f"can't write {str(out)!r}: {error.strerror or error}{where}; nothing was left behind"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _sync(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as stream:
                os.fsync(stream.fileno())


def refuse_existing(out: Path) -> None:
    """Raises InputError if there is something at `out`: nothing is ever overwritten."""
    if out.exists() or out.is_symlink():
        raise InputError(f"output {str(out)!r} exists; remove it or give another name")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise InputError(f"output {str(out)!r}: can't write in {str(parent)!r}")


def by_file(parts: Sequence[Part]) -> list[list[Part]]:
    """Shards as the input has them."""
    shards: dict[Path, list[Part]] = {}
    for part in parts:
        shards.setdefault(part.source.file, []).append(part)
    return list(shards.values())


def by_size(parts: Sequence[Part], most: int) -> list[list[Part]]:
    """Shards of at most that many bytes of tensors, in order; a larger tensor has its own."""
    shards: list[list[Part]] = []
    room = 0
    for part in parts:
        if part.bytes > room or not shards:
            shards.append([])
            room = most
        shards[-1].append(part)
        room -= part.bytes
    return shards


def write_shards(folder: Path, shards: Sequence[Sequence[Part]], link: bool = False) -> None:
    """Write shards as model.safetensors, or as numbered files with an index.

    With `link`, a shard that holds just what a file of the input does becomes another name of that
    file and is not written. Raises InputError if the system can't link it.
    """
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        if len(shards) == 1:
            name = "model.safetensors"
        if link and (file := _whole_file(shard)):
            _link(file, folder / name)
        else:
            write_file(folder / name, shard)
        weight_map.update({part.name: name for part in shard})
    if len(shards) == 1:
        return
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
    with file.open("wb", buffering=0) as target:
        _write(target.fileno(), len(raw).to_bytes(8, "little") + raw)
        for part in parts:
            _put(part, target.fileno())


def read_tensor(tensor: Tensor) -> torch.Tensor:
    """A tensor of the input, decoded. Raises InputError if its file ends early."""
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.offset)
        raw = bytearray(stream.read(tensor.bytes))
    if len(raw) < tensor.bytes:
        raise InputError(f"{tensor.file}: ended early while {tensor.name!r} was read")
    return torch.frombuffer(raw, dtype=TORCH[tensor.dtype]).view(tensor.shape)


def bytes_of(tensor: torch.Tensor, dtype: str) -> bytes:
    """A tensor's bytes in a dtype of safetensors."""
    stored = tensor.detach().to("cpu", TORCH[dtype]).contiguous()
    return stored.view(-1).view(torch.uint8).numpy().tobytes()


def _whole_file(shard: Sequence[Part]) -> Path | None:
    """The input's file that holds just these tensors, unchanged."""
    files = {part.source.file for part in shard}
    if len(files) > 1 or not all(part.unchanged for part in shard):
        return None
    (file,) = files
    names = {tensor.name for tensor in read_header(file)}
    return file if names == {part.name for part in shard} else None


def _link(file: Path, name: Path) -> None:
    try:
        name.hardlink_to(file.resolve())  # in a hub cache the file is itself a link
    except OSError as error:
        raise InputError(
            f"can't link {file.name} to {str(name.parent.parent)!r} ({error.strerror}): that takes "
            "one file system that has links, and a file of yours; leave --link away"
        ) from None


def _put(part: Part, target: int) -> None:
    if part.content:
        _write(target, part.content())
        return
    tensor = part.source
    row = part.row or tensor.bytes
    with tensor.file.open("rb") as stream:
        source = stream.fileno()
        if part.kept is None:
            _copy(tensor, source, target, 0, tensor.bytes)
        elif row < WINDOW:
            _copy_pieces(tensor, source, target, row, part.kept)
        else:
            for start in range(0, tensor.bytes, row):
                for first, end in part.kept:
                    _copy(tensor, source, target, start + first, end - first)


def _copy(tensor: Tensor, source: int, target: int, start: int, count: int) -> None:
    offset = tensor.offset + start
    while count:
        copied = _copy_some(source, target, min(count, COPY), offset)
        if not copied:
            raise _ended(tensor)
        offset, count = offset + copied, count - copied


def _copy_some(source: int, target: int, count: int, offset: int) -> int:
    """Copy up to `count` bytes by the quickest way that the file systems have; bytes copied."""
    with suppress(OSError, AttributeError):
        if copied := os.copy_file_range(source, target, count, offset_src=offset):
            return copied
    with suppress(OSError):
        if copied := os.sendfile(target, source, offset, count):
            return copied
    return os.write(target, os.pread(source, count, offset))  # or the error that there is


def _copy_pieces(
    tensor: Tensor, source: int, target: int, row: int, kept: tuple[tuple[int, int], ...]
) -> None:
    """Copy ranges of short rows: a call for each would cost more than to read what is left out."""
    step = WINDOW // row * row
    for start in range(0, tensor.bytes, step):
        count = min(step, tensor.bytes - start)
        window = os.pread(source, count, tensor.offset + start)
        if len(window) < count:
            raise _ended(tensor)
        rows = range(0, count, row)
        _write(
            target, b"".join(window[at + first : at + end] for at in rows for first, end in kept)
        )


def _write(target: int, content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[os.write(target, view) :]


def _ended(tensor: Tensor) -> InputError:
    return InputError(f"{tensor.file}: ended early while {tensor.name!r} was copied")
