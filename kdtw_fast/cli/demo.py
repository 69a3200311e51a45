"""`kdtw demo`: a quick comparison on a shipped pair, and a few of its sentences in full."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from kdtw_fast.cli.compare import compare
from kdtw_fast.cli.console import make_console
from kdtw_fast.cli.options import Dtype, PairName, TeacherDtype, Threads
from kdtw_fast.extras import require
from kdtw_fast.owners_view import LEGEND
from kdtw_fast.pairs import DEFAULT_PAIR


def demo(
    pair: PairName = None,
    out: Annotated[Path, typer.Option(help="Folder for everything that is written.")] = Path("out/demo"),
    threads: Threads = None,
    dtype: Dtype = "auto",
    teacher_dtype: TeacherDtype = None,
) -> None:
    """A quick comparison of every method on a shipped pair, then a few sentences: who wrote what.

    The same as [bold]kdtw compare --quick[/bold] with a few of its sentences in full. The sentences were never trained
    on. Takes minutes; when called again it shows what it measured before.
    """
    require("comparing", "kdtw demo")
    from kdtw_fast.comparison.examples import examples
    from kdtw_fast.comparison.records import read

    name = pair or DEFAULT_PAIR
    compare([name], out=out, quick=True, threads=threads, dtype=dtype, teacher_dtype=teacher_dtype)
    console = make_console()
    console.print(Text(f"\nWho wrote what ({LEGEND}):"), soft_wrap=True)
    for example in examples(read(out / "results.jsonl"), name):
        console.print()
        for title, line in example:
            console.print(Text.assemble((f"{title:<14} ", "dim"), line), soft_wrap=True)
    console.print(Text(f"\nAll sentences, every token with its owner: kdtw report {out}"), soft_wrap=True)
