"""A model of which only the parts around the layers are in memory; layers come from disk in turn.

While one layer computes, a thread reads the next into one of two buffers that all layers share, so
two layers are in memory, never the model. What is read (not mapped) does not count as this
process's memory twice, and lies at addresses as aligned as those of a model in memory: so results
are the same to the bit. The parts around the layers are mapped: of the embeddings only the rows
that the text uses are read.

Names, fused experts and dtypes are transformers' business: its own loader is asked to load a
handful of tensors at a time into a model without weights.
"""

import copy
import os
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import convert_and_load_state_dict_in_model
from transformers.modeling_utils import LoadStateDictConfig
from transformers.utils import ContextManagers, logging

from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.family import Family
from prunekit.model.names import disk_prefix
from prunekit.model.oddities import NOT_FROM_DISK
from prunekit.model.tensors import Tensor

TORCH = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16,
    "I32": torch.int32, "I64": torch.int64, "F16": torch.float16, "BF16": torch.bfloat16,
    "F32": torch.float32, "F64": torch.float64, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip
ALIGNED = 64  # bytes: what torch gives its own tensors
READERS = max(1, min(8, (os.cpu_count() or 1) // 2))


def objection_to_streaming(checkpoint: Checkpoint) -> str | None:
    """Why the layers of a checkpoint can't be brought from disk one at a time; None if they can."""
    if checkpoint.config_json.get("quantization_config"):
        return "it is quantised; walk it in memory, or start from the full-precision model"
    return NOT_FROM_DISK.get(checkpoint.config.get_text_config(decoder=True).model_type)


class LayersOnDisk:
    """The decoder layers of a checkpoint, each whole only while it is its turn."""

    def __init__(
        self, checkpoint: Checkpoint, family: Family, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.checkpoint = checkpoint
        self.device = device
        self.family = family
        self.dtype = dtype
        if reason := objection_to_streaming(checkpoint):
            raise InputError(f"{checkpoint.name}: can't be walked from disk: {reason}")
        self.model = _weightless(family, dtype, device)
        self.modules = family.layers(self.model)
        prefix = disk_prefix(checkpoint, family)
        self.tensors: list[list[Tensor]] = [[] for _ in self.modules]
        self.around: list[Tensor] = []
        for tensor in checkpoint.tensors.values():
            number = tensor.name.removeprefix(prefix).partition(".")[0]
            inside = tensor.name.startswith(prefix) and number.isdecimal()
            if inside and int(number) < family.depth:
                self.tensors[int(number)].append(tensor)
            elif not inside:  # beyond the last layer: blocks that predict further tokens
                self.around.append(tensor)
        self.bytes = sum(tensor.bytes for layer in self.tensors for tensor in layer)

    def __len__(self) -> int:
        return len(self.modules)

    def in_turn(self, order: Sequence[int]) -> Generator[nn.Module]:
        """The layers in this order, each with its weights until the next is asked for.

        Raises InputError if a file ends early or a layer's weights are not all there.
        """
        largest = max((_places(self.tensors[index])[1] for index in order), default=0)
        slabs = [_Slab(largest, self.device) for _ in range(min(2, len(order)))]
        with ExitStack() as stack:
            files = {
                file: stack.enter_context(file.open("rb")).fileno()
                for file in sorted({t.file for index in order for t in self.tensors[index]})
            }
            readers = stack.enter_context(ThreadPoolExecutor(READERS))
            ahead = stack.enter_context(ThreadPoolExecutor(1))

            def fetch(turn: int) -> Future[dict[str, torch.Tensor]]:
                tensors = self.tensors[order[turn]]
                return ahead.submit(slabs[turn % 2].fill, tensors, files, readers)

            coming = fetch(0) if order else None
            for turn, index in enumerate(order):
                assert coming is not None
                state = coming.result()
                slabs[turn % 2].wait_until_filled()
                # The other buffer is free: its layer was emptied when this one was asked for.
                coming = fetch(turn + 1) if turn + 1 < len(order) else None
                module = self.modules[index]
                weightless = dict(module.named_parameters())
                self._load(self.model, state)
                _refuse_weightless(module, f"layer {index}", self.checkpoint.name)
                del state
                try:
                    yield module
                finally:
                    _put_back(module, weightless)
                    slabs[turn % 2].mark_used()

    def load_around(self) -> PreTrainedModel:
        """A model with all weights but those of its decoder layers, mapped from their files.

        Raises InputError if weights are missing or misshapen.
        """
        mapped = {}
        by_file: dict[Path, list[str]] = {}
        for tensor in self.around:
            by_file.setdefault(tensor.file, []).append(tensor.name)
        for file, names in by_file.items():
            with safe_open(file, framework="pt") as opened:
                mapped.update({name: opened.get_tensor(name) for name in names})
        model = _weightless(self.family, self.dtype, self.device)
        self._load(model, mapped)
        model.tie_weights()
        # Rows are looked up in these.
        mapped_on = {part.weight for part in model.modules() if isinstance(part, nn.Embedding)}
        if head := model.get_output_embeddings():
            mapped_on.add(head.weight)  # until logits are wanted: see read_head
        places = self.family.layers(model)
        inside = {*places.parameters(), *places.buffers()}
        for key, tensor in chain(model.named_parameters(), model.named_buffers()):
            if tensor.is_meta and tensor not in inside:
                raise InputError(
                    f"{self.checkpoint.name}: the weights do not fit the config: no {key!r}"
                )
            if not tensor.is_meta and tensor not in mapped_on:
                align(tensor)
        return model

    def read_head(self, model: PreTrainedModel) -> None:
        """Bring the output embedding, mapped so far, to where it can be multiplied with."""
        if head := model.get_output_embeddings():
            align(head.weight)

    def _load(self, model: PreTrainedModel, state: dict[str, torch.Tensor]) -> None:
        config = LoadStateDictConfig(
            dtype=self.dtype, dtype_plan=model._get_dtype_plan(self.dtype),
            device_map={"": self.device}, weight_mapping=get_model_conversion_mapping(model),
        )  # fmt: skip
        with without_bars():
            info, _ = convert_and_load_state_dict_in_model(model, state, config)
        problems = [*info.mismatched_keys, *info.error_msgs, *info.conversion_errors]
        if problems:
            raise InputError(
                f"{self.checkpoint.name}: the weights do not fit the config ({problems[0]})"
            )


class _Slab:
    """A buffer for one layer's tensors: in memory, and on the device if that is another place.

    On a GPU, copies run on a stream of their own: `filled` is when the last one ends, `used` when
    the layer that lay here was last computed with.
    """

    def __init__(self, size: int, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.host = torch.empty(size, dtype=torch.uint8, pin_memory=self.cuda)
        self.place = torch.empty(size, dtype=torch.uint8, device=device) if self.cuda else self.host
        if self.cuda:
            self.stream = torch.cuda.Stream(device)
            self.filled, self.used = torch.cuda.Event(), torch.cuda.Event()

    def fill(
        self, tensors: Sequence[Tensor], files: dict[Path, int], readers: ThreadPoolExecutor
    ) -> dict[str, torch.Tensor]:
        """Read the tensors and copy them to the device; the tensors there, by name."""
        if self.cuda:
            self.filled.synchronize()  # what lay in `host` must have left it
        places, size = _places(tensors)
        bytes_ = memoryview(self.host.numpy())  # type: ignore[arg-type]
        jobs = [
            readers.submit(_read, files[tensor.file], tensor, bytes_[at : at + tensor.bytes])
            for tensor, at in zip(tensors, places, strict=True)
        ]
        for job in jobs:
            job.result()
        if self.cuda:
            with torch.cuda.stream(self.stream):
                self.stream.wait_event(self.used)
                self.place[:size].copy_(self.host[:size], non_blocking=True)
                self.filled.record()
        return {
            tensor.name: self.place[at : at + tensor.bytes].view(TORCH[tensor.dtype])
            .view(tensor.shape)
            for tensor, at in zip(tensors, places, strict=True)
        }  # fmt: skip

    def wait_until_filled(self) -> None:
        if self.cuda:
            torch.cuda.current_stream(self.place.device).wait_event(self.filled)

    def mark_used(self) -> None:
        if self.cuda:
            self.used.record(torch.cuda.current_stream(self.place.device))


def _places(tensors: Sequence[Tensor]) -> tuple[list[int], int]:
    """Where each tensor starts in a buffer, and the buffer's size, in bytes."""
    places, end = [], 0
    for tensor in tensors:
        places.append(end)
        end += -(-tensor.bytes // ALIGNED) * ALIGNED
    return places, end


def _read(file: int, tensor: Tensor, target: memoryview) -> None:
    done = 0
    while done < tensor.bytes:
        read = os.preadv(file, [target[done:]], tensor.offset + done)
        if not read:
            raise InputError(f"{tensor.file}: ended early while {tensor.name!r} was read")
        done += read


def _weightless(family: Family, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """A model of this family in evaluation mode, its parameters on the meta device, its buffers
    as transformers makes them."""
    cls: Any = type(family.skeleton)
    with ContextManagers(cls.get_init_context(dtype, False, False, None)):
        model: Any = cls(copy.deepcopy(family.config))
    for parameter in model.parameters():
        parameter._is_hf_initialized = True  # or it would be drawn at random
    model._move_missing_keys_from_meta_to_device(set(), None, None, None)
    model._initialize_missing_keys(False)
    for module in model.modules():
        for key, buffer in module.named_buffers(recurse=False):
            if not buffer.is_meta:
                module._buffers[key] = buffer.to(device)
    return model.eval().requires_grad_(False)


def align(tensor: torch.Tensor) -> None:
    """Copy a tensor that is mapped from a file at an odd address to one that torch would have
    given it: some kernels round differently there."""
    if tensor.device.type == "cpu" and tensor.data_ptr() % ALIGNED:
        tensor.data = tensor.data.clone()


def _refuse_weightless(module: nn.Module, what: str, name: str) -> None:
    for key, tensor in chain(module.named_parameters(), module.named_buffers()):
        if tensor.is_meta:
            raise InputError(
                f"{name}: {what} has no {key!r} of its own on disk: the weights are incomplete, or "
                "layers of this model type share them (then it has to be walked in memory)"
            )


def _put_back(module: nn.Module, parameters: dict[str, nn.Parameter]) -> None:
    for name, parameter in parameters.items():
        owner, _, key = name.rpartition(".")
        setattr(module.get_submodule(owner), key, parameter)


@contextmanager
def without_bars() -> Iterator[None]:
    """Without transformers' own bar for reading weights, which would tear through ours."""
    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
