"""Dropping layers on disk: which bytes, names and files the new checkpoint holds."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny import tiny_config, tiny_model
from torch import Tensor
from transformers import AutoModelForCausalLM, GenerationConfig

from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.family import Family
from prunekit.model.names import disk_prefix
from prunekit.model.tensors import Tensor as OnDisk
from prunekit.plan.edits import Drop
from prunekit.plan.plan import Plan
from prunekit.surgery.apply import apply

DROPPED = (1, 3)
KEPT = (0, 2, 4, 5)


def raw(tensor: OnDisk) -> bytes:
    with tensor.file.open("rb") as stream:
        stream.seek(tensor.offset)
        return stream.read(tensor.bytes)


def save(kind: str, folder: Path, **options: object) -> Path:
    tiny_model(kind, 6).save_pretrained(folder, **options)
    return folder


def cut(base: Path, out: Path, *, check: bool = True) -> Checkpoint:
    return apply(Plan((Drop(DROPPED),)), Checkpoint.open(base), out, check=check)


def renamed(name: str, prefix: str) -> str | None:
    """The name by hand after the cut; None for a tensor that goes."""
    if not name.startswith(prefix):
        return name
    number, _, rest = name.removeprefix(prefix).partition(".")
    return f"{prefix}{KEPT.index(int(number))}.{rest}" if int(number) in KEPT else None


def assert_same_bytes(base: Checkpoint, made: Checkpoint, prefix: str) -> None:
    wanted = {renamed(name, prefix): tensor for name, tensor in base.tensors.items()}
    wanted.pop(None, None)
    assert wanted.keys() == made.tensors.keys()
    for name, tensor in made.tensors.items():
        assert (tensor.dtype, tensor.shape) == (wanted[name].dtype, wanted[name].shape)
        assert raw(tensor) == raw(wanted[name])


@pytest.mark.parametrize(
    ("kind", "prefix"), [("llama", "model.layers."), ("gpt2", "transformer.h.")]
)
def test_kept_tensors_are_byte_identical(kind: str, prefix: str, tmp_path: Path) -> None:
    base = save(kind, tmp_path / "base")
    assert_same_bytes(Checkpoint.open(base), cut(base, tmp_path / "cut"), prefix)


def test_the_input_is_not_touched(tmp_path: Path) -> None:
    base = save("llama", tmp_path / "base")
    before = {file.name: file.read_bytes() for file in base.iterdir()}
    cut(base, tmp_path / "cut")
    assert {file.name: file.read_bytes() for file in base.iterdir()} == before


def test_tied_embeddings_stay_tied_and_no_head_is_added(tmp_path: Path) -> None:
    base = save("gemma3_text", tmp_path / "base")
    assert "lm_head.weight" not in Checkpoint.open(base).tensors
    made = cut(base, tmp_path / "cut")
    assert "lm_head.weight" not in made.tensors
    model = AutoModelForCausalLM.from_pretrained(made.folder)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("kind", ["mixtral", "qwen2_moe", "qwen3_moe", "deepseek_v3"])
def test_experts_keep_their_names_on_disk(kind: str, tmp_path: Path) -> None:
    base = save(kind, tmp_path / "base")
    checkpoint = Checkpoint.open(base)
    # One matrix an expert on disk, though transformers fuses them in memory.
    assert any(".experts.0." in name for name in checkpoint.tensors)
    assert_same_bytes(checkpoint, cut(base, tmp_path / "cut"), "model.layers.")


def test_shards_and_their_index(tmp_path: Path) -> None:
    base = save("llama", tmp_path / "base", max_shard_size="60KB")
    checkpoint = Checkpoint.open(base)
    assert len({tensor.file for tensor in checkpoint.tensors.values()}) > 2
    made = cut(base, tmp_path / "cut")
    assert_same_bytes(checkpoint, made, "model.layers.")
    index = json.loads((made.folder / "model.safetensors.index.json").read_text())
    assert index["metadata"]["total_size"] == made.bytes
    assert index["weight_map"] == {n: t.file.name for n, t in made.tensors.items()}
    for shard in set(index["weight_map"].values()):
        with safe_open(made.folder / shard, "pt") as file:  # safetensors' own reader agrees
            assert set(file.keys()) == {n for n, s in index["weight_map"].items() if s == shard}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_passes_through(dtype: torch.dtype, tmp_path: Path) -> None:
    tiny_model("llama", 6).to(dtype).save_pretrained(tmp_path / "base")
    made = cut(tmp_path / "base", tmp_path / "cut")
    assert_same_bytes(Checkpoint.open(tmp_path / "base"), made, "model.layers.")
    assert AutoModelForCausalLM.from_pretrained(made.folder).dtype == dtype


def test_tensors_of_types_that_nobody_decodes_pass_through(tmp_path: Path) -> None:
    base = save("llama", tmp_path / "base")
    file = base / "model.safetensors"
    tensors: dict[str, Tensor] = load_file(file)
    for name in list(tensors):
        if name.endswith("down_proj.weight"):
            tensors[name] = tensors[name].to(torch.float8_e4m3fn)
            tensors[f"{name}_scale_inv"] = torch.ones(1, 1)
    save_file(tensors, file, {"format": "pt"})
    made = cut(base, tmp_path / "cut", check=False)
    assert {tensor.dtype for tensor in made.tensors.values()} == {"F32", "F8_E4M3"}
    assert_same_bytes(Checkpoint.open(base), made, "model.layers.")


def test_blocks_beyond_the_last_layer_are_renumbered(tmp_path: Path) -> None:
    base = save("llama", tmp_path / "base")
    file = base / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.6.eh_proj.weight"] = torch.arange(4.0)  # predicts the token after next
    save_file(tensors, file, {"format": "pt"})
    made = cut(base, tmp_path / "cut")
    assert raw(made.tensors["model.layers.4.eh_proj.weight"]) == torch.arange(4.0).numpy().tobytes()


def test_files_beside_the_weights_are_copied_byte_for_byte(tmp_path: Path) -> None:
    base = save("llama", tmp_path / "base")
    GenerationConfig(temperature=0.3, do_sample=True).save_pretrained(base)
    beside = {
        "tokenizer.json": '{"version":  "1.0"}',
        "tokenizer_config.json": "{}\n\n",
        "chat_template.jinja": "{{ messages }}\r\n",
        "vocab.txt": "a\nb",
        "LICENSE": "as is",
    }
    for name, text in beside.items():
        (base / name).write_bytes(text.encode())
    (base / "modeling_mine.py").write_text("raise SystemExit")
    (base / "pytorch_model.bin").write_bytes(b"pickle")
    made = cut(base, tmp_path / "cut")
    for name in (*beside, "generation_config.json"):
        assert (made.folder / name).read_bytes() == (base / name).read_bytes()
    assert not (made.folder / "modeling_mine.py").exists()
    assert not (made.folder / "pytorch_model.bin").exists()


def test_config_keys_that_transformers_does_not_know_survive(tmp_path: Path) -> None:
    base = save("llama", tmp_path / "base")
    file = base / "config.json"
    before = {**json.loads(file.read_text()), "quirk": {"of": ["ours", 6]}, "trained_by": "us"}
    file.write_text(json.dumps(before))
    after = json.loads((cut(base, tmp_path / "cut").folder / "config.json").read_text())
    assert after["quirk"] == {"of": ["ours", 6]}
    assert {**after, "num_hidden_layers": 6} == before


def test_the_decoder_is_told_from_a_tower_of_the_same_depth(tmp_path: Path) -> None:
    base = save("gemma3", tmp_path / "base")
    checkpoint = Checkpoint.open(base)
    family = Family.of(checkpoint.config)
    assert family.path == "model.language_model.layers"
    prefix = disk_prefix(checkpoint, family)
    assert "vision" not in prefix
    assert any(name.startswith("vision_tower.encoder.layers.5.") for name in checkpoint.tensors)
    assert_same_bytes(checkpoint, cut(base, tmp_path / "cut"), prefix)


def test_layers_that_no_name_numbers_are_refused(tmp_path: Path) -> None:
    base = save("llama", tmp_path / "base")
    file = base / "model.safetensors"
    tensors = load_file(file)
    save_file({name.replace("layers.", "layer_"): t for name, t in tensors.items()}, file)
    with pytest.raises(InputError, match="can't tell the 6 layers among the tensors on disk"):
        cut(base, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()


def test_a_cut_that_changes_the_logits_is_not_kept(tmp_path: Path) -> None:
    base = save("llama", tmp_path / "base")
    checkpoint = Checkpoint.open(base)
    swapped = dict(checkpoint.tensors)
    first, last = "model.layers.0.mlp.up_proj.weight", "model.layers.5.mlp.up_proj.weight"
    swapped[first], swapped[last] = (
        OnDisk(**{**vars(checkpoint.tensors[b]), "name": a})
        for a, b in ((first, last), (last, first))
    )
    wrong = Checkpoint(checkpoint.name, checkpoint.folder, checkpoint.config_json, swapped)
    with pytest.raises(InputError, match="the cut model's logits differ"):
        apply(Plan((Drop(DROPPED),)), wrong, tmp_path / "cut")
    assert not (tmp_path / "cut").exists()


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("bert", {"is_decoder": False}, "is an encoder unless its config says is_decoder=true"),
        ("roberta", {"is_decoder": None}, "is an encoder unless its config says is_decoder=true"),
        ("bart", {"is_encoder_decoder": True}, "has an encoder besides"),
        ("t5", {}, "is not a causal language model"),
    ],
)
def test_encoders_are_refused(
    kind: str, changes: dict[str, object], said: str, tmp_path: Path
) -> None:
    base = save("llama" if kind == "t5" else kind, tmp_path / "base")
    file = base / "config.json"
    record = {**json.loads(file.read_text()), "model_type": kind, **changes}
    file.write_text(json.dumps({k: v for k, v in record.items() if v is not None}))
    with pytest.raises(InputError, match=f"{said}.*only decoder-only causal language models"):
        Checkpoint.open(base)


def test_a_decoder_of_a_type_that_says_it_is_none_is_taken(tmp_path: Path) -> None:
    config = tiny_config("gpt_neox", 6)
    config.is_decoder = False
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "base")
    assert len(cut(tmp_path / "base", tmp_path / "cut").tensors) > 0


def test_a_cut_can_be_cut_again(tmp_path: Path) -> None:
    base = save("gemma3_text", tmp_path / "base")
    cut(base, tmp_path / "cut")
    again = apply(Plan((Drop((0, 2)),)), Checkpoint.open(tmp_path / "cut"), tmp_path / "again")
    at_once = apply(Plan((Drop((0, 1, 3, 4)),)), Checkpoint.open(base), tmp_path / "at once")
    shutil.rmtree(tmp_path / "cut")
    assert {n: raw(t) for n, t in again.tensors.items()} == {
        n: raw(t) for n, t in at_once.tensors.items()
    }
