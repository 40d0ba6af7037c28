"""How far scores and choices by a quantised model are from those of the model itself.

    python benchmarks/quantised.py MODEL [--criteria angular,cosine] [--samples 32] [--drop 2,4,6]

Prediction: 8-bit weights move a state by less than a hundredth of its length and change no choice;
4-bit ones by some hundredths, as much as the quietest layers do, so that they may change which of
the quiet layers come first, and seldom which are quiet.
"""

import argparse

from machine import environment, table

import prunekit

KINDS = (None, "int8", "nf4", "fp4")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--criteria", default="angular,cosine,euclidean,magnitude_ratio")
    parser.add_argument("--samples", type=int, default=32)
    parser.add_argument("--length", type=int)
    parser.add_argument("--drop", default="2,4,6")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    criteria = asked.criteria.split(",")
    drops = [int(number) for number in asked.drop.split(",")]
    scores = {
        kind: prunekit.score(
            asked.model, criterion=criteria, samples=asked.samples, length=asked.length,
            quantize=kind, device=asked.device,
        )
        for kind in KINDS
    }  # fmt: skip
    rows = []
    for number, name in enumerate(criteria):
        whole = scores[None][number]
        for kind in KINDS:
            mine = scores[kind][number]
            far = max(abs(a - b) / abs(a) for a, b in zip(whole.layers, mine.layers, strict=True))
            chosen = [
                f"{shared(whole, mine, drop, 'block')}, {shared(whole, mine, drop, 'lowest')}"
                for drop in drops
            ]
            rows.append([name, kind or "as stored", f"{far:.4f}", *chosen])
    print(environment())
    print(f"{asked.model}; the worst of the layers' scores, as a share; and how many of the layers "
          "chosen (block, lowest) are those that the model as stored would choose\n")  # fmt: skip
    heads = ["criterion", "weights", "worst score off by", *(f"{drop} off" for drop in drops)]
    print(table(heads, rows))


def shared(whole: prunekit.Scores, mine: prunekit.Scores, drop: int, chooser: str) -> str:
    own = prunekit.choose(whole, drop=drop, chooser=chooser).dropped
    return f"{len({*own} & {*prunekit.choose(mine, drop=drop, chooser=chooser).dropped})}/{drop}"


if __name__ == "__main__":
    main()
