"""Every decoder again in plain PyTorch: the oracle of the native core, and its maths written down.

One row at a time and no cache: each pass runs the whole decoder over everything committed so far. fp32 models.
The classes have the constructors and the `generate` of `kdtw_fast.decoders`.
"""

from kdtw_fast.reference.loop import ACCEPTED, CORRECTED, FORCED, NONE, STUDENT, TEACHER, ReferenceRow
from kdtw_fast.reference.methods import (
    BigLittleDecoder,
    EntropyCallDecoder,
    InterleavedDecoder,
    RandomCallDecoder,
    SingleModelDecoder,
    SpeculativeCascadeDecoder,
    SpeculativeDecoder,
    TrainingWheelsDecoder,
)
from kdtw_fast.reference.picking import Warp, ban, greedy_pick, sample, warp

__all__ = [
    "ACCEPTED",
    "CORRECTED",
    "FORCED",
    "NONE",
    "STUDENT",
    "TEACHER",
    "BigLittleDecoder",
    "EntropyCallDecoder",
    "InterleavedDecoder",
    "RandomCallDecoder",
    "ReferenceRow",
    "SingleModelDecoder",
    "SpeculativeCascadeDecoder",
    "SpeculativeDecoder",
    "TrainingWheelsDecoder",
    "Warp",
    "ban",
    "greedy_pick",
    "sample",
    "warp",
]
