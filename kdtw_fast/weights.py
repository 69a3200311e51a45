"""Config and tensors of models as Hugging Face has them, in memory or in folders, as the native core asks for them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from kdtw_fast.equalising import Equaliser
from kdtw_fast.families import Description, Part, Tensors
from kdtw_fast.loaders import read_json
from kdtw_fast.memory import memory_errors
from kdtw_fast.packed import Source
from kdtw_fast.special_tokens import of_old_config, with_tokens

_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


os.register_at_fork(after_in_child=_after_fork)

# Last words of the names of tensors that the core packs; it reads others as they are.
_PACKED = frozenset({"embedding", "head", "query", "key", "value", "output", "gate", "in", "out"})


@contextmanager
def told_of_forks() -> Iterator[None]:
    """In a fork, a RuntimeError because weights are in use says that a thread of the parent may have them for ever."""
    try:
        yield
    except RuntimeError as error:
        if not _forked:
            raise
        raise RuntimeError(
            f"{error}; this process is a fork, and what another thread decoded when it was forked never ends here: "
            f"make a NativeModel in this process"
        ) from None


@memory_errors()
def read_folder(folder: Path, name: str) -> tuple[dict[str, Any], Tensors, dict[str, str], list[Source]]:
    """Config, tensors, the formats of matrices ("F32", "BF16", …) and the files of a folder with safetensors.

    Raises:
        FileNotFoundError: the config or a safetensors file is not there.
        ValueError: a file is corrupt, or a shard is none of the folder's files.
        MemoryError: the system gives no memory to map one.
    """
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(
            f"{name}: no config.json in {folder}; give a folder saved with save_pretrained, or a GGUF file itself"
        )
    files = [Source.seen(folder / "config.json")]
    config = read_json(files[0].path, name)
    generation = folder / "generation_config.json"
    told = read_json(generation, name) if generation.is_file() else None
    config = of_old_config(config, name) if told is None else with_tokens(config, told)
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        files.append(Source.seen(index))
        shards = shards_of(folder, index, name)
    elif (folder / "model.safetensors").is_file():
        shards = ["model.safetensors"]
        _check_inside(folder, shards, f"{folder} has", name)
    else:
        raise FileNotFoundError(
            f"{name}: no model.safetensors in {folder}; pickles are not read, save_pretrained writes safetensors"
        )
    tensors: dict[str, Callable[[], torch.Tensor]] = {}
    formats: dict[str, str] = {}
    for shard in shards:
        try:
            files.append(Source.seen(folder / shard))
            handle = safe_open(folder / shard, framework="pt")
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{name}: {folder / shard} is not a whole safetensors file ({error})") from None
        for key in handle.keys():  # noqa: SIM118 - not a dict
            if key in tensors:
                raise ValueError(f"{name}: tensor '{key}' is in {shard} and in another shard; save the model again")
            tensors[key] = partial(handle.get_tensor, key)
            stored = handle.get_slice(key)
            if len(stored.get_shape()) == 2:
                formats[key] = stored.get_dtype()
    return config, tensors, formats, files


def own_files(place: str | os.PathLike[str], name: str) -> str | os.PathLike[str]:
    """`place`, to be given to Hugging Face's loaders, which open whatever an index names and follow every link.

    Raises as `read_folder` does where a local folder's weights are not files of its own; a hub's name passes.
    """
    folder = Path(place)
    if folder.is_dir():
        for kind in ("model.safetensors", "pytorch_model.bin"):  # transformers reads the first that is there
            if (folder / kind).exists():
                break
            if (index := folder / f"{kind}.index.json").exists():
                shards_of(folder, index, name)
                break
        files = [file.name for kind in ("model*.safetensors", "pytorch_model*.bin") for file in folder.glob(kind)]
        _check_inside(folder, sorted(files), f"{folder} has", name)
    return place


def shards_of(folder: Path, index: Path, name: str) -> list[str]:
    """The files that an index names, all of them files of the folder: nothing else is opened."""
    of_tensors = read_json(index, name).get("weight_map")
    if not isinstance(of_tensors, dict) or not of_tensors:
        raise ValueError(f"{name}: {index} has no weight_map from tensors to files; save the model again")
    for tensor, shard in of_tensors.items():
        if not isinstance(shard, str):
            raise ValueError(f"{name}: {index} gives tensor {tensor!r} the file {shard!r}, which is no file's name")
    shards = sorted(set(of_tensors.values()))
    _check_inside(folder, shards, f"{index.name} names", name)
    return shards


def _check_inside(folder: Path, files: Sequence[str], origin: str, name: str) -> None:
    """Raises FileNotFoundError or ValueError for what is no file of the folder; errors name it by its `origin`."""
    # Hugging Face's cache keeps a snapshot's files as links into the folder "blobs" beside "snapshots".
    homes = [folder.resolve()]
    homes += [up.parent / "blobs" for up in homes[0].parents if up.name == "snapshots"]
    for file in files:
        label = f"{name}: {origin} {file!r}"
        try:
            target = (folder / file).resolve(strict=True)
        except (OSError, RuntimeError, ValueError):  # links in a circle, names that no file can have
            raise FileNotFoundError(f"{label}, which is not in {folder}") from None
        if Path(file).name != file or target.parent not in homes:
            raise ValueError(f"{label}, which lies outside of {folder}; copy it into the folder")
        if not target.is_file():
            raise ValueError(f"{label}, which is a folder, pipe or device, not a file")


def read_module(model: torch.nn.Module, name: str) -> tuple[dict[str, Any], Tensors]:
    """Config and tensors of a Hugging Face model."""
    config = getattr(model, "config", None)
    if hasattr(model, "merge_and_unload"):
        raise TypeError(
            f"{name} is a {type(model).__name__}, whose adapter is not part of its weights; give what its "
            "merge_and_unload() returns"
        )
    if not isinstance(model, torch.nn.Module) or config is None or not hasattr(config, "to_dict"):
        raise TypeError(
            f"{name} must be a Hugging Face model (a T5ForConditionalGeneration, a LlamaForCausalLM, …), a "
            f"NativeModel or a folder, got {type(model).__name__}"
        )
    generation = getattr(model, "generation_config", None)
    told = {} if generation is None else generation.to_dict()
    fields = with_tokens(config.to_dict(), told)
    state = model.state_dict()
    quantised = getattr(model, "hf_quantizer", None) is not None
    for tensor_name, tensor in state.items():
        codes = not isinstance(tensor, torch.Tensor) or tensor.is_quantized
        if codes or (quantised and not tensor.dtype.is_floating_point):
            raise ValueError(
                f"{name} is quantised: '{tensor_name}' holds codes ({getattr(tensor, 'dtype', type(tensor))}), "
                "not numbers; load the model without quantisation, and let the decoder quantise it (dtype='int8')"
            )
        if tensor.device.type == "meta":
            raise ValueError(f"{name}: tensor '{tensor_name}' is on the meta device and has no values")
    if all(tensor.dtype.is_floating_point and tensor.element_size() > 1 for tensor in state.values()):
        fields.pop("quantization_config", None)  # how it was stored (GGUF): here are the numbers themselves
    return fields, {key: value.detach for key, value in state.items()}


def tensor_reader(
    model: Description, tensors: Tensors, name: str, kept: dict[str, np.ndarray], dtype: str = "fp32"
) -> Callable[[str, int, int], np.ndarray | None]:
    """Returns the function by which the core asks for a tensor of a shape (columns 0: a vector), as contiguous float32.

    What it gives and the core does not pack is left in ``kept``. For int8 channels are made even (equalising.py).
    """

    def values(key: str) -> np.ndarray | None:
        part = model.parts.get(key)
        if part is None or (isinstance(part, Part) and part.stored not in tensors):
            return None
        tensor = tensors[part.stored]() if isinstance(part, Part) else part
        if tensor.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise ValueError(
                f"{name}: tensor '{stored(key)}' has dtype {tensor.dtype}; float32, float16 or bfloat16 are read"
            )
        found = tensor.detach().to("cpu", torch.float32)
        if isinstance(part, Part) and part.make is not None:
            found = part.make(found)
        return found.contiguous().numpy()

    def stored(key: str) -> str:
        part = model.parts[key]
        return part.stored if isinstance(part, Part) else key

    equaliser = Equaliser(model.spec, values) if dtype == "int8" else None

    def read(key: str, rows: int, columns: int) -> np.ndarray | None:
        array = values(key)
        if array is None:
            return None
        expected = [rows, columns] if columns else [rows]
        if list(array.shape) != expected:
            raise ValueError(
                f"{name}: tensor '{stored(key)}' has shape {list(array.shape)}, but the config asks for {expected}"
            )
        if equaliser is not None:
            array = equaliser.apply(key, array)
        if key.rsplit(".", 1)[-1] not in _PACKED:
            kept[key] = array
        return array

    return read
