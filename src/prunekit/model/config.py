"""Config surgery: the config of a model that keeps only some of its layers.

A config says far more about layers than how many there are: lists with one entry a layer, lists of
layer indices, dicts keyed by layer, strides, counts of the first or last layers. Each kind has its
rule here (strides in strides.py). What a rule can't express in the family's own config is refused,
never guessed; whether the result is right is then checked on the built model (structure.py) and by
its logits.
"""

import copy
import json
import math
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from prunekit.errors import InputError
from prunekit.model.family import DEPTHS, text_config
from prunekit.model.oddities import ATTENTION_FREE, because, objection
from prunekit.model.sharing import check_sources
from prunekit.model.strides import refit

# Lists of layer indices. Any other list with one entry a layer is sliced.
INDEX_LISTS = ("mlp_only_layers", "moe_layers", "full_attn_idxs", "cross_attention_layers",
               "hybrid_layer_ids", "attn_layer_indices", "global_attn_layers",
               "full_attention_layers", "engram_layer_ids")  # fmt: skip
# Strings with one letter a layer.
STRINGS = ("hybrid_override_pattern",)
# Lists and dicts that say nothing about layers, whatever their length.
NOT_LAYERS = ("architectures", "eos_token_id", "bos_token_id", "pad_token_id", "id2label",
              "label2id", "keys_to_ignore_at_inference", "mrope_section", "suppress_tokens",
              "begin_suppress_tokens", "bad_words_ids", "rope_parameters", "rope_scaling",
              "quantization_config", "time_step_limit", "mtp_layers_block_type")  # fmt: skip
# How many of the first layers are special; and of the last.
PREFIXES = ("first_k_dense_replace", "num_dense_layers", "max_window_layers", "num_hash_layers",
            "n_dense_layers", "num_dense_blocks")  # fmt: skip
SUFFIXES = ("num_kv_shared_layers",)
# The name of a module in a decoder layer, or a pattern for it; towers number theirs apart.
LAYER_NAME = re.compile(
    r"((?!.*(?:vis|audio|encoder|tower)).*?\b(?:layers|h|blocks)\\?\.)(\d+)((?:\\?\..*)?)",
    re.DOTALL,
)
# A pattern that picks some layers out of all.
SOME_LAYERS = re.compile(r"\b(?:layers|h|blocks)\\?\.[(\[](?!0-9\])")
# Types of layers that keep no keys and values.
LINEAR_TYPES = ("linear_attention", "conv", "mamba", "recurrent", "moe", "mlp", "dense", "sparse")


def keep_layers(config: PreTrainedConfig, config_json: dict[str, Any], keep: Sequence[int],
                depth: int) -> dict[str, Any]:  # fmt: skip
    """`config_json` for a model of the layers `keep` (ascending, numbered in the base of `depth`).

    Only what depends on the layers is changed. Raises InputError, with the reason, where the model
    type's config can't express the result.
    """
    key, text = text_config(config)
    if reason := objection(text, keep, depth):
        raise InputError(f"model type {text.model_type!r} can't be cut so: {reason}")
    result = copy.deepcopy(config_json)
    target = result if key is None else result.setdefault(key, {})
    changes = _changes({**target, **text.to_dict()}, text, keep, depth)
    target.update(changes)
    for alias, name in text.attribute_map.items():
        if name in changes and alias not in changes:
            target.pop(alias, None)  # the same fact under another name, now outdated
    for name in DEPTHS:
        # Another count that follows from the depth: two attentions a layer, say.
        if isinstance(getattr(type(text), name, None), property) and name in target:
            del target[name]
    for holder in [result] if target is result else [result, target]:
        if quantisation := holder.get("quantization_config"):
            holder["quantization_config"] = _renumbered(quantisation, keep, depth)
    after = text_config(read(config, result))[1]
    _check_read(text.model_type, changes, after)
    check_sources(text, after, keep, depth)
    if _has_attention(text) and not _has_attention(after) and text.model_type not in ATTENTION_FREE:
        raise InputError(
            f"model type {text.model_type!r}: no attention layer would stay, and transformers "
            "can't generate with such a model: keep one at least"
        )
    return result


def read(config: PreTrainedConfig, config_json: dict[str, Any]) -> PreTrainedConfig:
    """`config_json` as transformers reads it, for a model of the class of `config`.

    Raises InputError if transformers refuses it.
    """
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config_json), encoding="utf-8")
        try:
            return AutoConfig.from_pretrained(folder, local_files_only=True)
        except Exception as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(
                f"model type {config.model_type!r} can't express this cut: {reason}"
            ) from None


def _check_read(kind: str, written: dict[str, Any], read_back: PreTrainedConfig) -> None:
    """Raises InputError if the class reads something else than what was written."""
    found = json.loads(json.dumps(read_back.to_dict(), default=str))
    for name, value in json.loads(json.dumps(written, default=str)).items():
        if name in found and found[name] != value:
            raise InputError(
                f"model type {kind!r}: its class would make of {name}={value} in the cut config "
                f"{found[name]}{because(kind)}"
            )


def _renumbered(value: Any, keep: Sequence[int], depth: int) -> Any:
    """What a quantisation says about modules by name (kept in high precision, say), with the
    layers' new numbers and without what it says about those that are gone."""
    if isinstance(value, dict):
        pairs = ((_renumbered(k, keep, depth), v) for k, v in value.items())
        return {k: _renumbered(v, keep, depth) for k, v in pairs if k is not None}
    if isinstance(value, list):
        entries = ((entry, _renumbered(entry, keep, depth)) for entry in value)
        return [new for old, new in entries if new is not None or old is None]
    if not isinstance(value, str):
        return value
    if SOME_LAYERS.search(value):
        raise InputError(
            f"the quantization_config names layers by the pattern {value!r}, whose numbers "
            "can't be told: write the layers out one by one"
        )
    if not (match := LAYER_NAME.fullmatch(value)):
        return value
    index = int(match[2])
    if index >= depth:  # blocks beyond the layers, renumbered on disk too
        return f"{match[1]}{index - depth + len(keep)}{match[3]}"
    return f"{match[1]}{keep.index(index)}{match[3]}" if index in keep else None


def _has_attention(text: PreTrainedConfig) -> bool:
    """Whether any layer keeps keys and values in the cache; false where layers have no types."""
    return any(kind not in LINEAR_TYPES for kind in getattr(text, "layer_types", None) or [])


def _changes(
    values: dict[str, Any], text: PreTrainedConfig, keep: Sequence[int], depth: int
) -> dict[str, Any]:
    explicit = _explicit(text, depth)
    changes: dict[str, Any] = {}
    new = {old: position for position, old in enumerate(keep)}
    for name, value in {**values, **explicit}.items():
        if name in DEPTHS and value == depth:
            changes[name] = len(keep)
        elif name in STRINGS and isinstance(value, str) and len(value) == depth:
            changes[name] = "".join(value[index] for index in keep)
        elif name in NOT_LAYERS or isinstance(value, str) or value is None:
            continue
        elif name in SPECIAL:
            changes[name] = SPECIAL[name](text, keep, depth)
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
    return {**explicit, **changes, **refit(text, keep, depth)}


def _explicit(text: PreTrainedConfig, depth: int) -> dict[str, Any]:
    """Strides that the class also takes as an explicit list, as that list."""
    step = getattr(text, "decoder_sparse_step", None)
    dense = getattr(text, "mlp_only_layers", None)
    if isinstance(step, int) and step > 1 and isinstance(dense, list):
        dense = sorted({*dense, *(index for index in range(depth) if (index + 1) % step)})
        return {"decoder_sparse_step": 1, "mlp_only_layers": dense}
    return {}


def _runs(text: PreTrainedConfig, keep: Sequence[int], _: int) -> list[Any]:
    """gpt_neo: [[kinds, times], ...], multiplied out in `attention_layers`."""
    return [[[text.attention_layers[index]], 1] for index in keep]


def _cycle(text: PreTrainedConfig, keep: Sequence[int], _: int) -> list[str]:
    """recurrent_gemma: repeated over all layers."""
    return [text.block_types[index % len(text.block_types)] for index in keep]


def _from_one(text: PreTrainedConfig, keep: Sequence[int], _: int) -> list[int]:
    """qwen4_exp: counted from one."""
    return [place for place, index in enumerate(keep, 1) if index + 1 in text.ple_layer_ids]


def _by_root(text: PreTrainedConfig, keep: Sequence[int], depth: int) -> float:
    """minicpm3: divided by the root of the depth. The same product but for the last bit of a
    double; torch rounds it to float32, and the structure check asks that it is the same there."""
    return text.scale_depth * math.sqrt(len(keep) / depth)


SPECIAL: dict[str, Callable[[PreTrainedConfig, Sequence[int], int], Any]] = {
    "attention_types": _runs,
    "block_types": _cycle,
    "ple_layer_ids": _from_one,
    "scale_depth": _by_root,
}


def _is_layer(key: Any, depth: int) -> bool:
    return str(key).isdecimal() and int(key) < depth


def _like(key: Any, index: int) -> Any:
    return index if isinstance(key, int) else str(index)
