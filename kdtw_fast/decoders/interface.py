"""What can be asked of every decoder: ``generate``, calls with strings, ``stream``."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Unpack

import numpy as np
import torch

from kdtw_fast.budgets import resolve_budgets
from kdtw_fast.decoders.reading import Reading, Row
from kdtw_fast.decoders.submitting import Submitting
from kdtw_fast.generation import options_of
from kdtw_fast.inputs import check_items
from kdtw_fast.keywords import takes
from kdtw_fast.messages import named, unpicklable
from kdtw_fast.model import NativeT5
from kdtw_fast.options import (
    LIMITS,
    MOST_ROWS,
    ON_ERROR,
    GenerateKeywords,
    GenerateOptions,
    check_int,
    check_word,
)
from kdtw_fast.outputs import GenerationOutput
from kdtw_fast.stops import output_texts
from kdtw_fast.streams import Stream
from kdtw_fast.worker import TokenStreamer


class AnyDecoder(Reading, Submitting, ABC):
    """``generate``, calls with strings and ``stream`` of what decodes rows."""

    teachers: tuple[NativeT5, ...]
    defaults: Mapping[str, Any]

    @abstractmethod
    def _decode(self, rows: Sequence[Row], options: GenerateOptions, streamer: Any) -> GenerationOutput:
        """A call of `generate` with inputs that were read."""

    @abstractmethod
    def _stream(
        self,
        inputs: Iterable[Any],
        batch_size: int,
        budget: Any,
        in_order: bool,
        on_error: str,
        options: GenerateOptions,
    ) -> Stream:
        """A call of `stream` with options that were checked."""

    @property
    def teacher(self) -> NativeT5 | None:
        """The teacher, of several the first; None where there is none."""
        return self.teachers[0] if self.teachers else None

    @takes(GenerateOptions)
    def generate(
        self,
        input_ids: torch.Tensor | np.ndarray | Sequence[Sequence[int]],
        attention_mask: torch.Tensor | np.ndarray | Sequence[Sequence[int]] | None = None,
        *,
        teacher_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        streamer: TokenStreamer | Any = None,
        **options: Unpack[GenerateKeywords],
    ) -> GenerationOutput:
        """Decodes R rows of ragged length.

        Args:
            input_ids: the student's source tokens [R, S]; lists may be ragged, tensors are padded with
                ``attention_mask`` 0 (or, without a mask, with the pad token at the end of a row).
            attention_mask: [R, S], 1 for tokens; the ones of a row must be contiguous.
            teacher_inputs: the teacher's ``input_ids`` and ``attention_mask``, when its prompt differs from the
                student's; None = the same. For several teachers also a list with one for each.
            streamer: called as ``streamer(row, position, token_id, owner)`` with each token that nothing can
                take back any more, or a Hugging Face streamer (``put``/``end``; one row).
            **options: the fields of :class:`kdtw_fast.GenerateOptions`.

        Returns:
            GenerationOutput.

        Raises:
            TypeError: a value of the wrong type or an unknown option (naming the nearest known one).
            ValueError: a value out of range, an empty batch or row, ids outside the vocabulary, an over-long source.
            FloatingPointError: a model produced a logit that is not finite, naming model, row and step.
            KeyboardInterrupt: Ctrl-C; the decoder stays usable.
        """
        try:
            parsed = self._parsed(options)
            rows = self._rows(input_ids, attention_mask, teacher_inputs, parsed)
            return self._decode(rows, parsed, streamer)._with_words(self._words)
        except BaseException:
            end(streamer)
            raise

    @takes(GenerateOptions)
    def __call__(
        self,
        text: str | Sequence[str],
        budget: str | float | Mapping[int, Any] | Sequence[Any] | None = None,
        *,
        teacher_inputs: Any = None,
        streamer: TokenStreamer | Any = None,
        **options: Unpack[GenerateKeywords],
    ) -> GenerationOutput:
        """Decodes strings: builds the prompts each model was trained with, tokenizes, and fills ``.texts``.

        Args:
            text: one string or a list of strings.
            budget: a phrase ("light") or fraction (0.1) of :data:`kdtw_fast.BUDGETS`, put into the student's
                prompt; None = "no" for decoders that do not ask; TypeError where no prompt has a place for it. A list
                has one for each text. For a student of several teachers each is a mapping from their numbers:
                {1: "light", 2: "no"}. "no" (0) is kept to the token: it sets ``max_teacher_calls`` of 0 for that
                teacher unless a limit is given.
            teacher_inputs: as for :meth:`generate`, instead of the text behind the teacher's prompt.
            streamer: as for :meth:`generate`.
            **options: the fields of :class:`kdtw_fast.GenerateOptions`.
        """
        return self._written(self._texts, text, budget, teacher_inputs, streamer, options)

    @takes(GenerateOptions)
    def chat(
        self,
        messages: Sequence[Mapping[str, str]] | Sequence[Sequence[Mapping[str, str]]],
        budget: str | float | Mapping[int, Any] | Sequence[Any] | None = None,
        *,
        streamer: TokenStreamer | Any = None,
        **options: Unpack[GenerateKeywords],
    ) -> GenerationOutput:
        """Decodes what comes next in a conversation, in the tokenizer's chat template, and fills ``.texts``.

        Args:
            messages: a conversation, {"role": …, "content": …} in order, or a list of them. The prompt that a model was
                trained with comes before the content of the user's last message.
            budget, streamer, **options: as in a call with strings.

        Raises:
            ValueError: the tokenizer has no chat template; otherwise as a call with strings.
        """
        return self._written(self._chats, messages, budget, None, streamer, options)

    def _written(
        self, read: Callable[..., Any], texts: Any, budget: Any, teacher_inputs: Any, streamer: Any, options: Any
    ) -> GenerationOutput:
        """A call with texts, which ``read`` checks and puts into a list."""
        try:
            texts = read(texts)
            budgets = self._budgets(self._budget_of(budget), len(texts))
            ids, teachers_ids = self._tokenized(texts, budgets)
            parsed = self._parsed(options)
            if all(getattr(parsed, name) is None for name in LIMITS):
                none = [self._asked_for_none(one) for one in budgets]
                if any(none):
                    parsed = replace(parsed, max_teacher_calls=none)
            inputs = teachers_ids if teacher_inputs is None else teacher_inputs
            out = self._decode(self._rows(ids, None, inputs, parsed), parsed, streamer)
        except BaseException:
            end(streamer)
            raise
        out._with_words(self._words)
        out.texts = output_texts(self.tokenizer, out, parsed)
        return out

    @takes(GenerateOptions)
    def stream(
        self,
        inputs: Iterable[Any],
        *,
        batch_size: int = 16,
        budget: str | float | Mapping[int, Any] | None = None,
        in_order: bool = False,
        on_error: str = "raise",
        **options: Unpack[GenerateKeywords],
    ) -> Stream:
        """Decodes any number of items, ``batch_size`` at a time: a row that has finished makes room for the next item.

        What comes out for an item is what ``generate`` (or a call, for strings) on the list of all items gives for
        its row, bit for bit: neither the rows beside it nor the order in which they finish change it.

        One value of an option holds for all items. ``row_ids`` and ``num_return_sequences`` are refused: an item may
        have a "row_id", and may be given several times.

        Args:
            inputs: an iterable, read only as room comes free, and in a thread of its own unless it is a sequence, so
                that a slow one holds up no row. Items are strings (prompts as in a call), lists of token ids (rows as
                ``generate`` takes them), or mappings with the keys of :class:`kdtw_fast.inputs.Item`: "text",
                "messages" or "input_ids", and where the item differs from the others "teacher_input_ids", "budget",
                "row_id", limits, lengths, sampling, stops, rules and forced tokens.
            batch_size: rows decoded together, 1 to 2^16.
            budget: for strings, as in a call, one for all items.
            in_order: yield outputs in the items' order instead of as they finish.
            on_error: what becomes of an item that is wrong: "raise" ends the stream with its exception; "return"
                yields an output with its ``index`` and ``error`` and goes on.
            **options: the fields of :class:`kdtw_fast.GenerateOptions`.

        Returns:
            Stream: an iterator of one-row :class:`kdtw_fast.GenerationOutput`, each with its ``index``, and with
            ``texts`` where a string went in.

        Raises:
            TypeError, ValueError: a wrong option. What is wrong with an item comes out of the iteration.
        """
        parsed = self._parsed(options)
        check_int("batch_size", batch_size, 1, MOST_ROWS)
        check_word("on_error", on_error, ON_ERROR)
        check_items(inputs, Iterable)
        parsed.check_one_each("a stream")
        budget = self._budget_of(budget)
        with named("budget of a stream, whose items may have their own"):
            budget = self._one_budget(budget)
        return self._stream(inputs, batch_size, budget, in_order, on_error, parsed)

    def __reduce__(self) -> Any:
        raise unpicklable(self)

    def __copy__(self) -> Any:
        """Another decoder of the same models."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        return other

    def _parsed(self, options: GenerateKeywords) -> GenerateOptions:
        """A call's keywords, and for what they do not say, the checkpoint's defaults."""
        return options_of(self.defaults, options)

    def _asked_for_none(self, budget: Any) -> dict[int, int] | None:
        """``max_teacher_calls`` of the teachers that a decoder that could ask is told not to; None = of none."""
        if not self._keeps_limits or budget is None:
            return None
        return {k: 0 for k, one in enumerate(resolve_budgets(budget), 1) if one.fraction == 0} or None


def is_text_streamer(streamer: Any) -> bool:
    """Whether it is one of Hugging Face's, with ``put`` and ``end``."""
    return streamer is not None and hasattr(streamer, "put") and hasattr(streamer, "end")


def end(streamer: Any) -> None:
    """Ends a Hugging Face streamer, after an error too, so that whoever reads it does not wait for ever."""
    if is_text_streamer(streamer):
        streamer.end()
