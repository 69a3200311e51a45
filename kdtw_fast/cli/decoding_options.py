"""The options by which a text is decoded, made of what METHODS and GenerateOptions say of themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, get_args, get_origin, get_type_hints

import typer
from rich.markup import escape

from kdtw_fast.methods import METHODS, Method
from kdtw_fast.options import GenerateOptions

METHOD, LIMITS, SAMPLING = "Method", "Limits", "Sampling"  # panels of the help page
_PANELS = dict.fromkeys(
    ("max_teacher_fraction", "max_teacher_calls", "max_new_tokens", "min_new_tokens", "max_time", "max_source_length"),
    LIMITS,
) | {"truncation": LIMITS}
_SAMPLING = ("temperature", "top_k", "top_p", "seed")
_FLAGS = {"truncation": "truncate", "num_threads": "threads"}
_DEFAULTS = {"max_new_tokens": 128}
# A line gives one line, without log-probabilities; threads are said once, for decoding and loading.
_LEFT_OUT = ("num_return_sequences", "output_logprobs", "output_reads", "num_threads")

Command = TypeVar("Command", bound=Callable[..., Any])


def decoding_options(
    after: str, methods: Mapping[str, Method] = METHODS, options: type = GenerateOptions
) -> Callable[[Command], Command]:
    """Decorates a command: its ``**options`` become options of the command line, behind the parameter ``after``.

    They are the settings of all methods, then the fields of ``options`` that a command line can write. What a method
    or the caller's dataclass has new is on the help page without a word here.
    """

    def decorate(command: Command) -> Command:
        own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
        place = 1 + [p.name for p in own].index(after)
        made = [*_settings(methods), *_call_options(methods, options)]
        own[place:place] = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
            for name, annotation, default in made
        ]
        in_order = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own]
        command.__signature__ = inspect.Signature(in_order)  # type: ignore[attr-defined]
        return command

    return decorate


def flag(name: str) -> str:
    """How the command line spells a parameter."""
    return "--" + _FLAGS.get(name, name).replace("_", "-")


def _option(name: str, kind: Any, text: str, panel: str | None, default: Any = None) -> tuple[str, Any, Any]:
    shown = default is not None and default is not False
    told = typer.Option(flag(name), help=text, show_default=shown, rich_help_panel=panel)
    return name, Annotated[kind if kind is bool or default is not None else kind | None, told], default


def _settings(methods: Mapping[str, Method]) -> Iterator[tuple[str, Any, Any]]:
    for name in dict.fromkeys(name for method in methods.values() for name in method.settings):
        has = {key: method.settings[name] for key, method in methods.items() if name in method.settings}
        said: dict[str, list[str]] = {}
        for key, setting in has.items():
            usual = "" if setting.default is None else f" (default {_written(setting.default)})"
            said.setdefault(setting.summary + usual, []).append(key)
        read = next(iter(has.values())).read
        text = "; ".join(f"{', '.join(keys)}: {summary}" for summary, keys in said.items())
        yield _option(name, read if read in (int, float) else str, f"{escape(text)}.", METHOD)


def _call_options(methods: Mapping[str, Method], options: type) -> Iterator[tuple[str, Any, Any]]:
    hints, told = get_type_hints(options), _descriptions(options)
    for field in fields(options):
        hint = hints[field.name]
        kinds = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
        kind = next((kind for kind in (bool, int, float) if kind in kinds), None)
        if kind is None or field.name in _LEFT_OUT:
            continue
        keys = [key for key, method in methods.items() if field.name in method.call_options]
        words = _in_cli_words(told.get(field.name, ""))
        text = f"{', '.join(keys)}: {words}" if keys else words[:1].upper() + words[1:]
        sampling = field.name.removeprefix("teacher_") in _SAMPLING
        panel = SAMPLING if sampling else _PANELS.get(field.name)
        yield _option(field.name, kind, escape(text), panel, _DEFAULTS.get(field.name, field.default))


def _in_cli_words(description: str) -> str:
    """The first sentence of a field's description, with flags for parameters."""
    sentence = re.split(r"(?<=\.)\s", description)[0]
    return re.sub(r"``(\w+)``", lambda name: flag(name[1]), sentence).replace("None = ", "default: ")


def _descriptions(options: type) -> dict[str, str]:
    """What the docstrings of a dataclass and its bases say under "Args:" of each field."""
    found: dict[str, str] = {}
    for owner in reversed(options.__mro__):
        arguments = inspect.cleandoc(vars(owner).get("__doc__") or "").partition("Args:\n")[2]
        found |= dict(re.findall(r"^    (\w+): (.*(?:\n     .*)*)", arguments, re.MULTILINE))
    return {name: " ".join(text.split()) for name, text in found.items()}


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
