"""Writes a big random checkpoint of a real shape, never holding more than one block in memory.

    python benchmarks/checkpoint.py OUT --shape llama-3-8b [--layers 32] [--limit 16GiB] [--seed 0]

Weights are drawn from N(0, 0.02), norms are ones; sharded as on the hub. Drawing 16 GiB takes
longer than writing them, so one block of 64 MiB is drawn, and every tensor is filled with it from a
place of its own on: values repeat, at distances that no layer's arithmetic sees. The tokenizer is
the demo model's, whose ids any of these vocabularies has.
"""

import argparse
import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig

from prunekit.errors import InputError
from prunekit.model.checkpoint import DEMO, INDEX
from prunekit.model.family import Family
from prunekit.model.memory import parse_size

BLOCK = 32 * 2**20  # numbers drawn
SHARD = 5 * 10**9
SHAPES = {
    # https://huggingface.co/meta-llama/Meta-Llama-3-8B: 8.03e9 parameters
    "llama-3-8b": LlamaConfig(
        hidden_size=4096, intermediate_size=14336, num_hidden_layers=32, num_attention_heads=32,
        num_key_value_heads=8, vocab_size=128256, max_position_embeddings=8192, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, dtype="bfloat16",
    ),
    # The widths of Llama-3.2-3B with 12 of its 28 layers and a head of its own: 3.7 GiB
    "llama-3b-12": LlamaConfig(
        hidden_size=3072, intermediate_size=8192, num_hidden_layers=12, num_attention_heads=24,
        num_key_value_heads=8, vocab_size=128256, max_position_embeddings=8192, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 500000.0}, dtype="bfloat16",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Weight:
    name: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        return 2 * math.prod(self.shape)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=SHAPES, default="llama-3-8b")
    parser.add_argument("--layers", type=int)
    parser.add_argument("--limit", default="20GiB", help="refuse to write more than this")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    config = SHAPES[asked.shape]
    if asked.layers:
        config.num_hidden_layers = asked.layers
    config.architectures = ["LlamaForCausalLM"]
    weights = [
        Weight(name, tuple(tensor.shape))
        for name, tensor in Family.of(config).skeleton.state_dict().items()
    ]
    total = sum(weight.bytes for weight in weights)
    asked.out.mkdir(parents=True)
    free = shutil.disk_usage(asked.out).free
    if total > min(parse_size(asked.limit), free):
        raise InputError(f"{total / 2**30:.1f} GiB: more than --limit or the disk allows")
    shards: list[list[Weight]] = [[]]
    for weight in weights:
        if sum(other.bytes for other in shards[-1]) + weight.bytes > SHARD:
            shards.append([])
        shards[-1].append(weight)
    generator = torch.Generator().manual_seed(asked.seed)
    block = torch.empty(BLOCK, dtype=torch.bfloat16).normal_(0, 0.02, generator=generator)
    ones = torch.ones(config.hidden_size, dtype=torch.bfloat16)
    weight_map = {}
    place = 0
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        with (asked.out / name).open("wb") as file:
            file.write(header(shard))
            for weight in shard:
                weight_map[weight.name] = name
                left = math.prod(weight.shape)
                source = ones if len(weight.shape) == 1 else block
                while left:
                    start = place % BLOCK if source is block else 0
                    part = source[start : start + left]
                    file.write(memoryview(part.view(torch.uint8).numpy()))
                    left -= len(part)
                    place += len(part) + 4099  # the next tensor starts elsewhere
    config.save_pretrained(asked.out)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (asked.out / INDEX).write_text(json.dumps(index, indent=2))
    for file in DEMO.glob("tokenizer*.json"):
        shutil.copyfile(file, asked.out / file.name)
    print(f"{asked.out}: {total / 2**30:.2f} GiB in {len(shards)} shards")


def header(shard: list[Weight]) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for weight in shard:
        entries[weight.name] = {"dtype": "BF16", "shape": list(weight.shape),
                                "data_offsets": [end, end + weight.bytes]}  # fmt: skip
        end += weight.bytes
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


if __name__ == "__main__":
    main()
