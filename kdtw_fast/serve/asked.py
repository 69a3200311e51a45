"""What a request asks for: the fields of OpenAI's bodies and our own, obeyed or refused by name."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kdtw_fast.options import check_int, check_real, nearest
from kdtw_fast.serve.errors import ApiError, invalid
from kdtw_fast.serve.settings import ServeOptions

# What requests call the fields of kdtw_fast.inputs.Item.
ITEM_FIELDS = {
    "max_tokens": "max_new_tokens",
    "min_tokens": "min_new_tokens",
    **{name: name for name in ("temperature", "top_k", "top_p", "seed", "max_time", "row_id", "budget")},
    **{name: name for name in ("teacher_temperature", "teacher_top_k", "teacher_top_p")},
    **{name: name for name in ("max_teacher_fraction", "max_teacher_calls")},
}
OPTION_NAMES = {"max_new_tokens": "max_tokens", "min_new_tokens": "min_tokens"}
# Fields of OpenAI's that are obeyed only where they ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "suffix": ("",),
    "stop": ([], ""),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "tools": ([],),
    "tool_choice": ("none",),
    "response_format": ({"type": "text"},),
}
IGNORED = ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key")  # no part of a result
OWN = ("model", "method", "stream", "stream_options", "timeout")


@dataclass(frozen=True)
class Asked:
    """A request for outputs.

    Args:
        model: what it names, or None.
        method: what it names, or None.
        item: the fields of an ``Item`` that it has, but for its source.
        stream: whether tokens are wanted as they come.
        usage_at_end: whether a stream ends with its usage.
        timeout: seconds.
    """

    model: str | None
    method: str | None
    item: dict[str, Any] = field(default_factory=dict)
    stream: bool = False
    usage_at_end: bool = False
    timeout: float = 300.0


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
    known = (*sources, *OWN, *ITEM_FIELDS, "max_completion_tokens", *NEUTRAL, *IGNORED)
    given = {name: value for name, value in body.items() if value is not None}
    for name, value in given.items():
        if name not in known:
            raise invalid(f"unknown field {name!r}{nearest(name, known)}", name, "unknown_parameter")
        if name in NEUTRAL and not any(value == plain and type(value) is type(plain) for plain in _plain(name)):
            raise invalid(f"{name}={value!r} is not supported; leave it out", name, "unsupported_parameter")
    for name in ("model", "method"):
        if not isinstance(given.get(name, ""), str):
            raise invalid(f"{name} must be a string, got {given[name]!r}", name)
    if "max_completion_tokens" in given:
        if "max_tokens" in given:
            raise invalid("give max_tokens or max_completion_tokens, not both", "max_tokens")
        given["max_tokens"] = given["max_completion_tokens"]
    item = {ours: given[name] for name, ours in ITEM_FIELDS.items() if name in given}
    for name in ("budget", "max_teacher_fraction", "max_teacher_calls"):
        if isinstance(item.get(name), dict):  # by teacher; JSON's keys are strings
            item[name] = {int(k) if k.isdecimal() and len(k) < 9 else k: v for k, v in item[name].items()}
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
    item["max_new_tokens"] = asked
    timeout = min(timeout, limits.request_timeout)
    return Asked(given.get("model"), given.get("method"), item, stream, at_end, timeout)


def read_texts(value: Any, name: str, limits: ServeOptions) -> list[str | list[int]]:
    """The sources of a request: a string, a list of token ids, or a list of such; ApiError otherwise."""
    if value is None:
        raise invalid(f"{name} is missing", name)
    one = isinstance(value, str) or (isinstance(value, list) and len(value) > 0 and all(_is_id(v) for v in value))
    values = [value] if one else value
    if not isinstance(values, list) or not values:
        raise invalid(f"{name} must be a string, a list of token ids, or a list of such", name)
    if len(values) > limits.max_prompts:
        raise invalid(f"{name} has {len(values)} texts, more than {limits.max_prompts}; send several requests", name)
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
        content = message.get("content")
        if isinstance(content, list) and all(isinstance(p, dict) and p.get("type") == "text" for p in content):
            content = "".join(str(part.get("text", "")) for part in content)
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


def _is_id(value: Any) -> bool:
    return type(value) is int
