"""How much the loss on the next token rises without a layer or half (Shortened LLaMA, SLEB).

Kim et al. 2024, arXiv 2402.02834: the perplexity without each block; here its logarithm less that
of the whole model, in nats a token, which has the same order. Below zero: the model is better
without.
"""

from dataclasses import dataclass

from prunekit.criteria._criterion import OfTrials
from prunekit.model.loss import Loss, Mean


@dataclass
class Perplexity(OfTrials):
    halves: bool = False

    def yardstick(self) -> Loss:
        return Loss()

    def watch(self) -> Loss:
        return Loss()

    def of(self, trial: Mean) -> float:
        return trial.mean - self.dense.mean
