"""Between the worker's thread and the event loop, and between the event loop and who may have gone."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

from starlette.requests import Request
from starlette.types import Receive

from kdtw_fast.outputs import GenerationOutput
from kdtw_fast.serve.errors import ApiError
from kdtw_fast.worker import Ticket, TokenStreamer

BODY_TIMEOUT = 30.0  # seconds for a request's body to come


News = tuple[
    int, int, int, Ticket | None
]  # of a row: its index, a token and who wrote it; or its ticket, which is done


class GoneError(Exception):
    """The client has."""


class Mail:
    """What the worker's thread has for the requests of an event loop, which is woken once for all that comes together.

    To be made in that loop.
    """

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self._news: deque[tuple[Flow, News]] = deque()
        self._told = False

    def put(self, flow: Flow, news: News) -> None:
        """Hands in news for a request; from any thread."""
        self._news.append((flow, news))
        if not self._told:  # the tokens of a step come one after the other, and the first of them wakes the loop
            self._told = True
            self.loop.call_soon_threadsafe(self._hand_out)

    def _hand_out(self) -> None:
        self._told = False
        while self._news:
            flow, news = self._news.popleft()
            flow.take(news)


class Flow:
    """Tokens and ends of a request's rows, for the one coroutine that answers it."""

    def __init__(self, mail: Mail):
        self._mail = mail
        self._news: list[News] = []
        self._waits: asyncio.Future[None] | None = None
        self._gone = False

    def streamer(self, index: int) -> TokenStreamer:
        """What puts the tokens of the row of that index in."""
        return lambda row, position, token, owner: self._mail.put(self, (index, token, owner, None))

    def end(self, index: int, ticket: Ticket) -> None:
        """Puts the row's end in when it has ended."""
        ticket.add_done_callback(lambda _: self._mail.put(self, (index, 0, 0, ticket)))

    async def next(self) -> list[News]:
        """All that has come since the last time: a request that is behind takes as many steps as one that is not.

        Raises:
            GoneError: the client has left.
        """
        if not self._news and not self._gone:
            self._waits = self._mail.loop.create_future()
            await self._waits
        if self._gone:
            raise GoneError
        news, self._news = self._news, []
        return news

    @contextmanager
    def watching(self, receive: Receive) -> Iterator[None]:
        """Looks for the client to leave, meanwhile."""
        leaving = asyncio.ensure_future(_gone(receive))
        leaving.add_done_callback(self._leave)
        try:
            yield
        finally:
            leaving.cancel()

    def take(self, news: News) -> None:
        """Takes news, in the event loop's thread."""
        self._news.append(news)
        if self._waits is not None:
            self._wake()

    def _leave(self, leaving: asyncio.Future[None]) -> None:
        if not leaving.cancelled():
            self._gone = True
            self._wake()

    def _wake(self) -> None:
        waits, self._waits = self._waits, None
        if waits is not None and not waits.done():
            waits.set_result(None)


async def outputs(request: Request, flow: Flow, tickets: Sequence[Ticket]) -> list[GenerationOutput]:
    """The rows' outputs, when all are there; GoneError where the client did not wait."""
    left = len(tickets)
    with flow.watching(request.receive):
        while left:
            for _, _, _, ticket in await flow.next():
                if ticket is not None and (error := failure(ticket)) is not None:
                    raise error
                left -= ticket is not None
    return [ticket.result() for ticket in tickets]


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
