"""One input at a time, from any thread or coroutine: what services ask of a decoder."""

from __future__ import annotations

import asyncio
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Iterable, Mapping, Sequence
from typing import Any, Unpack

from kdtw_fast.inputs import check_items
from kdtw_fast.keywords import takes
from kdtw_fast.options import ON_ERROR, GenerateKeywords, GenerateOptions, check_word
from kdtw_fast.outputs import GenerationOutput
from kdtw_fast.worker import Ticket, TokenStreamer, Worker

_END = object()
_making = threading.Lock()


def _after_fork() -> None:
    """A thread of the parent may have held the lock, and there is no such thread in the child to let it go."""
    global _making
    _making = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class Submitting(ABC):
    """``submit``, ``agenerate`` and ``astream`` of what hands rows to a worker."""

    _worker: Worker | None = None

    @property
    def worker(self) -> Worker:
        """Decodes what is submitted; made when it is first asked for, with 16 slots, and may be set before.

        Decoders may share one.
        """
        with _making:
            if self._worker is None:
                self._worker = Worker()
            return self._worker

    @worker.setter
    def worker(self, worker: Worker) -> None:
        self._worker = worker

    @abstractmethod
    def _parsed(self, options: GenerateKeywords) -> GenerateOptions:
        """A call's keywords, and for what they do not say, the checkpoint's defaults."""

    def _parsed_for_one(self, options: GenerateKeywords) -> GenerateOptions:
        parsed = self._parsed(options)
        parsed.check_one_each("a row that is submitted")
        return parsed

    @abstractmethod
    def _submit(
        self, value: Any, row_id: int, budget: Any, streamer: TokenStreamer | None, options: GenerateOptions
    ) -> Ticket:
        """A call of `submit` with options that were checked."""

    @takes(GenerateOptions)
    def submit(
        self,
        value: Any,
        *,
        budget: str | float | Mapping[int, Any] | None = None,
        streamer: TokenStreamer | None = None,
        **options: Unpack[GenerateKeywords],
    ) -> Ticket:
        """Hands in one input, which is decoded together with all others that were, and returns at once.

        What comes out is what ``generate`` (or a call, for a string) gives for it alone, bit for bit. Lengths,
        sampling, seed, limits and time belong to the row; rows whose other options differ are not decoded together. A
        blank text is an output of no tokens, as in a stream.

        Args:
            value: an item as :meth:`stream` takes them: a string, a list of token ids, or a mapping with the keys of
                :class:`kdtw_fast.inputs.Item`.
            budget: for strings, as in a call.
            streamer: called in the worker's thread as ``streamer(0, position, token_id, owner)`` with each token that
                nothing can take back any more. It holds up all rows, and its exception ends this one.
            **options: the fields of :class:`kdtw_fast.GenerateOptions`.

        Returns:
            A :class:`kdtw_fast.worker.Ticket`, a ``concurrent.futures.Future`` of a one-row GenerationOutput. Its
            ``cancel()`` ends the row. ``result()`` raises FloatingPointError as ``generate`` does.

        Raises:
            TypeError, ValueError: a wrong input or option.
        """
        return self._submit(value, 0, budget, streamer, self._parsed_for_one(options))

    @takes(GenerateOptions)
    async def agenerate(
        self,
        value: Any,
        *,
        budget: str | float | Mapping[int, Any] | None = None,
        streamer: TokenStreamer | None = None,
        **options: Unpack[GenerateKeywords],
    ) -> GenerationOutput:
        """:meth:`submit`, and the output when it is there; a coroutine that is cancelled ends its row.

        Args:
            value, budget, streamer: as for :meth:`submit`.
            **options: the fields of :class:`kdtw_fast.GenerateOptions`.
        """
        parsed = self._parsed_for_one(options)
        return await asyncio.wrap_future(self._submit(value, 0, budget, streamer, parsed))

    @takes(GenerateOptions)
    async def astream(
        self,
        inputs: Iterable[Any] | AsyncIterable[Any],
        *,
        budget: str | float | Mapping[int, Any] | None = None,
        on_error: str = "raise",
        **options: Unpack[GenerateKeywords],
    ) -> AsyncIterator[GenerationOutput]:
        """The outputs of any number of items, as they finish: :meth:`stream` for coroutines.

        As many items are under way as :attr:`worker` has slots; an iteration that is left ends their rows.

        Args:
            inputs: items as for :meth:`stream`, from an iterable or an asynchronous one. An iterable that is no
                sequence is read in a thread.
            budget: for strings, as in a call.
            on_error: as for :meth:`stream`; "raise" comes at once.
            **options: the fields of :class:`kdtw_fast.GenerateOptions`.

        Yields:
            One-row GenerationOutputs, each with its ``index``.
        """
        parsed = self._parsed_for_one(options)
        check_word("on_error", on_error, ON_ERROR)
        check_items(inputs, Iterable, AsyncIterable)
        items = aiter(inputs) if isinstance(inputs, AsyncIterable) else _read(inputs)
        reading: asyncio.Future[Any] | None = asyncio.ensure_future(_next(items))
        rows: dict[asyncio.Future[Any], int] = {}
        count = 0
        try:
            while reading is not None or rows:
                wanted = [*rows] if reading is None or len(rows) >= self.worker.slots else [*rows, reading]
                done, _ = await asyncio.wait(wanted, return_when=asyncio.FIRST_COMPLETED)
                for one in done:
                    index, error = rows.pop(one, count), None
                    try:
                        result = one.result()
                        if one is reading:
                            if result is _END:
                                reading = None
                                continue
                            reading, count = asyncio.ensure_future(_next(items)), count + 1
                            ticket = self._submit(result, index, budget, None, parsed)
                            rows[asyncio.wrap_future(ticket)] = index
                            continue
                    except Exception as caught:
                        if on_error == "raise" or one is reading:
                            raise
                        error = caught
                    if error is not None:
                        yield GenerationOutput(index=index, error=error)
                    else:
                        result.index = index
                        yield result
        finally:
            for one in (*rows, *([reading] if reading is not None else [])):
                one.cancel()


async def _next(items: AsyncIterator[Any]) -> Any:
    return await anext(items, _END)


async def _read(inputs: Iterable[Any]) -> AsyncIterator[Any]:
    """The items of an iterable; the event loop does not wait for one that is slow."""
    if isinstance(inputs, Sequence):
        for value in inputs:
            yield value
        return
    values = iter(inputs)
    while (value := await asyncio.to_thread(next, values, _END)) is not _END:
        yield value
