"""What a request asks for: the fields of OpenAI's bodies and our own, obeyed or refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kdtw_fast.inputs import item_of_row
from kdtw_fast.options import TOKEN_RULES, GenerateOptions, check_int, check_real, nearest
from kdtw_fast.serve.errors import ApiError, invalid
from kdtw_fast.serve.settings import ServeOptions

# What requests call the fields of kdtw_fast.inputs.Item.
ITEM_FIELDS = {
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    **{name: name for name in ("temperature", "top_k", "top_p", "seed", "max_time", "row_id", "budget")},
    **{name: name for name in ("teacher_temperature", "teacher_top_k", "teacher_top_p")},
    **{name: name for name in ("max_teacher_fraction", "max_teacher_calls")},
    **{name: name for name in ("stop", "stop_token_ids", "forced_tokens", *TOKEN_RULES)},
}
OPTION_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
# Fields of OpenAI's that are obeyed only where they ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "echo": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "tools": ([],),
    "tool_choice": ("none",),
    "response_format": ({"type": "text"},),
}
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")  # no part of a result
OWN = ("model", "method", "stream", "stream_options", "timeout", "n", "best_of", "logprobs", "top_logprobs")
KNOWN = dict.fromkeys((*OWN, *ITEM_FIELDS, "max_completion_tokens", *NEUTRAL, *IGNORED))  # besides sources
MOST_STOPS = 16  # texts; each is looked for after every step
MOST_RULES = 1024  # entries of a rule on tokens
MOST_TOLD = 20  # likeliest tokens at each place


@dataclass(frozen=True)
class Asked:
    """A request for outputs.

    Args:
        model: what it names, or None.
        method: what it names, or None.
        item: the fields of an ``Item`` that it has, but for its source; where it says no length, the service does.
        stream: whether tokens are wanted as they come.
        usage_at_end: whether a stream ends with its usage.
        timeout: seconds.
        n: outputs of each source.
        best_of: that are decoded, of which those of the highest log-probability per token are answered.
        logprobs: likeliest tokens that are told at each place; None = nothing is.
    """

    model: str | None
    method: str | None
    item: dict[str, Any] = field(default_factory=dict)
    stream: bool = False
    usage_at_end: bool = False
    timeout: float = 300.0
    n: int = 1
    best_of: int = 1
    logprobs: int | None = None


def read_json(body: bytes) -> dict[str, Any]:
    """The JSON object of a body; ApiError for anything else."""

    def refuse(word: str) -> None:
        raise ValueError(f"{word} is no JSON")

    try:
        value = json.loads(body.decode("utf-8"), parse_constant=refuse)
    except RecursionError:
        raise invalid("the body is nested too deeply") from None
    except ValueError as error:  # of bytes, too
        raise invalid(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise invalid(f"the body must be a JSON object, got {type(value).__name__}")
    return value


def read_asked(body: Mapping[str, Any], sources: tuple[str, ...], limits: ServeOptions) -> Asked:
    """What the fields of a body ask for, apart from ``sources``, which hold texts; ApiError for what is not obeyed."""
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        if name in GenerateOptions.elsewhere:
            raise invalid(f"{name} is no field here: {GenerateOptions.elsewhere[name]}", name, "unsupported_parameter")
        if name not in KNOWN and name not in sources:
            raise invalid(f"unknown field {name!r}{nearest(name, (*sources, *KNOWN))}", name, "unknown_parameter")
        if name in NEUTRAL and not any(value == plain and type(value) is type(plain) for plain in _plain(name)):
            raise invalid(f"{name}={value!r} is not supported; leave it out", name, "unsupported_parameter")
    for name in ("model", "method"):
        if not isinstance(given.get(name, ""), str):
            raise invalid(f"{name} must be a string, got {given[name]!r}", name)
    if "max_completion_tokens" in given:
        if "max_tokens" in given:
            raise invalid("give max_tokens or max_completion_tokens, not both", "max_tokens")
        given["max_tokens"] = given["max_completion_tokens"]
    item = item_of_row({ours: given[name] for name, ours in ITEM_FIELDS.items() if name in given})
    _read_rules(item)
    asked = item.get("max_new_tokens", limits.max_new_tokens)
    stream, at_end = _flag(given, "stream"), False
    if "stream_options" in given:
        options = given["stream_options"]
        if not stream or not isinstance(options, dict) or not set(options) <= {"include_usage", "include_obfuscation"}:
            raise invalid("stream_options goes with stream=true and has include_usage only", "stream_options")
        at_end = _flag(options, "include_usage")
    try:
        check_int("max_tokens", asked, 1, limits.max_new_tokens)
        timeout = check_real("timeout", given.get("timeout", limits.request_timeout), 0.0, open_low=True)
    except (TypeError, ValueError) as error:
        name = "timeout" if str(error).startswith("timeout") else "max_tokens"
        raise invalid(str(error), name) from None
    timeout = min(timeout, limits.request_timeout)
    n, best_of = _counts(given, limits)
    told = _told(given, "messages" in sources)
    if stream and (told is not None or best_of > n):
        name = "best_of" if best_of > n else "logprobs"
        raise invalid(f"an answer with {name} comes whole; leave out stream", name, "unsupported_parameter")
    return Asked(given.get("model"), given.get("method"), item, stream, at_end, timeout, n, best_of, told)


def _read_rules(item: dict[str, Any]) -> None:
    """Stops and rules in the shapes of ``Item``, without those that ask for nothing; ApiError for too many."""
    if item.get("stop") in ("", []):
        del item["stop"]
    for name in ("stop", "stop_token_ids", *TOKEN_RULES):
        most = MOST_STOPS if name == "stop" else MOST_RULES
        if isinstance(item.get(name), list | dict) and len(item[name]) > most:
            raise invalid(f"{name} has {len(item[name])} entries, more than {most}", name)
    if isinstance(stops := item.get("stop"), str | list):
        for stop in [stops] if isinstance(stops, str) else stops:
            if isinstance(stop, str):
                check_encodable(stop, "stop")


def _counts(given: Mapping[str, Any], limits: ServeOptions) -> tuple[int, int]:
    try:
        n = check_int("n", given.get("n", 1), 1, limits.max_prompts)
        return n, check_int("best_of", given.get("best_of", n), n, limits.max_prompts)
    except (TypeError, ValueError) as error:
        raise invalid(str(error), "n" if str(error).startswith("n ") else "best_of") from None


def _told(given: Mapping[str, Any], chat: bool) -> int | None:
    """How many of the likeliest tokens are told: ``logprobs`` of completions, and of chats, which say whether."""
    if not chat and "top_logprobs" in given and given["top_logprobs"] != 0:
        raise invalid("top_logprobs belongs to chats; logprobs is the number here", "top_logprobs")
    name = "top_logprobs" if chat else "logprobs"
    if given.get("logprobs", False) is False or (chat and not _flag(given, "logprobs")):
        if chat and given.get("top_logprobs", 0) != 0:
            raise invalid("top_logprobs goes with logprobs=true", "top_logprobs")
        return None
    try:
        return check_int(name, given.get(name, 0), 0, MOST_TOLD)
    except (TypeError, ValueError) as error:
        raise invalid(str(error), name) from None


def read_texts(value: Any, name: str, limits: ServeOptions, rows: int = 1) -> list[str | list[int]]:
    """The sources of a request: a string, a list of token ids, or a list of such; ApiError otherwise.

    ``rows`` are decoded of each.
    """
    if value is None:
        raise invalid(f"{name} is missing", name)
    one = isinstance(value, str) or (isinstance(value, list) and len(value) > 0 and all(_is_id(v) for v in value))
    values = [value] if one else value
    if not isinstance(values, list) or not values:
        raise invalid(f"{name} must be a string, a list of token ids, or a list of such", name)
    if len(values) * rows > limits.max_prompts:
        many = f"{len(values)} texts" if rows == 1 else f"{len(values)} texts of {rows} outputs each"
        raise invalid(f"{name} has {many}, more than {limits.max_prompts}; send several requests", name)
    for text in values:
        if isinstance(text, str):
            check_encodable(text, name)
        elif not isinstance(text, list) or not all(_is_id(v) for v in text):
            raise invalid(f"{name} must be a string, a list of token ids, or a list of such", name)
    return values


def check_encodable(text: str, name: str) -> None:
    """Raises ApiError for half of a surrogate pair, which JSON can write and UTF-8 cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise invalid(f"{name} has half of a surrogate pair at character {error.start}", name) from None


def read_messages(value: Any) -> list[dict[str, str]]:
    """The messages of a chat, with plain texts; ApiError otherwise."""
    if not isinstance(value, list) or not value:
        raise invalid("messages must be a list of at least one message", "messages")
    messages = []
    for i, message in enumerate(value):
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            raise invalid(f"messages[{i}] must be an object with a role and a content", "messages")
        for name, told in message.items():
            if name not in ("role", "content") and told not in (None, "", []):
                wrong = f"messages[{i}] has the field {name!r}, which is not supported; leave it out"
                raise invalid(wrong, "messages", "unsupported_parameter")
        content = message.get("content")
        if isinstance(content, list) and all(map(_is_text_part, content)):
            content = "".join(part["text"] for part in content)
        if not isinstance(content, str):
            raise invalid(f"messages[{i}] must have a text as content", "messages")
        check_encodable(content, f"messages[{i}]")
        check_encodable(message["role"], f"messages[{i}]")
        messages.append({"role": message["role"], "content": content})
    return messages


def unknown_model(name: str, known: list[str]) -> ApiError:
    """The answer to a model that is not served."""
    return ApiError(404, f"the model {name!r} is not served here{nearest(name, known)}", "model", "model_not_found")


def _plain(name: str) -> tuple[Any, ...]:
    return (*NEUTRAL[name], *(float(value) for value in NEUTRAL[name] if type(value) is int))


def _flag(given: Mapping[str, Any], name: str) -> bool:
    value = given.get(name, False)
    if not isinstance(value, bool):
        raise invalid(f"{name} must be true or false, got {value!r}", name)
    return value


def _is_text_part(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)


def _is_id(value: Any) -> bool:
    return type(value) is int
