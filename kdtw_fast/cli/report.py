"""`kdtw report`: the results of a comparison as one HTML file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from kdtw_fast.extras import require
from kdtw_fast.files import check_target
from kdtw_fast.options import check_int


def report(
    results: Annotated[Path, typer.Argument(help="results.jsonl of kdtw compare, or the folder that it lies in.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write. Default: report.html beside it.")
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
    require("comparing", "kdtw report")
    from kdtw_fast.comparison.plan import check_metric
    from kdtw_fast.comparison.records import read, results_file

    check_int("sentences", sentences, 0)
    check_metric(metric)
    path = results_file(results)
    target = path.with_name("report.html") if output is None else output
    check_target("output", target, path)
    from kdtw_fast.comparison.html import write_report

    write_report(read(path), target, metric, sentences)
    print(f"written: {target} ({target.stat().st_size / 1e6:.1f} MB)")
