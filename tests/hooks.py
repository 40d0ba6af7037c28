"""States taken without prunekit's walk, to compare it with."""

import torch
from torch import Tensor

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
