"""The main job on real text, where it is at hand beside the repository."""

from pathlib import Path

import pytest

from prunekit.errors import InputError
from prunekit.verbs.prune import prune


@pytest.mark.parametrize(
    ("calibrate", "test"),
    [
        ("wikitext-2-raw/train_excerpt.txt", "wikitext-2/valid.txt"),
        ("c4_sample/c4_demo.jsonl:text", "wikitext-2/valid.txt"),
    ],
)
def test_prune_on_real_text(shared: Path, tmp_path: Path, calibrate: str, test: str) -> None:
    pruned = prune(
        "demo", tmp_path / "out", drop=4, text=str(shared / calibrate), test=str(shared / test),
        samples=16, test_samples=8,
    )  # fmt: skip
    assert pruned.pruned.layers == pruned.dense.layers - 4
    assert pruned.dense.perplexity is not None
    assert pruned.pruned.perplexity is not None
    assert pruned.dense.perplexity.text["length"] == 512
    assert pruned.pruned.perplexity.perplexity > pruned.dense.perplexity.perplexity > 1


def test_two_formats_of_one_text_are_one_text(shared: Path, tmp_path: Path) -> None:
    """The same documents under another name are still the calibration text."""
    copy = tmp_path / "renamed.txt"
    copy.write_bytes((shared / "wikitext-2" / "valid.txt").read_bytes())
    with pytest.raises(InputError, match="same"):
        prune("demo", tmp_path / "out", drop=4, text=str(copy),
              test=str(shared / "wikitext-2" / "valid.txt"), samples=4)  # fmt: skip
