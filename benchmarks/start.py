"""How long the command line takes to answer when there is nothing to compute.

    python benchmarks/start.py [--turns 9]

Prediction: a bare Python starts in about 0.02 s, typer and rich import in about 0.1 s; torch and
transformers, seconds both, are not imported. `import torch` stands beside for comparison.
"""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from machine import environment, table

PROGRAM = str(Path(sys.executable).with_name("prunekit"))
WAYS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "prunekit --help": [PROGRAM, "--help"],
    "prunekit list criteria": [PROGRAM, "list", "criteria"],
    "python -c 'import torch'": [sys.executable, "-c", "import torch"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--turns", type=int, default=9)
    asked = parser.parse_args()
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(asked.turns + 1):
        for name, command in WAYS.items():  # in turn: A B C A B C
            begin = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    print(environment())
    rows = [
        [name, f"{statistics.median(taken):.3f}", f"{max(taken) / min(taken):.2f}"]
        for name, taken in seconds.items()
    ]
    print(table(["command", "median s", "slowest / fastest"], rows))


if __name__ == "__main__":
    main()
