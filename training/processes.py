"""Data-parallel training in several processes: which rows are this process's, and sums over all processes.

Every process holds the whole state (a teacher may be sharded) and does its share of each batch's rows; process 0
validates and writes. With one process nothing here does anything.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar

import torch
from torch import distributed
from transformers import PreTrainedModel

Row = TypeVar("Row")
LONGEST_WAIT = timedelta(days=1)  # of a process for another


@cache
def _joined() -> bool:
    """Whether there are several processes; the first question joins them."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return False
    try:
        from accelerate import PartialState
        from accelerate.utils import InitProcessGroupKwargs
    except ImportError:
        raise ValueError("several processes need accelerate: pip install accelerate, or start one process") from None
    # While process 0 builds a vocabulary, validates or saves, the others wait in a collective for as long as that
    # takes; torch would end them after 10 or 30 minutes. Of a process that died its launcher tells them at once.
    waiting = InitProcessGroupKwargs(timeout=LONGEST_WAIT)
    PartialState(cpu=not torch.cuda.is_available(), **waiting.to_kwargs())
    # Before Python ends: gloo's threads drop tensors, for which they need its lock, and one that still waits for it
    # when Python ends takes the process with it ("terminate called without an active exception").
    atexit.register(lambda: distributed.destroy_process_group() if distributed.is_initialized() else None)
    return True


def number() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if _joined() else 1


def rank() -> int:
    """This process's number, from 0."""
    return distributed.get_rank() if _joined() else 0


def mine(rows: Sequence[Row]) -> Sequence[Row]:
    """This process's share of a batch's rows."""
    return rows[rank() :: number()]


def _reduced(values: Sequence[float], how: str = "SUM") -> list[float]:
    """Each value's sum over all processes, or another of torch's ReduceOps."""
    if not _joined():
        return list(values)
    tensor = torch.tensor(values, dtype=torch.float64, device=_device())
    distributed.all_reduce(tensor, getattr(distributed.ReduceOp, how))
    return tensor.tolist()


def total(value: float) -> float:
    """The sum over all processes."""
    return _reduced([value])[0]


def most(value: int) -> int:
    """The largest of all processes' values."""
    return int(_reduced([value], "MAX")[0])


def share(count: int) -> float:
    """What a mean over this process's `count` positions is multiplied by, so that averages over processes are means."""
    return count * number() / max(1.0, total(count)) if _joined() else 1.0


def averaged(values: dict[str, float]) -> dict[str, float]:
    """Averages over all processes; times (seconds_…) stay each one's own, for a process without rows has not all."""
    names = [name for name in values if not name.startswith("seconds")]
    sums = _reduced([values[name] for name in names])
    return values | {name: value / number() for name, value in zip(names, sums, strict=True)}


def average_gradients(model: torch.nn.Module) -> None:
    """Make every process's gradients the average of all."""
    if not _joined():
        return
    found = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([gradient.flatten() for gradient in found])
    distributed.all_reduce(flat)
    flat /= number()
    for gradient, part in zip(found, flat.split([gradient.numel() for gradient in found]), strict=True):
        gradient.copy_(part.view_as(gradient))


def shard(model: PreTrainedModel) -> None:
    """Leave each process a part of the parameters of a model's blocks, which gather a block's when they run it (FSDP).

    Embedding and head stay whole. From here on every process must run the model equally often. With one process nothing
    happens.
    """
    if not _joined():
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(_device(), (number(),))
    stacks = [model.get_encoder()] if model.config.is_encoder_decoder else []
    for stack in (*stacks, model.get_decoder()):
        for block in stack.block if hasattr(stack, "block") else stack.layers:
            fully_shard(block, mesh=mesh, reshard_after_forward=True)


def gathered(rows: Sequence[Row]) -> list[Row]:
    """All rows, in order, from every process's `mine`."""
    if not _joined():
        return list(rows)
    parts: list[Any] = [None] * number()
    distributed.all_gather_object(parts, list(rows))
    found: list[Any] = [None] * sum(map(len, parts))
    for first, part in enumerate(parts):
        found[first :: number()] = part
    return found


def from_first(value: Row) -> Row:
    """Process 0's value, for all."""
    if not _joined():
        return value
    box = [value]
    distributed.broadcast_object_list(box)
    return box[0]


@contextmanager
def first_before_others() -> Iterator[None]:
    """Process 0 goes through the block before the others do."""
    if _joined() and rank():
        distributed.barrier()
    yield
    if _joined() and not rank():
        distributed.barrier()


def _device() -> str:
    return "cuda" if distributed.get_backend() == "nccl" else "cpu"
