"""`kdtw report`: the results of a comparison as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdtw_fast.options import check_int


def report(
    results: Annotated[
        Path, typer.Argument(help="results.jsonl of kdtw compare, or the folder that it lies in.", show_default=False)
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File to write. Default: report.html beside it.", show_default=False),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="Quality in the figures: rouge1, rouge2, rougeL, bleu or chrf.")
    ] = "rouge2",
    sentences: Annotated[
        int, typer.Option(help="Sentences to show side by side, evenly spread; 0 = all. Tables are about all.")
    ] = 0,
) -> None:
    """Write the results of kdtw compare as one HTML file for reading, which needs no network.

    Figures, tables, and the sentences in all methods with every token marked by who wrote it; docs/report.md explains.

        kdtw report out/compare/results.jsonl -o report.html
    """
    from kdtw_fast.comparison.html import write_report
    from kdtw_fast.comparison.records import read

    check_int("sentences", sentences, 0)
    path = results / "results.jsonl" if results.is_dir() else results
    target = path.with_name("report.html") if output is None else output
    if not target.parent.is_dir():
        raise FileNotFoundError(f"--output {target} lies in a folder that does not exist")
    if target.is_dir():
        raise IsADirectoryError(f"--output {target} is a folder; name a file in it")
    if target.exists() and path.exists() and target.samefile(path):
        raise ValueError(f"--output {target} is the file that is being read; choose another")
    write_report(read(path), target, metric, sentences)
    print(f"written: {target} ({target.stat().st_size / 1e6:.1f} MB)")
