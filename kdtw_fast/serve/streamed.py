"""An answer as it comes: what is said of its rows' news, and how it is sent."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Sequence
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kdtw_fast.owner import Owner
from kdtw_fast.serve.errors import ApiError
from kdtw_fast.serve.flow import Flow, GoneError, News, failure, late
from kdtw_fast.serve.metrics import Metrics
from kdtw_fast.serve.pieces import Pieces
from kdtw_fast.serve.served import Served, counts, finish, usage
from kdtw_fast.serve.shapes import Answer
from kdtw_fast.worker import Ticket

LAST_WORD = 1.0  # seconds for the end of an answer, to a client that may not read
CLOSED = 499  # counted for clients that did not wait
DONE = "data: [DONE]\n\n"
LOG = logging.getLogger("kdtw_fast.serve")

_encode = json.JSONEncoder(ensure_ascii=False).encode


class Speech:
    """What a streamed answer says.

    Args:
        served: the pair.
        metrics: count rows and first tokens.
        answer: its shape.
        tickets: its rows'.
        usage_at_end: whether it ends with the usage of all of them.
        begun: when it was asked for, in seconds of ``time.monotonic()``.

    Attributes:
        begun: the same.
        ended: whether all has been said.
    """

    def __init__(
        self,
        served: Served,
        metrics: Metrics,
        answer: Answer,
        tickets: Sequence[Ticket],
        usage_at_end: bool,
        begun: float,
    ):
        self._served, self._metrics, self._answer, self._tickets = served, metrics, answer, tickets
        self._usage_at_end, self.begun = usage_at_end, begun
        self._texts = [_pieces(served, ticket) for ticket in tickets]
        self._counted: dict[int, dict[str, Any]] = {}
        self._around: dict[tuple[int, int], tuple[str, str]] = {}
        self._waits_for_first = True
        self.ended = False

    def opening(self) -> str:
        """Its events before there is any news."""
        rows = range(len(self._tickets)) if self._answer.chat else ()
        return "".join(_event(self._answer.opening(index)) for index in rows)

    def say(self, news: Sequence[News]) -> str:
        """The events of news: of tokens that have come together, those of one owner are one piece.

        Raises what a row has ended with instead of an output.
        """
        said = []
        for index, owner, tokens in _runs(news):
            if self._waits_for_first:
                self._waits_for_first = False
                self._metrics.first_token(time.monotonic() - self.begun)
            if text := self._texts[index].add(tokens, owner == Owner.FORCED):
                said.append(self._piece(index, owner, text))
        for index, _, _, ticket in news:
            if ticket is not None:
                said.append(self._last_piece(index, ticket))
        self.ended = len(self._counted) == len(self._tickets)
        if self.ended:
            if self._usage_at_end:
                rows = [self._counted[index] for index in range(len(self._tickets))]
                said.append(_event(self._answer.closing(usage(rows))))
            said.append(DONE)
        return "".join(said)

    def _piece(self, index: int, owner: int, text: str) -> str:
        """A piece's event; all of an owner's in a row are alike but for their text."""
        around = self._around.get((index, owner))
        if around is None:
            event = _event(self._answer.piece(index, _PLACE, {"owner": Owner(owner).name.lower()}))
            before, _, after = event.partition(_encode(_PLACE))
            around = self._around[index, owner] = before, after
        return f"{around[0]}{_encode(text)}{around[1]}"

    def _last_piece(self, index: int, ticket: Ticket) -> str:
        if (error := failure(ticket)) is not None:
            raise error
        out = ticket.result()
        self._counted[index] = counted = counts(out, ticket)
        self._metrics.row(counted)
        rest = self._texts[index].end(self._served.text(out, ticket))
        return _event(self._answer.piece(index, rest, {"usage": counted}, finish(out)))


class Events(Response):
    """Server-sent events, as long as the client is there.

    Args:
        flow: news of the rows; what comes together is sent together.
        speech: what is said of it.
        timeout: seconds from when it was asked for, after which it ends with an error.
        at_end: called in the end, with the status that it counts as.
    """

    media_type = "text/event-stream"

    def __init__(self, flow: Flow, speech: Speech, timeout: float, at_end: Callable[[int], None]):
        super().__init__(headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["content-length"]
        self._flow, self._speech, self._timeout, self._at_end = flow, speech, timeout, at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends them."""
        status = CLOSED
        try:
            with self._flow.watching(receive):
                try:
                    async with asyncio.timeout(self._timeout - (time.monotonic() - self._speech.begun)):
                        last, status_then = await self._send(send), 200
                except GoneError:
                    raise
                except Exception as error:
                    last, status_then = _failed(error, self._timeout, scope)
                async with asyncio.timeout(LAST_WORD):
                    await send({"type": "http.response.body", "body": last.encode(), "more_body": False})
                status = status_then
        except (GoneError, TimeoutError):  # it has left, or does not read
            pass
        finally:
            self._at_end(status)

    async def _send(self, send: Send) -> str:
        """Sends all but the last events, which it returns."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        said = self._speech.opening()
        while not self._speech.ended:
            if said:
                await send({"type": "http.response.body", "body": said.encode(), "more_body": True})
            said = self._speech.say(await self._flow.next())
        return said


# No model's name, which is of letters, digits and ._:-/, holds it.
_PLACE = "\x00text\x00"


def _event(data: dict[str, Any]) -> str:
    return f"data: {_encode(data)}\n\n"


def _failed(error: Exception, timeout: float, scope: Scope) -> tuple[str, int]:
    """The event of an error that ends an answer, and the status that it counts as."""
    if isinstance(error, TimeoutError):
        return _event(late(timeout).body()), 504
    foreseen = isinstance(error, FloatingPointError)
    if not foreseen:
        LOG.error("%s", scope["path"], exc_info=error)
    return _event(ApiError(500, str(error) if foreseen else "the log has what went wrong").body()), 500


def _pieces(served: Served, ticket: Ticket) -> Pieces:
    assert ticket.options is not None
    return Pieces(served.tokenizer, ticket.options.stop_texts, ticket.options.stop_token_ids)


def _runs(news: Sequence[News]) -> list[tuple[int, int, list[int]]]:
    """Rows' tokens that one owner wrote, one after the other: index, owner, tokens."""
    runs: list[tuple[int, int, list[int]]] = []
    latest: dict[int, tuple[int, list[int]]] = {}
    for index, token, owner, ticket in news:
        if ticket is not None:
            continue
        if index not in latest or latest[index][0] != owner:
            latest[index] = owner, []
            runs.append((index, *latest[index]))
        latest[index][1].append(token)
    return runs
