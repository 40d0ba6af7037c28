"""What single model types do that no general rule covers, each with its reason."""

from collections.abc import Callable, Sequence

from transformers import PreTrainedConfig

# Types whose layers can't be dropped one by one at all.
REFUSED = {
    "cpmant": "the tokens that it is given see one another, so it predicts none of them",
    "blt": "it has three stacks of layers (bytes in, patches, bytes out) and not one",
    "hrm_text": "it runs its two stacks of layers in cycles, so a layer has no single place",
    "prophetnet": "in transformers its predictions see a little of later tokens",
    "reformer": "its reversible layers carry two streams, so no layer can be passed over",
    "xlm": "it keeps attentions, MLPs and norms in separate lists, not in a list of layers",
    "zamba2": "its shared blocks hold an adapter for every layer that uses them",
}

# Hybrids that run without a single attention layer: the others ask one how long the past is.
ATTENTION_FREE = ("minimax",)

# Types whose halves of layers can't be taken away by zeros.
NO_HALVES = {
    "longcat_flash": "some of its experts hand on what they get",
    "inkling2_text": "its files hold one tensor for parts of all layers",
    "zamba": "its hybrid layers share one attention block",
    "zaya": "it scales and shifts the stream after each half",
}

# Attributes of a layer that may change with its position because nothing is computed from them:
# model type (or "" for every type) and the end of the attribute's name.
IDLE = {
    # Which layers share is compared as such (sharing.py); a donor without takers stores in vain.
    ("", "store_full_length_kv"): "only says that a later layer reads the keys and values",
    (
        "big_bird",
        "attention.seed",
    ): "random attention is drawn in training only, never in a decoder",
    ("minimax", "num_hidden_layers"): "only initialises the decay rates, which are stored",
}

# Why a kept layer can't stand at another position, where that is a property of the type.
BECAUSE = {
    "beam": "it weighs each layer's output by the layer's position",
    "diffllama": "its attention computes with the layer's position",
    **dict.fromkeys(
        ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text"),
        "its class makes the last layer one of full attention, so the last to stay must be one",
    ),
    "gpt_neox_japanese": "only its last layer has an attention bias, so the last layer must stay",
    "modernbert-decoder": "its first layer has no norm before attention, so layer 0 must stay",
    "qwen4_exp_text": "the hashes of its n-gram layers depend on their rank among each other",
    "rwkv": "its first layer has one more norm, so layer 0 must stay",
    "zaya": "the router of its first layer is unlike the others, so layer 0 must stay",
}


def because(kind: str) -> str:
    """The end of a refusal of a type in `BECAUSE`; empty for any other."""
    return f": {BECAUSE[kind]}" if kind in BECAUSE else ""


def objection(text: PreTrainedConfig, keep: Sequence[int], depth: int) -> str | None:
    """Why a cut changes maths that no attribute of a layer shows; None if it does not."""
    rule = POSITIONAL.get(text.model_type)
    return rule(text, keep, depth) if rule else None


def _halvings(text: PreTrainedConfig, keep: Sequence[int], depth: int) -> str | None:
    every = text.rescale_every
    before = [index // every for index in (*keep, depth)] if every > 0 else []
    if all(count == place // every for place, count in enumerate(before)):
        return None
    return (
        f"it halves its states after every n-th layer (rescale_every={every}); "
        "only cuts after the last halving keep its maths"
    )


def _residual_blocks(text: PreTrainedConfig, keep: Sequence[int], depth: int) -> str | None:
    size = text.n_layers_per_attn_res_block
    # (its block, whether it opens one) for every layer; and the last block.
    before = [(i // size, i % size == 0) for i in keep] + [((depth - 1) // size, False)]
    after = [(i // size, i % size == 0) for i in range(len(keep))]
    if before == [*after, ((len(keep) - 1) // size, False)]:
        return None
    return (
        f"it keeps the states before every n-th layer (n_layers_per_attn_res_block={size}) and "
        "attends to them; only layers after the last of these can go"
    )


POSITIONAL: dict[str, Callable[[PreTrainedConfig, Sequence[int], int], str | None]] = {
    "inkling2_text": _residual_blocks,
    "rwkv": _halvings,
}

# Types whose layers can't be brought from disk one at a time, and why.
NOT_FROM_DISK = {
    "rwkv": "its forward rescales the weights of all layers before it runs the first",
    "inkling2_text": "its files hold one tensor for parts of all layers",
    "zamba": "its layers share one attention block",
}
