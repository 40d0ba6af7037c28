"""The memory that distillation of logits takes, against the plain language loss.

    python benchmarks/distil.py [--vocabulary 128256] [--tokens 2048]

Each way runs forward and backward in a process of its own. Prediction: float32 logits of 2048
tokens and 128256 words are 1 GiB, and transformers' loss holds them and their gradient at least;
both of ours hold a chunk of 2^24 at a time, 64 MiB, of the student and of the teacher.
"""

import argparse
import resource
import subprocess
import sys

import torch
from machine import environment, table
from transformers import LlamaConfig, LlamaForCausalLM

from prunekit.healing.student import Student, View
from prunekit.healing.teacher import InMemory
from prunekit.model.family import Family
from prunekit.model.load import Loaded

WAYS = ("transformers' language loss", "language", "language and logits", "naive logits")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vocabulary", type=int, default=128256)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--way", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.way:
        run(asked)
        return
    print(environment())
    print(f"{asked.vocabulary} words, {asked.tokens} tokens, float32\n")
    rows = []
    for way in WAYS:
        flags = [f"--{key}={value}" for key, value in {**vars(asked), "way": way}.items()]
        command = [sys.executable, __file__, *flags]
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        rows.append([way, f"{int(printed.splitlines()[-1]) / 2**20:,.0f}"])
    print(table(["way", "peak MiB over the two models"], rows))


def run(asked: argparse.Namespace) -> None:
    config = LlamaConfig(
        hidden_size=asked.hidden, num_hidden_layers=2, vocab_size=asked.vocabulary,
        intermediate_size=4 * asked.hidden, num_attention_heads=4,
    )  # fmt: skip
    student, teacher = LlamaForCausalLM(config), LlamaForCausalLM(config).eval()
    student.lm_head.requires_grad_(False)  # as for LoRA
    student.model.embed_tokens.requires_grad_(False)
    tokens = torch.randint(0, asked.vocabulary, (4, asked.tokens // 4))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if asked.way.startswith("transformers"):
        loss = student(tokens, labels=tokens, use_cache=False).loss
    elif asked.way.startswith("naive"):
        with torch.no_grad():
            right = teacher(tokens, use_cache=False).logits.float().log_softmax(-1)
        own = student(tokens, use_cache=False).logits.float().log_softmax(-1)
        loss = torch.nn.functional.kl_div(own, right, log_target=True, reduction="sum")
    else:
        wanted = dict.fromkeys(asked.way.split(" and "), 1.0)
        task = Student(student, student.model.layers, wanted)
        view = View()
        if "logits" in wanted:
            loaded = Loaded(None, Family.of(config), teacher)  # no files
            (view,) = InMemory(loaded).views([tokens], [torch.arange(4)])
        loss = task(tokens, view).sum()
    loss.backward()
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)


if __name__ == "__main__":
    main()
