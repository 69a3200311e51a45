"""Showing who wrote what: outputs cut into runs of one owner, marked with brackets and, on a terminal, coloured.

Also the console that the commands print to, and Markdown tables.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.text import Text

from kdtw_fast.outputs import Owner

# How a run is marked (without colour) and coloured (on a terminal).
MARKS: dict[Owner, tuple[str, str, str]] = {
    Owner.STUDENT: ("", "", ""),
    Owner.TEACHER: ("[", "]", "bold green"),
    Owner.ACCEPTED: ("(", ")", "cyan"),
    Owner.CORRECTED: ("{", "}", "bold magenta"),
    Owner.FORCED: ("<", ">", "yellow"),
}
LEGEND = "plain: student, [teacher], (student, checked by the teacher), {teacher's correction}, <forced>"


@dataclass(frozen=True)
class Run:
    """Text of neighbouring tokens with one owner; ``space`` is the blank before it, kept outside the mark."""

    owner: Owner
    text: str
    space: str = ""


def runs(sequence: Sequence[int], owners: Sequence[int], tokenizer: Any) -> list[Run]:
    """Cuts one row of an output into runs of one owner.

    Args:
        sequence: token ids [T] of one row, start token and padding included.
        owners: their owner codes [T].
        tokenizer: a Hugging Face tokenizer.

    The texts and spaces of all runs, joined, are what the tokenizer decodes. An end token written by the
    teacher shows as the tokenizer's end mark, since stopping is the teacher's doing there; others do not show.
    """
    result: list[Run] = []
    done, shown = 0, ""
    ids = [token for token, owner in zip(sequence, owners, strict=True) if owner != Owner.NONE]
    codes = [owner for owner in owners if owner != Owner.NONE]
    while done < len(ids):
        end = done + 1
        while end < len(ids) and codes[end] == codes[done]:
            end += 1
        owner = Owner(codes[done])
        whole = tokenizer.decode(ids[:end], skip_special_tokens=True)
        if end < len(ids):
            whole = whole.rstrip("\ufffd")  # bytes of a character that the next run finishes
        text = whole[len(shown) :] if whole.startswith(shown) else ""
        if owner in (Owner.TEACHER, Owner.CORRECTED) and ids[end - 1] == tokenizer.eos_token_id:
            text += tokenizer.eos_token
        if text:
            blank = len(text) - len(text.lstrip(" "))
            result.append(Run(owner, text[blank:], text[:blank]))
        shown = whole if whole.startswith(shown) else shown
        done = end
    return result


def marked(row: Sequence[Run]) -> Text:
    """The runs as rich text: brackets say who wrote what, colours say it again."""
    text = Text()
    for run in row:
        opening, closing, style = MARKS[run.owner]
        text.append(run.space)
        text.append(f"{opening}{run.text}{closing}", style=style)
    return text


def make_console() -> Console:
    """Standard output; wide enough for the tables where it is no terminal."""
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = 120
    return console


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]], text_columns: int = 1) -> list[str]:
    """A Markdown table; the first columns are text, the others numbers."""
    rule = "|---" * text_columns + "|---:" * (len(columns) - text_columns) + "|"
    return ["| " + " | ".join(columns) + " |", rule, *("| " + " | ".join(row) + " |" for row in rows)]
