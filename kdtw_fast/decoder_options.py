"""The options of decoders: what they take when they are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from kdtw_fast.loaders import given_tokenizer
from kdtw_fast.options import check_int


@dataclass(frozen=True)
class DecoderOptions:
    """What every decoder takes as keywords when it is made.

    Args:
        tokenizer: needed to decode strings, loaded or as its folder (or GGUF file); None = the one in the folder that
            the student is or was loaded from, or in the folder "tokenizer" beside it. One that is given is taken for
            that of all models; otherwise those in the folders that student and teachers come from are compared, and
            must mean the same. It tells which rows of a vocabulary are padding, which are never picked; without any,
            every row that all models have may be picked.
        num_threads: threads of its calls, at least 1; None = all the processor offers. Results do not depend on it.
        dtype: number format of the weights, "auto", "fp32", "fp16", "bf16" or "int8" (see :meth:`NativeT5.from_model`).
        device: "cpu", "cuda", "cuda:<index>" or "auto" (see :meth:`NativeT5.from_model`); None = where a NativeT5 is,
            otherwise "cpu".
        cache: True keeps the packed weights of models that are given as folders in files there, which the next start
            maps into memory, and which processes share (see :meth:`NativeModel.from_pretrained`).
        generation_config: what of the checkpoint's generation_config.json, or of the model's in memory, holds where a
            call does not say otherwise: None = all of it (fields that the core cannot obey are refused by name);
            "ignore" = nothing but its special tokens (ends, padding, start, forced first token); or a dict of fields
            that come before it, special tokens too, None as a value for one that is not to hold. A student's and its
            teacher's must mean the same.
    """

    tokenizer: Any = None
    num_threads: int | None = None
    dtype: str = "auto"
    device: str | None = None
    cache: bool = False
    generation_config: Mapping[str, Any] | str | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.cache, bool):
            raise TypeError(
                f"cache must be True or False, got {self.cache!r}; for a file of another name, pass "
                f"NativeModel.from_pretrained(folder, cache=path) as the model"
            )
        if self.num_threads is not None:
            check_int("num_threads", self.num_threads, 1)
        object.__setattr__(self, "tokenizer", given_tokenizer(self.tokenizer))


@dataclass(frozen=True)
class PairOptions(DecoderOptions):
    """What decoders of two models take further.

    Args:
        teacher_dtype: the teacher's number format, when it differs; None = as ``dtype``. A list has one for each of
            several teachers.
    """

    teacher_dtype: str | Sequence[str | None] | None = None


class DecoderKeywords(TypedDict, total=False):
    """The fields of :class:`DecoderOptions` as keywords, for type checkers and editors."""

    tokenizer: Any
    num_threads: int | None
    dtype: str
    device: str | None
    cache: bool
    generation_config: Mapping[str, Any] | str | None


class PairKeywords(DecoderKeywords, total=False):
    """The fields of :class:`PairOptions` as keywords, for type checkers and editors."""

    teacher_dtype: str | Sequence[str | None] | None
