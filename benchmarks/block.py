"""Training a replaced block alone: tokens per second against what it can't do without.

    python benchmarks/block.py [--layers 16] [--hidden 512] [--block 6:11] [--turns 3]

The bound is the teacher's forward to the block's end, no further and without its head, and one
layer forward and backward. Prediction: with e layers to the block's end and a backward of two
forwards, e + 3 layers' forwards a token; states that are kept cost the 3 alone when a sample comes
again.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from machine import environment, table
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from prunekit.healing.block import Blocks, Cache
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.lineage import ancestors, replaced
from prunekit.model.load import load
from prunekit.plan.edits import Replace
from prunekit.plan.plan import Plan
from prunekit.surgery.apply import apply


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--block", default="6:11")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--turns", type=int, default=3)
    asked = parser.parse_args()
    start, end = map(int, asked.block.split(":"))
    config = LlamaConfig(
        hidden_size=asked.hidden, num_hidden_layers=asked.layers, vocab_size=4096,
        intermediate_size=asked.hidden * 11 // 4, num_attention_heads=asked.hidden // 64,
        num_key_value_heads=asked.hidden // 128,
    )  # fmt: skip
    tokens = torch.randint(0, 4096, (asked.batch, asked.length))
    with tempfile.TemporaryDirectory() as folder:
        dense = Path(folder, "dense")
        LlamaForCausalLM(config).save_pretrained(dense)
        AutoTokenizer.from_pretrained(Checkpoint.open("demo").folder).save_pretrained(dense)
        base = Checkpoint.open(dense)
        made = apply(Plan((Replace(tuple(range(start, end))),)), base, Path(folder, "cut"))
        short = LlamaForCausalLM.from_pretrained(dense, num_hidden_layers=end).model.eval()
        short.norm = torch.nn.Identity()
        ways = {
            "bound": bound(short, start, tokens),
            "walked": step(made, base, tokens, "none"),
            "states kept": step(made, base, tokens, "memory"),
        }
        taken: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(asked.turns + 1):
            for name, way in ways.items():
                before = time.perf_counter()
                way()
                if turn:  # the first is to warm up, and to fill what is kept
                    taken[name].append(time.perf_counter() - before)
    print(environment())
    print(vars(asked), "\n")
    first = statistics.median(taken["bound"])
    rows = [
        [name, f"{tokens.numel() / statistics.median(seconds):,.0f}",
         f"{max(seconds) / min(seconds):.2f}", f"{first / statistics.median(seconds):.3f}"]
        for name, seconds in taken.items()
    ]  # fmt: skip
    print(table(["way", "tok/s", "slowest / fastest", "speed over the bound's"], rows))


def bound(short, start, tokens):
    """Bare transformers: forward without gradients, then one layer with them."""
    calls = {}
    layer = short.layers[start]
    layer.register_forward_pre_hook(
        lambda _, args, kwargs: calls.setdefault("call", (args, kwargs)), with_kwargs=True
    )

    def run() -> None:
        calls.clear()
        with torch.no_grad():
            target = short(tokens, use_cache=False).last_hidden_state
        args, kwargs = calls["call"]
        torch.nn.functional.mse_loss(layer(*args, **kwargs), target).backward()
        layer.zero_grad()

    return run


def step(made, base, tokens, cache):
    """The same by the task that `heal --how block` trains, without its optimiser."""
    student = load(made)
    found = ancestors(made, student.family.depth)
    places = replaced(made, found[-1])
    own = [layer for place in places for layer in place.layers]
    task = Blocks(
        student.family.path, dict(zip(own, student.take(own), strict=True)), places,
        found[-1].origins, {"mse": 1.0}, load(base),
        cache=Cache(cache, len(tokens), 2**33),
    )  # fmt: skip

    def run() -> None:
        rows = torch.arange(len(tokens))
        for view in task.views([tokens], [rows]):
            task(tokens, view).sum().backward()
        task.zero_grad()

    return run


if __name__ == "__main__":
    main()
