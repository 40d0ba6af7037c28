"""Zeroing what Family names as a half's writers takes that half away, and nothing else."""

import pytest
import torch
from tiny import tiny_model
from torch import Tensor, nn

from prunekit.model.family import Family

LAYERS = 3
TOKENS = torch.randint(3, 100, (2, 16), generator=torch.Generator().manual_seed(2))
# The module whose output is what the half adds, written down by hand: attention, mlp.
HALVES = {
    "llama": ("self_attn", "mlp"),
    "qwen2": ("self_attn", "mlp"),
    "qwen3": ("self_attn", "mlp"),
    "gemma2": ("self_attn", "mlp"),
    "gemma3_text": ("self_attn", "mlp"),
    "phi": ("self_attn", "mlp"),
    "phi3": ("self_attn", "mlp"),
    "opt": ("self_attn", "fc2"),
    "gpt2": ("attn", "mlp"),
    "gpt_neox": ("attention", "mlp"),
    "gptj": ("attn", "mlp"),
    "falcon": ("self_attention", "mlp"),
    "olmo2": ("self_attn", "mlp"),
    "starcoder2": ("self_attn", "mlp"),
    "mixtral": ("self_attn", "mlp"),
    "qwen2_moe": ("self_attn", "mlp"),
}
# Nothing that they add could be taken away by zeros: a norm over the stream follows, or identity
# experts hand on what they get, or there is no such half.
UNTOLD = {
    "bert": ("attention", "mlp"),
    "roberta": ("attention", "mlp"),
    "longcat_flash": ("attention", "mlp"),
    "mamba": ("mlp",),
}


@torch.no_grad()
def logits(model: nn.Module) -> Tensor:
    return model(input_ids=TOKENS, use_cache=False).logits


def logits_without(model: nn.Module, half: nn.Module) -> Tensor:
    """Logits when what a module gives is replaced by zeros."""

    def nothing(_: nn.Module, __: tuple, output: Tensor | tuple) -> Tensor | tuple:
        if isinstance(output, Tensor):
            return torch.zeros_like(output)
        return (torch.zeros_like(output[0]), *output[1:])

    hook = half.register_forward_hook(nothing)
    try:
        return logits(model)
    finally:
        hook.remove()


@pytest.mark.parametrize("kind", HALVES)
def test_zeroed_writers_equal_a_skipped_half(kind: str) -> None:
    model = tiny_model(kind, LAYERS)
    family = Family.of(model.config)
    dense = logits(model)
    for index in range(LAYERS):
        layer = family.layers(model)[index]
        parameters = dict(layer.named_parameters())
        for which, path in zip(("attention", "mlp"), HALVES[kind], strict=True):
            expected = logits_without(model, layer.get_submodule(path))
            names = family.writers(index, which)
            before = {name: parameters[name].detach().clone() for name in names}
            with torch.no_grad():
                for name in names:
                    parameters[name].zero_()
                assert torch.equal(logits(model), expected), (index, which, names)
                assert not torch.equal(dense, expected)
                for name, weight in before.items():
                    parameters[name].copy_(weight)
    assert torch.equal(logits(model), dense)


@pytest.mark.parametrize("kind", ["llama", "mixtral", "gemma3_text", "opt", "qwen2_moe"])
def test_a_layer_without_both_halves_hands_on_what_enters_it(kind: str) -> None:
    model = tiny_model(kind, LAYERS)
    family = Family.of(model.config)
    layer = family.layers(model)[1]
    seen: list[Tensor] = []

    def note(_: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple) -> None:
        seen.append(args[0] if args else kwargs["hidden_states"])
        seen.append(output if isinstance(output, Tensor) else output[0])

    layer.register_forward_hook(note, with_kwargs=True)
    parameters = dict(layer.named_parameters())
    with torch.no_grad():
        for name in family.writers(1, "attention") + family.writers(1, "mlp"):
            parameters[name].zero_()
    logits(model)
    assert torch.equal(*seen)


@pytest.mark.parametrize("kind", UNTOLD)
def test_a_half_that_zeros_cannot_take_away_has_no_writers(kind: str) -> None:
    family = Family.of(tiny_model(kind, LAYERS).config)
    for which in UNTOLD[kind]:
        assert family.writers(1, which) == []


def test_halves_of_a_layer() -> None:
    family = Family.of(tiny_model("gemma2", LAYERS).config)
    assert family.half(0, "attention") == ["self_attn"]
    assert family.half(0, "mlp") == ["mlp"]
    assert len(family.half(0, "norm")) == 4


def test_every_writer_of_an_expert_layer_is_named() -> None:
    family = Family.of(tiny_model("qwen2_moe", LAYERS).config)
    assert sorted(family.writers(2, "mlp")) == [
        "mlp.experts.down_proj",
        "mlp.shared_expert.down_proj.weight",
    ]
