"""kdtw_fast: a small student writes and asks a large teacher for single tokens (arXiv 2502.17717), natively fast."""

from __future__ import annotations

try:
    import torch as _torch  # noqa: F401 - asked for here so that its absence is one sentence
except ImportError as error:
    raise ImportError(
        "kdtw_fast needs PyTorch; install the build for your machine (for a CPU: pip install torch==2.13.0)"
    ) from error

from kdtw_fast._core import build_info
from kdtw_fast.auto import AutoDecoder
from kdtw_fast.budgets import BUDGETS, Budget, resolve_budget
from kdtw_fast.decoders import (
    BigLittleDecoder,
    EntropyCallDecoder,
    GreedyDecoder,
    InterleavedDecoder,
    RandomCallDecoder,
    SpeculativeDecoder,
    TrainingWheelsDecoder,
)
from kdtw_fast.model import NativeT5
from kdtw_fast.modeling import TrainingWheelsT5
from kdtw_fast.options import GenerateOptions
from kdtw_fast.outputs import GenerationOutput, Owner, Timings
from kdtw_fast.pairs import Pair, load_pair

__version__ = "0.1.0"

__all__ = [
    "BUDGETS",
    "AutoDecoder",
    "BigLittleDecoder",
    "Budget",
    "EntropyCallDecoder",
    "GenerateOptions",
    "GenerationOutput",
    "GreedyDecoder",
    "InterleavedDecoder",
    "NativeT5",
    "Owner",
    "Pair",
    "RandomCallDecoder",
    "SpeculativeDecoder",
    "Timings",
    "TrainingWheelsDecoder",
    "TrainingWheelsT5",
    "build_info",
    "load_pair",
    "resolve_budget",
]
