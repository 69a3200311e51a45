"""Speculative decoding, lossless or with a lenience, and speculative cascades."""

from __future__ import annotations

from typing import Unpack

from kdtw_fast import _core
from kdtw_fast.decoders.base import ModelLike, TwoModelDecoder
from kdtw_fast.keywords import takes
from kdtw_fast.options import PairKeywords, PairOptions, check_int, check_real


class SpeculativeDecoder(TwoModelDecoder):
    """Speculative decoding: K drafts, one teacher pass that checks them all, its own token after them.

    With ``lenience`` 1 it is lossless: greedy output is the teacher's, sampled output has the teacher's
    distribution (rejection sampling, Leviathan et al. 2023). Below 1 it is the paper's lossy baseline
    (Algorithm 1, as corrected): greedy drafts pass where p(x) >= l max p; 0 lets everything pass.

    Args:
        student: drafts (a <tau> it may have is never used).
        teacher: checks.
        draft_length: K >= 1.
        lenience: l in [0, 1].
    """

    @takes(PairOptions)
    def __init__(
        self,
        student: ModelLike,
        teacher: ModelLike,
        *,
        draft_length: int = 5,
        lenience: float = 1.0,
        **shared: Unpack[PairKeywords],
    ):
        self.draft_length = check_int("draft_length", draft_length, 1)
        self.lenience = check_real("lenience", lenience, 0.0, 1.0)
        rules = _core.MethodRules(
            two_models=True,
            draft_length=self.draft_length,
            check=_core.Check.LENIENCE,
            threshold=self.lenience,
            checks_all=True,
        )
        super().__init__(student, teacher, rules, **shared)


class SpeculativeCascadeDecoder(TwoModelDecoder):
    """Speculative cascades (Narasimhan et al., ICLR 2025): drafts of a student that is sure enough stand unchecked.

    K drafts, one teacher pass, its own token after them, as :class:`SpeculativeDecoder`. At each draft the OPT deferral
    rule compares the distributions q of the student and p of the teacher (temperature 1, without banned ids): where
    max q >= max p - deferral * TV(p, q) the draft stands. Elsewhere it is checked losslessly: it must be the teacher's
    greedy token, or with a sampling teacher pass rejection sampling.

    Args:
        student: drafts (a <tau> it may have is never used).
        teacher: checks.
        draft_length: K >= 1.
        deferral: the rule's alpha in [0, 1]; the student decides more as it grows.
    """

    @takes(PairOptions)
    def __init__(
        self,
        student: ModelLike,
        teacher: ModelLike,
        *,
        draft_length: int = 5,
        deferral: float = 0.1,
        **shared: Unpack[PairKeywords],
    ):
        self.draft_length = check_int("draft_length", draft_length, 1)
        self.deferral = check_real("deferral", deferral, 0.0, 1.0)
        rules = _core.MethodRules(
            two_models=True,
            draft_length=self.draft_length,
            check=_core.Check.CASCADE,
            threshold=self.deferral,
            checks_all=True,
        )
        super().__init__(student, teacher, rules, **shared)
