"""Layers that use what an earlier layer made: its keys and values, its selection, its weights."""

from collections.abc import Sequence

from transformers import PreTrainedConfig

from prunekit.errors import InputError


def sources(text: PreTrainedConfig, depth: int) -> dict[int, tuple[int, str]]:
    """For every layer that uses another's: that other layer, and what it gives."""
    found: dict[int, tuple[int, str]] = {}
    kinds = getattr(text, "layer_types", None) or [""] * depth
    first_shared = depth - (getattr(text, "num_kv_shared_layers", None) or 0)
    indexers = getattr(text, "indexer_types", None) or [""] * depth
    for layer in range(depth):
        if first_shared <= layer:  # the last of the same kind that has its own
            givers = [i for i in range(first_shared) if kinds[i] == kinds[layer]]
            if givers:
                found[layer] = givers[-1], "keys and values"
        if indexers[layer] == "shared":
            givers = [i for i in range(layer) if indexers[i] == "full"]
            if givers:
                found[layer] = givers[-1], "selection of tokens"
        if text.model_type == "zamba" and text.layers_block_type[layer] == "hybrid":
            first = text.layers_block_type.index("hybrid")
            if layer != first:
                found[layer] = first, "attention block"
    return found


def check_sources(
    old: PreTrainedConfig, new: PreTrainedConfig, keep: Sequence[int], depth: int
) -> None:
    """Raises InputError if a kept layer would take from another layer than before."""
    before, after = sources(old, depth), sources(new, len(keep))
    for position, layer in enumerate(keep):
        if layer not in before:
            continue
        giver, what = before[layer]
        if giver not in keep:
            raise InputError(
                f"model type {old.model_type!r}: layer {layer} uses the {what} of layer {giver}: "
                f"keep layer {giver}, or drop every layer that uses it"
            )
        if position not in after or keep[after[position][0]] != giver:
            raise InputError(
                f"model type {old.model_type!r}: layer {layer} uses the {what} of layer {giver}, "
                "and after this cut would use those of another"
            )
