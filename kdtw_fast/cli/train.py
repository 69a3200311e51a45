"""`kdtw train`: run a training recipe, continue it, list the recipes that ship."""

from __future__ import annotations

import json
import logging
import signal
import sys
from typing import Annotated

import typer
from rich.text import Text

from kdtw_fast.cli.console import make_console
from kdtw_fast.extras import require


def train(
    recipe: Annotated[str | None, typer.Argument(help="A shipped recipe's name, or a YAML file.")] = None,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Settings to change: steps=10 student.d_model=64")
    ] = None,
    show: Annotated[bool, typer.Option("--list", help="List the shipped recipes and stop.")] = False,
    settings: Annotated[bool, typer.Option("--settings", help="Print the resolved settings and stop.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no samples.")] = False,
) -> None:
    """Train by a recipe; the same command goes on where a run was stopped or killed.

    Writes checkpoints, metrics.jsonl and models to the recipe's [bold]out[/bold]. Ctrl-C (or SIGTERM) saves and stops.

        kdtw train debian-de-en/teacher threads=1

        kdtw train debian-de-en/gkd steps=10 student.path=runs/mine/model out=runs/try
    """
    require("training", "kdtw train")
    # Imported here: transformers and the training code take seconds that the other commands do not need.
    from kdtw_fast.training import processes, recipes

    if show:
        _list({name: recipes.summary(name) for name in recipes.recipe_names()})
        return
    if recipe is None:
        raise ValueError("name a recipe, such as debian-de-en/teacher; kdtw train --list shows them all")
    logging.basicConfig(format="kdtw: %(message)s", level=logging.WARNING)
    logging.getLogger(processes.__package__).setLevel(logging.INFO)
    resolved = recipes.resolve(recipe, overrides or [])
    if settings:
        print(recipes.to_yaml(resolved), end="")
        return
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


def _list(summaries: dict[str, str]) -> None:
    console, width = make_console(), max(map(len, summaries))
    for name, summary in summaries.items():
        console.print(Text.assemble((f"{name:<{width}}  ", "bold"), summary), soft_wrap=True)
