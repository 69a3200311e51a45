"""T5 models as the native core holds them: read from Hugging Face models or safetensors folders, checked, packed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from kdtw_fast import _core
from kdtw_fast.companion import share_with_torch
from kdtw_fast.options import CACHE_DTYPES, check_dtype, check_int, tau_token_ids
from kdtw_fast.packed import PackedFile, PackedWeights

_REQUIRED = ("vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads")
_OPTIONAL = (
    "num_decoder_layers",
    "relative_attention_num_buckets",
    "relative_attention_max_distance",
    "layer_norm_epsilon",
)
# What T5Config says about the weights.
_SPEC_FIELDS = (
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
_WITHOUT_EFFECT = frozenset(
    {
        "_name_or_path",
        "add_cross_attention",
        "architectures",
        "bos_token_id",
        "chunk_size_feed_forward",
        "classifier_dropout",
        "cross_attention_hidden_size",
        "decoder_start_token_id",
        "dense_act_fn",
        "dropout_rate",
        "dtype",
        "early_stopping",
        "eos_token_id",
        "feed_forward_proj",
        "finetuning_task",
        "gradient_checkpointing",
        "id2label",
        "initializer_factor",
        "is_decoder",
        "is_encoder_decoder",
        "is_gated_act",
        "keys_to_ignore_at_inference",
        "label2id",
        "layer_types",
        "length_penalty",
        "max_length",
        "model_type",
        "n_positions",
        "no_repeat_ngram_size",
        "num_beams",
        "num_labels",
        "output_attentions",
        "output_hidden_states",
        "output_past",
        "pad_token_id",
        "prefix",
        "problem_type",
        "return_dict",
        "scale_decoder_outputs",
        "sep_token_id",
        "student_prompt",
        "task_specific_params",
        "tau_token_id",
        "tau_token_ids",
        "teacher_prompt",
        "teacher_token_embedding",
        "tie_encoder_decoder",
        "tie_word_embeddings",
        "tokenizer_class",
        "torch_dtype",
        "torchscript",
        "transformers_version",
        "use_cache",
    }
)
_TIED_NAMES = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
# Some published T5 v1.0 checkpoints carry this tensor; no T5 has ever used it.
_UNUSED = frozenset({"decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight"})

Tensors = Mapping[str, Callable[[], torch.Tensor]]


class NativeT5:
    """A T5 whose weights are packed for the native core; decoders and threads may share it.

    Make one with :meth:`from_model` or :meth:`from_pretrained`; decoders also take Hugging Face models and
    folders and do so themselves.

    Attributes:
        name: what messages call it ("student", "teacher", …).
        device: where the weights are and decodes run, "cpu" or "cuda:<index>".
        dtype: number format of the packed matrices, "fp32", "fp16" (CUDA only), "bf16" or "int8".
        cache_dtype: number format of the keys and values that decodes keep, "fp32", "fp16" (CUDA only) or "bf16".
        vocab_size: rows of the vocabulary head, V.
        pad_token_id, decoder_start_token_id: token ids.
        eos_token_ids: list of ids that end a row.
        tau_token_ids: the <tau> rows of a Training Wheels student, one for each teacher; empty for other models.
        tau_token_id: the first of them, or None.
        student_prompt, teacher_prompt: prompt the model was trained with, or None.
        core: the native object.
    """

    def __init__(
        self,
        config: Mapping[str, Any],
        tensors: Tensors,
        name: str,
        ignore_config_fields: Iterable[str] = (),
        dtype: str = "auto",
        cache_dtype: str = "auto",
        file: PackedFile | None = None,
        device: str = "cpu",
    ):
        self.name = name
        self.device = check_device(device)
        self._ignored = frozenset(ignore_config_fields)
        check_dtype(dtype)
        check_dtype(cache_dtype, "cache_dtype", CACHE_DTYPES)
        if self.device == "cpu" and "fp16" in (dtype, cache_dtype):
            option = "dtype" if dtype == "fp16" else "cache_dtype"
            raise ValueError(f"{name}: {option} 'fp16' is for device 'cuda'; on 'cpu' choose 'bf16' or 'fp32'")
        packed = file.read() if file is not None else None
        if packed is None:
            spec = _core_config(config, tensors, name, self._ignored)
            spec.dtype = _auto_dtype(tensors) if dtype == "auto" else dtype
            spec.cache_dtype = _auto_cache(spec.dtype, self.device) if cache_dtype == "auto" else cache_dtype
            described = file.describe_sources() if file is not None else []
            vectors: dict[str, np.ndarray] = {}
            self.core = _core.T5(spec, self.device, _tensor_reader(tensors, name, vectors))
            if file is not None:
                fields = {field: getattr(spec, field) for field in _SPEC_FIELDS}
                file.write(described, PackedWeights(fields, vectors, self.core.blobs))
                packed = file.read()
        if packed is not None:
            spec = _core.T5Config()
            for field, value in packed.spec.items():
                setattr(spec, field, value)
            spec.name = name
            spec.cache_dtype = _auto_cache(spec.dtype, self.device) if cache_dtype == "auto" else cache_dtype
            self.core = _core.T5(spec, self.device, packed.vectors.get, packed.blobs)
        self.dtype, self.cache_dtype = spec.dtype, spec.cache_dtype
        self.vocab_size: int = spec.vocab_size
        self.pad_token_id: int = config.get("pad_token_id") or 0
        start = config.get("decoder_start_token_id")
        self.decoder_start_token_id: int = self.pad_token_id if start is None else start  # T5 starts from pad
        eos = config.get("eos_token_id")
        if eos is None:
            raise ValueError(f"{name}: config field eos_token_id is missing; a decode would have no end token")
        self.eos_token_ids: list[int] = list(eos) if isinstance(eos, (list, tuple)) else [eos]
        self.tau_token_ids = tau_token_ids(config.get, name)
        self.student_prompt: str | None = config.get("student_prompt")
        self.teacher_prompt: str | None = config.get("teacher_prompt")
        special = [(field, getattr(self, field)) for field in ("pad_token_id", "decoder_start_token_id")]
        named = "tau_token_id" if len(self.tau_token_ids) < 2 else "tau_token_ids"
        for field, token in [*special, *((named, token) for token in self.tau_token_ids)]:
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"{name}: config field {field}={token} is outside the vocabulary of {self.vocab_size}")
        for token in self.eos_token_ids:
            if not 0 <= token < self.vocab_size:
                raise ValueError(
                    f"{name}: config field eos_token_id={token} is outside the vocabulary of {self.vocab_size}"
                )
        if self.tau_token_id is not None and not spec.has_teacher_token_embedding:
            raise ValueError(
                f"{name}: config has tau_token_id={self.tau_token_id}, but tensor 'teacher_token_embedding' is missing"
            )
        if self.tau_token_id is not None and spec.num_teachers != len(self.tau_token_ids):
            raise ValueError(
                f"{name}: config has <tau> for {len(self.tau_token_ids)} teachers, but tensor "
                f"'teacher_token_embedding' has vectors for {spec.num_teachers}"
            )

    @classmethod
    def from_model(
        cls,
        model: torch.nn.Module,
        name: str = "model",
        dtype: str = "auto",
        cache_dtype: str = "auto",
        ignore_config_fields: Iterable[str] = (),
        device: str = "cpu",
    ) -> NativeT5:
        """Packs the weights of a Hugging Face ``T5ForConditionalGeneration`` (or ``TrainingWheelsT5``) in memory.

        Args:
            model: the model.
            name: what messages call it.
            dtype: number format of the matrices. "fp32"; "bf16", and on CUDA "fp16": rounded, and multiplied in fp32;
                "int8": one scale per output, and activations quantised per token; "auto": the smallest that holds the
                model exactly, that is bf16 when all its matrices are bfloat16, else fp32.
            cache_dtype: number format of keys and values, "fp32", "bf16" or, on CUDA, "fp16"; "auto": bf16 beside int8
                weights on the CPU, else fp32.
            ignore_config_fields: config fields that are known not to change the maths.
            device: where it is to decode: "cpu", "cuda" (the first), "cuda:<index>", or "auto", the first CUDA device
                where there is one and otherwise "cpu".

        Raises:
            TypeError: ``model`` is not such a model.
            ValueError: its config or tensors are not a T5 that the core knows, naming the field or tensor; or the
                device cannot be used, saying why.
        """
        config, tensors = _read_module(model, name)
        return cls(config, tensors, name, ignore_config_fields, dtype, cache_dtype, device=device)

    def update_weights(self, model: torch.nn.Module) -> None:
        """Packs other weights of the same shape in the place of these, as training does after each step of its policy.

        Decoders that were made from this NativeT5 decode with them from the next call on.

        Args:
            model: a Hugging Face ``T5ForConditionalGeneration`` (or ``TrainingWheelsT5``) with the config of the first.

        Raises:
            TypeError: ``model`` is not such a model.
            ValueError: its config is another one, naming what differs; or a tensor is missing or of another shape.
            RuntimeError: a decode or a stream with this model is under way. Then, and after any other error, the
                weights are the old ones.
        """
        config, tensors = _read_module(model, self.name)
        spec = _core_config(config, tensors, self.name, self._ignored)
        spec.dtype = self.dtype
        for field in _SPEC_FIELDS:
            now, new = getattr(self.core.config, field), getattr(spec, field)
            if now != new:
                raise ValueError(
                    f"{self.name}: update_weights takes models of the same config, but {field} is {now} "
                    f"here and {new} in the model given"
                )
        self.core.update(self.device, _tensor_reader(tensors, self.name, {}))

    @classmethod
    def from_pretrained(
        cls,
        folder: str | Path,
        name: str | None = None,
        dtype: str = "auto",
        cache_dtype: str = "auto",
        ignore_config_fields: Iterable[str] = (),
        cache: bool | str | Path | None = None,
        device: str = "cpu",
    ) -> NativeT5:
        """Packs the weights of a folder with ``config.json`` and safetensors (one file, or shards with an index).

        Args:
            folder: the folder.
            name: what messages call the model; None = the folder's name.
            dtype, cache_dtype, ignore_config_fields, device: as for :meth:`from_model`.
            cache: a file that keeps the packed weights: True = ``.kdtw_fast-<dtype>.packed`` in the folder, or a path;
                None = no file. Where it is absent, broken, or made from other files than the folder's (compared by
                size and time, and by SHA-256 where times differ) it is written anew. Then it is mapped into
                memory: a later load packs nothing, and processes share it. For device "cpu" only.

        Raises:
            OSError: the file of ``cache`` cannot be written.
            FileNotFoundError: the folder, its config or its safetensors files are not there.
            ValueError: a file is corrupt, or config and tensors do not make a T5 that the core knows.
        """
        folder = Path(folder)
        name = name or folder.name
        device = check_device(device)
        if device != "cpu" and cache is not None and cache is not False:
            raise ValueError(
                f"{name}: cache={cache!r} keeps weights packed for device 'cpu'; leave it out on {device!r}"
            )
        if not (folder / "config.json").is_file():
            raise FileNotFoundError(f"{name}: no config.json in {folder}; give a folder saved with save_pretrained")
        config = _read_json(folder / "config.json", name)
        index = folder / "model.safetensors.index.json"
        if index.is_file():
            files = sorted(set(_read_json(index, name)["weight_map"].values()))
        elif (folder / "model.safetensors").is_file():
            files = ["model.safetensors"]
        else:
            raise FileNotFoundError(
                f"{name}: no model.safetensors in {folder}; pickles are not read, save_pretrained writes safetensors"
            )
        tensors: dict[str, Callable[[], torch.Tensor]] = {}
        formats: dict[str, str] = {}  # of matrices
        for file in files:
            try:
                handle = safe_open(folder / file, framework="pt")
            except FileNotFoundError:
                raise FileNotFoundError(f"{name}: shard {file} named in {index.name} is not in {folder}") from None
            except (SafetensorError, OSError) as error:
                raise ValueError(f"{name}: {folder / file} is not a whole safetensors file ({error})") from None
            for key in handle.keys():  # noqa: SIM118 - not a dict
                tensors[key] = partial(handle.get_tensor, key)
                stored = handle.get_slice(key)
                if len(stored.get_shape()) == 2:
                    formats[key] = stored.get_dtype()
        check_dtype(dtype)
        if dtype == "auto":
            dtype = "bf16" if set(formats.values()) == {"BF16"} else "fp32"
        packed = None
        if cache is not None and cache is not False:
            path = folder / f".kdtw_fast-{dtype}.packed" if cache is True else Path(cache)
            sources = [
                folder / "config.json",
                *([index] if index.is_file() else []),
                *(folder / file for file in files),
            ]
            packed = PackedFile(path, sources, {"dtype": dtype, "ignored": sorted(ignore_config_fields)})
        return cls(config, tensors, name, ignore_config_fields, dtype, cache_dtype, packed, device)

    @property
    def tau_token_id(self) -> int | None:
        """The first teacher's <tau> row, or None."""
        return self.tau_token_ids[0] if self.tau_token_ids else None

    @property
    def num_bytes(self) -> int:
        """Bytes of the packed weights."""
        return self.core.num_bytes

    def decode_logits(
        self,
        input_ids: Sequence[int],
        decoder_input_ids: Sequence[int],
        *,
        from_teacher: Sequence[bool] = (),
        chunks: Sequence[int] | None = None,
        num_threads: int = 1,
    ) -> np.ndarray:
        """Raw decoder logits of one row, float32 [T, V].

        Args:
            input_ids: source tokens (length S >= 1).
            decoder_input_ids: T decoder tokens, the start token first.
            from_teacher: which of them the teacher wrote (adds beta, Eq. 15); empty = none. With several teachers
                the writer's number, 1 to n, or 0.
            chunks: sizes of the decoder passes, summing to T; None = one pass. The result does not depend on it.
            num_threads: the result does not depend on it.
        """
        check_int("num_threads", num_threads, 1)
        source, tokens = [int(i) for i in input_ids], [int(i) for i in decoder_input_ids]
        sizes = [len(tokens)] if chunks is None else [int(c) for c in chunks]
        if not source or not tokens:
            raise ValueError(
                f"input_ids and decoder_input_ids need at least one token, got {len(source)} and {len(tokens)}"
            )
        if sum(sizes) != len(tokens) or min(sizes) < 1:
            raise ValueError(f"chunks must be positive and sum to {len(tokens)}, got {sizes}")
        if from_teacher and len(from_teacher) != len(tokens):
            raise ValueError(f"from_teacher has {len(from_teacher)} flags for {len(tokens)} tokens")
        for expert in from_teacher:
            if not 0 <= int(expert) <= self.core.config.num_teachers:
                raise ValueError(f"from_teacher names teacher {expert}, the model has {self.core.config.num_teachers}")
        for token in (*source, *tokens):
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token id {token} is outside the vocabulary of {self.vocab_size}")
        return self.core.decode_logits(self.device, source, tokens, [int(f) for f in from_teacher], sizes, num_threads)


def load(
    model: torch.nn.Module | NativeT5 | str | Path, name: str, dtype: str = "auto", device: str | None = None
) -> NativeT5:
    """Returns ``model`` (a NativeT5, a Hugging Face model or a folder) as a NativeT5 called ``name`` in messages.

    ``device`` None is "cpu", or where a NativeT5 is already. Raises as the two constructors do, and ValueError when
    ``dtype`` or ``device`` asks a NativeT5 for another format or place than its own.
    """
    check_dtype(dtype)
    wanted = None if device is None else check_device(device)
    if isinstance(model, NativeT5):
        if dtype not in ("auto", model.dtype):
            raise ValueError(
                f"{name} is packed in {model.dtype}, but dtype={dtype!r} was asked for; pack it with "
                f"NativeT5.from_model(…, dtype={dtype!r}), or leave dtype out"
            )
        if wanted not in (None, model.device):
            raise ValueError(
                f"{name} is packed for device {model.device!r}, but device={device!r} was asked for; pack it with "
                f"NativeT5.from_model(…, device={device!r}), or leave device out"
            )
        return model
    if isinstance(model, (str, Path)):
        return NativeT5.from_pretrained(model, name, dtype, device=wanted or "cpu")
    return NativeT5.from_model(model, name, dtype, device=wanted or "cpu")


def check_device(device: Any) -> str:
    """Returns the device that a user's word means, "cpu" or "cuda:<index>".

    Raises:
        TypeError: it is no string.
        ValueError: no such device is known, or it cannot be used here, saying why and what to do.
    """
    if not isinstance(device, str):
        raise TypeError(f"device must be 'cpu', 'cuda', 'cuda:<index>' or 'auto', got {device!r}")
    resolved = _core.resolve_device(device)
    if resolved != "cpu":
        share_with_torch()
    return resolved


def _auto_dtype(tensors: Tensors) -> str:
    """The smallest format that holds every matrix exactly."""
    values = (read() for read in tensors.values())
    return "bf16" if all(value.dtype == torch.bfloat16 for value in values if value.ndim == 2) else "fp32"


def _auto_cache(dtype: str, device: str) -> str:
    """int8 models on the CPU read bf16 keys and values: rounding those costs less than the weights' already did."""
    return "bf16" if dtype == "int8" and device == "cpu" else "fp32"


def _read_json(path: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{name}: {path} is not valid JSON ({error})") from None
    if not isinstance(value, dict):
        raise ValueError(f"{name}: {path} must hold a JSON object, got {type(value).__name__}")
    return value


def _core_config(config: Mapping[str, Any], tensors: Tensors, name: str, ignored: frozenset[str]) -> _core.T5Config:
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


def _has_own_head(tensors: Tensors) -> bool:
    """False also for a tied head that was written out: one copy is enough."""
    if not {"lm_head.weight", "shared.weight"} <= set(tensors):
        return "lm_head.weight" in tensors
    return not _same_bytes(tensors["lm_head.weight"](), tensors["shared.weight"]())


def _read_module(model: torch.nn.Module, name: str) -> tuple[dict[str, Any], Tensors]:
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


def _tensor_reader(tensors: Tensors, name: str, vectors: dict[str, np.ndarray]) -> Callable[[str], np.ndarray | None]:
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
