"""Gradients of the language-model loss, one layer at a time.

A walk writes down what every layer is given; the head gives the gradient of the loss by the last
state; then each layer, last to first, is run again with gradients, so that one layer's weights and
gradients are in memory, beside the states. Gradients are those of a whole backward pass.
"""

from collections.abc import Iterable
from contextlib import closing

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from prunekit.errors import InputError
from prunekit.model.walk import Call, Forward, Keep, Source, in_turn, kept_embeddings, stand_ins


class GradientObserver:
    """Watches a walk back; override `see_gradients`."""

    def see_gradients(self, layer: int, module: nn.Module) -> None:
        """Called once a layer, last to first: every parameter's `grad` is the gradient of the mean
        loss of a batch (nats a token), added up over all batches."""


def walk_back(
    model: PreTrainedModel,
    layers: nn.ModuleList,
    batches: Iterable[Tensor],
    *observers: GradientObserver,
    source: Source | None = None,
    keep: Keep | None = None,
) -> None:
    """Show the gradients of each layer to the observers, last layer first.

    All batches stand side by side; `source` and `keep` are those of `walk_variants`. Raises
    InputError if the loss is not finite, or if layers hand more than a state on to later ones.
    """
    model.requires_grad_(False)
    device = next(weight.device for weight in model.parameters() if not weight.is_meta)
    order = range(len(layers))
    with kept_embeddings(model, keep), stand_ins(layers) as real:
        calls: list[list[Call]] = []
        with torch.no_grad():
            forwards = [Forward(model, tokens.to(device), keep=keep) for tokens in batches]
            with closing(source.in_turn(order) if source else in_turn(real, order)) as coming:
                for index, layer in enumerate(coming):
                    for forward in forwards:
                        forward.advance(index)
                        if not forward.repeatable:
                            raise InputError(
                                f"model type {model.config.model_type!r}: gradients can't be taken "
                                "layer by layer, as layers share keys and values"
                            )
                        forward.run(index, layer)
                    calls.append([forward.called() for forward in forwards])
        gradients = [_of_the_head(forward, number) for number, forward in enumerate(forwards)]
        del forwards
        back = order[::-1]
        with closing(source.in_turn(back) if source else in_turn(real, back)) as coming:
            for index, layer in zip(back, coming, strict=True):
                layer.requires_grad_(True)
                given = calls.pop()
                for number, gradient in enumerate(gradients):
                    gradients[number] = _through(layer, given[number], gradient)
                for observer in observers:
                    observer.see_gradients(index, layer)
                layer.zero_grad(set_to_none=True)
                layer.requires_grad_(False)


def _of_the_head(forward: Forward, number: int) -> Tensor:
    """The gradient of a batch's mean loss by the state that leaves the last layer."""
    forward.check_finite(number)
    state = forward.state.detach().requires_grad_()
    forward.hand_on(state)
    with torch.enable_grad():
        logits = forward.finish(head=True)
        assert logits is not None
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].flatten(0, 1).float(), forward.tokens[:, 1:].flatten()
        )
        if not torch.isfinite(loss):
            raise InputError(f"the model's loss is {loss.item()} (batch {number} of the text)")
        loss.backward()
    assert state.grad is not None
    return state.grad


def _through(layer: nn.Module, call: Call, gradient: Tensor) -> Tensor:
    """The gradient by the state entering a layer, from that by the state leaving it."""
    with torch.enable_grad():
        entering = call.entering.detach().requires_grad_()
        call.given(entering).of(layer).backward(gradient)
    assert entering.grad is not None
    return entering.grad
