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

from prunekit.model.load import Loaded
from prunekit.model.loss import Loss
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
    add_up([loss.sums])
    predicted = int(loss.sums[1])
    return Perplexity(
        math.exp(min(loss.mean, LARGEST)), loss.mean, predicted, text.describe(), context
    )
