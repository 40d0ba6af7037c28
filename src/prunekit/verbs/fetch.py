"""Fetch: bring models and texts into the cache, for machines that reach no network."""

from collections.abc import Sequence
from dataclasses import dataclass

from prunekit.model.checkpoint import Checkpoint
from prunekit.text.packing import load_text


@dataclass(frozen=True)
class Fetched:
    """What is in the cache now: `bytes` of the model's tensors, and each text's tokens."""

    model: str
    bytes: int
    tokens: dict[str, int]


def fetch(model: str, texts: Sequence[str] = ()) -> Fetched:
    """Open a model and texts as every other verb does, so that they are found without a network
    (`HF_HUB_OFFLINE=1`) afterwards.

    Texts are read and tokenised to the end, which shows that they can be. Raises InputError for
    what can't be fetched.
    """
    checkpoint = Checkpoint.open(model)
    tokens = {text: load_text(text, checkpoint.tokenizer, length=2).total_tokens for text in texts}
    return Fetched(model, checkpoint.bytes, tokens)
