"""What a training step runs on: one process, or several that share the batch or the weights.

accelerate finds devices and processes and wraps what is trained for data-parallel training; torch's
`fully_shard` (FSDP2) shards the weights; DeepSpeed's ZeRO is in `zero`. Processes are started by
torchrun or `accelerate launch`.
"""

import os
import warnings
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn

from prunekit.errors import InputError
from prunekit.healing.student import Task
from prunekit.healing.zeros import Zeros
from prunekit.model.load import parse_device
from prunekit.model.ranks import ranks

SHARDS = ("none", "fsdp", "zero2", "zero3")


class Engine:
    """Runs a task's steps. `trained` are the parameters that the optimiser moves, by name."""

    def __init__(
        self, *, device: str, shard: str = "none", processes: int | None = None,
        track: str | None = None, logs: Path | None = None,
    ) -> None:  # fmt: skip
        from accelerate import Accelerator

        if shard not in SHARDS:
            raise InputError(f"no way to shard called {shard!r}; there are: {', '.join(SHARDS)}")
        cpu = parse_device(device).type == "cpu"
        if cpu:
            os.environ.setdefault("ACCELERATE_USE_CPU", "true")
        try:
            with warnings.catch_warnings():  # what it warns of is said below
                warnings.simplefilter("ignore", UserWarning)
                self.accelerator = Accelerator(cpu=cpu, log_with=track, project_dir=logs)
        except ValueError as error:
            raise InputError(f"track {track!r}: {error}") from None
        if track and not self.accelerator.log_with:
            raise InputError(f"track {track!r}: that package is not installed")
        found = self.accelerator.num_processes
        wanted = ranks() if processes is None else processes
        if found != wanted or found != ranks():
            raise InputError(
                f"{wanted} processes were asked for and {found} came up; start them with "
                f"`torchrun --nproc-per-node {wanted} -m prunekit ...`"
            )
        if shard != "none" and found == 1:
            raise InputError(f"--shard {shard} shares a model among processes; there is one")
        self.shard = shard
        self.ranks = found
        self.rank = self.accelerator.process_index

    @property
    def device(self) -> torch.device:
        return self.accelerator.device

    def prepare(
        self, task: Task, layers: Iterable[nn.Module], pruned: Iterable[nn.Parameter]
    ) -> nn.Module:
        """The task as it is called in training; afterwards `trained` and `zeros` are known.

        `pruned` are the parameters whose zeros are kept.
        """
        task.to(self.device)
        names = {weight: name for name, weight in task.named_parameters()}
        pruned_names = {names[weight] for weight in pruned if weight in names}
        wrapped: Any = task
        if self.shard == "fsdp":
            from torch.distributed.device_mesh import init_device_mesh
            from torch.distributed.fsdp import fully_shard

            mesh = init_device_mesh(self.device.type, (self.ranks,))
            for layer in layers:
                fully_shard(layer, mesh=mesh)
            fully_shard(task, mesh=mesh)
        elif self.ranks > 1 and self.shard == "none":
            wrapped = nn.parallel.DistributedDataParallel(
                task, device_ids=[self.device.index] if self.device.type == "cuda" else None
            )
        self.trained = {
            name: weight for name, weight in task.named_parameters() if weight.requires_grad
        }
        self.zeros = Zeros(self.trained[name] for name in self.trained if name in pruned_names)
        return wrapped

    def begin(
        self, wrapped: Any, optimiser: torch.optim.Optimizer, *, micro: int, batches: int,
        clip: float,
    ) -> Any:  # fmt: skip
        """The task as it is called in training, once there is an optimiser: a step runs `batches`
        times `micro` samples."""
        return wrapped

    def evaluated(self, task: Task) -> Any:
        """The task as it is called for held-out losses."""
        return task

    def not_yet(self, wrapped: Any, last: bool) -> AbstractContextManager[Any]:
        """Gradients of all but a step's last batch stay with this process."""
        if self.shard == "fsdp":
            wrapped.set_requires_gradient_sync(last)
            return nullcontext()
        return wrapped.no_sync() if self.ranks > 1 and not last else nullcontext()

    def backward(self, loss: Tensor, last: bool) -> None:
        """Add a batch's gradients."""
        loss.backward()

    def step(self, optimiser: torch.optim.Optimizer, clip: float, finite: bool) -> None:
        """Move the weights if all losses are finite: gradients scaled down to a norm of `clip`, and
        no zero moved."""
        self.zeros.mask_gradients()
        nn.utils.clip_grad_norm_(list(self.trained.values()), clip)
        if finite:
            optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes."""
        if self.ranks > 1:
            values = values.detach().clone()
            distributed.all_reduce(values)
            values /= self.ranks
        return values

    def agree(self, value: bool) -> bool:
        """What the first process says."""
        if self.ranks == 1:
            return value
        said = torch.tensor([value], dtype=torch.int32, device=self.device)
        distributed.broadcast(said, 0)
        return bool(said.item())

    def whole(self) -> dict[str, Tensor]:
        """Copies of the trained weights on the CPU, whole."""
        return {name: _whole(weight) for name, weight in self.trained.items()}

    def state(self, optimiser: torch.optim.Optimizer, folder: Path, step: int) -> dict[str, Any]:
        """Weights and moments, whole, on the CPU."""
        held = optimiser.state_dict()
        moments = {
            number: {key: _whole(value) if isinstance(value, Tensor) else value
                     for key, value in entry.items()}
            for number, entry in held["state"].items()
        }  # fmt: skip
        return {"weights": self.whole(), "optimiser": {**held, "state": moments}}

    def saved(self, folder: Path, state: Mapping[str, Any]) -> None:
        """Is told that a state was written down, so that older ones can go."""

    def restore(
        self, optimiser: torch.optim.Optimizer, folder: Path, state: Mapping[str, Any]
    ) -> None:
        """Go back to a state."""
        with torch.no_grad():
            for name, weight in self.trained.items():
                weight.copy_(_like(state["weights"][name], weight))
        weights = list(self.trained.values())
        held = {
            number: {key: _like(value, weights[number]) if _is_moment(value) else value
                     for key, value in entry.items()}
            for number, entry in state["optimiser"]["state"].items()
        }  # fmt: skip
        optimiser.load_state_dict({**state["optimiser"], "state": held})


def _is_moment(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim > 0


def _whole(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    whole = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole.to("cpu", copy=True)


def _like(whole: Tensor, weight: Any) -> Tensor:
    """A whole tensor as a weight is held: sharded, if that is."""
    whole = whole.to(weight.device)
    if not hasattr(weight, "full_tensor"):
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole, weight.device_mesh, weight.placements)
