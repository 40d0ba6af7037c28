"""Opens what was written with plain transformers and compares it with the model it should equal."""

from collections.abc import Collection

import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.load import load
from prunekit.model.walk import Observer

TOKENS = 48


class Logits(Observer):
    """Keeps the logits of a walk, batch after batch."""

    wants_logits = True

    def __init__(self) -> None:
        self.logits: list[Tensor] = []

    def see_logits(self, batch: int, tokens: Tensor, logits: Tensor) -> None:
        self.logits.append(logits)


def check_drop(base: Checkpoint, dropped: Collection[int], made: Checkpoint) -> None:
    """Raises InputError unless `made`, opened and run by transformers, gives the logits of `base`
    with the layers `dropped` passed over."""
    tokens = probe(base)
    logits = Logits()
    load(base).walk([tokens], logits, skip=dropped)
    with torch.no_grad():
        found = load(made).model(input_ids=tokens).logits
    expected = logits.logits[0]
    if not torch.equal(expected, found):
        worst = (expected.float() - found.float()).abs().max().item()
        raise InputError(
            f"model type {base.model_type!r}: the cut model's logits differ from the base model's "
            f"with those layers skipped (by up to {worst:.3g}), so it was not kept"
        )


def probe(checkpoint: Checkpoint) -> Tensor:
    """Token ids (2, TOKENS) that any vocabulary has, the same for every call."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = checkpoint.config.get_text_config().vocab_size
    return torch.randint(3, min(vocabulary, 100), (2, TOKENS), generator=generator)
