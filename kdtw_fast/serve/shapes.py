"""The answers' shapes: a completion's and a chat's, whole and in pieces."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer:
    """One answer: of a completion, or of a chat.

    Args:
        model: what it calls the model.
        chat: whether it is a chat's.
    """

    model: str
    chat: bool = False
    created: int = field(default_factory=lambda: int(time.time()))
    name: str = field(default_factory=lambda: f"{random.getrandbits(128):032x}")

    def whole(self, choices: list[dict[str, Any]], usage: dict[str, Any]) -> dict[str, Any]:
        """All of it."""
        return self._around("chat.completion" if self.chat else "text_completion", choices) | {"usage": usage}

    def choice(self, index: int, text: str, finish: str, more: dict[str, Any]) -> dict[str, Any]:
        """An output; ``more`` are fields of ours."""
        said = {"message": {"role": "assistant", "content": text}} if self.chat else {"text": text}
        return {"index": index, **said, "finish_reason": finish, "logprobs": None, **more}

    def piece(self, index: int, text: str, more: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        """A piece of an output; its last one says how it ended."""
        said: dict[str, Any] = {"delta": {"content": text} if text else {}} if self.chat else {"text": text}
        choice = {"index": index, **said, "finish_reason": finish, "logprobs": None, **more}
        return self._piece([choice])

    def opening(self, index: int) -> dict[str, Any]:
        """A chat's first piece."""
        return self._piece([{"index": index, "delta": {"role": "assistant", "content": ""}, "finish_reason": None}])

    def closing(self, usage: dict[str, Any]) -> dict[str, Any]:
        """The last piece of a stream that ends with its usage."""
        return self._piece([]) | {"usage": usage}

    def _piece(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self._around("chat.completion.chunk" if self.chat else "text_completion", choices)

    def _around(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        name = f"chatcmpl-{self.name}" if self.chat else f"cmpl-{self.name}"
        return {"id": name, "object": kind, "created": self.created, "model": self.model, "choices": choices}
