"""One model alone, the student or the teacher of a pair."""

from __future__ import annotations

from typing import Unpack

from kdtw_fast import _core
from kdtw_fast.decoder_options import DecoderKeywords, DecoderOptions
from kdtw_fast.decoders.base import Decoder, ModelLike
from kdtw_fast.decoders.tokenizers import words_of
from kdtw_fast.deprecation import warn_renamed
from kdtw_fast.keywords import takes
from kdtw_fast.model import NativeT5, load

ROLES = ("student", "teacher")


class SingleModelDecoder(Decoder):
    """One model alone, greedy or, with ``temperature`` > 0, sampling.

    Args:
        model: Hugging Face T5, NativeT5 or a safetensors folder.
        role: "student" or "teacher": whose tokens, passes, times and log-probabilities an output reports, and whose
            prompt stands before strings. A teacher samples by ``teacher_temperature`` and the like where given.
    """

    @takes(DecoderOptions)
    def __init__(self, model: ModelLike, *, role: str = "student", **shared: Unpack[DecoderKeywords]):
        if role not in ROLES:
            raise ValueError(f"role must be 'student' or 'teacher', got {role!r}")
        options = DecoderOptions(**shared)
        native = load(model, "model", options.dtype, options.device, options.cache, options.generation_config)
        self.role = role
        self.teachers = (native,) if role == "teacher" else ()
        rules = _core.MethodRules(teacher_alone=role == "teacher")
        super().__init__(native, [], rules, words_of(options.tokenizer, model, native.tau_token_ids), options, role)

    @property
    def student(self) -> NativeT5 | None:
        """The model where it is the student, otherwise None."""
        return self.model if self.role == "student" else None


class GreedyDecoder(SingleModelDecoder):
    """Deprecated name of :class:`SingleModelDecoder`, from when its one model was a student whatever it was."""

    @takes(DecoderOptions)
    def __init__(self, model: ModelLike, **shared: Unpack[DecoderKeywords]):
        warn_renamed("GreedyDecoder", "SingleModelDecoder", stacklevel=4)
        super().__init__(model, **shared)
