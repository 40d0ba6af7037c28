"""Tries cuts of a tiny random model of every causal-LM type and writes docs/families.md.

    python benchmarks/families.py [TYPE...] [--jobs N] [--write]

For each type: the walk's logits against transformers' own forward (bit for bit), and for every cut
either a checkpoint that plain transformers opens, whose logits equal the dense model's with those
layers skipped (difference 0 in float32) and which generates the same with and without a cache, or
the reason why the cut is refused. Anything else is a defect and is listed as one.
"""

import argparse
import re
import sys
import tempfile
import warnings
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import torch
import transformers

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from tiny import UNBUILDABLE, causal_types, tiny_model

from prunekit.errors import InputError
from prunekit.model.checkpoint import CAUSAL_IF, Checkpoint
from prunekit.model.family import Family
from prunekit.model.load import load
from prunekit.model.loss import Logits
from prunekit.plan.edits import Drop
from prunekit.plan.plan import Plan
from prunekit.surgery.apply import apply
from prunekit.surgery.check import probe

LAYERS = 8
CUTS = {"prefix": (0, 1), "suffix": (6, 7), "block": (3, 4, 5), "scattered": (1, 4, 6)}
SAME = "with a cache as without"
PAGE = Path(__file__).parents[1] / "docs" / "families.md"


@dataclass
class Result:
    """What became of a type: for each cut `exact`, or the reason of a refusal; defects apart."""

    kind: str
    cuts: dict[str, str] = field(default_factory=dict)
    defects: list[str] = field(default_factory=list)
    path: str = ""
    walk: bool = False
    generation: str = ""  # what is wrong with that of the uncut model

    @property
    def verdict(self) -> str:
        if self.defects:
            return "defect"
        exact = sum(outcome == "exact" for outcome in self.cuts.values())
        return "exact" if exact == len(CUTS) else "partly" if exact else "refused"


def try_type(kind: str) -> Result:
    """Every cut of one type."""
    quiet()
    result = Result(kind)
    with tempfile.TemporaryDirectory() as scratch:
        base = Path(scratch) / "base"
        tiny_model(kind, LAYERS).save_pretrained(base)
        try:
            checkpoint = Checkpoint.open(base)
            result.path = Family.of(checkpoint.config).path
            same_walk(checkpoint)
            result.walk = True
        except InputError as error:
            result.cuts = dict.fromkeys(CUTS, plain(error, base))
            return result
        except Exception as error:
            result.defects.append(f"walk: {type(error).__name__}: {plain(error, base)}")
            return result
        usual = generation(checkpoint)
        result.generation = "" if usual == SAME else usual
        for name, layers in CUTS.items():
            out = Path(scratch) / name
            try:
                made = apply(Plan((Drop(layers),)), checkpoint, out)
                result.cuts[name] = "exact"
                if (found := generation(made)) not in (SAME, usual):
                    result.defects.append(f"{name}: generation {found}")
            except InputError as error:
                result.cuts[name] = plain(error, base)
                if "logits differ" in result.cuts[name]:
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
    assert torch.equal(expected, found.logits), "the walk's logits differ from the forward's"


def generation(checkpoint: Checkpoint) -> str:
    """How greedy generation with a cache compares with that without."""
    model = load(checkpoint).model
    tokens = probe(checkpoint)[:, :24]
    options = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "pad_token_id": 0,
               "attention_mask": torch.ones_like(tokens), "output_logits": True,
               "return_dict_in_generate": True}  # fmt: skip
    try:
        cached = model.generate(tokens, use_cache=True, **options)
        plainly = model.generate(tokens, use_cache=False, **options)
    except Exception as error:
        return f"fails ({type(error).__name__})"
    # Which token wins may hide a difference; rounding alone stays far below the tolerance.
    same = all(
        torch.allclose(one, other, rtol=0.001, atol=0.001)
        for one, other in zip(cached.logits, plainly.logits, strict=True)
    )
    return SAME if same else "with a cache differs from without"


def plain(error: Exception, base: Path) -> str:
    """The error's text without this run's folders."""
    text = " ".join(str(error).split()).replace(f"{base}: ", "").replace(str(base), "MODEL")
    return re.sub(rf"{base.parent}\S*?: ", "", text)[:800]


def quiet() -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")


def attempt(kind: str) -> Result:
    try:
        return try_type(kind)
    except Exception as error:
        return Result(kind, defects=[f"{type(error).__name__}: {str(error)[:300]}"])


def page(results: list[Result]) -> str:
    """docs/families.md."""
    counts = count(results)
    defects = f", and {counts.pop('defect')} have defects" if counts["defect"] else ""
    reasons: dict[str, list[str]] = defaultdict(list)  # reason -> types, with their cuts
    for result in results:
        for why, names in refusals(result).items():
            which = "" if len(names) == len(CUTS) else f" ({', '.join(names)})"
            reasons[why].append(f"`{result.kind}`{which}")
    lines = [
        INTRO.format(
            transformers=transformers.__version__, torch=torch.__version__.partition("+")[0],
            layers=LAYERS, cuts="; ".join(f"{n}: layers {', '.join(map(str, c))}"
                                          for n, c in CUTS.items()),
            types=len(results), defects=defects, **counts,
        ),
        "| type | where its layers are | " + " | ".join(CUTS) + " | walk = forward | remark |",
        "|---|---|" + "---|" * len(CUTS) + "---|---|",
    ]  # fmt: skip
    for result in results:
        marks = ["exact" if result.cuts.get(name) == "exact" else "refused" for name in CUTS]
        remarks = [*result.defects, *refusals(result)]
        if result.generation:
            remarks.append(f"in transformers itself, generation {result.generation}")
        if result.kind in CAUSAL_IF:
            switch, causal = CAUSAL_IF[result.kind]
            remarks.append(f"an encoder, and refused, unless {switch}={causal}")
        walked = "yes" if result.walk else "not run"
        row = [result.kind, code(result.path), *marks, walked, "; ".join(remarks)]
        lines.append(f"| {' | '.join(row)} |")
    lines += ["", "## Why cuts are refused", "", "(The cuts in brackets; without, all four.)", ""]
    lines += [f"- {why}: {', '.join(kinds)}" for why, kinds in sorted(reasons.items())]
    lines += ["", "## Types of which no tiny model can be built", ""]
    lines += [f"- `{kind}`: {why}" for kind, why in sorted(UNBUILDABLE.items())]
    return "\n".join(lines) + "\n"


def refusals(result: Result) -> dict[str, list[str]]:
    """Reasons, with the cuts that they refuse."""
    groups: dict[str, list[str]] = defaultdict(list)
    for name, outcome in result.cuts.items():
        if outcome != "exact":
            groups[reason(outcome)].append(name)
    return groups


INTRO = """# Which model types can be cut

Written by `python benchmarks/families.py --jobs 2 --write` with transformers {transformers} and
torch {torch} (float32, CPU); run it again after an upgrade.

For every model type that transformers maps to a causal language model, a tiny random model of
{layers} layers was built, with the differences between layers that the family has, and four cuts
were tried:
{cuts}.

- *exact*: plain transformers opens the cut checkpoint, its logits equal the dense model's with
  those layers skipped (difference 0), and it generates, the same with a cache as without.
- *refused*: nothing is written, and the reason is given below. Another cut of the same type may
  well be exact.

There is no third outcome: before a cut takes its name on disk it is opened, run and compared.
*walk = forward*: running the model layer by layer gives transformers' own logits bit for bit.

Of {types} types, **{exact} are exact in all four cuts**, {partly} in some, and {refused} are
refused altogether{defects}.
"""

# Refusals that name layers or numbers, without them, so that equal reasons meet.
GENERAL = (
    (
        r"layer \d+ uses the (.*?) of layer \d+.*",
        r"a layer that stays uses the \1 of one that goes",
    ),
    (
        r"marks layers by a stride .*",
        "it marks layers by a stride, and after the cut no stride fits",
    ),
    (r"layer \d+ would stand at .*? and not [^:]*: (.*)", r"\1"),
    (r"its class would make of .*: (.*)", r"\1"),
)


def reason(outcome: str) -> str:
    """A refusal in general words: without the type's name and this cut's numbers."""
    text = re.sub(r"^model type '[\w.-]+'\s*", "", outcome).lstrip(": ")
    text = re.sub(r"^can't be (pruned by layers|cut so): ", "", text)
    for pattern, general in GENERAL:
        text = re.sub(pattern, general, text)
    return re.sub(r"^is (an encoder|not a causal)", r"it is \1", text).replace("|", "\\|")


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def count(results: list[Result]) -> dict[str, int]:
    return {
        verdict: sum(result.verdict == verdict for result in results)
        for verdict in ("exact", "partly", "refused", "defect")
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("types", nargs="*")
    parser.add_argument("--jobs", type=int, default=1, help="processes side by side")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name}")
    arguments = parser.parse_args()
    if arguments.write and arguments.types:
        parser.error("--write is for all types at once")
    kinds = arguments.types or [kind for kind in causal_types() if kind not in UNBUILDABLE]
    results = []
    with ProcessPoolExecutor(arguments.jobs) as pool:
        for result in pool.map(attempt, kinds):
            results.append(result)
            notes = result.defects or {v for v in result.cuts.values() if v != "exact"}
            if result.generation:
                notes = [*notes, f"uncut: generation {result.generation}"]
            print(
                f"{result.kind:24} {result.verdict:8} {result.path:24} {'; '.join(notes)}",
                flush=True,
            )
    print(count(results))
    if arguments.write:
        PAGE.write_text(page(results), encoding="utf-8")


if __name__ == "__main__":
    main()
