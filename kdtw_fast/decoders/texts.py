"""Calls with strings, which every decoder has: prompts, tokens, ``generate``, texts."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Unpack

from kdtw_fast.budgets import resolve_budgets
from kdtw_fast.decoders.reading import Reader
from kdtw_fast.keywords import takes
from kdtw_fast.model import NativeT5
from kdtw_fast.options import LIMITS, GenerateKeywords, GenerateOptions
from kdtw_fast.outputs import GenerationOutput

TokenStreamer = Callable[[int, int, int, int], None]


class TextDecoder(ABC):
    """What can be called with strings, because it generates from token ids and its reader knows the prompts."""

    teachers: tuple[NativeT5, ...]
    tokenizer: Any
    _reader: Reader
    _keeps_limits = False  # single tokens are asked for: calls may be bounded, and the student's prompt names a budget

    @abstractmethod
    def generate(
        self,
        input_ids: Any,
        attention_mask: Any = None,
        *,
        teacher_inputs: Any = None,
        streamer: Any = None,
        **options: Unpack[GenerateKeywords],
    ) -> GenerationOutput:
        """Decodes rows of token ids."""

    @property
    def teacher(self) -> NativeT5 | None:
        """The teacher, of several the first; None where there is none."""
        return self.teachers[0] if self.teachers else None

    @takes(GenerateOptions)
    def __call__(
        self,
        text: str | Sequence[str],
        budget: str | float | Sequence[Any] | None = None,
        *,
        teacher_inputs: Any = None,
        streamer: TokenStreamer | Any = None,
        **options: Unpack[GenerateKeywords],
    ) -> GenerationOutput:
        """Decodes strings: builds the prompts each model was trained with, tokenizes, and fills ``.texts``.

        Args:
            text: one string or a list of strings.
            budget: a phrase ("light") or fraction (0.1) of :data:`kdtw_fast.BUDGETS`, put into the student's
                prompt; None = "no" for decoders that do not ask. A list has one for each of several teachers. "no"
                (0) is kept to the token: it sets ``max_teacher_calls`` of 0 for that teacher unless a limit is given.
            teacher_inputs: as for :meth:`generate`, instead of the text behind the teacher's prompt.
            streamer: as for :meth:`generate`.
            **options: the fields of :class:`kdtw_fast.GenerateOptions`.
        """
        with ending(streamer):
            budget = self._budget_of(budget)
            ids, teachers_ids = self._reader.texts(text, budget)
        if all(options.get(name) is None for name in LIMITS) and (none := self._asked_for_none(budget)):
            options["max_teacher_calls"] = none
        inputs = teachers_ids if teacher_inputs is None else teacher_inputs
        out = self.generate(ids, teacher_inputs=inputs, streamer=streamer, **options)
        out.texts = self.tokenizer.batch_decode(out.output_ids, skip_special_tokens=True)
        return out

    def tokenize(
        self, texts: Sequence[Any], budgets: Sequence[Any]
    ) -> list[tuple[list[int], Sequence[list[int] | None]]]:
        """Each text's tokens for student and teachers, behind the prompts they were trained with.

        Args:
            texts: R strings.
            budgets: R phrases or fractions for the student's prompts (lists of them for several teachers); None = "no".

        A call does this before it decodes; :meth:`generate` takes what comes out.
        """
        return self._reader.tokenize(texts, budgets)

    def _budget_of(self, budget: Any) -> Any:
        """The budget that goes into the student's prompt, where a call was given this one."""
        return budget

    def _asked_for_none(self, budget: Any) -> dict[int, int] | None:
        """``max_teacher_calls`` of the teachers that a decoder that could ask is told not to; None = of none."""
        if not self._keeps_limits or budget is None:
            return None
        return {k: 0 for k, one in enumerate(resolve_budgets(budget), 1) if one.fraction == 0} or None


def is_text_streamer(streamer: Any) -> bool:
    """Whether it is one of Hugging Face's, with ``put`` and ``end``."""
    return hasattr(streamer, "put") and hasattr(streamer, "end")


@contextmanager
def ending(streamer: Any) -> Iterator[None]:
    """An exception from inside ends a Hugging Face streamer, so that whoever reads it does not wait for ever."""
    try:
        yield
    except BaseException:
        if is_text_streamer(streamer):
            streamer.end()
        raise
