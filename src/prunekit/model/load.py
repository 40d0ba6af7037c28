"""Loads a whole checkpoint into memory with transformers."""

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint

DTYPES = ("auto", "float32", "bfloat16", "float16")


def load(checkpoint: Checkpoint, *, dtype: str = "auto", device: str = "cpu") -> PreTrainedModel:
    """The model in evaluation mode; `dtype` is `auto` (as stored) or a torch name.

    Raises InputError if weights are missing or misshapen: transformers alone would fill them with
    random numbers and go on.
    """
    if dtype not in DTYPES:
        raise InputError(f"no dtype {dtype!r}; there are: {', '.join(DTYPES)}")
    model, info = AutoModelForCausalLM.from_pretrained(
        checkpoint.folder,
        dtype=dtype if dtype == "auto" else getattr(torch, dtype),
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    for what in ("missing_keys", "mismatched_keys", "error_msgs"):
        if info[what]:
            names = ", ".join(map(str, sorted(info[what])[:3]))
            raise InputError(
                f"{checkpoint.name}: the weights do not fit the config ({what}: {names})"
            )
    return model.eval().to(_device(device))


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"device {name!r} can't be used here: {reason}") from None
    return device
