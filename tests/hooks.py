"""States taken without prunekit's walk, to compare it with."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.model.load import Loaded


def hooked_states(loaded: Loaded, tokens: Tensor) -> Tensor:
    """Raw states (depth, sample, token, hidden) of a Llama, by torch's own hooks on its layers."""
    layers = loaded.model.model.layers
    seen: list[Tensor] = []
    hooks = [layers[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))]
    hooks += [layer.register_forward_hook(lambda *args: seen.append(args[2])) for layer in layers]
    with torch.no_grad():
        loaded.model(tokens)
    for hook in hooks:
        hook.remove()
    return torch.stack(seen)


@contextmanager
def skipping(layers: Iterable[nn.Module], skipped: Iterable[int]) -> Iterator[None]:
    """Within the block these layers give what they are given."""

    def give_back(_: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
        state = args[0] if args else kwargs["hidden_states"]
        return state if isinstance(output, Tensor) else (state, *output[1:])

    places = list(layers)
    hooks = [places[layer].register_forward_hook(give_back, with_kwargs=True) for layer in skipped]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
