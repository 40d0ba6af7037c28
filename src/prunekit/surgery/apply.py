"""Applies a plan to a checkpoint: a new checkpoint that plain transformers opens."""

import importlib.metadata
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from prunekit.errors import InputError
from prunekit.model.checkpoint import STORY, Checkpoint
from prunekit.model.config import keep_layers, read
from prunekit.model.family import Family
from prunekit.model.structure import compare
from prunekit.plan.plan import Plan
from prunekit.plan.scores import Base
from prunekit.surgery.check import check_made
from prunekit.surgery.drop import drop
from prunekit.surgery.fold import fold
from prunekit.surgery.merge import merge
from prunekit.surgery.mute import mute
from prunekit.surgery.write import by_file, by_size, refuse_existing, whole_folder, write_shards


def base_of(checkpoint: Checkpoint, family: Family) -> Base:
    """What scores and plans remember of the model they were made for."""
    return Base(checkpoint.name, checkpoint.model_type, family.depth, checkpoint.digest)


def apply(
    plan: Plan,
    checkpoint: Checkpoint,
    out: Path,
    *,
    check: bool = True,
    shard_size: int | None = None,
    link: bool = False,
) -> Checkpoint:
    """Write `checkpoint` with the plan's edits made to the new folder `out` and open it.

    `shard_size` is the most bytes of tensors a file holds; None keeps the input's shards. With
    `link`, shards in which nothing changes are linked to the input's files, and not written.

    With `check`, the result is loaded and run by transformers before it takes its name, and must
    give the logits of the base model without what the plan takes out. The folder appears whole or
    not at all. Raises InputError if the plan does not fit, or the model type can't express it.
    """
    refuse_existing(out)
    if link and shard_size is not None:
        raise InputError("--link keeps the input's shards, so it can't go with --shard-size")
    family = Family.of(checkpoint.config)
    keep = plan.check(base_of(checkpoint, family))
    config_json = keep_layers(checkpoint.config, checkpoint.config_json, keep, family.depth)
    made = Family.of(read(checkpoint.config, config_json))
    packed = compare(family, made, keep)
    parts = drop(checkpoint, family, keep, packed)
    parts = mute(parts, checkpoint, family, plan.muted)
    parts = merge(parts, checkpoint, family, plan.merges)
    parts = fold(parts, checkpoint, family, plan.folds)
    with whole_folder(out) as folder:
        write_shards(
            folder, by_file(parts) if shard_size is None else by_size(parts, shard_size), link
        )
        _write_json(folder / "config.json", config_json)
        for file in checkpoint.beside:
            shutil.copyfile(file, folder / file.name)
        _write_json(folder / STORY, _story(checkpoint, plan, keep))
        if check:
            check_made(checkpoint, plan, Checkpoint.open(folder))
    return Checkpoint.open(out)


def tell(checkpoint: Checkpoint, measures: dict[str, Any]) -> None:
    """Add measures to the story of a checkpoint of ours."""
    file = checkpoint.folder / STORY
    scratch = file.with_suffix(".partial")
    _write_json(scratch, {**checkpoint.story, "measures": measures})
    scratch.replace(file)


def _story(checkpoint: Checkpoint, plan: Plan, keep: Sequence[int]) -> dict[str, Any]:
    """The checkpoint's lineage: what it was made from, and by which edits.

    `muted` counts layers as this checkpoint does, all else as its base; halves muted in the base
    stay muted.
    """
    before = [(layer, half) for layer, half in checkpoint.muted if layer in keep]
    muted = sorted({*before, *plan.muted})
    return {
        "prunekit": importlib.metadata.version("prunekit"),
        "base": {"name": checkpoint.name, "digest": checkpoint.digest},
        "dropped": list(plan.dropped),
        "merged": [edit.record()["merge"] for edit in plan.merges],
        "folded": [edit.record()["fold"]["layers"] for edit in plan.folds],
        "replaced": [
            {"layers": [keep.index(layer) for layer in edit.kept], "by": edit.by}
            for edit in plan.replacements
        ],
        "muted": [[keep.index(layer), half] for layer, half in muted],
        "made_by": plan.made_by,
        "calibration_text": plan.text,
        "training_text": plan.made_by.get("fold", {}).get("text"),
        "before": checkpoint.story or None,
    }


def _write_json(file: Path, record: dict[str, Any]) -> None:
    file.write_text(json.dumps(record, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
