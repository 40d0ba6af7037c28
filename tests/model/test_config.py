"""One test for each kind of per-layer fact that a config may hold, with the result by hand."""

from typing import Any

import pytest
from tiny import tiny_config
from transformers import PreTrainedConfig

from prunekit.errors import InputError
from prunekit.model.config import keep_layers, read
from prunekit.model.family import text_config


def cut(config: PreTrainedConfig, keep: list[int], depth: int) -> dict[str, Any]:
    """The cut config.json; transformers must read it, and as what it says."""
    config_json = config.to_dict()
    before = config.to_dict()
    result = keep_layers(config, config_json, keep, depth)
    assert config_json == before  # the input is never touched
    _, text = text_config(read(config, result))
    written = result if text.model_type == config.model_type else result["text_config"]
    assert text.to_dict()["num_hidden_layers"] == written["num_hidden_layers"] == len(keep)
    return result


def tiny(kind: str, depth: int = 6, **changes: Any) -> PreTrainedConfig:
    config = tiny_config(kind, depth)
    return type(config).from_dict({**config.to_dict(), **changes})


def test_a_list_with_one_entry_a_layer_is_sliced() -> None:
    kinds = ["sliding_attention", "full_attention", "sliding_attention"] * 2
    result = cut(tiny("gemma3_text", layer_types=kinds), [0, 1, 4], 6)
    assert result["layer_types"] == ["sliding_attention", "full_attention", "full_attention"]


def test_a_list_of_another_length_is_left_alone() -> None:
    result = cut(tiny("qwen2", eos_token_id=[1, 2, 3, 4, 5, 6]), [0, 1], 6)
    assert result["eos_token_id"] == [1, 2, 3, 4, 5, 6]


def test_a_dict_keyed_by_layer_is_sliced_and_renumbered() -> None:
    config = tiny("llama", of_layer={str(i): f"fact {i}" for i in range(6)})
    assert cut(config, [1, 2, 5], 6)["of_layer"] == {"0": "fact 1", "1": "fact 2", "2": "fact 5"}


def test_a_list_of_layer_indices_is_filtered_and_renumbered() -> None:
    assert cut(tiny("qwen3_moe", mlp_only_layers=[0, 3]), [2, 3, 5], 6)["mlp_only_layers"] == [1]


def test_indices_that_count_from_one_stay_so() -> None:
    kinds = ["linear_attention"] * 5 + ["full_attention"]
    config = tiny("qwen4_exp_text", ple_layer_ids=[2, 4], layer_types=kinds)
    assert cut(config, [1, 2, 3, 5], 6)["ple_layer_ids"] == [1, 3]


def test_a_stride_becomes_a_list_where_the_class_takes_one() -> None:
    # Every second layer (1, 3, 5) has experts; 0, 2 and 4 are dense.
    config = tiny("qwen2_moe", decoder_sparse_step=2, mlp_only_layers=[])
    result = cut(config, [0, 1, 3, 4], 6)
    assert (result["decoder_sparse_step"], result["mlp_only_layers"]) == (1, [0, 3])


def test_a_stride_is_refitted() -> None:
    # Attention in layers 2 and 6, experts in 1, 3, 5 and 7.
    config = tiny("jamba", 8, attn_layer_period=4, attn_layer_offset=2)
    result = cut(config, [1, 2, 3, 6, 7], 8)
    # Attention is now at 1 and 3, experts at 0, 2 and 4.
    assert (result["attn_layer_period"], result["attn_layer_offset"]) == (2, 1)
    assert (result["expert_layer_period"], result["expert_layer_offset"]) == (2, 0)


def test_a_range_with_a_stride_is_refitted() -> None:
    # Experts in layers 1, 3, 5 and 7.
    config = tiny("ernie4_5_moe", 8, moe_layer_interval=2, moe_layer_start_index=1,
                  moe_layer_end_index=7)  # fmt: skip
    result = cut(config, [0, 2, 3, 5, 6], 8)
    fields = ("moe_layer_interval", "moe_layer_start_index", "moe_layer_end_index")
    assert tuple(result[name] for name in fields) == (1, 2, 3)


def test_a_stride_that_fits_nothing_is_refused_with_its_reason() -> None:
    config = tiny("jamba", 8, attn_layer_period=4, attn_layer_offset=2)
    with pytest.raises(InputError) as refusal:
        cut(config, [0, 1, 2, 6, 7], 8)
    assert "'jamba' marks layers by a stride (attn_layer_period=4" in str(refusal.value)
    assert "would be [2, 3] of 5, which is no stride" in str(refusal.value)
    assert "drop whole periods of 4 layers, or layers at the end" in str(refusal.value)


def test_a_count_of_first_layers_counts_those_that_stay() -> None:
    # Stored as the list that it stands for, and beside it as it was.
    config = tiny("deepseek_v2", first_k_dense_replace=2)
    assert cut(config, [1, 2, 3], 6)["first_k_dense_replace"] == 1


def test_layers_that_share_keys_and_values_stay_with_their_donors() -> None:
    # Layers 5 (sliding) and 6 (full) reuse the keys and values of layers 4 and 3.
    kinds = ["sliding_attention", "full_attention"] * 2 + ["sliding_attention"]
    config = tiny("gemma4_text", 7, layer_types=[*kinds, "sliding_attention", "full_attention"],
                  num_kv_shared_layers=2)  # fmt: skip
    assert cut(config, [0, 3, 4, 5, 6], 7)["num_kv_shared_layers"] == 2
    assert cut(config, [0, 1, 3, 6], 7)["num_kv_shared_layers"] == 1  # 4 and its taker are gone
    with pytest.raises(InputError, match="layer 5 uses the keys and values of layer 4: keep lay"):
        cut(config, [0, 1, 2, 3, 5, 6], 7)


def test_a_layer_that_reuses_a_selection_stays_with_the_layer_that_made_it() -> None:
    kinds = ["full", "shared", "shared", "full", "shared", "shared"]
    config = tiny("glm_moe_dsa", indexer_types=kinds)
    assert cut(config, [0, 2, 3], 6)["indexer_types"] == ["full", "shared", "full"]
    with pytest.raises(InputError, match="layer 4 uses the selection of tokens of layer 3: keep"):
        cut(config, [0, 1, 2, 4], 6)
    with pytest.raises(InputError, match="layer 1 uses the selection of tokens of layer 0: keep"):
        cut(config, [1, 2, 3], 6)


def test_a_cycle_becomes_a_list() -> None:
    kinds = ["recurrent", "recurrent", "attention"]
    result = cut(tiny("recurrent_gemma", block_types=kinds), [0, 2, 3, 5], 6)
    assert result["block_types"] == ["recurrent", "attention", "recurrent", "attention"]


def test_kinds_in_runs_are_written_layer_by_layer() -> None:
    config = tiny_config("gpt_neo", 4)  # global, local, global, local
    result = keep_layers(config, config.to_dict(), [0, 2, 3], 4)
    assert result["attention_types"] == [[["global"], 1], [["global"], 1], [["local"], 1]]
    assert result["num_layers"] == 3


def test_a_scale_by_the_depth_is_kept() -> None:
    config = tiny("minicpm3", 8, scale_depth=1.4)
    assert cut(config, [0, 1], 8)["scale_depth"] == pytest.approx(0.7, rel=1e-12)


def test_a_string_with_one_letter_a_layer_is_sliced() -> None:
    config = tiny_config("nemotron_h", 4)
    config_json = {**config.to_dict(), "hybrid_override_pattern": "ME*-"}
    result = keep_layers(config, config_json, [0, 2, 3], 4)
    assert result["hybrid_override_pattern"] == "M*-"


def test_the_nested_text_config_is_cut_and_the_rest_stays() -> None:
    config = tiny_config("gemma3", 6)
    result = cut(config, [0, 3], 6)
    before = config.to_dict()
    assert result["text_config"]["num_hidden_layers"] == 2
    kinds = before["text_config"]["layer_types"]
    assert result["text_config"]["layer_types"] == [kinds[0], kinds[3]]
    assert result["vision_config"] == before["vision_config"]


def test_modules_that_a_quantisation_names_are_renumbered() -> None:
    config = tiny("llama")
    quantisation = {
        "bits": 8,
        "ignore": ["lm_head", "model.layers.1.mlp.gate", "model.layers.4.mlp.gate", "re:.*gate"],
        "dynamic": {"re:.*layers\\.4\\..*": {"bits": 4}, "model.layers.0": {"bits": 2}},
        "towers": ["visual.blocks.1.attn", "vision_tower.encoder.layers.1.attn"],
        "beyond": ["model.layers.6.eh_proj"],
        "nothing": [None],
    }
    config_json = {**config.to_dict(), "quantization_config": quantisation}
    result = keep_layers(config, config_json, [0, 2, 4], 6)
    assert result["quantization_config"] == {
        "bits": 8,
        "ignore": ["lm_head", "model.layers.2.mlp.gate", "re:.*gate"],
        "dynamic": {"re:.*layers\\.2\\..*": {"bits": 4}, "model.layers.0": {"bits": 2}},
        "towers": ["visual.blocks.1.attn", "vision_tower.encoder.layers.1.attn"],
        "beyond": ["model.layers.3.eh_proj"],
        "nothing": [None],
    }


def test_a_quantisation_that_picks_layers_by_a_pattern_is_refused() -> None:
    config = tiny("llama")
    for pattern, refused in (
        (r"re:.*layers\.[0-2]\..*", True),
        (r"re:.*layers\.[0-9]+\..*", False),
    ):
        config_json = {**config.to_dict(), "quantization_config": {"ignore": [pattern]}}
        if refused:
            with pytest.raises(InputError, match="write the layers out one by one"):
                keep_layers(config, config_json, [0, 2], 6)
        else:
            result = keep_layers(config, config_json, [0, 2], 6)
            assert result["quantization_config"] == {"ignore": [pattern]}


def test_the_depth_under_another_name_is_cut_too() -> None:
    config = tiny_config("gpt2", 4)
    result = keep_layers(config, {**config.to_dict(), "num_hidden_layers": 4}, [0, 3], 4)
    assert result["n_layer"] == 2
    assert read(config, result).num_hidden_layers == 2


def test_a_hybrid_keeps_an_attention_layer() -> None:
    config = tiny_config("qwen3_next", 6)
    assert config.layer_types.index("full_attention") == 3
    assert cut(config, [3, 5], 6)["layer_types"] == ["full_attention", "linear_attention"]
    with pytest.raises(InputError, match=r"no attention layer would stay.*keep one at least"):
        cut(config, [0, 1, 5], 6)


def test_maths_that_depends_on_the_position_is_refused() -> None:
    config = tiny("rwkv", 8, rescale_every=6)
    assert cut(config, [0, 1, 2, 3, 4, 5], 8)["num_hidden_layers"] == 6
    with pytest.raises(InputError, match="halves its states after every n-th layer"):
        cut(config, [0, 2, 3, 4, 5, 6, 7], 8)
    assert cut(tiny("rwkv", 8, rescale_every=0), [0, 2], 8)["num_hidden_layers"] == 2


def test_what_transformers_refuses_is_refused_in_one_line() -> None:
    config = tiny("llama")
    with pytest.raises(InputError, match="'llama' can't express this cut") as refusal:
        read(config, {**config.to_dict(), "num_hidden_layers": "many"})
    assert "\n" not in str(refusal.value)
