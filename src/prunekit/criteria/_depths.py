"""The states of a batch at all depths at once, for criteria that compare any two of them."""

from abc import abstractmethod

from torch import Tensor

from prunekit.criteria._criterion import Criterion
from prunekit.errors import InputError


class OfDepths(Criterion):
    """Collects what `pick` takes of a batch's states at depth 0 to L, and hands it to `add`.

    Depth s is the state entering layer s; depth L leaves the last layer. So the pair (s, s + n)
    spans the block [s, s + n). `tokens` is `all`, or `last` for the last token of each sample.
    Raises InputError for states that are not finite.
    """

    tokens: str

    @abstractmethod
    def add(self, batch: int, states: list[Tensor]) -> None:
        """Called once a batch: what was picked at depth 0 to L."""

    def begin(self, layers: int, seed: int) -> None:
        self.layers = layers
        self.held: dict[int, list[Tensor]] = {}

    def keeps(self, layers: int) -> float:
        return 0 if self.tokens == "last" else layers + 1

    def see(self, layer: int, batch: int, entering: Tensor, leaving: Tensor) -> None:
        states = self.held.setdefault(batch, [])
        if layer == 0:
            states.append(self.pick(_finite(entering, "entering layer 0", batch)))
        states.append(self.pick(_finite(leaving, f"leaving layer {layer}", batch)))
        if layer == self.layers - 1:
            self.add(batch, self.held.pop(batch))

    def pick(self, states: Tensor) -> Tensor:
        """(sequence, token, hidden) -> (token, hidden). Text is packed: the last token is real."""
        # A copy: a view would keep every token's state in memory.
        return states[:, -1].clone() if self.tokens == "last" else states.flatten(0, 1)


def _finite(states: Tensor, where: str, batch: int) -> Tensor:
    finite = states.isfinite()
    if not finite.all():
        sequence = finite.flatten(1).all(1).tolist().index(False)
        raise InputError(
            f"the state {where} is not finite in batch {batch}, sequence {sequence}, so nothing "
            "can be scored; try --dtype float32"
        )
    return states
