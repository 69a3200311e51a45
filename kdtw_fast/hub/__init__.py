"""kdtw_fast under ``generate`` of models that are in memory, and in folders for the hub.

``teacher.generate(ids, assistant_model=student, custom_generate=FOLDER, trust_remote_code=True)`` decodes here. Depends
on decoders, as any program that uses them.
"""

from __future__ import annotations

import copy
import os
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any

import torch

from kdtw_fast.decoder_options import DecoderKeywords
from kdtw_fast.decoders import SingleModelDecoder, SpeculativeDecoder
from kdtw_fast.decoders.interface import end
from kdtw_fast.generation import given_options
from kdtw_fast.model import NativeModel
from kdtw_fast.special_tokens import FIELDS, said

FOLDER = str(Path(__file__).parent)  # what `custom_generate` is given where the package is installed
_DEFAULT_TOKENS = 20  # transformers' where nobody says
_DTYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
# Of generate's arguments: what is Python code, or means nothing here.
_REFUSED = {
    "logits_processor": "code that runs at each step does not; the rules of kdtw_fast.GenerateOptions do",
    "stopping_criteria": "code that runs at each step does not; stop_strings and max_time do",
    "prefix_allowed_tokens_fn": "code that runs at each step does not; suppress_tokens and bad_words_ids do",
    "negative_prompt_ids": "guidance is in transformers' generate",
    "negative_prompt_attention_mask": "guidance is in transformers' generate",
    "inputs_embeds": "sources are token ids",
    "encoder_outputs": "sources are token ids",
    "past_key_values": "keys and values are the native decoder's own",
    "decoder_attention_mask": "decoder_input_ids are rows of one length",
}
_WORD, _WORDS = 8, 64  # bytes of an integer, and integers of a row, in which weights are summed up
_SILENT = ("synced_gpus", "use_model_defaults", "use_cache", "tokenizer")
_packed: weakref.WeakKeyDictionary[Any, tuple[Any, NativeModel]] = weakref.WeakKeyDictionary()
_packing = threading.Lock()  # of _packed: who asks at once packs once


def _after_fork() -> None:
    """A thread of the parent may have held the lock, and there is no such thread in the child to let it go."""
    global _packing
    _packing = threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def generate(
    model: Any,
    inputs: torch.Tensor | None = None,
    generation_config: Any = None,
    assistant_model: Any = None,
    streamer: Any = None,
    draft_length: int = 5,
    num_threads: int | None = None,
    dtype: str | None = None,
    **given: Any,
) -> Any:
    """transformers' ``generate`` of a model of a family that the core knows, in the core.

    With an ``assistant_model`` (any student: a <tau> stays unused) it drafts, and the outputs are the model's own:
    greedy tokens equal, and drawn ones of the same distribution, their seed drawn from torch's. Special tokens are the
    call's, then the model's, which hold for an assistant, too. The packed weights
    are kept as long as the model lives, and packed again when its parameters have changed.

    Args:
        model: a transformers model.
        inputs: source tokens [R, S], padded; or ``input_ids``.
        generation_config: as in transformers; what neither it nor a keyword says, the model's own says.
        assistant_model: a smaller one of the same vocabulary; None = the model decodes alone.
        streamer: transformers', for one row.
        draft_length: tokens that the assistant drafts, 1 to 64.
        num_threads: None = torch's.
        dtype: number format of the native weights; None = the model's.
        **given: ``attention_mask``, ``decoder_input_ids``, and fields of a GenerationConfig.

    Returns:
        int64 [R, T], as transformers returns it; or with ``return_dict_in_generate`` a
        :class:`kdtw_fast.GenerationOutput`.

    Raises:
        TypeError: an argument that is none of generate's.
        ValueError: what the core does not do, by name (beams, processors in Python, scores).
    """
    try:
        decoder, call, native, as_output = _prepared(
            model, inputs, generation_config, assistant_model, draft_length, num_threads, dtype, given
        )
    except BaseException:
        end(streamer)
        raise
    ids = call.pop("ids")
    out = decoder.generate(ids.cpu(), streamer=streamer, **call)  # which ends the streamer
    return out if as_output else _sequences(out, ids.cpu(), native).to(ids.device)


def _prepared(
    model: Any,
    inputs: torch.Tensor | None,
    generation_config: Any,
    assistant_model: Any,
    draft_length: int,
    num_threads: int | None,
    dtype: str | None,
    given: dict[str, Any],
) -> tuple[Any, dict[str, Any], NativeModel, bool]:
    """The decoder of a call of :func:`generate`, what it is to be called with, the model, and whether its output is
    asked for as it is. Raises as documented there.
    """
    for name, instead in _REFUSED.items():
        if given.pop(name, None) is not None:
            raise ValueError(f"{name} has no place in kdtw_fast's generate: {instead}")
    config = copy.deepcopy(model.generation_config)
    # As transformers: those of the generation config; but no decode is without an end, a start and padding.
    tokens = {field: getattr(model.config, field, None) for field in FIELDS} | {"forced_bos_token_id": None}
    tokens |= {field: token for field, token in said(config.to_dict()).items() if token is not None}
    for source in (generation_config.to_diff_dict() if generation_config is not None else {}, given):
        rest = config.update(**source)
        tokens |= {field: token for field, token in said(source).items() if token is not None}
    ids = given.get("input_ids") if inputs is None else inputs
    known = ("input_ids", "attention_mask", "decoder_input_ids", *_SILENT)
    unknown = [name for name in (rest if given else {}) if name not in known]
    if unknown:
        raise TypeError(f"generate has no argument {unknown[0]!r} here")
    if ids is None:
        raise ValueError("generate needs input_ids")
    if config.output_scores or config.output_logits:
        raise ValueError(
            "scores of all tokens are not kept; return_dict_in_generate=True with top_logprobs of a decoder"
        )
    native = _native(model, "teacher" if assistant_model is not None else "model", dtype).with_tokens(tokens)
    forced = _forced(given.get("decoder_input_ids"), native)
    options = _options(config, native, ids.shape[1], len(forced[0]) if forced else 0)
    tokenizer = given.get("tokenizer")
    shared: DecoderKeywords = {"generation_config": "ignore", "tokenizer": tokenizer}
    shared["num_threads"] = torch.get_num_threads() if num_threads is None else num_threads
    if assistant_model is None:
        decoder: Any = SingleModelDecoder(native, **shared)
    else:
        student = _native(assistant_model, "student", dtype).with_tokens(tokens)
        decoder = SpeculativeDecoder(student, native, draft_length=draft_length, **shared)
    mask = given.get("attention_mask")
    options |= {"attention_mask": None if mask is None else mask.cpu(), "forced_tokens": forced or ()}
    return decoder, options | {"ids": ids}, native, bool(config.return_dict_in_generate)


def write_custom_generate(folder: Path) -> None:
    """Puts ``custom_generate`` into a folder that is to be a repository of the hub."""
    shutil.copytree(Path(FOLDER) / "custom_generate", folder / "custom_generate", dirs_exist_ok=True, ignore=_caches)


_caches = shutil.ignore_patterns("__pycache__")


def _native(model: Any, name: str, dtype: str | None) -> NativeModel:
    """The packed weights of a model, as its parameters are now."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"{name} must be a transformers model, got {type(model).__name__}")
    held: Any = model  # a PreTrainedModel
    device = "cpu" if held.device.type == "cpu" else str(held.device)
    wanted = dtype or _DTYPES.get(held.dtype, "auto")
    if wanted == "fp16" and device == "cpu":
        wanted = "fp32"  # which holds it; the CPU's core has no fp16
    state = (device, wanted, name, *((p.data_ptr(), p._version) for p in model.parameters()), _sums(model))
    with _packing:
        found = _packed.get(model)
        if found is None or found[0] != state:
            found = _packed[model] = state, NativeModel.from_model(model, name, wanted, device=device)
        return found[1]


def _sums(model: torch.nn.Module) -> list[int]:
    """Sums of each parameter's bits: what is written through ``.data`` leaves address and version as they are.

    They tell values that have changed places, too. It reads all weights twice a call.
    """
    sums = [one for parameter in model.parameters() for one in _sums_of(parameter.detach())]
    found: list[int] = torch.stack(sums).tolist() if sums else []
    return found


def _sums_of(values: torch.Tensor) -> list[torch.Tensor]:
    """Of the bits as rows of `_WORDS` integers: the sums of columns and those of rows, each with weights of its own."""
    bits = values.contiguous().flatten()
    if bits.storage_offset() * bits.element_size() % _WORD:
        bits = bits.clone()
    bits = bits.view(torch.uint8)
    if rest := len(bits) % (_WORD * _WORDS):
        bits, last = bits[:-rest], torch.nn.functional.pad(bits[-rest:], (0, _WORD * _WORDS - rest))
        return [*_sums_of(bits), *_sums_of(last)]
    words = bits.view(torch.int64).view(-1, _WORDS)
    odd = 2 * torch.arange(max(words.shape), device=words.device) + 1
    return [(line * odd[: len(line)]).sum() for line in (words.sum(0), words.sum(1))]


def _options(config: Any, model: NativeModel, source: int, forced: int) -> dict[str, Any]:
    """The options of a call that mean what the config means; lengths there count the forced tokens."""
    fields = {name: value for name, value in config.to_dict().items() if value is not None}
    repeats = fields.pop("num_return_sequences", 1)
    for length, new in (("max_length", "max_new_tokens"), ("min_length", "min_new_tokens")):
        if new in fields:
            fields.pop(length, None)
            fields[new] += forced if fields[new] else 0
        elif length in fields and not model.has_encoder:
            fields[new] = max(0, fields.pop(length) - source)
    if "max_new_tokens" not in fields and "max_length" not in fields:
        fields["max_new_tokens"] = _DEFAULT_TOKENS + forced
    options = given_options(fields, model)
    if options.get("temperature", 0.0) > 0:
        options["seed"] = int(torch.randint(2**63 - 1, (1,)))
    return options | {"num_return_sequences": repeats}


def _forced(prefix: torch.Tensor | None, model: NativeModel) -> list[list[int]]:
    """Rows of ``decoder_input_ids`` behind the start token."""
    if prefix is None:
        return []
    if not model.has_encoder:
        raise ValueError("decoder_input_ids belong to models with an encoder; put them at the end of input_ids")
    rows: list[list[int]] = prefix.tolist()
    found = [row[1:] if row[:1] == [model.decoder_start_token_id] else row for row in rows]
    return found if any(found) else []


def _sequences(out: Any, ids: torch.Tensor, model: NativeModel) -> torch.Tensor:
    """[R, T] in transformers' layout: behind the inputs as they were given, padding too, where there is no encoder."""
    if model.has_encoder:
        found: torch.Tensor = out.sequences
        return found
    rows = out.output_ids
    longest = max(map(len, rows))
    outputs = torch.tensor([row + [model.pad_token_id] * (longest - len(row)) for row in rows])
    return torch.cat([ids.repeat_interleave(len(rows) // len(ids), 0), outputs], 1)


__all__: list[str] = ["FOLDER", "generate", "write_custom_generate"]
