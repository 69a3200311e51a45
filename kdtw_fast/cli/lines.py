"""Source lines as `kdtw generate` reads and decodes them, in order."""

from __future__ import annotations

import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from kdtw_fast.cli.files import check_target
from kdtw_fast.messages import Message

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

    lines: Iterable[str | ValueError]  # an error stands for a line that is no text
    total: int | None
    batch_size: int

    @classmethod
    def of(cls, texts: list[str] | None, file: Path | None, output: Path | None, batch_size: int) -> Lines:
        """The lines of arguments, a file or stdin."""
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
            return cls(_read(_stdin()), None, batch_size)
        with file.open("rb") as stream:
            lines = list(_read(stream))
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


def _read(stream: Iterable[bytes]) -> Iterator[str | ValueError]:
    for number, raw in enumerate(stream, start=1):
        try:
            yield raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
        except UnicodeDecodeError as error:
            byte = f"byte 0x{raw[error.start]:02x} at place {error.start}"
            yield ValueError(f"line {number} is not UTF-8 text ({byte}); convert the input to UTF-8")


def decode(decoder: AnyDecoder, lines: Lines, options: dict[str, Any], on_error: str = "raise") -> Iterator[Line]:
    """The lines with their outputs; empty ones are not decoded.

    An error names its line, after those before it; with ``on_error="return"`` it is the line's, and others follow.
    Options are checked at once, before the first line is asked for.
    """
    read: deque[Line] = deque()  # and not given out yet

    def items() -> Iterator[dict[str, Any]]:
        for number, source in enumerate(lines.lines, start=1):
            if isinstance(source, ValueError):
                if on_error == "raise":
                    raise source
                read.append(Line(number, "", error=source))
                continue
            read.append(Line(number, source))
            if source.strip():
                yield {"text": source, "row_id": number - 1}

    def empty_lines() -> Iterator[Line]:
        while read and not read[0].source.strip():
            yield read.popleft()

    stream = decoder.stream(items(), batch_size=lines.batch_size, in_order=True, on_error=on_error, **options)

    def decoded() -> Iterator[Line]:
        try:
            for out in stream:
                yield from empty_lines()
                line = read.popleft()
                if out.error is None:
                    yield Line(line.number, line.source, out)
                else:
                    yield Line(line.number, line.source, error=_of_line(line.number, out.error, out.index))
        except (ValueError, FloatingPointError) as error:
            yield from empty_lines()
            if not read:  # it is the next line that could not be read
                raise
            raise _of_line(read[0].number, error, stream.failed) from error
        yield from empty_lines()

    return decoded()


def _of_line(number: int, error: Exception, index: int | None) -> Exception:
    """What a stream says of its item `index`, said of the line."""
    said = Message.of(error).reworded(f"item {index}", "it").reworded(f" at row {index},", " at")
    return type(error)(Message(f"line {number}: ", said))
