"""The one loop that every decoder shares, over one row at a time; each pass reads everything committed so far."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Unpack

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from kdtw_fast.options import GenerateKeywords, GenerateOptions
from kdtw_fast.random import STREAM_STUDENT, STREAM_TEACHER, uniform
from kdtw_fast.reference.picking import Warp, greedy_pick, log_prob, sample, warp
from kdtw_fast.reference.rules import edit

NONE, STUDENT, TEACHER, ACCEPTED, CORRECTED, FORCED = range(6)


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


class Lane:
    """One model reading one source. The encoder output depends on the source alone and is kept.

    Without an encoder the source is a prompt, which the outputs continue.
    """

    def __init__(self, model: PreTrainedModel, source: Sequence[int]) -> None:
        self.model = model
        self.before: list[int] = list(source)  # what the decoder reads before the outputs
        self.hidden: Tensor | None = None
        if model.config.is_encoder_decoder:
            self.before = [model.config.decoder_start_token_id]
            self.hidden = model.get_encoder()(input_ids=torch.tensor([list(source)]))[0]

    def logits(self, tokens: Sequence[int], teacher_index: Sequence[int] | None = None) -> Tensor:
        """Logits [len(tokens) + 1, V]; row j predicts output position j from what stands before + tokens[:j].

        `teacher_index` marks the tokens whose embedding gets beta, teacher k's where it is k > 0 (Eq. 13 to 15); None =
        plain tokens.
        """
        inputs: dict[str, Any] = {"input_ids": torch.tensor([[*self.before, *tokens]])}
        if teacher_index is not None:
            marks = torch.tensor([[0] * len(self.before) + list(teacher_index)])
            inputs["decoder_from_teacher"] = marks if len(taus_of(self.model)) > 1 else marks.bool()
        if self.hidden is not None:
            inputs["decoder_input_ids"] = inputs.pop("input_ids")
            inputs["encoder_outputs"] = BaseModelOutput(last_hidden_state=self.hidden)
        return self.model(**inputs, use_cache=False).logits[0, len(self.before) - 1 :]


@dataclass(kw_only=True)
class Row(ReferenceRow):
    """A row while it decodes. `settled`: first position that no call has looked at yet."""

    student: Lane
    teachers: list[Lane]
    student_warp: Warp
    teacher_warp: Warp
    options: GenerateOptions
    key: int
    max_teacher_fraction: float | dict[int, float] | None  # of all teachers together, or of those named
    max_teacher_calls: int | dict[int, int] | None
    eos: int
    taus: list[int]
    asked: int = 1  # the teacher that the next call is for
    forced: int = 0
    settled: int = 0
    draft_logits: dict[int, Tensor] = field(default_factory=dict)  # the student's at a draft, where they are banned

    @property
    def length(self) -> int:
        """Output tokens so far."""
        return len(self.tokens)

    @property
    def ended(self) -> bool:
        """Whether nothing can follow."""
        return self.length == self.options.max_new_tokens or (self.length > 0 and self.tokens[-1] == self.eos)

    def append(self, token: int, owner: int, teacher: int = 0) -> None:
        """Commits a token."""
        self.tokens.append(token)
        self.owners.append(owner)
        self.teacher_index.append(teacher)

    def roll_back(self, position: int) -> None:
        """Discards `position` and what follows."""
        self.rolled_back += self.length - position
        del self.tokens[position:], self.owners[position:], self.teacher_index[position:]
        # The student's action at `position` was taken; what follows was not.
        del self.student_logprobs[position + 1 :], self.teacher_logprobs[position + 1 :]

    def ruled(self, logits: Tensor, position: int, allowed: Sequence[int] = (), reader: Lane | None = None) -> Tensor:
        """`logits` [V] under the call's rules: banned are EOS before `min_new_tokens`, and taus.

        But not the taus of the teachers that the student may ask here, `allowed`. `reader`: whose logits they are, and
        what it has read; None = the student.
        """
        banned = [self.eos] if position < self.options.min_new_tokens else []
        banned += [tau for number, tau in enumerate(self.taus, 1) if number not in allowed]
        read = [*(reader or self.student).before, *self.tokens[:position]]
        return edit(logits, read, position, banned, self.options, self.forced, self.eos)

    def uniform(self, position: int, stream: int) -> float:
        """The row's random number."""
        return float(uniform(self.options.seed, self.key, position, stream))

    def note(self, close: bool, position: int) -> None:
        """Remembers a close decision."""
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


def set_at(values: list[float], position: int, value: float) -> None:
    """Sets an entry of a list that grows by NaN."""
    values.extend([math.nan] * (position + 1 - len(values)))
    values[position] = value


class Decoder:
    """The one loop, whose settings are attributes. A method is a call rule and an accept rule.

    Call: `_must_call`, `_act`. Accept: `_checked`, `_passes`, `_correct`.

    draft:   the student writes tokens until the call rule asks for the teacher
    call:    the teacher reads everything in one pass
    accept:  the first draft that fails is replaced by the teacher's token and what follows it is discarded;
             if none fails the drafts stand and the teacher may add its token after them
    """

    marks_teacher = False  # the student sees which tokens the teacher wrote (Eq. 13)
    checks_the_end = True  # a drafted EOS, or the last token that fits, still goes to the teacher
    adds_token = True  # the teacher adds a token where all drafts stand

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | Sequence[PreTrainedModel] = (),
        **settings: Any,
    ) -> None:
        self.student = student
        self.teachers: list[Any] = list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]
        for name, value in settings.items():
            if not hasattr(type(self), name):
                raise TypeError(f"{type(self).__name__} has no setting {name!r}")
            setattr(self, name, value)

    # Call rule.

    def _must_call(self, row: Row) -> bool:
        """True where the teacher is called without asking the student."""
        return False

    def _act(self, row: Row, logits: Tensor) -> int | None:
        """The student's action at the next position given its logits [V]: a token, or None = call."""
        return row.pick(row.ruled(logits, row.length), row.student_warp, row.length, STREAM_STUDENT)

    # Accept rule.

    def _checked(self, row: Row) -> range:
        """Positions of the drafts that this call checks, in order."""
        return range(row.settled, row.length)

    def _passes(self, row: Row, position: int, logits: Tensor) -> bool:
        """Whether the draft at `position` stands, given the teacher's banned logits [V] there."""
        return True

    def _correct(self, row: Row, position: int, logits: Tensor) -> int:
        """The teacher's token in place of the draft that failed at `position`."""
        return row.pick(logits, row.teacher_warp, position, STREAM_TEACHER)

    def _run(self, row: Row) -> None:
        while not row.ended:
            while not self._must_call(row):
                position = row.length
                logits = row.student.logits(row.tokens, row.teacher_index if self.marks_teacher else None)[-1]
                token = self._act(row, logits)
                if token is None:
                    break
                set_at(row.student_logprobs, position, log_prob(logits, token))
                row.append(token, STUDENT)
                row.drafted += 1
                if row.ended and not self.checks_the_end:
                    return

            read = row.teachers[row.asked - 1].logits(row.tokens)
            row.teacher_calls += 1
            row.calls_by_teacher[row.asked - 1] += 1
            # Of several teachers the first that reads a position scores it.
            for position in range(row.settled, row.length):
                set_at(row.teacher_logprobs, position, log_prob(read[position], row.tokens[position]))

            for position in self._checked(row):
                allowed = row.ruled(read[position], position, reader=row.teachers[row.asked - 1])
                if not self._passes(row, position, allowed):
                    row.roll_back(position)
                    self._teacher_writes(row, self._correct(row, position, allowed), CORRECTED, read)
                    break
                row.owners[position] = ACCEPTED
            else:
                if self.adds_token and not row.ended:
                    position = row.length
                    allowed = row.ruled(read[position], position, reader=row.teachers[row.asked - 1])
                    token = row.pick(allowed, row.teacher_warp, position, STREAM_TEACHER)
                    self._teacher_writes(row, token, TEACHER, read)
            row.settled = row.length

    @staticmethod
    def _teacher_writes(row: Row, token: int, owner: int, read: Tensor) -> None:
        set_at(row.teacher_logprobs, row.length, log_prob(read[row.length], token))
        row.append(token, owner, row.asked)

    @torch.inference_mode()
    def generate(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        teacher_inputs: Any = None,
        **options: Unpack[GenerateKeywords],
    ) -> list[ReferenceRow]:
        """Decode every row of `input_ids` [R, S] alone; returns R * num_return_sequences rows in order.

        `attention_mask` [R, S] is 1 at source tokens and 0 at padding. `teacher_inputs` is one for all teachers or one
        for each. Of the options (:class:`kdtw_fast.GenerateOptions`) those that decide what is written are obeyed.
        Sequences of one source lie together; row keys (`row_ids`) count rows after that repetition.

        Log-probabilities: the student's belong to its own action, so at a corrected position to its rejected draft;
        where it took none (a forced token, a bonus token, a hand-over that is not tau) they are NaN. The teacher's are
        there for every position up to its last pass but the forced ones, which nobody chose.
        """
        sources = _rows(input_ids, attention_mask)
        several = isinstance(teacher_inputs, (list, tuple))
        theirs = [
            sources if given is None else _rows(given["input_ids"], given.get("attention_mask"))
            for given in (teacher_inputs if several else [teacher_inputs] * len(self.teachers))
        ]
        told = GenerateOptions(**options)
        limits = [told.per_row(name, len(sources)) for name in ("max_teacher_fraction", "max_teacher_calls")]
        of_rows = told.by_row(len(sources))
        taus = taus_of(self.student)
        eos = self.student.config.eos_token_id
        if not isinstance(eos, int):
            raise TypeError(f"the model needs one eos_token_id, its config has {eos!r}")
        rows: list[ReferenceRow] = []
        for index in range(len(sources) * told.num_return_sequences):
            source = index // told.num_return_sequences
            row = Row(
                student=Lane(self.student, sources[source]),
                teachers=[Lane(model, own[source]) for model, own in zip(self.teachers, theirs, strict=True)],
                student_warp=Warp(*told.sampling),
                teacher_warp=Warp(*told.teacher_sampling),
                options=of_rows[source],
                key=index if told.row_ids is None else told.row_ids[index],
                max_teacher_fraction=limits[0][source],
                max_teacher_calls=limits[1][source],
                eos=eos,
                taus=taus,
                calls_by_teacher=[0] * len(self.teachers),
            )
            for token in of_rows[source].forced_tokens:
                row.append(int(token), FORCED)
            row.forced = row.settled = row.length
            self._run(row)
            rows.append(_result(row))
        return rows


def _result(row: Row) -> ReferenceRow:
    for values in (row.student_logprobs, row.teacher_logprobs):
        values.extend([math.nan] * (row.length - len(values)))
    return ReferenceRow(**{name.name: getattr(row, name.name) for name in fields(ReferenceRow)})


def _rows(input_ids: Any, attention_mask: Any) -> list[list[int]]:
    ids = torch.as_tensor(input_ids)
    kept = torch.ones_like(ids) if attention_mask is None else torch.as_tensor(attention_mask)
    return [row[mask.bool()].tolist() for row, mask in zip(ids, kept, strict=True)]


def taus_of(model: Any) -> list[int]:
    """The ids of <tau>, one for each teacher; none of a plain T5."""
    one, several = (getattr(model.config, name, None) for name in ("tau_token_id", "tau_token_ids"))
    return several or ([] if one is None else [one])
