"""Cutting a big checkpoint, against copying the bytes that stay and against the usual ways.

    python benchmarks/cut.py CHECKPOINT [--drop 8] [--turns 3] [--mergekit mergekit-yaml]

Every way runs in a fresh process, in turn (A B C A B C), on the same disk, which is synced after
each: `s` is until the process ends, `synced` until all is on the disk. Prediction: `cut` moves the
kept bytes once, like `cp`; mergekit and transformers decode and encode tensors too, but write as
many bytes, so where the disk is slower than memory their time is near, and only memory differs.
Peak memory is the process's VmHWM, mapped pages counted, less that of an idle process with the same
imports. mergekit has its own environment: give its command.
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from machine import environment, table

from prunekit.model.checkpoint import Checkpoint
from prunekit.model.family import Family

SLICE = """
import torch, sys
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype="auto")
start, end = int(sys.argv[3]), int(sys.argv[4])
kept = [l for i, l in enumerate(model.model.layers) if not start <= i < end]
model.model.layers = torch.nn.ModuleList(kept)
model.config.num_hidden_layers = len(kept)
model.save_pretrained(sys.argv[2])
"""
CUT = """
import sys
from prunekit.verbs.cut import cut
cut(sys.argv[1], sys.argv[2], sys.argv[3], check=False, link=len(sys.argv) > 4)
"""
PEAK = """
import atexit
def tell():
    import re
    status = open("/proc/self/status").read()
    open({file!r}, "w").write(re.search(r"VmHWM:\\s+(\\d+)", status)[1])
atexit.register(tell)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--drop", type=int, default=8)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--mergekit", help="mergekit-yaml of an environment of its own")
    parser.add_argument("--slice", action="store_true", help="also load + slice + save_pretrained")
    asked = parser.parse_args()
    checkpoint = Checkpoint.open(asked.checkpoint)
    depth = Family.of(checkpoint.config).depth
    end = depth - depth // 8
    start = end - asked.drop
    room = asked.checkpoint.parent / "benchmark-cut"
    shutil.rmtree(room, ignore_errors=True)
    room.mkdir()
    plan, yaml = room / "plan.yaml", room / "mergekit.yaml"
    plan.write_text(f'edits: [{{drop: ["{start}:{end}"]}}]\n')
    yaml.write_text(
        "merge_method: passthrough\ndtype: bfloat16\nslices:\n"
        f"- sources: [{{model: {asked.checkpoint}, layer_range: [0, {start}]}}]\n"
        f"- sources: [{{model: {asked.checkpoint}, layer_range: [{end}, {depth}]}}]\n"
    )
    model, kept = str(asked.checkpoint), room / "kept"
    out = room / "out"
    python = sys.executable
    idle, start_up = peak_of(python, CUT.partition("cut(sys")[0], [], room)
    run([python, "-c", CUT, model, str(plan), str(kept)], room)
    written = sum(file.stat().st_size for file in kept.glob("*.safetensors"))
    ways: dict[str, Callable[[], tuple[float, float]]] = {
        "cp -r of the kept bytes": lambda: (run(["cp", "-r", str(kept), str(out)], room), 0),
        "prunekit cut": lambda: peak_of(python, CUT, [model, str(plan), str(out)], room)[::-1],
        "prunekit cut --link": lambda: peak_of(
            python, CUT, [model, str(plan), str(out), "link"], room
        )[::-1],
    }
    if asked.mergekit:
        ways["mergekit passthrough"] = lambda: run_watched(
            [asked.mergekit, str(yaml), str(out), "--quiet"], room
        )
    if asked.slice:
        ways["load, slice, save_pretrained"] = lambda: peak_of(
            python, SLICE, [model, str(out), str(start), str(end)], room
        )[::-1]
    ended: dict[str, list[float]] = {name: [] for name in ways}
    synced: dict[str, list[float]] = {name: [] for name in ways}
    peaks: dict[str, list[float]] = {name: [] for name in ways}
    fresh: dict[str, int] = {}
    for _ in range(asked.turns):
        for name, way in ways.items():
            shutil.rmtree(out, ignore_errors=True)
            os.sync()
            begin = time.perf_counter()
            seconds, peak = way()
            os.sync()
            synced[name].append(time.perf_counter() - begin)
            ended[name].append(seconds)
            peaks[name].append(peak)
            files = [file.stat() for file in out.glob("*.safetensors")]
            fresh[name] = sum(file.st_size for file in files if file.st_nlink == 1)
    shutil.rmtree(room)
    print(environment())
    print(f"{model}: layers [{start}, {end}) of {depth} off, {written / 2**30:.2f} GiB stay; an "
          f"idle process has {idle / 2**20:.0f} MiB and takes {start_up:.1f} s\n")  # fmt: skip
    print(report(ended, synced, peaks, fresh, idle))


def report(
    ended: dict[str, list[float]],
    synced: dict[str, list[float]],
    peaks: dict[str, list[float]],
    fresh: dict[str, int],
    idle: float,
) -> str:
    first = statistics.median(next(iter(synced.values())))
    rows = []
    for name, seconds in synced.items():
        median = statistics.median(seconds)
        over = (statistics.median(peaks[name]) - idle) / 2**20 if any(peaks[name]) else None
        rows.append([
            name, f"{statistics.median(ended[name]):.1f}", f"{median:.1f}",
            f"{max(seconds) / min(seconds):.2f}", f"{median / first:.2f}",
            f"{fresh[name] / 2**30:.2f}", "" if over is None else f"{over:.0f}",
        ])  # fmt: skip
    heads = ["way", "s", "synced s", "slowest / fastest", "of cp, synced", "GiB written",
             "MiB over idle"]  # fmt: skip
    return table(heads, rows)


def run(command: list[str], room: Path) -> float:
    begin = time.perf_counter()
    with (room / "log").open("w") as log:
        subprocess.run(command, check=True, stdout=log, stderr=log)
    return time.perf_counter() - begin


def peak_of(python: str, script: str, args: list[str], room: Path) -> tuple[float, float]:
    """Peak bytes of a Python process, and its seconds."""
    file = room / "peak"
    seconds = run([python, "-c", PEAK.format(file=str(file)) + script, *args], room)
    return int(file.read_text()) * 1024, seconds


def run_watched(command: list[str], room: Path) -> tuple[float, float]:
    """Seconds of a command, and its peak bytes as seen from outside."""
    begin = time.perf_counter()
    peak = 0
    with (room / "log").open("w") as log, subprocess.Popen(command, stdout=log, stderr=log) as job:
        status = Path(f"/proc/{job.pid}/status")
        while job.poll() is None:
            lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
            peak = max(peak, *(int(line.split()[1]) * 1024 for line in lines), 0)
            time.sleep(0.05)
        if job.returncode:
            raise SystemExit((room / "log").read_text()[-2000:])
    return time.perf_counter() - begin, peak


if __name__ == "__main__":
    main()
