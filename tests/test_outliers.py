"""int8 with channels that are far larger than others: made even where that is exact, and healthy weights left alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from factories import EOS, SHAPES, random_t5
from toy_decoders import random_pair_member

from bench import outliers
from kdtw_fast import _core, equalising
from kdtw_fast.equalising import Equaliser
from kdtw_fast.families import describe
from kdtw_fast.pairs import load_pair, pair_names
from kdtw_fast.weights import read_module, tensor_reader

VOCABULARY = 43
Arrays = dict[str, np.ndarray]
MODELS = [
    *(pytest.param(lambda shape=shape: random_t5(shape, VOCABULARY, seed=3), id=shape.name) for shape in SHAPES[:4]),
    *(
        pytest.param(lambda kind=kind: random_pair_member(kind, VOCABULARY, 16, 1), id=kind)
        for kind in ("llama", "bart")
    ),
]


def tensors_of(module: Any) -> tuple[dict[str, Any], Arrays]:
    """The core's spec and tensors."""
    config, tensors = read_module(module.eval(), "model")
    described = describe(config, tensors, "model")
    read = tensor_reader(described, tensors, "model", {})
    arrays: Arrays = {}
    for key, part in described.parts.items():
        shape = (part if not hasattr(part, "stored") else tensors[part.stored]()).shape
        found = read(key, shape[0], shape[1] if len(shape) == 2 else 0)
        assert found is not None
        arrays[key] = found.copy()
    return described.spec, arrays


def spread(spec: dict[str, Any], arrays: Arrays, factor: float) -> int:
    """Makes channel 3 of every place larger and reads it smaller, the same function; how many there were."""
    count = 0
    for part in sorted({key.rsplit(".", 1)[0] for key in arrays}):
        for place in equalising._places(spec, part).values():
            made = [f"{part}.{name}" for name in place.made_by if f"{part}.{name}" in arrays]
            read = [f"{part}.{name}" for name in place.read_by if f"{part}.{name}" in arrays]
            if not made or not read:
                continue
            for key in (*made, *(f"{each}.bias" for each in made if f"{each}.bias" in arrays)):
                arrays[key][3] *= factor
            for key in read:
                columns = np.arange(arrays[key].shape[1])
                group, inside = columns // (place.heads * place.head_size), columns % place.head_size
                channel = group * place.head_size + inside if place.heads > 1 else columns
                arrays[key][:, channel == 3] /= factor
            count += 1
    return count


def logits(spec: dict[str, Any], arrays: Arrays, even: bool) -> tuple[bytes, int]:
    """Of the core in fp32, and how many channels were made even."""
    equaliser = Equaliser(spec, arrays.get)

    def read(key: str, rows: int, columns: int) -> np.ndarray | None:
        found = arrays.get(key)
        return equaliser.apply(key, found) if even and found is not None else found

    core = _core.Transformer(spec | {"name": "model", "dtype": "fp32", "cache_dtype": "bf16"}, "cpu", read)
    return core.decode_logits("cpu", [4, 8, EOS], [0, 5, 9, 30, 7], [], [5], 1).tobytes(), equaliser.moved


@pytest.mark.parametrize("make", MODELS)
def test_a_model_whose_channels_are_made_even_computes_the_same_to_the_bit(make: Any) -> None:
    spec, arrays = tensors_of(make())
    places = spread(spec, arrays, 512.0)
    assert places > 1
    plain, nothing = logits(spec, arrays, even=False)
    again, moved = logits(spec, arrays, even=True)
    assert nothing == 0 and moved >= places
    assert plain == again


@pytest.mark.parametrize("pair", pair_names())
def test_shipped_models_stay_as_they_are(pair: str) -> None:
    loaded = load_pair(pair)
    for module in (loaded.teacher, loaded.student):
        spec, arrays = tensors_of(module.float())
        equaliser = Equaliser(spec, arrays.get)
        assert all(equaliser.apply(key, array) is array for key, array in arrays.items())


def test_int8_agrees_with_fp32_where_channels_are_far_apart() -> None:
    plain, sources, outputs = outliers.rows_of(12)
    healthy = outliers.agreement(plain, sources, outputs, "int8")
    far = outliers.with_outliers(plain, 300.0)
    assert outliers.agreement(far, sources, outputs, "int8") >= healthy - 0.01
    with outliers.not_equalised():
        assert outliers.agreement(far, sources, outputs, "int8") < healthy - 0.05


def test_tensors_that_do_not_fit_and_channels_without_a_size_are_left() -> None:
    spec = {"decoder": {"gated": True, "function": "silu", "heads": 1, "key_heads": 1, "head_size": 4}}
    tensors = {
        "decoder.0.feed_forward.in": np.zeros((4, 3), np.float32),
        "decoder.0.feed_forward.out": np.ones((3, 5), np.float32),
    }
    equaliser = Equaliser(spec, tensors.get)
    assert all(equaliser.apply(key, array) is array for key, array in tensors.items())
    tensors["decoder.0.feed_forward.out"] = np.full((3, 4), np.nan, np.float32)
    equaliser = Equaliser(spec, tensors.get)
    assert all(equaliser.apply(key, array) is array for key, array in tensors.items())
