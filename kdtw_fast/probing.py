"""Tokens that a model is tried with before its matrices become int8: some lose too much there and stay in bf16.

Activations that are large in few channels may arise in no weight, but only while a model computes: of a norm's
parameters, of what the layers before add to a channel, of a gate times what it gates, at the first token. So the core
lets the model read some tokens as it packs it (csrc/model/int8_losses.cpp) and measures in every matrix what rounding
leaves of what tells tokens apart. Nobody has to give text for it: the tokens are drawn at random, which is stress
enough where the question is what channels do. The choice is a function of the checkpoint alone.
"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from functools import cache
from typing import Any

from kdtw_fast.families import FAMILIES
from kdtw_fast.random import philox4x32

VERSION = 2  # to be raised when other tokens, another measure or another limit would choose otherwise
SOURCE, TOKENS = 16, 32  # of the source, and of the decoder
LEAST = 4  # different tokens, below which nothing tells what is usual
_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "tau_token_id", "tau_token_ids")


def probe_key(config: Mapping[str, Any]) -> list[Any]:
    """What the choice depends on beside the weights: ``generation_config.json`` says it, too; and other processors than
    x86-64 round the generic kernels' sums otherwise."""
    return [VERSION, _special_ids(config), platform.machine()]


def probe_tokens(spec: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[list[int], list[int]] | None:
    """A source and what a decoder reads: ids drawn with a fixed seed, none of them special.

    None where nothing is to be tried: of other formats than int8, and of models that cannot read :data:`LEAST`
    different tokens.

    Args:
        spec: the core's of the model.
        config: Hugging Face's. A source ends with its end token; a decoder begins with its start token, and one
            without an encoder with ``bos_token_id``, where there is one.
    """
    if spec["dtype"] != "int8":
        return None
    vocabulary = int(spec["vocabulary"])
    ids = {field: _ids(value, vocabulary) for field, value in _special_ids(config).items()}
    special = {token for tokens in ids.values() for token in tokens}
    encoder, decoder = spec.get("encoder") or {}, spec["decoder"]
    encodes, ends = bool(encoder.get("layers")), ids["eos_token_id"][:1]
    begins = ids["decoder_start_token_id"] or ids["pad_token_id"] if encodes else ids["bos_token_id"]  # T5's is pad
    lists = []
    for stack, stream, wanted, before, after in ((encoder, 0, SOURCE, [], ends), (decoder, 1, TOKENS, begins[:1], [])):
        count = _room(stack, wanted) - len(before) - len(after)
        lists.append(before + _drawn(special, vocabulary, stream, count) + after)
    source, tokens = lists[0] if encodes else [], lists[1]
    readable = min(len(set(each)) for each in ([source, tokens] if encodes else [tokens]))
    return (source, tokens) if readable >= LEAST else None


def _special_ids(config: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that name special tokens; one that is absent is what transformers makes of it, as in memory."""
    kind = config.get("model_type", "t5")
    lacks = any(field not in config for field in _SPECIAL)
    defaults = _defaults(kind) if lacks and isinstance(kind, str) and kind in FAMILIES else {}
    return {field: config.get(field, defaults.get(field)) for field in _SPECIAL}


@cache
def _defaults(kind: str) -> dict[str, Any]:
    from transformers import AutoConfig

    return dict(AutoConfig.for_model(kind).to_dict())


def _ids(value: Any, vocabulary: int) -> list[int]:
    """The ids that a field of a config names; what is wrong with them is said elsewhere."""
    values = value if isinstance(value, list | tuple) else [value]
    return [token for token in values if type(token) is int and 0 <= token < vocabulary]


def _drawn(special: set[int], vocabulary: int, stream: int, count: int) -> list[int]:
    if count <= 0:
        return []
    tokens: list[int] = []
    for word in philox4x32([[i, 0, 0, stream] for i in range(count)], [0, 0])[:, 0].tolist():
        token = word % vocabulary
        while token in special and len(special) < vocabulary:
            token = (token + 1) % vocabulary
        tokens.append(token)
    return tokens


def _room(stack: Mapping[str, Any], wanted: int) -> int:
    """How many tokens are read: fewer where a table of positions ends before."""
    positions = int(stack.get("positions", 0))
    return min(wanted, positions - int(stack.get("first_position", 0))) if positions else wanted
