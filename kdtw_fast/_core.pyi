"""Types of the native extension (csrc/bindings.cpp); mypy.stubtest holds the two together in CI."""

import enum
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

class T5Config:
    name: str
    vocab_size: int
    d_model: int
    d_kv: int
    num_heads: int
    d_ff: int
    num_layers: int
    num_decoder_layers: int
    relative_attention_num_buckets: int
    relative_attention_max_distance: int
    layer_norm_epsilon: float
    feed_forward_proj: str
    scale_decoder_outputs: bool
    has_teacher_token_embedding: bool
    dtype: str
    cache_dtype: str
    def __init__(self) -> None: ...

class T5:
    def __init__(
        self, config: T5Config, device: str, tensors: Callable[[str], npt.NDArray[np.float32] | None]
    ) -> None: ...
    @property
    def config(self) -> T5Config: ...
    @property
    def num_bytes(self) -> int: ...
    def decode_logits(
        self,
        source: Sequence[int],
        tokens: Sequence[int],
        marked: Sequence[int],
        chunks: Sequence[int],
        threads: int,
    ) -> npt.NDArray[np.float32]: ...

class Sampling:
    def __init__(self, temperature: float = ..., top_k: int = ..., top_p: float = ...) -> None: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def top_p(self) -> float: ...

class Check(enum.Enum):
    NONE = 0
    SCORE = 1
    LENIENCE = 2
    REJECTION = 3
    TOP_K = 4
    DIVERGENCE = 5

class Method:
    def __init__(
        self,
        *,
        two_models: bool = ...,
        marks_teacher: bool = ...,
        on_tau: bool = ...,
        draft_length: int = ...,
        min_confidence: float = ...,
        check: Check = ...,
        threshold: float = ...,
        teacher_continues: bool = ...,
        checks_all: bool = ...,
    ) -> None: ...

class Ledger:
    def __init__(self, max_calls: int | None = ..., max_fraction: float | None = ...) -> None: ...
    def allows(self, calls: int, position: int) -> bool: ...
    def first_replaceable(self, calls: int, position: int) -> int: ...

class SpecialTokens:
    def __init__(self, start: int, end: Sequence[int], tau: int = ...) -> None: ...

class GenerateRequest:
    student_sources: list[list[int]]
    teacher_sources: list[list[int]]
    row_keys: list[int]
    ledgers: list[Ledger]
    forced_tokens: list[int]
    max_new_tokens: int
    min_new_tokens: int
    student_sampling: Sampling
    teacher_sampling: Sampling
    seed: int
    max_seconds: float
    want_log_probs: bool
    threads: int
    def __init__(self) -> None: ...

class Decoder:
    def __init__(
        self, device: str, student: T5, teacher: T5 | None, method: Method, special: SpecialTokens
    ) -> None: ...
    def generate(
        self, request: GenerateRequest, pad: int, streamer: Callable[[int, int, int, int], None] | None
    ) -> dict[str, Any]: ...

_PassCosts = tuple[list[float], dict[str, tuple[float, float, float]]]

class Probe:
    def __init__(
        self, model: T5, rows: int, source_tokens: int, history: int, most_tokens: int, threads: int
    ) -> None: ...
    def encode(self, repeats: int) -> _PassCosts: ...
    def decode(self, tokens: int, asked: int, repeats: int) -> _PassCosts: ...
    @property
    def cache_bytes(self) -> int: ...

def uniform(seed: int, row: int, position: int, stream: int) -> float: ...
def philox4x32(counter: Sequence[int], key: Sequence[int]) -> list[int]: ...
def draft_limit(method: Method, room: int) -> int: ...
def linear(
    weight: npt.NDArray[np.float32], x: npt.NDArray[np.float32], dtype: str, threads: int = ...
) -> npt.NDArray[np.float32]: ...
def build_info() -> dict[str, Any]: ...
def set_simd(level: str) -> None: ...
def hardware_threads() -> int: ...
def read_rate(bytes: int, threads: int, rounds: int) -> float: ...
