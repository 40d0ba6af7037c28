"""One walk with every state criterion, all block lengths, against a bare forward of those tokens.

    python benchmarks/walk.py [--layers 24] [--hidden 1024] [--length 1024] [--dtype float32]

Prediction. A bare forward without the head costs about 24 L H^2 operations a token for a Llama
(attention apart). A criterion of all tokens copies each state once to float32 and moves it a few
times (some 16 (L+1) H bytes a token), and multiplies 2 (L+1)^2 H operations: (L+1)^2 / 12 L H of
the forward's, about 0.2 % for L = 24 and H = 1024. Four of them should stay within 10 per cent,
bound by memory. `linear` multiplies 2 L H^2 in float64, as much as 1/6 of the forward in float32,
and is apart. Halves run each layer's attention again: about a third of the forward for a Llama.
The bare forward here is transformers' own, of the decoder without its head, as a walk for scores.
"""

import argparse
import statistics
import time

import torch
from machine import environment, table
from transformers import LlamaConfig, LlamaForCausalLM

from prunekit.criteria._criterion import Criterion
from prunekit.criteria.angular import Angular
from prunekit.criteria.cosine import Cosine
from prunekit.criteria.euclidean import Euclidean
from prunekit.criteria.linear import Linear
from prunekit.criteria.magnitude_ratio import MagnitudeRatio
from prunekit.model.walk import walk

KINDS = (Angular, Cosine, Euclidean, MagnitudeRatio)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--length", type=int, default=1024)
    parser.add_argument("--batches", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    config = LlamaConfig(
        hidden_size=asked.hidden, num_hidden_layers=asked.layers, vocab_size=4096,
        intermediate_size=asked.hidden * 11 // 4, num_attention_heads=asked.hidden // 64,
        num_key_value_heads=asked.hidden // 128, max_position_embeddings=asked.length,
    )  # fmt: skip
    model = LlamaForCausalLM(config).to(asked.device, getattr(torch, asked.dtype)).eval()
    tokens = [torch.randint(0, 4096, (1, asked.length)) for _ in range(asked.batches)]

    def bare() -> None:
        with torch.no_grad():
            for batch in tokens:
                model.model(batch.to(asked.device), use_cache=False)

    def walked() -> None:
        walk(model, model.model.layers, tokens)

    def scored(*judges: Criterion) -> None:
        for judge in judges:
            judge.begin(asked.layers, 0)
        walk(model, model.model.layers, tokens, *judges)
        for judge in judges:
            judge.blocks()

    ways = {
        "bare forward": bare,
        "walk": walked,
        "angular and cosine, last and all tokens": lambda: scored(
            *(kind(tokens=tokens) for kind in KINDS[:2] for tokens in ("last", "all"))
        ),
        "those, Euclidean and ratio, last and all tokens": lambda: scored(
            *(kind(tokens=tokens) for kind in KINDS for tokens in ("last", "all"))
        ),
        "linear": lambda: scored(Linear(directions=16)),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(asked.turns + 1):
        for name, way in ways.items():  # in turn: A B C A B C
            start = time.perf_counter()
            way()
            if asked.device != "cpu":
                torch.cuda.synchronize()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    print(environment())
    print(vars(asked), "\n")
    first = statistics.median(seconds["bare forward"])
    rows = []
    for name, taken in seconds.items():
        median = statistics.median(taken)
        spread = max(taken) / min(taken)
        rows.append([name, f"{median:.3f}", f"{spread:.2f}", f"{median / first:.3f}"])
    print(table(["way", "median s", "slowest / fastest", "ratio"], rows))


if __name__ == "__main__":
    main()
