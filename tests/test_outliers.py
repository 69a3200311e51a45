"""int8 with channels that are far larger than others: made even where that is exact; what still loses stays in bf16."""

from __future__ import annotations

import copy
import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from factories import EOS, SHAPES, random_t5
from toy_decoders import random_pair_member

import kdtw_fast
from bench import outliers
from kdtw_fast import NativeT5, _core, equalising
from kdtw_fast.equalising import Equaliser
from kdtw_fast.families import describe
from kdtw_fast.pairs import load_pair, pair_names
from kdtw_fast.probing import SOURCE, TOKENS, probe_tokens
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
    assert not NativeT5.from_model(far, dtype="int8").kept_bf16
    assert outliers.agreement(far, sources, outputs, "int8") >= healthy - 0.01
    with outliers.not_equalised():
        assert outliers.agreement(far, sources, outputs, "int8") >= healthy - 0.01
        with outliers.not_kept():
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


# --- What arises only at run time ------------------------------------------------------------------------


@pytest.fixture(scope="module")
def teacher() -> Any:
    """Of a shipped pair in fp32, with sources."""
    model, sources, _ = outliers.rows_of(12)
    return model, sources


def of_model(teacher: Any, way: str, factor: float) -> tuple[Any, list[list[int]], list[list[int]]]:
    plain, sources = teacher
    model = outliers.WAYS[way](copy.deepcopy(plain), factor)
    return model, sources, outliers.outputs_of(model, sources)


@pytest.mark.parametrize(("way", "factor"), [("norms", 100.0), ("norms", 300.0), ("products", 100.0)])
def test_what_a_model_makes_large_as_it_runs_is_found(teacher: Any, way: str, factor: float) -> None:
    healthy = outliers.agreement(*of_model(teacher, way, 1.0), "int8")
    model, sources, outputs = of_model(teacher, way, factor)
    assert outliers.agreement(model, sources, outputs, "int8") >= 0.98 * healthy
    with outliers.not_kept():
        assert outliers.agreement(model, sources, outputs, "int8") < 0.97 * healthy
    kept = NativeT5.from_model(model, dtype="int8").kept_bf16
    read = {"norms": ("self.query", "cross.query", "feed_forward.gate"), "products": ("feed_forward.out",)}[way]
    assert kept and all(0.0125 < lost <= 1.0 and name.endswith(read) for name, lost in kept.items())


@pytest.mark.parametrize("pair", pair_names())
def test_shipped_models_lose_too_much_nowhere(pair: str) -> None:
    for role in ("teacher", "student"):
        native = NativeT5.from_model(getattr(load_pair(pair), role), dtype="int8")
        assert not native.kept_bf16
        assert max(native.core.int8_losses(native._probe).values()) < 0.0125


def massive_first(width: int = 32) -> Any:
    """A Llama whose first token is a thousand times larger than any other in two channels, as in those that people
    have (Sun et al. 2024, "Massive activations in large language models")."""
    model = random_pair_member("llama", VOCABULARY, width, 1)
    model.config.bos_token_id = 2
    with torch.no_grad():
        model.model.embed_tokens.weight[2, :2] = torch.tensor([1000.0, -800.0]) * model.model.embed_tokens.weight.std()
    return model


def test_a_massive_first_token_costs_nothing() -> None:
    rng = np.random.default_rng(5)
    rows = [rng.integers(3, VOCABULARY, 40).tolist() for _ in range(12)]

    def agreement(model: Any) -> float:
        natives = [NativeT5.from_model(model.eval(), dtype=dtype) for dtype in ("fp32", "int8")]
        picked = [np.stack([n.decode_logits([2], [2, *row]) for row in rows]).argmax(-1) for n in natives]
        return float((picked[0] == picked[1]).mean())

    assert agreement(massive_first()) >= 0.98 * agreement(random_pair_member("llama", VOCABULARY, 32, 1))


def test_the_choice_is_the_same_on_every_processor(teacher: Any) -> None:
    """At each SIMD level, bit for bit; so are the packed weights."""
    model, *_ = of_model(teacher, "products", 30.0)
    before = kdtw_fast.build_info()["simd"]
    try:
        for make in (lambda: model, lambda: massive_first().eval()):
            found = []
            for level in kdtw_fast.build_info()["simd_levels"]:
                _core.set_simd(level)
                native = NativeT5.from_model(make(), dtype="int8")
                blobs = [blob.tobytes() for blob in native.core.blobs]
                found.append((native.core.int8_losses(native._probe), native.kept_bf16, blobs))
            assert all(one == found[0] for one in found)
    finally:
        _core.set_simd(before)


def test_what_is_kept_is_bf16_and_is_remembered(teacher: Any, tmp_path: Path) -> None:
    model, sources, outputs = of_model(teacher, "products", 100.0)
    native = NativeT5.from_model(model, dtype="int8")
    with outliers.not_kept():
        plain = NativeT5.from_model(model, dtype="int8")
    assert native.kept_bf16 and not plain.kept_bf16
    size, inner = model.config.d_model, model.config.d_ff
    more = size * (2 * inner - (inner + 8))  # bytes of bf16 beside those of int8 with its scales and sums
    assert native.num_bytes - plain.num_bytes == len(native.kept_bf16) * more
    model.save_pretrained(tmp_path)
    loaded = [NativeT5.from_pretrained(tmp_path, dtype="int8", cache=True) for _ in range(2)]
    for each in loaded:
        assert each.kept_bf16 == native.kept_bf16 and each.num_bytes == native.num_bytes
        assert (each.decode_logits(sources[0], outputs[0]) == native.decode_logits(sources[0], outputs[0])).all()


def test_new_weights_choose_anew(teacher: Any) -> None:
    healthy, (far, sources, outputs) = teacher[0], of_model(teacher, "norms", 100.0)
    native = NativeT5.from_model(healthy, dtype="int8")
    for model in (far, healthy):
        fresh = NativeT5.from_model(model, dtype="int8")
        native.update_weights(model)
        assert native.kept_bf16 == fresh.kept_bf16
        assert (native.decode_logits(sources[0], outputs[0]) == fresh.decode_logits(sources[0], outputs[0])).all()


def drawn(spec: dict[str, Any], config: dict[str, Any]) -> tuple[list[int], list[int]]:
    probe = probe_tokens(spec, config)
    assert probe is not None
    return probe


def test_the_probes_tokens() -> None:
    config = {"eos_token_id": [1, 4], "pad_token_id": 0, "bos_token_id": 2}
    both = {"dtype": "int8", "vocabulary": 40, "encoder": {"layers": 1}, "decoder": {"layers": 1}}
    source, tokens = drawn(both, config)
    assert (len(source), len(tokens)) == (SOURCE, TOKENS) and source[-1] == 1 and tokens[0] == 0
    assert not {0, 1, 2, 4} & {*source[:-1], *tokens[1:]}
    assert (source, tokens) == drawn(both, config)
    alone = {"dtype": "int8", "vocabulary": 40, "encoder": {"layers": 0}}
    alone["decoder"] = {"positions": 8, "first_position": 2}
    source, tokens = drawn(alone, config)
    assert source == [] and len(tokens) == 6 and tokens[0] == 2
    assert probe_tokens(both | {"dtype": "bf16"}, config) is None
    for few in ({"vocabulary": 3}, {"decoder": {"positions": 8, "first_position": 8}}):
        assert probe_tokens(alone | few, config) is None and probe_tokens(both | few, config) is None
    for room in (1, 2):
        assert probe_tokens(both | {"encoder": {"layers": 1, "positions": room}}, config) is None


def test_a_probe_that_does_not_fit_is_refused() -> None:
    spec, arrays = tensors_of(random_t5(SHAPES[0], VOCABULARY, seed=3))
    spec |= {"name": "little", "dtype": "int8"}

    def read(key: str, rows: int, columns: int) -> np.ndarray | None:
        return arrays.get(key)

    for probe in (([5], [VOCABULARY]), ([-1], [5])):
        with pytest.raises(ValueError, match="little: the probe's token"):
            _core.Transformer(spec, "cpu", read, probe=probe)
    for probe in (([5], []), ([], [5])):
        with pytest.raises(ValueError, match="little: the probe has no tokens"):
            _core.Transformer(spec, "cpu", read, probe=probe)
    native = NativeT5.from_model(random_t5(SHAPES[0], VOCABULARY, seed=3), "little", dtype="int8")
    with pytest.raises(ValueError, match=f"little: the probe's token {VOCABULARY} is outside the vocabulary"):
        native.core.int8_losses(([5], [VOCABULARY]))
    with pytest.raises(ValueError, match="little: the probe has no tokens"):
        native.core.int8_losses(([], [5]))
    with pytest.raises(ValueError, match="little: of 1 weights that are kept in bf16, only 0 are the model's"):
        _core.Transformer(spec | {"kept": {"elsewhere": 0.5}}, "cpu", read)
    with pytest.raises(ValueError, match="kept in bf16 beside dtype int8 only"):
        _core.Transformer(spec | {"dtype": "fp32", "kept": {"embedding": 0.5}}, "cpu", read)


def test_a_device_keeps_what_the_cpu_keeps(simulated: str) -> None:
    shape = next(shape for shape in SHAPES if shape.activation == "gated-gelu")
    model = outliers.with_outlying_products(random_t5(shape, VOCABULARY, seed=9), 3000.0)
    fp32, cpu, device = (
        NativeT5.from_model(model, dtype=dtype, device=where)
        for dtype, where in (("fp32", "cpu"), ("int8", "cpu"), ("int8", simulated))
    )
    assert cpu.kept_bf16 and device.kept_bf16 == cpu.kept_bf16
    source, tokens = [5, 9, 30, EOS], [0, 7, 12, 40]
    exact = fp32.decode_logits(source, tokens)
    for native in (cpu, device):
        assert np.sqrt(np.mean((native.decode_logits(source, tokens) - exact) ** 2)) < 0.1 * exact.std()


def test_a_device_does_not_measure_itself(simulated: str) -> None:
    native = NativeT5.from_model(random_t5(SHAPES[0], VOCABULARY, seed=3), dtype="int8", device=simulated)
    with pytest.raises(ValueError, match="measured on the CPU, but these weights are on another device"):
        native.core.int8_losses(([5, 6], [7, 8]))


def test_a_device_is_packed_when_the_model_that_was_tried_is_gone(simulated: str) -> None:
    model = random_t5(SHAPES[0], VOCABULARY, seed=3)
    spec, arrays = tensors_of(model)
    arrays["embedding"] = np.ones((1 << 20, spec["decoder"]["model_size"]), np.float32)
    spec |= {"name": "wide", "dtype": "int8", "vocabulary": 1 << 20}
    resident: list[int] = []

    def read(key: str, rows: int, columns: int) -> np.ndarray | None:
        if key == "embedding":
            resident.append(int(Path("/proc/self/statm").read_text().split()[1]) * 4096)
        return arrays.get(key)

    _core.Transformer(spec, simulated, read, probe=([5, 6, 7, 8], [5, 6, 7, 8]))
    assert len(resident) == 2 and resident[1] - resident[0] < arrays["embedding"].size / 2


def test_python_goes_on_while_a_model_is_tried() -> None:
    core = NativeT5.from_model(random_t5(SHAPES[2], VOCABULARY, seed=3), dtype="int8").core
    trial = threading.Thread(target=core.int8_losses, args=(([5, 6] * 1500, [7, 8] * 1500),))
    trial.start()
    turns = 0
    while trial.is_alive():
        turns += 1
        time.sleep(0.001)
    assert turns > 20


def test_tokens_that_are_not_finite_are_not_read(teacher: Any) -> None:
    """As in rows that fill up a vocabulary: of the encoder's tokens, of the decoder's, and of all."""
    model, *_ = of_model(teacher, "products", 100.0)
    healthy = NativeT5.from_model(model, dtype="int8")
    assert healthy.kept_bf16 and healthy._probe is not None
    for broken in (healthy._probe[0][:2], healthy._probe[1][3:5]):
        filled = copy.deepcopy(model)
        filled.shared.weight.data[broken] = torch.tensor([[torch.nan], [torch.inf]])
        assert NativeT5.from_model(filled, dtype="int8").kept_bf16.keys() == healthy.kept_bf16.keys()
    model.shared.weight.data[:] = torch.nan
    assert set(NativeT5.from_model(model, dtype="int8").kept_bf16.values()) == {1.0}


def test_where_tokens_do_not_differ_nothing_is_lost() -> None:
    core = NativeT5.from_model(random_t5(SHAPES[0], VOCABULARY, seed=3), dtype="int8").core
    losses = core.int8_losses(([5], [7, 8, 9, 10, 11]))
    assert {lost for name, lost in losses.items() if "encoder" in name} == {0.0} and max(losses.values()) > 0.0
    bart = random_pair_member("bart", VOCABULARY, 16, 1)
    bart.config.max_position_embeddings = 1
    for name in ("encoder", "decoder"):
        getattr(bart.model, name).embed_positions.weight.data = torch.ones(3, 16)
    assert not NativeT5.from_model(bart, dtype="int8").kept_bf16


def test_a_model_reads_its_own_special_tokens(tmp_path: Path) -> None:
    """Of a folder, where absent fields are transformers' defaults, as in memory; and of new weights."""
    massive_first().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    del config["bos_token_id"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    module = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    loaded, memory = NativeT5.from_pretrained(tmp_path, dtype="int8"), NativeT5.from_model(module, dtype="int8")
    assert loaded._probe == memory._probe and loaded._probe is not None and loaded._probe[1][0] == 1
    assert loaded.kept_bf16 == memory.kept_bf16
    other = massive_first()
    fresh = NativeT5.from_model(other, dtype="int8")
    memory.update_weights(other)
    assert memory._probe == fresh._probe != loaded._probe and memory.kept_bf16 == fresh.kept_bf16


def test_a_pass_of_no_tokens() -> None:
    core = NativeT5.from_model(random_t5(SHAPES[0], VOCABULARY, seed=3)).core
    once, twice = (core.decode_logits("cpu", [4, EOS], [0, 5], [], sizes, 1) for sizes in ([2], [0, 2]))
    assert (once == twice).all()
