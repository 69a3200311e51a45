"""Source lines as `kdtw generate` reads and decodes them, in order."""

from __future__ import annotations

import json
import os
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from kdtw_fast.cli.rows import ParquetRows, is_parquet, item_of
from kdtw_fast.files import check_target
from kdtw_fast.loaders import NotUtf8Error, read_utf8
from kdtw_fast.messages import Message, OptionName

if TYPE_CHECKING:
    from kdtw_fast.decoders.interface import AnyDecoder
    from kdtw_fast.outputs import GenerationOutput


@dataclass(frozen=True)
class Line:
    """A source line: its number from 1, its text; and what came out (None for a blank line), or what was wrong."""

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
        also_read: Sequence[Path] = (),
    ) -> Lines:
        """The lines of arguments, a file or stdin; with ``column``, or of a Parquet file, rows that have options.

        The output may be none of what is read, nor of what the folders ``also_read`` hold.
        """
        if texts and column is not None:
            raise ValueError(Message(OptionName("column", column), " is of a file's rows; leave it out beside texts"))
        if texts and file is not None:
            raise ValueError(f"give texts or --file {file}, not both")
        from_stdin = not texts and (file is None or str(file) == "-")
        if output is not None:
            source: Sequence[Path | int] = _file_number(sys.stdin) if from_stdin else [] if file is None else [file]
            check_target("output", output, *source, *also_read)
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
            line = read_utf8(raw, f"line {number}", "utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
            yield line if column is None or not line.strip() else item_of(json.loads(line), column)
        except NotUtf8Error as error:
            yield error
        except (ValueError, RecursionError) as error:
            no_json = isinstance(error, json.JSONDecodeError | RecursionError)
            yield ValueError(f"line {number} is no JSON object ({error})" if no_json else f"line {number}: {error}")


def decode(
    decoder: AnyDecoder, lines: Lines, options: dict[str, Any], on_error: str | None = "raise"
) -> Iterator[Line]:
    """The lines with their outputs, in order, each as soon as it and those before it are there; a blank one is empty.

    An error names its line. One that ends the decoding (:func:`ends`) comes after the lines before it; another is its
    line's, and others follow. Options are checked at once, before the first line is asked for.
    """
    read: deque[Line] = deque()  # and not given out yet

    def items() -> Iterator[Any]:
        for number, source in enumerate(lines.lines, start=lines.first):
            if isinstance(source, ValueError):
                read.append(Line(number, "", error=source))
                yield source  # is no item: the stream says so in its turn, and the line what is wrong with it
                continue
            item = {"text": source} if isinstance(source, str) else source
            read.append(Line(number, item["text"]))
            yield {"row_id": number - 1} | item

    stream = decoder.stream(items(), batch_size=lines.batch_size, in_order=True, on_error="return", **options)

    def decoded() -> Iterator[Line]:
        with stream:
            for out in stream:
                line = read.popleft()
                error = line.error
                if error is None and out.error is not None:
                    error = _of_line(line.number, out.error, out.index)
                if error is not None and ends(isinstance(error, NotUtf8Error), on_error):
                    raise error from (out.error if line.error is None else None)
                empty = error is not None or out.finish_reasons == ["empty"]
                yield Line(line.number, line.source, None if empty else out, error)

    return decoded()


def ends(no_text: bool, on_error: str | None) -> bool:
    """Whether what is wrong with a line ends the decoding: "raise" always, "return" never; None: unless it is no text.

    What else is wrong, such as an option that does not fit, may be wrong with every line.
    """
    return on_error == "raise" or (on_error is None and not no_text)


def _of_line(number: int, error: Exception, index: int | None) -> Exception:
    """What a stream says of its item `index`, said of the line."""
    said = Message.of(error).reworded(f"item {index}", "it").reworded(f" at row {index},", " at")
    return type(error)(Message(f"line {number}: ", said))
