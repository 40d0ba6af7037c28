"""Writes a checkpoint anew with some of its weights changed: all else is the same bytes.

The changed weights come by their names in memory. Where those stand for several tensors on disk
(fused experts), transformers splits them, in a scratch file.
"""

import json
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from prunekit.errors import InputError
from prunekit.model.checkpoint import STORY, Checkpoint
from prunekit.model.family import Family
from prunekit.model.names import memory_names
from prunekit.model.stream import without_bars
from prunekit.model.tensors import Tensor, read_header
from prunekit.surgery.write import Part, by_file, bytes_of, read_tensor, write_shards

SPLIT = "split"  # the scratch folder within the new one


def rewrite(
    checkpoint: Checkpoint,
    family: Family,
    changed: Mapping[str, torch.Tensor],
    folder: Path,
    story: Mapping[str, Any],
) -> None:
    """Write `checkpoint` to the empty `folder` with the weights `changed`, each in the dtype that
    it has on disk.

    Raises InputError if a changed weight can't be told among the tensors on disk.
    """
    named = memory_names(checkpoint, family)
    on_disk: dict[str, list[Tensor]] = {}
    for name, tensor in checkpoint.tensors.items():
        on_disk.setdefault(named[name], []).append(tensor)
    aliases = _aliases(family.skeleton)
    content: dict[str, Part] = {}
    fused: dict[str, torch.Tensor] = {}
    for name, weight in changed.items():
        known = next((alias for alias in aliases.get(name, [name]) if alias in on_disk), None)
        if known is None:
            raise InputError(f"{checkpoint.name}: can't tell {name!r} among the tensors on disk")
        held = on_disk[known]
        if len(held) == 1 and held[0].shape == tuple(weight.shape):
            content[held[0].name] = _part(held[0], weight)
        else:
            fused[name] = weight
    if fused:
        content |= _split(checkpoint, family, fused, folder / SPLIT)
    parts = [
        content.get(tensor.name, Part(tensor.name, tensor.dtype, tensor.shape, tensor))
        for tensor in checkpoint.tensors.values()
    ]
    write_shards(folder, by_file(parts))
    shutil.rmtree(folder / SPLIT, ignore_errors=True)
    for file in (checkpoint.folder / "config.json", *checkpoint.beside):
        shutil.copyfile(file, folder / file.name)
    text = json.dumps(story, indent=2, ensure_ascii=False) + "\n"
    (folder / STORY).write_text(text, encoding="utf-8")


def _part(tensor: Tensor, weight: torch.Tensor) -> Part:
    return Part(tensor.name, tensor.dtype, tensor.shape, tensor,
                content=partial(bytes_of, weight, tensor.dtype))  # fmt: skip


def _aliases(model: PreTrainedModel) -> dict[str, list[str]]:
    """All names of each weight: tied ones have several."""
    by_weight: dict[int, list[str]] = {}
    for name, weight in model.named_parameters(remove_duplicate=False):
        by_weight.setdefault(id(weight), []).append(name)
    return {name: names for names in by_weight.values() for name in names}


def _split(
    checkpoint: Checkpoint, family: Family, fused: Mapping[str, torch.Tensor], scratch: Path
) -> dict[str, Part]:
    """The tensors on disk that fused weights stand for, as transformers saves them."""
    model: Any = family.skeleton
    with without_bars():
        model.save_pretrained(scratch, state_dict=dict(fused))
    found = {}
    for file in scratch.glob("*.safetensors"):
        for tensor in read_header(file):
            own = checkpoint.tensors.get(tensor.name)
            if own is None or own.shape != tensor.shape:
                raise InputError(
                    f"{checkpoint.name}: transformers writes {tensor.name!r} otherwise than it is "
                    "on disk, so what was trained can't be kept"
                )
            found[own.name] = Part(own.name, own.dtype, own.shape, own,
                                   content=partial(_converted, tensor, own.dtype))  # fmt: skip
    return found


def _converted(tensor: Tensor, dtype: str) -> bytes:
    return bytes_of(read_tensor(tensor), dtype)
