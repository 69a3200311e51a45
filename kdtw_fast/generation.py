"""What a checkpoint says of generating (``generation_config.json``, or a model's in memory), as options of calls.

Transformers' precedence: a keyword of a call, then the checkpoint, then the option's default. What the core cannot do
is refused by name. Special tokens are the model's (`kdtw_fast.special_tokens`), also those that a decoder is told.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import Any, Protocol

from kdtw_fast.loaders import read_json
from kdtw_fast.messages import Message, OptionName
from kdtw_fast.options import MOST_TOKENS, GenerateOptions, check_int, is_sequence, nearest


class Checkpoint(Protocol):
    """What is asked of a NativeModel here."""

    name: str
    generation: dict[str, Any]
    tau_token_ids: list[int]
    eos_token_ids: list[int]
    vocab_size: int

    @property
    def has_encoder(self) -> bool:
        """Whether a source is encoded."""


IGNORE = "ignore"  # what DecoderOptions.generation_config is where nothing of it is obeyed

# Fields that are options of the same name.
_SAME = (
    *("max_new_tokens", "min_new_tokens", "max_time", "top_k", "top_p", "repetition_penalty", "no_repeat_ngram_size"),
    *("bad_words_ids", "suppress_tokens", "begin_suppress_tokens"),
)
_OTHERS = (
    "max_length",
    "min_length",
    "do_sample",
    "temperature",
    "forced_eos_token_id",
    "sequence_bias",
    "stop_strings",
)
# Special tokens, which the model has; or without effect on what is written where there are no beams.
# fmt: off
_WITHOUT_EFFECT = frozenset({
    "_from_model_config", "assistant_confidence_threshold", "assistant_early_exit", "assistant_ensemble_weight",
    "assistant_lookbehind", "bos_token_id", "cache_config", "cache_implementation", "compile_config",
    "continuous_batching_config", "decoder_start_token_id", "disable_compile", "early_stopping", "eos_token_id",
    "forced_bos_token_id", "is_assistant", "length_penalty", "low_memory", "max_cache_len", "max_matching_ngram_size",
    "num_assistant_tokens", "num_assistant_tokens_schedule", "output_attentions", "output_hidden_states",
    "output_logits", "output_scores", "pad_token_id", "prefill_chunk_size", "prompt_lookup_num_tokens",
    "remove_invalid_values", "renormalize_logits", "return_dict_in_generate", "speculation_type", "target_lookbehind",
    "transformers_version", "use_cache", "use_mtp",
})
# fmt: on
# Values by which a field that the core does not know changes nothing, where those are not None, False, 0 or empty.
_NEUTRAL = {
    "num_beams": 1,
    "num_beam_groups": 1,
    "num_return_sequences": 1,
    "typical_p": 1.0,
    "encoder_repetition_penalty": 1.0,
    "guidance_scale": 1.0,
}
_TOP_K = 50  # transformers' where a checkpoint samples and does not say
LENGTHS = {"max_length": "max_new_tokens", "min_length": "min_new_tokens"}  # the first count a prompt, too


@dataclass(frozen=True)
class WholeLengths(GenerateOptions):
    """A call's options where lengths are a checkpoint's: those that count the prompt, where there is no encoder.

    Args:
        max_length: of a prompt and its output together, 1 to 2^20; None = ``max_new_tokens`` holds. Until a row's
            prompt is known, that is what a prompt of one token leaves.
        min_length: no end token before so many of both, 0 to 2^20; 0 = ``min_new_tokens`` holds.
        least_yields: whether ``min_new_tokens`` are the checkpoint's, so that fewer ``max_new_tokens`` hold.
    """

    max_length: int | None = None
    min_length: int = 0
    least_yields: bool = False

    def with_own(self, own: Mapping[str, Any]) -> GenerateOptions:
        """The options of a row that has these of its own, by name."""
        most = own.get("max_new_tokens")
        if "min_new_tokens" in own:
            return replace(self, **own, least_yields=False)
        if self.least_yields and isinstance(most, Integral):
            return replace(self, **own, min_new_tokens=min(self.min_new_tokens, int(most)))
        return replace(self, **own)

    def behind(self, prompt: int, label: str) -> GenerateOptions:
        """The options of the row ``label`` behind a prompt of so many tokens; ValueError where it leaves no room."""
        most, least = self.max_new_tokens, self.min_new_tokens
        if self.max_length is not None:
            most = min(self.max_length - prompt, most)
            if self.least_yields and most > 0:
                least = min(least, most)
            if most < max(1, least):
                wanted = f", and min_new_tokens={least} are wanted" if most > 0 else ""
                raise ValueError(
                    Message(
                        f"{label} has a prompt of {prompt} tokens, which max_length={self.max_length} of the "
                        f"checkpoint's generation_config counts{wanted}; shorten it, or pass ",
                        OptionName("max_new_tokens"),
                    )
                )
        if self.min_length > 0:
            least = min(max(0, self.min_length - prompt), most)
        return replace(self, max_new_tokens=most, min_new_tokens=least, max_length=None, min_length=0)


def options_of(defaults: Mapping[str, Any], keywords: Mapping[str, Any]) -> GenerateOptions:
    """A call's options: its keywords, and for what they do not say, the checkpoint's (`call_defaults`)."""
    said: dict[str, Any] = {**defaults, **keywords}
    whole = {name: said.pop(name) for name in LENGTHS if name in said}
    whole = {name: value for name, value in whole.items() if LENGTHS[name] not in keywords}
    for name, value in whole.items():
        check_int(name, value, 1, MOST_TOKENS)
    if "max_length" in whole:
        said["max_new_tokens"] = max(1, whole["max_length"] - 1)
    most = said.get("max_new_tokens")
    yields = "min_new_tokens" in defaults and "min_new_tokens" not in keywords
    if isinstance(most, int) and yields:
        said["min_new_tokens"] = min(said["min_new_tokens"], most)  # a keyword goes before it
    return WholeLengths(**said, **whole, least_yields=yields) if whole or yields else GenerateOptions(**said)


def bounded(options: GenerateOptions, defaults: Mapping[str, Any]) -> GenerateOptions:
    """The options where a checkpoint's max_length (in `call_defaults`), if there is one, holds as well as theirs."""
    whole = defaults.get("max_length")
    if whole is None:
        return options
    check_int("max_length", whole, 1, MOST_TOKENS)
    return WholeLengths(**{**vars(options), "max_length": whole})


def row_options(options: GenerateOptions, prompt: int, label: str, item: Any = None) -> GenerateOptions:
    """The options of one row, whose ``item`` of a stream may have lengths of its own; ``label`` names it."""
    if not isinstance(options, WholeLengths) or (options.max_length is None and options.min_length == 0):
        return options
    if item is not None and item.max_new_tokens is not None:
        options = replace(options, max_length=None)
    if item is not None and item.min_new_tokens is not None:
        options = replace(options, min_length=0)
    return options.behind(prompt, label)


def generation_fields() -> frozenset[str]:
    """The fields that transformers' ``generate`` knows; others are somebody's notes."""
    from transformers import GenerationConfig

    return frozenset(GenerationConfig().to_dict())


def read_generation(folder: Path, config: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What a folder says: its generation_config.json, or where there is none, as before there were any, its config."""
    path = folder / "generation_config.json"
    return _said(read_json(path, name) if path.is_file() else config)


def module_generation(model: Any) -> dict[str, Any]:
    """What a model in memory says."""
    told = getattr(model, "generation_config", None)
    return {} if told is None else _said(told.to_dict())


def _said(fields: Mapping[str, Any]) -> dict[str, Any]:
    known = generation_fields()
    return {name: value for name, value in fields.items() if name in known and value is not None}


def call_defaults(models: Iterable[Checkpoint], told: Any) -> dict[str, Any]:
    """The options that calls of a decoder have where they do not say otherwise, by the names of WholeLengths.

    Args:
        models: the model that writes first, and its teachers.
        told: :attr:`kdtw_fast.decoder_options.DecoderOptions.generation_config`.

    Raises:
        TypeError, ValueError: `told` is neither None, "ignore" nor a mapping of fields that transformers knows.
        ValueError: a model asks for what the core does not do, or a teacher for something else than the student.
    """
    if told == IGNORE:
        return {}
    if told is not None and not isinstance(told, Mapping):
        raise TypeError(
            f"generation_config must be 'ignore', a dict of fields to override or None, got {told!r} of type "
            f"{type(told).__name__}"
        )
    for name in told or ():
        if name not in (known := generation_fields()):
            raise ValueError(f"generation_config has an unknown field {name!r}{nearest(str(name), known)}")
    first, *others = models
    defaults = given_options({**first.generation, **(told or {})}, first)
    for other in others:
        theirs = given_options({**other.generation, **(told or {})}, other)
        for name in sorted({*defaults, *theirs}):
            usual = getattr(WholeLengths, name)  # of a field, its default
            mine, their_own = defaults.get(name, usual), theirs.get(name, usual)
            if mine != their_own:
                raise ValueError(
                    Message(
                        f"student and teacher must share how they generate: {name} is {mine!r} by the {first.name}'s "
                        f"generation_config, {their_own!r} by the {other.name}'s; pass ",
                        OptionName("generation_config", f"'{IGNORE}'"),
                        f" for nothing of them, or a dict of what is to hold for both, {{{name!r}: …}}",
                    )
                )
    return defaults


def given_options(fields: Mapping[str, Any], model: Checkpoint) -> dict[str, Any]:
    """What one model's fields are as options of a call."""
    said = {name: value for name, value in fields.items() if value is not None}
    for name, value in said.items():
        if name in _SAME or name in _OTHERS:
            try:
                _check(name, value, model)
            except (TypeError, ValueError) as error:
                raise _refused(model, f"{name}={value!r}, but {error}", f"{name!r}: …") from None
            continue
        if name in _WITHOUT_EFFECT:
            continue
        neutral = _NEUTRAL.get(name)
        if value == neutral or not value:
            continue
        where = ": beam search is in transformers' generate of the same model" if "beam" in name else ""
        raise _refused(model, f"{name}={value!r}, which the core does not do{where}", f"{name!r}: {neutral!r}")
    options = {name: said[name] for name in _SAME if name in said}
    # A student's <tau> is suppressed for transformers' generate, which would write it; here decoders see to it.
    for name in ("suppress_tokens", "begin_suppress_tokens"):
        options[name] = [token for token in options.pop(name, ()) if token not in model.tau_token_ids]
        if not options[name]:
            del options[name]
    if said.get("do_sample"):
        options["temperature"] = said.get("temperature", 1.0)
        options.setdefault("top_k", _TOP_K)
    for length, new in LENGTHS.items():
        if length not in said or new in said or said[length] == 0:
            continue
        if model.has_encoder:
            options[new] = max(0, said[length] - 1)  # the start token counts there
        else:
            options[length] = said[length]
    if "forced_eos_token_id" in said:
        end = said["forced_eos_token_id"]
        options["forced_eos_token_id"] = end[0] if isinstance(end, (list, tuple)) else end
    if said.get("stop_strings"):
        options["stop"] = said["stop_strings"]
    if said.get("sequence_bias"):
        options["logit_bias"] = _biases(said["sequence_bias"])
    return options


def _check(name: str, value: Any, model: Checkpoint) -> None:
    """TypeError or ValueError for what a field that is obeyed cannot be."""
    ids: list[Any] = []
    if name in ("max_new_tokens", "min_new_tokens", *LENGTHS):
        least = 0 if name.startswith("min") else 2 if name == "max_length" and model.has_encoder else 1
        if value != 0 or name == "max_new_tokens":  # 0 means that there is none
            check_int(name, value, least, MOST_TOKENS)
    elif name == "do_sample":
        if not isinstance(value, bool):
            raise TypeError("it must be true or false")
    elif name == "forced_eos_token_id":
        ids = [*value] if is_sequence(value) else [value]
        if len(ids) != 1:
            raise ValueError("one end can be forced")
        if ids[0] not in model.eos_token_ids:
            raise ValueError(f"that is no end token; the model's are {model.eos_token_ids}")
    elif name == "sequence_bias":
        biases: dict[Any, Any] = _biases(value)
        GenerateOptions(logit_bias=biases)
        ids = [token for tokens in biases for token in tokens]
    elif name == "stop_strings":
        GenerateOptions(stop=value)
    else:
        GenerateOptions(**{name: value})
        ids = [*value] if name.endswith("suppress_tokens") else []
        if name == "bad_words_ids":
            ids = [token for word in value for token in word]
    for token in ids:
        check_int(f"{name}'s id", token, 0, model.vocab_size - 1)


def _biases(value: Any) -> dict[tuple[int, ...], Any]:
    """What sequence_bias says, by tokens: a mapping, or as JSON has it a list of pairs."""
    pairs = [*value.items()] if isinstance(value, Mapping) else value
    if not is_sequence(pairs) or not all(is_sequence(pair) and len(pair) == 2 for pair in pairs):
        raise TypeError("it must map lists of ids to numbers")
    if not all(is_sequence(tokens) and all(type(token) is int for token in tokens) for tokens, _ in pairs):
        raise TypeError("it must map lists of ids to numbers")
    return {tuple(tokens): bias for tokens, bias in pairs}


def _refused(model: Checkpoint, what: str, instead: str) -> ValueError:
    ignored = OptionName("generation_config", f"'{IGNORE}'")
    return ValueError(
        Message(
            f"{model.name}: its generation_config says {what}; pass ",
            ignored,
            f" for none of it, or a dict that says otherwise, {{{instead}}}",
        )
    )
