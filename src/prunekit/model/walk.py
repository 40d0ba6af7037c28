"""Runs a model layer by layer over a text while others observe.

The model's own `forward` is borrowed: a stand-in takes the place of every decoder layer, and when
forward calls one, the forward is suspended there (a greenlet) and hands over the arguments that the
layer would get: masks, positions, rotary embeddings, whatever the family needs. The walk runs the
real layer with those arguments, shows its states to the observers, and lets the forward go on. So
the states are those of transformers bit for bit, the code that prepares a layer's arguments is
transformers' own, and any number of batches can stand side by side before the same layer.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Any, Protocol

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunekit.errors import InputError

Keep = Callable[[Tensor], Tensor]


class Source(Protocol):
    """Where a walk gets the decoder layers if they are not in the model."""

    def in_turn(self, order: Sequence[int]) -> Generator[nn.Module]:
        """The layers in this order, each with its weights until the next is asked for."""
        ...


class Observer:
    """Watches a walk; override what you need.

    class Norms(prunekit.Observer):
        def see(self, layer, batch, entering, leaving):
            print(layer, (leaving - entering).norm(dim=-1).mean())
    """

    wants_logits = False

    def keeps(self, layers: int) -> float:
        """How many of a batch's states it holds until that batch is through (a memory budget)."""
        return 0

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
    source: Source | None = None,
    keep: Keep | None = None,
) -> None:
    """Run `model` over `batches` of token ids (sequence, token), layer by layer.

    `layers` is the model's list of decoder layers (see Family). `skip` names layers that are passed
    over: their entering state leaves unchanged. `beside` is how many batches stand side by side
    before a layer is run; the results do not depend on it. Raises InputError for layers or tokens
    that the model does not have.

    `source` brings the layers where they are not in `model`; `keep` puts states away as they come
    and returns what stands for them.

        loaded = prunekit.load(prunekit.Checkpoint.open("demo"))
        loaded.walk(text.batches(4), MyObserver())  # this function, with the model's own layers
    """
    skipped = frozenset(skip)
    if wrong := skipped.difference(range(len(layers))):
        raise InputError(
            f"can't skip layer {min(wrong)}: the model has layers 0 to {len(layers) - 1}"
        )
    device = next(weight.device for weight in model.parameters() if not weight.is_meta)
    head = any(observer.wants_logits for observer in observers)
    # The first layer always runs: it shows what form a layer's output has.
    order = [index for index in range(len(layers)) if index == 0 or index not in skipped]
    with torch.no_grad(), _kept_embeddings(model, keep), _stand_ins(layers) as real:
        for first, group in _groups(batches, beside):
            paused = [_Forward(model, tokens.to(device), keep) for tokens in group]
            with closing(source.in_turn(order) if source else _in_turn(real, order)) as coming:
                for index in range(len(layers)):
                    layer = next(coming) if index in order else None
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

    def __init__(self, model: PreTrainedModel, tokens: Tensor, keep: Keep | None) -> None:
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        if tokens.ndim != 2 or tokens.is_floating_point():
            raise InputError("token ids are whole numbers of shape (sequence, token)")
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
            raise InputError(f"token ids must lie in 0 to {vocabulary - 1}, the model's vocabulary")
        self.tokens = tokens
        self.keep = keep
        self.greenlet = greenlet(lambda: model(input_ids=tokens, use_cache=False))
        self.call = self.greenlet.switch()
        self.output: Any = None

    def step(self, index: int, layer: nn.Module | None, skip: bool) -> tuple[Tensor, Tensor]:
        """Let the forward go on to layer `index`, run the layer if there is one, and pass it over
        if so asked; the states entering and leaving."""
        if index:
            self.call = self.greenlet.switch(self.output)
        if self.greenlet.dead or self.call[0] != index:
            raise InputError("this model type does not run its layers once each, in order")
        _, args, kwargs = self.call
        entering = args[0] if args else kwargs["hidden_states"]
        if layer is not None:
            version = entering._version
            self.output = layer(*args, **kwargs)
            assert entering._version == version, "the layer writes into its entering state"
        if not skip and self.keep:
            self._hand_on(self.keep(self._state()))
        elif skip:
            # What it would have handed on beside the state stays what the layer before it did.
            self._hand_on(entering)
        shape = self.tokens.shape
        return _as_states(entering, shape), _as_states(self._state(), shape)

    def _state(self) -> Tensor:
        return self.output if isinstance(self.output, Tensor) else self.output[0]

    def _hand_on(self, state: Tensor) -> None:
        plain = isinstance(self.output, Tensor)
        self.output = state if plain else (state, *self.output[1:])

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


def _in_turn(layers: Sequence[nn.Module], order: Sequence[int]) -> Generator[nn.Module]:
    yield from (layers[index] for index in order)


@contextmanager
def _kept_embeddings(model: PreTrainedModel, keep: Keep | None) -> Iterator[None]:
    """With the embeddings' output put away as well: suspended forwards hold on to it."""
    if keep is None:
        yield
        return
    put_away = model.get_input_embeddings().register_forward_hook(
        lambda module, args, output: keep(output)
    )
    try:
        yield
    finally:
        put_away.remove()


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
