"""The decoding methods by name, as the CLI and the demo offer them: which models each needs, which options it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any

from kdtw_fast.budgets import written_budget
from kdtw_fast.options import LIMITS, check_int, check_real, nearest

if TYPE_CHECKING:
    from kdtw_fast.decoders.interface import AnyDecoder

_BUDGETED = ("budget", *LIMITS)


@dataclass(frozen=True)
class Setting:
    """A setting of a method.

    Args:
        read: makes its value of what users write: int, float, or a function of a text.
        summary: what it does and its range, in a line for help texts.
        default: the decoder's own.
        low, high: its range, where it is a number; the decoder has the same.
        keyword: what the decoder calls it, if not by the users' name.
    """

    read: Callable[[str], Any]
    summary: str
    default: Any
    low: float | None = None
    high: float = math.inf
    keyword: str | None = None

    def value(self, name: str, written: Any) -> Any:
        """What was written for the setting of that name; raises as the decoder does, which need not be made for it."""
        value = self.read(written)
        if self.low is None:
            return value
        called = self.keyword or name
        return (
            check_int(called, value, int(self.low))
            if self.read is int
            else check_real(called, value, self.low, self.high)
        )


@dataclass(frozen=True)
class Method:
    """A way to decode.

    Args:
        summary: one line for help texts.
        decoder: name of its class in kdtw_fast; not the class, so that help needs no PyTorch.
        models: which of "student" and "teacher" it decodes with.
        settings: the decoder's own settings by the name users give them.
        call_options: options of a call that only this method takes.
    """

    summary: str
    decoder: str
    models: tuple[str, ...] = ("student", "teacher")
    settings: Mapping[str, Setting] = field(default_factory=dict)
    call_options: tuple[str, ...] = ()

    @property
    def own_options(self) -> set[str]:
        """Names of all options that other methods may lack."""
        return {*self.settings, *self.call_options}


_SHARE = 0, 1  # a range
_DRAFT_LENGTH = Setting(int, "tokens drafted per teacher pass", 5, 1)
METHODS: dict[str, Method] = {
    "training-wheels": Method(
        "the student writes and asks the teacher for single tokens (KDTW)",
        "TrainingWheelsDecoder",
        settings={
            "verify_lenience": Setting(
                float,
                "at each call the teacher also checks the drafts it reads anyway and takes back those less likely than "
                "this share of its best token, in 0..1; 0 = off",
                0.0,
                *_SHARE,
            )
        },
        call_options=_BUDGETED,
    ),
    "greedy-student": Method("the student alone", "SingleModelDecoder", models=("student",)),
    "greedy-teacher": Method("the teacher alone", "SingleModelDecoder", models=("teacher",)),
    "speculative": Method(
        "the student drafts, the teacher checks every draft",
        "SpeculativeDecoder",
        settings={
            "draft_length": _DRAFT_LENGTH,
            "lenience": Setting(
                float,
                "drafts pass that are at least this share as likely as the teacher's best, in 0..1; 1 = exactly the "
                "teacher's output",
                1.0,
                *_SHARE,
            ),
        },
    ),
    "speculative-cascade": Method(
        "speculative decoding in which drafts of a student that is sure enough stand",
        "SpeculativeCascadeDecoder",
        settings={
            "draft_length": _DRAFT_LENGTH,
            "deferral": Setting(float, "the student decides more as this grows, in 0..1", 0.1, *_SHARE),
        },
    ),
    "bild": Method(
        "the student hands over where it is unsure, the teacher also takes back",
        "BigLittleDecoder",
        settings={
            "fallback": Setting(
                float,
                "hand over where the student's best probability is below this, in 0..1",
                0.6,
                *_SHARE,
                keyword="fallback_threshold",
            ),
            "rollback": Setting(
                float,
                "take back from the first token whose -log p under the teacher is above this",
                5.0,
                0,
                keyword="rollback_threshold",
            ),
            "draft_length": Setting(int, "at most so many", None, 1, keyword="max_draft_length"),
        },
    ),
    "interleaved": Method(
        "drafts among the teacher's best k stay, others are replaced (SKD)",
        "InterleavedDecoder",
        settings={
            "draft_length": _DRAFT_LENGTH,
            "accept_top_k": Setting(int, "a draft stays when among the teacher's best so many", 25, 1),
        },
    ),
    "random": Method(
        "a control: the teacher writes tokens drawn at random",
        "RandomCallDecoder",
        settings={
            "threshold": Setting(
                float, "the teacher writes where a uniform number in 0..1 is above this", 0.9, *_SHARE
            ),
        },
        call_options=_BUDGETED,
    ),
    "entropy": Method(
        "a control: the teacher writes where the student's entropy is high",
        "EntropyCallDecoder",
        settings={
            "threshold": Setting(
                float,
                "the teacher writes where the entropy of the student's distribution, in nats, is above this",
                2.0,
                0,
            ),
        },
        call_options=_BUDGETED,
    ),
    "auto": Method(
        "the fastest of these for --quality, from measured costs",
        "AutoDecoder",
        settings={
            "quality": Setting(written_budget, "teacher (exactly its output), a budget, or student", "teacher"),
        },
    ),
}


def find_method(name: str) -> Method:
    """The method called ``name``; ValueError with the nearest name, or all of them, if there is none."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}{nearest(name, METHODS)}")
    return METHODS[name]


def make_decoder(
    name: str,
    models: Mapping[str, Any],
    tokenizer: Any,
    num_threads: int | None = None,
    generation_config: Any = None,
    **settings: Any,
) -> AnyDecoder:
    """Builds a method's decoder.

    Args:
        name: a name in :data:`METHODS`.
        models: "student" and "teacher"; those that the method needs must be there.
        tokenizer: the pair's.
        num_threads: None = all.
        generation_config: as decoders take it; None = the checkpoints'.
        **settings: of :attr:`Method.settings`, by the users' names.

    Raises:
        ValueError: an unknown method, or a model that is missing.
        TypeError: a setting that the method does not have.
    """
    method = find_method(name)
    for role in method.models:
        if models.get(role) is None:
            raise ValueError(f"method {name!r} needs a {role}")
    for setting in settings:
        if setting not in method.settings:
            owners = ", ".join(other for other in METHODS if setting in METHODS[other].settings)
            raise TypeError(f"{setting} belongs to {owners or 'no method'}, not to {name!r}")
    keywords = {method.settings[setting].keyword or setting: value for setting, value in settings.items()}
    if len(method.models) == 1:
        keywords["role"] = method.models[0]
    make: Callable[..., AnyDecoder] = getattr(import_module("kdtw_fast"), method.decoder)
    shared = {"tokenizer": tokenizer, "num_threads": num_threads, "generation_config": generation_config}
    return make(*(models[role] for role in method.models), **shared, **keywords)
