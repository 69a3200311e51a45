"""Every decoder again in plain PyTorch: the oracle of the native core, and its maths written down.

One row at a time and no cache: each pass runs the whole decoder over everything committed so far. fp32 models.
The classes have the constructors and the `generate` of `kdtw_fast.decoders`; equations and algorithms are the
paper's (arXiv 2502.17717). Depends on torch, transformers and kdtw_fast.random only.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import torch
from torch import Tensor
from transformers import T5ForConditionalGeneration
from transformers.modeling_outputs import BaseModelOutput

from kdtw_fast.random import STREAM_ACCEPT, STREAM_CALL, STREAM_STUDENT, STREAM_TEACHER, uniform

NONE, STUDENT, TEACHER, ACCEPTED, CORRECTED, FORCED = range(6)

# A float32 decoder may differ from this one only where a decision was closer than these.
CLOSE_LOGITS = 1e-4
CLOSE_RELATIVE = 1e-4
CLOSE_UNIFORM = 1e-5


@dataclass
class ReferenceRow:
    """What became of one row; lists are indexed by output position (0 = first token after the start token).

    `near_ties` are the positions of decisions so close that another order of summation may decide otherwise:
    two best logits within 1e-4, a threshold within 1e-4 of what was tested (logits; probabilities relatively),
    a uniform number within 1e-5 of the boundary it was compared with. Decisions about drafts that were
    discarded later count too.
    """

    tokens: list[int] = field(default_factory=list)
    owners: list[int] = field(default_factory=list)
    teacher_index: list[int] = field(default_factory=list)  # which teacher wrote it, 1 to n; 0 = none
    student_logprobs: list[float] = field(default_factory=list)
    teacher_logprobs: list[float] = field(default_factory=list)
    teacher_calls: int = 0
    calls_by_teacher: list[int] = field(default_factory=list)  # of each teacher
    drafted: int = 0
    rolled_back: int = 0
    near_ties: set[int] = field(default_factory=set)

    @property
    def fraction_by_teacher(self) -> list[float]:
        """Part of the output that each teacher wrote."""
        numbers = range(1, 1 + len(self.calls_by_teacher))
        return [self.teacher_index.count(k) / len(self.tokens) if self.tokens else 0.0 for k in numbers]

    @property
    def accepted(self) -> int:
        """Drafts that passed a check and stayed."""
        return self.owners.count(ACCEPTED)

    @property
    def teacher_fraction(self) -> float:
        """Part of the output that the teacher wrote (owners TEACHER and CORRECTED)."""
        written = self.owners.count(TEACHER) + self.owners.count(CORRECTED)
        return written / len(self.tokens) if self.tokens else 0.0


@dataclass(frozen=True)
class Warp:
    """How logits become the distribution a token is taken from; temperature 0 takes the best token."""

    temperature: float
    top_k: int
    top_p: float


# --- Picking: pure functions of logits -----------------------------------------------------------------


def ban(logits: Tensor, banned: Iterable[int]) -> Tensor:
    """`logits` [V] in float64, minus infinity at the `banned` ids (those beyond V are ignored)."""
    allowed = logits.double().clone()
    for token in banned:
        if token < allowed.numel():
            allowed[token] = -math.inf
    return allowed


def greedy_pick(logits: Tensor) -> tuple[int, bool]:
    """The best id of `logits` [V], the lowest on ties; and whether the runner-up is close."""
    best = int((logits == logits.max()).nonzero()[0])
    others = logits.clone()
    others[best] = -math.inf
    return best, bool(logits[best] - others.max() < CLOSE_LOGITS)


def warp(logits: Tensor, how: Warp) -> tuple[Tensor, bool]:
    """Probabilities [V] of already banned `logits` [V] under `how`; and whether a cut was close.

    Temperature, then top-k (0 = off, ties by lowest id), then top-p (1.0 = off: the shortest prefix, by
    probability and then id, whose sum reaches top_p), then renormalised. Temperature 0 is one-hot.
    """
    if how.temperature == 0.0:
        best, close = greedy_pick(logits)
        return torch.nn.functional.one_hot(torch.tensor(best), logits.numel()).double(), close
    close = False
    scaled = logits / how.temperature
    ranked, order = torch.sort(scaled, descending=True, stable=True)
    if 0 < how.top_k < logits.numel():
        close |= bool((ranked[how.top_k - 1] - ranked[how.top_k]) * how.temperature < CLOSE_LOGITS)
        scaled[order[how.top_k :]] = -math.inf
    probabilities = torch.softmax(scaled, dim=0)
    if how.top_p < 1.0:
        cumulative = torch.cumsum(probabilities[order], dim=0)
        close |= bool(((cumulative - how.top_p).abs() < CLOSE_UNIFORM).any())
        kept = max(1, int((cumulative < how.top_p).sum()) + 1)
        if kept < logits.numel():
            close |= bool((ranked[kept - 1] - ranked[kept]) * how.temperature < CLOSE_LOGITS)
            probabilities[order[kept:]] = 0.0
            probabilities = probabilities / probabilities.sum()
    return probabilities, close


def sample(probabilities: Tensor, u: float) -> tuple[int, bool]:
    """Inverse CDF in ascending id order: the smallest id whose cumulative exceeds `u`; and whether u was close.

    Where rounding leaves none, the last id with a positive probability.
    """
    cumulative = torch.cumsum(probabilities, dim=0)
    above = (cumulative > u).nonzero()
    picked = int(above[0]) if above.numel() else int(probabilities.nonzero()[-1])
    inner = cumulative[:-1][probabilities[1:] > 0]
    return picked, bool(((inner - u).abs() < CLOSE_UNIFORM).any())


# --- One row ------------------------------------------------------------------------------------------


class _Lane:
    """One model reading one source. The encoder output depends on the source alone and is kept."""

    def __init__(self, model: T5ForConditionalGeneration, source: Sequence[int]) -> None:
        self.model = model
        self.start: int = model.config.decoder_start_token_id
        self.hidden = model.get_encoder()(input_ids=torch.tensor([list(source)]))[0]

    def logits(self, tokens: Sequence[int], teacher_index: Sequence[int] | None = None) -> Tensor:
        """Logits [len(tokens) + 1, V]; row j predicts output position j from start + tokens[:j].

        `teacher_index` marks the tokens whose embedding gets beta, teacher k's where it is k > 0 (Eq. 13 to 15); None =
        plain tokens.
        """
        inputs: dict[str, Any] = {}
        if teacher_index is not None:
            marks = torch.tensor([[0, *teacher_index]])
            inputs["decoder_from_teacher"] = marks if len(_taus(self.model)) > 1 else marks.bool()
        output = self.model(
            encoder_outputs=BaseModelOutput(last_hidden_state=self.hidden),
            decoder_input_ids=torch.tensor([[self.start, *tokens]]),
            use_cache=False,
            **inputs,
        )
        return output.logits[0]


@dataclass(kw_only=True)
class _Row(ReferenceRow):
    """A row while it decodes. `settled`: first position that no call has looked at yet."""

    student: _Lane
    teachers: list[_Lane]
    student_warp: Warp
    teacher_warp: Warp
    seed: int
    key: int
    min_new_tokens: int
    max_new_tokens: int
    max_teacher_fraction: float | dict[int, float] | None  # of all teachers together, or of those named
    max_teacher_calls: int | dict[int, int] | None
    eos: int
    taus: list[int]
    asked: int = 1  # the teacher that the next call is for
    forced: int = 0
    settled: int = 0
    draft_probabilities: dict[int, Tensor] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return len(self.tokens)

    @property
    def ended(self) -> bool:
        return self.length == self.max_new_tokens or (self.length > 0 and self.tokens[-1] == self.eos)

    def append(self, token: int, owner: int, teacher: int = 0) -> None:
        self.tokens.append(token)
        self.owners.append(owner)
        self.teacher_index.append(teacher)

    def roll_back(self, position: int) -> None:
        self.rolled_back += self.length - position
        del self.tokens[position:], self.owners[position:], self.teacher_index[position:]
        # The student's action at `position` was taken; what follows was not.
        del self.student_logprobs[position + 1 :], self.teacher_logprobs[position + 1 :]

    def banned(self, position: int, allowed: Sequence[int] = ()) -> list[int]:
        """EOS before `min_new_tokens`; the taus of all teachers but those that the student may ask here."""
        banned = [self.eos] if position < self.min_new_tokens else []
        return banned + [tau for number, tau in enumerate(self.taus, 1) if number not in allowed]

    def uniform(self, position: int, stream: int) -> float:
        return float(uniform(self.seed, self.key, position, stream))

    def note(self, close: bool, position: int) -> None:
        if close:
            self.near_ties.add(position)

    def pick(self, logits: Tensor, how: Warp, position: int, stream: int) -> int:
        """A token from already banned `logits`: the best one, or a sample when the temperature is positive."""
        if how.temperature == 0.0:
            token, close = greedy_pick(logits)
        else:
            probabilities, close = warp(logits, how)
            token, close_uniform = sample(probabilities, self.uniform(position, stream))
            close |= close_uniform
        self.note(close, position)
        return token


def _set(values: list[float], position: int, value: float) -> None:
    values.extend([math.nan] * (position + 1 - len(values)))
    values[position] = value


def _log_prob(logits: Tensor, token: int) -> float:
    """log softmax over all ids at temperature 1, nothing banned."""
    return float(torch.log_softmax(logits.double(), dim=0)[token])


# --- The loop -----------------------------------------------------------------------------------------


class _Decoder:
    """The one loop. A method is its call rule (`_must_call`, `_act`) and its accept rule (`_checked`, `_passes`).

    draft:   the student writes tokens until the call rule asks for the teacher
    call:    the teacher reads everything in one pass
    accept:  the first draft that fails is replaced by the teacher's token and what follows it is discarded;
             if none fails the drafts stand and the teacher may add its token after them
    """

    marks_teacher = False  # the student sees which tokens the teacher wrote (Eq. 13)
    checks_the_end = True  # a drafted EOS, or the last token that fits, still goes to the teacher
    adds_token = True  # the teacher adds a token where all drafts stand

    def __init__(self, student: T5ForConditionalGeneration, *teachers: T5ForConditionalGeneration) -> None:
        self.student = student
        self.teachers = teachers

    # Call rule.

    def _must_call(self, row: _Row) -> bool:
        """True where the teacher is called without asking the student."""
        return False

    def _act(self, row: _Row, logits: Tensor) -> int | None:
        """The student's action at the next position given its logits [V]: a token, or None = call."""
        return row.pick(ban(logits, row.banned(row.length)), row.student_warp, row.length, STREAM_STUDENT)

    # Accept rule.

    def _checked(self, row: _Row) -> range:
        """Positions of the drafts that this call checks, in order."""
        return range(row.settled, row.length)

    def _passes(self, row: _Row, position: int, logits: Tensor) -> bool:
        """Whether the draft at `position` stands, given the teacher's banned logits [V] there."""
        return True

    def _correct(self, row: _Row, position: int, logits: Tensor) -> int:
        """The teacher's token in place of the draft that failed at `position`."""
        return row.pick(logits, row.teacher_warp, position, STREAM_TEACHER)

    def _run(self, row: _Row) -> None:
        while not row.ended:
            while not self._must_call(row):
                position = row.length
                logits = row.student.logits(row.tokens, row.teacher_index if self.marks_teacher else None)[-1]
                token = self._act(row, logits)
                if token is None:
                    break
                _set(row.student_logprobs, position, _log_prob(logits, token))
                row.append(token, STUDENT)
                row.drafted += 1
                if row.ended and not self.checks_the_end:
                    return

            read = row.teachers[row.asked - 1].logits(row.tokens)
            row.teacher_calls += 1
            row.calls_by_teacher[row.asked - 1] += 1
            # Of several teachers the first that reads a position scores it.
            for position in range(row.settled, row.length):
                _set(row.teacher_logprobs, position, _log_prob(read[position], row.tokens[position]))

            for position in self._checked(row):
                allowed = ban(read[position], row.banned(position))
                if not self._passes(row, position, allowed):
                    row.roll_back(position)
                    self._teacher_writes(row, self._correct(row, position, allowed), CORRECTED, read)
                    break
                row.owners[position] = ACCEPTED
            else:
                if self.adds_token and not row.ended:
                    position = row.length
                    allowed = ban(read[position], row.banned(position))
                    token = row.pick(allowed, row.teacher_warp, position, STREAM_TEACHER)
                    self._teacher_writes(row, token, TEACHER, read)
            row.settled = row.length

    @staticmethod
    def _teacher_writes(row: _Row, token: int, owner: int, read: Tensor) -> None:
        _set(row.teacher_logprobs, row.length, _log_prob(read[row.length], token))
        row.append(token, owner, row.asked)

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        teacher_inputs: Any = None,
        max_new_tokens: int = 64,
        min_new_tokens: int = 0,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        teacher_temperature: float | None = None,
        teacher_top_k: int | None = None,
        teacher_top_p: float | None = None,
        seed: int = 0,
        row_ids: Sequence[int] | None = None,
        num_return_sequences: int = 1,
        forced_tokens: Sequence[int] = (),
        max_teacher_fraction: Any = None,
        max_teacher_calls: Any = None,
    ) -> list[ReferenceRow]:
        """Decode every row of `input_ids` [R, S] alone; returns R * num_return_sequences rows in order.

        `attention_mask` [R, S] is 1 at source tokens and 0 at padding. Sequences of one source lie together; row
        keys (`row_ids`) count rows after that repetition, the teacher limits are one value or one per source; a dict
        has a limit for each teacher that it names. `teacher_inputs` is one for all teachers or one for each.
        Teacher settings that are None equal the student's. Forced tokens fill the first positions.

        Log-probabilities: the student's belong to its own action, so at a corrected position to its rejected draft;
        where it took none (a forced token, a bonus token, a hand-over that is not tau) they are NaN. The teacher's are
        there for every position up to its last pass but the forced ones, which nobody chose.
        """
        sources = _rows(input_ids, attention_mask)
        several = isinstance(teacher_inputs, (list, tuple))
        told = [
            sources if given is None else _rows(given["input_ids"], given.get("attention_mask"))
            for given in (teacher_inputs if several else [teacher_inputs] * len(self.teachers))
        ]
        count = len(sources) * num_return_sequences
        fractions = _per_row(max_teacher_fraction, len(sources))
        calls = _per_row(max_teacher_calls, len(sources))
        taus = _taus(self.student)
        eos = self.student.config.eos_token_id
        if not isinstance(eos, int):
            raise TypeError(f"the model needs one eos_token_id, its config has {eos!r}")
        rows: list[ReferenceRow] = []
        for index in range(count):
            source = index // num_return_sequences
            row = _Row(
                student=_Lane(self.student, sources[source]),
                teachers=[_Lane(model, own[source]) for model, own in zip(self.teachers, told, strict=True)],
                student_warp=Warp(temperature, top_k, top_p),
                teacher_warp=Warp(
                    temperature if teacher_temperature is None else teacher_temperature,
                    top_k if teacher_top_k is None else teacher_top_k,
                    top_p if teacher_top_p is None else teacher_top_p,
                ),
                seed=seed,
                key=index if row_ids is None else row_ids[index],
                min_new_tokens=min_new_tokens,
                max_new_tokens=max_new_tokens,
                max_teacher_fraction=fractions[source],
                max_teacher_calls=calls[source],
                eos=eos,
                taus=taus,
                calls_by_teacher=[0] * len(self.teachers),
            )
            for token in forced_tokens:
                row.append(int(token), FORCED)
            row.forced = row.settled = row.length
            self._run(row)
            rows.append(_result(row))
        return rows


def _result(row: _Row) -> ReferenceRow:
    for values in (row.student_logprobs, row.teacher_logprobs):
        values.extend([math.nan] * (row.length - len(values)))
    return ReferenceRow(**{name.name: getattr(row, name.name) for name in fields(ReferenceRow)})


def _rows(input_ids: Any, attention_mask: Any) -> list[list[int]]:
    ids = torch.as_tensor(input_ids)
    kept = torch.ones_like(ids) if attention_mask is None else torch.as_tensor(attention_mask)
    return [row[mask.bool()].tolist() for row, mask in zip(ids, kept, strict=True)]


def _taus(model: Any) -> list[int]:
    """The ids of <tau>, one for each teacher; none of a plain T5."""
    one, several = (getattr(model.config, name, None) for name in ("tau_token_id", "tau_token_ids"))
    return several or ([] if one is None else [one])


def _per_row(value: Any, rows: int) -> list[Any]:
    return [value] * rows if value is None or isinstance(value, (int, float, dict)) else list(value)


# --- The methods --------------------------------------------------------------------------------------


class SingleModelDecoder(_Decoder):
    """One model alone: its best token each time, or a sample when the temperature is positive."""

    checks_the_end = False

    def __init__(self, model: T5ForConditionalGeneration) -> None:
        super().__init__(model)


class TrainingWheelsDecoder(_Decoder):
    """The student writes until it picks tau, and the teacher writes that token (section 3 of the paper).

    Of several teachers each has its own tau. The ledger: the n-th call at position p is allowed iff
    n <= max_teacher_calls and n <= floor(max_teacher_fraction (p + 1)); elsewhere tau is banned. A number bounds the
    calls of all teachers, a dict those of each teacher that it names. `verify_lenience` l > 0 also checks the
    drafts since the last call in the pass that happens anyway, by the lenience test of Algorithm 1 (also when
    sampling), as far back as the ledger allows a teacher token to stand.
    """

    marks_teacher = True
    checks_the_end = False

    def __init__(
        self,
        student: T5ForConditionalGeneration,
        teacher: T5ForConditionalGeneration | Sequence[T5ForConditionalGeneration],
        verify_lenience: float = 0.0,
    ) -> None:
        super().__init__(student, *(teacher if isinstance(teacher, (list, tuple)) else [teacher]))
        self.verify_lenience = verify_lenience

    @staticmethod
    def _allowed(row: _Row, teacher: int, more: int, position: int) -> bool:
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

    def _act(self, row: _Row, logits: Tensor) -> int | None:
        position = row.length
        allowed = [k for k in range(1, 1 + len(row.teachers)) if self._allowed(row, k, 1, position)]
        token = row.pick(ban(logits, row.banned(position, allowed)), row.student_warp, position, STREAM_STUDENT)
        if token not in row.taus:
            return token
        row.asked = 1 + row.taus.index(token)
        _set(row.student_logprobs, position, _log_prob(logits, token))
        return None

    def _checked(self, row: _Row) -> range:
        if self.verify_lenience == 0.0:
            return range(0)
        first = row.settled
        while first < row.length and not self._allowed(row, row.asked, 0, first):
            first += 1
        return range(first, row.length)

    def _passes(self, row: _Row, position: int, logits: Tensor) -> bool:
        return passes_lenience(row, position, logits, self.verify_lenience)


class RandomCallDecoder(TrainingWheelsDecoder):
    """A control: the teacher writes where a uniform number exceeds `threshold` and the ledger allows it.

    Whatever the student would have written there; tau is banned.
    """

    def __init__(
        self, student: T5ForConditionalGeneration, teacher: T5ForConditionalGeneration, threshold: float = 0.9
    ) -> None:
        super().__init__(student, teacher)
        self.threshold = threshold

    def _must_call(self, row: _Row) -> bool:
        return self._allowed(row, 1, 1, row.length) and row.uniform(row.length, STREAM_CALL) > self.threshold

    def _act(self, row: _Row, logits: Tensor) -> int | None:
        return row.pick(ban(logits, row.banned(row.length)), row.student_warp, row.length, STREAM_STUDENT)


class EntropyCallDecoder(TrainingWheelsDecoder):
    """A control: the teacher writes where the student's entropy exceeds `threshold` and the ledger allows it.

    In nats, at temperature 1, of the distribution without tau and other banned ids.
    """

    def __init__(
        self, student: T5ForConditionalGeneration, teacher: T5ForConditionalGeneration, threshold: float = 2.0
    ) -> None:
        super().__init__(student, teacher)
        self.threshold = threshold

    def _act(self, row: _Row, logits: Tensor) -> int | None:
        allowed = ban(logits, row.banned(row.length))
        if self._allowed(row, 1, 1, row.length):
            entropy = float(torch.special.entr(torch.softmax(allowed, dim=0)).sum())
            row.note(abs(entropy - self.threshold) < CLOSE_LOGITS, row.length)
            if entropy > self.threshold:
                return None
        return row.pick(allowed, row.student_warp, row.length, STREAM_STUDENT)


class SpeculativeDecoder(_Decoder):
    """`draft_length` student tokens, one teacher pass, and a bonus token where all stand (Algorithm 1, as corrected).

    Greedy teacher: a draft fails where p(x) < l p(best); lenience l = 1 is the teacher's greedy output.
    Sampling teacher: a draft x ~ q stands with probability min(1, p(x) / (l q(x))), its replacement comes
    from max(0, p - l q) normalised; l = 1 samples exactly from p (Leviathan et al. 2023, Chen et al. 2023).
    """

    def __init__(
        self,
        student: T5ForConditionalGeneration,
        teacher: T5ForConditionalGeneration,
        draft_length: int = 5,
        lenience: float = 1.0,
    ) -> None:
        super().__init__(student, teacher)
        self.draft_length = draft_length
        self.lenience = lenience

    def _must_call(self, row: _Row) -> bool:
        full = row.length - row.settled == self.draft_length or row.length == row.max_new_tokens - 1
        return full or row.ended

    def _act(self, row: _Row, logits: Tensor) -> int | None:
        allowed = ban(logits, row.banned(row.length))
        row.draft_probabilities[row.length] = warp(allowed, row.student_warp)[0]
        return row.pick(allowed, row.student_warp, row.length, STREAM_STUDENT)

    def _passes(self, row: _Row, position: int, logits: Tensor) -> bool:
        if row.teacher_warp.temperature == 0.0:
            return passes_lenience(row, position, logits, self.lenience)
        token = row.tokens[position]
        p, close = warp(logits, row.teacher_warp)
        threshold = self.lenience * float(row.draft_probabilities[position][token])
        u = row.uniform(position, STREAM_ACCEPT)
        if threshold > 0.0:
            close |= abs(u - float(p[token]) / threshold) < CLOSE_UNIFORM
        row.note(close, position)
        return u * threshold <= float(p[token])

    def _correct(self, row: _Row, position: int, logits: Tensor) -> int:
        if row.teacher_warp.temperature == 0.0:
            return super()._correct(row, position, logits)
        p, _ = warp(logits, row.teacher_warp)
        q = row.draft_probabilities[position][: p.numel()]  # beyond p there is only tau, with q = 0
        residual = (p - self.lenience * q).clamp(min=0.0)
        mass = float(residual.sum())
        probabilities = residual / mass if mass > 0.0 else p
        token, close = sample(probabilities, row.uniform(position, STREAM_TEACHER))
        # A small residual magnifies the error of p and q.
        row.note(close or mass < CLOSE_RELATIVE, position)
        return token


class BigLittleDecoder(_Decoder):
    """BiLD (Kim et al. 2023): hand over where the student is unsure, go back where the teacher disagrees.

    Call: the student's best probability is below `fallback_threshold`, or `max_draft_length` drafts wait.
    Accept: a draft fails where -log p(x) > `rollback_threshold`. Probabilities at temperature 1.
    """

    checks_the_end = False

    def __init__(
        self,
        student: T5ForConditionalGeneration,
        teacher: T5ForConditionalGeneration,
        fallback_threshold: float = 0.6,
        rollback_threshold: float = 5.0,
        max_draft_length: int | None = None,
    ) -> None:
        super().__init__(student, teacher)
        self.fallback_threshold = fallback_threshold
        self.rollback_threshold = rollback_threshold
        self.max_draft_length = max_draft_length

    def _must_call(self, row: _Row) -> bool:
        return row.length - row.settled == self.max_draft_length

    def _act(self, row: _Row, logits: Tensor) -> int | None:
        allowed = ban(logits, row.banned(row.length))
        best = float(torch.softmax(allowed, dim=0).max())
        row.note(abs(best - self.fallback_threshold) < CLOSE_RELATIVE * best, row.length)
        if best < self.fallback_threshold:
            return None
        return row.pick(allowed, row.student_warp, row.length, STREAM_STUDENT)

    def _passes(self, row: _Row, position: int, logits: Tensor) -> bool:
        surprise = -float(torch.log_softmax(logits, dim=0)[row.tokens[position]])
        row.note(abs(surprise - self.rollback_threshold) < CLOSE_LOGITS, position)
        return surprise <= self.rollback_threshold


class InterleavedDecoder(_Decoder):
    """SKD's interleaved sampling (Xu et al. 2024): a draft stands if it is among the teacher's `accept_top_k`.

    The first that is not is replaced by the teacher's token. No bonus token where all stand.
    """

    adds_token = False

    def __init__(
        self,
        student: T5ForConditionalGeneration,
        teacher: T5ForConditionalGeneration,
        draft_length: int = 5,
        accept_top_k: int = 25,
    ) -> None:
        super().__init__(student, teacher)
        self.draft_length = draft_length
        self.accept_top_k = accept_top_k

    def _must_call(self, row: _Row) -> bool:
        return row.length - row.settled == self.draft_length or row.ended

    def _passes(self, row: _Row, position: int, logits: Tensor) -> bool:
        if self.accept_top_k >= logits.numel():
            return True
        ranked, order = torch.sort(logits, descending=True, stable=True)
        score, k = logits[row.tokens[position]], self.accept_top_k
        inside = row.tokens[position] in order[:k].tolist()
        margin = score - ranked[k] if inside else ranked[k - 1] - score
        row.note(bool(margin < CLOSE_LOGITS), position)
        return inside


def passes_lenience(row: _Row, position: int, logits: Tensor, lenience: float) -> bool:
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
