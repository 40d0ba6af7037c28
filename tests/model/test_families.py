"""Representative model types: the walk equals transformers' forward, and cuts equal skipping.

What a cut model must equal is computed here with plain forward hooks, not with prunekit's walk.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import tiny_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM

from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.family import Family
from prunekit.model.load import Loaded, load
from prunekit.model.walk import Observer
from prunekit.plan.edits import Drop
from prunekit.plan.plan import Plan
from prunekit.surgery.apply import apply

LAYERS = 6
# Layer 3, the only attention of a tiny qwen3_next, stays.
CUTS = {"prefix": (0,), "suffix": (5,), "block": (1, 2), "scattered": (1, 4)}
# fmt: off
TYPES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi", "phi3", "opt",
    "gpt2", "gpt_neox", "gptj", "bloom", "falcon", "mpt", "stablelm", "olmo2", "olmo3", "cohere",
    "cohere2", "smollm3", "granite", "starcoder2", "glm4", "exaone4", "mixtral", "qwen2_moe",
    "qwen3_moe", "deepseek_v3", "gpt_oss", "llama4_text", "qwen3_next", "lfm2",
)
# fmt: on
TOKENS = torch.randint(3, 100, (2, 24), generator=torch.Generator().manual_seed(1))


class Everything(Observer):
    """Keeps all states and logits."""

    wants_logits = True

    def __init__(self) -> None:
        self.states: list[tuple[Tensor, Tensor]] = []
        self.logits = torch.empty(0)

    def see(self, layer: int, batch: int, entering: Tensor, leaving: Tensor) -> None:
        self.states.append((entering, leaving))

    def see_logits(self, batch: int, tokens: Tensor, logits: Tensor) -> None:
        self.logits = logits


def state_of(output: Tensor | tuple[Tensor, ...]) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def entering_of(args: tuple[Tensor, ...], kwargs: dict[str, Tensor]) -> Tensor:
    return args[0] if args else kwargs["hidden_states"]


@torch.no_grad()
def logits_without(model: nn.Module, layers: nn.ModuleList, dropped: tuple[int, ...]) -> Tensor:
    """Logits of the dense model whose dropped layers hand on what they get."""

    def hand_on(_: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple) -> Tensor | tuple:
        entering = entering_of(args, kwargs)
        return entering if isinstance(output, Tensor) else (entering, *output[1:])

    hooks = [layers[i].register_forward_hook(hand_on, with_kwargs=True) for i in dropped]
    try:
        return model(input_ids=TOKENS, use_cache=False).logits
    finally:
        for hook in hooks:
            hook.remove()


def save(kind: str, folder: Path) -> Loaded:
    tiny_model(kind, LAYERS).save_pretrained(folder)
    return load(Checkpoint.open(folder))


def cut(base: Loaded, dropped: tuple[int, ...], out: Path) -> nn.Module:
    """The cut model, opened by plain transformers."""
    apply(Plan((Drop(dropped),)), base.checkpoint, out, check=False)
    model, info = AutoModelForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    return model.eval()


@pytest.fixture(scope="module", params=TYPES)
def base(request: pytest.FixtureRequest) -> Iterator[Loaded]:
    with tempfile.TemporaryDirectory() as folder:
        yield save(request.param, Path(folder) / "base")


@torch.no_grad()
def test_walk_equals_forward_bit_for_bit(base: Loaded) -> None:
    expected: list[tuple[Tensor, Tensor]] = []

    def note(_: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple) -> None:
        expected.append((entering_of(args, kwargs).clone(), state_of(output).clone()))

    layers = base.family.layers(base.model)
    hooks = [layer.register_forward_hook(note, with_kwargs=True) for layer in layers]
    logits = base.model(input_ids=TOKENS, use_cache=False).logits
    for hook in hooks:
        hook.remove()
    seen = Everything()
    base.walk([TOKENS], seen)
    assert torch.equal(seen.logits, logits)
    assert len(seen.states) == len(expected) == LAYERS
    for found, wanted in zip(seen.states, expected, strict=True):
        assert torch.equal(found[0], wanted[0])
        assert torch.equal(found[1], wanted[1])


@torch.no_grad()
@pytest.mark.parametrize("dropped", CUTS.values(), ids=CUTS)
def test_cut_equals_skipping(base: Loaded, dropped: tuple[int, ...], tmp_path: Path) -> None:
    expected = logits_without(base.model, base.family.layers(base.model), dropped)
    model = cut(base, dropped, tmp_path / "cut")
    assert torch.equal(model(input_ids=TOKENS).logits, expected)
    walked = Everything()
    base.walk([TOKENS], walked, skip=dropped)
    assert torch.equal(walked.logits, expected)
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(TOKENS)
    cached = model.generate(TOKENS, attention_mask=mask, use_cache=True, **options)
    plainly = model.generate(TOKENS, attention_mask=mask, use_cache=False, **options)
    assert torch.equal(cached, plainly)


@pytest.mark.parametrize("kind", ["llama", "gemma3_text"])
def test_any_non_empty_subset_opens_and_equals_skipping(
    kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    base = save(kind, tmp_path_factory.mktemp(kind) / "base")
    layers = base.family.layers(base.model)

    @settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.sets(st.integers(0, LAYERS - 1), min_size=1, max_size=LAYERS - 1))
    def check(chosen: set[int]) -> None:
        dropped = tuple(sorted(chosen))
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            model = cut(base, dropped, Path(folder) / "cut")
            found = model(input_ids=TOKENS).logits
        assert model.config.num_hidden_layers == LAYERS - len(dropped)
        assert torch.equal(found, logits_without(base.model, layers, dropped))

    check()


def test_family_is_read_off_the_config_alone(base: Loaded) -> None:
    family = Family.of(base.checkpoint.config)
    assert (family.path, family.depth) == (base.family.path, LAYERS)
    assert next(family.skeleton.parameters()).is_meta


@pytest.mark.parametrize(
    ("kind", "dropped"),
    [
        ("bamba", (1, 4)),  # "Infinity" in its config.json
        ("gemma3", (1, 4)),  # a vision tower of as many layers
        ("gemma4", (1, 3)),
        ("got_ocr2", (1, 4)),
        ("phi4_multimodal", (1, 4)),
        ("glm_moe_dsa", (1, 5)),  # layers 0 and 3 select tokens for those that follow
        ("gpt_neo", (1, 4)),
        ("longcat_flash", (1, 4)),  # two attentions a layer
        ("minicpm3", (1, 4)),  # scaled by the depth
        ("minimax", (1, 4)),
        ("modernbert-decoder", (1, 4)),
        ("recurrent_gemma", (1, 4)),
        ("xlstm", (1, 4)),
    ],
)
def test_unusual_types_are_exact_too(kind: str, dropped: tuple[int, ...], tmp_path: Path) -> None:
    base = save(kind, tmp_path / "base")
    expected = logits_without(base.model, base.family.layers(base.model), dropped)
    model = cut(base, dropped, tmp_path / "cut")
    with torch.no_grad():
        assert torch.equal(model(input_ids=TOKENS).logits, expected)


@pytest.mark.parametrize(
    ("kind", "dropped", "reason"),
    [
        ("beam", (1,), "weighs each layer's output by the layer's position"),
        ("cpmant", (1,), "the tokens that it is given see one another"),
        ("diffllama", (1,), "its attention computes with the layer's position"),
        ("gemma4", (5,), "makes the last layer one of full attention, so the last to stay must be"),
        ("glm_moe_dsa", (3,), "layer 4 uses the selection of tokens of layer 3: keep layer 3"),
        ("gpt_neox_japanese", (5,), "the last layer must stay"),
        ("inkling2_text", (4, 5, 3), "only layers after the last of these can go"),
        ("modernbert-decoder", (0,), "layer 0 must stay"),
        ("xlm", (1,), "not in a list of layers"),
        ("zaya", (0,), "layer 0 must stay"),
        ("zamba", (1,), "uses the attention block of layer 1: keep layer 1"),
    ],
)
def test_what_a_type_can_not_express_is_refused_before_anything_is_written(
    kind: str, dropped: tuple[int, ...], reason: str, tmp_path: Path
) -> None:
    tiny_model(kind, LAYERS).save_pretrained(tmp_path / "base")
    checkpoint = Checkpoint.open(tmp_path / "base")
    with pytest.raises(InputError, match=reason) as refusal:
        apply(Plan((Drop(dropped),)), checkpoint, tmp_path / "cut", check=False)
    assert "\n" not in str(refusal.value)
    assert [file.name for file in tmp_path.iterdir()] == ["base"]
