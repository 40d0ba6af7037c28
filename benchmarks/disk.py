"""Walking a model from disk: how much slower than in memory, and how little memory it takes.

    python benchmarks/disk.py speed CHECKPOINT [--length 2048] [--batch 1] [--turns 3]
    python benchmarks/disk.py memory CHECKPOINT... [--length 512] [--samples 2] [--criteria ...]

speed: the decoder of a plain transformers model in memory, without its head, against our walk in
memory and from disk (file cache warm), on the same tokens. Prediction: a layer of P weights costs
2 P operations a token and 2 P bytes (bf16) read, which a thread does while the layer before it
computes; so with T tokens a pass, reading shows only where T < matrix rate / read rate (FLOP/s by
bytes/s), and it takes some of a core from the arithmetic where cores are few.

memory: the peak (VmHWM, mapped pages counted) of a fresh process that scores each checkpoint from
disk by some criteria. Prediction: an idle process, rows of the embedding that the text
uses, two layers, and states; a model of twice the layers adds states of all depths where criteria
hold them, and nothing else.
"""

import argparse
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from machine import environment, table
from transformers import AutoModelForCausalLM

from prunekit.model.checkpoint import Checkpoint
from prunekit.model.load import load

PEAK = """
import re, sys, time
from pathlib import Path
import prunekit
def peak():
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024
import torch, transformers, prunekit.model.load
idle = peak()
samples, length = int(sys.argv[2]), int(sys.argv[3])
begin = time.perf_counter()
scores = prunekit.score(
    Path(sys.argv[1]), criterion=sys.argv[5].split(","), options={"tokens": sys.argv[4]},
    samples=samples, length=length, walk="disk", batch=1,
)
print(idle, peak(), time.perf_counter() - begin, scores[0].context["walk"], sep="|")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("speed", "memory"))
    parser.add_argument("checkpoints", type=Path, nargs="+")
    parser.add_argument("--length", type=int, default=2048)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--criteria", default="angular,cosine", help="two or more")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    print(environment())
    if asked.what == "speed":
        for folder in asked.checkpoints:
            speed(folder, asked)
    else:
        memory(asked.checkpoints, asked.samples, asked.length, asked.criteria)


def speed(folder: Path, asked: argparse.Namespace) -> None:
    checkpoint = Checkpoint.open(folder)
    plain = AutoModelForCausalLM.from_pretrained(folder, dtype=asked.dtype).eval()
    inside = load(checkpoint, walk="memory", dtype=asked.dtype)
    outside = load(checkpoint, walk="disk", dtype=asked.dtype)
    tokens = torch.randint(3, 4000, (asked.batch, asked.length))

    def bare() -> None:
        with torch.no_grad():
            plain.get_decoder()(tokens, use_cache=False)

    ways: dict[str, Callable[[], object]] = {
        "transformers, in memory": bare,
        "walk, in memory": lambda: inside.walk([tokens]),
        "walk, from disk": lambda: outside.walk([tokens]),
        "reading alone": lambda: [None for _ in outside.each_layer()],
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(asked.turns + 1):
        for name, way in ways.items():
            begin = time.perf_counter()
            way()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    assert outside.layers
    read = outside.layers.bytes / statistics.median(seconds["reading alone"])
    print(f"{folder}, {asked.batch} x {asked.length} tokens, {inside.context()['dtype']}; layers "
          f"of {outside.layers.bytes / 2**30:.2f} GiB, read at {read / 1e9:.1f} GB/s; matrices "
          f"multiplied at {matrix_rate(inside.model.dtype) / 1e12:.2f} TFLOP/s\n")  # fmt: skip
    first = statistics.median(seconds["transformers, in memory"])
    rows = []
    for name, taken in seconds.items():
        median = statistics.median(taken)
        rows.append(
            [name, f"{median:.2f}", f"{max(taken) / min(taken):.2f}", f"{median / first:.3f}"]
        )
    print(table(["way", "median s", "slowest / fastest", "ratio"], rows))


def memory(folders: list[Path], samples: int, length: int, criteria: str) -> None:
    rows = []
    for folder in folders:
        size = sum(file.stat().st_size for file in folder.glob("*.safetensors")) / 2**30
        for tokens in ("last", "all"):
            result = subprocess.run(
                [sys.executable, "-c", PEAK, str(folder), str(samples), str(length), tokens,
                 criteria],
                check=True, capture_output=True, text=True, env={**os.environ},
            )  # fmt: skip
            idle, peak, seconds, way = result.stdout.strip().splitlines()[-1].split("|")
            rows.append([
                folder.name, f"{size:.2f}", tokens, f"{float(idle):.0f}", f"{float(peak):.0f}",
                f"{float(seconds):.0f}", way,
            ])  # fmt: skip
    print(f"{samples} samples x {length} tokens, {criteria}\n")
    heads = ["checkpoint", "GiB", "tokens", "idle MiB", "peak MiB", "s", "walk"]
    print(table(heads, rows))


def matrix_rate(dtype: torch.dtype, size: int = 2048) -> float:
    """Operations a second of a square matrix product."""
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    taken = []
    for _ in range(5):
        begin = time.perf_counter()
        a @ b
        taken.append(time.perf_counter() - begin)
    return 2 * size**3 / min(taken)


if __name__ == "__main__":
    main()
