"""``method="auto"``: the method that the cost model predicts to be fastest at a quality, corrected by what calls take.

`Chooser` decides, with numbers only; `AutoDecoder` measures, runs what was chosen and reports.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import replace
from statistics import fmean, median
from typing import Any

import torch

from kdtw_fast import _core
from kdtw_fast.budgets import Budget, resolve_budget
from kdtw_fast.cost_measuring import measure_costs
from kdtw_fast.costs import Costs, Prediction
from kdtw_fast.decoders import (
    GreedyDecoder,
    ModelLike,
    SpeculativeDecoder,
    TrainingWheelsDecoder,
    _check_pair,
    _Decoder,
    _tokenizer_of,
)
from kdtw_fast.messages import Message
from kdtw_fast.model import NativeT5, load
from kdtw_fast.options import GenerateOptions, check_int, check_real, nearest
from kdtw_fast.outputs import GenerationOutput, Owner
from kdtw_fast.streams import Stream

STUDENT, TEACHER, WHEELS, SPECULATIVE = "greedy-student", "greedy-teacher", "training-wheels", "speculative"
# The share of drafts that pass before any was seen, and how many seen ones it counts for.
PRIOR_ACCEPTANCE, PRIOR_WEIGHT = 0.7, 20.0
# Real over predicted seconds of a method is the median of its last calls; fewer than the first number say nothing yet.
FEWEST_CALLS, LAST_CALLS = 3, 9
CALIBRATION_DRAFT = 5  # drafts per check while calibrating
STREAM_SOURCE = 64  # tokens of a source of a stream, for the prediction


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


class AutoDecoder(_Decoder):
    """The fastest method for a quality, chosen before each call from measured costs and from what earlier calls showed.

    - ``quality="teacher"``: the teacher's own output, by speculative decoding with the draft length that is
      predicted to be best (1 to 16) or by the teacher alone, whichever is predicted faster. Greedy outputs do not
      depend on the choice: both are lossless. A sampling teacher always decodes alone, because the two draw
      different tokens (of one distribution).
    - a budget (``"light"``, 0.1, …): Training Wheels at that budget; or the teacher alone where that is predicted
      faster, since it is better as well. Here the output can depend on measured times; fix it with ``method``.
    - ``quality="student"``: the student alone.

    Costs are measured at the first call of each batch size (which takes about ``measure_seconds`` longer), in
    buckets of 1, 2, 4, 8, … rows, unless ``costs`` says what they are. A method that loses to the plain teacher in
    real time gives way to it (:class:`Chooser`). Outputs carry what was chosen and its predicted time as
    ``prediction``; their ``ms_per_token`` is the real time.

    Args:
        student: drafts or writes; a budget needs one with <tau>.
        teacher: shares the student's vocabulary.
        quality: "teacher", "student", or a phrase or fraction of :data:`kdtw_fast.BUDGETS`.
        method: None = choose; or a method of this quality, by its name in :data:`kdtw_fast.methods.METHODS`.
        acceptance: prior chance that a draft passes, in [0, 1]; calls and :meth:`calibrate` update it.
        costs: None = measure; or the costs to go by, for every batch size.
        measure_seconds: time for measuring, > 0.
        tokenizer: needed to decode strings; a folder's own by default.
        num_threads: None = all the processor offers.
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
        quality: str | float = "teacher",
        method: str | None = None,
        acceptance: float = PRIOR_ACCEPTANCE,
        costs: Costs | None = None,
        measure_seconds: float = 1.0,
        tokenizer: Any = None,
        num_threads: int | None = None,
        dtype: str = "auto",
        teacher_dtype: str | None = None,
        device: str | None = None,
    ):
        # Not _Decoder's: this one has no native decoder of its own, every call is handed to another decoder.
        self.quality, self.budget, candidates = _quality(quality)
        if method is not None:
            if method not in candidates:
                raise ValueError(f"method {method!r} does not give quality {quality!r}{nearest(method, candidates)}")
            candidates = (method,)
        check_real("acceptance", acceptance, 0.0, 1.0)
        self.measure_seconds = check_real("measure_seconds", measure_seconds, 0.0, open_low=True)
        if num_threads is not None:
            check_int("num_threads", num_threads, 1)
        self.num_threads = num_threads or _core.hardware_threads()
        self.tokenizer = tokenizer or _tokenizer_of(student)
        self.student = load(student, "student", dtype, device)
        if device is None and not isinstance(teacher, NativeT5):
            device = self.student.device
        self.teachers = (load(teacher, "teacher", dtype if teacher_dtype is None else teacher_dtype, device),)
        _check_pair(self.student, self.teachers[0])
        self.chooser = Chooser(candidates, acceptance, self.budget.fraction if self.budget else 0.0)
        self._given, self._measured = costs, dict[tuple[int, int], Costs]()
        self._decoders: dict[tuple[str, int], _Decoder] = {}
        self._lengths: deque[float] = deque(maxlen=LAST_CALLS)  # mean output length of each of the last calls
        self._lock = threading.Lock()  # of what calls measure and learn
        for candidate in candidates:  # what cannot be built is refused now, not at the first call that chooses it
            self._decoder(candidate, 1)

    def __call__(self, text: str | Sequence[str], budget: Any = None, **options: Any) -> GenerationOutput:
        """Decodes strings as the other decoders do; the budget in the student's prompt is the quality's."""
        if budget is not None:
            raise TypeError(f"AutoDecoder takes its budget as quality={budget!r}, when it is made")
        return super().__call__(text, budget=self.budget.phrase if self.budget else None, **options)

    def calibrate(self, inputs: Sequence[Any], **options: Any) -> float:
        """Learns from a few examples what calls would teach: how often drafts pass, or how often the student asks.

        Args:
            inputs: strings, or rows of the student's token ids; decoded in one batch.
            **options: as for :meth:`generate`.

        Returns:
            The share of drafts that pass (quality "teacher") or of tokens that the teacher writes (a budget).
        """
        if self.quality == "student":
            raise ValueError("quality 'student' leaves no choice, so there is nothing to calibrate")
        method = SPECULATIVE if self.budget is None else WHEELS
        decoder = self._decoder(method, CALIBRATION_DRAFT)
        if len(inputs) > 0 and isinstance(inputs[0], str):
            out = decoder(inputs, self.budget.phrase if self.budget else None, **options)
        else:
            out = decoder.generate(inputs, **options)
        with self._lock:
            self.chooser.count(method, out)
        return (self.chooser.acceptance if method == SPECULATIVE else self.chooser.use).value

    def stream(
        self,
        inputs: Iterable[Any],
        *,
        batch_size: int = 16,
        budget: Any = None,
        in_order: bool = False,
        **options: Any,
    ) -> Stream:
        """Decodes any number of items as the other decoders' ``stream`` does, all of them with one method.

        It is the one that is predicted to be the fastest for batches of ``batch_size`` sources of 64 tokens; what the
        outputs tell of acceptance and use counts for later calls. Items and options as there; the budget is the
        quality's.
        """
        if budget is not None:
            raise TypeError(f"AutoDecoder takes its budget as quality={budget!r}, when it is made")
        check_int("batch_size", batch_size, 1)
        parsed = GenerateOptions.parse("AutoDecoder.stream", options)
        self._refuse_limits(parsed)
        source = [0] * min(STREAM_SOURCE, parsed.max_source_length)
        prediction, _ = self._choose([source] * batch_size, parsed)
        alone = prediction.method in (TEACHER, STUDENT)
        items = isinstance(inputs, Iterable) and not isinstance(inputs, (str, bytes, Mapping))
        if prediction.method == TEACHER:
            own = _teachers_sampling(parsed)
            options |= {name: getattr(own, name) for name in ("temperature", "top_k", "top_p")}
        stream = self._decoder(prediction.method, int(prediction.settings.get("draft_length", 0))).stream(
            _for_one_model(inputs, prediction.method == TEACHER) if alone and items else inputs,
            batch_size=batch_size,
            budget=self.budget.phrase if self.budget and not alone else None,
            in_order=in_order,
            **options,
        )

        def learn(out: GenerationOutput) -> None:
            if prediction.method == TEACHER:
                _give_to_teacher(out)
            with self._lock:
                self.chooser.count(prediction.method, out)
            out.prediction = prediction

        stream.on_output = learn
        return stream

    def _refuse_limits(self, options: GenerateOptions) -> None:
        for name in ("max_teacher_calls", "max_teacher_fraction"):
            if getattr(options, name) is not None:
                raise TypeError(
                    f"{name} is a bound that AutoDecoder would break with the teacher alone; "
                    "it belongs to TrainingWheelsDecoder"
                )

    def _run(
        self, rows: list[list[int]], teacher_rows: list[list[list[int]]], options: GenerateOptions, streamer: Any
    ) -> GenerationOutput:
        self._refuse_limits(options)
        prediction, bucket = self._choose(rows, options)
        decoder = self._decoder(prediction.method, int(prediction.settings.get("draft_length", 0)))
        alone: list[list[list[int]]] = [[] for _ in rows]
        if prediction.method == TEACHER:
            told = [own or row for row, (own,) in zip(rows, teacher_rows, strict=True)]
            out = decoder._run(told, alone, _teachers_sampling(options), _teachers_streamer(streamer))
            _give_to_teacher(out)
        else:
            out = decoder._run(rows, alone if prediction.method == STUDENT else teacher_rows, options, streamer)
        assert out.lengths is not None and out.timings is not None
        with self._lock:
            self.chooser.count(prediction.method, out)
            length = float(out.lengths.float().mean())
            self.chooser.observe(bucket, prediction, length, out.timings.total)
            self._lengths.append(length)
        out.prediction = prediction
        return out

    def _choose(self, rows: list[list[int]], options: GenerateOptions) -> tuple[Prediction, int]:
        """The prediction to go by for this batch, and the batch size whose costs it is made of."""
        count = len(rows) * options.num_return_sequences
        bucket = 1 << (count - 1).bit_length()
        longest = max(map(len, rows))
        with self._lock:
            # An output is about as long as its source until calls say how long outputs are.
            expected = fmean(self._lengths) if self._lengths else min(longest, options.max_new_tokens)
            costs = replace(self._costs(bucket, longest, options), new_tokens=max(1.0, expected))
            sampling = options.temperature if options.teacher_temperature is None else options.teacher_temperature
            if sampling > 0 and self.quality == "teacher" and TEACHER in self.chooser.candidates:
                prediction = costs.predict(TEACHER)
            else:
                prediction = self.chooser.choose(costs)
        return replace(prediction, rows=count), bucket

    def _costs(self, bucket: int, source_tokens: int, options: GenerateOptions) -> Costs:
        if self._given is not None:
            return self._given
        threads = options.num_threads or self.num_threads
        if (bucket, threads) not in self._measured:
            assert self.teacher is not None
            self._measured[bucket, threads] = measure_costs(
                self.student,
                self.teacher,
                rows=bucket,
                source_tokens=source_tokens,
                new_tokens=min(source_tokens, options.max_new_tokens),
                num_threads=threads,
                seconds=self.measure_seconds,
            )
        return self._measured[bucket, threads]

    def _decoder(self, method: str, draft_length: int) -> _Decoder:
        key = (method, draft_length if method == SPECULATIVE else 0)
        if key not in self._decoders:
            assert self.teacher is not None
            shared: dict[str, Any] = {"tokenizer": self.tokenizer, "num_threads": self.num_threads}
            if method == SPECULATIVE:
                made: _Decoder = SpeculativeDecoder(self.student, self.teacher, draft_length=draft_length, **shared)
            elif method == WHEELS:
                made = TrainingWheelsDecoder(self.student, self.teacher, **shared)
            elif method == STUDENT:
                made = GreedyDecoder(self.student, **shared)
            else:
                alone = copy(self.teacher)
                alone.tau_token_ids = self.student.tau_token_ids  # which it may not write beside a student either
                made = GreedyDecoder(alone, **shared)
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


def _teachers_sampling(options: GenerateOptions) -> GenerateOptions:
    """The options by which the teacher, decoding alone, samples as it would beside a student."""
    own = {name: getattr(options, f"teacher_{name}") for name in ("temperature", "top_k", "top_p")}
    return replace(options, **{name: value for name, value in own.items() if value is not None})


def _teachers_streamer(streamer: Any) -> Any:
    """The streamer, told that the teacher wrote what the one model of a greedy decoder wrote."""
    if streamer is None or not callable(streamer) or hasattr(streamer, "put"):
        return streamer
    return lambda row, position, token, owner: streamer(
        row, position, token, int(Owner.TEACHER) if owner == Owner.STUDENT else owner
    )


def _for_one_model(items: Iterable[Any], teacher: bool) -> Iterator[Any]:
    """A stream's items as the decoder of one model takes them: with the source of that model alone."""
    for item in items:
        if isinstance(item, Mapping) and "teacher_input_ids" in item:
            item = dict(item)
            source = item.pop("teacher_input_ids")
            if teacher and source is not None:
                item["input_ids"] = source
        yield item


def _give_to_teacher(out: GenerationOutput) -> None:
    """Makes the output of one model, the teacher, say so."""
    assert out.owners is not None and out.lengths is not None
    written = out.owners == Owner.STUDENT
    out.owners[written] = int(Owner.TEACHER)
    out.teacher_calls = written.sum(dim=1)
    out.teacher_index = written.to(torch.uint8)
    out.teacher_fraction = out.teacher_calls.float() / out.lengths.float()
    out.calls_by_teacher, out.fraction_by_teacher = out.teacher_calls[:, None], out.teacher_fraction[:, None]
    out.drafted = torch.zeros_like(out.lengths)
    if out.timings is not None:  # a stream's rows have no times and passes of their own
        out.student_passes, out.teacher_passes = 0, out.student_passes
        out.timings = replace(out.timings, student=0.0, teacher=out.timings.student)
    if out.student_reads is not None:
        out.teacher_reads, out.student_reads = out.student_reads, [[] for _ in out.student_reads]
    if out.student_logprobs is not None:
        out.teacher_logprobs, out.student_logprobs = out.student_logprobs, out.teacher_logprobs
