"""Healing trains what it says, keeps what was removed, and goes on where it was stopped."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny import tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.plan.edits import Drop, Mute
from prunekit.plan.plan import Plan
from prunekit.surgery.apply import apply
from prunekit.verbs.evaluate import evaluate
from prunekit.verbs.heal import Healed, attach, heal
from prunekit.verbs.teach import teach

TOKENS = torch.randint(3, 90, (2, 16), generator=torch.Generator().manual_seed(5))
BRIEF = {"length": 16, "batch": 8, "tokens": 8 * 16 * 8, "rate": 3e-3, "evaluations": 4}


@pytest.fixture(scope="module")
def pruned(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny Llama without its layers 3 and 4."""
    out = tmp_path_factory.mktemp("pruned") / "model"
    return apply(Plan((Drop((3, 4)),)), Checkpoint.open(tiny_llama), out).folder


Heal = Callable[..., Healed]


@pytest.fixture
def healed(pruned: Path, words: tuple[Path, Path], tmp_path: Path) -> Heal:
    """Heals the pruned model for a few steps."""

    def run(out: str = "out", model: Path = pruned, **more: Any) -> Healed:
        return heal(model, tmp_path / out, **{**BRIEF, "text": str(words[0]), **more})

    return run


def tensors(folder: Path) -> dict[str, Tensor]:
    return {name: tensor for file in sorted(folder.glob("*.safetensors"))
            for name, tensor in load_file(file).items()}  # fmt: skip


def changed(before: Path, after: Path) -> set[str]:
    old, new = tensors(before), tensors(after)
    assert old.keys() == new.keys()
    return {name for name in old if not torch.equal(old[name], new[name])}


def losses(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "losses.jsonl").read_text().splitlines()]
    return [line for line in lines if "rate" in line]


@torch.no_grad()
def logits(model: Any) -> Tensor:
    if isinstance(model, Path):
        model = AutoModelForCausalLM.from_pretrained(model)
    return model(TOKENS, use_cache=False).logits


@pytest.mark.parametrize(
    ("how", "which"),
    [
        ("full", ["model.", "lm_head."]),
        (
            "last",
            ["model.layers.3.", "model.layers.4.", "model.layers.5.", "model.norm", "lm_head"],
        ),
        ("seam", ["model.layers.2.", "model.layers.3."]),
        ("block", ["model.layers.2."]),
        ("lora", [f"model.layers.{layer}." for layer in range(6)]),
    ],
)
def test_a_healer_trains_what_it_says_and_nothing_else(
    healed: Heal, pruned: Path, how: str, which: list[str]
) -> None:
    result = healed(how=how)
    touched = changed(pruned, result.folder)
    assert touched
    assert all(name.startswith(tuple(which)) for name in touched)
    for start in which:
        assert any(name.startswith(start) for name in touched)
    total = sum(result.history.before[name] * weight for name, weight in result.losses.items())
    best = sum(result.history.best[name] * weight for name, weight in result.losses.items())
    assert best < total
    assert torch.isfinite(logits(result.folder)).all()


@pytest.mark.parametrize("loss", ["language", "logits", "states"])
def test_each_loss_falls(healed: Heal, loss: str) -> None:
    history = healed(how="full", losses={loss: 1.0}, rate=1e-3).history
    assert history.best[loss] < history.before[loss]


def test_what_is_written_has_the_held_out_loss(healed: Heal, words: tuple[Path, Path]) -> None:
    """Held out are the last samples in the seed's order."""
    from prunekit.text.packing import load_text
    from prunekit.verbs.heal import _split

    result = healed(how="full", losses={"language": 1})
    checkpoint = Checkpoint.open(result.folder)
    text = load_text(str(words[0]), checkpoint.tokenizer, length=16)
    order, held = _split(len(text.tokens), 0)
    tokens = text.tokens[order[-held:]]
    with torch.no_grad():
        found = AutoModelForCausalLM.from_pretrained(result.folder)(tokens, labels=tokens).loss
    assert found.item() == pytest.approx(result.history.best["language"], abs=1e-5)


@pytest.mark.parametrize("how", ["full", "lora", "block"])
def test_a_killed_run_ends_with_the_same_weights(healed: Heal, how: str) -> None:
    whole = healed("whole", how=how)

    def die(step: int, *_: object) -> None:
        if step == 5:
            raise MemoryError

    with pytest.raises(MemoryError):
        healed("killed", how=how, save_every=0, report=die)
    again = healed("killed", how=how)
    assert not changed(whole.folder, again.folder)
    assert losses(whole.folder)[5:] == [
        {**line, "tokens_per_second": old["tokens_per_second"]}
        for line, old in zip(losses(again.folder)[5:], losses(whole.folder)[5:], strict=True)
    ]
    assert again.history.steps == 8
    assert not (again.folder.parent / ".killed.healing").exists()


def test_a_signal_lets_the_step_end_and_saves(healed: Heal, tmp_path: Path) -> None:
    def stop(step: int, *_: object) -> None:
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(KeyboardInterrupt):
        healed(how="full", report=stop)
    state = torch.load(tmp_path / ".out.healing" / "state.pt", weights_only=True)
    assert state["step"] == 3
    assert not (tmp_path / "out").exists()
    seen: list[int] = []
    healed(how="full", report=lambda step, *_: seen.append(step))
    assert seen == [4, 5, 6, 7, 8]


def test_rates_fall_with_the_width() -> None:
    from prunekit.healing.healers.lora import Lora

    assert Lora().usual_rate(128) == Lora().usual_rate(64) == 3e-3
    assert Lora().usual_rate(4096) == pytest.approx(3e-3 / 32)


def test_resuming_with_other_settings_names_them(healed: Heal, tmp_path: Path) -> None:
    def die(step: int, *_: object) -> None:
        if step == 2:
            raise MemoryError

    with pytest.raises(MemoryError):
        healed(how="full", save_every=0, report=die)
    with pytest.raises(InputError, match=r"rate was 0\.003, is 0\.02"):
        healed(how="full", rate=0.02)
    settings = next(tmp_path.glob(".out.healing/settings.json"))
    then = json.loads(settings.read_text())
    settings.write_text(json.dumps({**then, "shard": "fsdp", "processes": 2}))
    with pytest.raises(InputError, match=r"shard was 'fsdp', is 'none'; processes was 2, is 1"):
        healed(how="full")


def sparse(pruned: Path, folder: Path) -> Path:
    """The model with half of its layers' weights zero."""
    held = tensors(pruned)
    generator = torch.Generator().manual_seed(1)
    for name, tensor in held.items():
        if "layers" in name and tensor.ndim == 2:
            tensor[torch.rand(tensor.shape, generator=generator) < 0.5] = 0
    folder.mkdir()
    for file in pruned.iterdir():
        if file.suffix != ".safetensors":
            (folder / file.name).write_bytes(file.read_bytes())
    save_file(held, folder / "model.safetensors", {"format": "pt"})
    return folder


@pytest.mark.parametrize("how", ["full", "lora", "seam", "block"])
def test_every_zero_stays(healed: Heal, pruned: Path, tmp_path: Path, how: str) -> None:
    """Merging LoRA into a Wanda model refilled its zeros (Prune-Finetune-LLM)."""
    model = sparse(pruned, tmp_path / "sparse")
    before = tensors(model)
    result = healed(model=model, how=how, weight_decay=0.1)
    after = tensors(result.folder)
    assert changed(model, result.folder)
    for name, tensor in before.items():
        if "layers" in name and tensor.ndim == 2:
            assert torch.equal(tensor == 0, after[name] == 0), name


def test_muted_halves_stay_muted(tiny_llama: Path, healed: Heal, tmp_path: Path) -> None:
    plan = Plan((Drop((3,)), Mute(attention=(1,), mlp=(2,))))
    cut = apply(plan, Checkpoint.open(tiny_llama), tmp_path / "cut")
    result = healed(model=cut.folder, how="full")
    after = tensors(result.folder)
    for name in ("model.layers.1.self_attn.o_proj.weight", "model.layers.2.mlp.down_proj.weight"):
        assert not after[name].any()
    assert Checkpoint.open(result.folder).muted == cut.muted


def test_merged_adapter_equals_unmerged(
    healed: Heal, pruned: Path, tiny_llama: Path, tmp_path: Path
) -> None:
    from peft import PeftModel

    adapter = healed("adapter", how="lora", merge=False).folder
    base = AutoModelForCausalLM.from_pretrained(pruned, dtype=torch.float32)
    unmerged = logits(PeftModel.from_pretrained(base, adapter))
    made = attach(pruned, adapter, tmp_path / "merged")
    torch.testing.assert_close(logits(made.folder), unmerged, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(logits(pruned), unmerged, atol=1e-3)
    with pytest.raises(InputError, match=r"6 layers, digest .* not to .*8 layers"):
        attach(tiny_llama, adapter, tmp_path / "wrong")


def test_four_bits_are_merged_onto_the_full_weights(healed: Heal, pruned: Path) -> None:
    """Merging into four-bit weights in memory loses them: what is not trained stays the same."""
    pytest.importorskip("bitsandbytes")
    result = healed(how="qlora", options={"targets": "q_proj,v_proj"})
    touched = changed(pruned, result.folder)
    assert {name.split(".")[-2] for name in touched} == {"q_proj", "v_proj"}
    before, after = tensors(pruned), tensors(result.folder)
    for name in touched:
        change = after[name] - before[name]
        assert torch.linalg.matrix_rank(change, rtol=1e-3) <= 16
    assert all(tensor.dtype == before[name].dtype for name, tensor in after.items())


def test_lora_says_which_matrices_there_are(healed: Heal) -> None:
    with pytest.raises(InputError, match=r"q_proj.*or take all"):
        healed(how="lora", options={"targets": "query"})


@pytest.mark.parametrize("kind", ["qwen3_moe", "gpt2", "opt"])
@pytest.mark.parametrize("how", ["full", "lora", "block"])
def test_other_families(
    kind: str, how: str, healed: Heal, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Experts are fused in memory, and one by one on disk; GPT-2's matrices lie transposed."""
    tiny_model(kind, 5).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    base = Checkpoint.open(tmp_path / "base")
    cut = apply(Plan((Drop((2, 3)),)), base, tmp_path / "cut")
    result = healed(model=cut.folder, how=how)
    touched = changed(cut.folder, result.folder)
    assert touched
    assert any("expert" in name for name in touched) == (kind == "qwen3_moe" and how != "lora")
    assert not any("router" in name or "mlp.gate." in name for name in touched) or how != "lora"


@pytest.mark.parametrize("how", ["full", "block"])
def test_a_teacher_from_disk_teaches_the_same(healed: Heal, how: str) -> None:
    wanted = {"logits": 1.0, "states": 1.0} if how == "full" else {"mse": 1.0}
    memory = losses(healed("memory", how=how, losses=wanted).folder)
    disk = losses(healed("disk", how=how, losses=wanted, walk="disk").folder)
    for one, other in zip(memory, disk, strict=True):
        for name in wanted:
            assert one[name] == pytest.approx(other[name], rel=1e-4)


@pytest.mark.parametrize("cache", ["none", "memory", "disk"])
def test_cached_states_are_the_walked_ones(healed: Heal, cache: str, tmp_path: Path) -> None:
    twice = {"tokens": 24 * 16 * 8, "repeat": True, "how": "block", "scratch": str(tmp_path)}
    plain = healed("plain", **twice, cache="none")
    kept = healed("kept", **twice, cache=cache)
    assert not changed(plain.folder, kept.folder)


def test_saved_logits_teach_as_the_teacher_does(
    healed: Heal, tiny_llama: Path, words: tuple[Path, Path], tmp_path: Path
) -> None:
    """With all 128 tokens kept, to the rounding of float16."""
    saved = teach(tiny_llama, tmp_path / "saved", text=str(words[0]), length=16, top=128)
    wanted = {"how": "full", "losses": {"logits": 1.0}}
    real = losses(healed("real", **wanted).folder)
    read = losses(healed("read", **wanted, teacher=saved).folder)
    assert [line["logits"] for line in read] == pytest.approx(
        [line["logits"] for line in real], rel=2e-2, abs=1e-3
    )
    with pytest.raises(InputError, match="its length is 16, this one's 8"):
        healed("other", **wanted, teacher=saved, length=8)


def test_a_teacher_with_another_vocabulary_is_refused(
    healed: Heal, tmp_path: Path, tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model("llama", 3)
    model.resize_token_embeddings(150)
    model.save_pretrained(tmp_path / "wide")
    tokenizer.save_pretrained(tmp_path / "wide")
    with pytest.raises(InputError, match=r"vocabulary of 150 tokens, .* one of 128"):
        healed(losses={"logits": 1.0}, teacher=tmp_path / "wide")


def test_more_tokens_than_there_are_need_to_be_repeated(healed: Heal) -> None:
    with pytest.raises(InputError, match=r"has \d+ tokens to train on, and 100000 were asked"):
        healed(tokens=100_000)
    assert healed(tokens=5000, repeat=True, how="seam").history.tokens > 2000


def test_text_shorter_than_a_batch_is_refused(healed: Heal) -> None:
    with pytest.raises(InputError, match="a step takes 500"):
        healed(batch=500)


def test_a_loss_that_is_not_finite_stops_and_keeps_the_best(healed: Heal, pruned: Path) -> None:
    with pytest.raises(InputError, match=r"the loss became nan in step 1.*lower --rate"):
        healed(how="full", rate=1e29, warmup=0.0)


def test_trackers(healed: Heal, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="track 'banana': Unsupported logging"):
        healed(track="banana")
    pytest.importorskip("tensorboard")
    healed(track="tensorboard")
    assert list((tmp_path / "out.logs").rglob("events.*"))


def test_patience_ends_it(healed: Heal) -> None:
    history = healed(how="full", rate=0.5, patience=1, evaluations=8).history
    assert history.steps < 8
    assert "without a new best" in history.ended


def test_a_healed_model_is_not_measured_on_its_text(healed: Heal, words: tuple[Path, Path]) -> None:
    folder = healed().folder
    with pytest.raises(InputError, match="healed with it"):
        evaluate([folder], text=str(words[0]), length=16)
    (results,) = evaluate([folder], text=str(words[1]), length=16)
    assert results.perplexity is not None


def test_losses_that_do_not_go_together(healed: Heal) -> None:
    with pytest.raises(InputError, match="can't be mixed"):
        healed(losses={"mse": 1.0, "language": 1.0}, how="block")
    with pytest.raises(InputError, match="are for --how block"):
        healed(losses={"mse": 1.0}, how="full")


def test_activation_checkpointing_changes_no_number(healed: Heal) -> None:
    plain = healed("plain", how="full")
    spared = healed("spared", how="full", checkpointing=True)
    assert not changed(plain.folder, spared.folder)


def test_seams_are_healed_unless_told_otherwise(healed: Heal, tiny_llama: Path) -> None:
    result = healed()
    assert set(result.losses) == {"logits"}
    story = json.loads((result.folder / "prunekit.json").read_text())
    assert story["healed"]["how"] == "seam"
    dense = healed("dense", model=tiny_llama)
    assert json.loads((dense.folder / "prunekit.json").read_text())["healed"]["how"] == "lora"


def test_dense_models_can_be_trained_too(healed: Heal, tiny_llama: Path) -> None:
    result = healed(model=tiny_llama, how="full")
    assert set(result.losses) == {"language"}
    with pytest.raises(InputError, match="no seam"):
        healed("seam", model=tiny_llama, how="seam")
