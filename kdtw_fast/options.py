"""The options of calls, and the checks of options' values: what is wrong is one sentence."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any, ClassVar, TypedDict

from kdtw_fast.messages import Message, OptionName

DTYPES = ("auto", "fp32", "fp16", "bf16", "int8")  # of weights
CACHE_DTYPES = ("auto", "fp32", "fp16", "bf16")  # of keys and values
LIMITS = ("max_teacher_calls", "max_teacher_fraction")  # options that bound a row's calls
# Options that are rules on tokens.
TOKEN_RULES = (
    "suppress_tokens",
    "begin_suppress_tokens",
    "bad_words_ids",
    "no_repeat_ngram_size",
    "repetition_penalty",
    "logit_bias",
    "forced_eos_token_id",
)
# Options that each row of a session may have for itself.
ROW_OPTIONS = (
    *("max_new_tokens", "min_new_tokens", "temperature", "top_k", "top_p"),
    *("teacher_temperature", "teacher_top_k", "teacher_top_p", "seed", "max_time"),
    *("forced_tokens", "stop", "stop_token_ids", *TOKEN_RULES),
)
ON_ERROR = ("raise", "return")  # what a stream does with a wrong item
LARGEST_COUNT = 2**31 - 1
MOST_TOKENS = 2**20  # of an output or a source
MOST_ROWS = 2**16  # decoded together
MOST_TOP = 100  # likeliest tokens that are told of each
NO_LIMIT = MOST_TOKENS  # max_source_length of evaluations: held-out sources are never left out or cut


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` for the known word nearest to ``word``, else the list of known words."""
    known = list(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else f"; known are {', '.join(map(repr, known))}"


def check_int(name: str, value: Any, low: int, high: int | None = None) -> int:
    """Returns ``value`` as an int in [low, high]; TypeError or ValueError with name and value otherwise.

    Without ``high`` it is what the core's counts are: 2^31 - 1.
    """
    if type(value) is not int and (isinstance(value, bool) or not isinstance(value, Integral)):
        raise TypeError(Message(OptionName(name), f" must be an integer, got {value!r} of type {type(value).__name__}"))
    number = int(value)
    if number < low or (high is not None and number > high):
        limits = f"at least {low}" if high is None else f"in {low}..{high}"
        raise ValueError(Message(OptionName(name), f" must be {limits}, got {value}"))
    if high is None and number > LARGEST_COUNT:
        raise ValueError(Message(OptionName(name), f" must be at most {LARGEST_COUNT}, got {value}"))
    return number


def check_real(name: str, value: Any, low: float, high: float = math.inf, open_low: bool = False) -> float:
    """Returns ``value`` as a float in [low, high] (or (low, high]); TypeError or ValueError otherwise."""
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError(Message(OptionName(name), f" must be a number, got {value!r} of type {type(value).__name__}"))
    try:
        number = float(value)
    except OverflowError:  # of an integer
        number = math.inf
    inside = low < number <= high if open_low else low <= number <= high
    if not math.isfinite(number) or not inside:
        upper = f"{high:g}]" if math.isfinite(high) else "inf)"
        limits = f"{'(' if open_low else '['}{low:g}, {upper}"
        said = f"{value}" if math.isfinite(number) or isinstance(value, float) else "a number too large for a float"
        raise ValueError(Message(OptionName(name), f" must be in {limits}, got {said}"))
    return number


def check_token_ids(name: str, value: Any, least: int = 0) -> None:
    """TypeError or ValueError unless ``value`` is a list of at least so many ids, integers of at least 0."""
    if not is_sequence(value):
        raise TypeError(
            Message(OptionName(name), f" must be a list of ids, got {value!r} of type {type(value).__name__}")
        )
    if len(value) < least:
        raise ValueError(Message(OptionName(name), " must not be empty"))
    for token in value:
        check_int(f"{name}'s id", token, 0)


def check_word(option: str, word: Any, known: Sequence[str]) -> None:
    """Raises TypeError or ValueError, naming the nearest known one, unless ``word`` is in ``known``."""
    if not isinstance(word, str):
        raise TypeError(Message(OptionName(option), f" must be one of {', '.join(map(repr, known))}, got {word!r}"))
    if word not in known:
        raise ValueError(Message("unknown ", OptionName(option), f" {word!r}{nearest(word, known)}"))


def check_dtype(dtype: Any, option: str = "dtype", known: Sequence[str] = DTYPES) -> None:
    """:func:`check_word` for number formats."""
    check_word(option, dtype, known)


def check_device(device: str) -> None:
    """ValueError for a device of a command line that is none of those there are; whether it is here, the core says."""
    if not re.fullmatch(r"cpu|auto|cuda(:\d+)?", device):
        raise ValueError(f"unknown device {device!r}; known are 'cpu', 'cuda', 'cuda:<index>' and 'auto'")


def check_limit(name: str, value: Any, label: str | None = None) -> None:
    """Checks one value of max_teacher_fraction or max_teacher_calls (None = no limit); ``label`` names it.

    A mapping has a limit for each teacher that it names by its number, 1 to n.
    """
    if value is None:
        return
    if isinstance(value, Mapping):
        for number, limit in value.items():
            check_int(f"{label or name}: a teacher's number", number, 1)
            check_limit(name, limit, f"{label or name} of teacher {number}")
        return
    if name == "max_teacher_fraction":
        check_real(label or name, value, 0.0, 1.0)
    else:
        check_int(label or name, value, 0, LARGEST_COUNT)


def tau_token_ids(field: Callable[[str], Any], name: str) -> list[int]:
    """The <tau> rows of a config: tau_token_ids of several teachers, tau_token_id of one, none of a plain T5.

    `field` gives a config field, or None where there is none. Raises ValueError where they are no different rows.
    """
    several = field("tau_token_ids")
    if several is None:
        return [] if field("tau_token_id") is None else [field("tau_token_id")]
    wrong = not isinstance(several, (list, tuple)) or not all(type(token) is int for token in several)
    if wrong or not several or len(set(several)) < len(several):
        raise ValueError(f"{name}: config field tau_token_ids must be a list of different rows, got {several!r}")
    return list(several)


def is_sequence(value: Any) -> bool:
    """True for lists, tuples, 1-D arrays and tensors; not for strings."""
    return hasattr(value, "__len__") and hasattr(value, "__getitem__") and not isinstance(value, (str, bytes, Mapping))


@dataclass(frozen=True)
class GenerateOptions:
    """Options that every decoder's ``generate`` and ``stream`` take as keywords.

    Args:
        max_new_tokens: most output tokens per row, 1 to 2^20; the end token and forced tokens count.
        min_new_tokens: no end token before this many outputs, 0 to ``max_new_tokens``.
        temperature: >= 0; 0 is greedy, above 0 the student samples, and the teacher with it.
        top_k: keep the k most likely tokens when sampling, >= 0, 0 = off.
        top_p: keep the smallest set of tokens with this probability when sampling, in (0, 1], 1 = off.
        teacher_temperature: the teacher's ``temperature``; None = as the student.
        teacher_top_k: the teacher's ``top_k``; None = as the student.
        teacher_top_p: the teacher's ``top_p``; None = as the student.
        seed: random numbers are a function of (seed, row number or id, position) and of nothing else; 0 to 2^64 - 1.
        row_ids: names of the rows to the random numbers, one per output row, each 0 to 2^64 - 1; None = 0, 1, 2, …
        num_return_sequences: outputs per input row, 1 to 2^16 (they differ only when sampling).
        forced_tokens: ids every output begins with, fewer than ``max_new_tokens``, or a list of them for each input
            row; where there are none, the checkpoint's forced_bos_token_id, if it has one (mBART's and NLLB's
            language).
        suppress_tokens: ids that are never written. This and what follows up to ``forced_eos_token_id`` are
            transformers' logits processors in transformers' order, for drafts, checks and the teacher's tokens alike,
            before temperature; log-probabilities that are returned are the models' own, before all of it. They read
            what a model has read: the start token or, where there is no encoder, the whole prompt, and the output. On a
            CUDA device they are refused.
        begin_suppress_tokens: ids that are not the first output behind ``forced_tokens``.
        bad_words_ids: lists of ids of which the last is never written behind the others; the end token alone is
            allowed.
        no_repeat_ngram_size: so many tokens in a row never come a second time, 0 = off.
        repetition_penalty: logits of tokens that were read are divided by it, negative ones multiplied, in
            [0.01, 100]; 1 = off.
        logit_bias: what is added to the logit of an id, in [-1e6, 1e6]; of a tuple of ids, to that of its last
            behind the others. <tau>, too, has a logit.
        forced_eos_token_id: an end token that is the last of ``max_new_tokens`` outputs, whatever the models say.
        stop: a text, or several, at the first of which an output stops, behind ``forced_tokens``. Its tokens end with
            the one that completes it, its text where it begins. Needs a tokenizer.
        stop_token_ids: ids at the first of which an output stops, further end tokens in all but that the text ends
            before them.
        max_teacher_fraction: at most this fraction of every prefix of the output is written by the teacher, in [0, 1].
            <tau> is masked otherwise. For Training Wheels and its controls; one value, or one per input row. Of several
            teachers a number bounds all together, and a mapping from teachers' numbers to numbers bounds those it
            names, each alone: {1: 0.3, 2: 0.05}.
        max_teacher_calls: most calls of a row, >= 0. For whom, for how many rows and teachers: as above.
        max_time: seconds, > 0, after which a row stops where it is, from when its decoding began; None = no limit.
        max_source_length: longest source in tokens, its prompt included, 1 to 2^20; longer ones are an error, or cut
            with ``truncation``. On a CUDA device a stream takes memory for so many tokens of every row when it begins.
        truncation: cut longer sources, keeping the end token, instead of raising.
        output_logprobs: also return the log-probabilities of student and teacher.
        top_logprobs: also return so many of the likeliest tokens at each place of the output, 0 to 100: of the model
            that decided there, its writer's or where drafts are checked the checker's, before all rules. Not on a CUDA
            device.
        output_reads: also return how many tokens each pass read.
        teacher_batch: rows that wait for the teacher are held until so many wait, >= 1, or until no other row can go
            on; None = until as many wait as go on. Results do not depend on it, the speed of batches does: few make
            many teacher passes, many leave the student's steps to the few rows that ask late. A costly teacher is
            worth a larger batch, a cheap one a smaller.
        num_threads: threads of this call, >= 1; None = the decoder's.
    """

    # Transformers' names for what is here under another, or not at all.
    elsewhere: ClassVar[dict[str, str]] = {
        **dict.fromkeys(
            ("num_beams", "num_beam_groups", "diversity_penalty", "length_penalty", "early_stopping"),
            "beam search is in transformers' generate of the same model, this decodes one token after the other",
        ),
        "do_sample": "temperature above 0 samples, 0 is greedy",
        "max_length": "max_new_tokens counts the outputs",
        "min_length": "min_new_tokens counts the outputs",
        "sequence_bias": "logit_bias takes ids, and tuples of them",
        "decoder_input_ids": "forced_tokens are what outputs begin with",
        "forced_bos_token_id": "forced_tokens are what outputs begin with",
        "stop_strings": "stop takes strings",
        "eos_token_id": "stop_token_ids takes further ones",
    }

    max_new_tokens: int = 64
    min_new_tokens: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    teacher_temperature: float | None = None
    teacher_top_k: int | None = None
    teacher_top_p: float | None = None
    seed: int = 0
    row_ids: Sequence[int] | None = None
    num_return_sequences: int = 1
    forced_tokens: Sequence[Any] = ()
    suppress_tokens: Sequence[int] = ()
    begin_suppress_tokens: Sequence[int] = ()
    bad_words_ids: Sequence[Sequence[int]] = ()
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int | tuple[int, ...], float] | None = None
    forced_eos_token_id: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] = ()
    max_teacher_fraction: float | Mapping[int, float] | Sequence[Any] | None = None
    max_teacher_calls: int | Mapping[int, int] | Sequence[Any] | None = None
    max_time: float | None = None
    max_source_length: int = 512
    truncation: bool = False
    output_logprobs: bool = False
    top_logprobs: int = 0
    output_reads: bool = False
    teacher_batch: int | None = None
    num_threads: int | None = None

    def __post_init__(self) -> None:
        check_int("max_new_tokens", self.max_new_tokens, 1, MOST_TOKENS)
        check_int("min_new_tokens", self.min_new_tokens, 0, self.max_new_tokens)
        check_int("num_return_sequences", self.num_return_sequences, 1, MOST_ROWS)
        check_int("max_source_length", self.max_source_length, 1, MOST_TOKENS)
        check_int("seed", self.seed, 0, 2**64 - 1)
        for prefix in ("", "teacher_"):
            temperature, top_k, top_p = (getattr(self, prefix + n) for n in ("temperature", "top_k", "top_p"))
            if not (prefix and temperature is None):
                check_real(prefix + "temperature", temperature, 0.0)
            if not (prefix and top_k is None):
                check_int(prefix + "top_k", top_k, 0)
            if not (prefix and top_p is None):
                check_real(prefix + "top_p", top_p, 0.0, 1.0, open_low=True)
        if self.max_time is not None:
            check_real("max_time", self.max_time, 0.0, open_low=True)
        for name in ("num_threads", "teacher_batch"):
            if getattr(self, name) is not None:
                check_int(name, getattr(self, name), 1)
        for name in ("truncation", "output_logprobs", "output_reads"):
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name} must be True or False, got {getattr(self, name)!r}")
        check_int("top_logprobs", self.top_logprobs, 0, MOST_TOP)
        check_int("no_repeat_ngram_size", self.no_repeat_ngram_size, 0, MOST_TOKENS)
        check_real("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        if self.forced_eos_token_id is not None:
            check_int("forced_eos_token_id", self.forced_eos_token_id, 0)
        if self.stop is not None and not isinstance(self.stop, str) and not is_sequence(self.stop):
            raise TypeError(Message(OptionName("stop"), f" must be a text or a list of texts, got {self.stop!r}"))
        for text in self.stop_texts:
            if not isinstance(text, str) or not text:
                raise (ValueError if text == "" else TypeError)(
                    Message(OptionName("stop"), f" must be texts that are not empty, got {text!r}")
                )
        for name in ("suppress_tokens", "begin_suppress_tokens", "stop_token_ids"):
            check_token_ids(name, getattr(self, name))
        if not is_sequence(self.bad_words_ids):
            raise TypeError(Message(OptionName("bad_words_ids"), f" must be lists of ids, got {self.bad_words_ids!r}"))
        for word in self.bad_words_ids:
            check_token_ids("bad_words_ids entry", word, least=1)
        if self.logit_bias is not None:
            if not isinstance(self.logit_bias, Mapping):
                kind = type(self.logit_bias).__name__
                raise TypeError(Message(OptionName("logit_bias"), f" must map ids to numbers, got a {kind}"))
            for key, bias in self.logit_bias.items():
                check_token_ids("logit_bias key", key if isinstance(key, tuple) else (key,), least=1)
                check_real(f"logit_bias of {key}", bias, -1e6, 1e6)
        for name in ("forced_tokens", "row_ids"):
            value = getattr(self, name)
            if not is_sequence(value) and not (name == "row_ids" and value is None):
                raise TypeError(f"{name} must be a list of integers, got {value!r} of type {type(value).__name__}")
        if any(map(is_sequence, self.forced_tokens)) and not self.forced_by_row:
            raise TypeError(f"forced_tokens must be ids, or a list of ids for each row, got {self.forced_tokens!r}")
        longest = max(map(len, self.forced_tokens)) if self.forced_by_row else len(self.forced_tokens)
        if longest >= self.max_new_tokens:
            raise ValueError(
                f"forced_tokens has {longest} tokens and leaves no room in max_new_tokens={self.max_new_tokens}"
            )

    def with_own(self, own: Mapping[str, Any]) -> GenerateOptions:
        """The options of a row that has these of its own, by name."""
        return replace(self, **own)

    @property
    def forced_by_row(self) -> bool:
        """Whether each row has forced tokens of its own."""
        return len(self.forced_tokens) > 0 and all(map(is_sequence, self.forced_tokens))

    def by_row(self, rows: int) -> list[GenerateOptions]:
        """The options of each of ``rows`` input rows: their own forced tokens, where they have some."""
        if not self.forced_by_row:
            return [self] * rows
        if len(self.forced_tokens) != rows:
            raise ValueError(
                f"forced_tokens has {len(self.forced_tokens)} lists for {rows} rows; give ids for all, or a list of "
                f"them for each row"
            )
        return [replace(self, forced_tokens=forced) for forced in self.forced_tokens]

    @property
    def stop_texts(self) -> tuple[str, ...]:
        """The texts at which an output stops."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def sampling(self) -> tuple[float, int, float]:
        """The student's temperature, top_k and top_p."""
        return self.temperature, self.top_k, self.top_p

    @property
    def teacher_sampling(self) -> tuple[float, int, float]:
        """The teacher's, where None is as the student's."""
        return (
            self.temperature if self.teacher_temperature is None else self.teacher_temperature,
            self.top_k if self.teacher_top_k is None else self.teacher_top_k,
            self.top_p if self.teacher_top_p is None else self.teacher_top_p,
        )

    def check_one_each(self, taker: str) -> None:
        """ValueError for what only the rows of a batch may have, in words about ``taker``, which has no batch."""
        if self.row_ids is not None:
            raise ValueError(f"{taker} takes no row_ids; an item may have its own: {{'input_ids': …, 'row_id': …}}")
        if self.num_return_sequences != 1:
            raise ValueError(
                f"{taker} gives one output per item, got num_return_sequences={self.num_return_sequences}; give the "
                f"item several times, each with a row_id of its own"
            )
        for name in LIMITS:
            if is_sequence(getattr(self, name)):
                raise ValueError(f"{taker} takes one {name}, got {getattr(self, name)!r}; an item may have its own")
        if self.forced_by_row:
            raise ValueError(f"{taker} takes one list of forced_tokens; an item may have its own")

    def per_row(self, name: str, rows: int) -> list[Any]:
        """Returns option ``name`` (one value, or one per row, or None) as ``rows`` checked values."""
        value = getattr(self, name)
        if not is_sequence(value):
            check_limit(name, value)
            return [value] * rows
        values = list(value)
        if len(values) != rows:
            raise ValueError(f"{name} has {len(values)} values for {rows} rows; give one value or one per row")
        for item in values:
            check_limit(name, item)
        return values


class GenerateKeywords(TypedDict, total=False):
    """The fields of :class:`GenerateOptions` as keywords, for type checkers and editors."""

    max_new_tokens: int
    min_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    teacher_temperature: float | None
    teacher_top_k: int | None
    teacher_top_p: float | None
    seed: int
    row_ids: Sequence[int] | None
    num_return_sequences: int
    forced_tokens: Sequence[Any]
    suppress_tokens: Sequence[int]
    begin_suppress_tokens: Sequence[int]
    bad_words_ids: Sequence[Sequence[int]]
    no_repeat_ngram_size: int
    repetition_penalty: float
    logit_bias: Mapping[int | tuple[int, ...], float] | None
    forced_eos_token_id: int | None
    stop: str | Sequence[str] | None
    stop_token_ids: Sequence[int]
    max_teacher_fraction: float | Mapping[int, float] | Sequence[Any] | None
    max_teacher_calls: int | Mapping[int, int] | Sequence[Any] | None
    max_time: float | None
    max_source_length: int
    truncation: bool
    output_logprobs: bool
    top_logprobs: int
    output_reads: bool
    teacher_batch: int | None
    num_threads: int | None
