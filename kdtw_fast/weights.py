"""Config and tensors of T5s as Hugging Face has them, in memory or in folders, checked for the native core."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from kdtw_fast import _core
from kdtw_fast.loaders import read_json

_REQUIRED = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
_OPTIONAL = (
    "num_decoder_layers",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
)
# What T5Config says about the weights.
SPEC_FIELDS = (
    *_REQUIRED,
    *_OPTIONAL,
    "feed_forward_proj",
    "scale_decoder_outputs",
    "has_lm_head",
    "has_teacher_token_embedding",
    "num_teachers",
    "dtype",
)
# Fields of a T5 config.json that say nothing about the maths of a decode. Anything else is refused.
# fmt: off
_WITHOUT_EFFECT = frozenset({
    "_name_or_path", "add_cross_attention", "architectures", "bos_token_id", "chunk_size_feed_forward",
    "classifier_dropout", "cross_attention_hidden_size", "decoder_start_token_id", "dense_act_fn", "dropout_rate",
    "dtype", "early_stopping", "eos_token_id", "feed_forward_proj", "finetuning_task", "gradient_checkpointing",
    "id2label", "initializer_factor", "is_decoder", "is_encoder_decoder", "is_gated_act",
    "keys_to_ignore_at_inference", "label2id", "layer_types", "length_penalty", "max_length", "model_type",
    "n_positions", "no_repeat_ngram_size", "num_beams", "num_labels", "output_attentions", "output_hidden_states",
    "output_past", "pad_token_id", "prefix", "problem_type", "return_dict", "scale_decoder_outputs", "sep_token_id",
    "student_prompt", "task_specific_params", "tau_token_id", "tau_token_ids", "teacher_prompt",
    "teacher_token_embedding", "tie_encoder_decoder", "tie_word_embeddings", "tokenizer_class", "torch_dtype",
    "torchscript", "transformers_version", "use_cache",
})
# fmt: on
_TIED_NAMES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Some published T5 v1.0 checkpoints carry this tensor; no T5 has ever used it.
_UNUSED = frozenset({"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"})

Tensors = Mapping[str, Callable[[], torch.Tensor]]


def read_folder(folder: Path, name: str) -> tuple[dict[str, Any], Tensors, dict[str, str], list[Path]]:
    """Config, tensors, the formats of matrices ("F32", "BF16", …) and the files of a folder with safetensors.

    Raises:
        FileNotFoundError: the config or a safetensors file is not there.
        ValueError: a file is corrupt, or a shard is none of the folder's files.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{name}: no config.json in {folder}; give a folder saved with save_pretrained")
    files = [folder / "config.json"]
    config = read_json(files[0], name)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files.append(index)
        shards = _shards(folder, index, name)
    elif (folder / "model.safetensors").is_file():
        shards = ["model.safetensors"]
    else:
        raise FileNotFoundError(
            f"{name}: no model.safetensors in {folder}; pickles are not read, save_pretrained writes safetensors"
        )
    tensors: dict[str, Callable[[], torch.Tensor]] = {}
    formats: dict[str, str] = {}
    for shard in shards:
        try:
            handle = safe_open(folder / shard, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{name}: {folder / shard} is not a whole safetensors file ({error})") from None
        files.append(folder / shard)
        for key in handle.keys():  # noqa: SIM118 - not a dict
            if key in tensors:
                raise ValueError(f"{name}: tensor '{key}' is in {shard} and in another shard; save the model again")
            tensors[key] = partial(handle.get_tensor, key)
            stored = handle.get_slice(key)
            if len(stored.get_shape()) == 2:
                formats[key] = stored.get_dtype()
    return config, tensors, formats, files


def _shards(folder: Path, index: Path, name: str) -> list[str]:
    """The files that an index names, all of them files of the folder: nothing else is opened."""
    of_tensors = read_json(index, name).get("weight_map")
    if not isinstance(of_tensors, dict) or not of_tensors:
        raise ValueError(f"{name}: {index} has no weight_map from tensors to files; save the model again")
    for tensor, shard in of_tensors.items():
        if not isinstance(shard, str):
            raise ValueError(f"{name}: {index} gives tensor {tensor!r} the file {shard!r}, which is no file's name")
    # Hugging Face's cache keeps a snapshot's files as links into the folder "blobs" beside "snapshots".
    homes = [folder.resolve()]
    if homes[0].parent.name == "snapshots":
        homes.append(homes[0].parent.parent / "blobs")
    shards = sorted(set(of_tensors.values()))
    for shard in shards:
        try:
            target = (folder / shard).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):  # links in a circle, names that no file can have
            raise FileNotFoundError(f"{name}: shard {shard!r} named in {index.name} is not in {folder}") from None
        if Path(shard).name != shard or target.parent not in homes:
            raise ValueError(f"{name}: shard {shard!r} named in {index.name} lies outside of {folder}")
        if not target.is_file():
            raise ValueError(f"{name}: shard {shard!r} named in {index.name} is a folder, pipe or device, not a file")
    return shards


def read_module(model: torch.nn.Module, name: str) -> tuple[dict[str, Any], Tensors]:
    """Config and tensors of a Hugging Face model."""
    from transformers import T5ForConditionalGeneration

    if not isinstance(model, T5ForConditionalGeneration):
        raise TypeError(
            f"{name} must be a T5ForConditionalGeneration, a NativeT5 or a folder, got {type(model).__name__}"
        )
    config = {key: value for key, value in model.config.to_dict().items() if value is not None}
    config["scale_decoder_outputs"] = bool(model.config.scale_decoder_outputs)
    generation = getattr(model, "generation_config", None)
    for field in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
        if config.get(field) is None and getattr(generation, field, None) is not None:
            config[field] = getattr(generation, field)
    state = model.state_dict()
    if model.lm_head.weight.data_ptr() == model.shared.weight.data_ptr():
        state.pop("lm_head.weight", None)
    for tensor_name, tensor in state.items():
        if tensor.device.type == "meta":
            raise ValueError(f"{name}: tensor '{tensor_name}' is on the meta device and has no values")
    return config, {key: value.detach for key, value in state.items()}


def core_config(config: Mapping[str, Any], tensors: Tensors, name: str, ignored: frozenset[str]) -> _core.T5Config:
    """What the core is told of a model; ValueError naming the field or tensor where it is no T5 that the core knows."""
    if config.get("model_type", "t5") != "t5":
        raise ValueError(f"{name}: model_type is {config['model_type']!r}; the core decodes 't5' models")
    unknown = [key for key in config if key not in _WITHOUT_EFFECT | ignored and key not in _REQUIRED + _OPTIONAL]
    if unknown:
        raise ValueError(
            f"{name}: config field {unknown[0]!r} (= {config[unknown[0]]!r}) is unknown and may change the maths; "
            f"if it does not, pass ignore_config_fields=({unknown[0]!r},) to NativeT5.from_pretrained"
        )
    spec = _core.T5Config()
    spec.name = name
    for key in _REQUIRED + _OPTIONAL:
        value = config.get(key)
        if value is None:
            if key in _REQUIRED:
                raise ValueError(f"{name}: config field {key} is missing")
            continue
        try:
            setattr(spec, key, value)
        except TypeError:
            raise ValueError(f"{name}: config field {key} must be a number, got {value!r}") from None
    if config.get("num_decoder_layers") is None:
        spec.num_decoder_layers = spec.num_layers
    activation = config.get("feed_forward_proj", "relu")
    expected = {"relu": ("relu", False), "gated-gelu": ("gelu_new", True)}
    if activation not in expected:
        raise ValueError(f"{name}: feed_forward_proj is {activation!r}; the core knows 'relu' and 'gated-gelu'")
    for key, value in zip(("dense_act_fn", "is_gated_act"), expected[activation], strict=True):
        if config.get(key, value) != value:
            raise ValueError(f"{name}: config says feed_forward_proj={activation!r} but {key}={config[key]!r}")
    spec.feed_forward_proj = activation
    tied = config.get("tie_word_embeddings", True)
    scaled = config.get("scale_decoder_outputs")
    if "scale_decoder_outputs" not in config and tied is False and "lm_head.weight" not in tensors:
        raise ValueError(
            f"{name}: config says tie_word_embeddings=false, but tensor 'lm_head.weight' is missing from the checkpoint"
        )
    spec.scale_decoder_outputs = bool(tied is not False if scaled is None else scaled)
    spec.has_lm_head = _has_own_head(tensors)
    spec.has_teacher_token_embedding = "teacher_token_embedding" in tensors
    if spec.has_teacher_token_embedding:
        shape = tensors["teacher_token_embedding"]().shape
        spec.num_teachers = shape[0] if len(shape) == 2 else 1
    extra = sorted(set(tensors) - _expected_names(spec) - _UNUSED - set(_TIED_NAMES))
    if extra:
        raise ValueError(
            f"{name}: tensor '{extra[0]}' is not part of a T5 with this config ({len(extra)} such tensors)"
        )
    for key in _TIED_NAMES:
        if not {key, "shared.weight"} <= set(tensors):
            continue
        if not _same_bytes(tensors[key](), tensors["shared.weight"]()):
            raise ValueError(f"{name}: tensor '{key}' differs from 'shared.weight'; T5 shares one embedding")
    return spec


def tensor_reader(tensors: Tensors, name: str, vectors: dict[str, np.ndarray]) -> Callable[[str], np.ndarray | None]:
    """Returns the function by which the core asks for one tensor at a time, as contiguous float32.

    What it gives and the core does not pack is left in ``vectors``.
    """

    def read(key: str) -> np.ndarray | None:
        if key not in tensors:
            return None
        tensor = tensors[key]()
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise ValueError(f"{name}: tensor '{key}' has dtype {tensor.dtype}; float32, float16 or bfloat16 are read")
        values = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
        if values.ndim == 1 or key.endswith(("relative_attention_bias.weight", "teacher_token_embedding")):
            vectors[key] = values
        return values

    return read


def _has_own_head(tensors: Tensors) -> bool:
    """False also for a tied head that was written out: one copy is enough."""
    if not {"lm_head.weight", "shared.weight"} <= set(tensors):
        return "lm_head.weight" in tensors
    return not _same_bytes(tensors["lm_head.weight"](), tensors["shared.weight"]())


def _same_bytes(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    return a.data_ptr() == b.data_ptr() or torch.equal(
        a.contiguous().view(torch.uint8), b.contiguous().view(torch.uint8)
    )


def _expected_names(spec: _core.T5Config) -> set[str]:
    names = {"shared.weight", "lm_head.weight", "teacher_token_embedding"}
    attention = [f"{projection}.weight" for projection in "qkvo"]
    feed_forward = ["wi_0.weight", "wi_1.weight"] if spec.feed_forward_proj == "gated-gelu" else ["wi.weight"]
    for stack, layers in (("encoder", spec.num_layers), ("decoder", spec.num_decoder_layers)):
        names |= {
            f"{stack}.final_layer_norm.weight",
            f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
        }
        kinds = [("SelfAttention", attention)]
        kinds += [("EncDecAttention", attention)] if stack == "decoder" else []
        kinds += [("DenseReluDense", [*feed_forward, "wo.weight"])]
        for block in range(layers):
            for layer, (kind, parts) in enumerate(kinds):
                prefix = f"{stack}.block.{block}.layer.{layer}"
                names |= {f"{prefix}.layer_norm.weight"} | {f"{prefix}.{kind}.{part}" for part in parts}
    return names
