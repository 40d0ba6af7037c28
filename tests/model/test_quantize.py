"""Quantised models may score; what is cut is the full-precision checkpoint."""

from pathlib import Path

import pytest
from safetensors import safe_open

import prunekit.model.load as load_module
from prunekit.errors import InputError
from prunekit.model.checkpoint import DEMO, Checkpoint
from prunekit.model.load import load
from prunekit.verbs.prune import prune
from prunekit.verbs.score import score

SMALL = {"samples": 4, "length": 64}


def needs_bitsandbytes() -> None:
    pytest.importorskip("bitsandbytes")
    pytest.importorskip("accelerate")


@pytest.mark.parametrize(("kind", "near"), [("nf4", 0.03), ("fp4", 0.04), ("int8", 0.005)])
def test_quantised_scores_are_near_and_say_so(kind: str, near: float) -> None:
    needs_bitsandbytes()
    (exact,) = score("demo", **SMALL)
    (scores,) = score("demo", **SMALL, quantize=kind)
    assert scores.context["quantize"] == kind
    assert "quantize" not in exact.context
    assert scores.layers != exact.layers
    assert scores.layers == pytest.approx(exact.layers, abs=near)
    assert scores.base == exact.base


def test_double_quantisation_is_an_option() -> None:
    needs_bitsandbytes()
    once, twice = (score("demo", **SMALL, quantize="nf4", double_quant=d)[0] for d in (False, True))
    assert once.layers != twice.layers


def test_a_cut_chosen_by_4_bit_scores_keeps_the_full_weights(tmp_path: Path) -> None:
    needs_bitsandbytes()
    pruned = prune("demo", tmp_path / "out", drop=2, samples=4, test_samples=2, length=64,
                   quantize="nf4")  # fmt: skip
    kept = [layer for layer in range(16) if layer not in pruned.plan.dropped]
    base, made = DEMO / "model.safetensors", tmp_path / "out" / "model.safetensors"
    name = "model.layers.{}.mlp.down_proj.weight"
    with safe_open(base, "pt") as old, safe_open(made, "pt") as new:
        for place, layer in enumerate(kept):
            assert old.get_tensor(name.format(layer)).equal(new.get_tensor(name.format(place)))
    assert pruned.dense.perplexity
    assert "quantize" not in pruned.dense.perplexity.context


def test_what_does_not_go_together() -> None:
    checkpoint = Checkpoint.open("demo")
    with pytest.raises(InputError, match="no quantisation 'int3'; there are: nf4, fp4, int8"):
        load(checkpoint, quantize="int3")
    with pytest.raises(InputError, match="leave it or --walk disk away"):
        load(checkpoint, quantize="nf4", walk="disk")


def test_without_bitsandbytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load_module, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'prunekit\[quant\]'"):
        load(Checkpoint.open("demo"), quantize="nf4")
