"""Types of the native extension (csrc/bindings); mypy.stubtest holds the two together in CI."""

import enum
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_Tensors = Callable[[str, int, int], npt.NDArray[np.float32] | None]
_ProbeTokens = tuple[Sequence[int], Sequence[int]]  # a source, and what the decoder reads

class MappedFile:
    """A file that is read where it lies, also while others cut it; `check()` raises OSError once they have."""

    def __init__(self, path: str) -> None: ...
    @property
    def bytes(self) -> npt.NDArray[np.uint8]: ...
    def check(self) -> None: ...

class Transformer:
    def __init__(
        self,
        spec: dict[str, Any],
        device: str,
        tensors: _Tensors,
        blobs: Sequence[npt.NDArray[np.uint8]] | None = ...,
        file: MappedFile | None = ...,
        probe: _ProbeTokens | None = ...,
    ) -> None: ...
    def update(self, device: str, tensors: _Tensors, probe: _ProbeTokens | None = ...) -> None: ...
    def int8_losses(self, probe: _ProbeTokens) -> dict[str, float]: ...
    @property
    def spec(self) -> dict[str, Any]: ...
    @property
    def num_bytes(self) -> int: ...
    @property
    def blobs(self) -> list[npt.NDArray[np.uint8]]: ...
    def decode_logits(
        self,
        device: str,
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
    CASCADE = 6

class MethodRules:
    def __init__(
        self,
        *,
        two_models: bool = ...,
        teacher_alone: bool = ...,
        marks_teacher: bool = ...,
        on_tau: bool = ...,
        draft_length: int = ...,
        min_confidence: float = ...,
        max_uniform: float = ...,
        max_entropy: float = ...,
        check: Check = ...,
        threshold: float = ...,
        teacher_continues: bool = ...,
        checks_all: bool = ...,
    ) -> None: ...

class Ledger:
    def __init__(self, max_calls: int | None = ..., max_fraction: float | None = ...) -> None: ...
    def allows(self, calls: int, position: int) -> bool: ...
    def first_replaceable(self, calls: int, position: int) -> int: ...

class TokenRules:
    """Rules of a row on tokens (csrc/core/token_rules.h)."""

    def __init__(
        self,
        *,
        sequences: Sequence[tuple[Sequence[int], float]],
        early: Sequence[tuple[int, int]],
        repetition_penalty: float,
        no_repeat_ngram: int,
        forced_end: int,
        last: int,
    ) -> None: ...

class Stops:
    """Where a row stops: behind the first of these tokens, and where ``find`` says.

    ``find`` is given the row's outputs behind forced ones, when there are more that nothing can take back, and says how
    many of them the row keeps and stops, or -1.
    """

    def __init__(self, tokens: Sequence[int], find: Callable[[list[int]], int] | None = ...) -> None: ...

class SpecialTokens:
    def __init__(self, start: int, end: Sequence[int], tau: Sequence[int] = ...) -> None: ...

class Decoder:
    def __init__(
        self,
        device: str,
        student: Transformer,
        teachers: Sequence[Transformer] | None,
        method: MethodRules,
        special: SpecialTokens,
    ) -> None: ...

class RowOptions:
    """What a row may be asked for by itself; `max_seconds` runs from when it was added, 0 = no limit."""

    def __init__(
        self,
        *,
        max_new_tokens: int,
        min_new_tokens: int,
        student_sampling: Sampling,
        teacher_sampling: Sampling,
        seed: int,
        max_seconds: float,
        rules: TokenRules | None = ...,
        stops: Stops = ...,
        forced_tokens: Sequence[int] = ...,
    ) -> None: ...

class SessionOptions:
    def __init__(
        self,
        *,
        row: RowOptions,
        teacher_batch: int,
        want_log_probs: bool,
        want_reads: bool,
        threads: int,
        top_count: int = ...,
    ) -> None: ...

class Bell:
    """Rung from another thread, it ends a run of a session that waits for a row to finish."""

    def ring(self) -> None: ...
    def clear(self) -> None: ...

class Session:
    """Rows decoded together in so many slots; RuntimeError when two calls meet, or after one ended in an exception."""

    def __init__(self, decoder: Decoder, options: SessionOptions, slots: int, source_capacity: int) -> None: ...
    def add(
        self,
        key: int,
        ledger: Ledger,
        student_source: Sequence[int],
        teacher_sources: Sequence[Sequence[int]],
        own_ledgers: Sequence[Ledger] = ...,
        options: RowOptions | None = None,
    ) -> int:
        """A row for a free slot, and its number: 0, 1, 2, … as they come.

        ledger bounds all teachers together, own_ledgers each its teacher (none = no bound). A teacher's source that
        is empty or missing is the student's. options are the row's instead of the session's, whose max_new_tokens
        they may not exceed.
        """

    def drop(self, index: int) -> bool:
        """Ends the row of that number, which is handed out to nobody; False where none runs."""

    def run(
        self,
        to_the_end: bool,
        pad: int,
        streamer: Callable[[int, int, int, int], None] | None,
        bell: Bell | None = None,
        one_turn: bool = False,
    ) -> dict[str, Any]:
        """Decodes until a row has finished, or all have, or one is at fault; the finished rows as arrays.

        With `to_the_end` false, a bell that is rung ends it too, perhaps with no row; and with `one_turn` it ends after
        one pass of a teacher or one draft.
        """

    @property
    def free_slots(self) -> int: ...
    @property
    def student_passes(self) -> int: ...
    @property
    def teacher_passes(self) -> int: ...
    @property
    def seconds(self) -> tuple[float, float, float, float]:
        """In encoders, the student's decoder, the teacher's, and the loop itself."""

_PassCosts = tuple[list[float], dict[str, tuple[float, float, float]]]

class Probe:
    def __init__(
        self,
        device: str,
        model: Transformer,
        rows: int,
        source_tokens: int,
        history: int,
        most_tokens: int,
        threads: int,
    ) -> None: ...
    def encode(self, repeats: int) -> _PassCosts: ...
    def decode(self, tokens: int, asked: int, repeats: int) -> _PassCosts: ...
    def cache_bytes(self) -> int: ...

def uniform(seed: int, row: int, position: int, stream: int) -> float: ...

packed_layout: int

def call_now(waiting: int, drafting: int, batch: int) -> bool: ...

class Operations:
    def __init__(self, device: str, threads: int = ...) -> None: ...
    def embed(
        self,
        table: npt.NDArray[np.float32],
        ids: Sequence[int],
        marked: Sequence[int],
        mark: npt.NDArray[np.float32],
        dtype: str,
        scale: float = 1.0,
        positions: npt.NDArray[np.float32] = ...,
    ) -> npt.NDArray[np.float32]: ...
    def norm(
        self,
        x: npt.NDArray[np.float32],
        scale: npt.NDArray[np.float32],
        epsilon: float,
        shift: npt.NDArray[np.float32] = ...,
        add_to: npt.NDArray[np.float32] = ...,
    ) -> npt.NDArray[np.float32]: ...
    def linear(
        self,
        weight: npt.NDArray[np.float32],
        x: npt.NDArray[np.float32],
        dtype: str,
        add_to: npt.NDArray[np.float32],
        encoder: bool = False,
        bias: npt.NDArray[np.float32] = ...,
        cap: float = 0.0,
    ) -> npt.NDArray[np.float32]: ...
    def norm_linear(
        self,
        weight: npt.NDArray[np.float32],
        x: npt.NDArray[np.float32],
        scale: npt.NDArray[np.float32],
        epsilon: float,
        dtype: str,
        encoder: bool = False,
        shift: npt.NDArray[np.float32] = ...,
    ) -> npt.NDArray[np.float32]: ...
    def norm_linear_activate(
        self,
        weight: npt.NDArray[np.float32],
        x: npt.NDArray[np.float32],
        scale: npt.NDArray[np.float32],
        epsilon: float,
        gated: bool,
        dtype: str,
        encoder: bool = False,
        function: int = -1,
        bias: npt.NDArray[np.float32] = ...,
    ) -> npt.NDArray[np.float32]: ...
    def activate(self, hidden: npt.NDArray[np.float32], gated: bool, function: int = -1) -> npt.NDArray[np.float32]: ...
    def turn_heads(
        self,
        x: npt.NDArray[np.float32],
        heads: int,
        scale: npt.NDArray[np.float32],
        epsilon: float,
        positions: Sequence[int],
        frequencies: npt.NDArray[np.float32],
        rotary_scale: float,
    ) -> npt.NDArray[np.float32]: ...
    def attend(
        self,
        cache_rows: int,
        capacity: int,
        heads: int,
        dtype: str,
        stored: Sequence[Sequence[int]],
        keys: npt.NDArray[np.float32],
        values: npt.NDArray[np.float32],
        asked: Sequence[Sequence[int]],
        queries: npt.NDArray[np.float32],
        bias: npt.NDArray[np.float32],
        lowest: int,
        scale: float = 1.0,
        cap: float = 0.0,
        window: int = 0,
        copies: Sequence[Sequence[int]] = ...,
    ) -> npt.NDArray[np.float32]: ...
    def gather(self, x: npt.NDArray[np.float32], indices: Sequence[int]) -> npt.NDArray[np.float32]: ...
    def pick(
        self,
        head: npt.NDArray[np.float32],
        hidden: npt.NDArray[np.float32],
        requests: Sequence[dict[str, Any]],
        dtype: str,
    ) -> tuple[list[tuple[int, bool, bool, float, float, float]], npt.NDArray[np.float32]]: ...
    def draft(
        self,
        head: npt.NDArray[np.float32],
        hidden: npt.NDArray[np.float32],
        stops: Sequence[Sequence[int]],
        first_allowed: Sequence[Sequence[int]],
        positions: Sequence[int],
        first_calls: Sequence[int],
        waiting: Sequence[int],
        batch: int,
        outputs: int,
        max_uniform: float,
        seed: int,
    ) -> list[tuple[int, int, list[int]]]: ...

def build_info() -> dict[str, Any]: ...
def resolve_device(device: str) -> str: ...
def use_cuda_library(path: str) -> None: ...
def use_cuda_drafting(how: str, steps: int) -> None: ...
def use_cuda_allocator(
    allocate: Callable[[int, int, int], int] | None,
    release: Callable[[int], object] | None,
    current_stream: Callable[[int], int] | None,
) -> None: ...
def set_simd(level: str) -> None: ...
def hardware_threads() -> int: ...
def read_rate(bytes: int, threads: int, rounds: int) -> float: ...
