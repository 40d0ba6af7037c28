"""Train low-rank adapters beside the matrices of the decoder layers, and merge them (LoRA).

Hu et al., arXiv 2106.09685, by peft. Fused experts, matrices named like them and routers have
none. A matrix with zeros is trained as (W + s BA) where W is not zero, so what is merged is what
was trained.
"""

from dataclasses import dataclass
from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from prunekit.errors import InputError
from prunekit.healing.adapters import quiet_peft
from prunekit.healing.healers._healer import Healer, Patient
from prunekit.model.family import ROUTER

# Where experts are fused, peft takes any module of these names for one of them.
EXPERTS = ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3")


@dataclass
class Lora(Healer):
    """`targets` is all, or some last words of names, such as q_proj,v_proj."""

    rank: int = 16
    alpha: int = 32
    dropout: float = 0.0
    targets: str = "all"

    rate = 3e-3

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha < 1 or not 0 <= self.dropout < 1:
            raise InputError(
                f"healer 'lora', rank={self.rank}, alpha={self.alpha}, dropout={self.dropout}: "
                "rank and alpha are 1 or more, dropout is from 0 to below 1"
            )

    def adapt(self, patient: Patient) -> nn.Module:
        with quiet_peft():
            from peft import LoraConfig, get_peft_model

            config = LoraConfig(
                r=self.rank, lora_alpha=self.alpha, lora_dropout=self.dropout, bias="none",
                target_modules=self.matrices(patient), task_type="CAUSAL_LM",
            )  # fmt: skip
            net = get_peft_model(patient.model, config)
        keep_zeros(net)
        return net

    def choose(self, patient: Patient) -> list[nn.Parameter]:
        return [weight for name, weight in patient.model.named_parameters() if "lora_" in name]

    def matrices(self, patient: Patient) -> list[str]:
        """The full names of the matrices that get adapters. Raises InputError if there are none."""
        fused = any(weight.ndim > 2 for weight in patient.layers.parameters())
        inside = [
            f"{patient.family.path}.{name}"
            for name, module in patient.layers.named_modules()
            if _is_matrix(module) and not ROUTER.search(name)
            if not (fused and name.rpartition(".")[2] in EXPERTS)
        ]
        words = [word.strip() for word in self.targets.split(",") if word.strip()]
        chosen = [name for name in inside if words == ["all"] or name.rpartition(".")[2] in words]
        possible = sorted({name.rpartition(".")[2] for name in inside})
        missing = [word for word in words if word not in (*possible, "all")]
        if not chosen or missing:
            raise InputError(
                f"healer 'lora', targets={self.targets!r}: the layers have "
                f"{', '.join(possible) or 'no matrices of their own'}; or take all"
            )
        return chosen


def _is_matrix(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, Conv1D))


def keep_zeros(model: nn.Module) -> int:
    """Let adapters beside matrices with zeros add nothing where those are; how many there are.

    Such a matrix is run as (W + s BA) ⊙ M at once, without dropout.
    """
    from peft.tuners.lora import LoraLayer

    found = 0
    for module in model.modules():
        if isinstance(module, LoraLayer) and _is_matrix(module.get_base_layer()):
            base: Any = module.get_base_layer()
            weight = base.weight
            held = weight != 0
            if not weight.is_floating_point() or held.all():  # four bits hold no zeros
                continue
            object.__setattr__(module, "held", held)
            module.forward = MethodType(_masked, module)
            found += 1
    return found


def _masked(self: Any, x: Tensor, *_: Any, **__: Any) -> Tensor:
    base = self.get_base_layer()
    if self.disable_adapters:
        return base(x)
    change = self.get_delta_weight(self.active_adapters[0])
    weight = base.weight + change.to(base.weight.dtype) * self.held
    return torch.func.functional_call(base, {"weight": weight}, (x,))
