"""``method="auto"``: the method that the cost model predicts to be fastest at a quality, corrected by what calls take.

`Chooser` decides, with numbers only; `AutoDecoder` measures, runs what was chosen and reports.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from statistics import fmean, median
from typing import Any, Unpack

from kdtw_fast import _core
from kdtw_fast.budgets import Budget, resolve_budget
from kdtw_fast.cost_measuring import measure_costs
from kdtw_fast.costs import Costs, Prediction
from kdtw_fast.decoder_options import PairKeywords, PairOptions
from kdtw_fast.decoders.base import Decoder, ModelLike, check_padding, load_teacher
from kdtw_fast.decoders.interface import AnyDecoder
from kdtw_fast.decoders.reading import Row, broken_by_auto
from kdtw_fast.decoders.tokenizers import check_taus, words_of
from kdtw_fast.generation import call_defaults
from kdtw_fast.keywords import takes
from kdtw_fast.messages import Message
from kdtw_fast.methods import make_decoder
from kdtw_fast.model import load
from kdtw_fast.options import (
    LIMITS,
    GenerateKeywords,
    GenerateOptions,
    check_real,
    nearest,
)
from kdtw_fast.outputs import GenerationOutput, Owner
from kdtw_fast.streams import Stream
from kdtw_fast.worker import Ticket, TokenStreamer

STUDENT, TEACHER, WHEELS, SPECULATIVE = "greedy-student", "greedy-teacher", "training-wheels", "speculative"
# The share of drafts that pass before any was seen, and how many seen ones it counts for.
PRIOR_ACCEPTANCE, PRIOR_WEIGHT = 0.7, 20.0
# Real over predicted seconds of a method is the median of its last calls; fewer than the first number say nothing yet.
FEWEST_CALLS, LAST_CALLS = 3, 9
CALIBRATION_DRAFT = 5  # drafts per check while calibrating
STREAM_SOURCE = 64  # tokens of a source of a stream, for the prediction


_alive: weakref.WeakSet[AutoDecoder] = weakref.WeakSet()


def _after_fork() -> None:
    """A thread of the parent may have held a decoder's lock, and there is no such thread in the child to let it go."""
    for decoder in _alive:
        decoder._lock = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


class Share:
    """A share that is estimated from counts: a prior that counts for `PRIOR_WEIGHT` cases, and the cases seen."""

    def __init__(self, prior: float):
        self._hits, self._cases = PRIOR_WEIGHT * prior, PRIOR_WEIGHT

    def add(self, hits: float, cases: float) -> None:
        """Counts ``cases`` cases, ``hits`` of them hits."""
        self._hits += hits
        self._cases += cases

    @property
    def value(self) -> float:
        """The estimate, in [0, 1]."""
        return self._hits / self._cases


class Chooser:
    """Which method to run next: predictions, multiplied by how much longer than predicted each method really took.

    The choice is the lowest of the candidates' estimates. So a method whose calls turn out slower than the plain
    teacher is predicted to be gives way to it, and comes back only if the teacher's calls turn out slower still.

    Args:
        candidates: method names.
        acceptance: prior chance that a draft passes where those before it did.
        use: prior share of the tokens that the teacher writes under Training Wheels.
    """

    def __init__(self, candidates: Sequence[str], acceptance: float = PRIOR_ACCEPTANCE, use: float = 0.0):
        self.candidates = tuple(candidates)
        self.acceptance, self.use = Share(acceptance), Share(use)
        self._ratios: dict[tuple[int, str], deque[float]] = {}

    def choose(self, costs: Costs) -> Prediction:
        """The prediction of the method to run; the first of equals."""
        return min(self.predictions(costs), key=lambda p: self.slowdown(costs.rows, p.method) * p.ms_per_token)

    def predictions(self, costs: Costs) -> list[Prediction]:
        """One prediction per candidate; for speculative decoding, that of the best draft length."""
        return [self._predict(costs, method) for method in self.candidates]

    def _predict(self, costs: Costs, method: str) -> Prediction:
        if method == SPECULATIVE:
            return costs.best_speculative(self.acceptance.value)
        return costs.predict(method, **({"use": self.use.value} if method == WHEELS else {}))

    def count(self, method: str, out: GenerationOutput) -> None:
        """Takes in who wrote the tokens of a call."""
        assert out.owners is not None
        written = {owner: int((out.owners == owner).sum()) for owner in Owner}
        if method == SPECULATIVE:  # a draft was tested where it stands or was corrected, not behind a corrected one
            self.acceptance.add(written[Owner.ACCEPTED], written[Owner.ACCEPTED] + written[Owner.CORRECTED])
        elif method == WHEELS:
            self.use.add(written[Owner.TEACHER], written[Owner.TEACHER] + written[Owner.STUDENT])

    def slowdown(self, rows: int, method: str) -> float:
        """Median of real over predicted seconds of the method's last calls at this batch size; 1 before a few."""
        ratios = self._ratios.get((rows, method), ())
        return median(ratios) if len(ratios) >= FEWEST_CALLS else 1.0

    def observe(self, rows: int, prediction: Prediction, new_tokens: float, seconds: float) -> None:
        """Takes in a call of ``seconds`` that wrote ``new_tokens`` per row."""
        ratios = self._ratios.setdefault((rows, prediction.method), deque(maxlen=LAST_CALLS))
        ratios.append(seconds / prediction.seconds(new_tokens))


class AutoDecoder(AnyDecoder):
    """The fastest method for a quality, chosen before each call from measured costs and from what earlier calls showed.

    - ``quality="teacher"``: the teacher's own output, by speculative decoding with the draft length that is
      predicted to be best (1 to 16) or by the teacher alone, whichever is predicted faster. Greedy outputs do not
      depend on the choice: both are lossless. A sampling teacher always decodes alone, because the two draw
      different tokens (of one distribution).
    - a budget (``"light"``, 0.1, …): Training Wheels at that budget; or the teacher alone where that is predicted
      faster, since it is better as well. Here the output can depend on measured times; fix it with ``method``. With
      "no" Training Wheels asks for no token.
    - ``quality="student"``: the student alone.

    A stream decodes all its items with one method, chosen for batches of ``batch_size`` sources of 64 tokens; what its
    outputs tell of acceptance and use counts for later calls.

    Costs are measured at the first call of each batch size (which takes about ``measure_seconds`` longer), in
    buckets of 1, 2, 4, 8, … rows, unless ``costs`` says what they are. A method that loses to the plain teacher in
    real time gives way to it (:class:`Chooser`). Outputs carry what was chosen and its predicted time as
    ``prediction``; their ``ms_per_token`` is the real time.

    Args:
        student: drafts or writes; a budget needs one with <tau>.
        teacher: shares the student's vocabulary.
        quality: "teacher", "student", or a phrase or fraction of :data:`kdtw_fast.BUDGETS`; calls take no other budget.
        method: None = choose; or a method of this quality, by its name in :data:`kdtw_fast.methods.METHODS`.
        acceptance: prior chance that a draft passes, in [0, 1]; calls and :meth:`calibrate` update it.
        costs: None = measure; or the costs to go by, for every batch size.
        measure_seconds: time for measuring, > 0.
    """

    @takes(PairOptions)
    def __init__(
        self,
        student: ModelLike,
        teacher: ModelLike,
        *,
        quality: str | float = "teacher",
        method: str | None = None,
        acceptance: float = PRIOR_ACCEPTANCE,
        costs: Costs | None = None,
        measure_seconds: float = 1.0,
        **shared: Unpack[PairKeywords],
    ):
        self.quality, self.budget, candidates = _quality(quality)
        if method is not None:
            if method not in candidates:
                raise ValueError(f"method {method!r} does not give quality {quality!r}{nearest(method, candidates)}")
            candidates = (method,)
        check_real("acceptance", acceptance, 0.0, 1.0)
        self.measure_seconds = check_real("measure_seconds", measure_seconds, 0.0, open_low=True)
        options = PairOptions(**shared)
        self.num_threads = options.num_threads or _core.hardware_threads()
        self.student = load(student, "student", options.dtype, options.device, options.cache, options.generation_config)
        loaded = load_teacher(teacher, "teacher", options.teacher_dtype, self.student, options)
        self.teachers = (loaded,)
        self._given_tokenizer = options.tokenizer
        self._words = words_of(options.tokenizer, student, self.student.tau_token_ids, [("teacher", teacher)])
        check_padding(self.student, self.teachers, self._words)
        if options.tokenizer is not None:
            check_taus(options.tokenizer, self.student.tau_token_ids)
        self.chooser = Chooser(candidates, acceptance, self.budget.fraction if self.budget else 0.0)
        self.model, self._asked = self.student, self.teachers
        self._generation_config = options.generation_config
        self.defaults = call_defaults((self.student, loaded), options.generation_config)
        self._given, self._measured = costs, dict[tuple[int, int], Costs]()
        self._decoders: dict[tuple[str, int], Decoder] = {}
        self._lengths: deque[float] = deque(maxlen=LAST_CALLS)  # mean output length of each of the last calls
        self._lock = threading.Lock()  # of what calls measure and learn
        _alive.add(self)
        for candidate in candidates:  # what cannot be built is refused now, not at the first call that chooses it
            self._decoder(candidate, 1)

    def _decode(self, rows: Sequence[Row], options: GenerateOptions, streamer: Any) -> GenerationOutput:
        self._refuse_limits(options)
        prediction, bucket = self._choose(len(rows), max(len(row.own) for row in rows), options)
        if prediction.method == TEACHER:
            rows = [Row(row.teachers[0] or row.own, []) for row in rows]
        elif prediction.method == STUDENT:
            rows = [Row(row.own, []) for row in rows]
        options = replace(options, **self._limits_of(prediction.method))
        out = self._decoder_of(prediction)._decode(rows, options, streamer)
        assert out.lengths is not None and out.timings is not None
        with self._lock:
            self.chooser.count(prediction.method, out)
            length = float(out.lengths.float().mean())
            self.chooser.observe(bucket, prediction, length, out.timings.total)
            self._lengths.append(length)
        out.prediction = prediction
        return out

    def _stream(
        self,
        inputs: Iterable[Any],
        batch_size: int,
        budget: Any,
        in_order: bool,
        on_error: str,
        options: GenerateOptions,
    ) -> Stream:
        self._refuse_limits(options)
        prediction, _ = self._choose(batch_size, min(STREAM_SOURCE, options.max_source_length), options)
        alone = prediction.method in (TEACHER, STUDENT)
        if alone:
            made = _for_one_model(inputs, prediction.method == TEACHER)
            inputs = list(made) if isinstance(inputs, Sequence) else made
        options = replace(options, **self._limits_of(prediction.method))
        own_budget = None if alone else budget
        decoder = self._decoder_of(prediction)
        stream = decoder._stream(inputs, batch_size, own_budget, in_order, on_error, options)

        def learn(out: GenerationOutput) -> None:
            if out.error is None:
                with self._lock:
                    self.chooser.count(prediction.method, out)
            out.prediction = prediction

        stream.on_output = learn
        return stream

    def _submit(
        self, value: Any, row_id: int, budget: Any, streamer: TokenStreamer | None, options: GenerateOptions
    ) -> Ticket:
        raise TypeError("AutoDecoder chooses a method for each call; submit to the decoder of one method")

    @takes(GenerateOptions)
    def calibrate(self, inputs: Sequence[Any], **options: Unpack[GenerateKeywords]) -> float:
        """Learns from a few examples what calls would teach: how often drafts pass, or how often the student asks.

        Args:
            inputs: strings, or rows of the student's token ids; decoded in one batch.
            **options: the fields of :class:`kdtw_fast.GenerateOptions`.

        Returns:
            The share of drafts that pass (quality "teacher") or of tokens that the teacher writes (a budget).
        """
        if self.quality == "student":
            raise ValueError("quality 'student' leaves no choice, so there is nothing to calibrate")
        method = SPECULATIVE if self.budget is None else WHEELS
        decoder = self._decoder(method, CALIBRATION_DRAFT)
        options |= self._limits_of(method)
        if len(inputs) > 0 and isinstance(inputs[0], str):
            out = decoder(inputs, self._budget_of(None), **options)
        else:
            out = decoder.generate(inputs, **options)
        with self._lock:
            self.chooser.count(method, out)
        return (self.chooser.acceptance if method == SPECULATIVE else self.chooser.use).value

    def _budget_of(self, budget: Any) -> str | None:
        if budget is not None:
            raise TypeError(f"AutoDecoder takes its budget as quality={budget!r}, when it is made")
        return self.budget.phrase if self.budget else None

    def _limits_of(self, method: str) -> GenerateKeywords:
        """What a call of this method is bound to: "no" is kept to the token."""
        return {"max_teacher_calls": 0} if method == WHEELS and self.budget and self.budget.fraction == 0 else {}

    def _refuse_limits(self, options: GenerateOptions) -> None:
        for name in LIMITS:
            if getattr(options, name) is not None:
                raise TypeError(broken_by_auto(name))

    def _choose(self, rows: int, longest: int, options: GenerateOptions) -> tuple[Prediction, int]:
        """The prediction to go by for so many sources, and the batch size whose costs it is made of."""
        count = rows * options.num_return_sequences
        bucket = 1 << (count - 1).bit_length()
        with self._lock:
            # An output is about as long as its source until calls say how long outputs are.
            expected = fmean(self._lengths) if self._lengths else min(longest, options.max_new_tokens)
            costs = replace(self._costs(bucket, longest, options), new_tokens=max(1.0, expected))
            if options.teacher_sampling[0] > 0 and self.quality == "teacher" and TEACHER in self.chooser.candidates:
                prediction = costs.predict(TEACHER)
            else:
                prediction = self.chooser.choose(costs)
        return replace(prediction, rows=count), bucket

    def _costs(self, bucket: int, source_tokens: int, options: GenerateOptions) -> Costs:
        if self._given is not None:
            return self._given
        threads = options.num_threads or self.num_threads
        if (bucket, threads) not in self._measured:
            self._measured[bucket, threads] = measure_costs(
                self.student,
                self.teachers[0],
                rows=bucket,
                source_tokens=source_tokens,
                new_tokens=min(source_tokens, options.max_new_tokens),
                num_threads=threads,
                seconds=self.measure_seconds,
            )
        return self._measured[bucket, threads]

    def _decoder_of(self, prediction: Prediction) -> Decoder:
        return self._decoder(prediction.method, int(prediction.settings.get("draft_length", 0)))

    def _decoder(self, method: str, draft_length: int) -> Decoder:
        key = (method, draft_length if method == SPECULATIVE else 0)
        if key not in self._decoders:
            (teacher,) = self.teachers
            if method == TEACHER:
                teacher = copy(teacher)
                teacher.tau_token_ids = self.student.tau_token_ids  # which it may not write beside a student either
            models = {"student": self.student, "teacher": teacher}
            settings = {"draft_length": draft_length} if method == SPECULATIVE else {}
            told = self._generation_config
            made = make_decoder(method, models, self._given_tokenizer, self.num_threads, told, **settings)
            assert isinstance(made, Decoder)
            made._quality = self.quality
            self._decoders[key] = made
        return self._decoders[key]


def _quality(quality: Any) -> tuple[str | float, Budget | None, tuple[str, ...]]:
    """The quality, the budget it is (if it is one), and the methods that give it."""
    if quality == "teacher":
        return quality, None, (SPECULATIVE, TEACHER)
    if quality == "student":
        return quality, None, (STUDENT,)
    try:
        budget = resolve_budget(quality)
    except (TypeError, ValueError) as error:
        raise type(error)(Message("quality is 'teacher', 'student' or a budget; ", Message.of(error))) from None
    return quality, budget, (WHEELS, TEACHER)


def _for_one_model(items: Iterable[Any], teacher: bool) -> Iterator[Any]:
    """A stream's items as the decoder of one model takes them: with the source of that model alone."""
    for item in items:
        if isinstance(item, Mapping) and "teacher_input_ids" in item:
            item = dict(item)
            source = item.pop("teacher_input_ids")
            if teacher and source is not None:
                item["input_ids"] = source
        yield item
