"""Folding: the fixture, the formula written again, exactness, and what it refuses."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hooks import skipping
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.load import load
from prunekit.plan.edits import Drop, Fold
from prunekit.plan.plan import Plan, read_plan
from prunekit.surgery.apply import apply
from prunekit.surgery.fold import Sums, fit, fold_in_memory, write_maps, writer
from prunekit.verbs.fold import fold

TOKENS = torch.randint(3, 100, (6, 24), generator=torch.Generator().manual_seed(5))
KINDS = ("llama", "qwen2", "gpt2", "opt", "phi", "gpt_neox", "granite")


def saved(kind: str, folder: Path, layers: int = 6) -> Checkpoint:
    tiny_model(kind, layers).save_pretrained(folder)
    return Checkpoint.open(folder)


def test_the_fixture() -> None:
    t, j = torch.arange(6.0, dtype=torch.float64)[:, None], torch.arange(3.0, dtype=torch.float64)
    m = torch.sin(1 + 1.7 * t + 2.3 * j)
    y = m + torch.cos(t + j)
    n = y + 0.2 * torch.sin(t * j + 1)
    sums = Sums.none(3, diagonal=False)
    sums.add(m[:4], y[:4], n[:4])
    sums.add(m[4:], y[4:], n[4:])
    expected = torch.tensor([[0.757339, -0.343018, -0.139499], [-0.384175, 0.489797, -0.340777],
                             [-0.245405, -0.309662, 0.593602]], dtype=torch.float64)  # fmt: skip
    torch.testing.assert_close(sums.solve(0.1), expected, atol=1e-6, rtol=0)
    diagonal = Sums.none(3, diagonal=True)
    diagonal.add(m, y, n)
    right = (m * (n + m - y)).sum(0) / (m.square().sum(0) + 0.1)
    torch.testing.assert_close(diagonal.solve(0.1), right)


@torch.no_grad()
def states_and_adds(folder: Path, kind: str, start: int, end: int) -> tuple[Tensor, ...]:
    """M, Y and N by torch's own hooks, in float64; tokens are rows."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    family = Checkpoint.open(folder)
    path, _ = writer(load(family).family, start - 1)
    layers = load(family).family.layers(model)
    seen: dict[str, Tensor] = {}

    def keep(name: str):
        def see(_: nn.Module, __: object, output: object) -> None:
            seen[name] = (output if isinstance(output, Tensor) else output[0]).double()

        return see

    layers[start - 1].get_submodule(path).register_forward_hook(keep("m"))
    layers[start - 1].register_forward_hook(keep("y"))
    layers[end - 1].register_forward_hook(keep("n"))
    model(TOKENS, use_cache=False)
    scale = getattr(model.config, "residual_multiplier", 1.0) if kind == "granite" else 1.0
    hidden = seen["y"].shape[-1]
    return seen["m"].reshape(-1, hidden) * scale, *(seen[name].reshape(-1, hidden) for name in "yn")


@pytest.mark.parametrize("kind", KINDS)
def test_least_squares_written_again(kind: str, tmp_path: Path) -> None:
    checkpoint = saved(kind, tmp_path / "base")
    maps = fit(load(checkpoint), [(2, 4)], TOKENS.split(2), ridge=0.01)
    m, y, n = states_and_adds(checkpoint.folder, kind, 2, 4)
    alpha = 0.01 * m.square().sum(0).mean()
    expected = torch.linalg.solve(m.T @ m + alpha * torch.eye(m.shape[1]), m.T @ (n + m - y))
    torch.testing.assert_close(maps[2, 4], expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("diagonal", [False, True])
def test_the_folded_model_is_the_hooked_one(kind: str, diagonal: bool, tmp_path: Path) -> None:
    """A hook multiplies what the MLP writes, and the block's layers are skipped."""
    checkpoint = saved(kind, tmp_path / "base")
    maps = fit(load(checkpoint), [(2, 4)], [TOKENS], ridge=0.1, diagonal=diagonal)
    edits = write_maps(maps, tmp_path / "maps.safetensors")
    made = apply(Plan(edits), checkpoint, tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(checkpoint.folder)
    loaded = load(checkpoint)
    path, _ = writer(loaded.family, 1)
    layers = loaded.family.layers(model)
    by_map = maps[2, 4].float()

    def multiply(_: nn.Module, __: object, output: Tensor) -> Tensor:
        return output * by_map if diagonal else output @ by_map

    layers[1].get_submodule(path).register_forward_hook(multiply)
    with torch.no_grad(), skipping(layers, [2, 3]):
        expected = model(TOKENS, use_cache=False).logits
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(made.folder)(TOKENS, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)
    assert made.story["folded"] == ["2:4"]
    assert made.story["dropped"] == [2, 3]


def test_a_block_that_is_linear_is_replaced_exactly(tmp_path: Path) -> None:
    loaded = load(saved("llama", tmp_path / "base"))
    layers = loaded.family.layers(loaded.model)
    width = loaded.model.config.hidden_size
    true = torch.randn(width, width, generator=torch.Generator().manual_seed(1)) / width
    wrote: list[Tensor] = []
    layers[1].mlp.down_proj.register_forward_hook(lambda _, __, out: wrote.append(out))

    class Linear(nn.Module):
        def forward(self, hidden_states: Tensor, *_: object, **__: object) -> Tensor:
            return hidden_states + wrote[-1] @ true - wrote[-1]

    layers[2] = Linear()
    with torch.no_grad():
        expected = loaded.model(TOKENS, use_cache=False).logits
    maps = fit(loaded, [(2, 3)], [TOKENS], ridge=0.0)
    torch.testing.assert_close(maps[2, 3].float(), true, rtol=1e-2, atol=1e-3)
    fold_in_memory(loaded, write_maps(maps, tmp_path / "maps.safetensors"))
    with torch.no_grad(), skipping(layers, [2]):
        found = loaded.model(TOKENS, use_cache=False).logits
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_from_disk_and_several_blocks(tiny_llama: Path) -> None:
    checkpoint = Checkpoint.open(tiny_llama)
    blocks = [(2, 3), (5, 7)]
    whole = fit(load(checkpoint), blocks, TOKENS.split(3))
    disk = fit(load(checkpoint, walk="disk"), blocks, TOKENS.split(3))
    for block in blocks:
        torch.testing.assert_close(whole[block], disk[block], rtol=1e-6, atol=1e-7)


def test_the_last_block_is_fitted_to_the_raw_state(tiny_llama: Path, tmp_path: Path) -> None:
    """Targets that end at the last layer were normed (ReplaceMe): here the norm is not applied."""
    maps = fit(load(Checkpoint.open(tiny_llama)), [(6, 8)], [TOKENS], ridge=0.01)
    m, y, n = states_and_adds(tiny_llama, "llama", 6, 8)
    alpha = 0.01 * m.square().sum(0).mean()
    expected = torch.linalg.solve(m.T @ m + alpha * torch.eye(m.shape[1]), m.T @ (n + m - y))
    torch.testing.assert_close(maps[6, 8], expected, rtol=1e-3, atol=1e-4)


def test_a_plan_with_folds_is_read_and_written(
    tiny_llama: Path, words: tuple[Path, Path], tmp_path: Path
) -> None:
    maps = tmp_path / "folded.safetensors"
    made = fold(tiny_llama, Plan((Drop((3, 4)),)), maps, text=str(words[0]), length=16)
    made.write(tmp_path / "folded.yaml")
    read = read_plan(tmp_path / "folded.yaml")
    assert read.edits == (Fold((3, 4), maps),)
    out = apply(read, Checkpoint.open(tiny_llama), tmp_path / "out")
    assert out.story["training_text"]["source"] == str(words[0])
    assert load_file(maps)["3:5"].dtype == torch.float64


@pytest.mark.parametrize(
    ("kind", "message"),
    [("gemma2", "a norm stands between the MLP of layer 1"), ("qwen3_moe", "experts do not")],
)
def test_what_can_not_be_folded_is_refused(kind: str, message: str, tmp_path: Path) -> None:
    loaded = load(saved(kind, tmp_path / "base"))
    with pytest.raises(InputError, match=message):
        fit(loaded, [(2, 4)], [TOKENS])


def test_a_block_at_the_start_is_refused(tiny_llama: Path) -> None:
    with pytest.raises(InputError, match="layer 0 has no layer before it"):
        fit(load(Checkpoint.open(tiny_llama)), [(0, 2)], [TOKENS])


def test_too_few_tokens_without_a_ridge_are_refused(tiny_llama: Path) -> None:
    with pytest.raises(InputError, match="give more text, a larger ridge"):
        fit(load(Checkpoint.open(tiny_llama)), [(2, 4)], [TOKENS[:1, :4]], ridge=0.0)


def test_maps_that_do_not_fit_are_refused(tiny_llama: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_llama)
    edit = Fold((2, 3), tmp_path / "maps.safetensors")
    with pytest.raises(InputError, match="no map of the block 2:4"):
        apply(Plan((edit,)), checkpoint, tmp_path / "out")
    save_file({"2:4": torch.eye(5)}, edit.maps)
    with pytest.raises(InputError, match=r"the map of 2:4 is \(5, 5\)"):
        apply(Plan((edit,)), checkpoint, tmp_path / "out")
    with pytest.raises(InputError, match="fold both blocks as one"):
        apply(Plan((edit, replace(edit, layers=(4, 5)))), checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()
