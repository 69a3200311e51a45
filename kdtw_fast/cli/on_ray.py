"""`kdtw generate --ray`: pieces of a file, decoded by tasks on a cluster, kept as they finish, joined at the end.

A piece is a task of Ray's. One whose process or machine dies is begun again, elsewhere; this process writes what comes
back, so that a line is written once whatever was tried how often.
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from kdtw_fast import __version__
from kdtw_fast.cli.jobs import Job
from kdtw_fast.cli.lines import Lines, decode, ends, read
from kdtw_fast.cli.progress import Progress, digest, digest_folder
from kdtw_fast.cli.rendering import as_json, as_text
from kdtw_fast.cli.rows import ParquetRows, is_parquet
from kdtw_fast.files import replacing
from kdtw_fast.loaders import NotUtf8Error

RETRIES = 3  # of a piece whose process died; a line that kills every process must not do so for ever
AHEAD = 2  # pieces under way for each that is decoded, so that none waits for the driver
_made: dict[str, Any] = {}  # of this process: the decoder of the job that it works for

Piece = tuple[list[str], list[tuple[int, Exception]]]


def decode_piece(job: Job, first: int, rows: list[Any]) -> Piece:
    """The rendered lines of rows that begin with the line of that number, and what was wrong with which.

    Runs in a process of Ray's, which keeps the decoder for the next piece.
    """
    key = repr(job)
    if key not in _made:
        _made.clear()
        _made[key] = job.make()
    decoder, call, _ = _made[key]
    lines = Lines(read(rows, first, job.column), len(rows), job.batch_size, first)
    render = as_json(job.method) if job.jsonl else as_text
    texts, errors = [], []
    for line in decode(decoder, lines, call, "return"):
        texts.append(str(render(line)))
        if line.error is not None:
            errors.append((line.number, line.error))
    return texts, errors


class Source:
    """A file of lines or rows that can be read again."""

    def __init__(self, file: Path):
        self._file = file
        self.parquet = ParquetRows(file) if is_parquet(file) else None
        self.total = self.parquet.total if self.parquet is not None else _count(file)

    def pieces(self, size: int) -> Iterator[tuple[int, list[Any]]]:
        """The rows, so many at a time, with the number of the first, from 1."""
        if self.parquet is not None:
            yield from _pieces(iter(self.parquet), size)
            return
        with self._file.open("rb") as stream:
            yield from _pieces(iter(stream), size)


def generate_on_ray(
    address: str,
    job: Job,
    file: Path,
    output: Path,
    piece_rows: int,
    on_error: str | None,
    sentence: Callable[[Exception], str],
    tell: Callable[[str], None],
    advance: Callable[[int, int], None],
) -> bool:
    """Decodes a file into another on a cluster; started again after an interruption, it goes on.

    Args:
        address: of the cluster; "auto" = the one of this machine, "local" = one of this process's own.
        job: how.
        file: lines, or rows of JSON or Parquet.
        output: what is written when all is there; until then its pieces are in ``OUTPUT.pieces``.
        piece_rows: lines of a piece.
        on_error: "raise": the first line that is wrong ends the run; "return": it is told and the others go on; None:
            the one or the other, as `ends` says.
        sentence: an error, in words.
        tell: says such a sentence.
        advance: called with lines that are finished and how many there are in all.

    Returns:
        Whether something was wrong with a line, and was told.

    Raises:
        ValueError: a line is wrong, or the folder has the progress of another run.
        ConnectionError: there is no such cluster.
        ChildProcessError: the process that decodes a piece died again and again.
    """
    source = Source(file)
    models = {f"{n} ({folder.name})": digest_folder(folder) for n, folder in enumerate(job.folders(), start=1)}
    made_from = {"version": __version__, "input": digest(file), "models": models, "piece_rows": piece_rows}
    progress = Progress(output, made_from | {"options": job.described()})
    wrong = False
    with progress.held():
        try:
            _decode_all(address, job, source, progress, piece_rows, on_error, sentence, advance)
            with replacing(output) as stream:
                for first, rows in source.pieces(piece_rows):
                    piece = progress.piece(first, len(rows))
                    if piece is None:
                        raise OSError(f"{file} changed while it was read, or a piece of {progress.folder} has gone")
                    for _, said, _ in piece["errors"]:
                        tell(said)
                        wrong = True
                    stream.writelines(f"{line}\n" for line in piece["lines"])
        except BaseException as error:
            if progress.begun:
                error.add_note(f"what was finished is in {progress.folder}, and the same command goes on from there")
            else:
                progress.remove()
            raise
        progress.remove()
    return wrong


def _decode_all(
    address: str,
    job: Job,
    source: Source,
    progress: Progress,
    piece_rows: int,
    on_error: str | None,
    sentence: Callable[[Exception], str],
    advance: Callable[[int, int], None],
) -> None:
    """Makes the pieces that are not there."""
    wrong: dict[int, str] = {}  # a piece's first line -> its first error that ends the run
    waiting: dict[Any, tuple[int, int]] = {}

    def take(first: int, count: int, errors: list[Any]) -> None:
        if ending := [said for _, said, no_text in errors if ends(no_text, on_error)]:
            wrong[first] = ending[0]
        advance(count, source.total)

    def wait() -> None:
        (done, *_), _ = ray.wait(list(waiting), num_returns=1)
        first, count = waiting.pop(done)
        texts, errors = _result(done, first, count)
        said = [(number, sentence(error), isinstance(error, NotUtf8Error)) for number, error in errors]
        progress.finish(first, texts, said)
        take(first, count, said)

    cpus = job.num_threads or 1
    with connected(address, cpus):
        gpus = 0 if job.device == "cpu" else 1
        task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=RETRIES)(decode_piece)
        asked = ray.put(replace(job.placed(), num_threads=cpus))  # of a task, however many its machine has
        try:
            for first, rows in source.pieces(piece_rows):
                finished = progress.piece(first, len(rows))
                if finished is not None:
                    take(first, len(rows), finished["errors"])
                else:
                    waiting[task.remote(asked, first, rows)] = first, len(rows)
                while not wrong and len(waiting) >= _most(cpus):
                    wait()
                if wrong:
                    break
            while any(not wrong or first < min(wrong) for first, _ in waiting.values()):
                wait()
        finally:
            for one in waiting:
                ray.cancel(one, force=True)
    if wrong:
        raise ValueError(wrong[min(wrong)])


def _result(done: Any, first: int, count: int) -> Piece:
    try:
        found: Piece = ray.get(done)
        return found
    except RayTaskError as error:  # what the piece's own code raised, as it was there
        raise (error.cause or error) from None
    except RayError as error:
        lines = f"lines {first} to {first + count - 1}"
        said = " ".join(str(error).split())
        raise ChildProcessError(
            f"{lines}: the process that decodes them ended {1 + RETRIES} times, the last time so: {said:.300}"
        ) from None


def _most(cpus: int) -> int:
    """How many pieces to have under way on the cluster as it is now."""
    return AHEAD * max(1, int(ray.cluster_resources().get("CPU", 1)) // cpus)


@contextmanager
def connected(address: str, cpus: int = 1) -> Iterator[None]:
    """A connection to a cluster, a local one of at least so many CPUs; one that there is stays as it is."""
    if ray.is_initialized():
        yield
        return
    check_answers(address)
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    told: dict[str, Any] = {"logging_level": "ERROR", "log_to_driver": False}
    if address == "local":
        told |= {"include_dashboard": False, "num_cpus": max(cpus, len(os.sched_getaffinity(0)))}
    try:
        ray.init(address=address, **told)
    except (ConnectionError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise ConnectionError(f"no Ray cluster answers at {address!r}: {said:.300}") from None
    try:
        yield
    finally:
        ray.shutdown()


def check_answers(address: str) -> None:
    """Raises ConnectionError where nobody listens at HOST:PORT, which Ray would try for minutes."""
    if (found := re.fullmatch(r"([^:/]+):(\d+)", address)) is None:
        return
    try:
        socket.create_connection((found[1], int(found[2])), 5).close()
    except (OSError, OverflowError) as error:
        raise ConnectionError(f"no Ray cluster answers at {address!r}: {error}") from None


def _count(file: Path) -> int:
    """The lines of a file."""
    count, last = 0, b"\n"
    with file.open("rb") as stream:
        while part := stream.read(1 << 20):
            count, last = count + part.count(b"\n"), part[-1:]
    return count + (last != b"\n")


def _pieces(rows: Iterator[Any], size: int) -> Iterator[tuple[int, list[Any]]]:
    first = 1
    while piece := list(islice(rows, size)):
        yield first, piece
        first += len(piece)
