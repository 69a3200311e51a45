"""Anything where Python takes it: a result, or one sentence of the right type.

``try_one(data)`` reads from bytes what is tried: a config or generation config that is wrong in a few fields or is no
JSON, weights and packed weights that are cut or changed, options, items of a stream, a request to the service. Atheris
finds bytes that reach new code: ``python tests/fuzz/boundary.py [libFuzzer's options]``.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    import atheris

    with atheris.instrument_imports(include=["kdtw_fast"]):  # what is imported later is not looked into
        import kdtw_fast.families
        import kdtw_fast.model
        import kdtw_fast.packed
        import kdtw_fast.serve.asked
        import kdtw_fast.streams  # noqa: F401

import torch
import transformers

from kdtw_fast import NativeT5, SingleModelDecoder, TrainingWheelsDecoder
from kdtw_fast.options import GenerateOptions
from kdtw_fast.selftest.tiny import random_pair
from kdtw_fast.serve.asked import read_asked, read_json, read_messages, read_texts
from kdtw_fast.serve.errors import ApiError
from kdtw_fast.serve.settings import ServeOptions

# What Python itself says of values that nobody has looked at.
PYTHONS = (
    *("object is not", "not supported between", "must be str, not", "unsupported operand", "positional argument"),
    *("'NoneType'", "unhashable type", "object has no", "indices must be", "invalid literal for", "could not convert"),
    *("unexpected keyword", "object cannot be interpreted", "not enough values", "too many values", "bad operand"),
    *("incompatible function arguments", "incompatible constructor arguments", "out of range", "must be real number"),
)
REFUSED = (ValueError, TypeError, OSError, FloatingPointError, ApiError)
ODD: list[Any] = [
    *(None, True, False, 0, 1, 2, 3, 5, 42, 43, -1, 2**15, 2**31 - 1, 2**31, 2**63, 2**64, 10**400),
    *(0.0, -0.0, 0.5, 1.0, 1e-45, 1e308, math.inf, -math.inf, math.nan, "", "0", "gated-silu", "é\ud800", "no", "t5"),
    *([], [1], [1, 2, 3], [[1, 2], -5.0], ["a"], [None], {}, {"1": 2}, {1: "light"}, [[5, 1]], b"x", (1, 2), 1j),
]
PLAIN = [value for value in ODD if not isinstance(value, (bytes, tuple, complex))]  # what JSON can say
OPTIONS = [each.name for each in fields(GenerateOptions) if each.init and not each.name.startswith("_")]
KEYS = ["input_ids", "text", "row_id", "budget", "teacher_inputs", "max_teacher_fraction", *OPTIONS, "novel"]
SLOW = {"max_new_tokens", "max_source_length"}  # what they allow is done


class Bytes:
    """Choices read from bytes, the first where none are left."""

    def __init__(self, data: bytes):
        self.left = data

    def below(self, count: int) -> int:
        taken, self.left = self.left[:2], self.left[2:]
        return int.from_bytes(taken, "little") % count

    def one_of(self, values: Any) -> Any:
        values = list(values)
        return copy.deepcopy(values[self.below(len(values))])

    def json(self, value: Any) -> bytes:
        """The value as JSON, now and then changed in a few bytes."""
        text = json.dumps(value).encode()
        return text if self.below(4) else self.changed(text)

    def changed(self, whole: bytes) -> bytes:
        found = bytearray(whole)
        for _ in range(1 + self.below(4)):
            at, way = self.below(len(found) + 1), self.below(4)
            if way == 0:
                del found[at:]
            elif way == 1:
                found[at : at + 8] = self.left[:8]
            else:
                found[at : at + 1] = bytes([self.below(256)])
        return bytes(found)


@functools.cache
def made() -> tuple[Path, TrainingWheelsDecoder]:
    """A folder with a tiny student and its packed weights, and a decoder."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    folder = Path(tempfile.mkdtemp(prefix="kdtw_fuzz"))
    student, teacher = random_pair("noisy", seed=1)
    student.save_pretrained(folder)
    NativeT5.from_pretrained(folder, cache=folder / "packed")
    return folder, TrainingWheelsDecoder(student, teacher, num_threads=1)


def _with_file(name: str, content: bytes, **options: Any) -> None:
    """Loads the folder with another content of one file."""
    path = made()[0] / name
    whole = path.read_bytes()
    state = os.stat(path)
    try:
        path.write_bytes(content)
        native = NativeT5.from_pretrained(path.parent, **options)
        SingleModelDecoder(native, num_threads=1).generate([[5, 1]], max_new_tokens=4)
    finally:
        path.write_bytes(whole)
        os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


def _config(data: Bytes, name: str) -> None:
    config = json.loads((made()[0] / name).read_text())
    known = sorted({*config, *transformers.GenerationConfig().to_dict()} if name[0] == "g" else config)
    for _ in range(data.below(3)):
        config[data.one_of([*known, "novel"])] = data.one_of(PLAIN)
    if not data.below(3):
        config.pop(data.one_of(known), None)
    _with_file(name, data.json(config))


def _options(data: Bytes) -> dict[str, Any]:
    options = {data.one_of(OPTIONS): data.one_of(ODD) for _ in range(data.below(4))}
    return {"max_new_tokens": 4} | {k: v for k, v in options.items() if k not in SLOW or not _large(v)}


def _large(value: Any) -> bool:
    return isinstance(value, (int, float)) and value > 64


def _generate(data: Bytes) -> None:
    rows = data.one_of([[[5, 1]], [[7, 9, 1], [4, 1]], *ODD])
    out = made()[1].generate(rows, **_options(data))
    assert out.lengths is not None


def _stream(data: Bytes) -> None:
    def item() -> Any:
        if data.below(3) == 0:
            return data.one_of(ODD)
        own = {data.one_of(KEYS): data.one_of(ODD) for _ in range(data.below(4))}
        return {"input_ids": [5, 1]} | {k: v for k, v in own.items() if k not in SLOW or not _large(v)}

    items = [item() for _ in range(data.below(4))]
    on_error = data.one_of(["raise", "return", "novel", None])
    outputs = list(made()[1].stream(items, on_error=on_error, **_options(data)))
    assert len(outputs) == len(items)


def _request(data: Bytes) -> None:
    known = ["model", "stream", "stop", "n", "timeout", "stream_options", "max_tokens", "temperature", "logit_bias"]
    body = {data.one_of([*known, *KEYS, "prompt"]): data.one_of(PLAIN) for _ in range(data.below(6))}
    read = read_json(data.json(body))
    asked = read_asked(read, ("prompt", "messages"), ServeOptions())
    item = asked.item | {"input_ids": [5, 1]}
    if "prompt" in read:
        read_texts(read["prompt"], "prompt", ServeOptions())
    if "messages" in read:
        read_messages(read["messages"])
    made()[1].submit(item | {"max_new_tokens": min(4, item.get("max_new_tokens", 4))}).result(60)


WAYS: list[Callable[[Bytes], None]] = [
    lambda data: _config(data, "config.json"),
    lambda data: _config(data, "generation_config.json"),
    lambda data: _with_file("model.safetensors", data.changed((made()[0] / "model.safetensors").read_bytes()[:4096])),
    lambda data: _with_file("packed", data.changed((made()[0] / "packed").read_bytes()), cache=made()[0] / "packed"),
    _generate,
    _stream,
    _request,
]


def try_one(data: bytes) -> None:
    """Raises what no user should see."""
    left = Bytes(data)
    try:
        WAYS[left.below(len(WAYS))](left)
    except REFUSED as error:
        ours = str(error).partition("transformers ")[0]  # it is quoted behind its name
        if isinstance(error, UnicodeError) or "\n" in str(error) or any(words in ours for words in PYTHONS):
            raise AssertionError(f"not a sentence: {error!r}") from error


if __name__ == "__main__":
    made()
    atheris.Setup([*sys.argv, "-max_len=64"], try_one)
    atheris.Fuzz()
