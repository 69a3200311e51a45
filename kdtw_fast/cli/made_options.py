"""Options that are made of what dataclasses and tables say, instead of written as parameters of a command."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Annotated, Any, TypeVar

import typer

from kdtw_fast.keywords import entries

Command = TypeVar("Command", bound=Callable[..., Any])


def takes(made: Iterable[inspect.Parameter], after: str) -> Callable[[Command], Command]:
    """Decorates a command: its ``**keywords`` become these options, which stand behind the parameter ``after``."""

    def decorate(command: Command) -> Command:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
        place = 1 + [p.name for p in own].index(after)
        in_order = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own[:place], *made, *own[place:])]
        command.__signature__ = inspect.Signature(in_order)  # type: ignore[attr-defined]
        return command

    return decorate


def make_option(
    name: str, flag: str, kind: Any, text: str, panel: str | None, default: Any = None
) -> inspect.Parameter:
    """An option of the command line; without a default it is None where it was not given."""
    shown = default is not None and default is not False
    told = typer.Option(flag, help=text, show_default=shown, rich_help_panel=panel)
    wanted: Any = kind if kind is bool or default is not None else kind | None
    annotation: Any = Annotated[wanted, told]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def descriptions(options: type) -> dict[str, str]:
    """What a dataclass says of each of its fields, on one line."""
    return {name: " ".join(" ".join(lines).split()).partition(": ")[2] for name, lines in entries(options).items()}
