"""Perplexity against its formula, with the protocol recorded."""

import math
from pathlib import Path

import pytest
import torch

from prunekit.errors import InputError
from prunekit.measures.latency import decode_speed
from prunekit.measures.perplexity import Perplexity
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.load import load
from prunekit.plan.edits import Drop
from prunekit.plan.plan import Plan
from prunekit.verbs.cut import cut
from prunekit.verbs.evaluate import evaluate
from prunekit.verbs.prune import prune


def by_hand(model: torch.nn.Module, ids: list[int], length: int) -> float:
    """Section by section, as SparseGPT and Wanda do it: exp of the mean of segment means."""
    losses = []
    for at in range(0, len(ids) - length + 1, length):
        tokens = torch.tensor([ids[at : at + length]])
        with torch.no_grad():
            logits = model(tokens).logits[0, :-1]
        losses.append(torch.nn.functional.cross_entropy(logits.double(), tokens[0, 1:]))
    return torch.stack(losses).mean().exp().item()


def measured(result: Perplexity | None) -> Perplexity:
    assert result is not None
    return result


def test_equals_the_formula_whatever_the_batch(tiny_llama: Path, words: tuple[Path, Path]) -> None:
    loaded = load(Checkpoint.open(tiny_llama))
    ids = loaded.checkpoint.tokenizer(words[1].read_text())["input_ids"]
    expected = by_hand(loaded.model, ids, 48)
    for batch in (1, 5):
        (result,) = evaluate([loaded], text=str(words[1]), length=48, batch=batch)
        assert measured(result.perplexity).perplexity == pytest.approx(expected, rel=1e-5)


def test_protocol_is_recorded(tiny_llama: Path, words: tuple[Path, Path]) -> None:
    (result,) = evaluate([tiny_llama], text=str(words[1]), length=48, samples=3)
    record = measured(result.perplexity)
    assert record.predicted == 3 * 47
    assert record.text["length"] == 48
    assert record.text["samples"] == 3
    assert record.text["bos"] == "none"
    assert record.text["source"] == str(words[1])
    assert record.context["dtype"] == "float32"
    assert record.context["device"].startswith("cpu")
    assert record.perplexity == pytest.approx(math.exp(record.loss))


def test_numbers_of_different_lengths_say_so(tiny_llama: Path, words: tuple[Path, Path]) -> None:
    """Perplexities at 128, 2048 and 4096 tokens were compared as if they were one protocol."""
    results = [evaluate([tiny_llama], text=str(words[1]), length=n)[0] for n in (16, 64)]
    assert [measured(r.perplexity).text["length"] for r in results] == [16, 64]
    assert measured(results[0].perplexity).loss != measured(results[1].perplexity).loss


def test_text_that_calibrated_is_refused(
    tiny_llama: Path, words: tuple[Path, Path], tmp_path: Path
) -> None:
    calibrate, test = map(str, words)
    with pytest.raises(InputError, match="same"):
        prune(
            tiny_llama, tmp_path / "a", drop=1, text=calibrate, test=calibrate, samples=4, length=32
        )
    assert not (tmp_path / "a").exists()
    made = prune(
        tiny_llama, tmp_path / "a", drop=1, text=calibrate, test=test, samples=4, length=32
    )
    with pytest.raises(InputError, match="calibrated on"):
        evaluate([made.checkpoint.folder], text=calibrate, length=32)
    # Nor is it forgotten when that model is cut again.
    again = cut(made.checkpoint, Plan((Drop((0,)),)), tmp_path / "b")
    with pytest.raises(InputError, match="calibrated on"):
        evaluate([again.folder], text=calibrate, length=32)


def test_broken_history_is_said(tiny_llama: Path, words: tuple[Path, Path], tmp_path: Path) -> None:
    made = cut(tiny_llama, Plan((Drop((0,)),)), tmp_path / "a")
    story = made.folder / "prunekit.json"
    for text in ('{"before": 3}', '{"calibration_text": "x", "before": null}', "[", "[]"):
        story.write_text(text)
        with pytest.raises(InputError, match=r"prunekit\.json"):
            evaluate([made.folder], text=str(words[1]), length=32)


def test_infinite_logits_are_an_error(tiny_llama: Path, words: tuple[Path, Path]) -> None:
    loaded = load(Checkpoint.open(tiny_llama))
    with torch.no_grad():
        loaded.model.lm_head.weight.fill_(float("nan"))
    with pytest.raises(InputError, match="not finite"):
        evaluate([loaded], text=str(words[1]), length=32)


def test_decode_speed_takes_models_in_turn(tiny_llama: Path) -> None:
    loaded = load(Checkpoint.open(tiny_llama))
    speeds = decode_speed([loaded, loaded], prompt=4, new_tokens=8, repeats=3)
    assert len(speeds) == 2
    for speed in speeds:
        assert 0 < speed.slowest <= speed.tokens_per_second <= speed.fastest
