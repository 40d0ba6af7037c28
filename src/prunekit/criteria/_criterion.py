"""What a criterion is, and the means that angular and cosine share."""

from abc import abstractmethod

import torch
from torch import Tensor

from prunekit.model.walk import Observer

CHUNK = 256  # tokens whose states of all layers are held in float32 at once


class Criterion(Observer):
    """A file in `criteria/` holds one dataclass of this kind; its fields are its options."""

    needs_text = True  # False: the scores need no walk

    @abstractmethod
    def begin(self, layers: int, seed: int) -> None:
        """Called once, before the walk."""

    def sums(self) -> list[Tensor]:
        """Tensors that add up over batches: where several processes share a text, the others' are
        added to them in place before `blocks` is called. None: it must see all batches itself."""
        return []

    @abstractmethod
    def blocks(self) -> dict[int, list[float]]:
        """Called once, after the walk: block length -> the score of each start; low = removable."""


class OfCosines(Criterion):
    """The mean, over tokens, of a function of the cosine between the states at any two depths.

    Depth s is the state entering layer s; depth L leaves the last layer. So the pair (s, s + n)
    spans the block [s, s + n). Cosines are computed in float32 whatever the model's dtype.
    `tokens` is `all`, or `last` for the last token of each sample.
    """

    tokens: str

    @abstractmethod
    def of(self, cosine: Tensor) -> Tensor:
        """The function, element by element."""

    def begin(self, layers: int, seed: int) -> None:
        self.layers = layers
        self.total = torch.zeros(layers + 1, layers + 1, dtype=torch.float64)
        self.count = torch.zeros((), dtype=torch.float64)
        self.held: dict[int, list[Tensor]] = {}

    def keeps(self, layers: int) -> float:
        return 0 if self.tokens == "last" else layers + 1

    def sums(self) -> list[Tensor]:
        return [self.total, self.count]

    def see(self, layer: int, batch: int, entering: Tensor, leaving: Tensor) -> None:
        states = self.held.setdefault(batch, [])
        if layer == 0:
            states.append(self._picked(entering))
        states.append(self._picked(leaving))
        if layer == self.layers - 1:
            self._add(self.held.pop(batch))

    def blocks(self) -> dict[int, list[float]]:
        mean = self.total / self.count
        return {length: mean.diagonal(length).tolist() for length in range(1, self.layers + 1)}

    def _picked(self, states: Tensor) -> Tensor:
        """(sequence, token, hidden) -> (token, hidden). Text is packed: the last token is real."""
        return states[:, -1] if self.tokens == "last" else states.flatten(0, 1)

    def _add(self, states: list[Tensor]) -> None:
        for chunk in zip(*(state.split(CHUNK) for state in states), strict=True):
            stacked = torch.stack(chunk, dim=1).float()  # (token, depth, hidden)
            unit = torch.nn.functional.normalize(stacked, dim=-1)
            cosine = torch.bmm(unit, unit.transpose(1, 2)).clamp(-1, 1)
            self.total += self.of(cosine).sum(0).double().cpu()
            self.count += len(cosine)
