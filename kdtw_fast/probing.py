"""Tokens that a model is tried with before its matrices become int8: some lose too much there and stay in bf16.

Activations that are large in few channels may arise in no weight, but only while a model computes: of a norm's
parameters, of what the layers before add to a channel, of a gate times what it gates, at the first token. So the core
lets the model read some tokens as it packs it (csrc/model/int8_losses.cpp) and measures in every matrix what rounding
leaves of what tells tokens apart. Nobody has to give text for it: the tokens are drawn at random, which is stress
enough where the question is what channels do. The choice is a function of the checkpoint alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kdtw_fast.random import philox4x32

VERSION = 1  # to be raised when other tokens, another measure or another limit would choose otherwise
SOURCE, TOKENS = 16, 32  # of the source, and of the decoder
_SPECIAL = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id", "tau_token_id", "tau_token_ids")


def probe_tokens(spec: Mapping[str, Any], config: Mapping[str, Any]) -> tuple[list[int], list[int]]:
    """A source and what a decoder reads: ids drawn with a fixed seed, none of them special.

    Args:
        spec: the core's of the model.
        config: Hugging Face's. A source ends with its end token; a decoder begins with its start token, and one
            without an encoder with ``bos_token_id``, where there is one.
    """
    vocabulary = int(spec["vocabulary"])
    ends = _ids(config.get("eos_token_id"), vocabulary)
    special = {token for field in _SPECIAL for token in _ids(config.get(field), vocabulary)}
    encoder, decoder = spec.get("encoder") or {}, spec["decoder"]
    encodes = bool(encoder.get("layers"))
    begins = _ids(config.get("decoder_start_token_id" if encodes else "bos_token_id"), vocabulary)
    if encodes and not begins:
        begins = _ids(config.get("pad_token_id"), vocabulary)  # T5 starts from pad
    room, to_write = _room(encoder, SOURCE), _room(decoder, TOKENS)
    source = _drawn(special, vocabulary, 0, room - 1 if ends else room) + ends[:1]
    tokens = begins[:1] + _drawn(special, vocabulary, 1, to_write - 1 if begins else to_write)
    return source if encodes else [], tokens


def _ids(value: Any, vocabulary: int) -> list[int]:
    """The ids that a field of a config names; what is wrong with them is said elsewhere."""
    values = value if isinstance(value, list | tuple) else [value]
    return [token for token in values if type(token) is int and 0 <= token < vocabulary]


def _drawn(special: set[int], vocabulary: int, stream: int, count: int) -> list[int]:
    tokens: list[int] = []
    for i in range(count):
        token = int(philox4x32([i, 0, 0, stream], [0, 0])[0]) % vocabulary
        while token in special and len(special) < vocabulary:
            token = (token + 1) % vocabulary
        tokens.append(token)
    return tokens


def _room(stack: Mapping[str, Any], wanted: int) -> int:
    """How many tokens are read: fewer where a table of positions ends before."""
    positions = int(stack.get("positions", 0))
    return min(wanted, positions - int(stack.get("first_position", 0))) if positions else wanted
