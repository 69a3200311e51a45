"""SKD's interleaved sampling."""

from __future__ import annotations

from typing import Unpack

from kdtw_fast import _core
from kdtw_fast.decoders.base import ModelLike, TwoModelDecoder
from kdtw_fast.keywords import takes
from kdtw_fast.options import PairKeywords, PairOptions, check_int


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
        rules = _core.MethodRules(
            two_models=True,
            draft_length=self.draft_length,
            check=_core.Check.TOP_K,
            threshold=self.accept_top_k,
            teacher_continues=False,
            checks_all=True,
        )
        super().__init__(student, teacher, rules, **shared)
