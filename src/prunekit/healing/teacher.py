"""Where a student's targets come from: a dense model, in memory or from disk."""

from collections.abc import Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor

from prunekit.healing.head import Head
from prunekit.healing.student import Logits, View, entering
from prunekit.model.load import Loaded
from prunekit.model.units import DENSE
from prunekit.model.walk import Observer


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
