"""Trains what stands in the place of a block alone, on the block's entering and leaving states.

LLM-Streamline, Chen et al., arXiv 2403.19135, equation 6, with what its code leaves out: attention
is causal as in the model, targets are raw states (also behind the last layer), and the teacher runs
no further than the last block's end. States come from a walk batch by batch and are not stored, or
they are kept, in memory or in a file, for the next time that their sample comes.
"""

import math
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.healing import losses
from prunekit.healing.student import Task
from prunekit.model.lineage import Replaced
from prunekit.model.load import Loaded
from prunekit.model.walk import Call

Calls = Mapping[int, Call]
CACHES = ("auto", "none", "memory", "disk")


class Blocks(Task):
    """The layers that replace blocks, each block with its own loss; their mean is minimised.

    `layers` are these layers by number, and `path` the list that they are in; `origins` gives the
    teacher's number of each of the model's layers.
    """

    teacher: Loaded

    def __init__(
        self,
        path: str,
        layers: Mapping[int, nn.Module],
        places: Sequence[Replaced],
        origins: Sequence[int],
        wanted: Mapping[str, float],
        teacher: Loaded,
        *,
        autocast: torch.dtype | None = None,
        cache: "Cache",
    ) -> None:
        super().__init__()
        self.path = path
        self.trained = nn.ModuleDict({str(layer): module for layer, module in layers.items()})
        self.places = list(places)
        self.origins = list(origins)
        self.names = tuple(wanted)
        self.weights = tuple(wanted.values())
        self.autocast = autocast
        self.cache = cache
        self.reuse(teacher=teacher)
        self.end = max(place.end for place in places)
        # Calls of the teacher's layers that ours come from, and of those that end a block.
        self.wanted = {origins[layer] for place in places for layer in place.layers}
        self.wanted |= {place.end - 1 for place in places}

    def views(self, batches: Sequence[Tensor], rows: Sequence[Tensor]) -> Iterator[Calls]:
        # From disk a pass over the weights serves all of a step's batches.
        step = len(batches) if self.teacher.layers is not None else 1
        for start in range(0, len(batches), step):
            few, numbers = batches[start : start + step], rows[start : start + step]
            known = self.cache.has(numbers)
            found = self.teacher.calls(few, self.wanted, self.end, bare=known)
            for row, calls in zip(numbers, found, strict=True):
                yield self.cache.filled(row, calls) if known else self.cache.keep(row, calls)

    def in_model(self, name: str) -> str:
        return f"{self.path}.{name.removeprefix('trained.')}"

    def forward(self, tokens: Tensor, view: Calls) -> Tensor:
        found: dict[str, list[Tensor]] = {name: [] for name in self.names}
        kind = tokens.device.type
        for place in self.places:
            with torch.autocast(kind, self.autocast, enabled=self.autocast is not None):
                state = view[place.start].entering
                for layer in place.layers:
                    state = view[self.origins[layer]].given(state).of(self.trained[str(layer)])
            right = view[place.end - 1].leaving
            for name in self.names:
                found[name].append(getattr(losses, name)(state, right))
        return torch.stack([torch.stack(found[name]).mean() for name in self.names])


class Cache:
    """Keeps the states of every sample's calls: entering and leaving, each (sample, token, hidden).

    `budget` bounds what lies in memory; what is more goes to an unnamed file in `folder`. What a
    layer is called with beside its state is cheap, and made anew.
    """

    def __init__(self, way: str, samples: int, budget: int = 0, folder: Path | None = None) -> None:
        check_cache(way)
        self.way, self.samples, self.budget, self.folder = way, samples, budget, folder
        self.known = torch.zeros(samples, dtype=torch.bool)
        self.states: dict[int, tuple[Tensor, Tensor]] = {}

    def has(self, rows: Sequence[Tensor]) -> bool:
        return all(bool(self.known[few].all()) for few in rows)

    def keep(self, rows: Tensor, calls: Calls) -> Calls:
        """Write the states down, if there is room; the calls as they are."""
        if not self.states and self.way != "none":
            self._make_room(calls)
        for index, (entering, leaving) in self.states.items():
            entering[rows] = calls[index].entering.cpu()
            leaving[rows] = calls[index].leaving.cpu()
        self.known[rows] = bool(self.states)
        return calls

    def filled(self, rows: Tensor, calls: Calls) -> Calls:
        """Bare calls with the states that were written down."""
        return {
            index: replace(call, leaving=leaving[rows].to(call.leaving.device)).given(
                entering[rows].to(call.leaving.device)
            )
            for index, call in calls.items()
            for entering, leaving in [self.states[index]]
        }

    def _make_room(self, calls: Calls) -> None:
        each = {index: call.leaving[0] for index, call in calls.items()}
        needed = sum(2 * self.samples * state.nbytes for state in each.values())
        fits = needed <= self.budget
        if self.way == "memory" and not fits:
            raise InputError(
                f"the states of {self.samples} samples take {needed / 2**30:.1f} GiB, more than "
                "--memory; take --cache disk or none"
            )
        if self.way == "auto" and not fits and self.folder is None:
            self.way = "none"
            return
        on_disk = self.way == "disk" or not fits
        for index, state in each.items():
            shape = (self.samples, *state.shape)
            self.states[index] = (self._room(shape, state.dtype, on_disk),
                                  self._room(shape, state.dtype, on_disk))  # fmt: skip

    def _room(self, shape: tuple[int, ...], dtype: torch.dtype, on_disk: bool) -> Tensor:
        if not on_disk:
            return torch.empty(shape, dtype=dtype)
        count = math.prod(shape)
        with tempfile.NamedTemporaryFile(dir=self.folder, prefix="prunekit-states-") as file:
            os.posix_fallocate(file.fileno(), 0, count * dtype.itemsize)  # full now, or never
            # The mapping keeps the bytes when the file's name is gone.
            return torch.from_file(file.name, shared=True, size=count, dtype=dtype).view(shape)


def check_cache(way: str) -> None:
    """Raises InputError if there is no such way to keep states."""
    if way not in CACHES:
        raise InputError(f"no cache {way!r}; there are: {', '.join(CACHES)}")
