"""Measure the model that ships with prunekit: python demo/report.py MODEL.

Writes Markdown. Everything is measured on the test part of the running Python's standard
library, see `prunekit.text.stdlib`: documents end to end, each followed by the end-of-text token,
cut into rows of 512 tokens; the mean cross entropy is over each row's tokens but the first, with
weights, activations and logits in float32.
"""

import argparse
import math
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from prunekit.text import stdlib

LENGTH = 512
BATCH = 8
PROMPT = "def read_lines(path):\n"
SAMPLE_TOKENS = 128
SAMPLE_SEED = 0
TEMPERATURE = 0.8
PSEUDO_COUNTS = (1, 3, 10, 30, 100, 300, 1000)


def rows_of(tokenizer: PreTrainedTokenizerBase, part: str) -> Tensor:
    """A part's tokens as full rows of LENGTH; what is left over is dropped."""
    tokens: list[int] = []
    for text in stdlib.documents(part):
        # The tokenizer behind the wrapper does not warn that a text exceeds model_max_length.
        tokens += tokenizer.backend_tokenizer.encode(text).ids
        tokens.append(tokenizer.eos_token_id)
    count = len(tokens) // LENGTH
    return torch.tensor(tokens[: count * LENGTH]).view(count, LENGTH)


@torch.inference_mode()
def model_loss(model: PreTrainedModel, rows: Tensor) -> float:
    """Mean cross entropy of the rows' tokens but the first of each."""
    total = 0.0
    for batch in rows.split(BATCH):
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        targets = batch[:, 1:].flatten()
        total += F.cross_entropy(logits.flatten(0, 1).float(), targets, reduction="sum").item()
    return total / rows[:, 1:].numel()


def unigram(rows: Tensor, size: int) -> Tensor:
    """Each token's probability by its count plus one."""
    counts = torch.bincount(rows.flatten(), minlength=size).double() + 1.0
    return counts / counts.sum()


def pair_counts(rows: Tensor, size: int) -> Tensor:
    """How often each token follows each other token within a row."""
    pairs = rows[:, :-1] * size + rows[:, 1:]
    return torch.bincount(pairs.flatten(), minlength=size * size).view(size, size)


def bigram_loss(rows: Tensor, pairs: Tensor, single: Tensor, pseudo: float) -> float:
    """Mean cross entropy when `pseudo` counts spread like the unigram join each row of counts."""
    before, after = rows[:, :-1].flatten(), rows[:, 1:].flatten()
    seen = pairs[before, after].double() + pseudo * single[after]
    total = pairs.sum(1)[before].double() + pseudo
    return -(seen / total).log().mean().item()


@contextmanager
def without_layer(model: PreTrainedModel, index: int) -> Iterator[None]:
    """The model with one layer left out."""
    layers = model.model.layers
    model.model.layers = nn.ModuleList(one for i, one in enumerate(layers) if i != index)
    try:
        yield
    finally:
        model.model.layers = layers


def layer_losses(model: PreTrainedModel, rows: Tensor) -> list[float]:
    """The loss without each of the layers in turn."""
    losses = []
    for index in range(len(model.model.layers)):
        with without_layer(model, index):
            losses.append(model_loss(model, rows))
    return losses


def sample(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, greedy: bool) -> str:
    """What the model writes after PROMPT."""
    torch.manual_seed(SAMPLE_SEED)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    how = {"do_sample": False} if greedy else {"do_sample": True, "temperature": TEMPERATURE}
    tokens = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        max_new_tokens=SAMPLE_TOKENS,
        pad_token_id=tokenizer.eos_token_id,
        **how,
    )
    return tokenizer.decode(tokens[0])


def line(name: str, loss: float) -> str:
    return f"| {name} | {loss:.4f} | {math.exp(loss):.2f} |"


def report_losses(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """The table of losses: model, baselines, and the model without each layer."""
    train, calibrate, test = (rows_of(tokenizer, part) for part in stdlib.PARTS)
    size = model.config.vocab_size
    single, pairs = unigram(train, size), pair_counts(train, size)
    pseudo = min(PSEUDO_COUNTS, key=lambda count: bigram_loss(calibrate, pairs, single, count))
    unigram_loss = -single[test[:, 1:]].log().mean().item()
    print(
        f"Python {platform.python_version()}, {len(test)} segments of {LENGTH} tokens "
        f"({test[:, 1:].numel()} predicted), float32.\n"
    )
    print("| on the test part | loss (nats per token) | perplexity |\n|---|---|---|")
    print(line("model", model_loss(model, test)))
    print(
        line(
            f"bigram, plus {pseudo} counts spread like the unigram",
            bigram_loss(test, pairs, single, pseudo),
        )
    )
    print(line("unigram, add one", unigram_loss))
    for index, loss in enumerate(layer_losses(model, test)):
        print(line(f"model without layer {index}", loss), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="folder of the model")
    folder = parser.parse_args().model
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    report_losses(model, tokenizer)
    for name, greedy in (
        ("greedy", True),
        (f"sampled, temperature {TEMPERATURE}, seed {SAMPLE_SEED}", False),
    ):
        print(f"\n{SAMPLE_TOKENS} tokens after `{PROMPT!r}`, {name}:\n")
        print(f"```python\n{sample(model, tokenizer, greedy)}\n```")


if __name__ == "__main__":
    main()
