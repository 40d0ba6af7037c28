"""Folds a linear map, fitted to a block that goes, into the MLP before it (ReplaceMe).

Shopkhoev et al., arXiv 2505.02819, equations 5 to 8. With M what the MLP of layer s - 1 adds to the
residual stream, Y = x[s] and N = x[e], the map T of the block [s, e) minimises |M T - (N + M - Y)|²
+ alpha |T|². States are raw ones, sums are taken in float64, and the transposed map times the MLP's
output projection is stored in that projection's own dtype: no new module.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from prunekit.errors import InputError
from prunekit.model.checkpoint import Checkpoint
from prunekit.model.family import Family
from prunekit.model.load import Loaded
from prunekit.model.mute import Halves
from prunekit.model.names import memory_names
from prunekit.model.walk import Call
from prunekit.plan.edits import Fold
from prunekit.surgery.merge import FLOATS
from prunekit.surgery.write import Part, bytes_of, read_tensor

Block = tuple[int, int]  # half-open


@dataclass
class Sums:
    """What least squares needs of all tokens: MᵀM and Mᵀ(N + M - Y), or their diagonals."""

    gram: Tensor
    cross: Tensor
    tokens: int = 0

    @classmethod
    def none(cls, hidden: int, *, diagonal: bool) -> "Sums":
        shape = (hidden,) if diagonal else (hidden, hidden)
        return cls(torch.zeros(shape, dtype=torch.float64), torch.zeros(shape, dtype=torch.float64))

    def add(self, m: Tensor, y: Tensor, n: Tensor) -> None:
        """Tokens' M, Y and N, each (..., hidden)."""
        m, y, n = (states.detach().double().flatten(0, -2).cpu() for states in (m, y, n))
        right = n + m - y
        if self.gram.ndim == 1:
            self.gram += m.square().sum(0)
            self.cross += (m * right).sum(0)
        else:
            self.gram += m.T @ m
            self.cross += m.T @ right
        self.tokens += len(m)

    def solve(self, alpha: float) -> Tensor:
        """The map (hidden, hidden), for rows: M T. Raises InputError if there is no single one."""
        if self.gram.ndim == 1:
            return self.cross / (self.gram + alpha)
        try:
            lower = torch.linalg.cholesky(
                self.gram + alpha * torch.eye(len(self.gram), dtype=torch.float64)
            )
        except RuntimeError:  # torch.linalg.LinAlgError
            raise InputError(
                f"{self.tokens} tokens do not tell a map of {len(self.gram)} x {len(self.gram)}; "
                "give more text, a larger ridge, or --diagonal"
            ) from None
        return torch.cholesky_solve(self.cross, lower)


def fit(
    loaded: Loaded,
    blocks: Sequence[Block],
    batches: Iterable[Tensor],
    *,
    ridge: float = 1e-4,
    diagonal: bool = False,
) -> dict[Block, Tensor]:
    """The map of each block, from one walk to the end of the last one.

    `ridge` is alpha over the mean of MᵀM's diagonal. Raises InputError for a block at layer 0, and
    where the MLP before a block is not one matrix that adds to the residual stream.
    """
    if not 0 <= ridge < float("inf"):
        raise InputError(f"ridge {ridge}: a number from 0 on")
    hidden = loaded.model.config.get_text_config(decoder=True).hidden_size
    sums = {block: Sums.none(hidden, diagonal=diagonal) for block in blocks}
    before = {start: _Before(loaded, start - 1) for start, _ in blocks}
    wanted = {layer for start, end in blocks for layer in (start - 1, end - 1)}
    with torch.no_grad():
        for batch in batches:
            (calls,) = loaded.calls([batch], wanted, max(end for _, end in blocks))
            for start, end in blocks:
                adds = before[start].adds(calls[start - 1])
                sums[start, end].add(adds, calls[start - 1].leaving, calls[end - 1].leaving)
    return {block: held.solve(ridge * _mean_diagonal(held.gram)) for block, held in sums.items()}


def fold(
    parts: Iterable[Part], checkpoint: Checkpoint, family: Family, folds: Sequence[Fold]
) -> list[Part]:
    """The parts with the output projections before the folded blocks multiplied by their maps.

    Raises InputError if one can't be told on disk, is not of floats, or a map does not fit.
    """
    parts = list(parts)
    if not folds:
        return parts
    named = memory_names(checkpoint, family)
    contents = {}
    for edit in folds:
        layer = edit.layers[0] - 1
        path, module = writer(family, layer)
        by_map = read_map(edit, _width(module))
        inside = f"{family.path}.{layer}.{path}"
        for name in ("weight", "bias"):
            found = [key for key, known in named.items() if known == f"{inside}.{name}"]
            own = getattr(module, name, None)
            if own is None:
                continue
            if len(found) != 1 or checkpoint.tensors[found[0]].shape != tuple(own.shape):
                raise InputError(
                    f"{checkpoint.name}: can't tell {inside}.{name} among the tensors on disk"
                )
            tensor = checkpoint.tensors[found[0]]
            if tensor.dtype not in FLOATS:
                raise InputError(
                    f"{checkpoint.name}: a map can't be folded into {tensor.dtype} weights; start "
                    "from the model in full precision"
                )
            contents[found[0]] = partial(_content, tensor, by_map, module)
    return [
        replace(part, content=contents[part.source.name]) if part.source.name in contents else part
        for part in parts
    ]


def fold_in_memory(loaded: Loaded, folds: Sequence[Fold]) -> None:
    """The same in a model that is in memory."""
    for edit in folds:
        layer = edit.layers[0] - 1
        path, _ = writer(loaded.family, layer)
        module = loaded.family.layers(loaded.model)[layer].get_submodule(path)
        by_map = read_map(edit, _width(module))
        for parameter in module.parameters():
            parameter.data = mapped(parameter.data, by_map, module).to(parameter.dtype)


def mapped(weight: Tensor, by_map: Tensor, module: nn.Module) -> Tensor:
    """An output projection's weight or bias whose output is multiplied by a map, in float64."""
    weight = weight.double()
    last = isinstance(module, Conv1D) or weight.ndim == 1  # outputs are the last dimension
    if by_map.ndim == 1:
        return weight * by_map if last else by_map[:, None] * weight
    return weight @ by_map if last else by_map.T @ weight


def writer(family: Family, layer: int) -> tuple[str, nn.Linear | Conv1D]:
    """The one matrix through which a layer's MLP writes: its name within the layer, and itself.

    Raises InputError if there is none, or more.
    """
    module = family.layers(family.skeleton)[layer]
    names = {name.rpartition(".")[0] for name in family.writers(layer, "mlp")}
    found = [(name, module.get_submodule(name)) for name in names if name]
    for name, part in found:
        if len(found) == 1 and isinstance(part, nn.Linear | Conv1D):
            return name, part
    raise InputError(
        f"model type {family.config.model_type!r}: the MLP of layer {layer} does not end in one "
        "matrix (experts do not), so no map can be folded into it; drop the block, and heal"
    )


def read_map(edit: Fold, hidden: int) -> Tensor:
    """A fold's map. Raises InputError if its file has none that fits."""
    try:
        with safe_open(edit.maps, framework="pt") as file:
            by_map: Tensor = file.get_tensor(edit.name)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{edit.maps}: no map of the block {edit.name} ({error})") from None
    if by_map.shape not in ((hidden,), (hidden, hidden)) or not by_map.isfinite().all():
        raise InputError(
            f"{edit.maps}: the map of {edit.name} is {tuple(by_map.shape)}; {hidden} x {hidden} "
            "finite numbers, or as many as a diagonal has, are expected"
        )
    return by_map.double()


class _Before:
    """The layer before a block, and what its MLP adds to the residual stream.

    Nothing but a constant may stand between its output projection and the stream.
    """

    def __init__(self, loaded: Loaded, index: int) -> None:
        if index < 0:
            raise InputError("a block at layer 0 has no layer before it that could take the map")
        self.loaded, self.index = loaded, index
        path, _ = writer(loaded.family, index)
        (self.layer,) = loaded.take([index])
        self.module = self.layer.get_submodule(path)
        self.scale: Tensor | None = None

    def adds(self, call: Call) -> Tensor:
        with _output(self.module) as seen:
            call.of(self.layer)
        (wrote,) = seen
        wrote = wrote.view(call.leaving.shape)
        if self.scale is None:
            self.scale = self._scale(call, wrote)
        return wrote.double() * self.scale

    def _scale(self, call: Call, wrote: Tensor) -> Tensor:
        """How many times the projection's output is added.

        Raises InputError if it is not that which is added.
        """
        with Halves(self.loaded.family).muted(self.index, self.layer, ["mlp"]):
            added = call.leaving.double() - call.of(self.layer).double()
        wrote = wrote.double()
        scale = (added * wrote).sum() / wrote.square().sum()
        apart = (added - scale * wrote).norm() / added.norm()
        # Of numbers near the stream's own size, so rounded as that is.
        rounding = torch.finfo(call.leaving.dtype).eps * call.leaving.double().norm() / added.norm()
        if not apart <= 1e-4 + rounding:
            raise InputError(
                f"model type {self.loaded.family.config.model_type!r}: a norm stands between the "
                f"MLP of layer {self.index} and the residual stream, so no map can be folded into "
                "it; drop the block, and heal"
            )
        return scale


@contextmanager
def _output(module: nn.Module) -> Iterator[list[Tensor]]:
    """Within the block, what the module gives is written down."""
    seen: list[Tensor] = []

    def see(_: nn.Module, __: Any, output: Tensor) -> None:
        seen.append(output)

    hook = module.register_forward_hook(see)
    try:
        yield seen
    finally:
        hook.remove()


def _content(tensor: Any, by_map: Tensor, module: nn.Module) -> bytes:
    return bytes_of(mapped(read_tensor(tensor), by_map, module), tensor.dtype)


def _width(module: nn.Linear | Conv1D) -> int:
    return int(module.nf) if isinstance(module, Conv1D) else module.out_features


def _mean_diagonal(gram: Tensor) -> float:
    return float((gram if gram.ndim == 1 else gram.diagonal()).mean())


def write_maps(maps: dict[Block, Tensor], file: Path) -> tuple[Fold, ...]:
    """Maps as a file, and the edits that read it."""
    from safetensors.torch import save_file

    edits = tuple(Fold(tuple(range(*block)), file) for block in maps)
    save_file(
        {edit.name: by_map.contiguous() for edit, by_map in zip(edits, maps.values(), strict=True)},
        file,
    )
    return edits
