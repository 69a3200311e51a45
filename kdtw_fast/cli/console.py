"""The commands' console."""

from __future__ import annotations

import sys

from rich.console import Console


def make_console() -> Console:
    """Standard output; wide enough for the tables where it is no terminal."""
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = 120
    return console
