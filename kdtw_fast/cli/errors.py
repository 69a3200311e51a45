"""What the user did wrong, as one sentence on stderr in the words of the command line."""

from __future__ import annotations

import os
import re
import sys
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

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
            _fail(error.format_message())  # type: ignore[attr-defined]
        except (typer.Abort, KeyboardInterrupt):
            status = INTERRUPTED
        except (ValueError, TypeError, OSError, ArithmeticError, MemoryError, ImportError) as error:
            if os.environ.get("KDTW_TRACEBACK"):
                raise
            _fail(_in_cli_words(_sentence(error)))
        if status == INTERRUPTED:
            print("kdtw: interrupted", file=sys.stderr)
        sys.exit(status if isinstance(status, int) else 0)


def _fail(message: str) -> NoReturn:
    print(f"kdtw: {visible(' '.join(message.split()))}", file=sys.stderr)
    sys.exit(USER_ERROR)


def _sentence(error: BaseException) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"the input is not UTF-8 text (byte 0x{error.object[error.start]:02x} at place {error.start} of a line)"
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"cannot use {error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


_OPTION_NAMES = (
    "max_new_tokens",
    "max_source_length",
    "max_teacher_fraction",
    "max_teacher_calls",
    "verify_lenience",
    "draft_length",
    "accept_top_k",
    "num_threads",
    "temperature",
    "top_k",
    "top_p",
    "batch_size",
    "lenience",
    "seed",
)


def _in_cli_words(message: str) -> str:
    """A message of the Python API with the names that options have here."""
    message = message.replace("truncation=True", "--truncate").replace("num_threads", "threads")
    message = message.replace("fallback_threshold", "fallback").replace("rollback_threshold", "rollback")
    names = "|".join(
        (*_OPTION_NAMES, "threads(?= must)", "fallback(?= must)", "rollback(?= must)", "threshold(?= must)")
    )
    return re.sub(rf"(?<![\w-])({names})(?!\w)", lambda m: "--" + m[1].replace("_", "-"), message)
