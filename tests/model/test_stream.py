"""A walk from disk gives what a walk in memory does, to the bit, with two layers in memory."""

import json
from pathlib import Path

import pytest
import torch
from tiny import tiny_model
from torch import Tensor

import prunekit.model.load as load_module
from prunekit.errors import InputError
from prunekit.measures.perplexity import perplexity
from prunekit.model.checkpoint import DEMO, Checkpoint
from prunekit.model.load import Loaded, load
from prunekit.model.walk import Observer
from prunekit.text.packing import load_text
from prunekit.verbs.score import score

# Plain, tied, fused experts by several conversions, sliding windows, shared inputs, no attention.
KINDS = ("llama", "gpt2", "gemma2", "gemma3_text", "mixtral", "qwen3_moe", "opt", "phi", "falcon",
         "gpt_oss", "deepseek_v3", "mamba", "zaya", "dbrx")  # fmt: skip
BATCHES = list(torch.randint(3, 100, (3, 2, 12), generator=torch.Generator().manual_seed(1)))
SCRATCH = "from disk, states in a scratch file"


class Seen(Observer):
    wants_logits = True

    def __init__(self) -> None:
        self.states: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.logits: dict[int, Tensor] = {}

    def see(self, layer: int, batch: int, entering: Tensor, leaving: Tensor) -> None:
        self.states[layer, batch] = entering.clone(), leaving.clone()

    def see_logits(self, batch: int, tokens: Tensor, logits: Tensor) -> None:
        self.logits[batch] = logits.clone()


def same(a: Seen, b: Seen) -> bool:
    states = all(torch.equal(x, y) for key in a.states
                 for x, y in zip(a.states[key], b.states[key], strict=True))  # fmt: skip
    return (
        states
        and a.states.keys() == b.states.keys()
        and all(torch.equal(a.logits[key], b.logits[key]) for key in a.logits)
    )


def seen(loaded: Loaded, skip: tuple[int, ...] = ()) -> tuple[Seen, str]:
    observer = Seen()
    return observer, loaded.walk(BATCHES, observer, skip=skip)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_from_disk_equals_in_memory(kind: str, dtype: str, tmp_path: Path) -> None:
    tiny_model(kind, 4).save_pretrained(tmp_path, max_shard_size="20KB")
    checkpoint = Checkpoint.open(tmp_path)
    inside, way = seen(load(checkpoint, dtype=dtype, walk="memory"))
    outside, other = seen(load(checkpoint, dtype=dtype, walk="disk"))
    assert (way, other) == ("in memory", "from disk")
    assert same(inside, outside)


@pytest.mark.parametrize("skip", [(0,), (3,), (0, 1), (2, 5, 7)])
def test_layers_passed_over(tiny_llama: Path, skip: tuple[int, ...]) -> None:
    checkpoint = Checkpoint.open(tiny_llama)
    inside, _ = seen(load(checkpoint, walk="memory"), skip)
    outside, _ = seen(load(checkpoint, walk="disk"), skip)
    assert same(inside, outside)


def test_states_that_do_not_fit_go_to_a_scratch_file(tiny_llama: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_llama)
    inside, _ = seen(load(checkpoint, walk="memory"))
    small = load(checkpoint, walk="disk", memory="1KB", scratch=str(tmp_path))
    assert small.layers
    small.layers.bytes = 10**9  # heavy layers: to read them again would move more bytes
    outside, way = seen(small)
    assert way == SCRATCH
    assert same(inside, outside)
    assert not list(tmp_path.iterdir())


def test_or_the_weights_are_read_again(tiny_llama: Path) -> None:
    checkpoint = Checkpoint.open(tiny_llama)
    inside, _ = seen(load(checkpoint, walk="memory"))
    small = load(checkpoint, walk="disk", memory="1KB")
    assert small.layers
    small.layers.bytes = 1  # light layers
    outside, way = seen(small)
    assert way == "from disk, in 3 passes"
    assert same(inside, outside)


def test_one_layer_has_its_weights_at_a_time(tiny_llama: Path) -> None:
    loaded = load(Checkpoint.open(tiny_llama), walk="disk")
    assert loaded.layers
    for index, layer in enumerate(loaded.each_layer()):
        assert not any(parameter.is_meta for parameter in layer.parameters())
        others = [module for place, module in enumerate(loaded.layers.modules) if place != index]
        assert all(weight.is_meta for module in others for weight in module.parameters())
    assert all(weight.is_meta for weight in loaded.layers.modules.parameters())
    assert all(weight.is_meta for weight in loaded.family.layers(loaded.model).parameters())


def test_perplexity_streams_the_same() -> None:
    checkpoint = Checkpoint.open("demo")
    text = load_text("stdlib/test", checkpoint.tokenizer, length=64, samples=4)
    inside = perplexity(load(checkpoint, walk="memory"), text, batch=2)
    outside = perplexity(load(checkpoint, walk="disk"), text, batch=2)
    assert inside.loss == outside.loss
    assert outside.context["walk"] == "from disk"


def test_scores_from_disk_are_the_same_and_say_so() -> None:
    inside, outside = (
        score("demo", samples=3, length=64, batch=1, options={"tokens": "all"}, walk=walk)[0]
        for walk in ("memory", "disk")
    )
    assert inside.blocks == outside.blocks
    assert outside.context["walk"] == "from disk"


def test_the_size_decides(tiny_llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = Checkpoint.open(tiny_llama)
    assert load(checkpoint).layers is None
    monkeypatch.setattr(load_module, "free_memory", lambda device: checkpoint.bytes)
    loaded = load(checkpoint)
    assert loaded.layers is not None
    assert loaded.where == " (from disk)"
    assert load(checkpoint, walk="memory").layers is None


@pytest.mark.parametrize("kind", ["rwkv", "zamba", "inkling2_text"])
def test_types_whose_layers_hang_together_are_refused(kind: str, tmp_path: Path) -> None:
    tiny_model(kind).save_pretrained(tmp_path)
    with pytest.raises(InputError, match="can't be walked from disk"):
        load(Checkpoint.open(tmp_path), walk="disk")


def test_quantised_weights_are_refused(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="quantised"):
        load(Checkpoint.open(tmp_path), walk="disk")


def test_a_weight_that_is_not_there(tiny_llama: Path) -> None:
    checkpoint = Checkpoint.open(tiny_llama)
    name = "model.layers.2.mlp.down_proj.weight"
    fewer = {key: tensor for key, tensor in checkpoint.tensors.items() if key != name}
    broken = Checkpoint("broken", checkpoint.folder, checkpoint.config_json, fewer)
    with pytest.raises(InputError, match=r"layer 2 has no 'mlp.down_proj.weight'"):
        seen(load(broken, walk="disk"))
    name = "model.norm.weight"
    fewer = {key: tensor for key, tensor in checkpoint.tensors.items() if key != name}
    broken = Checkpoint("broken", checkpoint.folder, checkpoint.config_json, fewer)
    with pytest.raises(InputError, match=r"no 'model.norm.weight'"):
        load(broken, walk="disk")


def test_a_file_that_ends_early_while_walking(tmp_path: Path) -> None:
    tiny_model("llama").save_pretrained(tmp_path)
    loaded = load(Checkpoint.open(tmp_path), walk="disk")
    file = tmp_path / "model.safetensors"
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)
    with pytest.raises(InputError, match="ended early while"):
        list(loaded.each_layer())


def test_a_scratch_folder_that_can_not_be_used(tiny_llama: Path, tmp_path: Path) -> None:
    checkpoint = Checkpoint.open(tiny_llama)
    with pytest.raises(InputError, match=r"no folder .*absent"):
        load(checkpoint, walk="disk", scratch=str(tmp_path / "absent"))
    loaded = load(checkpoint, walk="disk", memory="1KB", scratch="/proc")
    assert loaded.layers
    loaded.layers.bytes = 10**9
    with pytest.raises(InputError, match=r"scratch folder .* \(--scratch\)"):
        seen(loaded)


def test_an_aligned_copy_does_not_change_the_demo(tmp_path: Path) -> None:
    """Weights lie at 64-byte addresses whatever their place in the file."""
    for walk in ("memory", "disk"):
        loaded = load(Checkpoint.open(DEMO), walk=walk)
        weights = list(next(iter(loaded.each_layer())).parameters())
        assert all(weight.data_ptr() % 64 == 0 for weight in weights)


@pytest.mark.gpu
def test_streamed_to_a_gpu_equals_whole_on_it(tiny_llama: Path) -> None:
    checkpoint = Checkpoint.open(tiny_llama)
    inside, _ = seen(load(checkpoint, walk="memory", device="cuda"))
    outside, _ = seen(load(checkpoint, walk="disk", device="cuda"))
    assert same(inside, outside)
