"""The decoders users import: one native loop, one class per method, the same ``generate`` and ``stream`` for all.

Depends on the native core, models, options and outputs; a method is a call rule and an accept rule
(docs/design.md), given to the core as one small ``_core.MethodRules``.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from kdtw_fast import _core
from kdtw_fast.budgets import join_phrases, resolve_budgets
from kdtw_fast.inputs import Item, check_ids, check_text, named, row_keys, source, token_list, token_rows
from kdtw_fast.model import NativeT5, load
from kdtw_fast.options import GenerateOptions, check_int, check_real, is_sequence, nearest
from kdtw_fast.outputs import GenerationOutput, together
from kdtw_fast.streams import RowArguments, Stream

_LIMITS = ("max_teacher_calls", "max_teacher_fraction")
ModelLike = torch.nn.Module | NativeT5 | str | Path
TokenStreamer = Callable[[int, int, int, int], None]


class _Decoder:
    """What the decoders share: checked inputs, prompts for strings, the native call, the output."""

    student: NativeT5
    teachers: tuple[NativeT5, ...]  # none, one, or several where the student's <tau> chooses
    _calls_on_tau = False
    _has_ledger = False  # the teacher writes single tokens: calls may be bounded, and the prompt names a budget

    def __new__(cls, *args: Any, **keywords: Any) -> Self:
        """Refuses an unknown keyword with the nearest known one, before ``__init__`` would with Python's words."""
        known = [name for name in inspect.signature(cls.__init__).parameters if name != "self"]
        for name in keywords:
            if name not in known:
                raise TypeError(f"{cls.__name__} has no parameter {name!r}{nearest(name, known)}")
        return super().__new__(cls)

    def __init__(
        self,
        student: NativeT5,
        teachers: Sequence[NativeT5],
        method: _core.MethodRules,
        tokenizer: Any,
        num_threads: int | None,
    ):
        self.student, self.teachers, self.tokenizer = student, tuple(teachers), tokenizer
        if num_threads is not None:
            check_int("num_threads", num_threads, 1)
        self.num_threads = num_threads or _core.hardware_threads()
        for teacher in teachers:
            _check_pair(student, teacher)
        special = _core.SpecialTokens(student.decoder_start_token_id, student.eos_token_ids, student.tau_token_ids)
        self._core = _core.Decoder(
            student.device, student.core, [teacher.core for teacher in teachers], method, special
        )

    @property
    def teacher(self) -> NativeT5 | None:
        """The teacher, of several the first; None for decoders of one model."""
        return self.teachers[0] if self.teachers else None

    def generate(
        self,
        input_ids: torch.Tensor | np.ndarray | Sequence[Sequence[int]],
        attention_mask: torch.Tensor | np.ndarray | Sequence[Sequence[int]] | None = None,
        *,
        teacher_inputs: Mapping[str, Any] | Sequence[Mapping[str, Any] | None] | None = None,
        streamer: TokenStreamer | Any = None,
        **options: Any,
    ) -> GenerationOutput:
        """Decodes R rows of ragged length; options are the fields of :class:`kdtw_fast.GenerateOptions`.

        Args:
            input_ids: the student's source tokens [R, S]; lists may be ragged, tensors are padded with
                ``attention_mask`` 0 (or, without a mask, with the pad token at the end of a row).
            attention_mask: [R, S], 1 for tokens; the ones of a row must be contiguous.
            teacher_inputs: the teacher's ``input_ids`` and ``attention_mask``, when its prompt differs from the
                student's; None = the same. For several teachers also a list with one for each.
            streamer: called as ``streamer(row, position, token_id, owner)`` with each token that nothing can
                take back any more, or a Hugging Face streamer (``put``/``end``; one row).
            **options: see :class:`kdtw_fast.GenerateOptions`.

        Returns:
            GenerationOutput.

        Raises:
            TypeError: a value of the wrong type or an unknown option (naming the nearest known one).
            ValueError: a value out of range, an empty batch or row, ids outside the vocabulary, an over-long source.
            FloatingPointError: a model produced a logit that is not finite, naming model, row and step.
            KeyboardInterrupt: Ctrl-C; the decoder stays usable.
        """
        parsed = GenerateOptions.parse(f"{type(self).__name__}.generate", options)
        rows = token_rows(input_ids, attention_mask, "input_ids", self.student, parsed)
        if teacher_inputs is not None and not self.teachers:
            raise TypeError(f"teacher_inputs was given, but {type(self).__name__} has one model")
        given = self._per_teacher("teacher_inputs", teacher_inputs)
        teacher_rows: list[list[list[int]]] = [[] for _ in rows]
        for k, (teacher, inputs) in enumerate(zip(self.teachers, given)):
            name = "teacher_inputs" if len(self.teachers) == 1 else f"teacher_inputs[{k}]"
            for own, row in zip(teacher_rows, self._teachers_rows(teacher, inputs, name, rows, parsed)):
                own.append(row)
        return self._run(rows, teacher_rows, parsed, streamer)

    def _per_teacher(self, name: str, value: Any) -> Sequence[Any]:
        """`value`, or of a list its values, for each teacher; ValueError for another number of them."""
        if not isinstance(value, (list, tuple)):
            return [value] * len(self.teachers)
        if len(value) != len(self.teachers):
            raise ValueError(f"{name} has {len(value)} values for {len(self.teachers)} teachers; give one for each")
        return value

    def _teachers_rows(
        self, teacher: NativeT5, inputs: Any, name: str, rows: list[list[int]], options: GenerateOptions
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

    def __call__(
        self, text: str | Sequence[str], budget: str | float | Sequence[Any] | None = None, **options: Any
    ) -> GenerationOutput:
        """Decodes strings: builds the prompts each model was trained with, tokenizes, and fills ``.texts``.

        Args:
            text: one string or a list of strings.
            budget: a phrase ("light") or fraction (0.1) of :data:`kdtw_fast.BUDGETS`, put into the student's
                prompt; None = "no" for decoders that do not ask. A list has one for each of several teachers. "no"
                (0) is kept to the token: it sets ``max_teacher_calls`` of 0 for that teacher unless a limit is given.
            **options: as for :meth:`generate`.
        """
        texts = [text] if isinstance(text, str) else list(text)
        if not texts:
            raise ValueError("the batch is empty; give at least one text")
        for i, item in enumerate(texts):
            check_text(item, f"text {i}")
        self._check_takes_text(budget)
        ids, teacher_ids = zip(*self.tokenize(texts, [budget] * len(texts)))
        if all(options.get(name) is None for name in _LIMITS) and (none := self._asked_for_none(budget)):
            options["max_teacher_calls"] = none
        if self.teachers:
            options.setdefault("teacher_inputs", [{"input_ids": own} for own in zip(*teacher_ids)])
        out = self.generate(ids, **options)
        out.texts = self.tokenizer.batch_decode(out.sequences, skip_special_tokens=True)
        return out

    def stream(
        self,
        inputs: Iterable[Any],
        *,
        batch_size: int = 16,
        budget: str | float | Sequence[Any] | None = None,
        in_order: bool = False,
        **options: Any,
    ) -> Stream:
        """Decodes any number of items, ``batch_size`` at a time: a row that has finished makes room for the next item.

        What comes out for an item is what ``generate`` (or a call, for strings) on the list of all items gives for
        its row, bit for bit: neither the rows beside it nor the order in which they finish change it.

        Args:
            inputs: an iterable, read only as room comes free. Items are strings (prompts as in a call), lists of
                token ids (rows as ``generate`` takes them), or mappings with the keys of
                :class:`kdtw_fast.inputs.Item`: "text" or "input_ids", and where the item differs from the others
                "teacher_input_ids", "budget", "row_id", "max_teacher_fraction", "max_teacher_calls".
            batch_size: rows decoded together, at least 1.
            budget: for strings, as in a call.
            in_order: yield outputs in the items' order instead of as they finish.
            **options: see :class:`kdtw_fast.GenerateOptions`; one value for all items. ``row_ids`` and
                ``num_return_sequences`` are refused: an item may have a "row_id", and may be given several times.

        Returns:
            Stream: an iterator of one-row :class:`kdtw_fast.GenerationOutput`, each with its ``index``, and with
            ``texts`` where a string went in.

        Raises:
            TypeError, ValueError: a wrong option. What is wrong with an item comes out of the iteration.
        """
        parsed = GenerateOptions.parse(f"{type(self).__name__}.stream", options)
        check_int("batch_size", batch_size, 1)
        if not isinstance(inputs, Iterable) or isinstance(inputs, (str, bytes, Mapping)):
            raise TypeError(
                f"inputs must be an iterable of strings, token lists or mappings, got {type(inputs).__name__}; "
                f"one item makes a list of one"
            )
        if parsed.row_ids is not None:
            raise ValueError("a stream takes no row_ids; give an item its own: {'input_ids': …, 'row_id': …}")
        if parsed.num_return_sequences != 1:
            raise ValueError(
                f"a stream returns one output per item, got num_return_sequences={parsed.num_return_sequences}; "
                f"give the item several times, each with a row_id of its own"
            )
        for name in _LIMITS:
            if is_sequence(getattr(parsed, name)):
                raise ValueError(f"a stream takes one {name}, got {getattr(parsed, name)!r}; an item may have its own")
        limits = self._limits(parsed, 1)[0]
        if budget is not None:
            self._phrase(budget)
        session = self._open(parsed, batch_size, parsed.max_source_length)

        def read(value: Any, index: int) -> Item:
            return self._item(value, f"item {index}", budget)

        def rows(items: list[Item], first: int) -> Iterator[RowArguments]:
            return self._rows(items, first, budget, limits, parsed)

        return Stream(session, inputs, read, rows, self.tokenizer, self.student.pad_token_id, in_order)

    def _item(self, value: Any, label: str, budget: Any) -> Item:
        """The item that ``value`` stands for, if this decoder takes such items."""
        item = Item.of(value, label)
        if item.text is not None:
            with named(label):
                self._check_takes_text(budget if item.budget is None else item.budget)
        if item.teacher_input_ids is not None and not self.teachers:
            raise TypeError(f"{label} has 'teacher_input_ids', but {type(self).__name__} has one model")
        for name in _LIMITS:
            if getattr(item, name) is not None:
                self._check_takes_limits(f"{label}: {name}")
        return item

    def _rows(
        self, items: Sequence[Item], first: int, budget: Any, limits: Any, options: GenerateOptions
    ) -> Iterator[RowArguments]:
        """What the core is told of items ``first``, ``first`` + 1, …; their texts are tokenized together."""
        texts = [item for item in items if item.text is not None]
        budgets = [budget if item.budget is None else item.budget for item in texts]
        tokenized = iter(self.tokenize([item.text for item in texts], budgets))
        for index, item in enumerate(items, first):
            label, teacher_label = f"item {index}", f"item {index}'s teacher_input_ids"
            if item.text is None:
                several = len(self.teachers) > 1 and item.teacher_input_ids is not None
                given = item.teacher_input_ids if several else [item.teacher_input_ids]
                ids, teacher_ids = item.input_ids, self._per_teacher(teacher_label, given) if self.teachers else []
            else:
                ids, teacher_ids = next(tokenized)
            row = source(token_list(ids, label), label, self.student, options)
            teacher_rows: list[list[int]] = []
            for teacher, own in zip(self.teachers, teacher_ids):
                if own is None:
                    check_ids(row, label, teacher)
                    teacher_rows.append([])
                else:
                    teacher_rows.append(source(token_list(own, teacher_label), teacher_label, teacher, options))
            own_limits = (getattr(item, name) for name in _LIMITS)
            bounds = [limit if own is None else own for own, limit in zip(own_limits, limits)]
            if item.text is not None and bounds == [None, None]:
                bounds[0] = self._asked_for_none(budget if item.budget is None else item.budget)
            ledgers = self._ledgers(bounds)
            yield index if item.row_id is None else item.row_id, ledgers[0], row, teacher_rows, ledgers[1]

    def _ledgers(self, limits: Sequence[Any]) -> tuple[_core.Ledger, list[_core.Ledger]]:
        """A row's values of ``_LIMITS`` as the bound on all teachers together, and on each (empty = none)."""
        together = [None if isinstance(limit, Mapping) else limit for limit in limits]
        own = [limit if isinstance(limit, Mapping) else {} for limit in limits]
        for name, limit in zip(_LIMITS, own):
            for number in limit:
                if number > len(self.teachers):
                    raise ValueError(f"{name} names teacher {number}, but the decoder has {len(self.teachers)}")
        if not any(own):
            return _core.Ledger(*together), []
        numbers = range(1, len(self.teachers) + 1)
        return _core.Ledger(*together), [_core.Ledger(*(limit.get(k) for limit in own)) for k in numbers]

    def _check_takes_text(self, budget: Any) -> None:
        if self.tokenizer is None:
            raise ValueError("this decoder has no tokenizer; pass tokenizer=… to decode strings, or give token ids")
        if budget is None and self._has_ledger:
            raise ValueError(f"{type(self).__name__} needs a budget, for example budget='light'")

    def _asked_for_none(self, budget: Any) -> dict[int, int] | None:
        """``max_teacher_calls`` of the teachers that a decoder that could ask is told not to; None = of none."""
        if not self._has_ledger or budget is None:
            return None
        return {k: 0 for k, one in enumerate(resolve_budgets(budget), 1) if one.fraction == 0} or None

    def _phrase(self, budget: Any) -> str:
        """What the student's prompt says of a budget, or of one for each of its teachers; None = "no"."""
        count = max(1, len(self.student.tau_token_ids))
        if budget is None:
            budget = "no" if count == 1 else ["no"] * count
        budgets = resolve_budgets(budget)
        if len(budgets) != count:
            asked = [one.phrase for one in budgets]
            raise ValueError(f"the student has {count} teachers, give a budget for each; got {asked}")
        return join_phrases(budgets)

    def tokenize(
        self, texts: Sequence[Any], budgets: Sequence[Any]
    ) -> list[tuple[list[int], Sequence[list[int] | None]]]:
        """Each text's tokens for student and teachers, behind the prompts they were trained with.

        Args:
            texts: R strings.
            budgets: R phrases or fractions for the student's prompts (lists of them for several teachers); None = "no".

        A call does this before it decodes; :meth:`generate` takes what comes out.
        """
        if not texts:
            return []

        def encode(prompts: Iterable[str | None]) -> list[list[int]]:
            return self.tokenizer([(prompt or "") + text for prompt, text in zip(prompts, texts)])["input_ids"]

        prompts: list[str | None] = [self.student.teacher_prompt] * len(texts)
        if self.student.student_prompt is not None:
            prompts = [self.student.student_prompt.format(budget=self._phrase(budget)) for budget in budgets]
        ids = encode(prompts)
        told = {prompt: encode([prompt] * len(texts)) for prompt in {t.teacher_prompt: None for t in self.teachers}}
        return [(ids[i], [told[teacher.teacher_prompt][i] for teacher in self.teachers]) for i in range(len(texts))]

    def _run(
        self, rows: list[list[int]], teacher_rows: list[list[list[int]]], options: GenerateOptions, streamer: Any
    ) -> GenerationOutput:
        repeats = options.num_return_sequences
        keys = iter(row_keys(options.row_ids, len(rows) * repeats))
        ledgers = [self._ledgers(limits) for limits in self._limits(options, len(rows))]
        longest = max(map(len, [*rows, *(row for own in teacher_rows for row in own)]))
        session = self._open(options, len(rows) * repeats, longest)
        for row, own, (ledger, own_ledgers) in zip(rows, teacher_rows, ledgers, strict=True):
            for _ in range(repeats):
                session.add(next(keys), ledger, row, own, own_ledgers)
        put, end = _streaming(streamer, len(rows) * repeats, self.student.decoder_start_token_id)
        result = session.run(True, self.student.pad_token_id, put)
        for _, fault in result["faults"]:
            raise FloatingPointError(fault)
        end()
        return together(result, session)

    def _open(self, options: GenerateOptions, slots: int, source_capacity: int) -> _core.Session:
        """A session of the core with these options."""
        student = _core.Sampling(options.temperature, options.top_k, options.top_p)
        teacher = _core.Sampling(
            options.temperature if options.teacher_temperature is None else options.teacher_temperature,
            options.top_k if options.teacher_top_k is None else options.teacher_top_k,
            options.top_p if options.teacher_top_p is None else options.teacher_top_p,
        )
        shared = _core.SessionOptions(
            forced_tokens=[self._forced_token(token) for token in options.forced_tokens],
            max_new_tokens=options.max_new_tokens,
            min_new_tokens=options.min_new_tokens,
            student_sampling=student,
            teacher_sampling=teacher,
            seed=options.seed,
            max_seconds=options.max_time or 0.0,
            teacher_batch=0 if options.teacher_batch is None else min(options.teacher_batch, slots),
            want_log_probs=options.output_logprobs,
            want_reads=options.output_reads,
            threads=options.num_threads or self.num_threads,
        )
        return _core.Session(self._core, shared, slots, source_capacity)

    def _forced_token(self, token: int) -> int:
        vocabulary = min(model.vocab_size for model in (self.student, *self.teachers))
        check_int("forced_tokens entry", token, 0, vocabulary - 1)
        if token in self.student.eos_token_ids:
            raise ValueError(f"forced_tokens contains the end token {token}, after which there is nothing to decode")
        if token in self.student.tau_token_ids:
            raise ValueError(
                f"forced_tokens contains <tau> ({token}), which is an action and never a token of an output"
            )
        return int(token)

    def _limits(self, options: GenerateOptions, rows: int) -> list[tuple[Any, ...]]:
        """Per row its values of ``_LIMITS``."""
        for name in _LIMITS:
            if getattr(options, name) is not None:
                self._check_takes_limits(name)
        return list(zip(*(options.per_row(name, rows) for name in _LIMITS)))

    def _check_takes_limits(self, label: str) -> None:
        if not self._has_ledger:
            raise TypeError(
                f"{label} bounds calls for single tokens and belongs to TrainingWheelsDecoder, "
                f"not {type(self).__name__}"
            )


class GreedyDecoder(_Decoder):
    """One model alone: the student, or the teacher (samples when ``temperature`` > 0).

    Args:
        model: Hugging Face T5, NativeT5 or a safetensors folder.
        tokenizer: needed to decode strings; a folder's own by default.
        num_threads: None = all the processor offers; results do not depend on it.
        dtype: number format of the weights, "auto", "fp32", "fp16", "bf16" or "int8" (see :meth:`NativeT5.from_model`).
        device: "cpu", "cuda", "cuda:<index>" or "auto" (see :meth:`NativeT5.from_model`); None = where a NativeT5 is,
            otherwise "cpu".
    """

    def __init__(
        self,
        model: ModelLike,
        *,
        tokenizer: Any = None,
        num_threads: int | None = None,
        dtype: str = "auto",
        device: str | None = None,
    ):
        native = load(model, "model", dtype, device)
        super().__init__(native, [], _core.MethodRules(), tokenizer or _tokenizer_of(model), num_threads)


class _TwoModelDecoder(_Decoder):
    def __init__(
        self,
        student: ModelLike,
        teacher: ModelLike | Sequence[ModelLike],
        method: _core.MethodRules,
        tokenizer: Any,
        num_threads: int | None,
        dtype: str,
        teacher_dtype: str | Sequence[str | None] | None,
        device: str | None,
    ):
        teachers: list[Any] = list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]
        dtypes: list[Any] = [teacher_dtype] * len(teachers)
        if isinstance(teacher_dtype, (list, tuple)):
            dtypes = list(teacher_dtype)
        if len(dtypes) != len(teachers):
            raise ValueError(f"teacher_dtype has {len(dtypes)} values for {len(teachers)} teachers; give one for each")
        if not self._calls_on_tau and len(teachers) != 1:
            raise ValueError(f"{type(self).__name__} has one teacher, got {len(teachers)}")
        names = ["teacher"] if len(teachers) == 1 else [f"teacher {k}" for k in range(1, 1 + len(teachers))]
        native = load(student, "student", dtype, device)
        loaded = [
            load(
                model,
                name,
                dtype if own is None else own,
                native.device if device is None and not isinstance(model, NativeT5) else device,
            )
            for model, name, own in zip(teachers, names, dtypes)
        ]
        super().__init__(
            native,
            loaded,
            method,
            tokenizer or _tokenizer_of(student),
            num_threads,
        )


class TrainingWheelsDecoder(_TwoModelDecoder):
    """KDTW: the student writes, and where it chose <tau> the teacher writes that one token (arXiv 2502.17717).

    Args:
        student: a TrainingWheelsT5, a NativeT5 with <tau>, or a folder of one.
        teacher: Hugging Face T5, NativeT5 or a folder; shares the student's vocabulary. A student of several teachers
            takes a list of them, one for each of its <tau>s.
        verify_lenience: l in [0, 1]. 0 is the paper. Above 0, the teacher's catch-up pass, which happens at a
            call anyway, also checks what was drafted since the last call with Algorithm 1's test
            p(x) >= l max p, and replaces the first token that fails. Of several teachers the one that is called checks
            what was drafted since the last call of any.
        tokenizer: needed to decode strings; a folder's own by default.
        num_threads: None = all the processor offers; results do not depend on it.
        dtype: number format of the weights, "auto", "fp32", "fp16", "bf16" or "int8" (see :meth:`NativeT5.from_model`).
        teacher_dtype: the teacher's, when it differs; None = as ``dtype``. A list has one for each of several teachers.
        device: "cpu", "cuda", "cuda:<index>" or "auto" (see :meth:`NativeT5.from_model`); None = where a NativeT5 is,
            otherwise "cpu".
    """

    _calls_on_tau = _has_ledger = True

    def __init__(
        self,
        student: ModelLike,
        teacher: ModelLike | Sequence[ModelLike],
        *,
        verify_lenience: float = 0.0,
        tokenizer: Any = None,
        num_threads: int | None = None,
        dtype: str = "auto",
        teacher_dtype: str | Sequence[str | None] | None = None,
        device: str | None = None,
    ):
        self.verify_lenience = check_real("verify_lenience", verify_lenience, 0.0, 1.0)
        native = _asking_student(student, teacher, dtype, device)
        check = _core.Check.LENIENCE if verify_lenience > 0 else _core.Check.NONE
        method = _core.MethodRules(
            two_models=True, marks_teacher=True, on_tau=True, check=check, threshold=self.verify_lenience
        )
        tokenizer = tokenizer or _tokenizer_of(student)
        super().__init__(native, teacher, method, tokenizer, num_threads, dtype, teacher_dtype, device)


class _ControlDecoder(_TwoModelDecoder):
    """Training Wheels whose student never asks: the teacher writes where something exceeds a threshold.

    Else as with :class:`TrainingWheelsDecoder`: the student reads a budget in its prompt and which tokens the teacher
    wrote, and ``max_teacher_fraction`` and ``max_teacher_calls`` bound the calls.

    Args:
        student: a TrainingWheelsT5 of one teacher, a NativeT5 with <tau>, or a folder of one; <tau> is never used.
        teacher: Hugging Face T5, NativeT5 or a folder; shares the student's vocabulary.
        threshold: see the class, which has a default.
        tokenizer, num_threads, dtype, teacher_dtype, device: as :class:`TrainingWheelsDecoder` has them.
    """

    _has_ledger = True
    _usual: float  # the default threshold
    _highest: float  # the largest
    _rule: str  # ``_core.MethodRules``'s name for it

    def __init__(
        self,
        student: ModelLike,
        teacher: ModelLike,
        *,
        threshold: float | None = None,
        tokenizer: Any = None,
        num_threads: int | None = None,
        dtype: str = "auto",
        teacher_dtype: str | None = None,
        device: str | None = None,
    ):
        threshold = self._usual if threshold is None else threshold
        self.threshold = check_real("threshold", threshold, 0.0, self._highest)
        native = _asking_student(student, teacher, dtype, device)
        rule: dict[str, Any] = {self._rule: self.threshold}
        method = _core.MethodRules(two_models=True, marks_teacher=True, **rule)
        tokenizer = tokenizer or _tokenizer_of(student)
        super().__init__(native, teacher, method, tokenizer, num_threads, dtype, teacher_dtype, device)


class RandomCallDecoder(_ControlDecoder):
    """A control for KDTW: which tokens the teacher writes is drawn at random.

    ``threshold`` is in [0, 1], by default 0.9; the teacher writes where a uniform number of [0, 1), which depends on
    seed, row id and position only, exceeds it: with probability 1 - ``threshold``. All else as
    :class:`_ControlDecoder` says.
    """

    _usual, _highest, _rule = 0.9, 1.0, "max_uniform"


class EntropyCallDecoder(_ControlDecoder):
    """A control for KDTW: the teacher writes where the student is undecided.

    ``threshold`` is in nats, >= 0, by default 2; the teacher writes where the entropy of the student's distribution at
    temperature 1, without <tau> and other banned tokens, exceeds it. All else as :class:`_ControlDecoder` says.
    """

    _usual, _highest, _rule = 2.0, math.inf, "max_entropy"


class SpeculativeDecoder(_TwoModelDecoder):
    """Speculative decoding: K drafts, one teacher pass that checks them all, its own token after them.

    With ``lenience`` 1 it is lossless: greedy output is the teacher's, sampled output has the teacher's
    distribution (rejection sampling, Leviathan et al. 2023). Below 1 it is the paper's lossy baseline
    (Algorithm 1, as corrected): greedy drafts pass where p(x) >= l max p; 0 lets everything pass.

    Args:
        student: drafts (a <tau> it may have is never used).
        teacher: checks.
        draft_length: K >= 1.
        lenience: l in [0, 1].
        tokenizer: needed to decode strings; a folder's own by default.
        num_threads: None = all the processor offers; results do not depend on it.
        dtype: number format of the weights, "auto", "fp32", "fp16", "bf16" or "int8" (see :meth:`NativeT5.from_model`).
        teacher_dtype: the teacher's, when it differs; None = as ``dtype``.
        device: "cpu", "cuda", "cuda:<index>" or "auto" (see :meth:`NativeT5.from_model`); None = where a NativeT5 is,
            otherwise "cpu".
    """

    def __init__(
        self,
        student: ModelLike,
        teacher: ModelLike,
        *,
        draft_length: int = 5,
        lenience: float = 1.0,
        tokenizer: Any = None,
        num_threads: int | None = None,
        dtype: str = "auto",
        teacher_dtype: str | None = None,
        device: str | None = None,
    ):
        self.draft_length = check_int("draft_length", draft_length, 1)
        self.lenience = check_real("lenience", lenience, 0.0, 1.0)
        method = _core.MethodRules(
            two_models=True,
            draft_length=self.draft_length,
            check=_core.Check.LENIENCE,
            threshold=self.lenience,
            checks_all=True,
        )
        super().__init__(student, teacher, method, tokenizer, num_threads, dtype, teacher_dtype, device)


class BigLittleDecoder(_TwoModelDecoder):
    """BiLD (Kim et al. 2023): the student hands over where it is unsure; the teacher's pass also rolls back.

    Args:
        student: the little model.
        teacher: the big model.
        fallback_threshold: in [0, 1]; the teacher is called where the student's largest probability is below it.
        rollback_threshold: >= 0; the first draft x with -log p(x) above it is replaced, in nats.
        max_draft_length: call at the latest after so many drafts; None = no such limit.
        tokenizer: needed to decode strings; a folder's own by default.
        num_threads: None = all the processor offers; results do not depend on it.
        dtype: number format of the weights, "auto", "fp32", "fp16", "bf16" or "int8" (see :meth:`NativeT5.from_model`).
        teacher_dtype: the teacher's, when it differs; None = as ``dtype``.
        device: "cpu", "cuda", "cuda:<index>" or "auto" (see :meth:`NativeT5.from_model`); None = where a NativeT5 is,
            otherwise "cpu".
    """

    def __init__(
        self,
        student: ModelLike,
        teacher: ModelLike,
        *,
        fallback_threshold: float = 0.6,
        rollback_threshold: float = 5.0,
        max_draft_length: int | None = None,
        tokenizer: Any = None,
        num_threads: int | None = None,
        dtype: str = "auto",
        teacher_dtype: str | None = None,
        device: str | None = None,
    ):
        self.fallback_threshold = check_real("fallback_threshold", fallback_threshold, 0.0, 1.0)
        self.rollback_threshold = check_real("rollback_threshold", rollback_threshold, 0.0)
        self.max_draft_length = None if max_draft_length is None else check_int("max_draft_length", max_draft_length, 1)
        method = _core.MethodRules(
            two_models=True,
            draft_length=self.max_draft_length or 0,
            min_confidence=self.fallback_threshold,
            check=_core.Check.DIVERGENCE,
            threshold=self.rollback_threshold,
        )
        super().__init__(student, teacher, method, tokenizer, num_threads, dtype, teacher_dtype, device)


class InterleavedDecoder(_TwoModelDecoder):
    """SKD's interleaved sampling (Xu et al. 2025): drafts in the teacher's top k stay, the first other is replaced.

    Args:
        student: proposes.
        teacher: replaces.
        draft_length: tokens proposed per teacher pass, K >= 1.
        accept_top_k: a draft stays when it is among the teacher's so many most likely tokens, >= 1.
        tokenizer: needed to decode strings; a folder's own by default.
        num_threads: None = all the processor offers; results do not depend on it.
        dtype: number format of the weights, "auto", "fp32", "fp16", "bf16" or "int8" (see :meth:`NativeT5.from_model`).
        teacher_dtype: the teacher's, when it differs; None = as ``dtype``.
        device: "cpu", "cuda", "cuda:<index>" or "auto" (see :meth:`NativeT5.from_model`); None = where a NativeT5 is,
            otherwise "cpu".
    """

    def __init__(
        self,
        student: ModelLike,
        teacher: ModelLike,
        *,
        draft_length: int = 5,
        accept_top_k: int = 25,
        tokenizer: Any = None,
        num_threads: int | None = None,
        dtype: str = "auto",
        teacher_dtype: str | None = None,
        device: str | None = None,
    ):
        self.draft_length = check_int("draft_length", draft_length, 1)
        self.accept_top_k = check_int("accept_top_k", accept_top_k, 1)
        method = _core.MethodRules(
            two_models=True,
            draft_length=self.draft_length,
            check=_core.Check.TOP_K,
            threshold=self.accept_top_k,
            teacher_continues=False,
            checks_all=True,
        )
        super().__init__(student, teacher, method, tokenizer, num_threads, dtype, teacher_dtype, device)


def _asking_student(
    student: ModelLike, teacher: ModelLike | Sequence[ModelLike], dtype: str, device: str | None
) -> NativeT5:
    """A student that was trained to ask as many teachers as are given; ValueError for another."""
    native = load(student, "student", dtype, device)
    if native.tau_token_id is None:
        raise ValueError(
            "the student has no <tau> (config.tau_token_id); make one with TrainingWheelsT5.from_t5 and train it"
        )
    count, wanted = len(teacher) if isinstance(teacher, (list, tuple)) else 1, len(native.tau_token_ids)
    if count != wanted:
        raise ValueError(
            f"the student can ask {wanted} {'teacher' if wanted == 1 else 'teachers'}, but {count} were given; "
            f"TrainingWheelsT5.from_t5(model, experts={count}) makes one for {count}"
        )
    return native


def _check_pair(student: NativeT5, teacher: NativeT5) -> None:
    for field in ("device", "pad_token_id", "decoder_start_token_id", "eos_token_ids"):
        mine, other = getattr(student, field), getattr(teacher, field)
        if mine != other:
            raise ValueError(f"student and teacher must share {field}: the student has {mine}, the teacher {other}")
    own_rows = student.vocab_size - teacher.vocab_size
    if own_rows and not 0 < own_rows <= len({row for row in student.tau_token_ids if row >= teacher.vocab_size}):
        raise ValueError(
            f"student and teacher must share a vocabulary: the student has {student.vocab_size} rows, "
            f"the teacher {teacher.vocab_size}"
        )


def _tokenizer_of(model: Any) -> Any:
    """The tokenizer saved in a model's folder, or None."""
    if not isinstance(model, (str, Path)) or not any(Path(model).glob("tokenizer*")):
        return None
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def _streaming(streamer: Any, rows: int, start: int) -> tuple[TokenStreamer | None, Callable[[], None]]:
    """A streamer as the core's callback and what to call at the end."""
    if streamer is None:
        return None, lambda: None
    if hasattr(streamer, "put") and hasattr(streamer, "end"):
        if rows != 1:
            raise ValueError(f"a streamer with put() and end() takes one row, got {rows}; pass a callable for batches")
        streamer.put(torch.tensor([start]))
        return lambda row, position, token, owner: streamer.put(torch.tensor([token])), streamer.end
    if not callable(streamer):
        raise TypeError(f"streamer must be callable or have put() and end(), got {type(streamer).__name__}")
    return streamer, lambda: None
