"""Every other criterion against its formula, written again on states, losses and gradients that
plain torch and transformers give."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from hooks import hooked_states
from tiny import tiny_model
from torch import Tensor, nn

from prunekit.criteria.linear import Linear
from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.load import Loaded, load
from prunekit.model.units import HALVES
from prunekit.plan.scores import Scores
from prunekit.text.packing import load_text
from prunekit.verbs.score import score

LENGTH, SAMPLES, BATCH = 24, 6, 2
Options = str | int | float | bool


@pytest.fixture(scope="module")
def loaded(tiny_llama: Path) -> Loaded:
    return load(Checkpoint.open(tiny_llama))


@pytest.fixture(scope="module")
def calibration(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("text") / "text.txt"
    generator = torch.Generator().manual_seed(1)
    file.write_text(" ".join(f"w{n}" for n in torch.randint(0, 40, (900,), generator=generator)))
    return str(file)


@pytest.fixture(scope="module")
def tokens(loaded: Loaded, calibration: str) -> Tensor:
    return load_text(
        calibration, loaded.checkpoint.tokenizer, length=LENGTH, samples=SAMPLES, seed=0
    ).tokens


@pytest.fixture
def scored(loaded: Loaded, calibration: str) -> Callable[..., Scores]:
    def scored(criterion: str, **options: Options) -> Scores:
        (scores,) = score(
            loaded, criterion=criterion, options=options, text=calibration, samples=SAMPLES,
            length=LENGTH, batch=BATCH,
        )  # fmt: skip
        return scores

    return scored


@contextmanager
def without(loaded: Loaded, unit: tuple[int, str]) -> Iterator[None]:
    """The model without a unit, by a hook that undoes what a module adds."""
    layer = loaded.model.model.layers[unit[0]]
    modules = {"layer": layer, "attention": layer.self_attn, "mlp": layer.mlp}

    def undo(module: nn.Module, args: tuple, kwargs: dict, output: Tensor | tuple) -> Tensor:
        if unit[1] == "layer":
            return args[0]
        if isinstance(output, tuple):
            return (torch.zeros_like(output[0]), *output[1:])
        return torch.zeros_like(output)

    hook = modules[unit[1]].register_forward_hook(undo, with_kwargs=True)
    yield
    hook.remove()


@torch.no_grad()
def log_probabilities(loaded: Loaded, tokens: Tensor) -> Tensor:
    return loaded.model(tokens, use_cache=False).logits.double().log_softmax(-1)


def loss_of(predicted: Tensor, tokens: Tensor) -> float:
    return -predicted[:, :-1].gather(-1, tokens[:, 1:, None]).mean().item()


@pytest.mark.parametrize("picked", ["last", "all"])
def test_distances(loaded: Loaded, tokens: Tensor, scored: Callable, picked: str) -> None:
    states = hooked_states(loaded, tokens).double()
    states = states[:, :, -1] if picked == "last" else states.flatten(1, 2)
    euclidean = scored("euclidean", tokens=picked)
    ratio = scored("magnitude_ratio", tokens=picked)
    for length in range(1, 9):
        for start in range(9 - length):
            end = states[start + length]
            distance = (end - states[start]).norm(dim=-1)
            assert euclidean.blocks[length][start] == pytest.approx(
                distance.mean().item(), rel=1e-5
            )
            relative = (distance / (end.norm(dim=-1) + 1e-6)).mean().item()
            assert ratio.blocks[length][start] == pytest.approx(relative, rel=1e-5)


def test_distances_of_states_that_are_almost_alike() -> None:
    """|a|^2 + |b|^2 - 2ab would give zero, or the root of a number below it."""
    from prunekit.criteria.euclidean import Euclidean

    judge = Euclidean()
    judge.begin(2, 0)
    first = 1000 * torch.ones(1, 5, 64)
    second = first.clone()
    second[..., 0] += 0.01
    judge.see(0, 0, first, second)
    judge.see(1, 0, second, second)
    exact = (second[0, 0, 0] - 1000).item()
    assert judge.blocks()[1] == pytest.approx([exact, 0], rel=1e-6)
    assert judge.blocks()[2] == pytest.approx([exact], rel=1e-6)


def test_linear_is_what_least_squares_leave(
    loaded: Loaded, tokens: Tensor, scored: Callable
) -> None:
    wide = loaded.model.config.hidden_size
    scores = scored("linear", directions=wide, alpha=0.0)
    states = hooked_states(loaded, tokens).double().flatten(1, 2)
    for start, length in ((1, 1), (2, 3), (1, 7)):
        source = torch.cat([states[start], torch.ones(len(states[start]), 1).double()], dim=1)
        target = states[start + length]
        fit = source @ torch.linalg.lstsq(source, target).solution
        left = (target - fit).square().sum() / (target - target.mean(0)).square().sum()
        assert scores.blocks[length][start] == pytest.approx(left.item(), rel=1e-6)


def test_linear_finds_a_linear_block() -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(4, 50, 16, generator=generator)
    judge = Linear(directions=4)
    judge.begin(2, 0)
    second = first @ torch.randn(16, 16, generator=generator) + 1
    judge.see(0, 0, first, second)
    judge.see(1, 0, second, second.sin())
    blocks = judge.blocks()
    assert blocks[1][0] == pytest.approx(0, abs=1e-5)
    assert blocks[1][1] > 0.1
    assert blocks[2][0] > 0.1


def test_linear_says_what_it_lacks(scored: Callable) -> None:
    judge = Linear()
    judge.begin(1, 0)
    judge.see(0, 0, torch.randn(1, 8, 16), torch.randn(1, 8, 16))
    with pytest.raises(InputError, match="8 tokens fit any map of states of width 16"):
        judge.blocks()
    with pytest.raises(InputError, match="directions from 1"):
        Linear(directions=0)


@pytest.mark.parametrize("criterion", ["angular", "cosine", "euclidean", "magnitude_ratio"])
def test_halves_are_scored_by_the_state_between_them(
    loaded: Loaded, tokens: Tensor, scored: Callable, criterion: str
) -> None:
    scores = scored(criterion, halves=True, tokens="all")
    assert scores.blocks == scored(criterion, tokens="all").blocks
    before: list[Tensor] = []
    middle: list[Tensor] = []
    hooks = []
    for layer in loaded.model.model.layers:
        hooks.append(layer.register_forward_pre_hook(lambda _, args: before.append(args[0])))
        hooks.append(
            layer.post_attention_layernorm.register_forward_pre_hook(
                lambda _, args: middle.append(args[0])
            )
        )
    log_probabilities(loaded, tokens)
    for hook in hooks:
        hook.remove()
    ends = [*before[1:], hooked_states(loaded, tokens)[-1]]

    def apart(a: Tensor, b: Tensor) -> float:
        a, b = a.double(), b.double()
        cosine = torch.cosine_similarity(a, b, dim=-1).clamp(-1, 1)
        distance = (b - a).norm(dim=-1)
        values = {
            "angular": cosine.arccos() / torch.pi,
            "cosine": 1 - cosine,
            "euclidean": distance,
            "magnitude_ratio": distance / (b.norm(dim=-1) + 1e-6),
        }
        return values[criterion].mean().item()

    expected = {
        "attention": [apart(a, b) for a, b in zip(before, middle, strict=True)],
        "mlp": [apart(a, b) for a, b in zip(middle, ends, strict=True)],
    }
    for half, row in expected.items():
        assert scores.halves[half] == pytest.approx(row, rel=1e-3, abs=1e-5)


def test_halves_that_a_layer_lacks_have_no_score(calibration: str, tmp_path: Path) -> None:
    model = tiny_model("mamba")
    judges = score_states(model, tmp_path)
    assert judges.halves["mlp"] == [None] * judges.base.layers
    assert None not in judges.halves["attention"]


def score_states(model: nn.Module, folder: Path) -> Scores:
    """Cosine scores by halves, on a model without a tokenizer."""
    from prunekit.criteria.cosine import Cosine
    from prunekit.text.packing import Text
    from prunekit.verbs.score import run
    from prunekit.verbs.watch import unwatched

    model.save_pretrained(folder / "model")
    numbers = torch.randint(3, 90, (4, 16), generator=torch.Generator().manual_seed(0))
    text = Text(
        source="numbers", digest="numbers", length=16, tokens=numbers, seed=None, available=4,
        total_tokens=64, join="", bos="none", lines=frozenset(),
    )  # fmt: skip
    (scores,) = run(
        load(Checkpoint.open(folder / "model")), {"cosine": Cosine(halves=True)}, text, 2, 0,
        unwatched,
    )  # fmt: skip
    return scores


def test_perplexity_and_divergence_are_what_is_lost_without_each_unit(
    loaded: Loaded, tokens: Tensor, scored: Callable
) -> None:
    dense = log_probabilities(loaded, tokens)
    loss = loss_of(dense, tokens)
    perplexity, divergence = scored("perplexity", halves=True), scored("divergence", halves=True)
    for layer in range(8):
        for part in ("layer", *HALVES):
            with without(loaded, (layer, part)):
                found = log_probabilities(loaded, tokens)
            rise = loss_of(found, tokens) - loss
            apart = (dense.exp() * (dense - found)).sum(-1).mean().item()
            for scores, expected in ((perplexity, rise), (divergence, apart)):
                row = scores.layers if part == "layer" else scores.halves[part]
                assert row[layer] == pytest.approx(expected, abs=2e-6)
    assert scored("perplexity").halves == {}


def test_magnitude(loaded: Loaded, scored: Callable) -> None:
    for power in (1.0, 2.0):
        scores = scored("magnitude", power=power)
        expected = [
            sum(weight.double().abs().pow(power).sum().item() for weight in layer.parameters())
            for layer in loaded.model.model.layers
        ]
        assert scores.layers == pytest.approx(expected, rel=1e-5)
        assert scores.text is None


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_taylor_adds_gradients_up_before_it_takes_absolutes(
    loaded: Loaded, tokens: Tensor, scored: Callable, power: float
) -> None:
    scores = scored("taylor", power=power)
    model = loaded.model
    model.requires_grad_(True)
    for batch in tokens.split(BATCH):
        predicted = model(batch, use_cache=False).logits.log_softmax(-1)
        (-predicted[:, :-1].gather(-1, batch[:, 1:, None]).mean()).backward()
    expected = [
        sum((w * w.grad).detach().abs().pow(power).sum().item() for w in layer.parameters())
        for layer in model.model.layers
    ]
    model.zero_grad(set_to_none=True)
    model.requires_grad_(False)
    assert scores.layers == pytest.approx(expected, rel=1e-4)


def test_all_criteria_in_one_call(loaded: Loaded, calibration: str, scored: Callable) -> None:
    """From one walk, one walk back and one look at the weights, as each alone."""
    names = ["angular", "magnitude", "taylor", "perplexity", "divergence", "random", "cosine"]
    together = score(
        loaded, criterion=names, text=calibration, samples=SAMPLES, length=LENGTH, batch=BATCH
    )
    for scores in together:
        assert scores.blocks == scored(scores.criterion).blocks


@pytest.mark.parametrize("criterion", ["perplexity", "angular", "taylor"])
def test_from_disk_as_in_memory(
    loaded: Loaded, calibration: str, criterion: str, scored: Callable
) -> None:
    options = {} if criterion == "taylor" else {"halves": True}
    (streamed,) = score(
        loaded.checkpoint.folder, criterion=criterion, options=options, text=calibration,
        samples=SAMPLES, length=LENGTH, batch=BATCH, walk="disk",
    )  # fmt: skip
    whole = scored(criterion, **options)
    assert streamed.blocks == whole.blocks
    assert streamed.halves == whole.halves


@pytest.mark.parametrize("criterion", ["cosine", "perplexity", "taylor", "manifold"])
def test_a_state_that_is_not_finite_is_named(
    loaded: Loaded, calibration: str, criterion: str, scored: Callable
) -> None:
    weight = loaded.model.model.layers[3].mlp.down_proj.weight
    before = weight[0, 0].item()
    with torch.no_grad():
        weight[0, 0] = torch.nan
    try:
        with pytest.raises(InputError, match=r"leaving layer 3.* finite in batch 0, sequence 0"):
            scored(criterion)
    finally:
        with torch.no_grad():
            weight[0, 0] = before
