"""What a decoder returns: tokens, who wrote each of them, counts and times."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from transformers.utils import ModelOutput

from kdtw_fast import _core
from kdtw_fast.costs import Prediction
from kdtw_fast.deprecation import renamed_field
from kdtw_fast.loaders import given_tokenizer
from kdtw_fast.options import GenerateOptions
from kdtw_fast.owner import Owner as Owner
from kdtw_fast.owners_tensor import Owners

FINISH_REASONS = ("running", "end", "length", "time", "fault", "stop")


@dataclass
class Timings:
    """Seconds of one ``generate`` call or ``stream``, by where they went; ``other`` is the loop itself."""

    encode: float
    student: float
    teacher: float
    other: float

    @property
    def total(self) -> float:
        """Seconds in the native core."""
        return self.encode + self.student + self.teacher + self.other


@dataclass
class GenerationOutput(ModelOutput):
    """Result of every decoder's ``generate`` (R rows) and what its ``stream`` yields (one row); T = 1 + longest output.

    Args:
        sequences: int64 [R, T], each row its start token (of models without an encoder: its prompt), its output
            (with the end token) and padding, as Hugging Face's ``generate`` returns them for the row alone.
        prompt_lengths: int64 [R], tokens of ``sequences`` before the output.
        owners: uint8 [R, T], an :class:`Owner` code per token of ``sequences``; prints as names.
        lengths: int64 [R], output tokens per row (start token, prompt and padding not counted).
        teacher_index: uint8 [R, T], which teacher wrote the token, 1 to n; 0 where no teacher did.
        teacher_calls: int64 [R], passes of the teacher (of all teachers) that served the row.
        teacher_fraction: float32 [R], tokens written by the teacher (by all teachers) over ``lengths``; 0 of no tokens.
        calls_by_teacher: int64 [R, n], the same for each teacher; n = 0 where a student decodes alone.
        fraction_by_teacher: float32 [R, n], the same for each teacher.
        drafted: int64 [R], tokens the student wrote, those later taken back included.
        accepted: int64 [R], student tokens that a check let stand.
        rolled_back: int64 [R], student tokens taken back.
        finish_reasons: per row "end" (end token), "length", "time", "stop" (``stop``, ``stop_token_ids``), "empty" (a
            stream's text that was blank).
        student_passes: passes of the student's decoder over the batch.
        teacher_passes: passes of the teachers' decoders over the batch.
        timings: seconds by phase. None in a stream, like the passes: rows share them, the stream has the sums.
        student_logprobs: float32 [R, T], log-probability of the student's action (temperature 1): its
            token, or <tau> where it asked; NaN where it took none. With ``output_logprobs`` only.
        teacher_logprobs: float32 [R, T], the teacher's log-probability of the token where one of its
            passes read that place; NaN elsewhere. With ``output_logprobs`` only.
        top_ids: int64 [R, T, k], the k = ``top_logprobs`` likeliest tokens at each place, best first, by the model that
            decided there; -1 where none did (forced tokens, what is no output) or the vocabulary has no more. With
            ``top_logprobs`` only.
        top_logprobs: float32 [R, T, k], their log-probabilities (temperature 1, before rules); NaN beside -1.
        student_reads: per row, the tokens that each pass of the student's decoder read of it, in order. With
            ``output_reads`` only.
        teacher_reads: the same of the teacher; a row that never asked has none.
        texts: decoded outputs, when strings went in.
        prediction: of :class:`kdtw_fast.AutoDecoder`: the method that ran, and its predicted time.
        index: of a stream's row, the place of its item in the input; None otherwise.
        error: of a stream with ``on_error="return"``, what was wrong with the item; all but ``index`` is None then.
    """

    sequences: torch.Tensor | None = None
    prompt_lengths: torch.Tensor | None = None
    owners: torch.Tensor | None = None
    teacher_index: torch.Tensor | None = None
    lengths: torch.Tensor | None = None
    teacher_calls: torch.Tensor | None = None
    teacher_fraction: torch.Tensor | None = None
    calls_by_teacher: torch.Tensor | None = None
    fraction_by_teacher: torch.Tensor | None = None
    drafted: torch.Tensor | None = None
    accepted: torch.Tensor | None = None
    rolled_back: torch.Tensor | None = None
    finish_reasons: list[str] | None = None
    student_passes: int | None = None
    teacher_passes: int | None = None
    timings: Timings | None = None
    student_logprobs: torch.Tensor | None = None
    teacher_logprobs: torch.Tensor | None = None
    top_ids: torch.Tensor | None = None
    top_logprobs: torch.Tensor | None = None
    student_reads: list[list[int]] | None = None
    teacher_reads: list[list[int]] | None = None
    texts: list[str] | None = None
    prediction: Prediction | None = None
    index: int | None = None
    error: Exception | None = None

    experts = renamed_field("GenerationOutput", "experts", "teacher_index")
    expert_calls = renamed_field("GenerationOutput", "expert_calls", "calls_by_teacher")
    expert_fraction = renamed_field("GenerationOutput", "expert_fraction", "fraction_by_teacher")

    _words: ClassVar[Any] = None  # of an object that a decoder made: a function that gives its tokenizer; never saved

    def show(self, tokenizer: Any = None) -> None:
        """Prints each row, who wrote what in it, and the teachers' share; colours where there is a terminal.

        Args:
            tokenizer: loaded, or its folder; None = the decoder's.

        Raises:
            FileNotFoundError: the folder holds none.
            ValueError: there is none: the decoder had none, or the output was saved and loaded.
        """
        from kdtw_fast.owners_view import print_output

        print_output(self, self._tokenizer(tokenizer))

    def _repr_html_(self) -> str | None:
        """The same for notebooks, which otherwise show the fields."""
        if self._words is None or self._words() is None:
            return None
        from kdtw_fast.owners_view import html_output

        return html_output(self, self._words())

    def _with_words(self, words: Callable[[], Any]) -> GenerationOutput:
        object.__setattr__(self, "_words", words)
        return self

    def _tokenizer(self, given: Any) -> Any:
        found = given_tokenizer(given) if given is not None or self._words is None else self._words()
        if found is None:
            raise ValueError("this output has no tokenizer: its decoder had none, or it was saved; show(tokenizer=…)")
        return found

    def __reduce__(self) -> Any:
        """ModelOutput's, without what belongs to the decoder."""
        if self._words is None:
            return super().__reduce__()
        return GenerationOutput._of(dict(self.items())).__reduce__()

    @property
    def output_ids(self) -> list[list[int]]:
        """The tokens of each row's output, with the end token where it was reached."""
        return (
            [ids[span] for ids, span in zip(self.sequences.tolist(), self.spans)] if self.sequences is not None else []
        )

    @property
    def spans(self) -> list[slice]:
        """Where each row's output stands in ``sequences`` and what lies beside it; none where ``error`` is set."""
        if self.prompt_lengths is None or self.lengths is None:
            return []
        places = zip(self.prompt_lengths.tolist(), self.lengths.tolist(), strict=True)
        return [slice(start, start + length) for start, length in places]

    @property
    def token_logprobs(self) -> torch.Tensor:
        """float32 [R, T], the log-probability of each output token by the model that decided it: its writer, or for an
        accepted draft the teacher. NaN beside outputs and for forced tokens. With ``output_logprobs`` only.
        """
        if self.student_logprobs is None or self.teacher_logprobs is None or self.owners is None:
            raise ValueError("this output has no log-probabilities; decode with output_logprobs=True")
        by = {Owner.STUDENT: self.student_logprobs}
        by |= dict.fromkeys((Owner.TEACHER, Owner.ACCEPTED, Owner.CORRECTED), self.teacher_logprobs)
        found = torch.full_like(self.student_logprobs, math.nan)
        for owner, log_probs in by.items():
            found = torch.where(torch.as_tensor(self.owners) == owner, log_probs, found)
        return found

    @property
    def sequences_scores(self) -> torch.Tensor:
        """float32 [R], the sum of each output's :attr:`token_logprobs`: what tells outputs of one input apart."""
        return self.token_logprobs.nansum(1)

    @property
    def ms_per_token(self) -> float:
        """Milliseconds of the native call per output token of all rows; NaN where there is none.

        ValueError for a row of a stream, or one that was submitted: it shared passes with others.
        """
        if self.timings is None or self.lengths is None:
            raise ValueError(
                "this output has no timings: a row of a stream shares passes with others, and stream.timings has the "
                "sums; of a row that was submitted, ticket.ended - ticket.started is the time in seconds"
            )
        tokens = int(self.lengths.sum())
        return 1000.0 * self.timings.total / tokens if tokens else math.nan

    def __post_init__(self) -> None:
        """Nothing: ModelOutput would look for a dictionary among the fields, and all are in place."""

    def __setattr__(self, name: str, value: Any) -> None:
        """ModelOutput's, which also makes a field that is not None an item, without listing all fields each time."""
        if value is not None and name in self.__dataclass_fields__:
            OrderedDict.__setitem__(self, name, value)
        object.__setattr__(self, name, value)

    @classmethod
    def _of(cls, given: dict[str, Any]) -> GenerationOutput:
        """The output that the constructor would make of fields that are not None, in a quarter of its time."""
        out = cls.__new__(cls)
        for name in cls.__dataclass_fields__:
            if name in given:
                OrderedDict.__setitem__(out, name, given[name])
        out.__dict__.update(given)
        return out


_LISTS = ("student_reads", "teacher_reads")  # fields that the core gives as one list per row


def together(result: Mapping[str, Any], session: _core.Session) -> GenerationOutput:
    """All rows of a session that has come to its end, as one output."""
    arrays, finish, _ = _parts(result)
    fields: dict[str, Any] = {name: torch.from_numpy(value) for name, value in arrays.items()}
    fields["owners"] = Owners.of(fields["owners"])
    fields |= {name: result[name] for name in _LISTS if name in result}
    fields["finish_reasons"] = [FINISH_REASONS[code] for code in finish]
    fields |= {"student_passes": session.student_passes, "teacher_passes": session.teacher_passes}
    return GenerationOutput._of(fields | {"timings": Timings(*session.seconds)})


def one_by_one(result: Mapping[str, Any]) -> Iterator[tuple[int, GenerationOutput]]:
    """The numbers of rows that have finished, and an output for each, without the others' padding."""
    arrays, finish, index = _parts(result)
    ends = (arrays["prompt_lengths"] + arrays["lengths"]).tolist()
    for r, end in enumerate(ends):
        row: dict[str, Any] = {
            name: torch.from_numpy(
                value[r : r + 1] if value.ndim == 1 or name in _BY_TEACHER else value[r : r + 1, :end]
            )
            for name, value in arrays.items()
        }
        row["owners"] = Owners.of(row["owners"])
        row |= {name: [result[name][r]] for name in _LISTS if name in result}
        row |= {"finish_reasons": [FINISH_REASONS[finish[r]]], "index": index[r]}
        yield index[r], GenerationOutput._of(row)


def empty(index: int, teachers: int, options: GenerateOptions) -> GenerationOutput:
    """A stream's output for a text in which there is nothing to decode, with all that its options ask for."""
    counts = {name: torch.zeros(1, dtype=torch.int64) for name in _COUNTS}
    tokens = {name: torch.zeros(1, 0, dtype=dtype) for name, dtype in _TOKENS.items()}
    by_teacher = {
        "calls_by_teacher": torch.zeros(1, teachers, dtype=torch.int64),
        "fraction_by_teacher": torch.zeros(1, teachers),
    }
    asked: dict[str, Any] = {}
    if options.output_logprobs:
        asked |= {"student_logprobs": torch.zeros(1, 0), "teacher_logprobs": torch.zeros(1, 0)}
    if count := options.top_logprobs:
        asked |= {"top_ids": torch.zeros(1, 0, count, dtype=torch.int64), "top_logprobs": torch.zeros(1, 0, count)}
    if options.output_reads:
        asked |= {name: [[]] for name in _LISTS}
    return GenerationOutput._of(
        counts
        | tokens
        | by_teacher
        | asked
        | {"teacher_fraction": torch.zeros(1), "finish_reasons": ["empty"], "texts": [""], "index": index}
    )


_COUNTS = ("prompt_lengths", "lengths", "teacher_calls", "drafted", "accepted", "rolled_back")
_TOKENS = {"sequences": torch.int64, "owners": torch.uint8, "teacher_index": torch.uint8}
_BY_TEACHER = ("calls_by_teacher", "fraction_by_teacher")


def _parts(result: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], list[int], list[int]]:
    """The core's arrays that are fields of an output, and finish codes and row numbers."""
    arrays = {name: value for name, value in result.items() if isinstance(value, np.ndarray)}
    return arrays, arrays.pop("finish").tolist(), arrays.pop("index").tolist()
