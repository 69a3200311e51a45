"""The methods: each a call rule and an accept rule over the one loop. Equations and algorithms are the paper's."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from kdtw_fast.random import STREAM_ACCEPT, STREAM_CALL, STREAM_STUDENT, STREAM_TEACHER
from kdtw_fast.reference.loop import Decoder, Row, set_at
from kdtw_fast.reference.picking import (
    CLOSE_LOGITS,
    CLOSE_RELATIVE,
    CLOSE_UNIFORM,
    greedy_pick,
    log_prob,
    sample,
    warp,
)


class SingleModelDecoder(Decoder):
    """One model alone: its best token each time, or a sample when the temperature is positive."""

    checks_the_end = False


class TrainingWheelsDecoder(Decoder):
    """The student writes until it picks tau, and the teacher writes that token (section 3 of the paper).

    Of several teachers each has its own tau. The ledger: the n-th call at position p is allowed iff
    n <= max_teacher_calls and n <= floor(max_teacher_fraction (p + 1)); elsewhere tau is banned. A number bounds the
    calls of all teachers, a dict those of each teacher that it names. `verify_lenience` l > 0 also checks the
    drafts since the last call in the pass that happens anyway, by the lenience test of Algorithm 1 (also when
    sampling), as far back as the ledger allows a teacher token to stand.
    """

    marks_teacher = True
    checks_the_end = False
    verify_lenience = 0.0

    @staticmethod
    def _allowed(row: Row, teacher: int, more: int, position: int) -> bool:
        """Whether the ledger allows a token of `teacher` at `position` after `more` calls that are not counted yet."""
        for limit, bound in (
            (row.max_teacher_calls, lambda most: most),
            (row.max_teacher_fraction, lambda most: math.floor(most * (position + 1) + 1e-9)),
        ):
            calls = row.teacher_calls
            if isinstance(limit, dict):
                calls, limit = row.calls_by_teacher[teacher - 1], limit.get(teacher)
            if limit is not None and calls + more > bound(limit):
                return False
        return True

    def _act(self, row: Row, logits: Tensor) -> int | None:
        position = row.length
        allowed = [k for k in range(1, 1 + len(row.teachers)) if self._allowed(row, k, 1, position)]
        token = row.pick(row.ruled(logits, position, allowed), row.student_warp, position, STREAM_STUDENT)
        if token not in row.taus:
            return token
        row.asked = 1 + row.taus.index(token)
        set_at(row.student_logprobs, position, log_prob(logits, token))
        return None

    def _checked(self, row: Row) -> range:
        if self.verify_lenience == 0.0:
            return range(0)
        first = row.settled
        while first < row.length and not self._allowed(row, row.asked, 0, first):
            first += 1
        return range(first, row.length)

    def _passes(self, row: Row, position: int, logits: Tensor) -> bool:
        return passes_lenience(row, position, logits, self.verify_lenience)


class RandomCallDecoder(TrainingWheelsDecoder):
    """A control: the teacher writes where a uniform number exceeds `threshold` and the ledger allows it.

    Whatever the student would have written there; tau is banned.
    """

    threshold = 0.9

    def _must_call(self, row: Row) -> bool:
        return self._allowed(row, 1, 1, row.length) and row.uniform(row.length, STREAM_CALL) > self.threshold

    def _act(self, row: Row, logits: Tensor) -> int | None:
        return Decoder._act(self, row, logits)


class EntropyCallDecoder(TrainingWheelsDecoder):
    """A control: the teacher writes where the student's entropy exceeds `threshold` and the ledger allows it.

    In nats, at temperature 1, of the distribution without tau and other banned ids.
    """

    threshold = 2.0

    def _act(self, row: Row, logits: Tensor) -> int | None:
        if self._allowed(row, 1, 1, row.length):
            probabilities = torch.softmax(row.ruled(logits, row.length), dim=0)
            entropy = float(torch.special.entr(probabilities).sum())
            row.note(abs(entropy - self.threshold) < CLOSE_LOGITS, row.length)
            if entropy > self.threshold:
                return None
        return Decoder._act(self, row, logits)


class SpeculativeDecoder(Decoder):
    """`draft_length` student tokens, one teacher pass, and a bonus token where all stand (Algorithm 1, as corrected).

    Greedy teacher: a draft fails where p(x) < l p(best); lenience l = 1 is the teacher's greedy output.
    Sampling teacher: a draft x ~ q stands with probability min(1, p(x) / (l q(x))), its replacement comes
    from max(0, p - l q) normalised; l = 1 samples exactly from p (Leviathan et al. 2023, Chen et al. 2023).
    """

    draft_length = 5
    lenience = 1.0

    def _must_call(self, row: Row) -> bool:
        full = row.length - row.settled == self.draft_length or row.length == row.options.max_new_tokens - 1
        return full or row.ended

    def _act(self, row: Row, logits: Tensor) -> int | None:
        row.draft_logits[row.length] = row.ruled(logits, row.length)
        return super()._act(row, logits)

    def _passes(self, row: Row, position: int, logits: Tensor) -> bool:
        if row.teacher_warp.temperature == 0.0:
            return passes_lenience(row, position, logits, self.lenience)
        token = row.tokens[position]
        p, close = warp(logits, row.teacher_warp)
        q, _ = warp(row.draft_logits[position], row.student_warp)
        threshold = self.lenience * float(q[token])
        u = row.uniform(position, STREAM_ACCEPT)
        if threshold > 0.0:
            close |= abs(u - float(p[token]) / threshold) < CLOSE_UNIFORM
        row.note(close, position)
        return u * threshold <= float(p[token])

    def _correct(self, row: Row, position: int, logits: Tensor) -> int:
        if row.teacher_warp.temperature == 0.0:
            return super()._correct(row, position, logits)
        p, _ = warp(logits, row.teacher_warp)
        q, _ = warp(row.draft_logits[position], row.student_warp)
        residual = (p - self.lenience * q[: p.numel()]).clamp(min=0.0)  # beyond p there is only tau, with q = 0
        mass = float(residual.sum())
        token, close = sample(residual / mass if mass > 0.0 else p, row.uniform(position, STREAM_TEACHER))
        # A small residual magnifies the error of p and q.
        row.note(close or mass < CLOSE_RELATIVE, position)
        return token


class SpeculativeCascadeDecoder(SpeculativeDecoder):
    """Speculative cascades, OPT deferral (Narasimhan et al. 2025): the student decides where it is sure enough.

    With q and p the two distributions at temperature 1 without banned ids, a draft stands where
    max q >= max p - `deferral` TV(p, q). Elsewhere it is judged as lossless speculative decoding judges it.
    """

    deferral = 0.1

    def _passes(self, row: Row, position: int, logits: Tensor) -> bool:
        p, q = torch.softmax(logits, dim=0), torch.softmax(row.draft_logits[position], dim=0)
        apart = float((p - q[: p.numel()]).clamp(min=0.0).sum())
        margin = float(q.max() - p.max()) + self.deferral * apart
        if margin >= CLOSE_RELATIVE:
            return True
        passes = super()._passes(row, position, logits)
        row.note(abs(margin) < CLOSE_RELATIVE and not passes, position)
        return margin >= 0.0 or passes


class BigLittleDecoder(Decoder):
    """BiLD (Kim et al. 2023): hand over where the student is unsure, go back where the teacher disagrees.

    Call: the student's best probability is below `fallback_threshold`, or `max_draft_length` drafts wait.
    Accept: a draft fails where -log p(x) > `rollback_threshold`. Probabilities at temperature 1.
    """

    checks_the_end = False
    fallback_threshold = 0.6
    rollback_threshold = 5.0
    max_draft_length: int | None = None

    def _must_call(self, row: Row) -> bool:
        return row.length - row.settled == self.max_draft_length

    def _act(self, row: Row, logits: Tensor) -> int | None:
        best = float(torch.softmax(row.ruled(logits, row.length), dim=0).max())
        row.note(abs(best - self.fallback_threshold) < CLOSE_RELATIVE * best, row.length)
        return None if best < self.fallback_threshold else super()._act(row, logits)

    def _passes(self, row: Row, position: int, logits: Tensor) -> bool:
        surprise = -float(torch.log_softmax(logits, dim=0)[row.tokens[position]])
        row.note(abs(surprise - self.rollback_threshold) < CLOSE_LOGITS, position)
        return surprise <= self.rollback_threshold


class InterleavedDecoder(Decoder):
    """SKD's interleaved sampling (Xu et al. 2024): a draft stands if it is among the teacher's `accept_top_k`.

    The first that is not is replaced by the teacher's token. No bonus token where all stand.
    """

    adds_token = False
    draft_length = 5
    accept_top_k = 25

    def _must_call(self, row: Row) -> bool:
        return row.length - row.settled == self.draft_length or row.ended

    def _passes(self, row: Row, position: int, logits: Tensor) -> bool:
        if self.accept_top_k >= logits.numel():
            return True
        ranked, order = torch.sort(logits, descending=True, stable=True)
        score, k = logits[row.tokens[position]], self.accept_top_k
        inside = row.tokens[position] in order[:k].tolist()
        margin = score - ranked[k] if inside else ranked[k - 1] - score
        row.note(bool(margin < CLOSE_LOGITS), position)
        return inside


def passes_lenience(row: Row, position: int, logits: Tensor, lenience: float) -> bool:
    """Algorithm 1, line 6, as corrected: the draft stands iff p(x) >= l p(best), in logits x >= best + ln l.

    l = 1 is strict: only the teacher's greedy pick stands, so ties cannot differ from it. l = 0 passes all.
    """
    token = row.tokens[position]
    if lenience == 1.0:
        best, close = greedy_pick(logits)
        row.note(close, position)
        return token == best
    if lenience == 0.0:
        return True
    margin = float(logits[token] - (logits.max() + math.log(lenience)))
    row.note(abs(margin) < CLOSE_LOGITS, position)
    return margin >= 0.0
