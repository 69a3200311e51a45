"""Messages that name options: Python spells them as parameters, a command line as its flags."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class OptionName:
    """An option in a message: by its parameter's name, and where the message tells one, with a value."""

    name: str
    value: Any = None

    def __str__(self) -> str:
        return self.name if self.value is None else f"{self.name}={self.value}"


class Message(str):
    """An error's message that knows which of its words are options.

    As a string it is in Python's spelling: ``Message(OptionName("top_k"), " must be …")`` is "top_k must be …".

    Args:
        parts: texts, options, and other messages, in their order.
    """

    parts: tuple[str | OptionName, ...]

    def __new__(cls, *parts: str | OptionName) -> Message:
        """Joins the parts."""
        message = super().__new__(cls, "".join(map(str, parts)))
        message.parts = tuple(
            piece for part in parts for piece in (part.parts if isinstance(part, Message) else (part,))
        )
        return message

    @classmethod
    def of(cls, error: BaseException) -> Message:
        """What an error says."""
        first = error.args[0] if error.args else None
        return first if isinstance(first, Message) else cls(str(error))

    def spelled(self, spell: Callable[[OptionName], str]) -> str:
        """The message with each option as ``spell`` has it."""
        return "".join(spell(part) if isinstance(part, OptionName) else part for part in self.parts)

    def reworded(self, old: str, new: str) -> Message:
        """The message with other words for its texts; options stay."""
        return Message(*(part if isinstance(part, OptionName) else part.replace(old, new) for part in self.parts))


@contextmanager
def named(label: str) -> Iterator[None]:
    """Puts ``label`` before the message of a TypeError or ValueError from inside."""
    try:
        yield
    except (TypeError, ValueError) as error:
        raise type(error)(Message(f"{label}: ", Message.of(error))) from None


def unpicklable(what: Any) -> TypeError:
    """What is said of an object that holds packed weights, where it is to go to another process or into a file."""
    return TypeError(
        f"a {type(what).__name__} holds weights in this process's memory and cannot be pickled or sent to another; "
        f"make one from folders in each process, for example in a pool's initializer; cache=True lets them share one"
    )
