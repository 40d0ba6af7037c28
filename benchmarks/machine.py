"""What every table says of the machine it was measured on, and the table itself."""

import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers


def environment() -> str:
    """Processor, cores, memory and versions, in one line."""
    model = re.search(r"model name\s*: (.+)", _text("/proc/cpuinfo"))
    memory = re.search(r"MemTotal:\s+(\d+)", _text("/proc/meminfo"))
    gib = int(memory[1]) / 2**20 if memory else 0
    return (
        f"{model[1] if model else platform.machine()}, {os.cpu_count()} cores, {gib:.0f} GiB, "
        f"torch {torch.__version__} with {torch.get_num_threads()} threads, "
        f"transformers {transformers.__version__}, Python {platform.python_version()}\n"
    )


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(file: str) -> str:
    return Path(file).read_text(encoding="utf-8") if Path(file).is_file() else ""
