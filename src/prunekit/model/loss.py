"""What a walk's logits say: the loss on the next token, and how far they are from another's."""

import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.model.walk import Observer


class Mean(Observer):
    """A mean over tokens, taken of a walk's logits; `sums` are the total and the tokens."""

    wants_logits = True

    def __init__(self) -> None:
        self.sums = torch.zeros(2, dtype=torch.float64)

    @property
    def mean(self) -> float:
        return (self.sums[0] / self.sums[1]).item()

    def add(self, values: Tensor, batch: int) -> None:
        """Raises InputError if one is not finite."""
        total = values.double().sum().cpu()
        if not total.isfinite():
            raise InputError(f"the model's logits are not finite (batch {batch} of the text)")
        self.sums += torch.stack([total, torch.tensor(values.numel(), dtype=torch.float64)])


class Loss(Mean):
    """Cross entropy of each token but a sample's first, in nats."""

    def see_logits(self, batch: int, tokens: Tensor, logits: Tensor) -> None:
        # One sequence at a time: float32 logits are large next to the model's own.
        for ids, scores in zip(tokens, logits, strict=True):
            self.add(
                torch.nn.functional.cross_entropy(
                    scores[:-1].float(), ids[1:], reduction="none"
                ),
                batch,
            )  # fmt: skip


class Logits(Observer):
    """Keeps a batch's logits until those of the next."""

    wants_logits = True
    logits: Tensor

    def see_logits(self, batch: int, tokens: Tensor, logits: Tensor) -> None:
        self.logits = logits


class Divergence(Mean):
    """KL(p || q) in nats a token, of the next token's distribution p in the batch's logits that
    `dense` keeps and q in those seen; `dense` must watch a variant before this one."""

    def __init__(self, dense: Logits) -> None:
        super().__init__()
        self.dense = dense

    def see_logits(self, batch: int, tokens: Tensor, logits: Tensor) -> None:
        for right, given in zip(self.dense.logits, logits, strict=True):
            p, q = right.float().log_softmax(-1), given.float().log_softmax(-1)
            self.add((p.exp() * (p - q)).sum(-1), batch)
