"""How far the model's predictions move without a layer or half: KL divergence from the whole model.

KL(p || q) over the next token, in nats a token, p the whole model's (EvoPress's fitness, Sieberling
et al. 2024, arXiv 2410.14649). Unlike perplexity it does not reward luck on the calibration text.
"""

from dataclasses import dataclass

from prunekit.criteria._criterion import OfTrials
from prunekit.model.loss import Divergence as FromDense
from prunekit.model.loss import Logits, Mean


@dataclass
class Divergence(OfTrials):
    halves: bool = False

    def yardstick(self) -> Logits:
        return Logits()

    def watch(self) -> FromDense:
        return FromDense(self.dense)

    def of(self, trial: Mean) -> float:
        return trial.mean
