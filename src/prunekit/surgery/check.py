"""Opens what was written with plain transformers and compares it with the model it should equal."""

import torch
from torch import Tensor

from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.load import Loaded, load
from prunekit.model.loss import Logits
from prunekit.plan.plan import Plan
from prunekit.surgery.fold import fold_in_memory
from prunekit.surgery.merge import is_norm, mean

TOKENS = 48


def check_made(base: Checkpoint, plan: Plan, made: Checkpoint) -> None:
    """Raises InputError unless `made`, opened and run by transformers, gives the logits of `base`
    without what the plan takes out and with what it merges and folds, and generates if `base` does.

    Where `made` does not fit into memory, its layers are brought from disk, and it generates
    nothing; where `base` does not, what merges and folds give is not compared.
    """
    tokens = probe(base)
    expected = _walked(base, tokens, plan)
    loaded = load(made)
    if loaded.layers is None:
        with torch.no_grad():
            found = loaded.model(input_ids=tokens).logits
    else:  # too big for this machine's memory, and so for generating
        whole = _walked(made, tokens, Plan(()))
        assert whole is not None
        found = whole
    if not torch.isfinite(found).all():
        raise InputError("the model's logits are not finite, so it was not kept")
    if expected is not None and not torch.equal(expected, found):
        worst = (expected.float() - found.float()).abs().max().item()
        raise InputError(
            f"model type {base.model_type!r}: the cut model's logits differ from the base model's "
            f"without what was cut (by up to {worst:.3g}), so it was not kept"
        )
    failure = None if loaded.layers else failure_to_generate(loaded, tokens)
    del loaded
    if failure and not failure_to_generate(load(base), tokens):
        raise InputError(
            f"model type {base.model_type!r}: transformers can't generate with the cut model, as "
            f"it can with the base model ({failure}), so it was not kept"
        )


def _walked(checkpoint: Checkpoint, tokens: Tensor, plan: Plan) -> Tensor | None:
    """The logits of a model with a plan's edits made in memory; None if merges can't be."""
    loaded = load(checkpoint)
    if (plan.merges or plan.folds) and loaded.layers:
        return None
    _merge_in_memory(loaded, plan)
    fold_in_memory(loaded, plan.folds)
    seen = Logits()
    loaded.walk_variants([tokens], {plan.variant: [seen]})
    return seen.logits


def _merge_in_memory(loaded: Loaded, plan: Plan) -> None:
    """By the names in memory: surgery went by those on disk."""
    layers = loaded.family.layers(loaded.model)
    with torch.no_grad():
        for edit in plan.merges:
            others = [dict(layers[layer].named_parameters()) for layer in edit.layers]
            for name, parameter in layers[edit.into].named_parameters():
                if edit.norms == "keep" and is_norm(name):
                    continue
                result: Tensor = parameter
                for other, weight in zip(others, edit.weights, strict=True):
                    result = mean(result, other[name], weight)
                parameter.copy_(result)


def failure_to_generate(loaded: Loaded, tokens: Tensor) -> str | None:
    """Why transformers can't generate with a model; None if it can."""
    try:
        loaded.model.generate(
            tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=2, do_sample=False
        )
    except Exception as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
    return None


def probe(checkpoint: Checkpoint) -> Tensor:
    """Token ids (2, TOKENS) that any vocabulary has, the same for every call."""
    generator = torch.Generator().manual_seed(0)
    vocabulary = checkpoint.config.get_text_config().vocab_size
    return torch.randint(3, min(vocabulary, 100), (2, TOKENS), generator=generator)
