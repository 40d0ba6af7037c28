"""What a criterion is: something that is shown parts of a model at work, and gives scores."""

from abc import abstractmethod
from collections.abc import Iterable
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from prunekit.model.loss import Mean
from prunekit.model.units import HALVES, Unit
from prunekit.model.walk import Observer
from prunekit.model.walk_back import GradientObserver

Needs = Literal["nothing", "weights", "states", "gradients", "trials"]


class Criterion(Observer, GradientObserver):
    """A file in `criteria/` holds one dataclass of this kind; its fields are its options.

    `needs` says what it is shown: the `states` of a walk (`see`, `see_half`), `gradients`
    (`see_gradients`), `weights` (`see_weights`), what the model gives without each unit (`trials`:
    see OfTrials), or `nothing`. Low scores = safe to remove.
    """

    needs: ClassVar[Needs] = "states"

    @abstractmethod
    def begin(self, layers: int, seed: int) -> None:
        """Called once, before anything is shown."""

    def see_weights(self, layer: int, module: nn.Module) -> None:
        """Called once a layer with its weights, if it needs `weights`."""

    def sums(self) -> list[Tensor]:
        """Tensors that add up over batches: where several processes share a text, the others' are
        added to them in place before `blocks` is called. None: it must see all batches itself."""
        return []

    @abstractmethod
    def blocks(self) -> dict[int, list[float]]:
        """Called once, at the end: block length -> the score of each start."""

    def scores_of_halves(self) -> dict[str, list[float | None]]:
        """Called once, at the end: the scores of each layer's `attention` and `mlp`, if it has
        any; None where a layer has no such half."""
        return {}


class OfLayers(Criterion):
    """Gives each layer a score of its own, in `scores`; blocks have the sum of their layers'."""

    def begin(self, layers: int, seed: int) -> None:
        self.scores = [0.0] * layers

    def blocks(self) -> dict[int, list[float]]:
        return {1: self.scores}


class OfTrials(Criterion):
    """Watches the model without each layer in turn, and with `halves` without each half, all in one
    walk; a block has the sum of its layers' scores."""

    needs = "trials"
    halves: bool

    @abstractmethod
    def yardstick(self) -> Any:
        """Who watches the whole model: `self.dense`, which sees each batch first."""

    @abstractmethod
    def watch(self) -> Mean:
        """Who watches the model without something."""

    @abstractmethod
    def of(self, trial: Mean) -> float:
        """What it costs to be without that; asked at the end."""

    def begin(self, layers: int, seed: int) -> None:
        self.layers = layers
        self.dense = self.yardstick()
        self.trials: dict[Unit, Mean] = {}

    def watch_without(self, unit: Unit) -> Mean:
        """Who watches the model without a unit."""
        self.trials[unit] = self.watch()
        return self.trials[unit]

    def sums(self) -> list[Tensor]:
        means = [self.dense, *self.trials.values()]
        return [mean.sums for mean in means if isinstance(mean, Mean)]

    def blocks(self) -> dict[int, list[float]]:
        return {1: [self.of(self.trials[layer, "layer"]) for layer in range(self.layers)]}

    def scores_of_halves(self) -> dict[str, list[float | None]]:
        if not self.halves:
            return {}
        return {
            half: [
                self.of(self.trials[layer, half]) if (layer, half) in self.trials else None
                for layer in range(self.layers)
            ]
            for half in HALVES
        }


def salience(weights: Iterable[Tensor], power: float) -> float:
    """The sum of absolute values to a power, over tensors, in float32."""
    return sum(weight.detach().float().abs().pow(power).sum().item() for weight in weights)
