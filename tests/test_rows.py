"""Rows of JSON and of tables as items: the same wherever rows are read, `kdtw generate`, Ray or a service."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from kdtw_fast.cli.lines import read
from kdtw_fast.cli.rows import ParquetRows
from kdtw_fast.inputs import Item, item_of_row
from kdtw_fast.options import GenerateOptions

ROW: dict[str, Any] = {
    "text": "a",
    "max_new_tokens": 16.0,
    "seed": 3.0,
    "temperature": 1.0,
    "top_p": None,
    "budget": {"1": "light", "2": 0.3},
    "max_teacher_fraction": {"1": 0.5, "2": None},
    "max_teacher_calls": {"2": 4},
    "logit_bias": {"17": -2.0},
}
ITEM: dict[str, Any] = {
    "text": "a",
    "max_new_tokens": 16,
    "seed": 3,
    "temperature": 1.0,
    "budget": {1: "light", 2: 0.3},
    "max_teacher_fraction": {1: 0.5},
    "max_teacher_calls": {2: 4},
    "logit_bias": {17: -2.0},
}


def check(item: Any) -> None:
    assert item == ITEM and type(item["max_new_tokens"]) is int and type(item["seed"]) is int
    Item.of(item, "item").options(GenerateOptions())


def test_a_row_becomes_an_item() -> None:
    check(item_of_row(ROW | {"top_k": math.nan}))
    check(item_of_row(ROW | {"logit_bias": [("17", -2.0)], "max_teacher_calls": [(2, 4)]}))  # maps of a table
    odd = {"max_new_tokens": 16.5, "logit_bias": {"a": 1.0, "123456789": 1.0}}
    assert item_of_row(odd) == odd  # for Item to refuse


def test_rows_of_jsonl_and_blank_lines() -> None:
    lines = [json.dumps(ROW | {"other": 1}).encode() + b"\n", b"\n", b" \r\n", b"{}\n"]
    first, *blank, last = read(lines, column="text")
    check(first)
    assert [str(line).strip() for line in blank] == ["", ""]
    assert isinstance(last, ValueError) and str(last).startswith("line 4: column 'text' is missing")


def test_rows_of_parquet(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    from pyarrow.parquet import write_table

    bias = pa.map_(pa.int64(), pa.float64())
    row = ROW | {"logit_bias": [(17, -2.0)], "budget": {"1": "light", "2": "high"}}
    schema = {"logit_bias": bias, "seed": pa.float64(), "max_new_tokens": pa.float64()}
    columns = {name: pa.array([value], schema.get(name)) for name, value in row.items()}
    write_table(pa.table(columns), tmp_path / "rows.parquet")
    (item,) = read(ParquetRows(tmp_path / "rows.parquet"))
    assert isinstance(item, dict)
    check(item | {"budget": ITEM["budget"]})
    assert item["budget"] == {1: "light", 2: "high"}
