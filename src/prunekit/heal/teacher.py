"""Where a student's targets come from: a dense model, in memory or from disk, or saved logits."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from prunekit.errors import InputError
from prunekit.heal.head import Head
from prunekit.heal.losses import TopK
from prunekit.heal.student import Logits, View, entering
from prunekit.model.load import Loaded
from prunekit.model.units import DENSE
from prunekit.model.walk import Observer

SAVED = "logits.safetensors"
RECORD = "logits.json"


class Teacher(Protocol):
    """Gives a view of each batch of a step; `rows` are its samples' numbers in the text."""

    def views(self, batches: Sequence[Tensor], rows: Sequence[Tensor]) -> Iterator[View]: ...


class InMemory:
    """A model run beside the student: its logits, like the student's, exist a chunk at a time."""

    def __init__(self, loaded: Loaded, layers: Sequence[int] = (), logits: bool = True) -> None:
        self.loaded = loaded
        self.layers = dict.fromkeys(layers)
        self.logits = logits
        self.head = Head(loaded.model)
        self.chunked = self.head.can_chunk
        loaded.model.requires_grad_(False)

    def views(self, batches: Sequence[Tensor], rows: Sequence[Tensor]) -> Iterator[View]:
        places = self.loaded.family.layers(self.loaded.model)
        for tokens in batches:
            with torch.no_grad(), entering(places, self.layers) as states:
                if self.chunked:
                    last = self.head.states(tokens)
                else:
                    last = self.loaded.model(input_ids=tokens, use_cache=False).logits
            yield View(self._logits(last[:, :-1].flatten(0, 1)) if self.logits else None, states)

    def _logits(self, last: Tensor) -> Logits:
        def of(piece: slice) -> Tensor:
            if not self.chunked:
                return last[piece]
            # Asked for within the student's forward, whose autocast is not for the teacher.
            with torch.no_grad(), torch.autocast(last.device.type, enabled=False):
                return self.head.logits(last[piece])

        return of


class FromDisk:
    """A model whose layers are brought from disk: all of a step's batches walk side by side."""

    def __init__(self, loaded: Loaded, layers: Sequence[int] = (), logits: bool = True) -> None:
        self.loaded = loaded
        self.layers = set(layers)
        self.logits = logits

    def views(self, batches: Sequence[Tensor], rows: Sequence[Tensor]) -> Iterator[View]:
        seen = _Kept(self.layers, self.logits)
        self.loaded.walk_variants(batches, {DENSE: [seen]})
        for number in range(len(batches)):
            logits = seen.logits.pop(number, None)
            yield View(logits.__getitem__ if logits is not None else None, seen.states.pop(number))


class _Kept(Observer):
    """Keeps what the teacher says of a step's batches."""

    def __init__(self, layers: set[int], logits: bool) -> None:
        self.layers = layers
        self.wants_logits = logits
        self.states: dict[int, dict[int, Tensor]] = {}
        self.logits: dict[int, Tensor] = {}

    def keeps(self, layers: int) -> float:
        return len(self.layers)

    def see(self, layer: int, batch: int, entering: Tensor, leaving: Tensor) -> None:
        states = self.states.setdefault(batch, {})
        if layer in self.layers:
            states[layer] = entering

    def see_logits(self, batch: int, tokens: Tensor, logits: Tensor) -> None:
        self.logits[batch] = logits[:, :-1].flatten(0, 1)


class Saved:
    """The largest logits that `prunekit teach` wrote down: no teacher is run.

    `numbers` has the place in the text of each sample of the training.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.numbers: Tensor | None = None
        try:
            self.record: dict[str, Any] = json.loads((self.folder / RECORD).read_text("utf-8"))
            self.file = safe_open(self.folder / SAVED, framework="pt")
            self.values = self.file.get_slice("values")
            self.tokens = self.file.get_slice("tokens")
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{str(self.folder)!r}: no logits that `prunekit teach` wrote ({error})"
            ) from None

    def check_vocabulary(self, vocabulary: int) -> None:
        """Raises InputError if they are of another vocabulary."""
        if self.record["vocabulary"] != vocabulary:
            raise InputError(
                f"{str(self.folder)!r}: saved for a vocabulary of {self.record['vocabulary']}; the "
                f"model has {vocabulary}"
            )

    def begin(self, text: dict[str, Any], numbers: Tensor) -> None:
        """Raises InputError if they are of another text than the one trained on."""
        for key in ("digest", "length", "available", "total_tokens", "join", "bos"):
            if self.record["text"][key] != text[key]:
                raise InputError(
                    f"{str(self.folder)!r}: saved for another text: its {key} is "
                    f"{self.record['text'][key]!r}, this one's {text[key]!r}"
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
