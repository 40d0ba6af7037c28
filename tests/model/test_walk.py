"""The walk: what observers see, and that it leaves the model as it found it."""

import pytest
import torch
from tiny import tiny_model
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.model.family import Family
from prunekit.model.walk import Observer, walk

LAYERS = 4


class Recorder(Observer):
    """Keeps what it is shown, as it is."""

    def __init__(self, wants_logits: bool = True) -> None:
        self.wants_logits = wants_logits
        self.states: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.copies: dict[tuple[int, int], tuple[Tensor, Tensor]] = {}
        self.logits: dict[int, Tensor] = {}

    def see(self, layer: int, batch: int, entering: Tensor, leaving: Tensor) -> None:
        self.states[layer, batch] = entering, leaving
        self.copies[layer, batch] = entering.clone(), leaving.clone()

    def see_logits(self, batch: int, tokens: Tensor, logits: Tensor) -> None:
        self.logits[batch] = logits


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny_model("gemma3_text", LAYERS)


@pytest.fixture(scope="module")
def layers(model: nn.Module) -> nn.ModuleList:
    return Family.of(model.config).layers(model)


@pytest.fixture(scope="module")
def batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    # The last one is smaller, as the last of a text is.
    return [torch.randint(3, 100, (size, 20), generator=generator) for size in (2, 2, 2, 2, 1)]


def test_the_number_of_batches_side_by_side_changes_no_bit(
    model: nn.Module, layers: nn.ModuleList, batches: list[Tensor]
) -> None:
    one, three = Recorder(), Recorder()
    walk(model, layers, batches, one, beside=1)
    walk(model, layers, batches, three, beside=3)
    assert one.states.keys() == three.states.keys()
    assert len(one.states) == LAYERS * len(batches)
    for key, (entering, leaving) in one.states.items():
        assert torch.equal(entering, three.states[key][0])
        assert torch.equal(leaving, three.states[key][1])
    for number, logits in one.logits.items():
        assert torch.equal(logits, three.logits[number])


def test_layers_are_run_batch_after_batch_when_several_stand_side_by_side(
    model: nn.Module, layers: nn.ModuleList, batches: list[Tensor]
) -> None:
    recorder = Recorder()
    walk(model, layers, batches, recorder, beside=3)
    first = [key for key in recorder.states if key[1] < 3]
    assert first == [(layer, batch) for layer in range(LAYERS) for batch in range(3)]


def test_an_observer_may_keep_states(
    model: nn.Module, layers: nn.ModuleList, batches: list[Tensor]
) -> None:
    recorder = Recorder()
    walk(model, layers, batches, recorder, beside=2)
    for key, (entering, leaving) in recorder.states.items():
        assert torch.equal(entering, recorder.copies[key][0])
        assert torch.equal(leaving, recorder.copies[key][1])


def test_what_leaves_a_layer_enters_the_next(
    model: nn.Module, layers: nn.ModuleList, batches: list[Tensor]
) -> None:
    recorder = Recorder()
    walk(model, layers, batches[:1], recorder)
    for layer in range(1, LAYERS):
        assert torch.equal(recorder.states[layer, 0][0], recorder.states[layer - 1, 0][1])


@torch.no_grad()
def test_last_states_are_raw_and_not_after_the_final_norm(
    model: nn.Module, layers: nn.ModuleList, batches: list[Tensor]
) -> None:
    recorder = Recorder()
    walk(model, layers, batches[:1], recorder)
    output = model(input_ids=batches[0], output_hidden_states=True, use_cache=False)
    raw = recorder.states[LAYERS - 1, 0][1]
    assert not torch.equal(raw, output.hidden_states[-1])  # the trap
    assert torch.equal(model.model.norm(raw), output.hidden_states[-1])
    for layer in range(LAYERS):
        assert torch.equal(recorder.states[layer, 0][0], output.hidden_states[layer])


def test_a_skipped_layer_hands_on_what_enters_it(
    model: nn.Module, layers: nn.ModuleList, batches: list[Tensor]
) -> None:
    recorder = Recorder()
    walk(model, layers, batches[:1], recorder, skip=(0, 2))
    for layer in range(LAYERS):
        entering, leaving = recorder.states[layer, 0]
        assert torch.equal(entering, leaving) == (layer in (0, 2))


def test_the_layers_are_back_in_place_after_an_exception_inside_forward(
    model: nn.Module, layers: nn.ModuleList, batches: list[Tensor]
) -> None:
    before = list(layers)

    def fail(*_: object) -> None:
        raise RuntimeError("out of memory")

    for place in (layers[1].self_attn, model.lm_head):
        hook = place.register_forward_hook(fail)
        with pytest.raises(RuntimeError, match="out of memory"):
            walk(model, layers, batches, Recorder(), beside=2)
        hook.remove()
        assert list(layers) == before
    recorder = Recorder()
    walk(model, layers, batches[:1], recorder)
    assert len(recorder.states) == LAYERS


def test_the_layers_are_back_in_place_when_an_observer_fails(
    model: nn.Module, layers: nn.ModuleList, batches: list[Tensor]
) -> None:
    class Broken(Observer):
        def see(self, layer: int, batch: int, entering: Tensor, leaving: Tensor) -> None:
            raise KeyError("mine")

    before = list(layers)
    with pytest.raises(KeyError, match="mine"):
        walk(model, layers, batches, Broken())
    assert list(layers) == before


def test_logits_are_made_only_for_those_who_want_them(
    model: nn.Module, layers: nn.ModuleList, batches: list[Tensor]
) -> None:
    calls = []
    hook = model.lm_head.register_forward_hook(lambda *_: calls.append(1))
    walk(model, layers, batches, Recorder(wants_logits=False))
    hook.remove()
    assert not calls


def test_no_gradients_are_kept(
    model: nn.Module, layers: nn.ModuleList, batches: list[Tensor]
) -> None:
    recorder = Recorder()
    walk(model, layers, batches[:1], recorder)
    assert not any(state.requires_grad for pair in recorder.states.values() for state in pair)


@pytest.mark.parametrize(
    ("tokens", "skip", "said"),
    [
        (torch.full((1, 4), 10**6), (), "vocabulary"),
        (torch.full((1, 4), -1), (), "vocabulary"),
        (torch.rand(1, 4), (), "whole numbers"),
        (torch.full((4,), 5), (), "whole numbers"),
        (torch.full((1, 4), 5), (LAYERS,), f"can't skip layer {LAYERS}"),
        (torch.full((1, 4), 5), (-1,), "can't skip layer -1"),
    ],
)
def test_tokens_and_layers_that_the_model_has_not(
    model: nn.Module, layers: nn.ModuleList, tokens: Tensor, skip: tuple[int, ...], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        walk(model, layers, [tokens], skip=skip)
