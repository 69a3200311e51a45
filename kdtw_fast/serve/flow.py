"""Between the worker's thread and the event loop, and between the event loop and who may have gone."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kdtw_fast.outputs import GenerationOutput
from kdtw_fast.serve.errors import ApiError
from kdtw_fast.worker import Ticket, TokenStreamer

BODY_TIMEOUT = 30.0  # seconds for a request's body to come


class GoneError(Exception):
    """The client has."""


class Flow:
    """Tokens and ends of a request's rows, from the worker's thread to the event loop that made it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._news: deque[tuple[int, int, int, Ticket | None]] = deque()
        self._here = asyncio.Event()
        self._told = False

    def streamer(self, index: int) -> TokenStreamer:
        """What puts the tokens of the row of that index in."""
        return lambda row, position, token, owner: self._put((index, token, owner, None))

    def end(self, index: int, ticket: Ticket) -> None:
        """Puts the row's end in when it has ended."""
        ticket.add_done_callback(lambda _: self._put((index, 0, 0, ticket)))

    async def __aiter__(self) -> AsyncIterator[list[tuple[int, int, int, Ticket | None]]]:
        """All that has come since the last time: a request that is behind takes as many steps as one that is not."""
        while True:
            await self._here.wait()
            self._here.clear()
            yield [self._news.popleft() for _ in range(len(self._news))]

    def _put(self, news: tuple[int, int, int, Ticket | None]) -> None:
        self._news.append(news)
        if not self._told:  # the loop is told of many tokens at once
            self._told = True
            self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        self._told = False
        self._here.set()


class Events(Response):
    """Server-sent events, as long as the client is there.

    Args:
        events: their data; what comes together is sent together.
        timeout: seconds, after which the connection of a client that does not read ends.
        at_end: called in the end, whatever it was.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[list[str]], timeout: float, at_end: Callable[[], None]):
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._events, self._timeout, self._at_end = events, timeout, at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends them."""
        sending = asyncio.ensure_future(self._send(send))
        leaving = asyncio.ensure_future(_gone(receive))
        try:
            await asyncio.wait({sending, leaving}, timeout=self._timeout, return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._at_end()
            for task in (sending, leaving):
                task.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for several in self._events:
            body = "".join(f"data: {data}\n\n" for data in several).encode()
            await send({"type": "http.response.body", "body": body, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def outputs(request: Request, tickets: Sequence[Ticket], timeout: float) -> list[GenerationOutput]:
    """The rows' outputs, when all are there.

    Raises:
        ApiError: they took longer than so many seconds.
        GoneError: the client did not wait.
    """
    work: asyncio.Future[Any] = asyncio.gather(*(asyncio.wrap_future(ticket) for ticket in tickets))
    leaving: asyncio.Future[Any] = asyncio.ensure_future(_gone(request.receive))
    try:
        done, _ = await asyncio.wait({work, leaving}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if work in done:
            return list(work.result())
        if leaving in done:
            raise GoneError
        raise late(timeout)
    finally:
        work.cancel()
        leaving.cancel()
        await asyncio.gather(work, leaving, return_exceptions=True)


def late(timeout: float) -> ApiError:
    """The answer to a request whose time is over."""
    return ApiError(504, f"the request was not done after {timeout:g} seconds", code="timeout")


async def read_body(request: Request, most: int) -> bytes:
    """The request's body; ApiError where it is larger, or does not come."""
    told = request.headers.get("content-length", "0")
    too_large = ApiError(413, f"the body has more than {most} bytes", code="request_too_large")
    if told.isdecimal() and int(told) > most:
        raise too_large
    parts, size = [], 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT):
            async for part in request.stream():
                parts.append(part)
                size += len(part)
                if size > most:
                    raise too_large
    except TimeoutError:
        raise ApiError(408, f"the body was not here after {BODY_TIMEOUT:g} seconds", code="timeout") from None
    return b"".join(parts)


async def _gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def failure(ticket: Future[Any]) -> BaseException | None:
    """What a row has ended with instead of an output."""
    return asyncio.CancelledError() if ticket.cancelled() else ticket.exception()
