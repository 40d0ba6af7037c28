"""Loads a whole checkpoint into memory with transformers."""

import platform
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.utils import logging

from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.family import Family
from prunekit.model.walk import Observer, walk

DTYPES = ("auto", "float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Loaded:
    """A model in memory, in evaluation mode, with its checkpoint and family."""

    checkpoint: Checkpoint
    family: Family
    model: PreTrainedModel

    def walk(
        self, batches: Iterable[Tensor], *observers: Observer, skip: Iterable[int] = ()
    ) -> None:
        """Run the model layer by layer over token ids; see `walk`."""
        walk(self.model, self.family.layers(self.model), batches, *observers, skip=skip)

    def context(self) -> dict[str, Any]:
        """What belongs beside every number measured with this model; fit for JSON."""
        device = self.model.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        return {
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": f"{device.type} ({name})",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }


def load(checkpoint: Checkpoint, *, dtype: str = "auto", device: str = "cpu") -> Loaded:
    """Load a model; `dtype` is `auto` (as stored) or a torch name.

    Raises InputError if weights are missing or misshapen: transformers alone would fill them with
    random numbers and go on.
    """
    if dtype not in DTYPES:
        raise InputError(f"no dtype {dtype!r}; there are: {', '.join(DTYPES)}")
    place = _device(device)
    family = Family.of(checkpoint.config)
    try:
        with _without_bars():
            model, info = AutoModelForCausalLM.from_pretrained(
                checkpoint.folder,
                dtype=dtype if dtype == "auto" else getattr(torch, dtype),
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
            )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(
            f"{checkpoint.name}: the weights do not fit the config: {reason}"
        ) from error
    for what in ("missing_keys", "mismatched_keys", "error_msgs"):
        if info[what]:
            names = ", ".join(map(str, sorted(info[what])[:3]))
            raise InputError(
                f"{checkpoint.name}: the weights do not fit the config ({what}: {names})"
            )
    return Loaded(checkpoint, family, model.eval().to(place))


@contextmanager
def _without_bars() -> Iterator[None]:
    """Without transformers' own bar for reading weights, which would tear through ours."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def _device(name: str) -> torch.device:
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"device {name!r} can't be used here: {reason}") from None
    return device
