"""The input of a stream, read beside the decoding: rows that run never wait for an iterable that is slow."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from queue import Empty, SimpleQueue
from typing import Any

from kdtw_fast import _core

# Seconds that a start waits for more than its first item, and running rows for items of an input that has kept up so
# far: rows that begin together are tokenized and encoded together.
FIRST_WAIT, NEXT_WAIT = 0.02, 0.001
# Seconds after which a wait looks for signals: one that comes just before a lock is waited for does not end the wait.
HEARD_WITHIN = 0.1
_END = object()


class Feed:
    """Items of an iterable, as many as are asked for.

    A sequence is read where it is asked. Anything else is read by a thread of its own, which never reads more than was
    asked for, and rings ``bell`` for every item; where the system starts no thread, it is read like a sequence.

    A feed belongs to one thread at a time.

    Attributes:
        bell: rung when items have come since the last :meth:`take`.
        ended: the iterable has none left, or raised an exception, or the feed was closed.
    """

    def __init__(self, inputs: Iterable[Any]):
        self.bell = _core.Bell()
        self.ended = False
        self._shared = None if isinstance(inputs, Sequence) else _Shared(self.bell)
        self._inputs = iter(inputs)
        self._keeps_up = True
        self._waited_for = 0  # items asked of the thread that have not come
        self._process = os.getpid()

    def take(self, count: int, wait: bool) -> Iterator[Any]:
        """Up to ``count`` items; with ``wait`` at least one, unless the iterable ends. Raises what it raised."""
        if self._shared is not None and not self._shared.started and count > 0 and not self._shared.start(self._inputs):
            self._shared = None
        patience = FIRST_WAIT if wait else NEXT_WAIT if self._keeps_up else 0.0
        deadline = time.monotonic() + patience
        for taken in range(count):
            if self.ended:
                return
            if self._shared is None:
                value, error = _next(self._inputs)
            else:
                if os.getpid() != self._process:
                    raise RuntimeError("this stream's input is read in the process that opened it, not in a fork of it")
                if (missing := count - taken - self._waited_for) > 0:
                    self._shared.asked.release(missing)
                    self._waited_for += missing
                try:
                    if wait and taken == 0:
                        value, error = self._shared.wait()
                        deadline = time.monotonic() + patience
                    else:
                        value, error = self._shared.given.get(timeout=max(0.0, deadline - time.monotonic()))
                except Empty:
                    self._keeps_up = False
                    return
                self._waited_for -= 1
            self.ended = value is _END or error is not None
            if error is not None:
                raise error
            if value is not _END:
                yield value
        self._keeps_up = self._keeps_up or count > 0
        if self._shared is not None and self._shared.given.empty():
            self.bell.clear()

    def close(self) -> None:
        """Reads no more. An iterable that is in the middle of an item is left to end it."""
        self.ended = True
        if self._shared is not None:
            self._shared.close()

    def __del__(self) -> None:
        self.close()


class _Shared:
    """What a feed and its thread share; it holds no feed, so that a feed nobody holds is closed."""

    def __init__(self, bell: _core.Bell):
        self.bell = bell
        self.asked = threading.Semaphore(0)
        self.given: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()
        self.started = self.closed = False

    def start(self, inputs: Iterator[Any]) -> bool:
        """Whether there is a thread that reads."""
        try:
            threading.Thread(target=self._read, args=(inputs,), daemon=True, name="kdtw_fast input").start()
        except RuntimeError:  # a limit of threads
            return False
        self.started = True
        return True

    def wait(self) -> tuple[Any, BaseException | None]:
        """What comes next, however long it takes."""
        while True:
            try:
                return self.given.get(timeout=HEARD_WITHIN)
            except Empty:
                continue

    def close(self) -> None:
        self.closed = True
        self.asked.release()

    def _read(self, inputs: Iterator[Any]) -> None:
        value, error = None, None
        while value is not _END and error is None:
            self.asked.acquire()
            if self.closed:
                return
            value, error = _next(inputs)
            self.given.put((value, error))
            self.bell.ring()


def _next(inputs: Iterator[Any]) -> tuple[Any, BaseException | None]:
    try:
        return next(inputs, _END), None
    except BaseException as error:
        return None, error
