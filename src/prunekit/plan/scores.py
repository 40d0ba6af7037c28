"""Scores: what a criterion says about blocks and halves of layers; low = safe to remove."""

import csv
import io
import json
import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

from prunekit.errors import InputError
from prunekit.model.units import HALVES, Unit

FORMAT = 1
Kind = Literal["layer", "attention", "mlp", "half"]  # of units; half = attention and MLP together


@dataclass(frozen=True)
class Base:
    """The model that scores or a plan were made for."""

    name: str
    model_type: str
    layers: int
    digest: str


@dataclass(frozen=True)
class Scores:
    """One number for every block [start, start + length) of layers; low = safe to remove.

    `blocks[length][start]`; length 1 is always there, longer blocks where the criterion gives them.
    `halves`, if the criterion gives it, has a number for the `attention` and the `mlp` of each
    layer, None where a layer has no such half. `text` and `context` say on what and how the numbers
    were measured.
    """

    criterion: str
    options: dict[str, Any]
    base: Base
    blocks: dict[int, list[float]]
    text: dict[str, Any] | None = None
    context: dict[str, Any] = field(default_factory=dict)
    halves: dict[str, list[float | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for length, row in self.blocks.items():
            if not 1 <= length <= self.base.layers:
                raise InputError(f"scores of blocks of {length} for {self.base.layers} layers")
            expected = self.base.layers - length + 1
            if len(row) != expected:
                raise InputError(
                    f"scores of blocks of {length}: {len(row)} values, {expected} expected "
                    f"for {self.base.layers} layers"
                )
            for start, value in enumerate(row):
                if not math.isfinite(value):
                    raise InputError(
                        f"the score of block [{start}, {start + length}) is {value}; "
                        "scores must be finite numbers"
                    )
        if 1 not in self.blocks:
            raise InputError("scores without blocks of length 1")
        for half, values in self.halves.items():
            if half not in HALVES:
                raise InputError(f"scores of {half!r} halves; there are: {', '.join(HALVES)}")
            if len(values) != self.base.layers:
                raise InputError(
                    f"scores of {half} halves: {len(values)} values for {self.base.layers} layers"
                )
            for layer, score in enumerate(values):
                if score is not None and not math.isfinite(score):
                    raise InputError(
                        f"the score of the {half} of layer {layer} is {score}; "
                        "scores must be finite numbers"
                    )

    @property
    def layers(self) -> list[float]:
        """The score of each single layer."""
        return self.blocks[1]

    def block(self, length: int) -> list[float]:
        """The score of each block of `length`: its own if the criterion gives one, else the sum of
        its layers' scores."""
        if length in self.blocks:
            return self.blocks[length]
        starts = range(self.base.layers - length + 1)
        return [sum(self.layers[start : start + length]) for start in starts]

    @property
    def units(self) -> dict[Unit, float]:
        """The score of every layer and of every half that has one."""
        units: dict[Unit, float] = {
            (layer, "layer"): score for layer, score in enumerate(self.layers)
        }
        for half in HALVES:
            for layer, score in enumerate(self.halves.get(half, [])):
                if score is not None:
                    units[layer, half] = score
        return units

    def of(self, kind: Kind) -> dict[Unit, float]:
        """The score of every unit of a kind. Raises InputError if halves were not scored."""
        parts = HALVES if kind == "half" else (kind,)
        for part in parts:
            if part != "layer" and part not in self.halves:
                raise InputError(f"these scores by {self.criterion!r} have none of {part} halves")
        return {unit: score for unit, score in self.units.items() if unit[1] in parts}

    def write(self, file: Path) -> None:
        record = {"prunekit_scores": FORMAT, **asdict(self)}
        if not self.halves:
            del record["halves"]
        file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def read_scores(file: Path) -> Scores:
    """Scores from their JSON file. Raises InputError if it is not one."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"can't read scores {str(file)!r}: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise InputError(f"{file}: not JSON: {error}") from None
    if not isinstance(record, dict) or record.pop("prunekit_scores", None) != FORMAT:
        raise InputError(f"{file}: not a scores file that this version reads (written by `score`)")
    if odd := record.keys() - {field.name for field in fields(Scores)}:
        raise InputError(f"{file}: broken scores file: {min(odd)!r} does not belong there")
    if not isinstance(record.get("blocks"), dict):
        raise InputError(f"{file}: broken scores file: `blocks` must map lengths to lists")
    try:
        base = parse_base(record.pop("base", None))
        blocks = {
            int(length): [float(value) for value in row]
            for length, row in record.pop("blocks", {}).items()
        }
        halves = {
            half: [None if value is None else float(value) for value in values]
            for half, values in record.pop("halves", {}).items()
        }
        scores = Scores(base=base, blocks=blocks, halves=halves, **record)
    except (TypeError, ValueError, OverflowError, AttributeError) as error:
        raise InputError(f"{file}: broken scores file: {error}") from None
    kinds = {"criterion": str, "options": dict, "text": dict | None, "context": dict}
    for key, kind in kinds.items():
        if not isinstance(getattr(scores, key), kind):
            raise InputError(f"{file}: broken scores file: `{key}` is of the wrong kind")
    return scores


def parse_base(record: Any) -> Base:
    """The base model's record in a scores or plan file. Raises InputError if it is not one."""
    kinds = {"name": str, "model_type": str, "layers": int, "digest": str}
    if (
        not isinstance(record, dict)
        or record.keys() != kinds.keys()
        or any(type(record[key]) is not kind for key, kind in kinds.items())
        or record["layers"] < 1
    ):
        raise InputError("`base` must have name, model_type, digest (text) and layers (a number)")
    return Base(**record)


def to_csv(scores: Scores) -> str:
    """The scores of every block length as CSV: block_start, block_end, average_distance.

    PruneMe's columns (blocks half-open: block_end is the first layer kept), with its columns for
    one length repeated for all of them, shortest first.
    """
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["block_start", "block_end", "average_distance"])
    for length in sorted(scores.blocks):
        for start, value in enumerate(scores.blocks[length]):
            writer.writerow([start, start + length, repr(value)])
    return stream.getvalue()
