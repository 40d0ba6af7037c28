"""Several processes that share a text, as `torchrun` or `accelerate launch` start them.

Each process takes every n-th batch, and what adds up over batches is added up over processes.
"""

import os
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TYPE_CHECKING

from prunekit.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor


def rank() -> int:
    """This process's number; 0 writes and prints."""
    return _whole("RANK", 0)


def ranks() -> int:
    """How many processes there are."""
    return _whole("WORLD_SIZE", 1)


def on_this_machine() -> int:
    """How many of them share this machine's memory."""
    return _whole("LOCAL_WORLD_SIZE", ranks())


def local_rank() -> int:
    """This process's number on its machine, which is also its GPU's."""
    return _whole("LOCAL_RANK", rank())


def share(batches: "Iterable[Tensor]") -> "Iterator[Tensor]":
    """This process's batches."""
    return islice(batches, rank(), None, ranks())


def add_up(tensors: "Iterable[Tensor]") -> None:
    """Add the other processes' tensors to these, in place; all processes get the same sums.

    Sums of float64 may differ from one process's in the last bits, as their order does. Raises
    InputError if the processes can't find each other.
    """
    if ranks() == 1:
        return
    import torch
    from torch import distributed

    if not distributed.is_initialized():
        try:
            # nccl moves only what lies on a GPU; the sums are small, and may lie anywhere.
            cuda = torch.cuda.is_available()
            distributed.init_process_group("cpu:gloo,cuda:nccl" if cuda else "gloo")
        except (ValueError, RuntimeError) as error:
            reason = str(error).partition("\n")[0]
            raise InputError(
                f"{ranks()} processes were announced, and they can't be joined ({reason}); start "
                "them with torchrun"
            ) from None
    for tensor in tensors:
        distributed.all_reduce(tensor)


def _whole(name: str, default: int) -> int:
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else default
