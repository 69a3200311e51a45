"""What a service serves: a pair's decoders by method over one worker, and the rows that are under way."""

from __future__ import annotations

import time
from collections.abc import Mapping
from itertools import chain, repeat
from typing import Any

from kdtw_fast.decoders import Decoder
from kdtw_fast.generation import bounded
from kdtw_fast.messages import Message
from kdtw_fast.methods import METHODS, make_decoder
from kdtw_fast.options import GenerateOptions, nearest
from kdtw_fast.outputs import GenerationOutput
from kdtw_fast.owner import Owner
from kdtw_fast.serve.asked import MOST_TOLD, OPTION_NAMES, Asked, unknown_model
from kdtw_fast.serve.errors import ApiError, invalid, of_option
from kdtw_fast.serve.settings import ServeOptions
from kdtw_fast.stops import output_texts
from kdtw_fast.worker import Ticket, TokenStreamer, Worker

FINISH = {"end": "stop", "stop": "stop", "length": "length", "time": "length"}  # finish_reasons, in OpenAI's words
DEFAULT_BUDGET = "light"
NAMES = {int(owner): owner.name.lower() for owner in Owner}
TEACHERS = [int(owner) for owner in Owner if owner.is_teacher]
TEACHERS_OWN = ("teacher_temperature", "teacher_top_k", "teacher_top_p")  # fields about the teacher's tokens
LONGEST_TOKEN = 64  # characters; a text that must be too long is not read for its tokens
Source = str | list[int] | list[dict[str, str]]  # a text, token ids, or the messages of a chat


class Served:
    """A pair that is served under a name.

    Args:
        name: of the model, as requests call it; ``name/method`` is the same pair decoded by that method.
        models: "student" and "teacher", or one of them.
        tokenizer: of both.
        limits: of requests.
        method: of requests that name none; None = Training Wheels where the pair can, else the first that it can, of
            both models where there are two.
        num_threads: of decoding.
        generation_config: as decoders take it.

    Attributes:
        open: places that are taken, of rows that run or wait.
        decoders: by the method's name.
        lacking: why a method is not offered, by its name.

    Raises:
        ValueError: the method cannot be offered, or none can that runs all models; or these take no such lengths.
    """

    def __init__(
        self,
        name: str,
        models: Mapping[str, Any],
        tokenizer: Any,
        limits: ServeOptions,
        method: str | None = None,
        num_threads: int | None = None,
        generation_config: Any = None,
    ):
        self.name, self.tokenizer, self.limits = name, tokenizer, limits
        self.created = int(time.time())
        self._roles = set(models)
        self.worker = Worker(limits.batch_size)
        self.decoders: dict[str, Decoder] = {}
        self.lacking = {"auto": "it chooses a method for a whole batch, and a service has none"}
        self.open = 0
        self._options: dict[tuple[Decoder, bool], GenerateOptions] = {}  # of all rows; and whether they are judged
        for one in METHODS:
            if one in self.lacking:
                continue
            try:
                decoder = make_decoder(one, models, tokenizer, num_threads, generation_config)
            except (TypeError, ValueError) as error:
                self.lacking[one] = Message.of(error)
                continue
            assert isinstance(decoder, Decoder)
            decoder.worker = self.worker
            self.decoders[one] = decoder
            for judged in (False, True):
                options = decoder._parsed(
                    {
                        "max_new_tokens": limits.max_new_tokens,
                        "max_source_length": limits.max_source_length,
                        "output_logprobs": judged,
                        "top_logprobs": MOST_TOLD if judged else 0,  # of one number, so that rows share a session
                    }
                )
                self._options[decoder, judged] = bounded(options, decoder.defaults)
        first = max(self.decoders, key=_models_of, default=None)  # the first of those with most models
        if first is None or _models_of(first) < len(models):
            told = Message(f"{name}: no method decodes with {' and '.join(models)}")
            for mark, (why, which) in zip(chain([": "], repeat("; ")), self.unfit.items()):
                told = Message(told, mark, why, f" ({', '.join(which)})")
            raise ValueError(told)
        self.method = first if method is None else self._known(method)
        decoder = self.decoders[self.method]
        # A short row shows whether the models have places for such lengths, and opens the session for those that come.
        short = {"input_ids": [decoder.model.vocab_size // 2], "max_new_tokens": 1}
        decoder._submit(short, 0, None, None, self._options[decoder, False]).result()

    @property
    def ids(self) -> list[str]:
        """Names of models that requests may use."""
        return [self.name, *(f"{self.name}/{method}" for method in self.decoders)]

    @property
    def unfit(self) -> dict[str, list[str]]:
        """Methods that are not offered though the models that they need are there, by the reason why."""
        found: dict[str, list[str]] = {}
        for one, why in self.lacking.items():
            if one != "auto" and self._roles.issuperset(METHODS[one].models):
                found.setdefault(why, []).append(one)
        return found

    @property
    def chats(self) -> bool:
        """Whether the tokenizer knows how a chat is written."""
        return bool(getattr(self.tokenizer, "chat_template", None))

    def method_of(self, asked: Asked) -> str:
        """The method that a request is decoded by; ApiError for an unknown one, or an unknown model."""
        named = None
        if asked.model is not None and asked.model != self.name:
            if asked.model not in self.ids:
                raise unknown_model(asked.model, self.ids)
            named = asked.model.removeprefix(f"{self.name}/")
        if named is not None and asked.method not in (None, named):
            raise invalid(f"model names the method {named!r} and method {asked.method!r}; name one", "method")
        try:
            return self._known(named or asked.method) if named or asked.method else self.method
        except ValueError as error:
            raise invalid(str(error), "method") from None

    def reserve(self, rows: int) -> None:
        """Takes so many places, until they are released; ApiError 429 where too many rows would wait."""
        most = self.limits.batch_size + self.limits.max_queue
        if self.open + rows > most:
            raise ApiError(
                429,
                f"{self.open} rows are under way or wait, and with {rows} more there would be more than {most}; "
                f"try again later",
                code="queue_full",
                headers={"Retry-After": "1"},
            )
        self.open += rows

    def release(self, rows: int) -> None:
        """Gives so many places back."""
        self.open -= rows

    def submit(self, asked: Asked, source: Source, streamer: TokenStreamer | None = None, number: int = 0) -> Ticket:
        """Hands in one source of a request, for its output of this number; ApiError for what its decoder refuses."""
        decoder = self.decoders[self.method_of(asked)]
        kind = "text" if isinstance(source, str) else "input_ids"
        if any(isinstance(part, dict) for part in source[:1]):
            kind = "messages"
        if isinstance(source, str) and not source.strip():
            raise invalid(f"the text is empty ({source!r})")
        most = LONGEST_TOKEN * self.limits.max_source_length
        if kind != "input_ids" and (characters := size(source)) > most:
            what, instead = ("text", "cut it into parts") if kind == "text" else ("chat", "leave out messages")
            raise invalid(f"the {what} has {characters} characters, more than {most}; {instead}")
        item = dict(asked.item) | {kind: source}
        if number > 0 and isinstance(item.get("row_id", 0), int):  # as generate names outputs of one input
            item["row_id"] = item.get("row_id", 0) + number
        budget: Any = None
        if kind != "input_ids" and decoder._keeps_limits:
            several = len(decoder.model.tau_token_ids)
            budget = DEFAULT_BUDGET if several < 2 else dict.fromkeys(range(1, 1 + several), DEFAULT_BUDGET)
        elif "budget" in item and not decoder._keeps_limits:
            raise invalid(f"a budget is nothing to the method {self.method_of(asked)!r}; leave it out", "budget")
        if not decoder.teachers and (name := next((name for name in TEACHERS_OWN if name in item), None)):
            raise invalid(f"{name} is nothing to the method {self.method_of(asked)!r}, which has no teacher", name)
        options = self._options[decoder, asked.logprobs is not None or asked.best_of > asked.n]
        own = decoder.defaults.get("max_new_tokens", options.max_new_tokens)
        if "max_new_tokens" not in item and own < options.max_new_tokens:
            item["max_new_tokens"] = own  # the checkpoint's
        try:
            return decoder._submit(item, 0, budget, streamer, options)
        except (TypeError, ValueError) as error:
            raise of_option(error, OPTION_NAMES) from None
        except Exception as error:
            if kind != "messages":
                raise
            raise invalid(f"messages: {error}", "messages") from None  # a template may raise what it likes

    def text(self, out: GenerationOutput, ticket: Ticket) -> str:
        """The text of a row's output."""
        if out.texts:
            return str(out.texts[0])
        assert ticket.options is not None
        return output_texts(self.tokenizer, out, ticket.options)[0]

    def _known(self, method: str | None) -> str:
        if method in self.decoders:
            return str(method)
        if method in self.lacking:
            raise ValueError(f"the method {method!r} is not offered here: {self.lacking[method]}")
        raise ValueError(f"unknown method {method!r}{nearest(str(method), self.decoders)}")


def _models_of(method: str) -> int:
    return len(METHODS[method].models)


def size(source: Source) -> int:
    """Characters of a text or of a chat's messages, roles included; of token ids, how many."""
    if source and isinstance(source[0], dict):
        return sum(len(word) for part in source if isinstance(part, dict) for word in part.values())
    return len(source)


def finish(out: GenerationOutput) -> str:
    """How a row ended, in OpenAI's words."""
    assert out.finish_reasons is not None
    return FINISH[out.finish_reasons[0]]


def counts(out: GenerationOutput, ticket: Ticket) -> dict[str, Any]:
    """What an output cost: the usage of one row."""
    assert out.owners is not None and out.teacher_calls is not None
    owners = out.owners.tolist()[0][out.spans[0]]
    started = ticket.submitted if ticket.started is None else ticket.started
    ended = started if ticket.ended is None else ticket.ended
    return {
        "prompt_tokens": ticket.source_length,
        "completion_tokens": len(owners),
        "total_tokens": ticket.source_length + len(owners),
        "by_owner": {name: owners.count(owner) for owner, name in NAMES.items() if owner in owners},
        "teacher_calls": int(out.teacher_calls[0]),
        "teacher_share": sum(map(owners.count, TEACHERS)) / max(1, len(owners)),
        "queue_ms": 1000 * (started - ticket.submitted),
        "decode_ms": 1000 * (ended - started),
    }


def usage(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The usage of a request: sums of its rows, whose times overlap, and of times the longest."""
    whole: dict[str, Any] = {
        name: sum(row[name] for row in rows)
        for name in ("prompt_tokens", "completion_tokens", "total_tokens", "teacher_calls")
    }
    by_owner = {name: sum(row["by_owner"].get(name, 0) for row in rows) for name in NAMES.values()}
    whole["by_owner"] = {name: count for name, count in by_owner.items() if count}
    tokens = whole["completion_tokens"]
    whole["teacher_share"] = sum(row["teacher_share"] * row["completion_tokens"] for row in rows) / max(1, tokens)
    return whole | {name: round(max(row[name] for row in rows), 3) for name in ("queue_ms", "decode_ms")}
