"""A few sentences in full: what the student wrote alone, what it wrote with the teacher's help, and the teacher."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from rich.text import Text

from kdtw_fast.owner import Owner
from kdtw_fast.owners_view import Span, marked, shown_pieces
from kdtw_fast.visible import visible

from .contenders import chosen
from .records import Outputs, Records, Sentence

_END = "</s>"  # T5's end token as a piece

Excerpt = list[tuple[str, Text]]  # names and lines


def examples(records: Records, pair: str, count: int = 3) -> list[Excerpt]:
    """`count` sentences of a pair's records, evenly spread over those in which the lightest budget above 0 was used.

    Raises ValueError where the records lack the student alone, the teacher alone or KDTW at such a budget.
    """
    here = [outputs for outputs in records.outputs.values() if outputs.pair == pair]
    wheels = sorted((o for o in here if o.group == "training-wheels" and o.budget), key=lambda o: o.budget or 0.0)
    alone = {group: [o for o in here if o.group == group] for group in ("student", "teacher")}
    if not (wheels and alone["student"] and alone["teacher"]):
        raise ValueError(f"examples show the student, KDTW at a budget and the teacher; the records of {pair} lack one")
    lines: list[Outputs] = [alone["student"][0], wheels[0], alone["teacher"][0]]
    asking = [i for i, sentence in enumerate(wheels[0].sentences) if "teacher" in sentence.owners]
    places = chosen(asking or range(len(wheels[0].sentences)), count)
    return [_excerpt(lines, place) for place in places]


def _excerpt(lines: Sequence[Outputs], place: int) -> Excerpt:
    first = lines[0].sentences[place]
    return [
        ("source", Text(visible(first.source))),
        *((one.label, _written(one.sentences[place], one.group == "training-wheels")) for one in lines),
        ("reference", Text(visible(first.reference))),
    ]


def _written(sentence: Sentence, mark: bool) -> Text:
    return marked(_spans(sentence)) if mark else Text(visible(sentence.text))


def _spans(sentence: Sentence) -> list[Span]:
    """The sentence cut into runs of one owner; its end shows where the teacher ended it."""
    found: list[Span] = []
    pieces = zip(sentence.owners, sentence.tokens, shown_pieces(sentence.tokens), strict=True)
    for name, group in groupby(pieces, key=lambda piece: piece[0]):
        owner = Owner[name.upper()]
        text = "".join(shown for _, token, shown in group if owner.is_teacher or token != _END)
        if not found:
            text = text.lstrip(" ")
        if text:
            blank = len(text) - len(text.lstrip(" "))
            found.append(Span(owner, text[blank:], text[:blank]))
    return found


def examples_text(found: Sequence[Excerpt]) -> str:
    """The examples as a Markdown block."""
    width = max(len(name) for example in found for name, _ in example)
    blocks = ["\n".join(f"{name:<{width}}  {text.plain}" for name, text in example) for example in found]
    return "\n".join(["```text", "\n\n".join(blocks), "```"])
