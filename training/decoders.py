"""Where training gets its native decoders: a run's settings say how they decode, not the checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from kdtw_fast.decoders.interface import AnyDecoder
from kdtw_fast.generation import IGNORE

AnyKind = TypeVar("AnyKind", bound=AnyDecoder)


def decoder_of(kind: Callable[..., AnyKind], *models: Any, **options: Any) -> AnyKind:
    """A decoder of class `kind` that obeys nothing of its models' generation configs but their special tokens.

    What is called greedy is greedy then, and what is sampled comes from the models' own distributions.
    """
    return kind(*models, generation_config=IGNORE, **options)
