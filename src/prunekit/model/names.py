"""Which tensors on disk belong to which layer: names there may differ from those in memory."""

import re
from collections.abc import Mapping
from typing import Any

from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, rename_source_key

from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.family import Family

NONE = (0, 0)


def disk_prefix(checkpoint: Checkpoint, family: Family) -> str:
    """What stands before a layer's number in the names on disk, for example `model.layers.`.

    Of several prefixes that number as many layers (a vision tower's, say), it is the one below
    which most tensors have a decoder layer's names and shapes. Raises InputError if none is.
    """
    numbers: dict[str, set[int]] = {}
    for name in checkpoint.tensors:
        for match in re.finditer(r"(?<=\.)(\d+)(?=\.)|^(\d+)(?=\.)", name):
            numbers.setdefault(name[: match.start()], set()).add(int(match[0]))
    wanted = set(range(family.depth))
    whole = [prefix for prefix, found in numbers.items() if wanted <= found]
    layers = family.layers(family.skeleton).state_dict()
    alike = {prefix: _alike(checkpoint, prefix, layers) for prefix in whole}
    fitting = [prefix for prefix in whole if alike[prefix] == max(alike.values())]
    if len(fitting) > 1 or max(alike.values(), default=NONE) == NONE:
        fitting = [prefix for prefix in fitting if f"{family.path}.".endswith(prefix)]
    if len(fitting) != 1:
        raise InputError(
            f"{checkpoint.name}: can't tell the {family.depth} layers among the tensors on disk "
            f"({', '.join(whole) or 'no name numbers them all'})"
        )
    return fitting[0]


def memory_names(checkpoint: Checkpoint, family: Family) -> dict[str, str]:
    """What transformers calls each tensor once it is loaded; where several become one (fused
    experts), they share its name."""
    model: Any = family.skeleton
    rules = get_model_conversion_mapping(model)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    known = model.state_dict()
    return {
        name: rename_source_key(name, renamings, converters, model.base_model_prefix, known)[0]
        for name in checkpoint.tensors
    }


def _alike(checkpoint: Checkpoint, prefix: str, layers: Mapping[str, Any]) -> tuple[int, int]:
    """How many tensors below a prefix have names, and shapes too, of the layers in memory."""
    pairs = [
        (checkpoint.tensors[prefix + name].shape, tuple(tensor.shape))
        for name, tensor in layers.items()
        if prefix + name in checkpoint.tensors
    ]
    return len(pairs), sum(stored == wanted for stored, wanted in pairs)
