"""What goes wrong, as one sentence on stderr in the words of the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from kdtw_fast.messages import Message, OptionName
from kdtw_fast.methods import METHODS
from kdtw_fast.visible import visible

FAULT, USER_ERROR, INTERRUPTED, NO_READER = 1, 2, 130, 141

# What click raises for a wrong command line, wherever this typer keeps its click.
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]
_EXPECTED = (ValueError, TypeError, OSError, ArithmeticError, MemoryError, ImportError)


class OneSentence(TyperGroup):
    """Runs a command; what goes wrong becomes one sentence on stderr.

    The exit status is 2 for what the user can mend, 1 for what nobody foresaw, 130 after Ctrl-C, 141 where the reader
    of a pipe has gone. KDTW_TRACEBACK=1 in the environment lets exceptions through.
    """

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Runs the command line and exits."""
        kwargs["standalone_mode"] = False
        try:
            status = super().main(*args, **kwargs) or 0
        except _CommandLineError as error:
            status = _fail(error.format_message())  # type: ignore[attr-defined]
        try:
            sys.stdout.flush()
        except OSError as error:
            with suppress(OSError):  # or Python would try again, and complain, when it ends
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = status or (
                NO_READER if isinstance(error, BrokenPipeError) else _fail(f"cannot write the output: {error.strerror}")
            )
        sys.exit(status if isinstance(status, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was named; its errors speak of its flags."""
        try:
            return super().invoke(ctx)
        except (_CommandLineError, typer.Exit):
            raise
        except KeyboardInterrupt as error:
            raise typer.Exit(_fail(_with_notes("interrupted", error), INTERRUPTED)) from error
        except BrokenPipeError:  # who read the output needs no more of it, as head does
            raise typer.Exit(NO_READER) from None
        except Exception as error:
            if os.environ.get("KDTW_TRACEBACK"):
                raise
            command = self.commands.get(ctx.invoked_subcommand)
            said = sentence(error, command.params if command else [])
            if isinstance(error, _EXPECTED):
                raise typer.Exit(_fail(_with_notes(said, error))) from error
            said = f"{type(error).__name__}: {said}; set KDTW_TRACEBACK=1 to see where this comes from"
            raise typer.Exit(_fail(_with_notes(said, error), FAULT)) from error


def tell(error: BaseException, parameters: Sequence[Any]) -> None:
    """Says on stderr what was wrong, where a command with these parameters goes on."""
    say(sentence(error, parameters))


def say(message: str) -> None:
    """Says something on stderr."""
    _fail(message)


def _fail(message: str, status: int = USER_ERROR) -> int:
    print(f"kdtw: {visible(' '.join(message.split()))}", file=sys.stderr)
    return status


def _with_notes(message: str, error: BaseException) -> str:
    return "; ".join([message, *getattr(error, "__notes__", ())])


def sentence(error: BaseException, parameters: Sequence[Any]) -> str:
    """What went wrong, in the words of a command with these parameters."""
    if isinstance(error, OSError) and error.strerror:
        place = "write the output" if error.filename is None else f"use {error.filename}"
        return f"cannot {place}: {error.strerror}"
    if isinstance(error, MemoryError):
        return f"there is not enough memory: {error}"
    flags = {p.name: max(p.opts, key=len) for p in parameters if p.param_type_name == "option"}
    for method in METHODS.values():  # a decoder's keywords, by the names that users give them
        flags |= {s.keyword: flags[name] for name, s in method.settings.items() if s.keyword and name in flags}

    def spelled(option: OptionName) -> str:
        if option.name not in flags:
            return str(option)
        return flags[option.name] if option.value in (None, True) else f"{flags[option.name]}={option.value}"

    return Message.of(error).spelled(spelled) or type(error).__name__
