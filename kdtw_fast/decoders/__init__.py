"""The decoders users import: one class per method over one native loop, the same ``generate`` and ``stream`` for all.

A method is a call rule and an accept rule (docs/design.md), given to the core as one small ``MethodRules``.
"""

from kdtw_fast.decoders.base import Decoder, ModelLike
from kdtw_fast.decoders.checked_drafts import (
    BigLittleDecoder,
    InterleavedDecoder,
    SpeculativeCascadeDecoder,
    SpeculativeDecoder,
)
from kdtw_fast.decoders.single import GreedyDecoder, SingleModelDecoder
from kdtw_fast.decoders.training_wheels import EntropyCallDecoder, RandomCallDecoder, TrainingWheelsDecoder
from kdtw_fast.worker import TokenStreamer

__all__ = [
    "BigLittleDecoder",
    "Decoder",
    "EntropyCallDecoder",
    "GreedyDecoder",
    "InterleavedDecoder",
    "ModelLike",
    "RandomCallDecoder",
    "SingleModelDecoder",
    "SpeculativeCascadeDecoder",
    "SpeculativeDecoder",
    "TokenStreamer",
    "TrainingWheelsDecoder",
]
