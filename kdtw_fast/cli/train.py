"""`kdtw train`: run a training recipe, continue it, list the recipes that ship."""

from __future__ import annotations

import json
import logging
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from kdtw_fast.cli.console import make_console
from kdtw_fast.extras import require

_NEW = "A pair of your own"


def train(
    recipe: Annotated[str | None, typer.Argument(help="A shipped recipe's name, or a YAML file.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change: steps=10 student.d_model=64")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="List the shipped recipes and stop.")] = False,
    settings: Annotated[
        bool, typer.Option("--settings", help="Print the resolved settings, each explained, and stop.")
    ] = False,
    new: Annotated[
        Path | None,
        typer.Option(
            help="Write recipes for a pair and data of your own into this folder and stop.", rich_help_panel=_NEW
        ),
    ] = None,
    teacher: Annotated[
        str | None, typer.Option(help="Folder or hub name of a T5 that does the task.", rich_help_panel=_NEW)
    ] = None,
    student: Annotated[
        str | None,
        typer.Option(
            help="The same of a smaller one with its vocabulary. Default: one is trained from scratch first.",
            rich_help_panel=_NEW,
        ),
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(
            help="A JSONL (or Parquet) file with source and target, which is split, or a folder with train.jsonl and "
            "validation.jsonl.",
            rich_help_panel=_NEW,
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        typer.Option(
            help="What stands before a source, such as 'summarize: '. Default: the teacher's own, or 'translate: '.",
            rich_help_panel=_NEW,
        ),
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no samples.")] = False,
) -> None:
    """Train by a recipe; the same command goes on where a run was stopped or killed.

    Writes checkpoints, metrics.jsonl and models to the recipe's [bold]out[/bold]. Ctrl-C (or SIGTERM) saves and stops.

        kdtw train debian-de-en/teacher threads=1

        kdtw train debian-de-en/gkd steps=10 student.path=runs/mine/model out=runs/try

        kdtw train --new runs/mine --teacher my-t5 --student my-small-t5 --data examples.jsonl
    """
    from kdtw_fast.training import books

    if show:
        _list({name: books.summary(name) for name in books.recipe_names()})
        return
    given = {"--teacher": teacher, "--student": student, "--data": data, "--prompt": prompt}
    if new is not None:
        if recipe is not None:
            raise ValueError(f"--new writes recipes and runs none; leave out {recipe!r}")
        if teacher is None or data is None:
            raise ValueError("--new needs --teacher and --data; without --student one is trained from scratch first")
        _write_new(new, teacher, student, data, prompt)
        return
    for option, value in given.items():
        if value is not None:
            raise ValueError(f"{option} goes with --new; a recipe's own are settings: {option[2:]}.path=…")
    if recipe is None:
        raise ValueError("name a recipe, such as debian-de-en/teacher; kdtw train --list shows them all")
    books.check(recipe)
    # Imported here: PyTorch and the training code take seconds that a wrong name need not wait for.
    from kdtw_fast.training import processes, recipes
    from kdtw_fast.training.explained import with_meanings

    logging.basicConfig(format="kdtw: %(message)s", level=logging.WARNING)
    logging.getLogger(processes.__package__).setLevel(logging.INFO)
    resolved = recipes.resolve(recipe, overrides or [])
    if settings:
        print(f"algorithm: {resolved.algorithm}\n{with_meanings(resolved.settings)}", end="")
        return
    require("training", "kdtw train")
    outcome = recipes.train(resolved, quiet=quiet)
    if outcome.stopped_by is not None:
        name = signal.Signals(outcome.stopped_by).name
        print(
            f"kdtw: stopped by {name} at batch {outcome.step} of {resolved.settings.steps}; saved in "
            f"{resolved.settings.out}, and the same command goes on from there",
            file=sys.stderr,
        )
        raise typer.Exit(128 + outcome.stopped_by)
    for row in outcome.table if processes.rank() == 0 else []:
        print(json.dumps(row, ensure_ascii=False))


def _write_new(folder: Path, teacher: str, student: str | None, data: Path, prompt: str | None) -> None:
    from kdtw_fast.pairs import quietly
    from kdtw_fast.training.new_recipes import write_recipes

    with quietly():
        written, found = write_recipes(folder, teacher, student, data, prompt)
    print(
        f"{found.rows} training and {found.held_out} validation examples, sources of up to {found.max_source} tokens, "
        f"outputs of up to {found.max_target}; student {found.student / 1e6:.1f} M, teacher {found.teacher / 1e6:.1f} "
        f"M parameters. Read, change and run in this order:"
    )
    for path in written:
        print(f"    kdtw train {path}")
    print(
        f"Then: kdtw compare {folder}/phase2.yaml    (figure and tables; kdtw train {written[-1]} --settings explains)"
    )


def _list(summaries: dict[str, str]) -> None:
    console, width = make_console(), max(map(len, summaries))
    for name, summary in summaries.items():
        console.print(Text.assemble((f"{name:<{width}}  ", "bold"), summary), soft_wrap=True)
