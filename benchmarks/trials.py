"""Leaving out every layer in turn, and greedy removal, against a forward for each candidate.

    python benchmarks/trials.py [--model demo | --layers 24 --hidden 1024] [--drop 4]

Variants of a model share a state until they differ. Without layer i the layers after it run: L (L -
1) / 2 layer runs and L for the whole model, of the L^2 that L forwards take: 0.5 (1 + 1/L). The
head runs for each candidate whatever was left out, so the ratio lies above that by what the head
is of a forward: (0.5 + h) / (1 + h) for a head of h times the layers. Greedy removal of k layers
shares what lies before the lowest candidate in each round in the same way.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from machine import environment, table
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from prunekit.model.checkpoint import Checkpoint
from prunekit.model.family import Family
from prunekit.model.load import load
from prunekit.model.loss import Loss
from prunekit.model.units import DENSE, Variant
from prunekit.model.walk import walk_variants
from prunekit.plan.search import Trials
from prunekit.plan.target import count
from prunekit.plugins import make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="", help="a folder, or demo")
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--drop", type=int, default=4)
    asked = parser.parse_args()
    if asked.model:
        model = load(Checkpoint.open(asked.model), dtype="float32").model
    else:
        config = LlamaConfig(
            hidden_size=asked.hidden, num_hidden_layers=asked.layers, vocab_size=4096,
            intermediate_size=asked.hidden * 11 // 4, num_attention_heads=asked.hidden // 64,
            num_key_value_heads=asked.hidden // 128,
        )  # fmt: skip
        model = LlamaForCausalLM(config).eval()
    layers = Family.of(model.config).layers(model)
    depth = len(layers)
    draw = torch.Generator().manual_seed(0)
    tokens = [torch.randint(0, 4000, (1, asked.length), generator=draw)
              for _ in range(asked.batches)]  # fmt: skip
    singles: list[Variant] = [frozenset([(layer, "layer")]) for layer in range(depth)]

    def together(variants: list[Variant]) -> list[float]:
        watching = {variant: [Loss()] for variant in [DENSE, *variants]}
        walk_variants(model, layers, tokens, watching)
        return [watching[variant][0].mean for variant in variants]

    def each(variants: list[Variant]) -> list[float]:
        return [loss(model, tokens, variant) for variant in variants]

    def greedy(judge: Callable[[list[Variant]], list[float]]) -> list[int]:
        trials = Trials(judge, count([(n, "layer") for n in range(depth)], asked.drop), depth)
        return sorted(layer for layer, _ in make("plan.choosers", "greedy").search(trials))

    ways: dict[str, Callable[[], object]] = {
        f"{depth} forwards of the whole model": lambda: [loss(model, tokens) for _ in singles],
        "a forward without each layer": lambda: each(singles),
        "all of them in one walk": lambda: together(singles),
        f"greedy, {asked.drop} layers, a forward each": lambda: greedy(each),
        f"greedy, {asked.drop} layers, in walks": lambda: greedy(together),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    found: dict[str, object] = {}
    for turn in range(asked.turns + 1):
        for name, way in ways.items():  # in turn: A B C A B C
            begin = time.perf_counter()
            found[name] = way()
            if turn:
                seconds[name].append(time.perf_counter() - begin)
    results = list(found.values())
    far = max(abs(a - b) for a, b in zip(results[1], results[2], strict=True))
    assert results[3] == results[4], "greedy chose otherwise"
    print(environment())
    print(f"{asked.model or f'{depth} layers of {asked.hidden}'}, {asked.batches} x {asked.length} "
          f"tokens, float32; largest difference of a loss {far:.2g} nats; greedy takes "
          f"{results[3]}\n")  # fmt: skip
    rows = []
    bases = [0, 0, 0, 3, 3]
    medians = [statistics.median(taken) for taken in seconds.values()]
    for number, (name, taken) in enumerate(seconds.items()):
        ratio = medians[number] / medians[bases[number]]
        rows.append(
            [name, f"{medians[number]:.2f}", f"{max(taken) / min(taken):.2f}", f"{ratio:.3f}"]
        )
    print(table(["way", "median s", "slowest / fastest", "ratio"], rows))


@torch.no_grad()
def loss(model: PreTrainedModel, tokens: list[Tensor], without: Variant = DENSE) -> float:
    """Mean loss of plain forwards, with layers taken out of the list of layers."""
    base = model.get_decoder()
    whole = base.layers
    gone = {layer for layer, _ in without}
    base.layers = torch.nn.ModuleList(
        layer for number, layer in enumerate(whole) if number not in gone
    )
    total = count_of = 0
    for batch in tokens:
        logits = model(batch, use_cache=False).logits
        total += torch.nn.functional.cross_entropy(
            logits[0, :-1].float(), batch[0, 1:], reduction="sum"
        ).item()
        count_of += batch.shape[1] - 1
    base.layers = whole
    return total / count_of


if __name__ == "__main__":
    main()
