"""How much memory there is, and a scratch folder for states that do not fit."""

import os
import re
import tempfile
from pathlib import Path
from types import TracebackType

import torch

from prunekit.errors import InputError

UNITS = {"": 1, "b": 1, **{f"{k}b": 1000**n for n, k in enumerate("kmgt", 1)},
         **{f"{k}ib": 1024**n for n, k in enumerate("kmgt", 1)}}  # fmt: skip


def parse_size(text: str) -> int:
    """Bytes of `8GiB` (2^30), `5GB` (10^9), `500 MB` or a plain number. Raises InputError."""
    match = re.fullmatch(r"\s*([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([A-Za-z]*)\s*", text)
    size = int(float(match[1]) * UNITS.get(match[2].lower(), 0)) if match else 0
    if size < 1:
        raise InputError(f"no size {text!r}: give one such as 8GiB, 5GB or 500MB")
    return size


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on a device; in RAM, within this process's control groups."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = [_available(), *_left_in_groups()]
    return min(size for size in free if size is not None) if any(free) else 2**62


class Scratch:
    """A temporary folder that states are written to and mapped from.

    A state's file loses its name at once, so its room is given back with the last use of the
    state, or when the process ends, however it ends.
    """

    def __init__(self, parent: Path) -> None:
        self.parent = parent

    def __enter__(self) -> "Scratch":
        try:
            self.folder = tempfile.TemporaryDirectory(prefix="prunekit-", dir=self.parent)
        except OSError as error:
            raise self._refused(error) from None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.folder.cleanup()

    def keep(self, state: torch.Tensor) -> torch.Tensor:
        """The same state, mapped from a file and no longer in memory. Raises InputError if it
        can't be written."""
        file = Path(self.folder.name) / "state"
        try:
            state.contiguous().view(-1).view(torch.uint8).numpy().tofile(file)
            raw = torch.from_file(str(file), False, state.nbytes, dtype=torch.uint8)
            file.unlink()
        except OSError as error:
            raise self._refused(error) from None
        return raw.view(state.dtype).view(state.shape)

    def _refused(self, error: OSError) -> InputError:
        return InputError(
            f"can't write states to the scratch folder {str(self.parent)!r}: "
            f"{error.strerror or 'is the disk full?'}; "
            "give another folder (--scratch) or more memory (--memory)"
        )


def _available() -> int | None:
    match = re.search(r"MemAvailable:\s+(\d+) kB", _text("/proc/meminfo"))
    if match:
        return int(match[1]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return None


def _left_in_groups() -> list[int]:
    """What the limits of this process's control groups (a SLURM job's, a container's) leave."""
    left = []
    for line in _text("/proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        old = "memory" in controllers.split(",")
        if controllers and not old:
            continue
        root = Path("/sys/fs/cgroup/memory" if old else "/sys/fs/cgroup")
        limit_name, used_name = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes") if old
            else ("memory.max", "memory.current")
        )  # fmt: skip
        group = root / path.lstrip("/")
        while group.is_relative_to(root):
            limit, used = _text(group / limit_name).strip(), _text(group / used_name).strip()
            # Cached files count as used until the room is wanted.
            cached = re.search(
                r"^(?:total_)?inactive_file (\d+)", _text(group / "memory.stat"), re.M
            )
            if limit.isdecimal() and used.isdecimal():
                left.append(int(limit) - int(used) + (int(cached[1]) if cached else 0))
            group = group.parent
    return left


def _text(file: str | Path) -> str:
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
