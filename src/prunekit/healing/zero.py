"""Training under DeepSpeed's ZeRO: processes share gradients and moments (2), and weights too (3).

Rajbhandari et al., arXiv 1910.02054. DeepSpeed clips, steps and saves; what is trained, and on
what, is decided elsewhere. Started by torchrun, as the others are.
"""

import shutil
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from prunekit.errors import InputError
from prunekit.healing.engine import Engine
from prunekit.healing.student import Task

STAGES = {"zero2": 2, "zero3": 3}
TAG = "zero"  # folders with DeepSpeed's own states, one for each time that one was saved


class Zero(Engine):
    """An engine whose steps are DeepSpeed's."""

    def prepare(
        self, task: Task, layers: Iterable[nn.Module], pruned: Iterable[nn.Parameter]
    ) -> Any:
        if self.shard == "zero3" and any(hasattr(module, "held") for module in task.modules()):
            raise InputError(
                "--shard zero3 can't train adapters beside matrices with zeros, which are run "
                "masked; take zero2 or fsdp"
            )
        super().prepare(task, layers, pruned)
        for parameter, zero in self.zeros.masks.items():
            # Gradients are shared as they come: the mask is put on before. Where they are zero from
            # the start, neither moments nor decay move a zero.
            parameter.register_hook(lambda gradient, zero=zero: gradient.masked_fill(zero, 0))
        self.zeros.masks.clear()
        self.task = task
        return task

    def begin(
        self, wrapped: Any, optimiser: torch.optim.Optimizer, *, micro: int, batches: int,
        clip: float,
    ) -> Any:  # fmt: skip
        import deepspeed

        self.deepspeed, *_ = deepspeed.initialize(
            model=self.task, optimizer=optimiser, dist_init_required=True,
            config={
                "train_micro_batch_size_per_gpu": micro,
                "gradient_accumulation_steps": batches,
                "gradient_clipping": clip,
                "zero_optimization": {"stage": STAGES[self.shard]},
                "zero_allow_untested_optimizer": True,
                "zero_force_ds_cpu_optimizer": False,
            },
        )  # fmt: skip
        return self.deepspeed

    def evaluated(self, task: Task) -> Any:
        return self.deepspeed

    def not_yet(self, wrapped: Any, last: bool) -> AbstractContextManager[Any]:
        self.deepspeed.set_gradient_accumulation_boundary(last)
        return nullcontext()

    def backward(self, loss: Tensor, last: bool) -> None:
        self.deepspeed.backward(loss, scale_wrt_gas=False)
        if not last:  # counts
            self.deepspeed.step()

    def step(self, optimiser: torch.optim.Optimizer, clip: float, finite: bool) -> None:
        if finite:
            self.deepspeed.step()

    def whole(self) -> dict[str, Tensor]:
        import deepspeed

        weights = list(self.trained.values())
        with deepspeed.zero.GatheredParameters(weights, enabled=self.shard == "zero3"):
            return {
                name: weight.detach().to("cpu", copy=True) for name, weight in self.trained.items()
            }

    def state(self, optimiser: torch.optim.Optimizer, folder: Path, step: int) -> dict[str, Any]:
        name = f"{TAG}-{step}"
        self.deepspeed.save_checkpoint(folder, tag=name, exclude_frozen_parameters=True)
        return {"deepspeed": name}

    def saved(self, folder: Path, state: Mapping[str, Any]) -> None:
        for old in folder.glob(f"{TAG}-*"):
            if old.name != state["deepspeed"]:
                shutil.rmtree(old)

    def restore(
        self, optimiser: torch.optim.Optimizer, folder: Path, state: Mapping[str, Any]
    ) -> None:
        name = state["deepspeed"]
        loaded, _ = self.deepspeed.load_checkpoint(
            folder, tag=name, load_module_strict=False, load_lr_scheduler_states=False
        )
        if loaded is None:
            raise InputError(f"{str(folder)!r}: its state {name!r} is broken; remove the folder")
