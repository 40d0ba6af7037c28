"""The states of a batch at all depths at once, for criteria that compare any two of them."""

from abc import abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.criteria._criterion import Criterion
from prunekit.model.units import HALVES, Part

CHUNK = 256  # tokens whose states of all layers are held in float32 at once


class OfDepths(Criterion):
    """Collects what `pick` takes of a batch's states at depth 0 to L, and hands it to `add`.

    Depth s is the state entering layer s; depth L leaves the last layer. So the pair (s, s + n)
    spans the block [s, s + n). `tokens` is `all`, or `last` for the last token of each sample.
    """

    tokens: str

    @abstractmethod
    def add(self, states: list[Tensor]) -> None:
        """Called once a batch: what was picked at depth 0 to L, each (token, hidden)."""

    def begin(self, layers: int, seed: int) -> None:
        self.layers = layers
        self.held: dict[int, list[Tensor]] = {}

    def keeps(self, layers: int) -> float:
        return 0 if self.tokens == "last" else layers + 1

    def see(self, layer: int, batch: int, entering: Tensor, leaving: Tensor) -> None:
        states = self.held.setdefault(batch, [])
        if layer == 0:
            states.append(self.pick(entering))
        states.append(self.pick(leaving))
        if layer == self.layers - 1:
            self.add(self.held.pop(batch))

    def pick(self, states: Tensor) -> Tensor:
        """(sequence, token, hidden) -> (token, hidden). Text is packed: the last token is real."""
        # A copy: a view would keep every token's state in memory.
        return states[:, -1].clone() if self.tokens == "last" else states.flatten(0, 1)


@dataclass
class OfPairs(OfDepths):
    """The mean, over tokens, of a function of the states at any two depths, in float32 whatever the
    model's dtype; with `halves`, of those before and after each half of a layer too (LLM-Drop, He
    et al. 2024, arXiv 2406.15786)."""

    halves: bool = False

    @abstractmethod
    def of(self, states: Tensor) -> Tensor:
        """States (token, depth, hidden) -> (token, depth, depth), earlier depth first."""

    @property
    def wants_halves(self) -> bool:  # type: ignore[override]
        return self.halves

    def begin(self, layers: int, seed: int) -> None:
        super().begin(layers, seed)
        self.total = torch.zeros(layers + 1, layers + 1, dtype=torch.float64)
        self.half_total = torch.full((len(HALVES), layers), torch.nan, dtype=torch.float64)
        self.count = torch.zeros((), dtype=torch.float64)

    def sums(self) -> list[Tensor]:
        return [self.total, self.half_total, self.count]

    def add(self, states: list[Tensor]) -> None:
        self.total += self._sum(states)
        self.count += len(states[0])

    def see_half(
        self, layer: int, half: Part, batch: int, entering: Tensor, leaving: Tensor
    ) -> None:
        found = self._sum([self.pick(entering), self.pick(leaving)])[0, 1]
        row = HALVES.index(half)
        self.half_total[row, layer] = self.half_total[row, layer].nan_to_num() + found

    def blocks(self) -> dict[int, list[float]]:
        mean = self.total / self.count
        return {length: mean.diagonal(length).tolist() for length in range(1, self.layers + 1)}

    def scores_of_halves(self) -> dict[str, list[float | None]]:
        if not self.halves:
            return {}
        means = (self.half_total / self.count).tolist()
        return {
            half: [None if mean != mean else mean for mean in row]  # noqa: PLR0124 (nan: no half)
            for half, row in zip(HALVES, means, strict=True)
        }

    def _sum(self, states: list[Tensor]) -> Tensor:
        total: Tensor | float = 0.0
        for chunk in zip(*(state.split(CHUNK) for state in states), strict=True):
            total = total + self.of(torch.stack(chunk, dim=1).float()).sum(0).double().cpu()
        assert isinstance(total, Tensor)
        return total


def cosines(states: Tensor) -> Tensor:
    """(token, depth, hidden) -> (token, depth, depth)."""
    unit = torch.nn.functional.normalize(states, dim=-1)
    return torch.bmm(unit, unit.transpose(1, 2)).clamp(-1, 1)


def distances(states: Tensor) -> Tensor:
    """Euclidean; (token, depth, hidden) -> (token, depth, depth).

    From the products of what the layers add, not of the states: states of neighbouring depths are
    so alike that the distance would drown in the rounding of |a|^2 + |b|^2 - 2ab in float32.
    """
    added = states.diff(dim=1)
    products = torch.bmm(added, added.transpose(1, 2)).double()
    upto = torch.nn.functional.pad(products.cumsum(1).cumsum(2), (1, 0, 1, 0))
    ends = upto.diagonal(dim1=1, dim2=2)
    return (ends.unsqueeze(1) + ends.unsqueeze(2) - 2 * upto).clamp(min=0).sqrt().float()
