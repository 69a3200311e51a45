"""What a service answers where it cannot do what was asked: OpenAI's error objects."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdtw_fast.messages import Message, OptionName
from kdtw_fast.visible import visible

LONGEST_MESSAGE = 600  # characters; a message may quote what came


class ApiError(Exception):
    """An answer that is an error.

    Args:
        status: of HTTP.
        message: one sentence.
        param: the field of the request that it is about.
        code: a word for programs.
        headers: further ones of the answer.
    """

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code
        self.headers = dict(headers or {})

    def body(self) -> dict[str, Any]:
        """The error object."""
        message = visible(str(self))
        if len(message) > LONGEST_MESSAGE:
            message = f"{message[: LONGEST_MESSAGE - 1]}…"
        return {"error": {"message": message, "type": _type(self.status), "param": self.param, "code": self.code}}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    """A request that cannot be obeyed as it stands."""
    return ApiError(400, message, param, code)


def of_option(error: Exception, names: Mapping[str, str]) -> ApiError:
    """The answer to a TypeError or ValueError of a decoder; ``names``: what requests call its options."""
    said = Message.of(error)
    options = [part.name for part in said.parts if isinstance(part, OptionName)]

    def spelled(option: OptionName) -> str:
        return str(OptionName(names.get(option.name, option.name), option.value))

    param = names.get(options[0], options[0]) if options else None
    return invalid(said.spelled(spelled).removeprefix("the input: "), param)


def _type(status: int) -> str:
    known = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error", 504: "timeout_error"}
    return known.get(status, "invalid_request_error" if status < 500 else "server_error")
