"""Train the small Llama model that ships with prunekit: python demo/train.py OUT [--minutes M].

Tokenizer and model see nothing but the train part of Python's standard library, see
`prunekit.text.stdlib`. The learning rate follows the clock, so that it reaches its floor when
the minutes are over, whatever the machine's speed. The latest weights are always in OUT.
"""

import argparse
import copy
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import (
    AttentionInterface,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from prunekit.text import stdlib

SEED = 0
LENGTH = 512
BLOCK = 128
VOCABULARY = 4096
END_OF_TEXT = "<|endoftext|>"


@dataclass(frozen=True)
class Plan:
    """What the optimizers do and how often the script tells about it."""

    batch: int = 8
    part_of_batch: int = 4
    muon_rate: float = 6e-3
    adam_rate: float = 5e-3
    weight_decay: float = 0.1
    warm_up_steps: int = 100
    decay_from: float = 0.4
    floor: float = 0.01
    clip: float = 1.0
    log_seconds: float = 20.0
    save_seconds: float = 180.0
    held_out_segments: int = 64


def _blocks(length: int) -> list[tuple[int, int]]:
    """Where each block of queries begins and ends."""
    return [(start, min(start + BLOCK, length)) for start in range(0, length, BLOCK)]


def _shapes(query: Tensor) -> list[tuple[int, int, int]]:
    """The shape of each block's attention weights; grouped heads lie in one matrix's rows."""
    batch, heads, group, length, _ = query.shape
    return [(batch * heads, group * (end - start), end) for start, end in _blocks(length)]


def _empty_weights(query: Tensor) -> Tensor:
    """Room for the attention weights of all blocks, one after the other."""
    return query.new_empty(sum(map(math.prod, _shapes(query))))


def _pieces(weights: Tensor, query: Tensor) -> list[Tensor]:
    """The attention weights of each block, as views."""
    shapes = _shapes(query)
    flat = weights.split([math.prod(shape) for shape in shapes])
    return [piece.view(shape) for piece, shape in zip(flat, shapes, strict=True)]


@torch.library.custom_op("demo::attend", mutates_args=())
@torch.autocast("cpu", enabled=False)
def attend(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """Causal attention, block of queries by block, and all its attention weights.

    Query is (batch, key heads, queries per key, length, width), already scaled; key and value
    are (batch, key heads, length, width). On a CPU this is twice as fast as torch's own
    attention with its gradient, as what the mask would hide is mostly not computed at all.
    """
    batch, heads, group, length, width = query.shape
    key = key.reshape(batch * heads, length, width)
    value = value.reshape(batch * heads, length, width)
    hidden = torch.full((BLOCK, BLOCK), -math.inf, dtype=query.dtype).triu_(1)
    weights = _empty_weights(query)
    out = torch.empty_like(query, memory_format=torch.contiguous_format)
    for (start, end), piece in zip(_blocks(length), _pieces(weights, query), strict=True):
        size = end - start
        rows = query[:, :, :, start:end].reshape(batch * heads, group * size, width)
        scores = torch.bmm(rows, key[:, :end].transpose(1, 2))
        scores.view(batch * heads, group, size, end)[..., start:] += hidden[:size, :size]
        torch.softmax(scores, -1, out=piece)
        out[:, :, :, start:end] = torch.bmm(piece, value[:, :end]).view(
            batch, heads, group, size, width
        )
    return out, weights


@torch.library.custom_op("demo::attend_backward", mutates_args=())
@torch.autocast("cpu", enabled=False)
def attend_backward(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients of `attend` with respect to query, key and value."""
    batch, heads, group, length, width = query.shape
    flat_key = key.reshape(batch * heads, length, width)
    flat_value = value.reshape(batch * heads, length, width)
    grad_query = torch.empty_like(query, memory_format=torch.contiguous_format)
    # Several blocks add to the same keys and values: in float32, lest the sums lose digits.
    grad_key = torch.zeros(flat_key.shape)
    grad_value = torch.zeros(flat_value.shape)
    for (start, end), piece in zip(_blocks(length), _pieces(weights, query), strict=True):
        shape = (batch, heads, group, end - start, width)
        grads = grad[:, :, :, start:end].reshape(batch * heads, -1, width)
        rows = query[:, :, :, start:end].reshape(batch * heads, -1, width)
        grad_piece = torch.bmm(grads, flat_value[:, :end].transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_piece, piece, -1, query.dtype)
        grad_value[:, :end] += torch.bmm(piece.transpose(1, 2), grads)
        grad_key[:, :end] += torch.bmm(grad_scores.transpose(1, 2), rows)
        grad_query[:, :, :, start:end] = torch.bmm(grad_scores, flat_key[:, :end]).view(shape)
    return (
        grad_query,
        grad_key.to(key.dtype).view(key.shape),
        grad_value.to(value.dtype).view(value.shape),
    )


@attend.register_fake
def _(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    return query.new_empty(query.shape), _empty_weights(query)


@attend_backward.register_fake
def _(
    grad: Tensor, query: Tensor, key: Tensor, value: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs, output[1])


def _backward(context: Any, grad: Tensor, _: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    return attend_backward(grad, *context.saved_tensors)


attend.register_autograd(_backward, setup_context=_keep)


def block_attention(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    *,
    scaling: float,
    **_: Any,
) -> tuple[Tensor, None]:
    """`attend` as transformers calls an attention; every row is full, so no mask is needed."""
    batch, heads, length, width = query.shape
    grouped = (query * scaling).reshape(batch, key.shape[1], -1, length, width)
    kind = value.dtype
    out, _weights = attend(grouped.to(kind), key.to(kind).contiguous(), value.contiguous())
    return out.view(batch, heads, length, width).transpose(1, 2).contiguous(), None


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer learned from the train part; it adds no special token itself."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator(stdlib.documents("train"), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        model_max_length=LENGTH,
    )


def make_model(end_of_text: int) -> LlamaForCausalLM:
    """The untrained model: narrow and deep, so that there are layers worth pruning."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=448,
        num_hidden_layers=16,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
        bos_token_id=end_of_text,
        eos_token_id=end_of_text,
    )
    return LlamaForCausalLM(config)


def encode(tokenizer: PreTrainedTokenizerFast, texts: Iterator[str]) -> list[Tensor]:
    """The tokens of each text, each followed by the end-of-text token."""
    end = tokenizer.eos_token_id
    # The tokenizer behind the wrapper does not warn that a text exceeds model_max_length.
    encoded = tokenizer.backend_tokenizer.encode_batch(list(texts))
    return [torch.tensor([*one.ids, end], dtype=torch.int32) for one in encoded]


def segments(documents: list[Tensor]) -> Tensor:
    """The documents end to end, cut into rows of LENGTH tokens; the rest is dropped."""
    stream = torch.cat(documents)
    rows = len(stream) // LENGTH
    return stream[: rows * LENGTH].view(rows, LENGTH)


def batches(documents: list[Tensor], size: int) -> Iterator[Tensor]:
    """Batches for ever; every pass joins the documents in a new order and cuts them anew."""
    generator = torch.Generator().manual_seed(SEED)
    while True:
        order = torch.randperm(len(documents), generator=generator).tolist()
        rows = segments([documents[index] for index in order])
        rows = rows[torch.randperm(len(rows), generator=generator)]
        for start in range(0, len(rows) - size + 1, size):
            yield rows[start : start + size].long()


def loss_of(model: LlamaForCausalLM, rows: Tensor) -> Tensor:
    """Mean cross entropy of each row's tokens but the first."""
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden = model.model(input_ids=rows, use_cache=False).last_hidden_state[:, :-1]
        logits = model.lm_head(hidden.reshape(-1, hidden.shape[-1]))
    return F.cross_entropy(logits.float(), rows[:, 1:].reshape(-1))


compiled_loss_of = torch.compile(loss_of, dynamic=False)


def add_gradients(model: LlamaForCausalLM, rows: Tensor, plan: Plan) -> float:
    """The gradients of a batch, part by part: small parts stay in the CPU's caches."""
    parts = rows.split(plan.part_of_batch)
    total = 0.0
    for part in parts:
        loss = compiled_loss_of(model, part) / len(parts)
        loss.backward()
        total += loss.item()
    return total


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, rows: Tensor, plan: Plan) -> float:
    """Mean loss over the rows, whose number is a multiple of the parts' size."""
    losses = [loss_of(model, part).item() for part in rows.long().split(plan.part_of_batch)]
    return sum(losses) / len(losses)


def make_optimizers(model: LlamaForCausalLM, plan: Plan) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for p in model.model.layers.parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in taken]
    return [
        torch.optim.Muon(
            matrices,
            lr=plan.muon_rate,
            weight_decay=plan.weight_decay,
            adjust_lr_fn="match_rms_adamw",
        ),
        torch.optim.AdamW(others, lr=plan.adam_rate, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate_factor(step: int, progress: float, plan: Plan) -> float:
    """Warm-up by steps, then constant, then linear in time down to the floor."""
    warm = min(1.0, (step + 1) / plan.warm_up_steps)
    left = (1.0 - progress) / (1.0 - plan.decay_from)
    return warm * max(plan.floor, min(1.0, left))


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, out: Path) -> None:
    """Write tokenizer and weights, rounded to bfloat16; the float32 weights stay as they are."""
    rounded = copy.deepcopy(model).to(torch.bfloat16)
    end = tokenizer.eos_token_id
    # One made from the model's configuration would be written with a private field saying so.
    rounded.generation_config = GenerationConfig(bos_token_id=end, eos_token_id=end)
    rounded.save_pretrained(out)
    tokenizer.save_pretrained(out)


def say(text: str) -> None:
    print(text, flush=True)


@dataclass(frozen=True)
class Data:
    """The documents to train on and the rows held out."""

    documents: list[Tensor]
    held_out: Tensor


def load_data(tokenizer: PreTrainedTokenizerFast, plan: Plan) -> Data:
    """Library code twice, tests once: the held-out parts hold library code only."""
    library = encode(tokenizer, stdlib.documents("train", tests=False))
    documents = encode(tokenizer, stdlib.documents("train")) + library
    say(f"tokens per pass {sum(map(len, documents))}, of them library {2 * sum(map(len, library))}")
    rows = segments(encode(tokenizer, stdlib.documents("calibrate")))
    chosen = torch.linspace(0, len(rows) - 1, plan.held_out_segments).long()
    return Data(documents, rows[chosen])


class Log:
    """Says how training goes, every so many seconds."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.begin = self.last = time.monotonic()
        self.losses: list[float] = []

    def add(self, step: int, loss: float, rate: float) -> None:
        """Note a step's loss, and write a line if it is time."""
        self.losses.append(loss)
        now = time.monotonic()
        if now - self.last < self.plan.log_seconds:
            return
        tokens = self.plan.batch * LENGTH
        speed = len(self.losses) * tokens / (now - self.last)
        mean = sum(self.losses) / len(self.losses)
        say(
            f"{now - self.begin:6.0f} s  step {step + 1:5d}  tokens {(step + 1) * tokens:9d}"
            f"  loss {mean:.4f}  lr {rate:.2e}  {speed:.0f} tok/s"
        )
        self.last, self.losses = now, []


def train_step(
    model: LlamaForCausalLM, optimizers: list[torch.optim.Optimizer], rows: Tensor, plan: Plan
) -> float:
    """One update of the weights; returns the batch's loss."""
    loss = add_gradients(model, rows, plan)
    if not math.isfinite(loss):
        raise RuntimeError(f"the loss is {loss}")
    torch.nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()
    return loss


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    plan: Plan,
    minutes: float,
    out: Path,
) -> None:
    """Train for the given time and leave the weights in `out`."""
    data = load_data(tokenizer, plan)
    say(f"parameters {sum(p.numel() for p in model.parameters())}, {plan}")
    AttentionInterface.register("blocks", block_attention)
    model.set_attn_implementation("blocks")
    optimizers = make_optimizers(model, plan)
    rates = [optimizer.param_groups[0]["lr"] for optimizer in optimizers]
    log = Log(plan)
    saved = log.begin
    for step, rows in enumerate(batches(data.documents, plan.batch)):
        seconds = time.monotonic() - log.begin
        if seconds >= 60.0 * minutes:
            break
        factor = rate_factor(step, seconds / (60.0 * minutes), plan)
        for optimizer, rate in zip(optimizers, rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
        log.add(step, train_step(model, optimizers, rows, plan), rates[0] * factor)
        if time.monotonic() - saved >= plan.save_seconds:
            say(f"{seconds:6.0f} s  held out {held_out_loss(model, data.held_out, plan):.4f}")
            save(model, tokenizer, out)
            saved = time.monotonic()
    save(model, tokenizer, out)
    say(f"end  step {step}  tokens {step * plan.batch * LENGTH}")
    say(f"end  held out {held_out_loss(model, data.held_out, plan):.4f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder for the model and its tokenizer")
    parser.add_argument("--minutes", type=float, default=75.0, help="time to train for")
    arguments = parser.parse_args()
    torch.manual_seed(SEED)
    say(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    tokenizer = make_tokenizer()
    model = make_model(tokenizer.eos_token_id)
    train(model, tokenizer, Plan(), arguments.minutes, arguments.out)


if __name__ == "__main__":
    main()
