"""Drops whole layers: renames the tensors of those that stay and lets the others go.

Works on the names on disk, which may differ from those in memory (fused experts, prefixes), so the
kept weights are the same bytes.
"""

import math
import re
from collections.abc import Sequence

from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.family import Family
from prunekit.model.names import disk_prefix
from prunekit.model.structure import Packed
from prunekit.model.tensors import Tensor
from prunekit.model.units import runs
from prunekit.surgery.write import Part

EXTRA = re.compile(r"nextn|mtp")  # config fields that count blocks beyond the layers


def drop(
    checkpoint: Checkpoint, family: Family, keep: Sequence[int], packed: Sequence[Packed]
) -> list[Part]:
    """The tensors of a model of the layers `keep`, in the input's order.

    Tensors numbered beyond the last layer (multi-token prediction blocks) stay, renumbered.
    Raises InputError if the layers can't be told among the names on disk.
    """
    prefix = disk_prefix(checkpoint, family)
    check_extra(checkpoint, family, prefix)
    new = {old: position for position, old in enumerate(keep)}
    name_of = re.compile(re.escape(prefix) + r"(\d+)(\..+)")
    parts = []
    for tensor in checkpoint.tensors.values():
        match = name_of.fullmatch(tensor.name)
        if match is None:
            parts.append(_outside(tensor, family, keep, packed))
            continue
        index = int(match[1])
        beyond = len(keep) + index - family.depth if index >= family.depth else None
        position = new.get(index, beyond)
        if position is not None:
            name = f"{prefix}{position}{match[2]}"
            parts.append(Part(name, tensor.dtype, tensor.shape, tensor))
    if sum(part.kept is not None for part in parts) != len(packed):
        raise InputError(
            f"{checkpoint.name}: can't tell which tensors on disk pack a part for each layer "
            f"({', '.join(entry.name for entry in packed)})"
        )
    return parts


def check_extra(checkpoint: Checkpoint, family: Family, prefix: str) -> None:
    """Raises InputError if the weights hold more layers than the config says.

    Blocks that predict further tokens are numbered on from the last layer, but the config counts
    them, or they hold what no layer does.
    """
    text = checkpoint.config.get_text_config(decoder=True).to_dict()
    counts = [value for name, value in text.items() if EXTRA.search(name) and type(value) is int]
    parts: dict[int, set[str]] = {}
    for name in checkpoint.tensors:
        if match := re.match(re.escape(prefix) + r"(\d+)\.", name):
            parts.setdefault(int(match[1]), set()).add(name[match.end() :])
    usual = set().union(*(parts[layer] for layer in range(family.depth)))
    counted = family.depth + max(counts, default=0)
    if any(number >= counted and names <= usual for number, names in parts.items()):
        raise InputError(
            f"{checkpoint.name}: the weights hold {len(parts)} layers, and the config says "
            f"{family.depth}; one of them is wrong"
        )


def _outside(tensor: Tensor, family: Family, keep: Sequence[int], packed: Sequence[Packed]) -> Part:
    for entry in packed:
        # On disk the name may have another prefix; what follows it is the same.
        alike = (
            entry.name == tensor.name
            or entry.name.endswith(f".{tensor.name}")
            or tensor.name.endswith(f".{entry.name.partition('.')[2]}")
        )
        sizes = tensor.shape[entry.axis : entry.axis + 1]
        if alike and sizes == (entry.size * family.depth,):
            return sliced(tensor, entry, keep)
    return Part(tensor.name, tensor.dtype, tensor.shape, tensor)


def sliced(tensor: Tensor, packed: Packed, keep: Sequence[int]) -> Part:
    """A tensor that packs something for each layer, with the kept layers' parts only."""
    row = tensor.bytes // math.prod(tensor.shape[: packed.axis])
    step = row * packed.size // tensor.shape[packed.axis]
    kept = tuple((start * step, end * step) for start, end in runs(keep))
    shape = list(tensor.shape)
    shape[packed.axis] = packed.size * len(keep)
    return Part(tensor.name, tensor.dtype, tuple(shape), tensor, row, kept)
