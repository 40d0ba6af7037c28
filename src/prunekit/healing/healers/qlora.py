"""Train adapters beside a model in four bits; they are merged into the model in full precision.

QLoRA, Dettmers et al., arXiv 2305.14314, by peft and bitsandbytes (nf4). The four-bit weights are
never read back: what is merged into is the checkpoint itself.
"""

from dataclasses import dataclass

from torch import nn

from prunekit.healing.healers._healer import Patient
from prunekit.healing.healers.lora import Lora


@dataclass
class Qlora(Lora):
    quantize = "nf4"

    def adapt(self, patient: Patient) -> nn.Module:
        for module in patient.model.modules():
            # On some CPUs bitsandbytes 0.50 packs weights anew in the first evaluation, and in
            # training reads them as if it had not.
            if hasattr(module, "support_avx512bf16_for_cpu"):
                module.support_avx512bf16_for_cpu = False
        return super().adapt(patient)
