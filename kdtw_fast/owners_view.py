"""Who wrote what, for people: outputs as spans of one owner, their marks and colours, and the gauge of teacher use."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from kdtw_fast.owner import Owner
from kdtw_fast.visible import visible

if TYPE_CHECKING:
    from kdtw_fast.outputs import GenerationOutput

# How a span is marked (without colour) and coloured (on a terminal).
MARKS: dict[Owner, tuple[str, str, str]] = {
    Owner.STUDENT: ("", "", ""),
    Owner.TEACHER: ("[", "]", "bold green"),
    Owner.ACCEPTED: ("(", ")", "cyan"),
    Owner.CORRECTED: ("{", "}", "bold magenta"),
    Owner.FORCED: ("<", ">", "yellow"),
}
_BLANK = "\u2581"  # sentencepiece's
LEGEND = "plain: student, [teacher], (student, checked by the teacher), {teacher's correction}, <forced>"


@dataclass(frozen=True)
class Span:
    """Text of neighbouring tokens with one owner; ``space`` is the blank before it, kept outside the mark.

    ``teacher``: the number of the one that wrote it, where there are several; 0 otherwise.
    """

    owner: Owner
    text: str
    space: str = ""
    teacher: int = 0


def spans(
    sequence: Sequence[int], owners: Sequence[int], tokenizer: Any, teacher_index: Sequence[int] | None = None
) -> list[Span]:
    """Cuts one row of an output into spans of one owner.

    Args:
        sequence: token ids [T] of one row, start token and padding included.
        owners: their owner codes [T].
        tokenizer: a Hugging Face tokenizer.
        teacher_index: the number of the teacher that wrote it [T], to tell several apart; None = do not.

    The texts and spaces of all spans, joined, are what the tokenizer decodes. An end token written by the
    teacher shows as the tokenizer's end mark, since stopping is the teacher's doing there; others do not show.
    """
    result: list[Span] = []
    done, shown = 0, ""
    ids = [token for token, owner in zip(sequence, owners, strict=True) if owner != Owner.NONE]
    numbers = teacher_index if teacher_index is not None else [0] * len(owners)
    codes = [(owner, number) for owner, number in zip(owners, numbers, strict=True) if owner != Owner.NONE]
    while done < len(ids):
        end = done + 1
        while end < len(ids) and codes[end] == codes[done]:
            end += 1
        owner, teacher = Owner(codes[done][0]), codes[done][1]
        whole = tokenizer.decode(ids[:end], skip_special_tokens=True)
        if end < len(ids):
            whole = whole.rstrip("\ufffd")  # bytes of a character that the next span finishes
        text = whole[len(shown) :] if whole.startswith(shown) else ""
        if owner.is_teacher and ids[end - 1] == tokenizer.eos_token_id:
            text += tokenizer.eos_token
        if text:
            blank = len(text) - len(text.lstrip(" "))
            result.append(Span(owner, text[blank:], text[:blank], teacher))
        shown = whole if whole.startswith(shown) else shown
        done = end
    return result


def shown_pieces(tokens: Iterable[str]) -> Iterator[str]:
    """What each piece of a vocabulary shows: blanks for its sign; a character of several bytes where it is complete."""
    pieces = list(tokens)
    waiting = b""
    for i, piece in enumerate(pieces):
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
        if byte is None:
            yield piece.replace(_BLANK, " ")
            continue
        waiting += bytes([int(byte[1], 16)])
        follows = i + 1 < len(pieces) and re.fullmatch(r"<0x[89AB][0-9A-F]>", pieces[i + 1])
        if follows and len(waiting) < 4:
            yield ""
        else:
            yield waiting.decode("utf-8", "replace")
            waiting = b""


def marked(row: Sequence[Span]) -> Text:
    """The spans as rich text, made :func:`visible`: brackets say who wrote what, colours say it again.

    Of several teachers the mark names the one: [2:text].
    """
    text = Text()
    for span in row:
        opening, closing, style = MARKS[span.owner]
        text.append(span.space)
        which = f"{span.teacher}:" if span.teacher else ""
        text.append(f"{opening}{which}{visible(span.text)}{closing}", style=style)
    return text


GAUGE_CELLS = 10


def gauge(used: float, asked: float | None = None) -> Text:
    """Teacher use as a bar of ten cells and in words; a tick stands where the budget ends.

    Args:
        used: share of the output that the teacher wrote, in [0, 1].
        asked: the budget, in [0, 1]; None = there is none.

    The width is always the same.
    """
    filled = min(GAUGE_CELLS, max(round(GAUGE_CELLS * used), int(used > 0)))
    bar = Text("━" * filled, style="green") + Text("─" * (GAUGE_CELLS - filled), style="dim")
    place = GAUGE_CELLS if asked is None else min(GAUGE_CELLS, round(GAUGE_CELLS * asked))
    tick = " " if asked is None else "┿" if place < filled else "┼"
    words = f" {100 * used:3.0f} % used" + (" " * 13 if asked is None else f", {100 * asked:3.0f} % asked")
    return Text.assemble(bar[:place], tick, bar[place:], (words, "dim"))


def print_output(out: GenerationOutput, tokenizer: Any) -> None:
    """Prints the rows of an output as :func:`marked` text, behind the :func:`gauge` where a teacher may write."""
    console = Console(highlight=False, soft_wrap=True)
    if out.error is not None:
        console.print(Text(f"{type(out.error).__name__}: {visible(str(out.error))}", style="red"))
        return
    for row, used in _rows(out, tokenizer):
        console.print(marked(row) if used is None else Text.assemble(gauge(used), "  ", marked(row)))
    console.print(Text(LEGEND, style="dim"))


# The background shows who wrote a span, the underline shows it again; text keeps the page's colour, light or dark.
_HTML_STYLES: dict[Owner, tuple[str, str]] = {
    Owner.STUDENT: ("", "student"),
    Owner.TEACHER: ("background:rgba(46,160,67,.28);text-decoration:underline", "teacher"),
    Owner.ACCEPTED: ("background:rgba(56,139,253,.2);text-decoration:underline dotted", "student, checked"),
    Owner.CORRECTED: ("background:rgba(188,76,220,.28);text-decoration:underline double", "teacher's correction"),
    Owner.FORCED: ("background:rgba(210,153,34,.28);text-decoration:underline dashed", "forced"),
}


def html_output(out: GenerationOutput, tokenizer: Any) -> str:
    """The rows of an output as HTML for a notebook: a paragraph each, spans with the owner as their title."""
    if out.error is not None:
        return f"<p>{escape(f'{type(out.error).__name__}: {visible(str(out.error))}')}</p>"
    seen: set[Owner] = set()
    lines = []
    for row, used in _rows(out, tokenizer):
        seen |= {span.owner for span in row}
        share = "" if used is None else f" <small>({100 * used:.0f} % by the teacher)</small>"
        lines.append(f"<p>{''.join(map(_span_html, row))}{share}</p>")
    key = " ".join(
        f'<span style="{style}">{name}</span>' for owner, (style, name) in _HTML_STYLES.items() if owner in seen
    )
    return "\n".join([*lines, f"<p><small>{key}</small></p>"])


def _span_html(span: Span) -> str:
    style, name = _HTML_STYLES[span.owner]
    title = f"{name} {span.teacher}" if span.teacher else name
    return f'{span.space}<span style="{style}" title="{escape(title)}">{escape(visible(span.text))}</span>'


def _rows(out: GenerationOutput, tokenizer: Any) -> Iterator[tuple[list[Span], float | None]]:
    """The spans of each row, and the share that teachers wrote, None where only one model writes."""
    assert out.sequences is not None and out.owners is not None and out.calls_by_teacher is not None
    assert out.teacher_fraction is not None and out.teacher_index is not None
    teachers = out.calls_by_teacher.shape[1]
    for sequence, owners, index, used in zip(
        out.sequences.tolist(), out.owners.tolist(), out.teacher_index.tolist(), out.teacher_fraction.tolist()
    ):
        yield spans(sequence, owners, tokenizer, index if teachers > 1 else None), used if teachers else None
