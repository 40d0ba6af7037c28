"""Opens a model to run it: whole in memory, or with its layers brought from disk one at a time."""

import logging
import platform
import tempfile
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypedDict

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.family import Family
from prunekit.model.memory import Scratch, free_memory, parse_size
from prunekit.model.ranks import local_rank, on_this_machine, ranks
from prunekit.model.stream import TORCH, LayersOnDisk, align, without_bars
from prunekit.model.walk import Observer, walk

DTYPES = ("auto", "float32", "bfloat16", "float16")
WAYS = ("auto", "memory", "disk")
QUANTISATIONS = ("nf4", "fp4", "int8")
MEMORY = "8GiB"
SPARE = 0.8  # of the free memory, that a model's weights may take
# States a suspended forward holds on to: embeddings, state before and after the layer, and masks.
HELD = 4


class How(TypedDict, total=False):
    """How a model is opened and walked; every verb that runs a model takes these.

    `dtype` is `auto` (as stored) or a torch name; `device` a torch device; `walk` is `memory`,
    `disk`, or `auto`: in memory if the weights fit there. From disk, `memory` bounds the states
    held at once, and `scratch` is a folder for those that don't fit. `quantize` is nf4, fp4 or int8
    (bitsandbytes, in memory; `double_quant` quantises the 4-bit constants too, and `dtype` is what
    it computes in).
    """

    dtype: str
    device: str
    walk: str
    memory: str
    scratch: str | None
    quantize: str | None
    double_quant: bool


@dataclass(frozen=True)
class Loaded:
    """A model in evaluation mode, with its checkpoint and family.

    Where `layers` is not None they are on disk, and `model` has only the weights around them.
    """

    checkpoint: Checkpoint
    family: Family
    model: PreTrainedModel
    layers: LayersOnDisk | None = None
    memory: int = parse_size(MEMORY)
    scratch: Path | None = None
    quantize: str | None = None

    @property
    def where(self) -> str:
        """A remark for titles, where it is not the usual one."""
        return "" if self.layers is None else " (from disk)"

    def walk(
        self, batches: Iterable[Tensor], *observers: Observer, skip: Iterable[int] = ()
    ) -> str:
        """Run the model layer by layer over token ids; see `walk`. Says which way it took."""
        places = self.family.layers(self.model)
        if self.layers is None:
            walk(self.model, places, batches, *observers, skip=skip)
            return "in memory"
        if any(observer.wants_logits for observer in observers):
            self.layers.read_head(self.model)
        batches = list(batches)
        beside, spill, way = self._plan(self.layers, batches, observers)
        with Scratch(self.scratch or Path(tempfile.gettempdir())) if spill else nullcontext() as to:
            walk(
                self.model, places, batches, *observers, skip=skip, beside=beside,
                source=self.layers, keep=to.keep if to else None,
            )  # fmt: skip
        return way

    def context(self) -> dict[str, Any]:
        """What belongs beside every number measured with this model; fit for JSON."""
        device = self.model.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        return {
            "dtype": str(self.model.dtype).removeprefix("torch."),
            "device": f"{device.type} ({name})",
            **({"quantize": self.quantize} if self.quantize else {}),
            **({"processes": ranks()} if ranks() > 1 else {}),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    def _plan(
        self, layers: LayersOnDisk, batches: list[Tensor], observers: Iterable[Observer]
    ) -> tuple[int, bool, str]:
        """How many batches stand side by side before a layer, whether their states go to disk, and
        this in words.

        If the states of all batches don't fit, either the weights are read again for each group
        of batches that does, or the states are written to disk and read back: whichever moves
        fewer bytes.
        """
        depth = self.family.depth
        width = self.checkpoint.config.get_text_config(decoder=True).hidden_size
        largest = max((batch.numel() for batch in batches), default=0)
        state = largest * width * self.model.dtype.itemsize
        held = HELD + sum(observer.keeps(depth) for observer in observers)
        fitting = max(1, int(self.memory // max(1, held * state)))
        passes = -(-len(batches) // fitting)
        moved = 2 * len(batches) * state * (depth + 1)
        if passes > 1 and moved < (passes - 1) * layers.bytes and self.model.device.type == "cpu":
            return len(batches), True, "from disk, states in a scratch file"
        return fitting, False, f"from disk, in {passes} passes" if passes > 1 else "from disk"


def load(
    checkpoint: Checkpoint,
    *,
    dtype: str = "auto",
    device: str = "cpu",
    walk: str = "auto",
    memory: str = MEMORY,
    scratch: str | None = None,
    quantize: str | None = None,
    double_quant: bool = True,
) -> Loaded:
    """Open a model to run it; see How.

    Raises InputError if weights are missing or misshapen: transformers alone would fill them with
    random numbers and go on.
    """
    for what, given, possible in (("dtype", dtype, DTYPES), ("walk", walk, WAYS)):
        if given not in possible:
            raise InputError(f"no {what} {given!r}; there are: {', '.join(possible)}")
    place = _device(device)
    budget = parse_size(memory)
    family = Family.of(checkpoint.config)
    number = _dtype(checkpoint, dtype)
    if quantize:
        if walk == "disk":
            raise InputError("--quantize scores a model in memory; leave it or --walk disk away")
        options = _quantisation(checkpoint, quantize, number, double_quant, place)
        model = _load_whole(checkpoint, dtype=number, **options)
        return Loaded(checkpoint, family, model, quantize=quantize)
    needed = checkpoint.parameters * number.itemsize
    needed *= on_this_machine() if place.type == "cpu" else 1
    if walk == "disk" or (walk == "auto" and needed > SPARE * free_memory(place)):
        layers = LayersOnDisk(checkpoint, family, number, place)
        spill = Path(scratch) if scratch else None
        return Loaded(checkpoint, family, layers.load_around(), layers, budget, spill)
    model = _load_whole(checkpoint, dtype=number if dtype != "auto" else dtype)
    for parameter in model.parameters():
        align(parameter)
    return Loaded(checkpoint, family, model.to(place))


def _load_whole(checkpoint: Checkpoint, **options: Any) -> PreTrainedModel:
    try:
        with without_bars():
            model, info = AutoModelForCausalLM.from_pretrained(
                checkpoint.folder,
                local_files_only=True,
                use_safetensors=True,
                output_loading_info=True,
                **options,
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
    return model.eval()


def _quantisation(
    checkpoint: Checkpoint, kind: str, dtype: torch.dtype, double: bool, device: torch.device
) -> dict[str, Any]:
    """What from_pretrained needs to quantise a model as it loads it. Raises InputError."""
    if kind not in QUANTISATIONS:
        raise InputError(f"no quantisation {kind!r}; there are: {', '.join(QUANTISATIONS)}")
    if checkpoint.config_json.get("quantization_config"):
        raise InputError(f"{checkpoint.name}: it is quantised already; leave --quantize away")
    missing = [name for name in ("bitsandbytes", "accelerate") if not find_spec(name)]
    if missing:
        raise InputError(f"--quantize needs {' and '.join(missing)}; pip install 'prunekit[quant]'")
    if kind == "int8":
        config = BitsAndBytesConfig(load_in_8bit=True)
        # Said once a layer and forward, about what we ask for here.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    else:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=kind,
            bnb_4bit_use_double_quant=double,
            bnb_4bit_compute_dtype=dtype,
        )
    return {"quantization_config": config, "device_map": {"": device}}


def _dtype(checkpoint: Checkpoint, name: str) -> torch.dtype:
    """What transformers makes of `auto`: what the config says, else the first float on disk."""
    if name != "auto":
        return getattr(torch, name)
    said = checkpoint.config.dtype
    if said is None:
        floats = (TORCH.get(tensor.dtype) for tensor in checkpoint.tensors.values())
        said = next((kind for kind in floats if kind and kind.is_floating_point), torch.float32)
    return getattr(torch, said) if isinstance(said, str) else said


def _device(name: str) -> torch.device:
    try:
        # Of several processes each takes its own GPU.
        device = torch.device(f"cuda:{local_rank()}" if name == "cuda" and ranks() > 1 else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"device {name!r} can't be used here: {reason}") from None
    return device
