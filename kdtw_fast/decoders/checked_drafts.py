"""Methods whose student drafts and whose teacher checks the drafts: speculative decoding, cascades, SKD, BiLD."""

from __future__ import annotations

from typing import Unpack

from kdtw_fast import _core
from kdtw_fast.decoder_options import PairKeywords, PairOptions
from kdtw_fast.decoders.base import ModelLike, TwoModelDecoder
from kdtw_fast.keywords import takes
from kdtw_fast.options import check_int, check_real


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
        super().__init__(student, teacher, _drafts(draft_length, _core.Check.LENIENCE, self.lenience), **shared)


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
        super().__init__(student, teacher, _drafts(draft_length, _core.Check.CASCADE, self.deferral), **shared)


class InterleavedDecoder(TwoModelDecoder):
    """SKD's interleaved sampling (Xu et al. 2025): drafts in the teacher's top k stay, the first other is replaced.

    Args:
        student: proposes.
        teacher: replaces.
        draft_length: tokens proposed per teacher pass, K >= 1.
        accept_top_k: a draft stays when it is among the teacher's so many most likely tokens, >= 1.
    """

    @takes(PairOptions)
    def __init__(
        self,
        student: ModelLike,
        teacher: ModelLike,
        *,
        draft_length: int = 5,
        accept_top_k: int = 25,
        **shared: Unpack[PairKeywords],
    ):
        self.draft_length = check_int("draft_length", draft_length, 1)
        self.accept_top_k = check_int("accept_top_k", accept_top_k, 1)
        rules = _drafts(draft_length, _core.Check.TOP_K, self.accept_top_k, teacher_continues=False)
        super().__init__(student, teacher, rules, **shared)


class BigLittleDecoder(TwoModelDecoder):
    """BiLD (Kim et al. 2023): the student hands over where it is unsure; the teacher's pass also rolls back.

    Args:
        student: the little model.
        teacher: the big model.
        fallback_threshold: in [0, 1]; the teacher is called where the student's largest probability is below it.
        rollback_threshold: >= 0; the first draft x with -log p(x) above it is replaced, in nats.
        max_draft_length: call at the latest after so many drafts, >= 1; None = no such limit.
    """

    @takes(PairOptions)
    def __init__(
        self,
        student: ModelLike,
        teacher: ModelLike,
        *,
        fallback_threshold: float = 0.6,
        rollback_threshold: float = 5.0,
        max_draft_length: int | None = None,
        **shared: Unpack[PairKeywords],
    ):
        self.fallback_threshold = check_real("fallback_threshold", fallback_threshold, 0.0, 1.0)
        self.rollback_threshold = check_real("rollback_threshold", rollback_threshold, 0.0)
        self.max_draft_length = None if max_draft_length is None else check_int("max_draft_length", max_draft_length, 1)
        rules = _core.MethodRules(
            two_models=True,
            draft_length=self.max_draft_length or 0,
            min_confidence=self.fallback_threshold,
            check=_core.Check.DIVERGENCE,
            threshold=self.rollback_threshold,
        )
        super().__init__(student, teacher, rules, **shared)


def _drafts(length: int, check: _core.Check, threshold: float, teacher_continues: bool = True) -> _core.MethodRules:
    """The rules of a method that calls after so many drafts, and at a row's end."""
    return _core.MethodRules(
        two_models=True,
        draft_length=length,
        check=check,
        threshold=threshold,
        teacher_continues=teacher_continues,
        checks_all=True,
    )
