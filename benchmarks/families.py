"""Tries cuts of a tiny random model of every causal-LM type and writes docs/families.md.

    python benchmarks/families.py [TYPE...] [--write]

For each type: the walk's logits against transformers' own forward (bit for bit), and for every cut
either a checkpoint that plain transformers opens, whose logits equal the dense model's with those
layers skipped (difference 0 in float32) and which generates the same with and without a cache, or
the reason why the cut is refused. Anything else is a defect and is listed as one.
"""

import argparse
import sys
import tempfile
import warnings
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from tiny import UNBUILDABLE, causal_types, tiny_model

from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.family import Family
from prunekit.model.load import load
from prunekit.plan.plan import Drop, Plan
from prunekit.surgery.apply import apply
from prunekit.surgery.check import Logits, probe

LAYERS = 8
CUTS = {"prefix": (0, 1), "suffix": (6, 7), "block": (3, 4, 5), "scattered": (1, 4, 6)}
PAGE = Path(__file__).parents[1] / "docs" / "families.md"


@dataclass
class Result:
    """What became of a type: for each cut `exact`, or the reason of a refusal; defects apart."""

    kind: str
    cuts: dict[str, str] = field(default_factory=dict)
    defects: list[str] = field(default_factory=list)
    path: str = ""

    @property
    def verdict(self) -> str:
        if self.defects:
            return "defect"
        exact = sum(outcome == "exact" for outcome in self.cuts.values())
        return "exact" if exact == len(CUTS) else "partly" if exact else "refused"


def try_type(kind: str) -> Result:
    """Every cut of one type."""
    result = Result(kind)
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        tiny_model(kind, LAYERS).save_pretrained(base)
        try:
            checkpoint = Checkpoint.open(base)
            result.path = Family.of(checkpoint.config).path
            same_walk(checkpoint)
        except InputError as error:
            result.cuts = dict.fromkeys(CUTS, plain(error, base))
            return result
        except Exception as error:
            result.defects.append(f"walk: {type(error).__name__}: {plain(error, base)}")
            return result
        for name, layers in CUTS.items():
            out = Path(scratch) / name
            try:
                made = apply(Plan((Drop(layers),)), checkpoint, out)
                same_generation(made)
                result.cuts[name] = "exact"
            except InputError as error:
                result.cuts[name] = plain(error, base)
                if "differ" in result.cuts[name]:
                    result.defects.append(f"{name}: {result.cuts[name]}")
            except Exception as error:
                result.defects.append(f"{name}: {type(error).__name__}: {plain(error, base)}")
    return result


def same_walk(checkpoint: Checkpoint) -> None:
    """The walk's logits are transformers' own."""
    loaded = load(checkpoint)
    tokens = probe(checkpoint)
    with torch.no_grad():
        expected = loaded.model(input_ids=tokens, use_cache=False).logits
    found = Logits()
    loaded.walk([tokens], found)
    assert torch.equal(expected, found.logits[0]), "the walk's logits differ from the forward's"


def same_generation(made: Checkpoint) -> None:
    """Greedy generation is the same with a cache and without."""
    model = load(made).model
    tokens = probe(made)[:, :24]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    mask = torch.ones_like(tokens)
    cached = model.generate(tokens, attention_mask=mask, use_cache=True, **options)
    plainly = model.generate(tokens, attention_mask=mask, use_cache=False, **options)
    assert torch.equal(cached, plainly), "generation with a cache differs from without"


def plain(error: Exception, base: Path) -> str:
    """The error's text without this run's folders."""
    text = " ".join(str(error).split()).replace(f"{base}: ", "").replace(str(base), "MODEL")
    return text[:400]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("types", nargs="*")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    results = []
    for kind in arguments.types or [k for k in causal_types() if k not in UNBUILDABLE]:
        try:
            result = try_type(kind)
        except Exception as error:
            result = Result(kind, defects=[f"{type(error).__name__}: {str(error)[:300]}"])
        results.append(result)
        note = "; ".join(result.defects or {v for v in result.cuts.values() if v != "exact"})
        print(f"{result.kind:24} {result.verdict:8} {result.path:24} {note}", flush=True)
    counts = {v: sum(r.verdict == v for r in results) for v in ("exact", "partly", "refused", "defect")}
    print(counts)


if __name__ == "__main__":
    main()
