"""What healing gives back, for the tokens, the time and the memory that it takes.

    python benchmarks/healing.py MODEL [FOLDED] [--dense demo] [--tokens 250000,1000000]
        [--ways lora,full] [--losses both] [--jobs 1] [--log healing.jsonl]

MODEL was pruned, and FOLDED is the same cut folded (`prunekit fold`); both are healed.

Every way to heal runs in a process of its own, so that its peak memory is its own; what the log
holds already is not run again. Lost nats are those between the dense model and the pruned one on
the test text; recovered is the share of them that the healed model has no more.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from machine import environment, table

import prunekit

# The rates are the best of a few tried for each way on the demo model (120,000 tokens); models
# that are wider take lower ones.
WAYS = {
    "block": {"how": "block", "rate": 3e-3},
    "lora-qv": {"how": "lora", "options": {"targets": "q_proj,v_proj"}, "rate": 1e-2},
    "lora": {"how": "lora", "rate": 3e-3},
    "full": {"how": "full", "rate": 5e-4},
    "last": {"how": "last", "rate": 5e-4},
    "seam": {"how": "seam", "rate": 3e-3},
}
LOSSES = {
    "language": {"language": 1.0},
    "logits": {"logits": 1.0},
    "both": {"language": 1.0, "logits": 1.0},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--dense", default="demo")
    parser.add_argument("--tokens", default="250000")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--losses", default=",".join(LOSSES))
    parser.add_argument("--text", default="stdlib/train")
    parser.add_argument("--test", default="stdlib/test")
    parser.add_argument("--test-samples", type=int, default=64)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--log", type=Path, default=Path("healing.jsonl"))
    parser.add_argument("--case", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.case:
        print(json.dumps(run(asked, json.loads(asked.case))))
        return
    known = {}
    if asked.log.is_file():
        for line in asked.log.read_text("utf-8").splitlines():
            record = json.loads(line)
            known[json.dumps(record["case"])] = record
    wanted = [case for case in cases(asked) if json.dumps(case) not in known]
    with ThreadPoolExecutor(asked.jobs) as pool:
        for record in pool.map(alone, wanted):
            known[json.dumps(record["case"])] = record
            with asked.log.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
    show(asked, [known[json.dumps(case)] for case in cases(asked)])


def cases(asked: argparse.Namespace) -> list[dict]:
    """Everything to run: the two models as they are, and each way with each loss."""
    fixed = {
        key: getattr(asked, key) for key in ("text", "test", "test_samples", "length", "batch")
    }
    bare = [{"way": "dense", "model": asked.dense}]
    bare += [{"way": "nothing", "model": model} for model in asked.models]
    healed = [
        {"way": way, "model": model, "loss": loss, "tokens": tokens, "losses": weights, **WAYS[way]}
        for tokens in map(int, asked.tokens.split(","))
        for model in asked.models
        for way in asked.ways.split(",")
        for loss, weights in ({"mse": {"mse": 1.0}, **LOSSES} if way == "block" else LOSSES).items()
        if loss in asked.losses.split(",") or loss == "mse"
    ]
    return [{**case, **fixed} for case in [*bare, *healed]]


def alone(case: dict) -> dict:
    command = [sys.executable, __file__, case["model"], "--case", json.dumps(case)]
    ended = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return {"case": case, **json.loads(ended.stdout.splitlines()[-1])}


def run(asked: argparse.Namespace, case: dict) -> dict:
    """Heal if that is the way, and measure."""
    facts = {}
    with tempfile.TemporaryDirectory() as folder:
        model = case["model"]
        if "losses" in case:
            healed = prunekit.heal(
                model, Path(folder, "healed"), how=case["how"], options=case.get("options"),
                losses=case["losses"], rate=case["rate"], tokens=case["tokens"],
                text=case["text"], length=case["length"], batch=case["batch"], evaluations=5,
            )  # fmt: skip
            model = healed.folder
            facts = {
                "trained": healed.trained,
                "tokens_per_second": healed.history.tokens_per_second,
                "best_step": healed.history.best_step,
                "steps": healed.history.steps,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        (results,) = prunekit.evaluate(
            [model], text=case["test"], samples=case["test_samples"], length=case["length"]
        )
    return {"loss": results.perplexity.loss, **facts}


def show(asked: argparse.Namespace, records: list[dict]) -> None:
    dense, pruned = records[:2]
    print(environment())
    print(f"test perplexity: {asked.dense} {math.exp(dense['loss']):.3f}\n")
    rows = []
    for record in records[1:]:
        case = record["case"]
        lost = (record["loss"] - dense["loss"]) / (pruned["loss"] - dense["loss"])
        cells = ["-"] * 5 + [f"{math.exp(record['loss']):.3f}", f"{1 - lost:.1%}", "-", "-"]
        if "trained" in record:
            cells[:5] = [f"{case['tokens'] / 1e6:g} M", case["way"], case["loss"],
                         f"{case['rate']:g}", f"{record['trained'] / 1e6:.2f} M"]  # fmt: skip
            cells[7:] = [f"{record['tokens_per_second']:,.0f}", f"{record['peak'] / 2**20:,.0f}"]
        rows.append([Path(case["model"]).name, *cells])
    print(table(["model", "tokens", "trained", "loss", "rate", "weights", "test perplexity",
                 "recovered", "tok/s", "peak MiB"], rows))  # fmt: skip


if __name__ == "__main__":
    main()
