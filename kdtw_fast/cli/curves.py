"""`kdtw curves`: what a training run logged, drawn."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def curves(
    folder: Annotated[Path, typer.Argument(help="The folder of a run, its out=….")],
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output", "-o", help="Where to: .png, .svg or .pdf; may be given again. Default: in the folder."
        ),
    ] = None,
) -> None:
    """Draw a run's curves from its metrics.jsonl, while it trains or afterwards.

    Loss, use and multiplier per budget, reward, consistency error, lengths, scores of validations: a panel each.

        kdtw curves runs/debian-de-en/phase2
    """
    from kdtw_fast.training.curves import plot_run

    for file in plot_run(folder, output or []):
        print(file)
