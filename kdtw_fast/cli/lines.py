"""Source lines as `kdtw generate` reads and decodes them, in order."""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from kdtw_fast.cli.files import check_target
from kdtw_fast.cli.rows import ParquetRows, is_parquet, item_of
from kdtw_fast.messages import Message, OptionName

if TYPE_CHECKING:
    from kdtw_fast.decoders.interface import AnyDecoder
    from kdtw_fast.outputs import GenerationOutput


@dataclass(frozen=True)
class Line:
    """A source line: its number from 1, its text; and what came out (None for an empty line), or what was wrong."""

    number: int
    source: str
    out: GenerationOutput | None = None
    error: Exception | None = None

    @property
    def text(self) -> str:
        """The output text on one line."""
        if self.out is None or self.out.texts is None:
            return ""
        return " ".join(self.out.texts[0].splitlines())

    def tokens(self) -> tuple[list[int], list[int], list[int] | None]:
        """Output token ids, owner codes and, of several teachers, their numbers, without start token and padding."""
        if self.out is None or self.out.sequences is None or self.out.owners is None or self.out.teacher_index is None:
            return [], [], None
        here = self.out.spans[0]
        index = self.out.teacher_index[0, here].tolist() if self.teachers > 1 else None
        return self.out.sequences[0, here].tolist(), self.out.owners[0, here].tolist(), index

    @property
    def teachers(self) -> int:
        """How many teachers there were."""
        return 0 if self.out is None or self.out.calls_by_teacher is None else self.out.calls_by_teacher.shape[1]


@dataclass(frozen=True)
class Lines:
    """Where lines come from; ``total`` where it is known before reading."""

    lines: Iterable[str | dict[str, Any] | ValueError]  # a stream's item with a text; an error of a line that is none
    total: int | None
    batch_size: int
    first: int = 1  # the first one's number

    @classmethod
    def of(
        cls,
        texts: list[str] | None,
        file: Path | None,
        output: Path | None,
        batch_size: int,
        column: str | None = None,
    ) -> Lines:
        """The lines of arguments, a file or stdin; with ``column``, or of a Parquet file, rows that have options."""
        if texts and column is not None:
            raise ValueError(Message(OptionName("column", column), " is of a file's rows; leave it out beside texts"))
        if texts and file is not None:
            raise ValueError(f"give texts or --file {file}, not both")
        from_stdin = not texts and (file is None or str(file) == "-")
        if output is not None:
            check_target("output", output, *(_file_number(sys.stdin) if from_stdin else [] if file is None else [file]))
        if texts:
            return cls([" ".join(text.splitlines()) for text in texts], None, batch_size)
        if from_stdin or file is None:
            if sys.stdin.isatty():
                print("kdtw: reading lines from the keyboard; Ctrl-D ends", file=sys.stderr)
                batch_size = 1
            return cls(read(_stdin(), column=column), None, batch_size)
        if is_parquet(file):
            rows = ParquetRows(file)
            return cls(read(rows, column=column), rows.total, batch_size)
        with file.open("rb") as stream:
            lines = list(read(stream, column=column))
        return cls(lines, len(lines), batch_size)


def _file_number(stream: TextIO) -> list[int]:
    try:
        return [stream.fileno()]
    except OSError:  # not a file of the system's
        return []


def _stdin() -> Iterable[bytes]:
    """The lines of stdin as they come, read without its buffer.

    The buffer has a lock, and a thread that waits for a line inside it would keep Python from ending after Ctrl-C.
    """
    numbers = _file_number(sys.stdin)
    if not numbers:
        yield from sys.stdin.buffer
        return
    rest = b""
    while more := os.read(numbers[0], 1 << 16):
        *whole, rest = (rest + more).split(b"\n")
        yield from whole
    if rest:
        yield rest


def read(
    stream: Iterable[bytes | dict[str, Any]], first: int = 1, column: str | None = None
) -> Iterator[str | dict[str, Any] | ValueError]:
    """Lines of bytes, or rows, as :class:`Lines` has them; with ``column`` a line is a JSON object, or blank."""
    for number, raw in enumerate(stream, start=first):
        try:
            if isinstance(raw, dict):
                yield item_of(raw, column or "text")
                continue
            line = raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            yield line if column is None or not line.strip() else item_of(json.loads(line), column)
        except UnicodeDecodeError as error:
            assert isinstance(raw, bytes)
            byte = f"byte 0x{raw[error.start]:02x} at place {error.start}"
            yield ValueError(f"line {number} is not UTF-8 text ({byte}); convert the input to UTF-8")
        except (ValueError, RecursionError) as error:
            no_json = isinstance(error, json.JSONDecodeError | RecursionError)
            yield ValueError(f"line {number} is no JSON object ({error})" if no_json else f"line {number}: {error}")


def decode(decoder: AnyDecoder, lines: Lines, options: dict[str, Any], on_error: str = "raise") -> Iterator[Line]:
    """The lines with their outputs; empty ones are not decoded.

    An error names its line, after those before it; with ``on_error="return"`` it is the line's, and others follow.
    Options are checked at once, before the first line is asked for.
    """
    waiting: deque[Line] = deque()  # read, and not given out yet

    def items() -> Iterator[dict[str, Any]]:
        for number, source in enumerate(lines.lines, start=lines.first):
            if isinstance(source, ValueError):
                if on_error == "raise":
                    raise source
                waiting.append(Line(number, "", error=source))
                continue
            item = {"text": source} if isinstance(source, str) else source
            waiting.append(Line(number, item["text"]))
            if item["text"].strip():
                yield {"row_id": number - 1} | item

    def empty_lines() -> Iterator[Line]:
        while waiting and not waiting[0].source.strip():
            yield waiting.popleft()

    stream = decoder.stream(items(), batch_size=lines.batch_size, in_order=True, on_error=on_error, **options)

    def decoded() -> Iterator[Line]:
        try:
            for out in stream:
                yield from empty_lines()
                line = waiting.popleft()
                if out.error is None:
                    yield Line(line.number, line.source, out)
                else:
                    yield Line(line.number, line.source, error=_of_line(line.number, out.error, out.index))
        except (ValueError, FloatingPointError) as error:
            yield from empty_lines()
            if not waiting:  # it is the next line that could not be read
                raise
            raise _of_line(waiting[0].number, error, stream.failed) from error
        yield from empty_lines()

    return decoded()


def _of_line(number: int, error: Exception, index: int | None) -> Exception:
    """What a stream says of its item `index`, said of the line."""
    said = Message.of(error).reworded(f"item {index}", "it").reworded(f" at row {index},", " at")
    return type(error)(Message(f"line {number}: ", said))
