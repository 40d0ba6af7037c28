"""Opens a model to run it: whole in memory, or with its layers brought from disk one at a time."""

import copy
import logging
import platform
import tempfile
from collections.abc import Container, Generator, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypedDict

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel

from prunekit.errors import InputError
from prunekit.model.checkpoint import STORY, Checkpoint
from prunekit.model.family import Family
from prunekit.model.memory import Scratch, free_memory, parse_size
from prunekit.model.mute import Halves
from prunekit.model.ranks import local_rank, on_this_machine, ranks
from prunekit.model.stream import TORCH, LayersOnDisk, align, without_bars
from prunekit.model.units import Variant
from prunekit.model.walk import Call, Observer, calls, in_turn, walk_variants
from prunekit.model.walk_back import GradientObserver, walk_back

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
        variant: Variant = frozenset((layer, "layer") for layer in skip)
        return self.walk_variants(batches, {variant: observers})

    def walk_variants(
        self, batches: Iterable[Tensor], variants: Mapping[Variant, Sequence[Observer]]
    ) -> str:
        """Walk the model without some of its layers and halves, many such variants at once; see
        `walk_variants`. Says which way it took."""
        places = self.family.layers(self.model)
        observers = [observer for watching in variants.values() for observer in watching]
        if self.layers is None:
            walk_variants(self.model, places, batches, variants, halves=Halves(self.family))
            return "in memory"
        if any(observer.wants_logits for observer in observers):
            self.layers.read_head(self.model)
        batches = list(batches)
        kept = sum(observer.keeps(self.family.depth) for observer in observers)
        beside, spill, way = self._plan(self.layers, batches, HELD * len(variants) + kept)
        with self._scratch(spill) as scratch:
            walk_variants(
                self.model, places, batches, variants, beside=beside, source=self.layers,
                halves=Halves(self.family), keep=scratch.keep if scratch else None,
            )  # fmt: skip
        return way

    def walk_back(self, batches: Iterable[Tensor], *observers: GradientObserver) -> str:
        """Show every layer's gradients of the loss; see `walk_back`. Says which way it took."""
        places = self.family.layers(self.model)
        if self.quantize:
            raise InputError("a quantised model has no gradients; leave --quantize away")
        if self.layers is None:
            walk_back(self.model, places, batches, *observers)
            return "in memory"
        self.layers.read_head(self.model)
        batches = list(batches)
        # Every layer's entering state is wanted again on the way back.
        _, spill, _ = self._plan(self.layers, batches, HELD + self.family.depth)
        with self._scratch(spill) as scratch:
            walk_back(
                self.model, places, batches, *observers, source=self.layers,
                keep=scratch.keep if scratch else None,
            )  # fmt: skip
        return "from disk, states in a scratch file" if spill else "from disk"

    def calls(
        self, batches: Sequence[Tensor], wanted: Container[int], end: int, *, bare: bool = False
    ) -> list[dict[int, Call]]:
        """What the `wanted` layers are called with and give, layers from `end` on left out; see
        `calls`."""
        places = self.family.layers(self.model)
        return calls(self.model, places, batches, wanted, end, source=self.layers, bare=bare)

    def take(self, numbers: Sequence[int]) -> list[nn.Module]:
        """These layers, whole: held in memory, also where the others come from disk."""
        if self.layers is None:
            places = self.family.layers(self.model)
            return [places[number] for number in numbers]
        return [copy.deepcopy(layer) for layer in self.layers.in_turn(numbers)]

    def each_layer(self) -> Generator[nn.Module]:
        """Every decoder layer in turn, whole until the next is asked for."""
        order = range(self.family.depth)
        layers = self.family.layers(self.model)
        yield from self.layers.in_turn(order) if self.layers else in_turn(list(layers), order)

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

    def _scratch(self, spill: bool) -> AbstractContextManager[Scratch | None]:
        folder = self.scratch or Path(tempfile.gettempdir())
        return Scratch(folder) if spill else nullcontext()

    def _plan(
        self, layers: LayersOnDisk, batches: list[Tensor], held: float
    ) -> tuple[int, bool, str]:
        """How many batches stand side by side before a layer, whether their states go to disk, and
        this in words; `held` is how many of a batch's states are in memory at once.

        If the states of all batches don't fit, either the weights are read again for each group
        of batches that does, or the states are written to disk and read back: whichever moves
        fewer bytes.
        """
        depth = self.family.depth
        width = self.checkpoint.config.get_text_config(decoder=True).hidden_size
        largest = max((batch.numel() for batch in batches), default=0)
        state = largest * width * self.model.dtype.itemsize
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
    place = parse_device(device)
    budget = parse_size(memory)
    if scratch is not None and not Path(scratch).is_dir():
        raise InputError(f"no folder {scratch!r} for states that don't fit into memory")
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
    _leave_zeros_out(checkpoint, family, model)
    return Loaded(checkpoint, family, model.to(place))


def _leave_zeros_out(checkpoint: Checkpoint, family: Family, model: PreTrainedModel) -> None:
    """Let the halves that prunekit muted in this checkpoint not be computed.

    Attention layers whose kind no earlier layer has are computed all the same: transformers reads
    off them how long its cache is.
    """
    muted = checkpoint.muted
    if not muted:
        return
    if not all(0 <= index < family.depth for index, _ in muted):
        raise InputError(
            f"{checkpoint.folder / STORY}: mutes layers that the model does not have; mend or "
            "remove it"
        )
    layers = family.layers(model)
    halves = Halves(family)
    kinds = getattr(family.config.get_text_config(decoder=True), "layer_types", None)
    kinds = kinds or ["attention"] * family.depth
    for index, half in muted:
        first = half == "attention" and kinds[index] not in kinds[:index]
        zeros = [layers[index].get_parameter(name) for name in halves.writers(index, half)]
        if not first and zeros and not any(weight.any() for weight in zeros):
            halves.silence(index, layers[index], half)
    with torch.no_grad():  # shows the halves what form their zeros have
        model(torch.zeros(1, 2, dtype=torch.long), use_cache=False)


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
    logging.getLogger("bitsandbytes.backends").setLevel(logging.ERROR)  # what it could do without
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


def parse_device(name: str) -> torch.device:
    try:
        # Of several processes each takes its own GPU.
        device = torch.device(f"cuda:{local_rank()}" if name == "cuda" and ranks() > 1 else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"device {name!r} can't be used here: {reason}") from None
    return device
