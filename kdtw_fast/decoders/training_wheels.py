"""Training Wheels, and its controls: the same student and prompts, but something else decides who writes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Unpack

from kdtw_fast import _core
from kdtw_fast.decoder_options import PairKeywords, PairOptions
from kdtw_fast.decoders.base import ModelLike, TwoModelDecoder
from kdtw_fast.keywords import takes
from kdtw_fast.options import check_real


class TrainingWheelsDecoder(TwoModelDecoder):
    """KDTW: the student writes, and where it chose <tau> the teacher writes that one token (arXiv 2502.17717).

    Args:
        student: a TrainingWheels, a NativeModel with <tau>, or a folder of one.
        teacher: a Hugging Face model, NativeModel or a folder; shares the student's vocabulary. A student of several
            teachers takes a list of them, one for each of its <tau>s.
        verify_lenience: l in [0, 1]. 0 is the paper. Above 0, the teacher's catch-up pass, which happens at a
            call anyway, also checks what was drafted since the last call with Algorithm 1's test
            p(x) >= l max p, and replaces the first token that fails. Of several teachers the one that is called checks
            what was drafted since the last call of any.
    """

    _keeps_limits = _chooses_teacher = True

    @takes(PairOptions)
    def __init__(
        self,
        student: ModelLike,
        teacher: ModelLike | Sequence[ModelLike],
        *,
        verify_lenience: float = 0.0,
        **shared: Unpack[PairKeywords],
    ):
        self.verify_lenience = check_real("verify_lenience", verify_lenience, 0.0, 1.0)
        rules = _core.MethodRules(
            two_models=True,
            marks_teacher=True,
            on_tau=True,
            check=_core.Check.LENIENCE if verify_lenience > 0 else _core.Check.NONE,
            threshold=self.verify_lenience,
        )
        super().__init__(student, teacher, rules, **shared)


class ControlDecoder(TwoModelDecoder):
    """Training Wheels whose student never asks: the teacher writes where something exceeds a threshold.

    Else as with :class:`TrainingWheelsDecoder`: the student reads a budget in its prompt and which tokens the teacher
    wrote, and ``max_teacher_fraction`` and ``max_teacher_calls`` bound the calls.

    Args:
        student: a TrainingWheels of one teacher, a NativeModel with <tau>, or a folder of one; <tau> is never used.
        teacher: a Hugging Face model, NativeModel or a folder; shares the student's vocabulary.
        threshold: see the class; None = its default.
    """

    _keeps_limits = True
    _default: float  # threshold
    _highest: float  # threshold
    _rule: str  # MethodRules' name for it

    @takes(PairOptions)
    def __init__(
        self,
        student: ModelLike,
        teacher: ModelLike,
        *,
        threshold: float | None = None,
        **shared: Unpack[PairKeywords],
    ):
        self.threshold = check_real("threshold", self._default if threshold is None else threshold, 0.0, self._highest)
        rule: dict[str, Any] = {self._rule: self.threshold}
        super().__init__(student, teacher, _core.MethodRules(two_models=True, marks_teacher=True, **rule), **shared)


class RandomCallDecoder(ControlDecoder):
    """A control for KDTW: which tokens the teacher writes is drawn at random.

    ``threshold`` is in [0, 1], by default 0.9; the teacher writes where a uniform number of [0, 1), which depends on
    seed, row id and position only, exceeds it: with probability 1 - ``threshold``. All else as
    :class:`ControlDecoder` says.
    """

    _default, _highest, _rule = 0.9, 1.0, "max_uniform"


class EntropyCallDecoder(ControlDecoder):
    """A control for KDTW: the teacher writes where the student is undecided.

    ``threshold`` is in nats, >= 0, by default 2; the teacher writes where the entropy of the student's distribution at
    temperature 1, without <tau> and other banned tokens, exceeds it. All else as :class:`ControlDecoder` says.
    """

    _default, _highest, _rule = 2.0, math.inf, "max_entropy"
