"""A model's own way from its last states to logits, for a few tokens at a time.

Logits are the largest thing in training: tokens x vocabulary, in float32, more than once. Here they
exist for one chunk of tokens only, and again on the way back. What a family does behind its output
embedding (scales, soft caps) is done by its own forward: a stand-in takes the decoder's place and
gives it the states.
"""

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

CHUNK = 2**24  # logits at once: 64 MiB of them in float32


class Head:
    """Logits of last states, by the model's own forward.

    `decoder` gives those states, normed: (sequence, token, hidden).
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        decoder = model.get_decoder()
        paths = [path for path, module in model.named_modules() if module is decoder and path]
        self.parent, self.name = None, ""
        if paths:
            parent, _, self.name = paths[0].rpartition(".")
            self.parent = model.get_submodule(parent)
        vocabulary = model.config.get_text_config(decoder=True).vocab_size
        self.chunk = max(16, CHUNK // vocabulary)  # tokens

    @property
    def can_chunk(self) -> bool:
        """Whether the decoder is a part that another can stand in for, to the same logits."""
        if self.parent is None:
            return False
        tokens = torch.zeros(1, 3, dtype=torch.long, device=self.model.device)
        with torch.no_grad():
            try:
                whole = self.model(input_ids=tokens, use_cache=False).logits
                return torch.equal(whole[0], self.logits(self.states(tokens)[0]))
            except (AttributeError, TypeError, KeyError, IndexError, ValueError, RuntimeError):
                return False

    def states(self, tokens: Tensor) -> Tensor:
        """The last states of token ids (sequence, token)."""
        assert self.parent is not None
        output = getattr(self.parent, self.name)(input_ids=tokens, use_cache=False)
        return output[0]

    def logits(self, states: Tensor) -> Tensor:
        """Logits (token, vocabulary) of last states (token, hidden)."""
        assert self.parent is not None
        decoder = self.parent._modules[self.name]
        # Not set as an attribute: a module would take the decoder out of optimisers and hooks.
        self.parent._modules[self.name] = _Given(states[None])
        try:
            ids = torch.zeros(1, len(states), dtype=torch.long, device=states.device)
            return self.model(input_ids=ids, use_cache=False).logits[0]
        finally:
            self.parent._modules[self.name] = decoder


class _Output(BaseModelOutputWithPast):
    """Has what any decoder's output has: None, but for the states."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return None


class _Given(nn.Module):
    """Stands where the decoder was, and gives the states it was made with."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states

    def forward(self, *_: Any, **__: Any) -> _Output:
        return _Output(last_hidden_state=self.states)
