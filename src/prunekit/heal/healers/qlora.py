"""Train adapters beside a model in four bits; they are merged into the model in full precision.

QLoRA, Dettmers et al., arXiv 2305.14314, by peft and bitsandbytes (nf4). The four-bit weights are
never read back: what is merged into is the checkpoint itself.
"""

from dataclasses import dataclass

from prunekit.heal.healers.lora import Lora


@dataclass
class Qlora(Lora):
    quantize = "nf4"
