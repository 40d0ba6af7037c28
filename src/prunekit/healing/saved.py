"""A dense teacher's largest logits, written down once: who heals then runs no teacher.

For each token of a text that has a next one, the log probabilities of the `top` likeliest next
tokens (float16) and their ids (int32), as one safetensors file beside a JSON record of the text.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from prunekit.errors import InputError
from prunekit.healing.losses import TopK
from prunekit.healing.student import View
from prunekit.model.walk import Observer

SAVED = "logits.safetensors"
RECORD = "logits.json"
TEXT = ("digest", "length", "available", "total_tokens", "join", "bos")  # make the same samples


class Saved:
    """Saved logits as a teacher. Raises InputError if there are none in the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.numbers: Tensor | None = None  # place in the text of each sample of the training
        try:
            self.record: dict[str, Any] = json.loads((self.folder / RECORD).read_text("utf-8"))
            self.vocabulary = int(self.record["vocabulary"])
            self.text = {key: self.record["text"][key] for key in TEXT}
            file = safe_open(self.folder / SAVED, framework="pt")
            self.values, self.tokens = file.get_slice("values"), file.get_slice("tokens")
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise InputError(
                f"{str(self.folder)!r}: no logits that `prunekit teach` wrote ({error})"
            ) from None

    def check_vocabulary(self, vocabulary: int) -> None:
        """Raises InputError if they are of another vocabulary."""
        if self.vocabulary != vocabulary:
            raise InputError(
                f"{str(self.folder)!r}: saved for a vocabulary of {self.vocabulary} tokens; the "
                f"model has {vocabulary}"
            )

    def begin(self, text: dict[str, Any], numbers: Tensor) -> None:
        """Raises InputError if they are of another text than the one trained on."""
        if self.text["digest"] != text["digest"]:
            then = self.record["text"].get("source")
            raise InputError(
                f"{str(self.folder)!r}: saved for another text: {then!r}, not for "
                f"{text['source']!r} as it is now"
            )
        for key, then in self.text.items():
            if then != text[key]:
                raise InputError(
                    f"{str(self.folder)!r}: saved for another text: its {key} is {then!r}, this "
                    f"one's {text[key]!r}"
                )
        self.numbers = numbers

    def views(self, batches: Sequence[Tensor], rows: Sequence[Tensor]) -> Iterator[View]:
        assert self.numbers is not None
        for tokens, numbers in zip(batches, (self.numbers[few] for few in rows), strict=True):
            values, ids = (
                torch.cat([held[row : row + 1] for row in numbers.tolist()]).flatten(0, 1)
                for held in (self.values, self.tokens)
            )
            yield View(TopK(values.to(tokens.device), ids.to(tokens.device, torch.long)).of)


class Writer(Observer):
    """Writes down the logits of a walk as they come; `size` samples are a batch.

    Raises InputError if the vocabulary has fewer tokens than `top`.
    """

    wants_logits = True

    def __init__(
        self, folder: Path, samples: int, length: int, top: int, vocabulary: int, size: int
    ) -> None:
        if not 1 <= top <= vocabulary:
            raise InputError(f"top {top}: give 1 to {vocabulary}, the tokens of the vocabulary")
        shape = (samples, length - 1, top)
        self.size = size
        self.values, self.tokens = _file(folder / SAVED, shape)

    def see_logits(self, batch: int, tokens: Tensor, logits: Tensor) -> None:
        best = logits[:, :-1].float().log_softmax(-1).topk(self.values.shape[-1])
        rows = slice(batch * self.size, batch * self.size + len(logits))
        self.values[rows] = best.values.to("cpu", torch.float16)
        self.tokens[rows] = best.indices.to("cpu", torch.int32)


def _file(file: Path, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """A safetensors file with room for values and tokens, mapped."""
    count = torch.Size(shape).numel()
    ends = (4 * count, 6 * count)
    header = {
        "tokens": {"dtype": "I32", "shape": list(shape), "data_offsets": [0, ends[0]]},
        "values": {"dtype": "F16", "shape": list(shape), "data_offsets": list(ends)},
    }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    start = 8 + len(text)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(start + ends[1])
    tokens = np.memmap(file, np.int32, "r+", start, shape)
    values = np.memmap(file, np.float16, "r+", start + ends[0], shape)
    return torch.from_numpy(values), torch.from_numpy(tokens)
