"""What the options of a call say of the tokens that may be written, as the core takes it for a row."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from kdtw_fast import _core
from kdtw_fast.messages import Message, OptionName
from kdtw_fast.model import NativeModel
from kdtw_fast.options import TOKEN_RULES, GenerateOptions, check_int


def given_rules(options: GenerateOptions) -> list[str]:
    """Names of the options that make rules."""
    off = {"no_repeat_ngram_size": 0, "repetition_penalty": 1.0, "forced_eos_token_id": None}
    return [
        name for name in TOKEN_RULES if (getattr(options, name) != off[name] if name in off else _any(options, name))
    ]


def _any(options: GenerateOptions, name: str) -> bool:
    value = getattr(options, name)
    return value is not None and len(value) > 0


def token_rules(options: GenerateOptions, model: NativeModel, forced: int) -> _core.TokenRules | None:
    """The rules of a row whose output begins with ``forced`` forced tokens; None = none.

    Args:
        options: of the call.
        model: the model that writes; ids are of its vocabulary.
        forced: tokens that the output begins with.

    Raises:
        ValueError: an id is not of the vocabulary, or the model is on a CUDA device.
    """
    stops = options.stop_token_ids if options.min_new_tokens > 0 else ()
    given = given_rules(options) + ["stop_token_ids"] * (len(stops) > 0)
    if not given:
        return None
    if model.device != "cpu":
        raise ValueError(
            Message(
                OptionName(given[0]), f" is not obeyed on device {model.device!r} yet; decode on 'cpu', or leave it out"
            )
        )
    for name, token in _ids(options):
        check_int(f"{name}'s id", token, 0, model.vocab_size - 1)
    end = options.forced_eos_token_id
    if end is not None and end not in model.eos_token_ids:
        raise ValueError(
            Message(
                OptionName("forced_eos_token_id", end), f" is no end token; the {model.name}'s: {model.eos_token_ids}"
            )
        )
    if end is not None and end in options.suppress_tokens:
        raise ValueError(
            Message(
                OptionName("forced_eos_token_id", end), " is one of ", OptionName("suppress_tokens"), "; leave it out"
            )
        )
    banned = [[token] for token in options.suppress_tokens] + [
        list(word) for word in options.bad_words_ids if len(word) > 1 or word[0] not in model.eos_token_ids
    ]
    biases = options.logit_bias or {}
    sequences = [(list(key) if isinstance(key, tuple) else [key], float(bias)) for key, bias in biases.items()]
    return _core.TokenRules(
        sequences=sequences + [(word, float("-inf")) for word in banned],
        early=[(token, forced + 1) for token in options.begin_suppress_tokens]
        + [(token, options.min_new_tokens) for token in stops],
        repetition_penalty=options.repetition_penalty,
        no_repeat_ngram=options.no_repeat_ngram_size,
        forced_end=-1 if end is None else end,
        last=options.max_new_tokens - 1,
    )


def _ids(options: GenerateOptions) -> Iterator[tuple[str, int]]:
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        yield from ((name, token) for token in getattr(options, name))
    yield from (("bad_words_ids", token) for word in options.bad_words_ids for token in word)
    for key in options.logit_bias or ():
        keys: Sequence[int] = key if isinstance(key, tuple) else (key,)
        yield from (("logit_bias", token) for token in keys)
