"""Config surgery: the config of a model that keeps only some of its layers.

A config says far more about layers than how many there are: lists with one entry a layer, lists of
layer indices, dicts keyed by layer, strides, counts of the first or last layers. Each kind has its
rule here. What a rule can't express in the family's own config is refused, never guessed; whether
the result is right is then checked on the built model (structure.py) and by its logits.
"""

import copy
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedConfig

from prunekit.errors import InputError
from prunekit.model.family import DEPTHS, text_config

# Lists of layer indices. Any other list with one entry a layer is sliced.
INDEX_LISTS = ("mlp_only_layers", "moe_layers", "full_attn_idxs", "cross_attention_layers",
               "hybrid_layer_ids", "attn_layer_indices", "global_attn_layers",
               "full_attention_layers", "engram_layer_ids")  # fmt: skip
# Lists and dicts that say nothing about layers, whatever their length.
NOT_LAYERS = ("architectures", "eos_token_id", "bos_token_id", "pad_token_id", "id2label",
              "label2id", "keys_to_ignore_at_inference", "mrope_section", "suppress_tokens",
              "begin_suppress_tokens", "bad_words_ids", "rope_parameters", "rope_scaling",
              "quantization_config", "time_step_limit", "mtp_layers_block_type")  # fmt: skip
# How many of the first layers are special; and of the last.
PREFIXES = ("first_k_dense_replace", "num_dense_layers", "moe_layer_start_index",
            "max_window_layers", "num_hash_layers", "n_dense_layers", "num_dense_blocks")  # fmt: skip
SUFFIXES = ("num_kv_shared_layers",)
# (period, offset): layer i is special if i % period == offset. An int is an offset that the class
# fixes; -1 stands for the last of each period.
STRIDES: tuple[tuple[str, str | int], ...] = (
    ("attn_layer_period", "attn_layer_offset"),
    ("expert_layer_period", "expert_layer_offset"),
    ("global_attn_every_n_layers", -1),
    ("moe_layer_frequency", 0),
    ("full_attention_interval", -1),
    ("sliding_window_pattern", -1),
)


def keep_layers(config: PreTrainedConfig, config_json: dict[str, Any], keep: Sequence[int],
                depth: int) -> dict[str, Any]:  # fmt: skip
    """`config_json` for a model of the layers `keep` (ascending, numbered in the base of `depth`).

    Only what depends on the layers is changed. Raises InputError, with the reason, where the model
    type's config can't express the result.
    """
    key, text = text_config(config)
    changes = _changes(text, keep, depth)
    result = copy.deepcopy(config_json)
    target = result if key is None else result.setdefault(key, {})
    target.update(changes)
    return result


def read(config: PreTrainedConfig, config_json: dict[str, Any]) -> PreTrainedConfig:
    """`config_json` as a config of the same class as `config`.

    Raises InputError if the class refuses it.
    """
    try:
        return type(config).from_dict(copy.deepcopy(config_json))
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"model type {config.model_type!r} can't express this cut: {reason}") from None


def _changes(text: PreTrainedConfig, keep: Sequence[int], depth: int) -> dict[str, Any]:
    values = {**_explicit(text, depth)}
    changes: dict[str, Any] = {}
    new = {old: position for position, old in enumerate(keep)}
    for name, value in {**text.to_dict(), **values}.items():
        if name in DEPTHS and value == depth:
            changes[name] = len(keep)
        elif name in NOT_LAYERS or isinstance(value, str):
            continue
        elif name in INDEX_LISTS and isinstance(value, (list, tuple)):
            changes[name] = [new[index] for index in value if index in new]
        elif isinstance(value, (list, tuple)) and len(value) == depth:
            changes[name] = [value[index] for index in keep]
        elif isinstance(value, dict) and value and all(_is_layer(k, depth) for k in value):
            changes[name] = {_like(k, new[int(k)]): v for k, v in value.items() if int(k) in new}
        elif name in PREFIXES and isinstance(value, int):
            changes[name] = sum(index < value for index in keep) if value < depth else value
        elif name in SUFFIXES and isinstance(value, int):
            changes[name] = sum(index >= depth - value for index in keep)
    for period, offset in STRIDES:
        changes.update(_refit(text, keep, depth, period, offset))
    changes.update({name: value for name, value in values.items() if name not in changes})
    return changes


def _explicit(text: PreTrainedConfig, depth: int) -> dict[str, Any]:
    """Strides that the class also takes as an explicit list, as that list."""
    step = getattr(text, "decoder_sparse_step", None)
    dense = getattr(text, "mlp_only_layers", None)
    if isinstance(step, int) and step > 1 and isinstance(dense, list):
        dense = sorted({*dense, *(index for index in range(depth) if (index + 1) % step)})
        return {"decoder_sparse_step": 1, "mlp_only_layers": dense}
    return {}


def _refit(text: PreTrainedConfig, keep: Sequence[int], depth: int, period_name: str,
           offset_name: str | int) -> dict[str, int]:  # fmt: skip
    """The stride that marks the same layers after the cut, if the class reads a stride at all.

    Raises InputError if no stride does.
    """
    period = getattr(text, period_name, None)
    if not isinstance(period, int) or period < 1 or getattr(text, "layer_types", None):
        return {}  # explicit layer types win over the stride
    fixed = isinstance(offset_name, int)
    offset = offset_name if isinstance(offset_name, int) else getattr(text, offset_name)
    marked = [position for position, old in enumerate(keep) if old % period == offset % period]
    for new_period in [period, *range(1, len(keep) + 2)]:
        for new_offset in [offset] if fixed else [offset, *range(new_period)]:
            found = [i for i in range(len(keep)) if i % new_period == new_offset % new_period]
            if found == marked and (fixed or new_offset < new_period):
                change = {period_name: new_period}
                return change if fixed else {**change, str(offset_name): new_offset}
    raise InputError(
        f"model type {text.model_type!r} marks every {period}th layer ({period_name}={period}, "
        f"offset {offset}) and takes no list; after this cut the marked layers would be "
        f"{marked} of {len(keep)}, which is no stride: drop whole periods, or layers at an end"
    )


def _is_layer(key: Any, depth: int) -> bool:
    return str(key).isdecimal() and int(key) < depth


def _like(key: Any, index: int) -> Any:
    return index if isinstance(key, int) else str(index)
