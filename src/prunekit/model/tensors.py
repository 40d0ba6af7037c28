"""Where each tensor lies on disk: headers of safetensors files, read and checked.

The format (https://huggingface.co/docs/safetensors): eight bytes with the header's length, a JSON
header, then the tensors' bytes without gaps. Nothing here reads a tensor's bytes.
"""

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prunekit.errors import InputError

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "U16": 16, "I16": 16, "U32": 32, "I32": 32, "U64": 64, "I64": 64,
    "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8, "F4": 4,
    "F6_E2M3": 6, "F6_E3M2": 6, "BF16": 16, "F16": 16, "F32": 32, "F64": 64, "C64": 64,
}  # fmt: skip
MAX_HEADER = 100_000_000  # the limit of the reference implementation


@dataclass(frozen=True)
class Tensor:
    """One tensor on disk: `offset` and `bytes` count from the start of `file`."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    file: Path
    offset: int
    bytes: int

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)


def read_header(file: Path) -> list[Tensor]:
    """The tensors of one safetensors file, in the order of their bytes.

    Raises InputError, naming the file, if the header is malformed or its offsets do not cover the
    file exactly.
    """
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(size - 8, MAX_HEADER):
            raise InputError(
                f"{file.name}: not a safetensors file, or cut short "
                f"(header of {length} bytes in a file of {size})"
            )
        raw = stream.read(length)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_twins)
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise InputError(f"{file.name}: broken safetensors header: {error}") from None
    if not isinstance(header, dict):
        raise InputError(f"{file.name}: broken safetensors header: not an object")
    header.pop("__metadata__", None)
    base = 8 + length
    tensors = [_entry(file, name, entry, base) for name, entry in header.items()]
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.bytes))
    end = base
    for tensor in tensors:
        if tensor.offset != end:
            raise InputError(f"{file.name}: tensor {tensor.name!r} overlaps or leaves a gap")
        end += tensor.bytes
    if end != size:
        what = "ends early" if end > size else "has bytes that belong to no tensor"
        raise InputError(f"{file.name} {what}: its header promises {end} bytes, it has {size}")
    return tensors


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    entries = dict(pairs)
    if len(entries) != len(pairs):
        raise ValueError("a name occurs twice")
    return entries


def _entry(file: Path, name: str, entry: Any, base: int) -> Tensor:
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
        whole = all(type(number) is int and number >= 0 for number in (*shape, begin, end))
        right = whole and (end - begin) * 8 == math.prod(shape) * BITS[dtype]
    except (KeyError, TypeError, ValueError):
        right = False
    if not right:
        raise InputError(
            f"{file.name}: broken entry for tensor {name!r}: {str(entry)[:120]} "
            "(unknown dtype, or shape and offsets disagree)"
        )
    return Tensor(name, dtype, tuple(shape), file, base + begin, end - begin)
