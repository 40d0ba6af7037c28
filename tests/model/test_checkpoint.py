"""Checkpoints are opened without loading them, and bad ones are refused in one line."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import tiny_model
from transformers import BertConfig, BertForMaskedLM, T5Config, T5ForConditionalGeneration

from prunekit.errors import InputError
from prunekit.model.checkpoint import DEMO, Checkpoint
from prunekit.model.load import load


def refused(model: Path | str, match: str) -> None:
    with pytest.raises(InputError, match=match) as caught:
        load(Checkpoint.open(model))
    assert "\n" not in str(caught.value)


@pytest.fixture
def copy(tiny_llama: Path, tmp_path: Path) -> Path:
    return shutil.copytree(tiny_llama, tmp_path / "copy")


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    tiny_model("llama").save_pretrained(tmp_path / "sharded", max_shard_size="80KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 2
    return tmp_path / "sharded"


def edit(file: Path, **changes: object) -> None:
    record = json.loads(file.read_text())
    record.update(changes)
    file.write_text(json.dumps({k: v for k, v in record.items() if v is not None}))


def test_headers_give_names_shapes_and_bytes(tiny_llama: Path, sharded: Path) -> None:
    state = tiny_model("llama").state_dict()
    for folder in (tiny_llama, sharded):
        checkpoint = Checkpoint.open(folder)
        assert {n: t.shape for n, t in checkpoint.tensors.items()} == {
            name: tuple(value.shape) for name, value in state.items()
        }
        for name, tensor in checkpoint.tensors.items():
            raw = tensor.file.read_bytes()[tensor.offset : tensor.offset + tensor.bytes]
            assert raw == state[name].numpy().tobytes()
        assert checkpoint.parameters == sum(value.numel() for value in state.values())


def test_digest_tells_weights_and_config_apart(copy: Path, tiny_llama: Path) -> None:
    first = Checkpoint.open(tiny_llama).digest
    assert Checkpoint.open(copy).digest == first
    edit(copy / "config.json", rms_norm_eps=0.5)
    assert Checkpoint.open(copy).digest != first
    shutil.copy(tiny_llama / "config.json", copy)
    content = bytearray((copy / "model.safetensors").read_bytes())
    content[-5] ^= 1
    (copy / "model.safetensors").write_bytes(content)
    assert Checkpoint.open(copy).digest != first


def test_demo_is_a_stock_llama() -> None:
    checkpoint = Checkpoint.open("demo")
    assert checkpoint.folder == DEMO
    assert checkpoint.model_type == "llama"
    assert sum(file.stat().st_size for file in DEMO.glob("*.safetensors")) <= 8 * 2**20


def test_hub_cache_is_read_offline(
    tiny_llama: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder laid out as the hub's cache: blobs, and a snapshot of links to them."""
    repo = tmp_path / "hub" / "models--some--llama"
    snapshot = repo / "snapshots" / "0123456789abcdef0123456789abcdef01234567"
    (repo / "blobs").mkdir(parents=True)
    (repo / "refs").mkdir()
    snapshot.mkdir(parents=True)
    (repo / "refs" / "main").write_text(snapshot.name)
    for file in tiny_llama.iterdir():
        shutil.copy(file, repo / "blobs" / file.name)
        (snapshot / file.name).symlink_to(repo / "blobs" / file.name)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    checkpoint = Checkpoint.open("some/llama")
    assert checkpoint.name == "some/llama"
    assert checkpoint.digest == Checkpoint.open(tiny_llama).digest
    refused("some/other", "no model 'some/other'")


def test_no_such_model(tmp_path: Path) -> None:
    refused(tmp_path / "nothing", "no such folder")
    refused("no such name!", "no such folder")


def test_folder_that_is_no_checkpoint(tmp_path: Path, copy: Path) -> None:
    refused(tmp_path, r"no config\.json")
    refused(copy / "config.json", "a file")
    (copy / "model.safetensors").unlink()
    refused(copy, r"no \.safetensors")


@pytest.mark.parametrize("content", ["", "{", "[]", "\xff", "[" * 100_000])
def test_broken_config(copy: Path, content: str) -> None:
    (copy / "config.json").write_bytes(content.encode("latin-1"))
    refused(copy, "not .*JSON")


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"model_type": None}, "no model_type"),
        ({"model_type": 7}, "no model_type"),
        ({"model_type": "nonsense"}, "has no model type 'nonsense'"),
        ({"model_type": "mine", "auto_map": {"AutoConfig": "x.Y"}}, "remote code"),
        ({"hidden_size": "many"}, "refuses its config"),
        ({"num_hidden_layers": 9}, "do not fit"),
        ({"hidden_size": 64}, "do not fit"),
        ({"architectures": ["LlamaForSequenceClassification"]}, "not a causal language model"),
    ],
)
def test_wrong_config(copy: Path, changes: dict, match: str) -> None:
    edit(copy / "config.json", **changes)
    refused(copy, match)


def test_remote_code_is_never_run(copy: Path, tmp_path: Path) -> None:
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    edit(copy / "config.json", model_type="mine", auto_map={"AutoConfig": "evil.Config"})
    refused(copy, "remote code")
    assert not (tmp_path / "ran").exists()


def test_encoders_are_refused(tmp_path: Path) -> None:
    small = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16,
             "num_hidden_layers": 2, "vocab_size": 50}  # fmt: skip
    BertForMaskedLM(BertConfig(**small)).save_pretrained(tmp_path / "bert")
    refused(tmp_path / "bert", "bert")
    t5 = T5Config(d_model=16, d_kv=8, d_ff=16, num_layers=2, num_heads=2, vocab_size=50)
    T5ForConditionalGeneration(t5).save_pretrained(tmp_path / "t5")
    refused(tmp_path / "t5", "only decoder-only|not a causal language model")


def test_pickles_are_refused(copy: Path) -> None:
    (copy / "model.safetensors").unlink()
    torch.save({}, copy / "pytorch_model.bin")
    refused(copy, "pickled")


@pytest.mark.parametrize("cut", [3, 100, 5000, -1])
def test_truncated_file(copy: Path, cut: int) -> None:
    file = copy / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    refused(copy, "cut short|ends early|broken")


def test_header_that_lies(copy: Path) -> None:
    def write(header: object, data: bytes = b"\0" * 16) -> None:
        raw = header if isinstance(header, bytes) else json.dumps(header).encode()
        length = len(raw).to_bytes(8, "little")
        (copy / "model.safetensors").write_bytes(length + raw + data)

    good = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    for header in (
        b"\xff\xfe{}",
        b"[1]",
        {"a": {**good, "data_offsets": [0, 2**60]}},
        {"a": {**good, "data_offsets": [-8, 0]}},
        {"a": {**good, "shape": [-2]}},
        {"a": {**good, "shape": [2.0]}},
        {"a": {**good, "dtype": "F128"}},
        {"a": good, "b": {**good, "data_offsets": [4, 12]}},
        {"a": good, "b": {**good, "data_offsets": [16, 24]}},
        {"a": good},
        b'{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}, '
        b'"a": {"dtype": "F32", "shape": [2], "data_offsets": [8, 16]}}',
    ):
        write(header)
        refused(copy, r"model\.safetensors")


@pytest.mark.parametrize("shard", ["../evil.safetensors", "/tmp/evil.safetensors", "a/b", "..", ""])
def test_index_that_points_outside(sharded: Path, shard: str) -> None:
    file = sharded / "model.safetensors.index.json"
    weight_map = json.loads(file.read_text())["weight_map"]
    edit(file, weight_map={**weight_map, "lm_head.weight": shard})
    refused(sharded, "outside its folder")


def test_index_that_names_a_missing_shard_or_tensor(sharded: Path) -> None:
    file = sharded / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    edit(file, weight_map={**index["weight_map"], "lm_head.weight": "gone.safetensors"})
    refused(sharded, "missing")
    edit(
        file,
        weight_map={**index["weight_map"], "extra.weight": index["weight_map"]["lm_head.weight"]},
    )
    refused(sharded, "not there")
    edit(file, weight_map=[])
    refused(sharded, "weight_map")


def test_tensor_in_two_shards(sharded: Path) -> None:
    first, second = sorted(sharded.glob("*.safetensors"))[:2]
    name = next(n for n, t in Checkpoint.open(sharded).tensors.items() if t.file == first)
    save_file({name: torch.zeros(2)}, second)
    refused(sharded, "in two files|not there")


def test_missing_weights_are_not_made_up(copy: Path) -> None:
    """transformers fills missing weights with random numbers and goes on."""
    from safetensors.torch import load_file

    state = load_file(copy / "model.safetensors")
    del state["model.layers.3.mlp.up_proj.weight"]
    save_file(state, copy / "model.safetensors", metadata={"format": "pt"})
    refused(copy, r"missing_keys: model\.layers\.3\.mlp\.up_proj\.weight")
