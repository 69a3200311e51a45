"""The options by which a text is decoded, made of what METHODS and GenerateOptions say of themselves."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from rich.markup import escape

from kdtw_fast.cli.made_options import descriptions, make_option
from kdtw_fast.methods import METHODS, Method
from kdtw_fast.options import GenerateOptions

METHOD = "Method"  # a panel of the help page, as these; what is in none stands among the general options
_PANELS = {
    "Limits": (
        *("max_teacher_fraction", "max_teacher_calls", "max_new_tokens", "min_new_tokens", "max_time"),
        *("max_source_length", "truncation"),
    ),
    "Rules": (*("no_repeat_ngram_size", "repetition_penalty", "forced_eos_token_id", "stop"),),
    "Sampling": (
        *("temperature", "top_k", "top_p", "seed"),
        *("teacher_temperature", "teacher_top_k", "teacher_top_p"),
    ),
}
_FLAGS = {"truncation": "truncate", "num_threads": "threads"}
DEFAULTS = {"max_new_tokens": 128}
# A line gives one line, without log-probabilities; threads are said once, for decoding and loading.
_LEFT_OUT = ("num_return_sequences", "output_logprobs", "top_logprobs", "output_reads", "num_threads")


def decoding_options(
    methods: Mapping[str, Method] = METHODS, options: type = GenerateOptions
) -> Iterator[inspect.Parameter]:
    """The settings of all methods, then the fields of ``options`` that a command line can write.

    What a method or the dataclass has new is on the help page without a word here.
    """
    yield from _settings(methods)
    yield from _call_options(methods, options)


def flag(name: str) -> str:
    """How the command line spells a parameter."""
    return "--" + _FLAGS.get(name, name).replace("_", "-")


def _settings(methods: Mapping[str, Method]) -> Iterator[inspect.Parameter]:
    for name in dict.fromkeys(name for method in methods.values() for name in method.settings):
        has = {key: method.settings[name] for key, method in methods.items() if name in method.settings}
        said: dict[str, list[str]] = {}
        for key, setting in has.items():
            usual = "" if setting.default is None else f" (default {_written(setting.default)})"
            said.setdefault(setting.summary + usual, []).append(key)
        read = next(iter(has.values())).read
        text = "; ".join(f"{', '.join(keys)}: {summary}" for summary, keys in said.items())
        yield make_option(name, flag(name), read if read in (int, float) else str, f"{escape(text)}.", METHOD)


def _call_options(methods: Mapping[str, Method], options: type) -> Iterator[inspect.Parameter]:
    hints, told = get_type_hints(options), descriptions(options)
    for field in fields(options):
        hint = hints[field.name]
        kinds = get_args(hint) if get_origin(hint) in (UnionType, Union) else (hint,)
        kind = next((kind for kind in (bool, int, float, str) if kind in kinds), None)
        if kind is None or field.name in _LEFT_OUT:
            continue
        keys = [key for key, method in methods.items() if field.name in method.call_options]
        words = _in_cli_words(told.get(field.name, ""))
        text = f"{', '.join(keys)}: {words}" if keys else words[:1].upper() + words[1:]
        panel = next((panel for panel, names in _PANELS.items() if field.name in names), None)
        yield make_option(
            field.name, flag(field.name), kind, escape(text), panel, DEFAULTS.get(field.name, field.default)
        )


def _in_cli_words(description: str) -> str:
    """The first sentence of a field's description, with flags for parameters."""
    sentence = re.split(r"(?<=\.)\s", description)[0]
    return re.sub(r"``(\w+)``", lambda name: flag(name[1]), sentence).replace("None = ", "default: ")


def _written(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)
