"""From what users give (token ids, strings, a stream's items) to the tokens that each model of a decoder reads."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any, NamedTuple

from kdtw_fast.budgets import fill_prompt, join_phrases, resolve_budgets
from kdtw_fast.deprecation import warn_renamed
from kdtw_fast.inputs import Item, check_chat, check_ids, check_text, encode_texts, source, token_list, token_rows
from kdtw_fast.messages import named
from kdtw_fast.model import NativeT5
from kdtw_fast.options import LIMITS, GenerateOptions, is_sequence

# The decoders that bound a row's calls.
LIMITED = "TrainingWheelsDecoder, RandomCallDecoder and EntropyCallDecoder"


class Row(NamedTuple):
    """The source tokens of one row: of the model that writes, and of each of its teachers (empty = the same)."""

    own: list[int]
    teachers: list[list[int]]


class Reading:
    """What a decoder is given, read for its models.

    Attributes:
        model: the model that writes: the student, or the one model of a decoder.
    """

    model: NativeT5
    _words: Callable[[], Any]  # the tokenizer
    _asked: tuple[NativeT5, ...]  # the models that may be asked
    _keeps_limits = False  # single tokens are asked for: calls may be bounded, and strings come with a budget
    _role = "student"  # "teacher" where the one model is a teacher, which reads a teacher's prompt
    _quality: Any = None  # AutoDecoder's, for which it made this decoder: its budget is for all items

    @cached_property
    def tokenizer(self) -> Any:
        """The tokenizer for strings; None = token ids only."""
        words = self._words()
        self._words = lambda: words  # for outputs, which show themselves with it
        return words

    def _rows(self, input_ids: Any, attention_mask: Any, teacher_inputs: Any, options: GenerateOptions) -> list[Row]:
        """The rows of a call of ``generate``; raises as documented there."""
        own = token_rows(input_ids, attention_mask, "input_ids", self.model, options)
        if teacher_inputs is not None and not self._asked:
            raise TypeError(f"teacher_inputs was given, but {type(self).__name__} has one model")
        given = self._per_teacher("teacher_inputs", teacher_inputs)
        columns: list[list[list[int]]] = []
        for k, (teacher, inputs) in enumerate(zip(self._asked, given)):
            name = "teacher_inputs" if len(self._asked) == 1 else f"teacher_inputs[{k}]"
            columns.append(_teachers_rows(teacher, inputs, name, own, options))
        return [Row(row, [column[r] for column in columns]) for r, row in enumerate(own)]

    def _texts(self, text: str | Sequence[str]) -> list[str]:
        """One string or several, checked."""
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise ValueError("the batch is empty; give at least one text")
        for i, item in enumerate(texts):
            check_text(item, f"text {i}")
        return texts

    def _chats(self, messages: Any) -> list[Any]:
        """The same for one conversation or several."""
        several = isinstance(messages, list | tuple) and bool(messages) and not isinstance(messages[0], Mapping)
        chats = list(messages) if several else [messages]
        for i, chat in enumerate(chats):
            check_chat(chat, f"conversation {i}")
        return chats

    def _tokenized(
        self, texts: Sequence[Any], budgets: Sequence[Any]
    ) -> tuple[list[list[int]], list[dict[str, Any]] | None]:
        """The ``input_ids`` and ``teacher_inputs`` of ``generate`` for texts and the budget of each."""
        for budget in budgets:
            self._check_takes_text(budget)
        ids, teacher_ids = zip(*self.tokenize(texts, budgets))
        return list(ids), [{"input_ids": list(own)} for own in zip(*teacher_ids)] if self._asked else None

    def _item(self, value: Any, label: str, budget: Any, options: GenerateOptions) -> Item:
        """A stream's item that ``value`` stands for, checked as far as can be before it is its turn."""
        item = Item.of(value, label)
        if item.budget is not None:
            if self._quality is not None:
                raise TypeError(
                    f"{label} has the budget {item.budget!r}, but this AutoDecoder was made for one, "
                    f"quality={self._quality!r}; leave it out"
                )
            with named(label):
                self._budget_of(item.budget)
            with named(f"{label}: budget"):
                item = replace(item, budget=self._one_budget(item.budget))
        item.options(options, label)
        if item.words is not None:
            with named(label):
                self._check_takes_text(budget if item.budget is None else item.budget)
        if item.teacher_input_ids is not None and not self._asked:
            raise TypeError(f"{label} has 'teacher_input_ids', but {type(self).__name__} has one model")
        for name in LIMITS:
            if getattr(item, name) is not None:
                if self._quality is not None:
                    raise TypeError(broken_by_auto(f"{label}: {name}"))
                self._check_takes_limits(f"{label}: {name}")
        return item

    def _item_rows(
        self, items: Sequence[Item], indices: Sequence[int], budget: Any, options: GenerateOptions
    ) -> Iterator[Row]:
        """The rows of a stream's items of those indices; their texts are tokenized together."""
        texts = [item for item in items if item.words is not None]
        budgets = [budget if item.budget is None else item.budget for item in texts]
        tokenized = iter(self.tokenize([item.words for item in texts], budgets))
        for index, item in zip(indices, items):
            label, teacher_label = f"item {index}", f"item {index}'s teacher_input_ids"
            ids, teacher_ids = item.input_ids, item.teacher_input_ids
            if item.words is not None:
                ids, teacher_ids = next(tokenized)
            elif len(self._asked) > 1 and teacher_ids is not None:
                teacher_ids = self._per_teacher(teacher_label, teacher_ids)
            else:
                teacher_ids = [teacher_ids] * len(self._asked)
            own = source(token_list(ids, label), label, self.model, options)
            row = Row(own, [])
            for teacher, given in zip(self._asked, teacher_ids):
                if given is None:
                    check_ids(own, label, teacher)
                    row.teachers.append([])
                else:
                    row.teachers.append(source(token_list(given, teacher_label), teacher_label, teacher, options))
            yield row

    def tokenize(
        self, texts: Sequence[Any], budgets: Sequence[Any]
    ) -> list[tuple[list[int], Sequence[list[int] | None]]]:
        """Each text's tokens for the model that writes and for its teachers, behind the prompts they were trained with.

        Args:
            texts: R strings or conversations (see :meth:`chat`).
            budgets: R phrases or fractions for the student's prompts (by teachers' numbers for several); None = "no".

        A call does this before it decodes; :meth:`generate` takes what comes out.
        """
        if not texts:
            return []

        template = self.model.student_prompt if self._role == "student" else None
        prompts: list[str | None] = [self.model.teacher_prompt] * len(texts)
        if template is not None:
            prompts = [fill_prompt(template, self._phrase(budget)) for budget in budgets]
        others = list({teacher.teacher_prompt: None for teacher in self._asked})
        every = [*prompts, *(prompt for prompt in others for _ in texts)]
        # One call of the tokenizer, which costs more than a short text.
        ids = encode_texts(self.tokenizer, [prompt or "" for prompt in every], [*texts] * (1 + len(others)))
        encoded = {prompt: ids[k * len(texts) :] for k, prompt in enumerate(others, 1)}
        return [(ids[i], [encoded[teacher.teacher_prompt][i] for teacher in self._asked]) for i in range(len(texts))]

    def _budget_of(self, budget: Any) -> Any:
        """The budget that goes into the student's prompt, where a call was given this one.

        TypeError where there is no such prompt, and no row whose calls it bounds: it would be obeyed by nobody.
        """
        prompt = self.model.student_prompt if self._role == "student" else None
        if budget is not None and not self._keeps_limits and "{budget}" not in (prompt or ""):
            raise TypeError(
                f"{type(self).__name__} takes no budget, which is told to a student whose prompt has a place for it; "
                f"got {budget!r}, leave it out"
            )
        return budget

    def _budgets(self, budget: Any, rows: int) -> list[Any]:
        """A call's budget for each of its rows: one for all, or a list with one for each."""
        budget = self._by_teacher(budget)
        if not is_sequence(budget):
            return [budget] * rows
        if len(budget) != rows:
            texts = "1 text" if rows == 1 else f"{rows} texts"
            raise ValueError(
                f"budget has {len(budget)} values for {texts}; give one for all, or a list with one for each"
            )
        for i, one in enumerate(budget):
            with named(f"budget of text {i}"):
                self._phrase(self._one_budget(one))
        return [self._by_teacher(one) for one in budget]

    def _one_budget(self, budget: Any) -> Any:
        """The budget of one row, or of all rows of a stream; TypeError for a list."""
        budget = self._by_teacher(budget)
        if is_sequence(budget):
            raise TypeError(f"one budget is wanted, or {{1: …, 2: …}} for several teachers; got {budget!r}")
        return budget

    def _by_teacher(self, budget: Any) -> Any:
        """A list of phrases for a student of several teachers as the mapping that it stood for once."""
        count = len(self.model.tau_token_ids)
        if count < 2 or not is_sequence(budget) or any(isinstance(one, Mapping) or is_sequence(one) for one in budget):
            return budget
        named = dict(enumerate(budget, 1))
        warn_renamed(f"budget={list(budget)!r} for teachers", f"budget={named!r}; a list has one for each text", 5)
        return named

    def _phrase(self, budget: Any) -> str:
        """What the student's prompt says of a budget, or of one for each of its teachers; None = "no"."""
        count = max(1, len(self.model.tau_token_ids))
        budgets = resolve_budgets(dict.fromkeys(range(1, 1 + count), "no") if budget is None else budget)
        if len(budgets) != count:
            asked = [one.phrase for one in budgets]
            each = ", ".join(f"{k}: …" for k in range(1, 1 + count))
            teachers = (
                "1 teacher, give one budget" if count == 1 else f"{count} teachers, give a budget for each: {{{each}}}"
            )
            raise ValueError(f"the student has {teachers}; got {asked}")
        return join_phrases(budgets)

    def _check_takes_text(self, budget: Any) -> None:
        """Raises ValueError where there is no tokenizer, or no budget for a decoder that keeps one."""
        if self.tokenizer is None:
            raise ValueError("this decoder has no tokenizer; pass tokenizer=… to decode strings, or give token ids")
        if budget is None and self._keeps_limits:
            raise ValueError(f"{type(self).__name__} needs a budget, for example budget='light'")

    def _check_takes_limits(self, label: str) -> None:
        """Raises TypeError where the decoder does not bound the calls of a row."""
        if not self._keeps_limits:
            mine = type(self).__name__
            raise TypeError(f"{label} bounds calls for single tokens and belongs to {LIMITED}, not {mine}")

    def _per_teacher(self, name: str, value: Any) -> Sequence[Any]:
        """`value`, or of a list its values, for each teacher; ValueError for another number of them."""
        if not isinstance(value, (list, tuple)):
            return [value] * len(self._asked)
        if len(value) != len(self._asked):
            raise ValueError(f"{name} has {len(value)} values for {len(self._asked)} teachers; give one for each")
        return value


def broken_by_auto(label: str) -> str:
    """What is said of a bound on the teacher's calls where AutoDecoder chooses the method."""
    return f"{label} is a bound that AutoDecoder would break with the teacher alone; it belongs to {LIMITED}"


def _teachers_rows(
    teacher: NativeT5, inputs: Any, name: str, rows: list[list[int]], options: GenerateOptions
) -> list[list[int]]:
    """A teacher's sources, one for each row; empty ones where it reads the student's."""
    if inputs is None:
        for r, row in enumerate(rows):
            check_ids(row, f"input_ids row {r}", teacher)
        return [[] for _ in rows]
    if not isinstance(inputs, Mapping) or "input_ids" not in inputs:
        raise TypeError(f"{name} must be a mapping with 'input_ids' (and 'attention_mask')")
    own = token_rows(inputs["input_ids"], inputs.get("attention_mask"), f"{name}['input_ids']", teacher, options)
    if len(own) != len(rows):
        raise ValueError(f"{name} has {len(own)} rows, but input_ids has {len(rows)}")
    return own
