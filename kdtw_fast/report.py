"""Showing who wrote what: outputs cut into runs of one owner, marked with brackets and, on a terminal, coloured.

Also the console that the commands print to.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
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
    """Text of neighbouring tokens with one owner; ``space`` is the blank before it, kept outside the mark.

    ``expert``: the number of the teacher that wrote it, where there are several; 0 otherwise.
    """

    owner: Owner
    text: str
    space: str = ""
    expert: int = 0


def runs(
    sequence: Sequence[int], owners: Sequence[int], tokenizer: Any, experts: Sequence[int] | None = None
) -> list[Run]:
    """Cuts one row of an output into runs of one owner.

    Args:
        sequence: token ids [T] of one row, start token and padding included.
        owners: their owner codes [T].
        tokenizer: a Hugging Face tokenizer.
        experts: the number of the teacher that wrote it [T], to tell several apart; None = do not.

    The texts and spaces of all runs, joined, are what the tokenizer decodes. An end token written by the
    teacher shows as the tokenizer's end mark, since stopping is the teacher's doing there; others do not show.
    """
    result: list[Run] = []
    done, shown = 0, ""
    ids = [token for token, owner in zip(sequence, owners, strict=True) if owner != Owner.NONE]
    numbers = experts if experts is not None else [0] * len(owners)
    codes = [(owner, number) for owner, number in zip(owners, numbers, strict=True) if owner != Owner.NONE]
    while done < len(ids):
        end = done + 1
        while end < len(ids) and codes[end] == codes[done]:
            end += 1
        owner, expert = Owner(codes[done][0]), codes[done][1]
        whole = tokenizer.decode(ids[:end], skip_special_tokens=True)
        if end < len(ids):
            whole = whole.rstrip("\ufffd")  # bytes of a character that the next run finishes
        text = whole[len(shown) :] if whole.startswith(shown) else ""
        if owner in (Owner.TEACHER, Owner.CORRECTED) and ids[end - 1] == tokenizer.eos_token_id:
            text += tokenizer.eos_token
        if text:
            blank = len(text) - len(text.lstrip(" "))
            result.append(Run(owner, text[blank:], text[:blank], expert))
        shown = whole if whole.startswith(shown) else shown
        done = end
    return result


def marked(row: Sequence[Run]) -> Text:
    """The runs as rich text: brackets say who wrote what, colours say it again; of several teachers [2:text]."""
    text = Text()
    for run in row:
        opening, closing, style = MARKS[run.owner]
        text.append(run.space)
        which = f"{run.expert}:" if run.expert else ""
        text.append(f"{opening}{which}{run.text}{closing}", style=style)
    return text


def make_console() -> Console:
    """Standard output; wide enough for the tables where it is no terminal."""
    console = Console(file=sys.stdout, highlight=False)
    if not console.is_terminal:
        console.width = 120
    return console
