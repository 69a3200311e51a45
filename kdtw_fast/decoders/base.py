"""What the decoders of one method share: their models, and the native session behind their calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch

from kdtw_fast import _core
from kdtw_fast.decoder_options import DecoderOptions, PairKeywords, PairOptions
from kdtw_fast.decoders.interface import AnyDecoder, end, is_text_streamer
from kdtw_fast.decoders.reading import Row
from kdtw_fast.decoders.tokenizers import check_taus, rows_of, words_of, words_of_folders
from kdtw_fast.generation import call_defaults, row_options
from kdtw_fast.inputs import Item, row_keys
from kdtw_fast.messages import Message, OptionName
from kdtw_fast.model import NativeT5, load
from kdtw_fast.options import LIMITS, GenerateOptions, check_int
from kdtw_fast.outputs import GenerationOutput, empty, together
from kdtw_fast.stops import StopTexts, output_texts
from kdtw_fast.streams import RowArguments, Stream
from kdtw_fast.token_rules import token_rules
from kdtw_fast.worker import Kind, Ticket, TokenStreamer

ModelLike = torch.nn.Module | NativeT5 | str | Path
SMALLEST_TEMPERATURE = 1e-38
LEAST_ROOM = 256  # outputs of a session for rows that are submitted
_UNLIMITED = (None,) * len(LIMITS)


class Decoder(AnyDecoder):
    """A method's native decoder behind checked inputs; its subclasses have a constructor and nothing else.

    Attributes:
        model: the model that writes: the student, or the one model of a decoder.
        tokenizer: for strings, or None. Rows of the vocabulary behind its last token are padding, and never picked.
        num_threads: threads of a call that does not say.
        teachers: the models that may be asked; several where the student's <tau> chooses, none of a student alone.
    """

    def __init__(
        self,
        model: NativeT5,
        asked: Sequence[NativeT5],
        rules: _core.MethodRules,
        words: Callable[[], Any],
        options: DecoderOptions,
        role: str = "student",
    ):
        if options.tokenizer is not None:
            check_taus(options.tokenizer, model.tau_token_ids)
        self._words = words
        self.num_threads = options.num_threads or _core.hardware_threads()
        self.model, self._asked = model, tuple(asked)
        self._role = role
        self.defaults = call_defaults((model, *asked), options.generation_config)
        starts = [one.decoder_start_token_id for one in (model, *asked) if one.has_encoder]
        taus = model.tau_token_ids
        models = (model, *asked)
        known = self._words if options.tokenizer is not None else words_of_folders(self._words, models)
        self._vocabulary, common = rows_of(known(), models), min(each.vocab_size for each in models)
        # Padding, also before a <tau> behind it, is banned as a <tau> is that asks nobody.
        last = max([common - 1, *taus])
        banned = taus + [row for row in range(self._vocabulary, last + 1) if row not in taus]
        special = _core.SpecialTokens(starts[0] if starts else 0, model.eos_token_ids, banned)
        self._core = _core.Decoder(model.device, model.core, [teacher.core for teacher in asked], rules, special)
        # Of the row that was submitted before; what comes next is mostly like it.
        self._latest: tuple[Any, Kind] | None = None
        self._latest_shared: tuple[GenerateOptions, _core.RowOptions] | None = None

    def _stream(
        self,
        inputs: Iterable[Any],
        batch_size: int,
        budget: Any,
        in_order: bool,
        on_error: str,
        options: GenerateOptions,
    ) -> Stream:
        limits = self._limits(options, 1)[0]
        if budget is not None:
            self._phrase(budget)
        session = self._open(options, batch_size, options.max_source_length)

        def texts(out: GenerationOutput, item: Item) -> list[str]:
            return output_texts(self.tokenizer, out, item.options(options))

        def read(value: Any, index: int) -> Item:
            return self._item(value, f"item {index}", budget, options)

        def rows(items: list[Item], indices: list[int]) -> Iterator[RowArguments]:
            return self._arguments(items, indices, budget, limits, options)

        def blank(index: int) -> GenerationOutput:
            return empty(index, len(self._asked), options)

        pad = self.model.pad_token_id
        return Stream(session, inputs, read, rows, blank, self._words, texts, pad, in_order, on_error)

    def _submit(
        self, value: Any, row_id: int, budget: Any, streamer: TokenStreamer | None, options: GenerateOptions
    ) -> Ticket:
        budget = self._one_budget(self._budget_of(budget))
        if budget is not None:
            self._phrase(budget)
        item = self._item(value, "the input", budget, options)
        if item.is_blank:
            ticket = Ticket(0, options)
            ticket.set_result(empty(0, len(self._asked), options))
            return ticket
        limits = self._limits(options, 1)[0]
        try:
            arguments = next(self._arguments([item], [row_id], budget, limits, options))
        except (TypeError, ValueError) as error:
            raise type(error)(Message.of(error).reworded(f"item {row_id}", "the input")) from None
        own = item.options(options)
        finish = partial(_add_words, self._words, item.words is not None, own)
        told = arguments[-1]
        if told is None:  # the row has the call's options, which may be those of many; a row's own are its alone
            latest = self._latest_shared
            if latest is None or latest[0] is not options:
                latest = self._latest_shared = options, self._row_options(options)
            told = latest[1]
        return self.worker.submit(
            self._kind(options, self.worker.slots), (*arguments[:-1], told), finish, streamer, own
        )

    def _kind(self, options: GenerateOptions, slots: int) -> Kind:
        """The kind of rows that are submitted with these options."""
        core, room = self._core, self._room(options.max_new_tokens)  # not the item's own: it may join those of others
        longest, threads = options.max_source_length, options.num_threads or self.num_threads
        told = (options.teacher_batch, options.output_logprobs, options.output_reads, options.top_logprobs)
        key = (core, room, longest, threads, *map(str, told))
        latest = self._latest
        if latest is not None and latest[0] == (key, slots):
            return latest[1]
        # Nothing here holds this decoder: the worker, which it holds, keeps the kind.
        shared = self._session_options(replace(options, max_new_tokens=room), slots)
        kind = Kind(key, lambda slots: _core.Session(core, shared, slots, longest), self.model.pad_token_id)
        self._latest = (key, slots), kind
        return kind

    def _room(self, tokens: int) -> int:
        """The outputs that a session for a row of so many has places for: few sizes, so that rows share sessions."""
        if any(model.spec["decoder"].get("positions") for model in (self.model, *self._asked)):
            return tokens  # a table of positions has an end
        return max(LEAST_ROOM, 1 << (tokens - 1).bit_length())

    def _arguments(
        self,
        items: Sequence[Item],
        indices: Sequence[int],
        budget: Any,
        limits: Sequence[Any],
        options: GenerateOptions,
    ) -> Iterator[RowArguments]:
        """What a session that was opened with these options is given for the items of those indices."""
        for index, item, row in zip(indices, items, self._item_rows(items, indices, budget, options)):
            own_limits = (getattr(item, name) for name in LIMITS)
            bounds = [limit if own is None else own for own, limit in zip(own_limits, limits)]
            if item.words is not None and bounds == [None, None]:
                bounds[0] = self._asked_for_none(budget if item.budget is None else item.budget)
            ledger, ledgers = self._ledgers(bounds)
            own = row_options(item.options(options), len(row.own), f"item {index}", item)
            key = index if item.row_id is None else item.row_id
            yield key, ledger, row.own, row.teachers, ledgers, None if own is options else self._row_options(own)

    def _decode(self, rows: Sequence[Row], options: GenerateOptions, streamer: Any) -> GenerationOutput:
        repeats = options.num_return_sequences
        keys = iter(row_keys(options.row_ids, len(rows) * repeats))
        limits = [self._ledgers(bounds) for bounds in self._limits(options, len(rows))]
        longest = max(len(source) for row in rows for source in (row.own, *row.teachers))
        session = self._open(options, len(rows) * repeats, longest)
        for r, (row, (ledger, ledgers), own) in enumerate(zip(rows, limits, options.by_row(len(rows)), strict=True)):
            own = row_options(own, len(row.own), f"row {r}")
            told = None if own is options else self._row_options(own)
            for _ in range(repeats):
                session.add(next(keys), ledger, row.own, row.teachers, ledgers, told)
        prompt = [self.model.decoder_start_token_id] if self.model.has_encoder else rows[0].own
        put = _as_callback(streamer, len(rows) * repeats, prompt)
        result = session.run(True, self.model.pad_token_id, put)
        for _, fault in result["faults"]:
            raise FloatingPointError(fault)
        end(streamer)
        return together(result, session)

    def _open(self, options: GenerateOptions, slots: int, source_capacity: int) -> _core.Session:
        """A session of the core with these options, which are those of rows that have none of their own."""
        return _core.Session(self._core, self._session_options(options, slots), slots, source_capacity)

    def _session_options(self, options: GenerateOptions, slots: int) -> _core.SessionOptions:
        if options.top_logprobs > 0 and self.model.device != "cpu":
            on = f" are not told on device {self.model.device!r} yet; decode on 'cpu', or leave it out"
            raise ValueError(Message(OptionName("top_logprobs"), on))
        return _core.SessionOptions(
            row=self._row_options(options),
            teacher_batch=0 if options.teacher_batch is None else min(options.teacher_batch, slots),
            want_log_probs=options.output_logprobs,
            want_reads=options.output_reads,
            threads=options.num_threads or self.num_threads,
            top_count=options.top_logprobs,
        )

    def _row_options(self, options: GenerateOptions) -> _core.RowOptions:
        for token in options.stop_token_ids:
            check_int("stop_token_ids's id", token, 0, self.model.vocab_size - 1)
        teacher = _sampling(*options.teacher_sampling)
        forced = self._forced_tokens(options)
        return _core.RowOptions(
            max_new_tokens=options.max_new_tokens,
            min_new_tokens=options.min_new_tokens,
            student_sampling=teacher if self._role == "teacher" else _sampling(*options.sampling),
            teacher_sampling=teacher,
            seed=options.seed,
            max_seconds=options.max_time or 0.0,
            rules=token_rules(options, self.model, len(forced)),
            stops=_core.Stops(options.stop_token_ids, self._find_stop(options)),
            forced_tokens=forced,
        )

    def _find_stop(self, options: GenerateOptions) -> StopTexts | None:
        """What says where texts stop an output."""
        if not options.stop_texts:
            return None
        if self.tokenizer is None:
            raise ValueError(Message(OptionName("stop"), " needs a tokenizer; pass tokenizer=… to the decoder"))
        return StopTexts(self.tokenizer, options.stop_texts)

    def _forced_tokens(self, options: GenerateOptions) -> list[int]:
        """What a row's output begins with; nothing where each row has its own."""
        if options.forced_by_row:
            return []
        return [self._forced_token(token) for token in options.forced_tokens] or self.model.first_tokens

    def _forced_token(self, token: int) -> int:
        check_int("forced_tokens entry", token, 0, self._vocabulary - 1)
        if token in self.model.eos_token_ids:
            raise ValueError(f"forced_tokens contains the end token {token}, after which there is nothing to decode")
        if token in self.model.tau_token_ids:
            raise ValueError(
                f"forced_tokens contains <tau> ({token}), which is an action and never a token of an output"
            )
        return int(token)

    def _limits(self, options: GenerateOptions, rows: int) -> list[tuple[Any, ...]]:
        """Per row its values of ``LIMITS``."""
        given = [name for name in LIMITS if getattr(options, name) is not None]
        if not given:
            return [_UNLIMITED] * rows
        for name in given:
            self._check_takes_limits(name)
        return list(zip(*(options.per_row(name, rows) for name in LIMITS)))

    def _ledgers(self, limits: Sequence[Any]) -> tuple[_core.Ledger, list[_core.Ledger]]:
        """A row's values of ``LIMITS`` as the bound on all teachers together, and on each (empty = none)."""
        if not any(isinstance(limit, Mapping) for limit in limits):
            return _core.Ledger(*limits), []
        on_all = [None if isinstance(limit, Mapping) else limit for limit in limits]
        on_each = [limit if isinstance(limit, Mapping) else {} for limit in limits]
        for name, limit in zip(LIMITS, on_each):
            for number in limit:
                if number > len(self._asked):
                    raise ValueError(f"{name} names teacher {number}, but the decoder has {len(self._asked)}")
        numbers = range(1, len(self._asked) + 1)
        return _core.Ledger(*on_all), [_core.Ledger(*(limit.get(k) for limit in on_each)) for k in numbers]


class TwoModelDecoder(Decoder):
    """A student and its teacher, or several where the method lets its student choose."""

    _chooses_teacher = False  # by <tau>; otherwise there is one teacher

    def __init__(
        self,
        student: ModelLike,
        teacher: ModelLike | Sequence[ModelLike],
        rules: _core.MethodRules,
        **shared: Unpack[PairKeywords],
    ):
        options = PairOptions(**shared)
        teachers: list[Any] = list(teacher) if isinstance(teacher, (list, tuple)) else [teacher]
        own = options.teacher_dtype
        dtypes = list(own) if isinstance(own, (list, tuple)) else [own] * len(teachers)
        if len(dtypes) != len(teachers):
            raise ValueError(f"teacher_dtype has {len(dtypes)} values for {len(teachers)} teachers; give one for each")
        native = load(student, "student", options.dtype, options.device, options.cache, options.generation_config)
        if self._keeps_limits:
            check_asks(native, len(teachers))
        if not self._chooses_teacher and len(teachers) != 1:
            raise ValueError(f"{type(self).__name__} has one teacher, got {len(teachers)}")
        names = ["teacher"] if len(teachers) == 1 else [f"teacher {k}" for k in range(1, 1 + len(teachers))]
        loaded = [load_teacher(*one, native, options) for one in zip(teachers, names, dtypes)]
        self.student, self.teachers = native, tuple(loaded)
        check_starts(native, dict(zip(names, loaded)))
        words = words_of(options.tokenizer, student, native.tau_token_ids, list(zip(names, teachers)))
        check_padding(native, loaded, words)
        super().__init__(native, loaded, rules, words, options)


def load_teacher(model: ModelLike, name: str, dtype: Any, student: NativeT5, options: DecoderOptions) -> NativeT5:
    """The teacher of a student that is loaded, by default on its device and in the format asked for the student.

    Raises as `load` does, and ValueError where the two cannot decode together.
    """
    device = options.device
    if device is None and not isinstance(model, NativeT5):
        device = student.device
    dtype = options.dtype if dtype is None else dtype
    teacher = load(model, name, dtype, device, options.cache, options.generation_config)
    if student.device != teacher.device:
        raise ValueError(_differing("device", student.device, teacher.device))
    tokens = {"eos_token_ids": "eos_token_id", "first_tokens": "forced_bos_token_id"}
    if student.has_encoder and teacher.has_encoder:
        tokens |= {field: field for field in ("pad_token_id", "decoder_start_token_id")}
    for name_here, field in tokens.items():
        mine, other = getattr(student, name_here), getattr(teacher, name_here)
        if mine != other:
            label = name_here if name_here != "first_tokens" else f"first_tokens ({field})"
            both = "; pass ", OptionName("generation_config"), f" with what holds for both, {{{field!r}: …}}"
            raise ValueError(Message(_differing(label, mine, other), *both))
    taus = student.tau_token_ids
    between = [row for row in range(teacher.vocab_size, max(taus, default=0)) if row not in taus]
    if between:
        raise ValueError(
            f"the student's <tau> is row {max(taus)} of its vocabulary, behind row {between[0]}, which the teacher's "
            f"{teacher.vocab_size} rows lack; begin its training from a model cut to that size"
        )
    return teacher


def _differing(field: str, mine: Any, other: Any) -> str:
    return f"student and teacher must share {field}: the student has {mine}, the teacher {other}"


def check_starts(student: NativeT5, teachers: Mapping[str, NativeT5]) -> None:
    """Raises ValueError where teachers begin their outputs with other tokens, which a student without encoder has not.

    One with an encoder was held against each teacher when that was loaded.
    """
    starts = {name: one.decoder_start_token_id for name, one in teachers.items() if one.has_encoder}
    if student.has_encoder or len(set(starts.values())) <= 1:
        return
    told = ", ".join(f"{name} has {start}" for name, start in starts.items())
    both = OptionName("generation_config"), " with what holds for all, {'decoder_start_token_id': …}"
    raise ValueError(Message(f"teachers must share decoder_start_token_id: {told}; pass ", *both))


def check_padding(student: NativeT5, teachers: Sequence[NativeT5], words: Callable[[], Any]) -> None:
    """Raises ValueError where rows that only some models have may be more than padding.

    Of the rows that all have the tokenizer's are decoded with; the student's <tau>s may stand behind them.
    """
    taus = set(student.tau_token_ids)
    common = min(model.vocab_size for model in (student, *teachers))
    largest = max(model.vocab_size for model in teachers)
    if largest == common and taus.issuperset(range(common, student.vocab_size)):
        return
    tokenizer = words()
    found = f"the student has {student.vocab_size} rows of vocabulary, the teacher {largest}"
    if tokenizer is None:
        raise ValueError(f"{found}; pass tokenizer=…, which shows whether what the other lacks is padding")
    beyond = {row: token for token, row in tokenizer.get_vocab().items() if row >= common and row not in taus}
    if beyond:
        row, token = min(beyond.items())
        raise ValueError(f"{found}, and the tokenizer has {token!r} in row {row}; a pair must share a vocabulary")


def check_asks(student: NativeT5, count: int) -> None:
    """Raises ValueError for a student that was not made to ask so many teachers."""
    if student.tau_token_id is None:
        raise ValueError(
            "the student has no <tau> (config.tau_token_id); make one with TrainingWheels.from_model and train it"
        )
    wanted = len(student.tau_token_ids)
    if count != wanted:
        raise ValueError(
            f"the student can ask {wanted} {'teacher' if wanted == 1 else 'teachers'}, but {count} were given; "
            f"TrainingWheels.from_model(model, teachers={count}) makes one for {count}"
        )


def _add_words(words: Callable[[], Any], was_text: bool, options: GenerateOptions, out: GenerationOutput) -> None:
    """Gives an output the tokenizer, and its text where one went in."""
    out._with_words(words)
    if was_text:
        out.texts = output_texts(words(), out, options)


def _sampling(temperature: float, top_k: int, top_p: float) -> _core.Sampling:
    # In single precision the inverse of less is infinite: it is greedy.
    return _core.Sampling(temperature if temperature >= SMALLEST_TEMPERATURE else 0.0, top_k, top_p)


def _as_callback(streamer: Any, rows: int, prompt: list[int]) -> TokenStreamer | None:
    """A streamer as the core calls it; one of Hugging Face's is given what stands before the output first."""
    if is_text_streamer(streamer):
        if rows != 1:
            raise ValueError(f"a streamer with put() and end() takes one row, got {rows}; pass a callable for batches")
        streamer.put(torch.tensor(prompt))
        return lambda row, position, token, owner: streamer.put(torch.tensor([token]))
    if streamer is not None and not callable(streamer):
        raise TypeError(f"streamer must be callable or have put() and end(), got {type(streamer).__name__}")
    return streamer
