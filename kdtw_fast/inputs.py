"""What comes into ``generate``, checked at the boundary and turned into plain token lists."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from kdtw_fast.model import NativeT5
from kdtw_fast.options import GenerateOptions, check_int


def token_rows(ids: Any, mask: Any, name: str, model: NativeT5, options: GenerateOptions) -> list[list[int]]:
    """Returns [R, S] ``ids`` as R checked token lists without padding; raises as ``generate`` documents."""
    lists = _lists(ids, name)
    if not lists:
        raise ValueError(f"{name} is an empty batch; give at least one row")
    masks = None if mask is None else _lists(mask, "attention_mask")
    if masks is not None and [len(m) for m in masks] != [len(row) for row in lists]:
        raise ValueError(
            f"attention_mask has shape {_shape(masks)}, but {name} has shape {_shape(lists)}; they must agree"
        )
    rows = []
    for r, row in enumerate(lists):
        if masks is None:
            end = len(row)
            while end > 0 and row[end - 1] == model.pad_token_id:
                end -= 1
            row = row[:end]
        else:
            on = [i for i, flag in enumerate(masks[r]) if flag]
            if any(flag not in (0, 1) for flag in masks[r]) or (on and on[-1] - on[0] + 1 != len(on)):
                raise ValueError(
                    f"attention_mask row {r} must be zeros and ones with its ones in one run, got {masks[r]}"
                )
            row = [row[i] for i in on]
        if not row:
            raise ValueError(f"{name} row {r} is empty")
        if all(token in model.eos_token_ids for token in row):
            raise ValueError(f"{name} row {r} holds nothing but the end token {row}")
        if len(row) > options.max_source_length:
            if not options.truncation:
                raise ValueError(
                    f"{name} row {r} has {len(row)} tokens, more than max_source_length={options.max_source_length}; "
                    f"raise max_source_length, or cut it with truncation=True"
                )
            ends = row[-1] in model.eos_token_ids
            row = row[: options.max_source_length - ends] + row[-1:] * ends
        rows.append(row)
    check_ids(rows, model, name)
    return rows


def check_ids(rows: list[list[int]], model: NativeT5, name: str) -> None:
    """Raises ValueError for the first id outside the model's vocabulary."""
    for r, row in enumerate(rows):
        for token in row:
            if not 0 <= token < model.vocab_size:
                raise ValueError(
                    f"{name} row {r} has token id {token}, outside the {model.name}'s vocabulary of {model.vocab_size}"
                )


def _lists(value: Any, name: str) -> list[list[int]]:
    """A [R, S] tensor, array or list of lists as lists of ints."""
    if isinstance(value, torch.Tensor):
        if value.device.type != "cpu":
            raise ValueError(f"{name} is on device '{value.device}'; this decoder runs on 'cpu'")
        value = value.numpy()
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "iub":
            raise TypeError(f"{name} must hold integers, got dtype {value.dtype}")
        if value.ndim != 2:
            raise ValueError(f"{name} must have shape [rows, length], got {list(value.shape)}")
        return value.astype(np.int64).tolist()
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be a tensor or a list of lists of token ids, got {type(value).__name__}")
    rows = []
    for r, row in enumerate(value):
        if isinstance(row, (torch.Tensor, np.ndarray)):
            row = row.tolist()
        if not isinstance(row, Sequence) or isinstance(row, (str, bytes)):
            raise TypeError(f"{name} must have shape [rows, length]; row {r} is {row!r}, not a list of token ids")
        for token in row:
            if isinstance(token, float) or not isinstance(token, (int, np.integer)):
                raise TypeError(f"{name} row {r} must hold integers, got {token!r} of type {type(token).__name__}")
        rows.append([int(token) for token in row])
    return rows


def _shape(rows: list[list[int]]) -> list[Any]:
    lengths = sorted({len(row) for row in rows})
    return [len(rows), lengths[0] if len(lengths) == 1 else f"{lengths[0]}..{lengths[-1]}"] if rows else [0]


def row_keys(row_ids: Sequence[int] | None, count: int) -> list[int]:
    """Returns the names of ``count`` output rows to the random numbers: ``row_ids``, checked, or 0, 1, 2, …"""
    if row_ids is None:
        return list(range(count))
    keys = [check_int("row_ids entry", key, 0, 2**64 - 1) for key in row_ids]
    if len(keys) != count:
        raise ValueError(f"row_ids has {len(keys)} values for {count} output rows")
    return keys
