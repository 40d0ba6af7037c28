"""How far a block is from the best linear map of the state entering it (1 - R^2 of the fit).

Least squares x[e] ~ x[s] W + b over all tokens: one minus the linearity score of Razzhigaev et al.
2024 (arXiv 2405.12250), and ReplaceMe's loss (arXiv 2505.02819) taken on whole states. Low = a
matrix could do the block's work, not that nothing need do it. As in the paper, tokens with large
states count for more.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.criteria._depths import OfDepths
from prunekit.errors import InputError

SINGULAR = 1e-6  # a Cholesky pivot of a correlation matrix that is rounding and no more


@dataclass
class Linear(OfDepths):
    """Scores every block from second moments, in float64: R^2 near 1 cancels digits.

    Targets are looked at along `directions` random orthonormal directions. The best map to them is
    the best map, seen so, hence the error is an estimate of the whole one's, exact with as many
    directions as the state is wide. `alpha` is a ridge on standardised entering states: without it
    (0) depths whose states do not span the space, such as few different tokens' embeddings, are
    refused. Takes 8 (L H^2 + L^2 / 2 H directions) bytes of main memory: 5 GiB for L 32, H 4096.
    """

    directions: int = 64
    alpha: float = 1e-6
    tokens = "all"

    def __post_init__(self) -> None:
        if self.directions < 1 or not self.alpha >= 0:
            raise InputError("criterion 'linear' takes directions from 1 and alpha from 0")

    def begin(self, layers: int, seed: int) -> None:
        super().begin(layers, seed)
        self.seed = seed
        self.count = torch.zeros((), dtype=torch.float64)
        self.moments: list[Tensor] = []  # made when the first batch tells the width

    def sums(self) -> list[Tensor]:
        return [self.count, *self.moments]

    def add(self, states: list[Tensor]) -> None:
        if not self.moments:
            self._make(states[0].shape[-1])
        sources, sights, squares, *products = self.moments
        directions = self.random.to(states[0].device)
        seen = torch.stack([state.double() @ directions for state in states], dim=1)
        for depth in range(self.layers):
            source = states[depth].double()  # (token, hidden)
            later = seen[:, depth + 1 :].flatten(1)  # (token, later depths * directions)
            sources[depth] += source.sum(0).cpu()
            products[2 * depth] += (source.T @ source).cpu()
            products[2 * depth + 1] += (source.T @ later).cpu()
        sights += seen.sum(0).cpu()
        squares += seen.square().sum((0, 2)).cpu()
        self.count += len(seen)

    def blocks(self) -> dict[int, list[float]]:
        wide = len(self.random)
        if self.count <= wide:
            raise InputError(
                f"criterion 'linear': {int(self.count)} tokens fit any map of states of width "
                f"{wide}; it needs more than {wide}, better several times as many"
            )
        errors = [self._errors(start) for start in range(self.layers)]
        return {
            length: [errors[start][length - 1] for start in range(self.layers - length + 1)]
            for length in range(1, self.layers + 1)
        }

    def _make(self, wide: int) -> None:
        generator = torch.Generator().manual_seed(self.seed)
        many = min(self.directions, wide)
        drawn = torch.randn(wide, many, dtype=torch.float64, generator=generator)
        self.random = torch.linalg.qr(drawn).Q
        depths = self.layers
        shapes: list[tuple[int, ...]] = [(depths, wide), (depths + 1, many), (depths + 1,)]
        for depth in range(depths):
            shapes += [(wide, wide), (wide, (depths - depth) * many)]
        self.moments = [torch.zeros(shape, dtype=torch.float64) for shape in shapes]

    def _errors(self, start: int) -> list[float]:
        """1 - R^2 of the fits from depth `start` to each later depth."""
        sources, sights, squares, *products = self.moments
        mean, means = sources[start] / self.count, sights[start + 1 :] / self.count
        within = products[2 * start] / self.count - torch.outer(mean, mean)
        across = products[2 * start + 1] / self.count - torch.outer(mean, means.flatten())
        spread = within.diagonal().clamp(min=0).sqrt()
        scale = torch.where(spread > 0, 1 / spread, 0)
        within.mul_(scale).mul_(scale[:, None]).diagonal().add_(self.alpha)
        across.mul_(scale[:, None])
        factor, failed = torch.linalg.cholesky_ex(within)
        if failed or factor.diagonal().min() < SINGULAR:
            raise InputError(
                f"criterion 'linear': the states at depth {start} lie in fewer than "
                f"{len(mean)} dimensions; give alpha=1e-6 or more text"
            )
        fit = torch.cholesky_solve(across, factor)
        # What the fit explains: tr W'C + alpha tr W'W, by W = (S + alpha I)^-1 C.
        explained = (fit * across + self.alpha * fit.square()).sum(0).view(means.shape).sum(1)
        variance = squares[start + 1 :] / self.count - means.square().sum(1)
        return (1 - explained / variance).clamp(min=0).tolist()
