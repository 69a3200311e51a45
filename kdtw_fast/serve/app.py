"""The addresses of a service, over what it serves."""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from kdtw_fast.budgets import BUDGETS
from kdtw_fast.owner import Owner
from kdtw_fast.serve.asked import Asked, read_asked, read_json, read_messages, read_texts
from kdtw_fast.serve.errors import ApiError, invalid
from kdtw_fast.serve.flow import Events, Flow, GoneError, failure, late, outputs, read_body
from kdtw_fast.serve.likely import log_probs, mean
from kdtw_fast.serve.metrics import Metrics
from kdtw_fast.serve.pieces import Pieces
from kdtw_fast.serve.served import Served, Source, counts, finish, usage
from kdtw_fast.serve.shapes import Answer
from kdtw_fast.stops import output_texts
from kdtw_fast.worker import Ticket

LONG_TEXT = 20_000  # characters that are tokenized in the event loop; more are, in a thread
PAGE = {
    "/": ("index.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
LOG = logging.getLogger("kdtw_fast.serve")
CLOSED = 499  # counted for clients that did not wait

Handler = Callable[[Request], Awaitable[Response]]


class Service:
    """The handlers of a service.

    Args:
        served: the pair.
        api_key: what requests must bring as ``Authorization: Bearer KEY``; None = nothing. The page, its files,
            /health and /metrics ask for none.
        languages: codes of the source's and the output's language, of a pair that translates.
    """

    def __init__(self, served: Served, api_key: str | None = None, languages: tuple[str, str] | None = None):
        self.served, self.languages = served, languages
        self.metrics = Metrics(served)
        self._key = None if api_key is None else api_key.encode()
        self.draining = False

    def app(self) -> Starlette:
        """The application."""

        @asynccontextmanager
        async def life(app: Starlette) -> AsyncIterator[None]:
            yield
            self.draining = True
            await asyncio.to_thread(self.served.worker.close)

        asked = {
            ("POST", "/v1/completions"): self.completions,
            ("POST", "/v1/chat/completions"): self.chat,
            ("GET", "/v1/models"): self.models,
            ("GET", "/v1/models/{name:path}"): self.model,
            ("POST", "/translate"): self.translate,
            ("GET", "/languages"): self.known_languages,
        }
        free = {("GET", "/health"): self.health, ("GET", "/metrics"): self.show_metrics}
        free |= {("GET", "/about"): self.about, **{("GET", path): partial(_file, *told) for path, told in PAGE.items()}}
        routes = [Route(path, self._endpoint(path, to, True), methods=[verb]) for (verb, path), to in asked.items()]
        routes += [Route(path, self._endpoint(path, to, False), methods=[verb]) for (verb, path), to in free.items()]
        return Starlette(routes=routes, lifespan=life, exception_handlers={HTTPException: _no_route})

    # --- What is asked ------------------------------------------------------------------------------------

    async def completions(self, request: Request) -> Response:
        """OpenAI's completions: "prompt" is a text, token ids, or a list of such."""
        body = read_json(await self._body(request))
        asked = read_asked(body, ("prompt",), self.served.limits)
        texts = read_texts(body.get("prompt"), "prompt", self.served.limits, asked.best_of)
        return await self._answer(request, asked, texts, False)

    async def chat(self, request: Request) -> Response:
        """OpenAI's chat completions, where the tokenizer has a template for chats."""
        if not self.served.chats:
            raise ApiError(
                404,
                f"{self.served.name} has no chat template, so it is no model for chats; use /v1/completions",
                "model",
                "no_chat_template",
            )
        body = read_json(await self._body(request))
        asked = read_asked(body, ("messages",), self.served.limits)
        return await self._answer(request, asked, [read_messages(body.get("messages"))], True)

    async def translate(self, request: Request) -> Response:
        """LibreTranslate's translate: "q" is a text or a list of texts, "source" and "target" are codes."""
        if self.languages is None:
            raise ApiError(404, f"{self.served.name} does not translate; use /v1/completions", code="no_translation")
        body = await self._body(request, forms=True)
        form = request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
        given = dict(parse_qsl(body.decode("utf-8", "replace"))) if form else read_json(body)
        ours = {name: given.pop(name) for name in ("q", "source", "target", "format", "api_key") if name in given}
        source, target = self.languages
        for name, code, known in (("source", source, (source, "auto")), ("target", target, (target,))):
            if ours.get(name, code) not in known:
                raise invalid(f"{name} must be {code!r} here, got {ours[name]!r}", name)
        if ours.get("format", "text") != "text":
            raise invalid(f"format must be 'text', got {ours['format']!r}", "format")
        if "stream" in given:
            raise invalid("a translation comes whole; stream from /v1/completions", "stream")
        asked = read_asked(given, (), self.served.limits)
        if asked.best_of > 1 or asked.logprobs is not None:
            raise invalid("a translation is one text; n, best_of and logprobs are of /v1/completions", "n")
        texts = read_texts(ours.get("q"), "q", self.served.limits)
        if any(not isinstance(text, str) for text in texts):
            raise invalid("q must be a text or a list of texts", "q")
        _, translated, counted = await self._whole(request, asked, texts)
        answer = {"translatedText": translated if isinstance(ours["q"], list) else translated[0]}
        return JSONResponse(answer | {"usage": usage(counted)})

    # --- What is told -------------------------------------------------------------------------------------

    async def models(self, request: Request) -> Response:
        """The names that requests may use as "model"."""
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self.served.ids]})

    async def model(self, request: Request) -> Response:
        """One of them."""
        self.served.method_of(Asked(request.path_params["name"], None))
        return JSONResponse(self._model(request.path_params["name"]))

    async def known_languages(self, request: Request) -> Response:
        """LibreTranslate's languages."""
        if self.languages is None:
            return JSONResponse([])
        source, target = self.languages
        return JSONResponse([{"code": source, "name": source, "targets": [target]}])

    async def health(self, request: Request) -> Response:
        """Whether requests are answered."""
        served, status = self.served, "draining" if self.draining else "ok"
        told = {"running": served.worker.running, "waiting": served.worker.waiting, "slots": served.limits.batch_size}
        return JSONResponse({"status": status, "model": served.name, **told}, 503 if self.draining else 200)

    async def about(self, request: Request) -> Response:
        """What the page has to know: methods, budgets, limits."""
        served = self.served
        methods = [
            {"name": name, "asks": decoder._keeps_limits, "default": name == served.method}
            for name, decoder in served.decoders.items()
        ]
        budgets = [{"phrase": budget.phrase, "fraction": budget.fraction} for budget in BUDGETS]
        told = {"model": served.name, "methods": methods, "budgets": budgets, "needs_key": self._key is not None}
        return JSONResponse(told | {"max_tokens": served.limits.max_new_tokens, "languages": self.languages})

    async def show_metrics(self, request: Request) -> Response:
        """Prometheus' numbers."""
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    # --- How --------------------------------------------------------------------------------------------

    def _endpoint(self, path: str, handler: Handler, keyed: bool) -> Handler:
        async def answer(request: Request) -> Response:
            begun = request.state.begun = time.monotonic()
            try:
                if keyed:
                    self._check_key(request)
                response = await handler(request)
            except ApiError as error:
                response = JSONResponse(error.body(), error.status, error.headers)
            except (GoneError, ClientDisconnect):
                self.metrics.disconnect()
                response = Response(status_code=CLOSED)
            except FloatingPointError as error:
                response = JSONResponse(ApiError(500, str(error)).body(), 500)
            except Exception:
                LOG.exception("%s %s", request.method, path)
                response = JSONResponse(ApiError(500, "an error that nobody foresaw; the log has it").body(), 500)
            if not isinstance(response, Events):  # which counts itself when it has ended
                self.metrics.request(path, response.status_code, time.monotonic() - begun)
            return response

        return answer

    def _check_key(self, request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode("latin-1")
        if self._key is not None and not hmac.compare_digest(given, self._key):
            raise ApiError(
                401, "the API key is missing or wrong; send Authorization: Bearer KEY", code="invalid_api_key"
            )

    async def _body(self, request: Request, forms: bool = False) -> bytes:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        known = ("application/json", *(("application/x-www-form-urlencoded",) if forms else ()))
        if kind not in known:
            raise ApiError(415, f"the content type must be {' or '.join(known)}, got {kind or 'none'!r}")
        return await read_body(request, self.served.limits.max_body_bytes)

    async def _submit(self, asked: Asked, texts: Sequence[Source], flow: Flow | None = None) -> list[Ticket]:
        """The rows of a request, to be released; where one of them is refused, none is left.

        Those of one text stand together.
        """
        rows = len(texts) * asked.best_of
        self.served.reserve(rows)
        tickets: list[Ticket] = []
        try:
            for index in range(rows):
                text, number = texts[index // asked.best_of], index % asked.best_of
                streamer = None if flow is None else flow.streamer(index)
                hand_in = partial(self.served.submit, asked, text, streamer, number)
                ticket = hand_in() if len(text) < LONG_TEXT else await asyncio.to_thread(hand_in)
                tickets.append(ticket)
                if flow is not None:
                    flow.end(index, ticket)
        except BaseException:
            self._release(tickets, rows)
            raise
        return tickets

    def _release(self, tickets: Sequence[Ticket], rows: int) -> None:
        """Ends rows that still run, and gives their places back."""
        for ticket in tickets:
            ticket.cancel()
        self.served.release(rows)

    async def _whole(
        self, request: Request, asked: Asked, texts: Sequence[Source]
    ) -> tuple[list[Any], list[str], list[dict[str, Any]]]:
        """The outputs of all rows, their texts and usages."""
        tickets = await self._submit(asked, texts)
        try:
            found = await outputs(request, tickets, asked.timeout)
        finally:
            self._release(tickets, len(tickets))
        counted = [counts(out, ticket) for out, ticket in zip(found, tickets)]
        for row in counted:
            self.metrics.row(row)
        return found, [self._text(out, ticket) for out, ticket in zip(found, tickets)], counted

    async def _answer(self, request: Request, asked: Asked, texts: Sequence[Source], chat: bool) -> Response:
        answer = Answer(asked.model or self.served.name, chat)
        if asked.stream:
            return await self._stream(request, asked, texts, answer)
        found, said, counted = await self._whole(request, asked, texts)
        choices: list[dict[str, Any]] = []
        for begin in range(0, len(found), asked.best_of):
            for row in self._best(found[begin : begin + asked.best_of], asked.n):
                out, more = found[begin + row], dict[str, Any](usage=counted[begin + row])
                if asked.logprobs is not None:
                    more["score"] = float(out.sequences_scores[0])
                    more["logprobs"] = log_probs(out, self.served.tokenizer, asked.logprobs, answer.chat)
                choices.append(answer.choice(len(choices), said[begin + row], finish(out), more))
        return JSONResponse(answer.whole(choices, usage(counted)))

    @staticmethod
    def _best(found: Sequence[Any], count: int) -> list[int]:
        """Which of the outputs of one text are answered, best first where not all are."""
        rows = range(len(found))
        return list(rows) if count == len(found) else sorted(rows, key=lambda row: -mean(found[row]))[:count]

    async def _stream(self, request: Request, asked: Asked, texts: Sequence[Source], answer: Answer) -> Response:
        begun, path = request.state.begun, request.scope["path"]
        flow = Flow()
        tickets = await self._submit(asked, texts, flow)
        told: dict[str, int] = {}

        def at_end() -> None:
            self._release(tickets, len(tickets))
            status = told.get("status", CLOSED)
            if status == CLOSED:
                self.metrics.disconnect()
            self.metrics.request(path, status, time.monotonic() - begun)

        async def events() -> AsyncIterator[list[str]]:
            try:
                async with asyncio.timeout(asked.timeout):
                    async for pieces in self._pieces(flow, answer, tickets, asked.usage_at_end, begun):
                        yield [json.dumps(piece, ensure_ascii=False) for piece in pieces]
                yield ["[DONE]"]
                told["status"] = 200
            except TimeoutError:
                yield [json.dumps(late(asked.timeout).body())]
                told["status"] = 504
            except Exception as error:
                foreseen = isinstance(error, FloatingPointError)
                if not foreseen:
                    LOG.exception("%s", path)
                yield [json.dumps(ApiError(500, str(error) if foreseen else "the log has what went wrong").body())]
                told["status"] = 500

        return Events(events(), asked.timeout + 1, at_end)

    async def _pieces(
        self, flow: Flow, answer: Answer, tickets: Sequence[Ticket], usage_at_end: bool, begun: float
    ) -> AsyncIterator[list[dict[str, Any]]]:
        """What there is to send, as it comes: of tokens that have come together, those of one owner are one piece."""
        texts = [self._pieces_of(ticket) for ticket in tickets]
        counted: dict[int, dict[str, Any]] = {}
        if answer.chat:
            yield [answer.opening(index) for index in range(len(tickets))]
        waits_for_first = True
        async for news in flow:
            pieces = []
            for index, owner, tokens in _runs(news):
                if waits_for_first:
                    waits_for_first = False
                    self.metrics.first_token(time.monotonic() - begun)
                if text := texts[index].add(tokens, owner == Owner.FORCED):
                    pieces.append(answer.piece(index, text, {"owner": Owner(owner).name.lower()}))
            for index, _, _, ticket in news:
                if ticket is None:
                    continue
                if (error := failure(ticket)) is not None:
                    raise error
                out = ticket.result()
                counted[index] = counts(out, ticket)
                self.metrics.row(counted[index])
                rest = texts[index].end(self._text(out, ticket))
                pieces.append(answer.piece(index, rest, {"usage": counted[index]}, finish(out)))
            ended = len(counted) == len(tickets)
            if ended and usage_at_end:
                pieces.append(answer.closing(usage([counted[index] for index in range(len(tickets))])))
            if pieces:
                yield pieces
            if ended:
                break

    def _pieces_of(self, ticket: Ticket) -> Pieces:
        assert ticket.options is not None
        return Pieces(self.served.tokenizer, ticket.options.stop_texts, ticket.options.stop_token_ids)

    def _text(self, out: Any, ticket: Ticket) -> str:
        if out.texts:
            return str(out.texts[0])
        assert ticket.options is not None
        return output_texts(self.served.tokenizer, out, ticket.options)[0]

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self.served.created, "owned_by": "kdtw_fast"}


def _runs(news: Sequence[tuple[int, int, int, Ticket | None]]) -> list[tuple[int, int, list[int]]]:
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


async def _file(name: str, kind: str, request: Request) -> Response:
    return Response(files("kdtw_fast.serve").joinpath("page", name).read_bytes(), 200, PAGE_HEADERS, kind)


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    said = f"{request.method} {request.url.path} is nothing here: {error.detail}"
    return JSONResponse(ApiError(error.status_code, said).body(), error.status_code, error.headers)
