"""Replacing: a block's first layers stand for all of it, and are trained to."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny import tiny_model
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.family import Family
from prunekit.plan.choose import choose_to_replace
from prunekit.plan.edits import Drop, Mute, Replace
from prunekit.plan.plan import Plan, read_plan
from prunekit.plan.scores import Base, Scores
from prunekit.surgery.apply import apply
from prunekit.verbs.heal import heal

TOKENS = torch.randint(3, 90, (2, 16), generator=torch.Generator().manual_seed(5))


def scores(layers: int = 8) -> Scores:
    """Blocks are the safer, the later they start."""
    blocks = {
        length: [float(-start) for start in range(layers - length + 1)]
        for length in range(1, layers)
    }
    return Scores("made up", {}, Base("m", "llama", layers, "0" * 64), blocks)


def test_as_many_layers_go_as_are_asked_for() -> None:
    plan = choose_to_replace(scores(), drop=3)
    assert plan.edits == (Replace((4, 5, 6, 7), "layer", 1),)
    assert plan.removed == (5, 6, 7)
    two = choose_to_replace(scores(9), drop=4, keep=2, by="mlp", chooser="blocks")
    assert [edit.layers for edit in two.replacements] == [(5, 6, 7, 8), (1, 2, 3, 4)]
    assert two.removed == (3, 4, 7, 8)
    assert two.muted == tuple((layer, "attention") for layer in (1, 2, 5, 6))


def test_a_chooser_without_blocks_is_refused() -> None:
    with pytest.raises(InputError, match="'lowest' chooses no blocks"):
        choose_to_replace(scores(), drop=3, chooser="lowest")


def test_yaml(tmp_path: Path) -> None:
    plan = Plan((Replace((2, 3, 4), "mlp", 2),))
    plan.write(tmp_path / "plan.yaml")
    assert "replace: {layers: '2:5', by: mlp, keep: 2}" in (tmp_path / "plan.yaml").read_text()
    assert read_plan(tmp_path / "plan.yaml").edits == plan.edits


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{layers: '2:5', by: linear}", "a linear map is what `fold` makes"),
        ("{layers: '2:5', keep: 3}", "of 3 layers 1 to 2 can stand for all"),
        ("{layers: [2, 4]}", "one block such as 5:9 is expected"),
        ("{layers: '2:5', width: 3}", "unknown key 'width'"),
    ],
)
def test_bad_records_are_named(record: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(f"edits:\n- replace: {record}\n")
    with pytest.raises(InputError, match=message):
        read_plan(tmp_path / "plan.yaml")


def test_edits_that_touch_what_stays_in_place_are_refused() -> None:
    with pytest.raises(InputError, match="puts in the place of a block layer 2, which it removes"):
        Plan((Replace((2, 3)), Drop((2,)))).kept(8)
    with pytest.raises(InputError, match="mutes the attention of layer 2 twice"):
        Plan((Replace((2, 3), "mlp"), Mute(attention=(2,)))).kept(8)


@pytest.mark.parametrize("kind", ["llama", "opt"])
@pytest.mark.parametrize(("by", "keep"), [("layer", 1), ("layer", 2), ("mlp", 1)])
def test_what_replaces_a_block_is_trained_and_opens_anywhere(
    kind: str, by: str, keep: int, words: tuple[Path, Path], tokenizer: PreTrainedTokenizerFast,
    tmp_path: Path,
) -> None:  # fmt: skip
    tiny_model(kind, 7).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base = Checkpoint.open(tmp_path / "base")
    cut = apply(Plan((Replace((2, 3, 4, 5), by, keep),)), base, tmp_path / "cut")
    healed = heal(cut.folder, tmp_path / "out", how="block", text=str(words[0]), length=16, batch=8,
                  tokens=1024, rate=3e-3)  # fmt: skip
    assert healed.history.best["mse"] < healed.history.before["mse"]
    family = Family.of(cut.config)
    before, after = (
        AutoModelForCausalLM.from_pretrained(folder) for folder in (cut.folder, healed.folder)
    )
    for number, (old, new) in enumerate(
        zip(family.layers(before), family.layers(after), strict=True)
    ):
        moved = {
            name for (name, one), (_, other) in
            zip(old.named_parameters(), new.named_parameters(), strict=True)
            if not torch.equal(one, other)
        }  # fmt: skip
        assert bool(moved) == (2 <= number < 2 + keep)
        if by == "mlp" and moved:
            assert not any("attn" in name and "norm" not in name for name in moved)
    assert len(family.layers(after)) == 7 - 4 + keep


def test_the_target_is_the_raw_state_behind_the_last_layer(
    tiny_llama: Path, words: tuple[Path, Path], tmp_path: Path
) -> None:
    """A block that ends at the last layer was trained on the normed state (LLM-Streamline)."""
    cut = apply(Plan((Replace((6, 7)),)), Checkpoint.open(tiny_llama), tmp_path / "cut")
    result = heal(cut.folder, tmp_path / "out", how="block", text=str(words[0]), length=16, batch=8,
                  tokens=128)  # fmt: skip
    from prunekit.text.packing import load_text
    from prunekit.verbs.heal import _split

    text = load_text(str(words[0]), cut.tokenizer, length=16)
    order, held = _split(len(text.tokens), 0)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama)
    seen: dict[int, torch.Tensor] = {}
    for number in (6, 7):
        model.model.layers[number].register_forward_hook(
            lambda _, __, out, number=number: seen.update({number: out})
        )
    with torch.no_grad():
        model(text.tokens[order[-held:]], use_cache=False)
    expected = (seen[6] - seen[7]).square().mean()
    assert result.history.before["mse"] == pytest.approx(expected.item(), rel=1e-4)


def test_muted_attention_stays_zero_on_disk(
    tiny_llama: Path, words: tuple[Path, Path], tmp_path: Path
) -> None:
    cut = apply(Plan((Replace((2, 3, 4), "mlp"),)), Checkpoint.open(tiny_llama), tmp_path / "cut")
    out = heal(cut.folder, tmp_path / "out", how="full", text=str(words[0]), length=16, batch=8,
               tokens=512).folder  # fmt: skip
    assert not load_file(out / "model.safetensors")["model.layers.2.self_attn.o_proj.weight"].any()
    assert list(Checkpoint.open(out).muted) == [(2, "attention")]
