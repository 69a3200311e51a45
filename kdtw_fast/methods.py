"""The decoding methods by name, as the CLI and the demo offer them: which models each needs, which options it takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from kdtw_fast.auto import AutoDecoder
from kdtw_fast.decoders import (
    BigLittleDecoder,
    EntropyCallDecoder,
    GreedyDecoder,
    InterleavedDecoder,
    RandomCallDecoder,
    SpeculativeDecoder,
    TrainingWheelsDecoder,
)
from kdtw_fast.options import nearest

Decoder = (
    GreedyDecoder
    | TrainingWheelsDecoder
    | RandomCallDecoder
    | EntropyCallDecoder
    | SpeculativeDecoder
    | BigLittleDecoder
    | InterleavedDecoder
    | AutoDecoder
)
_LEDGER = ("budget", "max_teacher_fraction", "max_teacher_calls")


@dataclass(frozen=True)
class Method:
    """A way to decode.

    Args:
        summary: one line for help texts.
        decoder: its class.
        models: which of "student" and "teacher" it decodes with.
        settings: the decoder's keywords by the name users give them.
        call_options: options of a call that only this method takes.
    """

    summary: str
    decoder: type[Decoder]
    models: tuple[str, ...] = ("student", "teacher")
    settings: Mapping[str, str] = field(default_factory=dict)
    call_options: tuple[str, ...] = ()

    @property
    def own_options(self) -> set[str]:
        """Names of all options that other methods may lack."""
        return {*self.settings, *self.call_options}


METHODS: dict[str, Method] = {
    "training-wheels": Method(
        "the student writes and asks the teacher for single tokens (KDTW)",
        TrainingWheelsDecoder,
        settings={"verify_lenience": "verify_lenience"},
        call_options=_LEDGER,
    ),
    "greedy-student": Method("the student alone", GreedyDecoder, models=("student",)),
    "greedy-teacher": Method("the teacher alone", GreedyDecoder, models=("teacher",)),
    "speculative": Method(
        "the student drafts, the teacher checks every draft",
        SpeculativeDecoder,
        settings={"draft_length": "draft_length", "lenience": "lenience"},
    ),
    "bild": Method(
        "the student hands over where it is unsure, the teacher also takes back",
        BigLittleDecoder,
        settings={
            "fallback": "fallback_threshold",
            "rollback": "rollback_threshold",
            "draft_length": "max_draft_length",
        },
    ),
    "interleaved": Method(
        "drafts among the teacher's best k stay, others are replaced (SKD)",
        InterleavedDecoder,
        settings={"draft_length": "draft_length", "accept_top_k": "accept_top_k"},
    ),
    "random": Method(
        "a control: the teacher writes tokens drawn at random",
        RandomCallDecoder,
        settings={"threshold": "threshold"},
        call_options=_LEDGER,
    ),
    "entropy": Method(
        "a control: the teacher writes where the student's entropy is high",
        EntropyCallDecoder,
        settings={"threshold": "threshold"},
        call_options=_LEDGER,
    ),
    "auto": Method(
        "the fastest of these for --quality, from measured costs",
        AutoDecoder,
        settings={"quality": "quality"},
    ),
}


def find_method(name: str) -> Method:
    """The method called ``name``; ValueError with the nearest name, or all of them, if there is none."""
    if name not in METHODS:
        raise ValueError(f"unknown method {name!r}{nearest(name, METHODS)}")
    return METHODS[name]


def make_decoder(
    name: str, models: Mapping[str, Any], tokenizer: Any, num_threads: int | None = None, **settings: Any
) -> Decoder:
    """Builds a method's decoder.

    Args:
        name: a name in :data:`METHODS`.
        models: "student" and "teacher"; those that the method needs must be there.
        tokenizer: the pair's.
        num_threads: None = all.
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
    keywords = {method.settings[setting]: value for setting, value in settings.items()}
    return method.decoder(
        *(models[role] for role in method.models), tokenizer=tokenizer, num_threads=num_threads, **keywords
    )
