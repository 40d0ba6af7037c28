"""Runs a model layer by layer over a text while others observe.

The model's own `forward` is borrowed: a stand-in takes the place of every decoder layer, and when
forward calls one, the forward is suspended there (a greenlet) and hands over the arguments that the
layer would get: masks, positions, rotary embeddings, whatever the family needs. The walk runs the
real layer with those arguments, shows its states to the observers, and lets the forward go on. So
the states are those of transformers bit for bit, the code that prepares a layer's arguments is
transformers' own, and any number of batches can stand side by side before the same layer.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunekit.errors import InputError


class Observer:
    """Watches a walk; override what you need.

    class Norms(prunekit.Observer):
        def see(self, layer, batch, entering, leaving):
            print(layer, (leaving - entering).norm(dim=-1).mean())
    """

    wants_logits = False

    def see(self, layer: int, batch: int, entering: Tensor, leaving: Tensor) -> None:
        """Called after each layer on each batch.

        States are raw (before any final norm), in the model's dtype, shaped (sequence, token,
        hidden). They may be kept, never written to.
        """

    def see_logits(self, batch: int, tokens: Tensor, logits: Tensor) -> None:
        """Called once a batch if `wants_logits`: tokens (sequence, token), logits (sequence, token,
        vocabulary) in the model's dtype."""


def walk(
    model: PreTrainedModel,
    layers: nn.ModuleList,
    batches: Iterable[Tensor],
    *observers: Observer,
    skip: Iterable[int] = (),
    beside: int = 1,
) -> None:
    """Run `model` over `batches` of token ids (sequence, token), layer by layer.

    `layers` is the model's list of decoder layers (see Family). `skip` names layers that are passed
    over: their entering state leaves unchanged. `beside` is how many batches stand side by side
    before a layer is run; the results do not depend on it. Raises InputError for layers or tokens
    that the model does not have.

        loaded = prunekit.load(prunekit.Checkpoint.open("demo"))
        loaded.walk(text.batches(4), MyObserver())  # this function, with the model's own layers
    """
    skipped = frozenset(skip)
    if wrong := skipped.difference(range(len(layers))):
        raise InputError(
            f"can't skip layer {min(wrong)}: the model has layers 0 to {len(layers) - 1}"
        )
    device = next(iter(model.parameters())).device
    head = any(observer.wants_logits for observer in observers)
    with torch.no_grad(), _stand_ins(layers) as real:
        for first, group in _groups(batches, beside):
            paused = [_Forward(model, tokens.to(device)) for tokens in group]
            for index, layer in enumerate(real):
                for number, forward in enumerate(paused, first):
                    entering, leaving = forward.step(index, layer, index in skipped)
                    for observer in observers:
                        observer.see(index, number, entering, leaving)
            for number, forward in enumerate(paused, first):
                logits = forward.finish(head)
                if logits is not None:
                    for observer in observers:
                        if observer.wants_logits:
                            observer.see_logits(number, forward.tokens, logits)


class _StandIn(nn.Module):
    """Where a decoder layer was: suspends the forward that calls it."""

    def __init__(self, index: int, real: nn.Module) -> None:
        super().__init__()
        self.index = index
        # Not registered as a submodule: forwards that iterate over modules must not find it twice.
        object.__setattr__(self, "real", real)

    def __getattr__(self, name: str) -> Any:
        # Some forwards ask a layer what it is (attention_type, is_sliding) before they call it.
        return getattr(object.__getattribute__(self, "real"), name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return getcurrent().parent.switch((self.index, args, kwargs))


class _Forward:
    """One batch's suspended forward."""

    def __init__(self, model: PreTrainedModel, tokens: Tensor) -> None:
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        if tokens.ndim != 2 or tokens.is_floating_point():
            raise InputError("token ids are whole numbers of shape (sequence, token)")
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
            raise InputError(f"token ids must lie in 0 to {vocabulary - 1}, the model's vocabulary")
        self.tokens = tokens
        self.greenlet = greenlet(lambda: model(input_ids=tokens, use_cache=False))
        self.call = self.greenlet.switch()
        self.output: Any = None

    def step(self, index: int, layer: nn.Module, skip: bool) -> tuple[Tensor, Tensor]:
        """Let the forward go on to layer `index` and run it; the states entering and leaving."""
        if index:
            self.call = self.greenlet.switch(self.output)
        if self.greenlet.dead or self.call[0] != index:
            raise InputError("this model type does not run its layers once each, in order")
        _, args, kwargs = self.call
        entering = args[0] if args else kwargs["hidden_states"]
        if not skip or self.output is None:
            # What layers return beside the state is part of their form: as long as no layer has
            # shown it, one that is passed over runs all the same.
            version = entering._version
            self.output = layer(*args, **kwargs)
            assert entering._version == version, "the layer writes into its entering state"
        if skip:
            # What it would have handed on beside the state stays what the layer before it did.
            plain = isinstance(self.output, Tensor)
            self.output = entering if plain else (entering, *self.output[1:])
        leaving = self.output if isinstance(self.output, Tensor) else self.output[0]
        shape = self.tokens.shape
        return _as_states(entering, shape), _as_states(leaving, shape)

    def finish(self, head: bool) -> Tensor | None:
        """The logits, if asked for; else the forward is abandoned before the final norm."""
        if not head:
            self.greenlet.throw(GreenletExit)
            return None
        result = self.greenlet.switch(self.output)
        if not self.greenlet.dead:
            raise InputError("this model type runs more layers than its list holds")
        return result.logits


def _as_states(states: Tensor, shape: Sequence[int]) -> Tensor:
    """As (sequence, token, hidden), with parallel residual streams laid side by side."""
    if states.ndim == 3:
        return states
    sequence, token = (list(states.shape).index(size) for size in shape)
    return states.movedim((sequence, token), (0, 1)).flatten(2)


@contextmanager
def _stand_ins(layers: nn.ModuleList) -> Iterator[list[nn.Module]]:
    real = list(layers)
    try:
        for index, layer in enumerate(real):
            layers[index] = _StandIn(index, layer)
        yield real
    finally:
        for index, layer in enumerate(real):
            layers[index] = layer


def _groups(batches: Iterable[Tensor], size: int) -> Iterator[tuple[int, list[Tensor]]]:
    """Batches in groups of `size`, each with the number of its first."""
    group: list[Tensor] = []
    first = 0
    for batch in batches:
        group.append(batch)
        if len(group) == size:
            yield first, group
            first, group = first + len(group), []
    if group:
        yield first, group
