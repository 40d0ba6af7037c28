"""Muted halves: zeros that any transformers computes, and that prunekit.load does not.

    python benchmarks/muted.py [--layers 24] [--hidden 1024] [--mute 12] [--device cpu]

Prediction: decoding one token reads every weight that is computed once, so speed follows their
bytes. A Llama's MLP has two thirds to three quarters of a layer's weights; half of the MLPs away is
about a third of the layers' bytes, 1.5 times the speed less what does not depend on weights.
"""

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from machine import environment, table
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from prunekit.measures.latency import decode_speed
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.load import load
from prunekit.plan.edits import Mute
from prunekit.plan.plan import Plan
from prunekit.surgery.apply import apply


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--mute", type=int, default=12, help="so many of each half, in turn")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    config = LlamaConfig(
        hidden_size=asked.hidden, num_hidden_layers=asked.layers, vocab_size=4096,
        intermediate_size=asked.hidden * 11 // 4, num_attention_heads=asked.hidden // 64,
        num_key_value_heads=asked.hidden // 128, dtype=asked.dtype,
    )  # fmt: skip
    halves = {"mlp": Mute(mlp=every(asked)), "attention": Mute(attention=every(asked))}
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).to(getattr(torch, asked.dtype)).save_pretrained(f"{folder}/dense")
        dense = Checkpoint.open(f"{folder}/dense")
        models, names = [load(dense, device=asked.device)], ["dense"]
        for half, edit in halves.items():
            made = apply(Plan((edit,)), dense, Path(folder, half))
            quick = load(made, device=asked.device)
            plain = AutoModelForCausalLM.from_pretrained(made.folder).to(asked.device)
            models += [replace(quick, model=plain), quick]
            names += [f"{asked.mute} {half} halves muted, plain transformers",
                      f"{asked.mute} {half} halves muted, prunekit.load"]  # fmt: skip
        speeds = decode_speed(models)
    print(environment())
    print(vars(asked), "\n")
    rows = [
        [name, f"{speed.tokens_per_second:.1f}", f"{speed.fastest / speed.slowest:.2f}",
         f"{speed.tokens_per_second / speeds[0].tokens_per_second:.3f}"]
        for name, speed in zip(names, speeds, strict=True)
    ]  # fmt: skip
    print(table(["model", "decode tok/s", "fastest / slowest", "ratio"], rows))


def every(asked: argparse.Namespace) -> tuple[int, ...]:
    """So many layers, evenly spread, the last first."""
    step = asked.layers / asked.mute
    return tuple(sorted({asked.layers - 1 - int(number * step) for number in range(asked.mute)}))


if __name__ == "__main__":
    main()
