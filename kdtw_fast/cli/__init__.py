"""The `kdtw` command: its commands, a file each, and its entry point."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from kdtw_fast import __version__
from kdtw_fast.cli import bench, compare, curves, demo, export, generate, info, project, report, selftest, serve, train
from kdtw_fast.cli.errors import OneSentence

app = typer.Typer(
    cls=OneSentence,
    name="kdtw",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Two T5 models decode together: a small student writes, a large teacher adds the tokens it is asked for.

Begin with a sentence, and who wrote what in it:

    kdtw generate --show-owners --budget moderate "Dieses Paket enthält die Dokumentation."

Then [bold]kdtw demo[/bold]: every method on a held-out sample, one table (it also needs the packages of the extra
"compare", and names those that are missing).
""",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"kdtw_fast {__version__}")
        raise typer.Exit


@app.callback()
def kdtw(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    """Takes the options that stand before the command."""


app.command(epilog=generate.EXAMPLES)(generate.generate)
app.command(epilog=serve.EXAMPLES)(serve.serve)
app.command()(demo.demo)
app.command()(bench.bench)
app.command()(compare.compare)
app.command()(report.report)
app.command()(project.project)
app.command()(selftest.selftest)
app.command()(train.train)
app.command()(curves.curves)
app.command(epilog=export.EXAMPLES)(export.export)
app.command()(info.info)


def main() -> None:
    """Entry point of `kdtw`."""
    if not sys.stderr.isatty():  # read where transformers and datasets are imported: their bars are for terminals
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    app(prog_name="kdtw")
