"""What training minimises: the language loss, and the distance to a dense teacher.

`language` is the cross entropy of the next token (nats a token). `logits` is KL(teacher || student)
of the next token at a temperature, times its square (Hinton et al., arXiv 1503.02531), in nats a
token. `states` is the squared distance of the states entering the layers that both have, by the
teacher's numbering, over their squared size. `mse` and `cosine` are of a replaced block alone: its
leaving state against the teacher's (LLM-Streamline, arXiv 2403.19135).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.plugins import nearest

WHOLE = {
    "language": "Cross entropy of the next token.",
    "logits": "KL of the dense teacher's distribution of the next token.",
    "states": "Squared distance to the teacher's states, layer by layer.",
}
LOCAL = {
    "mse": "Squared distance to the state leaving the replaced block.",
    "cosine": "1 - cosine to the state leaving the replaced block.",
}


@dataclass(frozen=True)
class TopK:
    """The teacher's largest logits: `values` (token, k), log probabilities, and `tokens`, ids."""

    values: Tensor
    tokens: Tensor

    def of(self, piece: slice) -> "TopK":
        return TopK(self.values[piece], self.tokens[piece])


def parse_losses(given: dict[str, float]) -> dict[str, float]:
    """The losses with a weight above 0. Raises InputError for others than there are."""
    for name, weight in given.items():
        if name not in WHOLE | LOCAL:
            raise InputError(f"no loss called {name!r}{nearest(name, [*WHOLE, *LOCAL])}")
        if not 0 <= weight < float("inf"):
            raise InputError(f"loss {name}={weight}: a weight is a number from 0 on")
    wanted = {name: float(weight) for name, weight in given.items() if weight}
    if not wanted:
        raise InputError("no loss to minimise; give --losses language=1, say")
    if wanted.keys() & WHOLE.keys() and wanted.keys() & LOCAL.keys():
        raise InputError(
            f"losses of the whole model ({', '.join(WHOLE)}) and of a replaced block "
            f"({', '.join(LOCAL)}) can't be mixed"
        )
    return wanted


def language(logits: Tensor, targets: Tensor) -> Tensor:
    """The sum over tokens; logits (token, vocabulary) of any dtype, targets (token)."""
    return torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")


def divergence(logits: Tensor, teacher: Tensor | TopK, temperature: float) -> Tensor:
    """The sum over tokens of temperature² · KL(teacher || student).

    Of a teacher's top k, all other tokens are one: their probabilities are added up on both sides
    (which needs a temperature of 1).
    """
    student = (logits.float() / temperature).log_softmax(-1)
    if isinstance(teacher, TopK):
        held = student.gather(-1, teacher.tokens)
        p, q = _with_rest(teacher.values.float()), _with_rest(held)
        return (p.exp() * (p - q)).sum()
    right = (teacher.float() / temperature).log_softmax(-1)
    return temperature**2 * torch.nn.functional.kl_div(
        student, right, reduction="sum", log_target=True
    )


def _with_rest(logs: Tensor) -> Tensor:
    """Log probabilities with that of all that are not among them as one more."""
    least = torch.finfo(torch.float32).tiny
    rest = (1 - logs.exp().sum(-1, keepdim=True)).clamp_min(least).log()
    return torch.cat([logs, rest], -1)


def distance(states: Tensor, teacher: Tensor) -> Tensor:
    """|states - teacher|² / |teacher|², over everything."""
    right = teacher.float()
    return (states.float() - right).square().sum() / right.square().sum()


def mse(states: Tensor, teacher: Tensor) -> Tensor:
    return torch.nn.functional.mse_loss(states.float(), teacher.float())


def cosine(states: Tensor, teacher: Tensor) -> Tensor:
    return 1 - torch.nn.functional.cosine_similarity(states.float(), teacher.float(), dim=-1).mean()
