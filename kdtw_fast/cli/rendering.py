"""Decoded lines as text, JSON or marked text, and where they are written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.text import Text

from kdtw_fast.budgets import resolve_budgets
from kdtw_fast.cli.console import make_console
from kdtw_fast.cli.lines import Line
from kdtw_fast.files import replacing
from kdtw_fast.methods import Method
from kdtw_fast.owner import Owner
from kdtw_fast.owners_view import gauge, marked, spans
from kdtw_fast.visible import visible

Render = Callable[[Line], str | Text]


def as_text(line: Line) -> str:
    """The decoded text alone."""
    return line.text


def with_owners(tokenizer: Any, method: Method, budget: Any) -> Render:
    """The marked text, behind a gauge of the teachers' share, all together, where several models write."""
    asked = None if budget is None else sum(one.fraction for one in resolve_budgets(budget))

    def render(line: Line) -> Text:
        tokens, owners, index = line.tokens()
        text = marked(spans(tokens, owners, tokenizer, index))
        if line.out is None or len(method.models) < 2:
            return text
        return Text.assemble(gauge(float(line.out["teacher_fraction"][0]), asked), "  ", text)

    return render


def as_json(method: str) -> Render:
    """A line as a JSON object: text, tokens, owners, counts."""

    def render(line: Line) -> str:
        tokens, owners, index = line.tokens()
        record: dict[str, Any] = {"line": line.number, "source": line.source, "text": line.text}
        ran = None if line.out is None else line.out.prediction
        record["method"] = method if ran is None else ran.method
        record |= {"tokens": tokens, "owners": [Owner(code).name.lower() for code in owners]}
        for name in ("teacher_calls", "drafted", "accepted", "rolled_back"):
            record[name] = 0 if line.out is None else int(line.out[name][0])
        fraction = 0.0 if line.out is None else float(line.out["teacher_fraction"][0])
        record["teacher_fraction"] = round(fraction, 6)
        if line.out is not None and index is not None:
            record |= {"teacher_index": index, "calls_by_teacher": line.out["calls_by_teacher"][0].tolist()}
        reasons = None if line.out is None else line.out.finish_reasons
        record["finish_reason"] = "error" if line.error else "empty" if reasons is None else reasons[0]
        if line.error is not None:
            record["error"] = str(line.error)
        text = json.dumps(record, ensure_ascii=False)
        return text.encode("utf-8", "backslashreplace").decode()  # a source's lone surrogate, escaped as JSON has it

    return render


@contextmanager
def writer(output: Path | None) -> Iterator[Callable[[str | Text], None]]:
    """A function that writes one line, flushed, so that an interruption loses no finished line."""
    if output is None:
        console = make_console()

        def show(line: str | Text) -> None:
            if isinstance(line, Text):
                console.print(line, soft_wrap=True)
            else:
                print(visible(line) if console.is_terminal else line, flush=True)

        yield show
        return
    with replacing(output) as stream:

        def write(line: str | Text) -> None:
            stream.write((line.plain if isinstance(line, Text) else line) + "\n")
            stream.flush()

        yield write
