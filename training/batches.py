"""Token batches of fixed shapes: lengths padded to multiples of 8, one number of rows per target length.

A batch is a pure function of (data, seed, step), so training resumes anywhere.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch

from . import processes

IGNORED = -100
PLACE = -1  # in a source: where the prompt stands


@dataclass(frozen=True)
class Encoded:
    """Token ids of one example; `source` without prompt, `target` with EOS.

    A source with PLACE in it is all that a model reads, but for the prompt there; one without stands between prompt and
    EOS (see frames.py, which makes them).
    """

    source: tuple[int, ...]
    target: tuple[int, ...]


def with_prompt(prompt: Sequence[int], source: Sequence[int], eos: int) -> list[int]:
    """What a model reads of a source: the prompt in its place, or before it and EOS behind."""
    if PLACE not in source:
        return [*prompt, *source, eos]
    place = list(source).index(PLACE)
    return [*source[:place], *prompt, *source[place + 1 :]]


@dataclass
class Batch:
    """R rows: source_ids, source_mask [R, S]; labels [R, T] with -100 in padding."""

    source_ids: torch.Tensor
    source_mask: torch.Tensor
    labels: torch.Tensor

    def mine(self) -> Batch:
        """This process's rows (all of them where there is one process)."""
        if len(self.labels) <= processes.rank():  # none: a row without labels keeps the processes in step
            return Batch(self.source_ids[:1], self.source_mask[:1], torch.full_like(self.labels[:1], IGNORED))
        own = slice(processes.rank(), None, processes.number())
        return Batch(self.source_ids[own], self.source_mask[own], self.labels[own])

    def to(self, device: str | torch.device) -> Self:
        """The same batch on another device."""
        return type(self)(**{name: value.to(device) for name, value in vars(self).items()})


def ceil_to(n: int, multiple: int) -> int:
    """n rounded up to a multiple."""
    return -(-n // multiple) * multiple


def keyed_generator(*key: int) -> np.random.Generator:
    """Random numbers that depend on the key alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(key)))


def plan_epoch(rows: Sequence[Encoded], seed: int, epoch: int, target_tokens: int) -> list[list[int]]:
    """The epoch's batches as row indices: rows of one target bucket, sources of like length, in shuffled order.

    A bucket's number of rows is fixed: target_tokens // bucket, at least 1. A bucket's last batch may be smaller.
    """
    rng = keyed_generator(seed, epoch, 0)
    order = rng.permutation(len(rows))
    bucket = np.array([ceil_to(len(rows[i].target), 8) for i in order])
    source = np.array([ceil_to(len(rows[i].source), 8) for i in order])
    plan: list[list[int]] = []
    for size in np.unique(bucket):
        inside = np.flatnonzero(bucket == size)
        inside = inside[np.argsort(source[inside], kind="stable")]  # equal lengths keep their shuffled order
        count = max(1, target_tokens // int(size))
        plan += [order[inside[i : i + count]].tolist() for i in range(0, len(inside), count)]
    return [plan[i] for i in rng.permutation(len(plan))]


def padded(
    rows: Sequence[Sequence[Any] | np.ndarray], fill: float, count: int = 0, dtype: torch.dtype = torch.long
) -> torch.Tensor:
    """Rows of unlike lengths as one tensor, their length padded to a multiple of 8 and their number to `count`."""
    shape = max(len(rows), count), ceil_to(max(map(len, rows), default=1), 8)
    found = torch.full(shape, fill, dtype=dtype)
    for r, row in enumerate(rows):
        found[r, : len(row)] = torch.as_tensor(row)
    return found


def collate(
    rows: Sequence[Encoded], prompts: Sequence[Sequence[int]], eos: int, pad: int, count: int | None = None
) -> Batch:
    """One batch: prompts[i] in row i's place for it, lengths in multiples of 8, and empty rows added up to `count`."""
    count = max(len(rows), count or 1)
    sources = [with_prompt(prompt, row.source, eos) for prompt, row in zip(prompts, rows, strict=True)]
    sources += [[eos]] * (count - len(rows))
    lengths = torch.tensor([len(source) for source in sources])
    source_ids = padded(sources, pad)
    mask = (torch.arange(source_ids.shape[1]) < lengths[:, None]).long()
    return Batch(source_ids, mask, padded([row.target for row in rows], IGNORED, count))


@dataclass
class Batches:
    """Endless training batches: `batches[step]`, the same whenever it is asked for.

    With several prompts a row draws one by (seed, epoch, row).
    """

    rows: Sequence[Encoded]
    prompts: Sequence[Sequence[int]]
    seed: int
    target_tokens: int
    eos: int
    pad: int

    def __post_init__(self) -> None:
        if not self.rows:
            raise ValueError("there are no training examples (all longer than max_source/max_target, or an empty file)")
        self.per_epoch = len(plan_epoch(self.rows, self.seed, 0, self.target_tokens))
        self._epoch = -1
        self._plan: list[list[int]] = []

    def rows_at(self, step: int) -> list[Encoded]:
        """The examples of the batch (padding rows excluded)."""
        epoch, index = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._plan, self._epoch = plan_epoch(self.rows, self.seed, epoch, self.target_tokens), epoch
        return [self.rows[i] for i in self._plan[index]]

    def draws(self, step: int) -> np.ndarray:
        """Which prompt each row of the batch drew (padding rows excluded)."""
        epoch, index = divmod(step, self.per_epoch)
        count = len(self.rows_at(step))
        return keyed_generator(self.seed, epoch, 1 + index).integers(len(self.prompts), size=count)

    def __getitem__(self, step: int) -> Batch:
        return self.at(step, *(self.prompts[d] for d in self.draws(step)))

    def at(self, step: int, *prompts: Sequence[int]) -> Batch:
        """The batch behind these prompts, one for each row or one for all."""
        rows = self.rows_at(step)
        bucket = ceil_to(max(len(row.target) for row in rows), 8)
        given = prompts if len(prompts) == len(rows) else prompts * len(rows)
        return collate(rows, given, self.eos, self.pad, max(1, self.target_tokens // bucket))


def in_order(rows: Sequence[Encoded], size: int) -> Iterator[list[int]]:
    """Row indices in batches of `size`, rows of like source length together (for evaluation)."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i].source))
    for begin in range(0, len(order), size):
        yield order[begin : begin + size]
