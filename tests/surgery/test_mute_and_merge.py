"""Muted halves are zeros that any transformers opens; merges change weights, by the formula."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.load import load
from prunekit.model.loss import Logits
from prunekit.model.mute import _Silent
from prunekit.plan.edits import Drop, Edit, Merge, Mute
from prunekit.plan.plan import Plan
from prunekit.surgery.apply import apply

TOKENS = torch.randint(3, 100, (2, 16), generator=torch.Generator().manual_seed(5))
# The dense families of the family test, and experts fused in memory but not on disk.
KINDS = ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi", "phi3", "olmo2",
         "gpt2", "gpt_neox", "opt", "falcon", "starcoder2", "mixtral", "qwen3_moe")  # fmt: skip
MUTE = Mute(attention=(0, 2), mlp=(1, 2))


@torch.no_grad()
def logits(folder: Path) -> Tensor:
    return AutoModelForCausalLM.from_pretrained(folder)(TOKENS, use_cache=False).logits


def saved(kind: str, folder: Path, layers: int = 5) -> Checkpoint:
    tiny_model(kind, layers).save_pretrained(folder)
    return Checkpoint.open(folder)


def made(checkpoint: Checkpoint, out: Path, *edits: Edit) -> Checkpoint:
    return apply(Plan(edits), checkpoint, out)


@pytest.mark.parametrize("kind", KINDS)
def test_muted_halves_equal_skipped_ones(kind: str, tmp_path: Path) -> None:
    base = saved(kind, tmp_path / "base")
    cut = made(base, tmp_path / "out", Drop((3,)), MUTE)
    skipped = Logits()
    plan = Plan((Drop((3,)), MUTE))
    load(base).walk_variants([TOKENS], {plan.variant: [skipped]})
    assert torch.equal(logits(cut.folder), skipped.logits)
    assert cut.story["muted"] == [[0, "attention"], [1, "mlp"], [2, "attention"], [2, "mlp"]]


@pytest.mark.parametrize("kind", ["llama", "gemma3_text", "gpt2", "qwen3_moe"])
def test_load_does_not_compute_zeros(kind: str, tmp_path: Path) -> None:
    base = saved(kind, tmp_path / "base")
    cut = made(base, tmp_path / "out", MUTE)
    quick = load(cut).model
    assert sum(isinstance(module, _Silent) for module in quick.modules()) >= 3
    plain = AutoModelForCausalLM.from_pretrained(cut.folder)
    with torch.no_grad():
        assert torch.equal(quick(TOKENS, use_cache=False).logits, plain(TOKENS).logits)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0,
               "attention_mask": torch.ones_like(TOKENS)}  # fmt: skip
    assert torch.equal(quick.generate(TOKENS, **options), plain.generate(TOKENS, **options))


def test_a_half_that_is_not_zero_is_computed(tmp_path: Path) -> None:
    base = saved("llama", tmp_path / "base")
    cut = made(base, tmp_path / "out", MUTE)
    for file in base.folder.glob("*.safetensors"):  # someone healed it with full weights
        shutil.copyfile(file, cut.folder / file.name)
    model = load(Checkpoint.open(cut.folder)).model
    assert not any(isinstance(module, _Silent) for module in model.modules())


@pytest.mark.parametrize("muted", ["all", [[9, "mlp"]], [[1, "head"]], [["x", "mlp"]], [1]])
def test_a_broken_story_of_what_was_muted(muted: object, tmp_path: Path) -> None:
    cut = made(saved("llama", tmp_path / "base"), tmp_path / "out", MUTE)
    file = cut.folder / "prunekit.json"
    file.write_text(json.dumps({**cut.story, "muted": muted}))
    with pytest.raises(InputError, match="mend or remove it"):
        load(Checkpoint.open(cut.folder))


def test_muting_again_and_cutting_on_keeps_what_was_muted(tmp_path: Path) -> None:
    first = made(saved("llama", tmp_path / "base"), tmp_path / "first", Mute(mlp=(4,)))
    second = made(first, tmp_path / "second", Drop((0,)), Mute(attention=(2,)))
    assert second.story["muted"] == [[1, "attention"], [3, "mlp"]]


def test_a_layer_without_such_a_half(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="layer 1 has no mlp half"):
        made(saved("mamba", tmp_path / "base"), tmp_path / "out", Mute(mlp=(1,)))
    assert not (tmp_path / "out").exists()


# The tiny qwen3_moe has dense layers beside the sparse ones.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "qwen3_moe"])
@pytest.mark.parametrize("norms", ["interpolate", "keep"])
def test_merging_really_changes_weights(kind: str, norms: str, tmp_path: Path) -> None:
    """MKA's own fusion writes into a state_dict that is thrown away."""
    base = saved(kind, tmp_path / "base")
    merged = made(base, tmp_path / "merged", Merge(1, (2, 3), (0.6, 0.7), norms))
    dropped = made(base, tmp_path / "dropped", Drop((2, 3)))
    assert not torch.equal(logits(merged.folder), logits(dropped.folder))
    assert merged.story["merged"][0]["weights"] == [0.6, 0.7]


def test_merge_is_the_weighted_mean(tmp_path: Path) -> None:
    base = saved("llama", tmp_path / "base")
    merged = made(base, tmp_path / "merged", Merge(1, (2, 3), (0.6, 0.25), "keep"))
    old, new = (load_file(c.folder / "model.safetensors") for c in (base, merged))
    name = "model.layers.{}.self_attn.q_proj.weight"
    a, b, c = (old[name.format(layer)] for layer in (1, 2, 3))
    assert torch.equal(new[name.format(1)], 0.25 * (0.6 * a + 0.4 * b) + 0.75 * c)
    assert torch.equal(new[name.format(2)], old[name.format(4)])
    norm = "model.layers.1.input_layernorm.weight"
    assert torch.equal(new[norm], old[norm])


def test_merge_with_weight_one_equals_drop(tmp_path: Path) -> None:
    base = saved("qwen3", tmp_path / "base")
    merged = made(base, tmp_path / "merged", Merge(1, (2,), (1.0,)))
    dropped = made(base, tmp_path / "dropped", Drop((2,)))
    assert torch.equal(logits(merged.folder), logits(dropped.folder))


def test_layers_of_different_forms_are_not_merged(tmp_path: Path) -> None:
    base = saved("deepseek_v3", tmp_path / "base")
    with pytest.raises(InputError, match="can't be merged into layer 0: they differ in"):
        made(base, tmp_path / "out", Merge(0, (4,), (0.5,)))
    assert not (tmp_path / "out").exists()
