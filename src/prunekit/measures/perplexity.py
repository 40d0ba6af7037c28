"""Perplexity of a text: exp of the mean cross entropy of the next token.

The text is cut into segments of S tokens, each run alone, and every token of a segment but the
first is predicted; logits are compared in float32, summed in float64. This is the protocol of
SparseGPT and Wanda (their mean over equal segments is the mean over tokens). A number means little
without its S and BOS policy, so both are part of the result.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.model.load import Loaded
from prunekit.model.ranks import add_up, share
from prunekit.model.walk import Observer
from prunekit.text.packing import Text

LARGEST = 700.0  # nats whose exponential is still a float


@dataclass(frozen=True)
class Perplexity:
    """`loss` in nats per token over `predicted` tokens, `perplexity` its exponential (at most
    about 1e304); `text` and `context` say on what and how."""

    perplexity: float
    loss: float
    predicted: int
    text: dict[str, Any]
    context: dict[str, Any]


class Loss(Observer):
    """Sums the next-token cross entropy over a walk."""

    wants_logits = True

    def __init__(self) -> None:
        self.total = 0.0
        self.predicted = 0

    def see_logits(self, batch: int, tokens: Tensor, logits: Tensor) -> None:
        # One sequence at a time: float32 logits are large next to the model's own.
        for ids, scores in zip(tokens, logits, strict=True):
            loss = torch.nn.functional.cross_entropy(scores[:-1].float(), ids[1:], reduction="none")
            self.total += loss.double().sum().item()
            self.predicted += len(loss)
        if not math.isfinite(self.total):
            raise InputError(f"the model's logits are not finite (batch {batch} of the text)")


def perplexity(
    loaded: Loaded, text: Text, *, batch: int, skip: Iterable[int] = (),
    observers: Iterable[Observer] = (),
) -> Perplexity:  # fmt: skip
    """Perplexity of a model, or of it with the layers `skip` passed over, `batch` segments at once.

    Raises InputError if a logit is not finite.
    """
    loss = Loss()
    way = loaded.walk(share(text.batches(batch)), loss, *observers, skip=skip)
    context = {**loaded.context(), "walk": way, "batch": batch}
    sums = torch.tensor([loss.total, loss.predicted], dtype=torch.float64)
    add_up([sums])
    total, predicted = sums.tolist()
    mean = total / predicted
    return Perplexity(math.exp(min(mean, LARGEST)), mean, int(predicted), text.describe(), context)
