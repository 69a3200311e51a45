"""T5 models as the native core holds them, packed from Hugging Face models or folders of safetensors."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from kdtw_fast import _core
from kdtw_fast.budgets import fill_prompt
from kdtw_fast.families import Tensors, describe
from kdtw_fast.generation import module_generation, read_generation
from kdtw_fast.gguf_file import is_gguf, read_gguf
from kdtw_fast.loaders import local_folder
from kdtw_fast.memory import memory_errors
from kdtw_fast.messages import named, unpicklable
from kdtw_fast.options import CACHE_DTYPES, check_dtype, check_int, tau_token_ids
from kdtw_fast.packed import PackedFile, PackedWeights
from kdtw_fast.probing import probe_key, probe_tokens
from kdtw_fast.special_tokens import FIELDS, SpecialTokens, said
from kdtw_fast.torch_allocator import share_with_torch
from kdtw_fast.weights import read_folder, read_module, tensor_reader, told_of_forks


class NativeModel:
    """A model whose weights are packed for the native core; decoders and threads may share it.

    Make one with :meth:`from_model` or :meth:`from_pretrained`; decoders also take Hugging Face models and
    folders and do so themselves. MemoryError where the system gives no more memory.

    Attributes:
        name: what messages call it ("student", "teacher", …).
        folder: where it was loaded from, or the model that it was made of; None where that is no folder here.
        from_folder: whether these weights are that folder's; a model in memory may have been changed since.
        device: where the weights are and decodes run, "cpu" or "cuda:<index>".
        dtype: number format of the packed matrices, "fp32", "fp16" (CUDA only), "bf16" or "int8".
        kept_bf16: matrices that are bf16 though ``dtype`` is int8, which would lose too much in them: by the core's
            name of their first tensor, the power of int8's noise as a share of the signal's, 0.0125 to 1.
        cache_dtype: number format of the keys and values that decodes keep, "fp32", "fp16" (CUDA only) or "bf16".
        vocab_size: rows of the vocabulary head, V.
        pad_token_id, decoder_start_token_id: token ids; a model without an encoder begins with its prompt instead.
        eos_token_ids: list of ids that end a row.
        first_tokens: what an output begins with where a call has no ``forced_tokens``: forced_bos_token_id, if any.
        tau_token_ids: the <tau> rows of a Training Wheels student, one for each teacher; empty for other models.
        tau_token_id: the first of them, or None.
        generation: what the checkpoint says of generating, fields of transformers' GenerationConfig that are not None.
        student_prompt, teacher_prompt: prompt the model was trained with, or None.
        core: the native object.
    """

    @memory_errors()
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
        generation: Mapping[str, Any] | None = None,
    ):
        self.name = name
        self.folder: Path | None = None
        self.from_folder = False
        self.generation = dict(generation or {})
        self.device = check_device(device)
        self._ignored = frozenset(ignore_config_fields)
        check_dtype(dtype)
        check_dtype(cache_dtype, "cache_dtype", CACHE_DTYPES)
        if self.device == "cpu" and "fp16" in (dtype, cache_dtype):
            option = "dtype" if dtype == "fp16" else "cache_dtype"
            raise ValueError(f"{name}: {option} 'fp16' is for device 'cuda'; on 'cpu' choose 'bf16' or 'fp32'")
        self.core: _core.Transformer
        self._described: dict[str, Any]
        self._probe: tuple[list[int], list[int]] | None
        packed = file.read() if file is not None else None
        if file is not None and packed is None:
            with file.alone():
                packed = file.read()  # another process may have written it meanwhile
                if packed is None:
                    kept = self._pack(config, tensors, dtype, cache_dtype)
                    spec = self._described | {"kept": self.core.spec["kept"]}
                    file.write(PackedWeights(spec, kept, self.core.blobs))
                    packed = file.read()
        elif packed is None:
            self._pack(config, tensors, dtype, cache_dtype)
        if packed is not None:
            self._described, vectors = {k: v for k, v in packed.spec.items() if k != "kept"}, packed.vectors
            self._probe = probe_tokens(self._described, config)
            self.core = self._make(cache_dtype, lambda key, *_: vectors.get(key), packed)
        self.spec: dict[str, Any] = self.core.spec
        self.dtype, self.cache_dtype = self.spec["dtype"], self.spec["cache_dtype"]
        self.vocab_size: int = self.spec["vocabulary"]
        self._read_config(config)
        self._told = self._tells()

    def _read_config(self, config: Mapping[str, Any]) -> None:
        """Sets what decoders read of a config: special tokens and prompts."""
        name = self.name
        self.tau_token_ids = tau_token_ids(config.get, name)
        self.student_prompt: str | None = config.get("student_prompt")
        self.teacher_prompt: str | None = config.get("teacher_prompt")
        if not isinstance(self.teacher_prompt, str | None):
            raise ValueError(f"{name}: config field teacher_prompt must be a string, got {self.teacher_prompt!r}")
        if self.student_prompt is not None:
            with named(name):
                fill_prompt(self.student_prompt, "", needed=bool(self.tau_token_ids))
        self._take_tokens(config, "config field", self.tau_token_ids)
        if self.tau_token_id is not None and not self.num_teachers:
            raise ValueError(
                f"{name}: config has tau_token_id={self.tau_token_id}, but tensor 'teacher_token_embedding' is missing"
            )
        if self.tau_token_id is not None and self.num_teachers != len(self.tau_token_ids):
            raise ValueError(
                f"{name}: config has <tau> for {len(self.tau_token_ids)} teachers, but tensor "
                f"'teacher_token_embedding' has vectors for {self.num_teachers}"
            )

    def _tells(self) -> dict[str, Any]:
        """What was read of the config, under the names of its fields."""
        fields = ("eos_token_id", "tau_token_id", "pad_token_id", "decoder_start_token_id")
        tokens = (self.eos_token_ids, self.tau_token_ids, self.pad_token_id, self.decoder_start_token_id)
        prompts = {"student_prompt": self.student_prompt, "teacher_prompt": self.teacher_prompt}
        return dict(zip(fields, tokens)) | prompts | {"forced_bos_token_id": self.first_tokens}

    def _take_tokens(self, fields: Mapping[str, Any], where: str, taus: Sequence[int] = ()) -> None:
        """Takes the special tokens of these fields, which errors name as those of ``where``, and checks <tau>s."""
        self._fields = {field: fields.get(field) for field in FIELDS}
        label = f"{self.name}: {where}"
        tokens = SpecialTokens.of(self._fields, taus, self.has_encoder, self.vocab_size, label)
        self.eos_token_ids, self.first_tokens = tokens.eos_token_ids, tokens.first_tokens
        self.pad_token_id, self.decoder_start_token_id = tokens.pad_token_id, tokens.decoder_start_token_id

    def with_tokens(self, generation_config: Any) -> NativeModel:
        """A view of the same weights with the special tokens that a decoder's ``generation_config`` says, if any.

        Raises ValueError where they are no rows of its vocabulary.
        """
        told = said(generation_config)
        if not told:
            return self
        view = copy(self)
        view._take_tokens(self._fields | told, "generation_config's")
        return view

    def _pack(
        self, config: Mapping[str, Any], tensors: Tensors, dtype: str, cache_dtype: str
    ) -> dict[str, npt.NDArray[np.float32]]:
        """Makes the native object of a checkpoint's tensors; returns those that the core does not pack."""
        model = describe(config, tensors, self.name, self._ignored)
        self._described = model.spec | {"dtype": _auto_dtype(tensors) if dtype == "auto" else dtype}
        kept: dict[str, npt.NDArray[np.float32]] = {}
        self._probe = probe_tokens(self._described, config)
        self.core = self._make(cache_dtype, tensor_reader(model, tensors, self.name, kept, self._described["dtype"]))
        return kept

    def _make(
        self,
        cache_dtype: str,
        tensors: Callable[[str, int, int], np.ndarray | None],
        packed: PackedWeights | None = None,
    ) -> _core.Transformer:
        """The native object of what is described."""
        cache = _auto_cache(self._described["dtype"], self.device) if cache_dtype == "auto" else cache_dtype
        spec = self._described | {"name": self.name, "cache_dtype": cache}
        if packed is None:
            return _core.Transformer(spec, self.device, tensors, probe=self._probe)
        return _core.Transformer(spec | {"kept": packed.spec["kept"]}, self.device, tensors, packed.blobs, packed.file)

    @classmethod
    def from_model(
        cls,
        model: torch.nn.Module,
        name: str = "model",
        dtype: str = "auto",
        cache_dtype: str = "auto",
        ignore_config_fields: Iterable[str] = (),
        device: str = "cpu",
    ) -> NativeModel:
        """Packs the weights of a Hugging Face ``T5ForConditionalGeneration`` (or ``TrainingWheelsT5``) in memory.

        Args:
            model: the model.
            name: what messages call it.
            dtype: number format of the matrices. "fp32"; "bf16", and on CUDA "fp16": rounded, and multiplied in fp32;
                "int8": one scale per output, and activations quantised per token; matrices that lose too much by
                that when the model reads a few tokens drawn at random stay in bf16 (:attr:`kept_bf16`; for CUDA,
                too, the CPU measures); "auto": the smallest that holds the model exactly, that is bf16 when all its
                matrices are bfloat16, else fp32.
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
        config, tensors = read_module(model, name)
        told = module_generation(model)
        made = cls(config, tensors, name, ignore_config_fields, dtype, cache_dtype, device=device, generation=told)
        made.folder = local_folder(model)
        return made

    @memory_errors()
    def update_weights(self, model: torch.nn.Module) -> None:
        """Packs other weights of the same shape in the place of these, as training does after each step of its policy.

        Decoders that were made from this NativeModel decode with them from the next call on.

        Args:
            model: a Hugging Face ``T5ForConditionalGeneration`` (or ``TrainingWheelsT5``) with the config of the first.

        Raises:
            TypeError: ``model`` is not such a model.
            ValueError: its config is another one, naming what differs; or a tensor is missing or of another shape.
            RuntimeError: a decode or a stream with this model is under way. Then, and after any other error, the
                weights are the old ones. A decode that begins in another thread before this returns is a RuntimeError
                there. In a fork, what another thread decoded at that moment is under way for ever.
        """
        config, tensors = read_module(model, self.name)
        described = describe(config, tensors, self.name, self._ignored)
        other = copy(self)
        other._read_config(config)
        now = _flat(self._described) | self._told
        new = _flat(described.spec | {"dtype": self.dtype}) | other._tells()
        for field in now | new:
            if now.get(field) != new.get(field):
                raise ValueError(
                    f"{self.name}: update_weights takes models of the same config, but {field} is {now.get(field)!r} "
                    f"here and {new.get(field)!r} in the model given"
                )
        probe = probe_tokens(self._described, config)
        with told_of_forks():
            self.core.update(self.device, tensor_reader(described, tensors, self.name, {}, self.dtype), probe)
        self._probe = probe

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
    ) -> NativeModel:
        """Packs the weights of a folder with ``config.json`` and safetensors (one file, or shards with an index).

        Args:
            folder: the folder; or a GGUF file, whose numbers are unpacked first ("auto" is then "fp32").
            name: what messages call the model; None = the folder's name.
            dtype, cache_dtype, ignore_config_fields, device: as for :meth:`from_model`.
            cache: a file that keeps the packed weights: True = ``.kdtw_fast-<dtype>.packed`` in the folder, or a path;
                None = no file. Where it is absent, broken, or made from other files than the folder's (compared by
                size and time, and by SHA-256 where times differ) it is written anew. Then it is mapped into
                memory: a later load packs nothing, and processes share it. For device "cpu" only.

        Raises:
            OSError: the file of ``cache`` cannot be written; or the folder was changed meanwhile.
            FileNotFoundError: the folder, its config or its safetensors files are not there.
            ValueError: a file is corrupt, or config and tensors do not make a T5 that the core knows.
        """
        folder, name = Path(folder), name or Path(folder).name
        device = check_device(device)
        if device != "cpu" and cache is not None and cache is not False:
            raise ValueError(
                f"{name}: cache={cache!r} keeps weights packed for device 'cpu'; leave it out on {device!r}"
            )
        if is_gguf(folder):
            if cache is not None and cache is not False:
                raise ValueError(f"{name}: cache={cache!r} is for folders, and {folder} is a GGUF file; leave it out")
            made = cls.from_model(read_gguf(folder, name), name, dtype, cache_dtype, ignore_config_fields, device)
            made.folder, made.from_folder = folder, True
            return made
        config, tensors, formats, files = read_folder(folder, name)
        check_dtype(dtype)
        if dtype == "auto":
            dtype = "bf16" if set(formats.values()) == {"BF16"} else "fp32"
        packed = None
        if cache is not None and cache is not False:
            path = folder / f".kdtw_fast-{dtype}.packed" if cache is True else Path(cache)
            way: dict[str, Any] = {"dtype": dtype, "ignored": sorted(ignore_config_fields)}
            if dtype == "int8":
                way |= {"channels": "even", "probe": probe_key(config)}
            packed = PackedFile(path, files, way)
        generation = read_generation(folder, config, name)
        made = cls(config, tensors, name, ignore_config_fields, dtype, cache_dtype, packed, device, generation)
        made.folder, made.from_folder = folder, True
        return made

    def __reduce__(self) -> Any:
        raise unpicklable(self)

    def __copy__(self) -> NativeModel:
        """Another view of the same weights."""
        twin = object.__new__(type(self))
        vars(twin).update(vars(self))
        return twin

    @property
    def num_teachers(self) -> int:
        """Teachers whose tokens the model embeds with a vector of their own (beta); 0: it is no student."""
        teachers: int = self.spec["teachers"]
        return teachers

    @property
    def has_encoder(self) -> bool:
        """Whether a source is encoded; otherwise it is a prompt, which the outputs continue."""
        return bool(self.spec["encoder"]["layers"])

    @property
    def tau_token_id(self) -> int | None:
        """The first teacher's <tau> row, or None."""
        return self.tau_token_ids[0] if self.tau_token_ids else None

    @property
    def kept_bf16(self) -> dict[str, float]:
        """Matrices that int8 would cost too much, and what."""
        kept: dict[str, float] = self.core.spec["kept"]  # update_weights chooses anew
        return kept

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
        for teacher in from_teacher:
            if not 0 <= int(teacher) <= self.num_teachers:
                raise ValueError(f"from_teacher names teacher {teacher}, the model has {self.num_teachers}")
        for token in (*source, *tokens):
            if not 0 <= token < self.vocab_size:
                raise ValueError(f"token id {token} is outside the vocabulary of {self.vocab_size}")
        return self.core.decode_logits(self.device, source, tokens, [int(f) for f in from_teacher], sizes, num_threads)


NativeT5 = NativeModel  # its name as long as it held T5s only


def load(
    model: torch.nn.Module | NativeModel | str | Path,
    name: str,
    dtype: str = "auto",
    device: str | None = None,
    cache: bool = False,
    generation_config: Any = None,
) -> NativeModel:
    """Returns ``model`` (a NativeModel, a Hugging Face model or a folder) as a NativeModel called ``name`` in messages.

    ``device`` None is "cpu", or where a NativeModel is already; special tokens are those of ``generation_config``, as
    decoders take it. Raises as the two constructors do, and ValueError when ``dtype`` or ``device`` asks a NativeModel
    for another format or place than its own, or ``cache`` is asked of what is no folder.
    """
    if cache and not isinstance(model, (str, Path)):
        raise ValueError(
            f"cache=True keeps the packed weights of folders, but the {name} is a {type(model).__name__}, in memory "
            f"already; give its folder, or leave cache out"
        )
    check_dtype(dtype)
    wanted = None if device is None else check_device(device)
    if isinstance(model, NativeModel):
        if dtype not in ("auto", model.dtype):
            raise ValueError(
                f"{name} is packed in {model.dtype}, but dtype={dtype!r} was asked for; pack it with "
                f"NativeModel.from_model(…, dtype={dtype!r}), or leave dtype out"
            )
        if wanted not in (None, model.device):
            raise ValueError(
                f"{name} is packed for device {model.device!r}, but device={device!r} was asked for; pack it with "
                f"NativeModel.from_model(…, device={device!r}), or leave device out"
            )
        native = model
    elif isinstance(model, (str, Path)):
        native = NativeModel.from_pretrained(model, name, dtype, cache=cache, device=wanted or "cpu")
    else:
        native = NativeModel.from_model(model, name, dtype, device=wanted or "cpu")
    return native.with_tokens(generation_config)


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


def _flat(spec: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The spec with the fields of its stacks as "encoder.layers" and so on."""
    flat: dict[str, Any] = {}
    for key, value in spec.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat
