"""The special tokens of a decode: what a checkpoint's two configs, or those who call, say of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

# Fields of a config, and of a generation config that was not made from it, which comes before.
FIELDS = ("decoder_start_token_id", "eos_token_id", "pad_token_id", "forced_bos_token_id")


def with_tokens(config: Mapping[str, Any], generation: Mapping[str, Any]) -> dict[str, Any]:
    """The config with what the generation config says of tokens; where that was made from it, of what it leaves out."""
    overrules = not generation.get("_from_model_config")  # it says what the config said then, not what it says now
    told = {key: generation[key] for key in FIELDS if generation.get(key) is not None}
    return {**config, **{key: token for key, token in told.items() if overrules or config.get(key) is None}}


def of_old_config(config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """The config of a model without a generation config, which old ones have their first token in as BART had it.

    Raises ValueError, which begins with ``name``, where they do not say it in a way that is understood.
    """
    field = "force_bos_token_to_be_generated"
    told = config.get(field)
    if not isinstance(told, bool | None):
        raise ValueError(f"{name}: config field {field} must be true or false, got {told!r}")
    if not told:
        return dict(config)
    if config.get("bos_token_id") is None:
        raise ValueError(f"{name}: config field {field} is true, but bos_token_id is missing; add it")
    return {**config, "forced_bos_token_id": config["bos_token_id"]}


def said(told: Any) -> dict[str, Any]:
    """What a decoder's ``generation_config`` says of tokens; None as a value for a field that is not to hold."""
    return {key: told[key] for key in FIELDS if key in told} if isinstance(told, Mapping) else {}


@dataclass(frozen=True)
class SpecialTokens:
    """The special tokens of a model, by the names that :class:`kdtw_fast.NativeModel` gives them."""

    eos_token_ids: list[int]
    pad_token_id: int
    decoder_start_token_id: int
    first_tokens: list[int]

    @classmethod
    def of(
        cls, fields: Mapping[str, Any], taus: Sequence[int], has_encoder: bool, vocabulary: int, label: str
    ) -> SpecialTokens:
        """Of :data:`FIELDS`; ValueError, which begins with ``label``, where they or <tau>s are no rows of the head."""
        eos, pad, start, first = (
            fields.get(f"{name}_token_id") for name in ("eos", "pad", "decoder_start", "forced_bos")
        )
        if eos is None or eos == []:
            raise ValueError(f"{label} eos_token_id is missing; a decode would have no end token")
        ends = list(eos) if isinstance(eos, (list, tuple)) else [eos]
        if pad is None:  # what transformers pads with, too; T5 and its like always have one
            pad = 0 if has_encoder else ends[0]
        start = pad if start is None else start  # T5 starts from pad
        firsts = [] if first is None else [first]
        rows = {
            "forced_bos_token_id": firsts,
            "pad_token_id": [pad],
            "decoder_start_token_id": [start],
            "tau_token_id" if len(taus) < 2 else "tau_token_ids": taus,
            "eos_token_id": ends,
        }
        for field, tokens in rows.items():
            for token in tokens:
                if type(token) is not int or not 0 <= token < vocabulary:
                    raise ValueError(f"{label} {field}={token!r} is outside the vocabulary of {vocabulary}")
        return cls(ends, pad, start, firsts)
