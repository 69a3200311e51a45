"""Rows of JSON or Parquet: a text and the options of its own, as items of a stream."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from kdtw_fast.extras import require
from kdtw_fast.options import LIMITS, ROW_OPTIONS

OPTIONS = frozenset(("budget", "row_id", *LIMITS, *ROW_OPTIONS))  # columns that are a row's own options


def item_of(row: Any, column: str) -> dict[str, Any]:
    """The item of a stream that a row stands for; ValueError for one that is no object, or has no text there."""
    from kdtw_fast.inputs import item_of_row  # which loads PyTorch

    if not isinstance(row, dict):
        raise ValueError(f"it is {type(row).__name__}, no JSON object")
    text = row.get(column)
    if not isinstance(text, str):
        found = f"holds {type(text).__name__}, no text" if column in row else f"is missing; there are {', '.join(row)}"
        raise ValueError(f"column {column!r} {found}")
    return {"text": text} | item_of_row({name: row[name] for name in row if name in OPTIONS and name != column})


def is_parquet(file: Path) -> bool:
    """Whether a file is read as Parquet."""
    return file.suffix == ".parquet"


class ParquetRows:
    """The rows of a Parquet file as mappings, read in parts; ``total``: how many. ValueError for another file."""

    def __init__(self, file: Path):
        require("reading Parquet", str(file))
        import pyarrow
        from pyarrow.parquet import ParquetFile

        try:
            self._file = ParquetFile(file)
        except pyarrow.ArrowInvalid as error:
            raise ValueError(f"{file} is no Parquet file ({error})") from None
        self.total: int = self._file.metadata.num_rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._file.iter_batches(1024):
            yield from batch.to_pylist()
