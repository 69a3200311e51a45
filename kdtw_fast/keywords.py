"""Functions whose keywords are a dataclass's fields: refused when unknown, listed by ``help``, known to editors.

``def f(…, **options: Unpack[T])`` with a TypedDict ``T`` of those fields is what type checkers and editors read;
`takes` adds what they do not: one message for unknown names, and the fields' documentation.
"""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from typing import Any, TypeVar

from kdtw_fast.options import nearest

F = TypeVar("F", bound=Callable[..., Any])
_SHARED = "Takes what the class says, and what all of its kind do."
_DUNDERS = {"__init__": "", "__call__": ""}  # called by the class's or the object's own name


def takes(options: type) -> Callable[[F], F]:
    """Decorates a method whose last parameter, ``**name``, stands for the fields of the dataclass ``options``.

    The line "**name: …" of its docstring becomes the fields' entries, and ``inspect.signature`` shows the fields with
    their defaults. A keyword that is neither a parameter nor a field is a TypeError with the nearest of them, or with
    what the dataclass's ``elsewhere`` says of it.
    """

    def decorate(method: F) -> F:
        signature = inspect.signature(method)
        *own, rest = signature.parameters.values()
        assert rest.kind is inspect.Parameter.VAR_KEYWORD, method
        added = [
            inspect.Parameter(
                field.name,
                inspect.Parameter.KEYWORD_ONLY,
                default=field.default if field.default is not MISSING else inspect.Parameter.empty,
                annotation=field.type,
            )
            for field in fields(options)
        ]
        known = [parameter.name for parameter in (*own, *added)][1:]  # without self
        names = frozenset(known)
        suffix = _DUNDERS.get(method.__name__, f".{method.__name__}")
        elsewhere: dict[str, str] = getattr(options, "elsewhere", {})
        kind = "parameter" if method.__name__ == "__init__" else "option"

        @functools.wraps(method)
        def checked(self: Any, *args: Any, **keywords: Any) -> Any:
            try:
                if not keywords.keys() <= names:
                    name = next(name for name in keywords if name not in names)
                    if name in elsewhere:
                        raise TypeError(f"{type(self).__name__}{suffix} has no {kind} {name!r}: {elsewhere[name]}")
                    raise TypeError(f"{type(self).__name__}{suffix} has no {kind} {name!r}{nearest(name, known)}")
                return method(self, *args, **keywords)
            except TypeError as error:
                # Arguments that do not fit: the method, which would have ended its streamer, has not begun.
                streamer: Any = keywords.get("streamer")
                begun = error.__traceback__ is None or error.__traceback__.tb_next is not None
                if not begun and hasattr(streamer, "put") and hasattr(streamer, "end"):
                    streamer.end()
                raise

        checked.__doc__ = _with_entries(method.__doc__ or f"{_SHARED}\n\nArgs:\n    **{rest.name}:", rest.name, options)
        checked.__signature__ = signature.replace(parameters=[*own, *added])  # type: ignore[attr-defined]
        return checked  # type: ignore[return-value]

    return decorate


def entries(options: type) -> dict[str, list[str]]:
    """The lines that a dataclass's docstring and its bases' have under "Args:" for each field, not indented."""
    found: dict[str, list[str]] = {}
    for owner in reversed(options.__mro__):
        found |= dict(_entries(vars(owner).get("__doc__") or ""))
    return {field.name: found[field.name] for field in fields(options) if field.name in found}


def _entries(doc: str) -> Iterator[tuple[str, list[str]]]:
    _, _, arguments = inspect.cleandoc(doc).partition("Args:\n")
    arguments = re.split(r"\n(?=\S)", arguments)[0]  # up to the next section
    for entry in re.split(r"\n(?=    \S)", arguments):
        lines = entry.strip("\n").split("\n")
        yield lines[0].strip().partition(":")[0], [line[4:] for line in lines]


def _with_entries(doc: str, name: str, options: type) -> str:
    def filled(match: re.Match[str]) -> str:
        lines = (line for entry in entries(options).values() for line in entry)
        return "\n".join(match[1] + line if line.strip() else "" for line in lines)

    return re.sub(rf"^([ ]*)\*\*{name}:.*(?:\n\1[ ]+\S.*)*", filled, doc, flags=re.MULTILINE)
