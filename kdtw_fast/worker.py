"""One thread that decodes what others hand in: rows join the sessions of a worker while others run.

What a row is comes from the decoders as arguments of the core's session.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from kdtw_fast import _core
from kdtw_fast.options import MOST_ROWS, GenerateOptions, check_int
from kdtw_fast.outputs import GenerationOutput, one_by_one
from kdtw_fast.streams import RowArguments

TokenStreamer = Callable[[int, int, int, int], None]
MOST_SESSIONS = 8  # kept open; of those that no row runs in, the one used longest ago is closed first


class Ticket(Future[GenerationOutput]):
    """The output of one row that was handed in. ``cancel()`` ends the row within a step, or takes it from the queue.

    Attributes:
        submitted: when it was handed in, in seconds of ``time.monotonic()``.
        started: when it got a slot; None before.
        ended: when its last token was there; None before.
        source_length: tokens of its source, its prompt included.
        options: of the row; None where whoever handed it in did not say.
    """

    def __init__(self, source_length: int = 0, options: GenerateOptions | None = None):
        super().__init__()
        self.source_length, self.options = source_length, options
        self.submitted = time.monotonic()
        self.started: float | None = None
        self.ended: float | None = None


@dataclass(frozen=True)
class Kind:
    """What rows must share to be decoded together.

    Args:
        key: equal for rows that may share a session.
        open: opens one with so many slots.
        pad: the pad token.
    """

    key: Hashable
    open: Callable[[int], _core.Session]
    pad: int


class Worker:
    """Decodes rows from any thread in one thread of its own, which begins with the first row.

    Rows of one kind share a session and are decoded together, each admitted as soon as a slot is free, in the order in
    which they came; where rows of several kinds are there, their sessions take turns. Results depend on nothing of
    this.

    Args:
        slots: rows of one kind that are decoded together, 1 to 2^16.
    """

    def __init__(self, slots: int = 16):
        self.slots = check_int("slots", slots, 1, MOST_ROWS)
        self._shared = _Shared(self.slots)
        # At exit, too: a thread that came back from the core later would find no interpreter.
        weakref.finalize(self, self._shared.end)

    @property
    def running(self) -> int:
        """Rows that are decoded now."""
        return self._shared.running

    @property
    def waiting(self) -> int:
        """Rows that have no slot yet."""
        return self._shared.waiting

    def submit(
        self,
        kind: Kind,
        arguments: RowArguments,
        finish: Callable[[GenerationOutput], None] | None = None,
        streamer: TokenStreamer | None = None,
        options: GenerateOptions | None = None,
    ) -> Ticket:
        """Hands in a row.

        Args:
            kind: of its session.
            arguments: of ``_core.Session.add``.
            finish: called with the output in the worker's thread before the ticket has it.
            streamer: called in the worker's thread as ``streamer(0, position, token, owner)`` with each token that
                nothing can take back any more. What it raises ends the row, and the ticket has it.
            options: for the ticket.

        Raises:
            RuntimeError: the worker is closed, or belongs to the process that this one was forked from; or it has no
                thread yet and the system starts none (the next row asks for one again).
        """
        if os.getpid() != self._shared.process:
            raise RuntimeError("a worker belongs to the process that made it, not to a fork of it; make one here")
        if streamer is not None and not callable(streamer):
            raise TypeError(f"streamer must be callable, got {type(streamer).__name__}")
        ticket = Ticket(len(arguments[2]), options)
        self._shared.put(_Job(ticket, kind, arguments, finish, streamer))
        return ticket

    def close(self) -> None:
        """Ends all rows: tickets that wait for them are cancelled. Returns when the thread has ended."""
        self._shared.end()


@dataclass(eq=False)
class _Job:
    ticket: Ticket
    kind: Kind
    arguments: RowArguments
    finish: Callable[[GenerationOutput], None] | None
    streamer: TokenStreamer | None

    def give(self, out: GenerationOutput) -> None:
        self.ticket.ended = time.monotonic()
        try:
            if self.finish is not None:
                self.finish(out)
        except Exception as error:
            self.fail(error)
            return
        with suppress(InvalidStateError):  # cancelled
            self.ticket.set_result(out)

    def fail(self, error: BaseException) -> None:
        self.ticket.ended = time.monotonic()
        with suppress(InvalidStateError):
            self.ticket.set_exception(error)


class _Line:
    """A kind's session, the rows in it and those that wait for it."""

    def __init__(self, kind: Kind, slots: int):
        self.kind = kind
        self.session = kind.open(slots)
        self.waiting: deque[_Job] = deque()
        self.running: dict[int, _Job] = {}
        self.failed: list[tuple[int, BaseException]] = []  # rows whose streamers have raised something

    def admit(self) -> None:
        while self.waiting and self.session.free_slots > 0:
            job = self.waiting.popleft()
            if job.ticket.cancelled():
                continue
            try:
                self.running[self.session.add(*job.arguments)] = job
                job.ticket.started = time.monotonic()
            except Exception as error:
                job.fail(error)

    def drop(self) -> None:
        """Ends the rows that nobody waits for any more."""
        for row, error in self.failed:
            if row in self.running:
                self.running[row].fail(error)
                self.session.drop(row)
                del self.running[row]
        self.failed.clear()
        for row in [row for row, job in self.running.items() if job.ticket.cancelled()]:
            self.session.drop(row)
            del self.running[row]

    def forget(self) -> None:
        """Takes the rows that nobody waits for any more from the queue, however long it is until a slot is free."""
        self.waiting = deque(job for job in self.waiting if not job.ticket.cancelled())

    def decode(self, bell: _core.Bell, one_turn: bool) -> None:
        streamed = any(job.streamer is not None for job in self.running.values())
        put = partial(self._put, bell) if streamed else None
        result = self.session.run(False, self.kind.pad, put, bell, one_turn)
        for row, fault in result["faults"]:
            self.running.pop(row).fail(FloatingPointError(fault.replace(f"row {row},", "this row,", 1)))
        failed = dict(self.failed)
        for row, out in one_by_one(result):
            out.index = 0
            job = self.running.pop(row)
            if row in failed:  # its streamer raised, and the row ended before it could be dropped
                job.fail(failed[row])
            else:
                job.give(out)

    def _put(self, bell: _core.Bell, row: int, position: int, token: int, owner: int) -> None:
        job = self.running[row]
        if job.streamer is None or job.ticket.cancelled():
            return
        try:
            job.streamer(0, position, token, owner)
        except BaseException as error:
            job.streamer = None
            self.failed.append((row, error))
            bell.ring()  # so that the run ends and the row with it

    def fail(self, error: BaseException) -> None:
        for job in (*self.running.values(), *self.waiting):
            job.fail(error)
        self.running.clear()
        self.waiting.clear()


class _Shared:
    """What a worker and its thread share; it holds no worker, so that one that nobody holds is closed."""

    def __init__(self, slots: int):
        self.slots = slots
        self.changed = threading.Condition()
        self.bell = _core.Bell()
        self.arrived: list[_Job] = []
        self.news = False  # rows have arrived, or were cancelled
        self.cancelled = False  # some were
        self.closed = False
        self.running = self.queued = 0
        self.lines: dict[Hashable, _Line] = {}  # the one used last stands last
        self.process = os.getpid()
        self.thread: threading.Thread | None = None

    @property
    def waiting(self) -> int:
        return self.queued + len(self.arrived)

    def put(self, job: _Job) -> None:
        with self.changed:
            if self.closed:
                raise RuntimeError("this worker is closed; make another one")
            if self.thread is None:
                # Before it starts, which waits for it: Ctrl-C there leaves one that runs.
                self.thread = threading.Thread(target=self._work, daemon=True, name="kdtw_fast worker")
                try:
                    self.thread.start()
                except RuntimeError as error:  # a limit of threads
                    self.thread = None
                    raise RuntimeError(
                        f"this worker needs a thread of its own, and the system starts none ({error}); end other "
                        f"threads, or call generate, which decodes in the thread that calls"
                    ) from None
            self.arrived.append(job)
            self.news = True
            self.changed.notify()
        self.bell.ring()
        job.ticket.add_done_callback(self._tell_if_cancelled)

    def _tell_if_cancelled(self, ticket: Future[GenerationOutput]) -> None:
        if ticket.cancelled():
            with self.changed:
                self.cancelled = True
            self._tell()

    def _tell(self) -> None:
        with self.changed:
            self.news = True
            self.changed.notify()
        self.bell.ring()

    def end(self) -> None:
        if os.getpid() != self.process:  # a fork has no such thread, and one of the parent's may have had the lock
            return
        with self.changed:  # what was handed in before is there for the thread to cancel
            self.closed = True
        self._tell()
        if self.thread is not None and self.thread is not threading.current_thread():
            self.thread.join()

    def _work(self) -> None:
        while True:
            with self.changed:
                while not (self.news or self.closed or self.running or self.queued):
                    self.changed.wait()
                self.news = False
                cancelled, self.cancelled = self.cancelled, False
                arrived, self.arrived = self.arrived, []
            if self.closed:
                break
            for job in arrived:
                self._sort(job)
            for line in self.lines.values():
                if cancelled:
                    line.forget()
                line.drop()
                line.admit()
            self._count()
            busy = [line for line in self.lines.values() if line.running]
            for line in busy:
                try:
                    line.decode(self.bell, one_turn=len(busy) > 1)
                except BaseException as error:
                    del self.lines[line.kind.key]  # its session has ended
                    line.fail(error)
            self._count()
        with self.changed:  # no more will come
            arrived += self.arrived
            self.arrived = []
        for job in arrived:
            job.ticket.cancel()
        for line in self.lines.values():
            for job in (*line.running.values(), *line.waiting):
                job.ticket.cancel()
        self.lines.clear()
        self.running = self.queued = 0

    def _sort(self, job: _Job) -> None:
        key = job.kind.key
        try:
            line = self.lines.pop(key) if key in self.lines else _Line(job.kind, self.slots)
        except BaseException as error:
            job.fail(error)
            return
        idle = [old for old, one in self.lines.items() if not one.running and not one.waiting]
        for old in idle[: max(0, len(self.lines) + 1 - MOST_SESSIONS)]:
            del self.lines[old]
        self.lines[key] = line
        line.waiting.append(job)

    def _count(self) -> None:
        self.running = sum(len(line.running) for line in self.lines.values())
        self.queued = sum(len(line.waiting) for line in self.lines.values())
