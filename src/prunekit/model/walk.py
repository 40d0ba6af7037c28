"""Runs a model layer by layer over a text while others observe.

The model's own `forward` is borrowed: a stand-in takes the place of every decoder layer, and when
forward calls one, the forward is suspended there (a greenlet) and hands over the arguments that the
layer would get: masks, positions, rotary embeddings, whatever the family needs. The walk runs the
real layer with those arguments, shows its states to the observers, and lets the forward go on. So
the states are those of transformers bit for bit, the code that prepares a layer's arguments is
transformers' own, and any number of batches can stand side by side before the same layer.
"""

from collections.abc import (
    Callable,
    Container,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunekit.errors import InputError
from prunekit.model.mute import Halves
from prunekit.model.units import HALVES, Part, Variant, named

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
    wants_halves = False

    def keeps(self, layers: int) -> float:
        """How many of a batch's states it holds until that batch is through (a memory budget)."""
        return 0

    def see(self, layer: int, batch: int, entering: Tensor, leaving: Tensor) -> None:
        """Called after each layer on each batch.

        States are raw (before any final norm), in the model's dtype, shaped (sequence, token,
        hidden). They may be kept, never written to.
        """

    def see_half(
        self, layer: int, half: Part, batch: int, entering: Tensor, leaving: Tensor
    ) -> None:
        """Called after `see` for each half of the layer if `wants_halves`: `attention`, then `mlp`.

        Between them lies the state that leaves the layer with its MLP muted.
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
    that the model does not have, or if a state is not finite.

        loaded = prunekit.load(prunekit.Checkpoint.open("demo"))
        loaded.walk(text.batches(4), MyObserver())  # this function, with the model's own layers
    """
    variant: Variant = frozenset((layer, "layer") for layer in skip)
    walk_variants(model, layers, batches, {variant: observers}, beside=beside)


def walk_variants(
    model: PreTrainedModel,
    layers: nn.ModuleList,
    batches: Iterable[Tensor],
    variants: Mapping[Variant, Sequence[Observer]],
    *,
    beside: int = 1,
    halves: Halves | None = None,
    source: Source | None = None,
    keep: Keep | None = None,
) -> None:
    """Walk several variants of a model at once, each watched by its own observers.

    Variants that have done without the same units so far share one state: it is computed once, and
    they branch off where they differ. So leaving out each of L layers in turn costs about half of L
    forwards, and every layer's weights are visited once. In each batch logits come in the order of
    `variants`. `halves` mutes halves of layers; `source` brings the layers where they are not in
    `model`; `keep` puts states away as they come and returns what stands for them.
    """
    for number, _ in frozenset().union(*variants):
        if not 0 <= number < len(layers):
            raise InputError(
                f"can't skip layer {number}: the model has layers 0 to {len(layers) - 1}"
            )
    device = next(weight.device for weight in model.parameters() if not weight.is_meta)
    # The first layer always runs: it shows what form a layer's output has.
    gone = frozenset.intersection(*map(frozenset, variants)) if variants else frozenset()
    order = [index for index in range(len(layers)) if index == 0 or (index, "layer") not in gone]
    with torch.no_grad(), kept_embeddings(model, keep), stand_ins(layers) as real:
        for first, group in _groups(batches, beside):
            paused = [
                [Forward(model, tokens.to(device), variant, halves, keep) for variant in variants]
                for tokens in group
            ]
            with closing(source.in_turn(order) if source else in_turn(real, order)) as coming:
                for index in range(len(layers)):
                    layer = next(coming) if index in order else None
                    for number, forwards in enumerate(paused, first):
                        _step(forwards, index, layer, number, variants.values())
            for number, forwards in enumerate(paused, first):
                for forward, observers in zip(forwards, variants.values(), strict=True):
                    forward.check_finite(number)
                    logits = forward.finish(any(watcher.wants_logits for watcher in observers))
                    for watcher in observers:
                        if watcher.wants_logits and logits is not None:
                            watcher.see_logits(number, forward.tokens, logits)


@dataclass(frozen=True)
class Call:
    """What a layer was called with on one batch, and the state that it gave."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    leaving: Tensor

    @property
    def entering(self) -> Tensor:
        return self.args[0] if self.args else self.kwargs["hidden_states"]

    def given(self, entering: Tensor) -> "Call":
        """The same call with another state."""
        if self.args:
            return replace(self, args=(entering, *self.args[1:]))
        return replace(self, kwargs={**self.kwargs, "hidden_states": entering})

    def of(self, layer: nn.Module) -> Tensor:
        """The state that another layer in its place gives."""
        output = layer(*self.args, **self.kwargs)
        return output if isinstance(output, Tensor) else output[0]


def calls(
    model: PreTrainedModel,
    layers: nn.ModuleList,
    batches: Sequence[Tensor],
    wanted: Container[int],
    end: int,
    *,
    source: Source | None = None,
    bare: bool = False,
) -> list[dict[int, Call]]:
    """Run layers 0 to `end` - 1 on the batches, side by side, and no further; for each batch the
    calls of the `wanted` ones.

    `bare` calls have wrong states, and all else right: but for the first, no layer is run. Raises
    InputError if a state is not finite, or if layers hand more than a state to later ones.
    """
    found: list[dict[int, Call]] = [{} for _ in batches]
    device = next(weight.device for weight in model.parameters() if not weight.is_meta)
    with torch.no_grad(), stand_ins(layers) as real:
        forwards = [Forward(model, tokens.to(device)) for tokens in batches]
        order = range(1 if bare else end)
        with closing(source.in_turn(order) if source else in_turn(real, order)) as coming:
            for index in range(end):
                layer = next(coming) if index in order else None
                for number, forward in enumerate(forwards):
                    forward.advance(index)
                    if not forward.repeatable:
                        raise InputError(
                            f"model type {model.config.model_type!r}: its layers can't be run "
                            "alone, as they share keys and values"
                        )
                    forward.run(index, layer)
                    if layer is None:
                        forward.hand_on(forward.entering)
                    if index in wanted:
                        found[number][index] = forward.called()
        for number, forward in enumerate(forwards):
            forward.check_finite(number)
            forward.finish(head=False)
    return found


def _step(
    forwards: list["Forward"],
    index: int,
    layer: nn.Module | None,
    number: int,
    watching: Iterable[Sequence[Observer]],
) -> None:
    """Run one layer on one batch, for every variant."""
    known: dict[Variant, Forward] = {}
    for forward, observers in zip(forwards, watching, strict=True):
        entering = forward.advance(index)
        like = known.get(forward.path(index))
        if like and forward.repeatable:
            forward.output = like.output
        else:
            forward.run(index, layer)
            known[forward.path(index)] = forward
        leaving = forward.leaving
        for watcher in observers:
            watcher.see(index, number, entering, leaving)
        if layer is not None and any(watcher.wants_halves for watcher in observers):
            for half, before, after in forward.halves_of(index, layer, entering, leaving):
                for watcher in observers:
                    if watcher.wants_halves:
                        watcher.see_half(index, half, number, before, after)


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


class Forward:
    """One batch's suspended forward, for one variant of the model."""

    def __init__(
        self,
        model: PreTrainedModel,
        tokens: Tensor,
        variant: Variant = frozenset(),
        halves: Halves | None = None,
        keep: Keep | None = None,
    ) -> None:
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        if tokens.ndim != 2 or tokens.is_floating_point():
            raise InputError("token ids are whole numbers of shape (sequence, token)")
        if not 0 <= int(tokens.min()) <= int(tokens.max()) < vocabulary:
            raise InputError(f"token ids must lie in 0 to {vocabulary - 1}, the model's vocabulary")
        self.tokens = tokens
        self.variant = variant
        self.halves = halves
        self.keep = keep
        self.greenlet = greenlet(lambda: model(input_ids=tokens, use_cache=False))
        self.call = self.greenlet.switch()
        self.output: Any = None
        self.finite: list[Tensor] = []  # of the state that each layer was given: by sequence

    def advance(self, index: int) -> Tensor:
        """Let the forward go on to the call of layer `index`; the state entering it."""
        if index:
            self.call = self.greenlet.switch(self.output)
        if self.greenlet.dead or self.call[0] != index:
            raise InputError("this model type does not run its layers once each, in order")
        entering = _as_states(self.entering, self.tokens.shape)
        self.finite.append(entering.isfinite().flatten(1).all(1))
        return entering

    def called(self) -> Call:
        """The call of the layer that was just run."""
        _, args, kwargs = self.call
        return Call(args, kwargs, self.state)

    def path(self, index: int) -> Variant:
        """What the variant has done without up to and including layer `index`."""
        return frozenset(unit for unit in self.variant if unit[0] <= index)

    def run(self, index: int, layer: nn.Module | None) -> None:
        """Run layer `index` if there is one, without what the variant does without."""
        entering = self.entering
        muted = [part for part in HALVES if (index, part) in self.variant]
        if layer is not None:
            self.output = self._called(index, layer, muted)
        if (index, "layer") in self.variant:
            # What it would have handed on beside the state stays what the layer before it did.
            self.hand_on(entering)
        elif self.keep:
            self.hand_on(self.keep(self.state))

    def check_finite(self, batch: int) -> None:
        """Raises InputError if any state so far was not finite. Asked once a batch: a GPU need not
        be waited for at each layer."""
        states = torch.stack([*self.finite, self.leaving.isfinite().flatten(1).all(1)])
        if not states.all():
            layer, sequence = (~states).nonzero()[0].tolist()
            where = f"leaving layer {layer - 1}" if layer else "entering layer 0"
            without = f", without {named(self.variant)}," if self.variant else ""
            raise InputError(
                f"the state {where}{without} is not finite in batch {batch}, sequence {sequence} "
                "of the text; try --dtype float32"
            )

    def halves_of(
        self, index: int, layer: nn.Module, entering: Tensor, leaving: Tensor
    ) -> Iterator[tuple[Part, Tensor, Tensor]]:
        """The states before and after each half that the layer has; MLP last."""
        assert self.halves is not None
        has = [part for part in HALVES if self.halves.has(index, part)]
        middle = leaving
        if "mlp" in has:
            output = self._called(index, layer, ["mlp"])
            middle = _as_states(
                output if isinstance(output, Tensor) else output[0], self.tokens.shape
            )
        if "attention" in has:
            yield "attention", entering, middle
        if "mlp" in has:
            yield "mlp", middle, leaving

    @property
    def entering(self) -> Tensor:
        _, args, kwargs = self.call
        return args[0] if args else kwargs["hidden_states"]

    @property
    def leaving(self) -> Tensor:
        return _as_states(self.state, self.tokens.shape)

    @property
    def state(self) -> Tensor:
        return self.output if isinstance(self.output, Tensor) else self.output[0]

    @property
    def repeatable(self) -> bool:
        """Whether the layer gets nothing that it could write into, as layers do that share keys."""
        _, args, kwargs = self.call
        return not any(isinstance(value, dict | list) for value in (*args, *kwargs.values()))

    def finish(self, head: bool) -> Tensor | None:
        """The logits, if asked for; else the forward is abandoned before the final norm."""
        if not head:
            self.greenlet.throw(GreenletExit)
            return None
        result = self.greenlet.switch(self.output)
        if not self.greenlet.dead:
            raise InputError("this model type runs more layers than its list holds")
        return result.logits

    def _called(self, index: int, layer: nn.Module, muted: Sequence[Part]) -> Any:
        _, args, kwargs = self.call
        entering = self.entering
        version = entering._version
        with self.halves.muted(index, layer, muted) if self.halves else nullcontext():
            output = layer(*args, **kwargs)
        assert entering._version == version, "the layer writes into its entering state"
        return output

    def hand_on(self, state: Tensor) -> None:
        """Let the layer's output have another state."""
        plain = isinstance(self.output, Tensor)
        self.output = state if plain else (state, *self.output[1:])


def _as_states(states: Tensor, shape: Sequence[int]) -> Tensor:
    """As (sequence, token, hidden), with parallel residual streams laid side by side."""
    if states.ndim == 3:
        return states
    sequence, token = (list(states.shape).index(size) for size in shape)
    return states.movedim((sequence, token), (0, 1)).flatten(2)


@contextmanager
def stand_ins(layers: nn.ModuleList) -> Iterator[list[nn.Module]]:
    real = list(layers)
    try:
        for index, layer in enumerate(real):
            layers[index] = _StandIn(index, layer)
        yield real
    finally:
        for index, layer in enumerate(real):
            layers[index] = layer


def in_turn(layers: Sequence[nn.Module], order: Sequence[int]) -> Generator[nn.Module]:
    yield from (layers[index] for index in order)


@contextmanager
def kept_embeddings(model: PreTrainedModel, keep: Keep | None) -> Iterator[None]:
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
