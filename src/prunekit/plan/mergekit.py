"""Plans of drops as mergekit's passthrough YAML, written and read.

mergekit (https://github.com/arcee-ai/mergekit) names the layers that stay: slices of half-open
layer ranges of one model, put together by merge_method passthrough.
"""

from pathlib import Path
from typing import Any

import yaml

from prunekit.errors import InputError
from prunekit.model.units import runs
from prunekit.plan.edits import Drop
from prunekit.plan.plan import Plan


def to_mergekit(plan: Plan, dtype: str = "bfloat16") -> str:
    """The plan as mergekit YAML. Raises InputError if it does not name its base model or has
    edits that change weights."""
    if plan.base is None:
        raise InputError("the plan names no base model, which mergekit's YAML needs")
    for edit in plan.edits:
        if not isinstance(edit, Drop):
            raise InputError(
                f"the plan has a `{next(iter(edit.record()))}`; mergekit's passthrough can only "
                "drop layers"
            )
    slices = [
        {"sources": [{"model": plan.base.name, "layer_range": list(block)}]}
        for block in runs(plan.kept(plan.base.layers))
    ]
    record = {"slices": slices, "merge_method": "passthrough", "dtype": dtype}
    return yaml.safe_dump(record, sort_keys=False, default_flow_style=None)


def from_mergekit(record: dict[str, Any], file: Path, layers: int | None) -> Plan:
    """The drops that mergekit's YAML stands for, for a model of `layers` layers.

    Raises InputError for anything but one model's layers, each once and in order.
    """
    if record.get("merge_method", "passthrough") != "passthrough":
        raise InputError(f"{file}: merge_method {record['merge_method']!r}, not passthrough")
    if layers is None:
        raise InputError(
            f"{file} is mergekit's YAML, which does not say how many layers the model has; "
            "use it with `prunekit cut MODEL`"
        )
    models, ranges = set(), []
    scaled = "parameters" in record
    try:
        for part in record["slices"]:
            (source,) = part["sources"]
            models.add(str(source["model"]))
            start, end = source["layer_range"]
            if type(start) is not int or type(end) is not int:
                raise TypeError
            ranges.append((start, end))
            scaled = scaled or "parameters" in part or "parameters" in source
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"{file}: every slice must have one source with a model and a layer_range"
        ) from None
    if scaled:
        raise InputError(f"{file}: `parameters` change weights, which no drop can do")
    if len(models) != 1:
        raise InputError(f"{file}: slices of {len(models)} models; a plan cuts one")
    at = 0
    for start, end in ranges:
        if start < at or end <= start:
            raise InputError(
                f"{file}: layer_range [{start}, {end}] repeats or reorders layers, "
                "which no drop can do"
            )
        at = end
    if at > layers:
        raise InputError(f"{file}: layer_range ends at {at}, the model has {layers} layers")
    kept = {layer for start, end in ranges for layer in range(start, end)}
    gone = tuple(layer for layer in range(layers) if layer not in kept)
    return Plan((Drop(gone),), made_by={"mergekit": file.name})
