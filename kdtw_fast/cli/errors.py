"""What the user did wrong, as one sentence on stderr in the words of the command line."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from kdtw_fast.messages import Message, OptionName
from kdtw_fast.methods import METHODS
from kdtw_fast.owners_view import visible

USER_ERROR, INTERRUPTED = 2, 130

# What click raises for a wrong command line, wherever this typer keeps its click.
_CommandLineError: type[Exception] = typer.BadParameter.__mro__[2]


class OneSentence(TyperGroup):
    """Runs a command; what the user did wrong becomes one sentence on stderr and exit status 2.

    KDTW_TRACEBACK=1 in the environment lets exceptions through.
    """

    def main(self, *args: Any, **kwargs: Any) -> NoReturn:
        """Runs the command line and exits."""
        kwargs["standalone_mode"] = False
        try:
            status = super().main(*args, **kwargs)
        except _CommandLineError as error:
            print(f"kdtw: {visible(' '.join(error.format_message().split()))}", file=sys.stderr)  # type: ignore[attr-defined]
            status = USER_ERROR
        except (typer.Abort, KeyboardInterrupt):
            status = INTERRUPTED
        if status == INTERRUPTED:
            print("kdtw: interrupted", file=sys.stderr)
        sys.exit(status if isinstance(status, int) else 0)

    def invoke(self, ctx: Any) -> Any:
        """Runs the command that was named; its errors speak of its flags."""
        try:
            return super().invoke(ctx)
        except (ValueError, TypeError, OSError, ArithmeticError, MemoryError, ImportError) as error:
            if os.environ.get("KDTW_TRACEBACK") or ctx.invoked_subcommand is None:
                raise
            raise _CommandLineError(_sentence(error, self.commands[ctx.invoked_subcommand].params)) from error


def _sentence(error: BaseException, parameters: Sequence[Any]) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"the input is not UTF-8 text (byte 0x{error.object[error.start]:02x} at place {error.start} of a line)"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"cannot use {error.filename}: {error.strerror}"
    flags = {p.name: max(p.opts, key=len) for p in parameters if p.param_type_name == "option"}
    for method in METHODS.values():  # a decoder's keywords, by the names that users give them
        flags |= {s.keyword: flags[name] for name, s in method.settings.items() if s.keyword and name in flags}

    def spelled(option: OptionName) -> str:
        if option.name not in flags:
            return str(option)
        return flags[option.name] if option.value in (None, True) else f"{flags[option.name]}={option.value}"

    return Message.of(error).spelled(spelled) or type(error).__name__
