"""BiLD: the student hands over where it is unsure."""

from __future__ import annotations

from typing import Unpack

from kdtw_fast import _core
from kdtw_fast.decoders.base import ModelLike, TwoModelDecoder
from kdtw_fast.keywords import takes
from kdtw_fast.options import PairKeywords, PairOptions, check_int, check_real


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
