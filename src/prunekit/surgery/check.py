"""Opens what was written with plain transformers and compares it with the model it should equal."""

from collections.abc import Collection

import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.load import Loaded, load
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
    with the layers `dropped` passed over, and generates if `base` does.

    Where `made` does not fit into memory, its layers are brought from disk, and it generates
    nothing.
    """
    tokens = probe(base)
    expected = _walked(base, tokens, dropped)
    loaded = load(made)
    if loaded.layers is None:
        with torch.no_grad():
            found = loaded.model(input_ids=tokens).logits
    else:  # too big for this machine's memory, and so for generating
        found = _walked(made, tokens)
    if not torch.equal(expected, found):
        worst = (expected.float() - found.float()).abs().max().item()
        raise InputError(
            f"model type {base.model_type!r}: the cut model's logits differ from the base model's "
            f"with those layers skipped (by up to {worst:.3g}), so it was not kept"
        )
    failure = None if loaded.layers else failure_to_generate(loaded, tokens)
    del loaded
    if failure and not failure_to_generate(load(base), tokens):
        raise InputError(
            f"model type {base.model_type!r}: transformers can't generate with the cut model, as "
            f"it can with the base model ({failure}), so it was not kept"
        )


def _walked(checkpoint: Checkpoint, tokens: Tensor, skip: Collection[int] = ()) -> Tensor:
    seen = Logits()
    load(checkpoint).walk([tokens], seen, skip=skip)
    return seen.logits[0]


def failure_to_generate(loaded: Loaded, tokens: Tensor) -> str | None:
    """Why transformers can't generate with a model; None if it can."""
    try:
        loaded.model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=2, do_sample=False
        )
    except Exception as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
    return None


def probe(checkpoint: Checkpoint) -> Tensor:
    """Token ids (2, TOKENS) that any vocabulary has, the same for every call."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = checkpoint.config.get_text_config().vocab_size
    return torch.randint(3, min(vocabulary, 100), (2, TOKENS), generator=generator)
