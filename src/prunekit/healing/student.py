"""The model that is trained, with its losses: one module, so that any engine can wrap it."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from prunekit.errors import InputError
from prunekit.healing import losses
from prunekit.healing.head import Head
from prunekit.healing.losses import TopK

Logits = Callable[[slice], Tensor | TopK]


@dataclass(frozen=True)
class View:
    """What the teacher makes of a batch: logits of any predicted tokens, sequences one after the
    other, and the states entering its layers, by their numbers."""

    logits: Logits | None = None
    states: Mapping[int, Tensor] = field(default_factory=dict)


class Task(nn.Module):
    """Something to minimise. `names` are its losses, `weights` how they add up."""

    names: tuple[str, ...]
    weights: tuple[float, ...]

    def reuse(self, **parts: Any) -> None:
        """Set attributes whose modules are not this one's: they are not trained by its name."""
        for name, part in parts.items():
            object.__setattr__(self, name, part)

    def views(self, batches: Sequence[Tensor], rows: Sequence[Tensor]) -> Iterator[Any]:
        """What each of a step's batches is held against; `rows` are its samples' numbers."""
        raise NotImplementedError

    def forward(self, tokens: Tensor, view: Any) -> Tensor:
        """The mean of every loss, in the order of `names`."""
        raise NotImplementedError

    def in_model(self, name: str) -> str:
        """What the model calls a parameter of this task."""
        raise NotImplementedError


class Student(Task):
    """A model with losses of its last states' logits and of its layers' entering states.

    `matches` gives the teacher's number of each layer whose states are compared.
    """

    base: PreTrainedModel
    layers: nn.ModuleList
    teacher: Any
    head: Head
    chunked: bool

    def __init__(
        self,
        model: Any,
        layers: nn.ModuleList,
        wanted: Mapping[str, float],
        *,
        teacher: Any = None,
        matches: Mapping[int, int] | None = None,
        temperature: float = 1.0,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise InputError(f"temperature {temperature}: a number above 0")
        self.model = model
        # A PeftModel's own forward adds nothing that is wanted here.
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        self.reuse(base=base, layers=layers, teacher=teacher, head=Head(base))
        self.matches = dict(matches or {})
        self.temperature = temperature
        self.autocast = autocast
        # The language loss costs next to nothing beside the others, and says what they do to it.
        self.names = tuple(dict.fromkeys(["language", *wanted]))
        self.weights = tuple(wanted.get(name, 0.0) for name in self.names)
        with self._precision():
            self.chunked = self.head.can_chunk

    def views(self, batches: Sequence[Tensor], rows: Sequence[Tensor]) -> Iterator[View]:
        if self.teacher is None:
            return iter([View()] * len(batches))
        return self.teacher.views(batches, rows)

    def forward(self, tokens: Tensor, view: View) -> Tensor:
        with self._precision():
            with entering(self.layers, self.matches) as states:
                if self.chunked:
                    last = self.head.states(tokens)
                else:
                    last = self.base(input_ids=tokens, use_cache=False).logits
            sums = self._of_tokens(last[:, :-1].flatten(0, 1), tokens[:, 1:].flatten(), view)
            means = sums / tokens[:, 1:].numel()
            found = dict(zip(self._token_losses, means.unbind(), strict=True))
            if "states" in self.names:
                apart = [
                    losses.distance(states[own], view.states[its])
                    for own, its in self.matches.items()
                ]
                found["states"] = torch.stack(apart).mean()
        return torch.stack([found[name] for name in self.names])

    def in_model(self, name: str) -> str:
        return name.removeprefix("model.")

    def _precision(self) -> torch.autocast:
        kind = self.base.device.type
        return torch.autocast(kind, self.autocast, enabled=self.autocast is not None)

    @property
    def _token_losses(self) -> list[str]:
        return [name for name in self.names if name != "states"]

    def _of_tokens(self, last: Tensor, targets: Tensor, view: View) -> Tensor:
        """The sums of the losses of each token, a chunk of tokens at a time."""
        if not self.chunked or len(last) <= self.head.chunk:
            return self._piece(last, targets, view, slice(0, len(last)))
        total: Any = 0
        for start in range(0, len(last), self.head.chunk):
            piece = slice(start, min(start + self.head.chunk, len(last)))
            # The teacher's logits are asked for within, so that they too are not held for all.
            arguments = (last[piece], targets[piece], view, piece)
            if torch.is_grad_enabled():
                total = total + checkpoint(self._piece, *arguments, use_reentrant=False)
            else:
                total = total + self._piece(*arguments)
        return total

    def _piece(self, last: Tensor, targets: Tensor, view: View, piece: slice) -> Tensor:
        logits = self.head.logits(last) if self.chunked else last
        found = {"language": losses.language(logits, targets)}
        if "logits" in self.names:
            assert view.logits is not None
            found["logits"] = losses.divergence(logits, view.logits(piece), self.temperature)
        return torch.stack([found[name] for name in self._token_losses])


@contextmanager
def entering(layers: nn.ModuleList, wanted: Mapping[int, Any]) -> Iterator[dict[int, Tensor]]:
    """Within the block, the states that enter these layers are written down."""
    states: dict[int, Tensor] = {}

    def take(index: int) -> Callable[..., None]:
        def see(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # Recomputed layers see the same states again: the first are those with the graph.
            states.setdefault(index, args[0] if args else kwargs["hidden_states"])

        return see

    hooks = [
        layers[index].register_forward_pre_hook(take(index), with_kwargs=True) for index in wanted
    ]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()
