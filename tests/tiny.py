"""Tiny random models of every causal-LM type that the installed transformers can build."""

from __future__ import annotations

import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import MISSING, fields
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCAB = 128
TEXT_VOCAB = 100  # ids from 3 up to here are plain text; special tokens lie outside
HIDDEN = 32
HEADS = 4
HEAD_DIM = 8
WINDOW = 8

_LAYERS = object()  # stands for the number of decoder layers asked for

# Field name -> value, for every config class that has the field with a default that is not None.
_RULES: dict[str, Any] = {}


def _rule(value: Any, names: str) -> None:
    _RULES.update(dict.fromkeys(names.split(), value))


_rule(
    _LAYERS,
    "num_hidden_layers n_layer n_layers num_layers decoder_layers encoder_layers"
    " num_decoder_layers num_encoder_layers num_blocks",
)
_rule(VOCAB, "vocab_size vocab_size_per_layer_input decoder_vocab_size pronunciation_vocab_size")
_rule(
    HIDDEN,
    "hidden_size d_model n_embd emb_dim embedding_dim embedding_size dim_model_base"
    " lru_width word_embed_proj_dim attention_hidden_size input_size text_hidden_size"
    " adapter_in_dim adapter_out_dim adapter_input_size output_proj_dims mm_embed_dim"
    " backbone_hidden_size hidden_size_global",
)
_rule(
    HEADS,
    "num_attention_heads n_head n_heads num_heads decoder_attention_heads attention_heads"
    " encoder_attention_heads num_encoder_attention_heads num_decoder_attention_heads"
    " linear_num_value_heads linear_num_heads mamba_n_heads mamba_num_heads"
    " n_mamba_heads",
)
_rule(2, "num_key_value_heads num_kv_heads linear_num_key_heads n_groups kv_n_heads")
_rule(
    HEAD_DIM,
    "head_dim d_head dim_head kv_channels attention_head_dim v_head_dim qk_nope_head_dim"
    " qk_rope_head_dim linear_key_head_dim linear_value_head_dim linear_head_dim"
    " rotary_dim index_head_dim swa_head_dim attention_head_size",
)
_rule(
    64,
    "intermediate_size ffn_dim decoder_ffn_dim encoder_ffn_dim n_inner dff dim_ff"
    " ffn_hidden_size d_inner feed_forward_size intermediate_size_mlp dense_intermediate_size"
    " prefix_dense_intermediate_size mamba_d_ssm position_embedding_size",
)
_rule(
    16,
    "moe_intermediate_size shared_expert_intermediate_size shared_intermediate_size"
    " expert_ffn_hidden_size moe_shared_expert_intermediate_size q_lora_rank kv_lora_rank"
    " shared_experts_intermediate_size mamba_dt_rank time_step_rank o_lora_rank"
    " mamba_head_dim mamba_d_head router_hidden_size rel_extent index_topk shape_vocab_size"
    " prompt_length input_embedding_size mm_posemb_size"
    " index_n_heads",  # with few heads many index scores are exactly 0 and tie
)
_rule(
    8,
    "mamba_d_state state_size ssm_state_size mamba_chunk_size chunk_size d_rel laurel_rank"
    " hidden_size_per_layer_input index_block_size adapter_rank gated_norm_rank hc_lowrank"
    " pronunciation_embed_dim shape_embed_dim prompt_mid_dim",
)
_rule(4, "num_experts num_local_experts n_routed_experts moe_num_experts")
_rule(2, "num_experts_per_tok moe_topk moe_k n_group index_topk_blocks zero_expert_num o_groups")
_rule(1, "n_shared_experts num_shared_experts moe_num_shared_experts topk_group")
_rule(
    512,
    "max_position_embeddings n_positions n_ctx max_seq_len max_target_positions context_length",
)
_rule(
    WINDOW,
    "sliding_window window_size attention_window_size attention_chunk_size keep_window_size"
    " local_attention sliding_window_size local_attention_window_len",
)
_rule(0.2, "initializer_range init_std")  # at the usual 0.02 such thin layers do next to nothing
_rule(True, "is_decoder")
_rule(0, "pad_token_id")
_rule(1, "bos_token_id")
_rule(2, "eos_token_id")

_KINDS = {
    "c": "conv",
    "d": "dense",
    "e": "moe",
    "f": "full_attention",
    "h": "hybrid",
    "l": "linear_attention",
    "m": "mlp",
    "p": "sparse",
    "s": "sliding_attention",
    "w": "hybrid_sliding",
    "x": "minimax_m3_sparse",
}


def _cycle(letters: str) -> Callable[[int], list[str]]:
    return lambda n: [_KINDS[letters[i % len(letters)]] for i in range(n)]


def _every(step: int, start: int = 0) -> Callable[[int], list[int]]:
    return lambda n: list(range(start, n, step))


def _half(n: int) -> int:
    return n // 2


_HALF_WINDOW = {"use_sliding_window": True, "max_window_layers": _half}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
# Layers 5 and up of 8 reuse the keys and values of layers 2 (full) and 4 (sliding).
_SHARED_KV = {"layer_types": _cycle("ssf"), "num_kv_shared_layers": lambda n: max(n - 5, 0)}
_LAYER_ROPE = {"layer_rope_theta": lambda n: [10000.0 * (i % 4) for i in range(n)]}
_INKLING = {"swa_num_attention_heads": 2, "swa_num_key_value_heads": 1, "unpadded_vocab_size": 120}
_ASSISTANT_TEXT = {
    "hidden_size_per_layer_input": 0,
    "vocab_size_per_layer_input": 0,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
}

# Per type: what the table above cannot know, and variety between the layers where the defaults
# have none (or none within eight layers). A callable gets the number of layers.
_EXTRA: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"layer_group_size": 4},
    "bamba": {"attn_layer_indices": _every(3, 2)},
    "big_bird": {"attention_type": "original_full"},
    "bigbird_pegasus": {"attention_type": "original_full"},
    "blt": {"encoder_hash_byte_group_vocab": 128, "num_hidden_layers": lambda n: n},
    "cohere_compass_text": {
        "layer_types": _cycle("sssf"),
        "rope_parameters": {"sliding_attention": _ROPE, "full_attention": None},
    },
    "dbrx.attn_config": {"rope_theta": 10000.0, "clip_qkv": 8.0},
    "dbrx.ffn_config": {"moe_top_k": 2},
    "deepseek_v2": {"first_k_dense_replace": 1, "num_experts_per_tok": 2},
    "deepseek_v4": {
        "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 8},
    },
    "doge": {"keep_window_size": 64},  # a smaller one lets later tokens change earlier ones
    "dots1": {
        "n_routed_experts": 4,
        "n_shared_experts": 1,
        "num_experts_per_tok": 2,
        "first_k_dense_replace": 1,
        "max_window_layers": _half,
        "n_group": 1,
    },
    "dots3_note_text": {
        "head_dim": 16,
        "swa_num_attention_heads": 2,
        "swa_num_key_value_heads": 2,
        "swa_q_lora_rank": 8,
        "swa_kv_lora_rank": 8,
        "swa_head_dim": 16,
        "swa_qk_nope_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "dots3_note.vision_config": {"pyramid_num_routed": lambda n: [-1] * (n - 1) + [4]},
    "ernie4_5_moe": {"moe_layer_interval": 2, "moe_layer_end_index": lambda n: n - 1},
    "gemma3n_text": {
        **_SHARED_KV,
        "intermediate_size": lambda n: [48 + 16 * (i % 2) for i in range(n)],
        "activation_sparsity_pattern": lambda n: [0.95 if i < n // 4 else 0.0 for i in range(n)],
    },
    "gemma4_text": {**_SHARED_KV, "use_double_wide_mlp": True, "global_head_dim": 16},
    "gemma4.text_config": {
        "num_kv_shared_layers": 0,
        "hidden_size_per_layer_input": 0,
        "use_double_wide_mlp": False,
        "attention_k_eq_v": True,
        "num_global_key_value_heads": 1,
        "enable_moe_block": True,
        "num_experts": 4,
        "top_k_experts": 2,
        "moe_intermediate_size": 16,
    },
    "gemma4_unified_text": {**_SHARED_KV, "num_kv_shared_layers": 0, "global_head_dim": 16},
    "gemma4_assistant.text_config": _ASSISTANT_TEXT,
    "gemma4_unified_assistant.text_config": _ASSISTANT_TEXT,
    "glm_moe_dsa": {"indexer_types": lambda n: ["shared" if i % 3 else "full" for i in range(n)]},
    "gpt_neo": {
        "attention_types": lambda n: [[["global", "local"], n // 2]] + [[["global"], 1]] * (n % 2),
    },
    "granite_swa": _LAYER_ROPE,
    "granitemoe_swa": _LAYER_ROPE,
    "granitemoehybrid": {"layer_types": _cycle("llf")},
    "hunyuan_v1_dense": {"head_dim": HEAD_DIM},
    "hunyuan_v1_moe": {"head_dim": HEAD_DIM},
    "inkling2_text": {**_INKLING, "n_layers_per_attn_res_block": 3},
    "inkling_text": {**_INKLING, "local_layer_ids": _every(2), "dense_mlp_idx": 2},
    "jamba": {"attn_layer_period": 4, "attn_layer_offset": 2},
    "kimi_linear": {"layer_types": _cycle("llf")},
    "laguna": {
        "layer_types": _cycle("fsss"),
        "num_attention_heads_per_layer": lambda n: [8 if i % 4 else 4 for i in range(n)],
    },
    "lfm2": {"full_attn_idxs": _every(3, 2)},
    "lfm2_moe": {"layer_types": _cycle("ccf")},
    "llama4_text": {"interleave_moe_layer_step": 2},
    "mamba2": {"head_dim": 16},
    "mellum": {"layer_types": _cycle("sssf"), "sliding_window": WINDOW},
    "minimax_m3_vl_text": {
        "index_n_heads": HEADS,
        "layer_types": _cycle("fxx"),
        "mlp_layer_types": lambda n: ["dense"] + ["sparse"] * (n - 1),
    },
    "ministral": {"head_dim": HEAD_DIM},
    "moshi": {"sliding_window": 512},  # its mask has no window, only its cache: they disagree
    "nemotron": {"head_dim": HEAD_DIM, "num_key_value_heads": 2},
    "nemotron_h": {"layers_block_type": _cycle("lefm")},
    "qwen2": _HALF_WINDOW,
    "qwen2_moe": {**_HALF_WINDOW, "mlp_only_layers": [1, 4]},
    "qwen3": _HALF_WINDOW,
    "qwen3_moe": {"mlp_only_layers": [0, 3]},
    "qwen3_next": {"decoder_sparse_step": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 8,
        "indexer_budget": 16,
        "indexer_compress_ratio": 4,
        "ple_layer_ids": lambda n: [i for i in (2, 6) if i <= n],  # counted from one
        "ple_embed_dim": 32,
        "ngram_vocab_size_base": 64,
        "make_ngram_vocab_size_divisible_by": 8,
        "heads_per_ngram": 2,
        "split_ngram_parts": 2,
        "eos_token_id": 2,
    },
    "reformer": {
        "attn_layers": lambda n: ["lsh" if i % 2 else "local" for i in range(n)],
        "axial_pos_shape": (8, 64),
        "axial_pos_embds_dim": (8, 24),
        "local_attn_chunk_length": 8,
        "lsh_attn_chunk_length": 8,
        "num_buckets": 4,
        "hash_seed": 0,
    },
    "rembert": {"output_embedding_size": 48},
    "xlm": {"causal": True},
    "xlnet": {"attn_type": "uni"},
    "xlstm": {"hidden_size": 64, "embedding_dim": 64, "qk_dim_factor": 1.0},
    "xmod": {"default_language": "en_XX"},
    "zamba": {"layers_block_type": _cycle("lh")},
    "zamba2": {
        "layers_block_type": _cycle("lh"),
        "num_mem_blocks": 2,
        "use_shared_attention_adapter": True,
    },
    "zaya": {"layer_types": _cycle("wh"), "num_experts_per_tok": 1, "sliding_window": WINDOW},
}

_DRAFTER = "draft head: needs the keys and values of its target model"
_PART = "the auto class hands the whole config to a class that wants its decoder part"
UNBUILDABLE: dict[str, str] = {
    "gemma3n": "its vision tower needs timm",
    "gemma4_assistant": _DRAFTER,
    "gemma4_unified_assistant": _DRAFTER,
    "musicgen": _PART,
    "musicgen_melody": _PART,
}

_TEXT_ONLY = "saves its text config, which the auto class does not know; its own class reloads it"
RELOAD_DIFFERS: dict[str, str] = {"emu3": _TEXT_ONLY, "mllama": _TEXT_ONLY}


def causal_types() -> list[str]:
    """All model types that map to a causal-LM class."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def _default(field: Any) -> Any:
    if field.default is not MISSING:
        return field.default
    return None if field.default_factory is MISSING else field.default_factory()


def _shrink(cls: type[PreTrainedConfig], layers: int, key: str) -> PreTrainedConfig:
    """A tiny config of a class; ``key`` finds the per-type extras."""
    kwargs: dict[str, Any] = {}
    names = {field.name for field in fields(cls)}
    special = VOCAB
    for field in fields(cls):
        name, default = field.name, _default(field)
        if default is None:
            continue
        if name in _RULES:
            kwargs[name] = layers if _RULES[name] is _LAYERS else _RULES[name]
        elif "drop" in name and isinstance(default, float):
            kwargs[name] = 0.0
        elif name.endswith(("_token_id", "_token_index")) and isinstance(default, int):
            special -= 1
            kwargs[name] = special
    if "num_key_value_heads" in kwargs and "kv_lora_rank" in names:
        kwargs["num_key_value_heads"] = HEADS  # latent attention has as many as query heads
    defaults = getattr(cls, "sub_configs_defaults", {})
    for name, sub in cls.sub_configs.items():
        part = CONFIG_MAPPING[defaults[name].model_type] if sub is AutoConfig else sub
        kwargs[name] = _shrink(part, layers, f"{key}.{name}")
    for extra in (_EXTRA.get(cls.model_type, {}), _EXTRA.get(key, {})):
        # A copy, as some classes write into the lists and dicts that they are given.
        kwargs.update({k: v(layers) if callable(v) else deepcopy(v) for k, v in extra.items()})
    return cls(**kwargs)


def tiny_config(model_type: str, layers: int = 8) -> PreTrainedConfig:
    """A small config of a type, with the family's differences between layers kept."""
    return _shrink(CONFIG_MAPPING[model_type], layers, model_type)


@torch.no_grad()
def _randomise(model: PreTrainedModel, generator: torch.Generator) -> None:
    """Make every weight tell-tale: no constants, none the same in two layers."""
    seen: dict[tuple[str, torch.Size], list[torch.Tensor]] = {}
    weights = dict(model.named_parameters())
    saved = model.state_dict().keys()
    for name, buffer in model.named_buffers():
        # Router biases and layer scales; what is not saved or is 0-d is computed or a setting.
        if name in saved and buffer.dim() > 0 and (buffer == buffer.flatten()[0]).all():
            weights[name] = buffer
    for name, weight in weights.items():
        if name.endswith("tid2eid"):  # token -> experts table, all zeros at first
            weight.random_(0, _RULES["n_routed_experts"], generator=generator)
        if not weight.is_floating_point() or not weight.numel():
            continue
        group = seen.setdefault((re.sub(r"\d+", "*", name), weight.shape), [])
        constant = bool((weight == weight.flatten()[0]).all())
        if constant or any(torch.equal(weight, other) for other in group):
            noise = 0.1 * torch.randn(weight.shape, generator=generator)
            weight.add_(noise * torch.where(weight == 0, 1.0, weight.abs()))
        group.append(weight)


def tiny_model(model_type: str, layers: int = 8, seed: int = 0) -> PreTrainedModel:
    """A random float32 model of a type, in eval mode, the same for the same seed."""
    config = tiny_config(model_type, layers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _randomise(model, torch.Generator().manual_seed(seed))
    return model.eval()
