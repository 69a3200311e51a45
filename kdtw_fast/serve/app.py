"""The addresses of a service, over what it serves."""

from __future__ import annotations

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.resources import files
from typing import Any
from urllib.parse import parse_qsl

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, Router
from starlette.types import ASGIApp, Receive, Scope, Send

from kdtw_fast.budgets import BUDGETS
from kdtw_fast.serve.asked import Asked, read_asked, read_json, read_messages, read_texts
from kdtw_fast.serve.errors import ApiError, invalid
from kdtw_fast.serve.flow import Flow, GoneError, Mail, late, outputs, read_body
from kdtw_fast.serve.likely import log_probs, mean
from kdtw_fast.serve.metrics import Metrics
from kdtw_fast.serve.served import Served, Source, counts, finish, size, usage
from kdtw_fast.serve.shapes import Answer
from kdtw_fast.serve.streamed import CLOSED, LOG, Events, Speech
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
        self._mails: Mail | None = None

    def app(self) -> ASGIApp:
        """The application: Starlette's routes without its middleware, which would wrap every piece that is sent."""

        @asynccontextmanager
        async def life(app: Any) -> AsyncIterator[None]:
            yield
            await asyncio.to_thread(self.served.worker.close)

        asked = {
            ("POST", "/v1/completions"): self.completions,
            ("POST", "/v1/chat/completions"): self.chat,
            ("GET", "/v1/models"): self.models,
            ("GET", "/v1/models/{name:path}"): self.model,
            ("GET", "/languages"): self.known_languages,
        }
        free = {("GET", "/health"): self.health, ("GET", "/metrics"): self.show_metrics}
        free |= {("POST", "/translate"): self.translate}  # which looks for a key in the body, too
        free |= {("GET", "/about"): self.about, **{("GET", path): partial(_file, *told) for path, told in PAGE.items()}}
        routes = [Route(path, _Endpoint(self, path, to, True), methods=[verb]) for (verb, path), to in asked.items()]
        routes += [Route(path, _Endpoint(self, path, to, False), methods=[verb]) for (verb, path), to in free.items()]
        router = Router(routes, lifespan=life)

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            scope["app"] = app  # so that the router raises what it has no route for
            try:
                await router(scope, receive, send)
            except HTTPException as error:
                await _no_route(scope, error)(scope, receive, send)

        return app

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
        if request.headers.get("authorization") is not None:  # before anything is read of a client that has no key
            self.check_key(request)
        body = await self._body(request, forms=True)
        form = request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded")
        given = _read_form(body) if form else read_json(body)
        self.check_key(request, given.pop("api_key", None))
        if self.languages is None:
            raise ApiError(404, f"{self.served.name} does not translate; use /v1/completions", code="no_translation")
        own = ("q", "source", "target", "format")
        ours: dict[str, Any] = {name: given.pop(name) for name in own if name in given}
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
        served = self.served
        told = {"running": served.worker.running, "waiting": served.worker.waiting, "slots": served.limits.batch_size}
        return JSONResponse({"status": "ok", "model": served.name, **told})

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

    def check_key(self, request: Request, own: Any = None) -> None:
        """Raises ApiError where a request brings the key neither in its head nor as ``own``, LibreTranslate's way."""
        given = request.headers.get("authorization", "").removeprefix("Bearer ").encode("latin-1")
        if not given and isinstance(own, str):
            given = own.encode("utf-8", "surrogatepass")
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

    async def _submit(self, asked: Asked, texts: Sequence[Source], flow: Flow, streams: bool = False) -> list[Ticket]:
        """The rows of a request, to be released, with their news in the flow; where one is refused, none is left.

        Those of one text stand together.
        """
        rows = len(texts) * asked.best_of
        self.served.reserve(rows)
        tickets: list[Ticket] = []
        try:
            for index in range(rows):
                text, number = texts[index // asked.best_of], index % asked.best_of
                hand_in = partial(self.served.submit, asked, text, flow.streamer(index) if streams else None, number)
                ticket = hand_in() if size(text) < LONG_TEXT else await _in_thread(hand_in)
                tickets.append(ticket)
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
        flow = Flow(self._mail())
        async with _in_time(request, asked):
            tickets = await self._submit(asked, texts, flow)
            try:
                found = await outputs(request, flow, tickets)
            finally:
                self._release(tickets, len(tickets))
        counted = [counts(out, ticket) for out, ticket in zip(found, tickets)]
        for row in counted:
            self.metrics.row(row)
        return found, [self.served.text(out, ticket) for out, ticket in zip(found, tickets)], counted

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
        flow = Flow(self._mail())
        async with _in_time(request, asked):
            tickets = await self._submit(asked, texts, flow, streams=True)

        def at_end(status: int) -> None:
            self._release(tickets, len(tickets))
            if status == CLOSED:
                self.metrics.disconnect()
            self.metrics.request(path, status, time.monotonic() - begun)

        speech = Speech(self.served, self.metrics, answer, tickets, asked.usage_at_end, begun)
        return Events(flow, speech, asked.timeout, at_end)

    def _mail(self) -> Mail:
        """That of the event loop that asks."""
        if self._mails is None or self._mails.loop is not asyncio.get_running_loop():
            self._mails = Mail()
        return self._mails

    def _model(self, name: str) -> dict[str, Any]:
        return {"id": name, "object": "model", "created": self.served.created, "owned_by": "kdtw_fast"}


@asynccontextmanager
async def _in_time(request: Request, asked: Asked) -> AsyncIterator[None]:
    """Ends what is inside with ApiError where the request's time, which began as it came, is over."""
    try:
        async with asyncio.timeout(asked.timeout - (time.monotonic() - request.state.begun)):
            yield
    except TimeoutError:
        raise late(asked.timeout) from None


class _Endpoint:
    """A handler as a route calls it, which answers what goes wrong, and counts.

    An object: Starlette wraps functions.
    """

    def __init__(self, service: Service, path: str, handler: Handler, keyed: bool):
        self._service, self._path, self._handler, self._keyed = service, path, handler, keyed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        begun = request.state.begun = time.monotonic()
        response = await self._answer(request)
        if not isinstance(response, Events):  # which counts itself when it has ended
            self._service.metrics.request(self._path, response.status_code, time.monotonic() - begun)
        await response(scope, receive, send)

    async def _answer(self, request: Request) -> Response:
        try:
            if self._keyed:
                self._service.check_key(request)
            return await self._handler(request)
        except ApiError as error:
            return JSONResponse(error.body(), error.status, error.headers)
        except (GoneError, ClientDisconnect):
            self._service.metrics.disconnect()
            return Response(status_code=CLOSED)
        except FloatingPointError as error:
            return JSONResponse(ApiError(500, str(error)).body(), 500)
        except Exception:
            LOG.exception("%s %s", request.method, self._path)
            return JSONResponse(ApiError(500, "an error that nobody foresaw; the log has it").body(), 500)


def _read_form(body: bytes) -> dict[str, Any]:
    """The fields of a form, of which "q" may be there several times: a list of texts."""
    given: dict[str, Any] = {}
    for name, value in parse_qsl(body.decode("utf-8", "replace")):
        if name not in given:
            given[name] = value
        elif name == "q":
            given[name] = [*given[name], value] if isinstance(given[name], list) else [given[name], value]
        else:
            raise invalid(f"{name} is there twice; give it once", name)
    return given


async def _in_thread(hand_in: Callable[[], Ticket]) -> Ticket:
    """The ticket of what is handed in, in a thread; where nobody waits for it any more, its row is ended."""
    handing = asyncio.get_running_loop().run_in_executor(None, hand_in)
    try:
        return await asyncio.shield(handing)
    except asyncio.CancelledError:
        handing.add_done_callback(_drop)
        raise


def _drop(handing: asyncio.Future[Ticket]) -> None:
    if not handing.cancelled() and handing.exception() is None:
        handing.result().cancel()


async def _file(name: str, kind: str, request: Request) -> Response:
    return Response(files("kdtw_fast.serve").joinpath("page", name).read_bytes(), 200, PAGE_HEADERS, kind)


def _no_route(scope: Scope, error: HTTPException) -> Response:
    said = f"{scope['method']} {scope['path']} is nothing here: {error.detail}"
    return JSONResponse(ApiError(error.status_code, said).body(), error.status_code, error.headers)
