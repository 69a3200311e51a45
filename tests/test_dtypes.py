"""bf16 and int8 weights: what their products are, exactly; and what holds in fp32 holds in every number format."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import sacrebleu
import torch
from factories import SHAPES, random_batch, random_pair, random_t5
from test_exactness import FIELDS, LOGPROBS, VOCAB, cuts, decoders, threads_of, tokens_of
from transformers import T5ForConditionalGeneration

import kdtw_fast
from kdtw_fast import NativeT5, SingleModelDecoder, SpeculativeDecoder
from kdtw_fast.pairs import Pair, load_pair
from kdtw_fast.selftest.agreement import as_array

DTYPES = ["fp32", "bf16", "int8"]


def linear(weight: np.ndarray, x: np.ndarray, dtype: str, threads: int = 1) -> np.ndarray:
    nothing = np.empty((0, 0), np.float32)
    operations = kdtw_fast._core.Operations("cpu", threads)
    return operations.linear(weight.astype(np.float32), x.astype(np.float32), dtype, nothing)


def rounded(values: np.ndarray) -> np.ndarray:
    return torch.from_numpy(values.astype(np.float32)).bfloat16().float().numpy()


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.tobytes() == b.tobytes()


# --- Products ------------------------------------------------------------------------------------------

# Outputs and inputs around the sizes of panels (32), chunks (64) and groups of panels (4).
SIZES = [(1, 1), (5, 3), (32, 64), (33, 65), (97, 31), (128, 192), (300, 127), (40, 1100)]
TOKENS = [1, 2, 3, 5, 8, 14, 15, 29, 64]


def quantised(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Each row as integers in -127..127 and its scale."""
    largest = np.abs(x).max(axis=1, keepdims=True)
    safe = np.where(largest == 0, np.float32(1), largest)
    return np.rint(x * (np.float32(127) / safe)).astype(np.int64), (largest / np.float32(127)).astype(np.float32)


def test_int8_products_are_the_exact_integers_scaled_once(simd_level: str) -> None:
    """The definition in NumPy, bit for bit: so all instruction sets agree, and any number of rows or threads."""
    rng = np.random.default_rng(0)
    for outputs, inputs in SIZES:
        weight = rng.standard_normal((outputs, inputs), dtype=np.float32)
        w, w_scales = quantised(weight)
        for tokens in TOKENS:
            x = (rng.standard_normal((tokens, inputs)) * 10.0 ** rng.integers(-6, 6)).astype(np.float32)
            q, scales = quantised(x)
            expected = (q @ w.T).astype(np.float32) * (scales * w_scales.T)
            for threads in (1, 2):
                assert same_bits(linear(weight, x, "int8", threads), expected), (outputs, inputs, tokens)


def test_int8_sums_are_exact_at_their_largest() -> None:
    """No intermediate saturates or overflows: all products have the largest size and one sign, over the most inputs."""
    inputs = 2**17
    for sign in (1.0, -1.0):
        out = linear(np.full((3, inputs), 5.0), np.full((2, inputs), sign * 3.0), "int8")
        scale = (np.float32(3) / np.float32(127)) * (np.float32(5) / np.float32(127))
        assert (out == np.float32(sign * 127 * 127 * inputs) * scale).all()
    with pytest.raises(ValueError, match=r"131072.*131073.*bf16"):
        linear(np.ones((1, inputs + 1)), np.ones((1, inputs + 1)), "int8")


def test_bf16_products_are_fp32_products_of_rounded_weights(simd_level: str) -> None:
    rng = np.random.default_rng(1)
    for outputs, inputs in SIZES:
        weight = rng.standard_normal((outputs, inputs), dtype=np.float32)
        for tokens in TOKENS:
            x = rng.standard_normal((tokens, inputs), dtype=np.float32)
            expected = linear(rounded(weight), x, "fp32")
            for threads in (1, 2):
                assert same_bits(linear(weight, x, "bf16", threads), expected), (outputs, inputs, tokens)


def test_bf16_rounds_every_value_to_the_nearest_even() -> None:
    rng = np.random.default_rng(2)
    bits = rng.integers(0, 2**32, size=20000, dtype=np.uint32)
    bits[:4000] = (bits[:4000] & 0xFFFF0000) | 0x8000  # ties
    special = np.array([0x7F800000, 0xFF800000, 0x7F7FFFFF, 0x7F800001, 0xFFFFFFFF, 0x00008000, 1], np.uint32)
    values = np.concatenate([bits, special]).view(np.float32)[:, None]
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(linear(values, np.ones((1, 1)), "bf16")[0], rounded(values)[:, 0])


@pytest.mark.parametrize("dtype", DTYPES)
def test_zeros_stay_zero_and_what_is_not_finite_shows(simd_level: str, dtype: str) -> None:
    rng = np.random.default_rng(3)
    weight, x = rng.standard_normal((70, 90)), rng.standard_normal((17, 90))
    x[4] = 0.0
    x[9] = 1e-38  # too small to have a reciprocal
    clean = linear(weight, x, dtype)
    assert not clean[4].any() and (np.abs(clean[9]) < 1e-35).all() and np.isfinite(clean).all()
    for bad in (np.nan, np.inf, -np.inf):
        row, column = int(rng.integers(17)), int(rng.integers(70))
        broken_x, broken_weight = x.copy(), weight.copy()
        broken_x[row, int(rng.integers(90))] = bad
        broken_weight[column, int(rng.integers(90))] = bad
        others = np.arange(17) != row
        assert not np.isfinite(linear(weight, broken_x, dtype)[row]).any()
        assert same_bits(linear(weight, broken_x, dtype)[others], clean[others])
        others = np.arange(70) != column
        assert not np.isfinite(linear(broken_weight, x, dtype)[:, column]).any()
        assert same_bits(linear(broken_weight, x, dtype)[:, others], clean[:, others])


# --- Models --------------------------------------------------------------------------------------------


def is_packed(name: str) -> bool:
    return not name.endswith(("norm.weight", "bias.weight")) and name != "teacher_token_embedding"


@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"d{shape.d_model}")
def test_a_bf16_model_is_the_fp32_model_with_rounded_weights(shape: Any, simd_level: str) -> None:
    rng = np.random.default_rng(shape.d_model)
    model = random_t5(shape, VOCAB, seed=7)
    bf16 = NativeT5.from_model(model, dtype="bf16")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_packed(name):
                parameter.copy_(parameter.bfloat16())
    fp32 = NativeT5.from_model(model, dtype="fp32")
    source, tokens = tokens_of(rng, 19, VOCAB), tokens_of(rng, 33, VOCAB)
    assert same_bits(bf16.decode_logits(source, tokens), fp32.decode_logits(source, tokens))


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"d{shape.d_model}")
def test_catch_up_equals_steps(shape: Any, dtype: str, place: str) -> None:
    rng = np.random.default_rng(shape.d_model)
    native = NativeT5.from_model(random_t5(shape, VOCAB, seed=8), dtype=dtype, device=place)
    source, tokens = tokens_of(rng, 21, VOCAB), tokens_of(rng, 35, VOCAB)
    whole = native.decode_logits(source, tokens)
    for chunks in cuts(rng, 35):
        for threads in threads_of(place):
            assert same_bits(native.decode_logits(source, tokens, chunks=chunks, num_threads=threads), whole)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("formats", [("bf16", "bf16"), ("int8", "int8"), ("bf16", "int8")], ids="-".join)
def test_a_row_decodes_the_same_alone_and_in_any_batch(
    formats: tuple[str, str], temperature: float, device: str
) -> None:
    student, teacher = random_pair("noisy", seed=11)
    native = (
        NativeT5.from_model(student, "student", dtype=formats[0], device=device),
        NativeT5.from_model(teacher, "teacher", dtype=formats[1], device=device),
    )
    rows, limit = (5, 20) if device == "cpu" else (3, 8)
    ids, mask = random_batch(np.random.default_rng(5), rows, VOCAB)
    settings: dict[str, Any] = {"max_new_tokens": limit, "temperature": temperature, "output_logprobs": True, "seed": 5}
    for one_thread, two_threads in zip(decoders(*native, num_threads=1), decoders(*native, num_threads=2)):
        batch = two_threads.generate(ids, mask, **settings)
        for row in range(rows):
            alone = one_thread.generate(ids[row : row + 1], mask[row : row + 1], row_ids=[row], **settings)
            end = int(alone.lengths[0]) + 1
            for name in FIELDS + LOGPROBS:
                one, many = as_array(getattr(alone, name))[0], as_array(getattr(batch, name))[row]
                np.testing.assert_array_equal(many[:end] if one.ndim else many, one)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_lossless_speculation_is_the_teacher(dtype: str, device: str) -> None:
    rows, limit = (6, 25) if device == "cpu" else (2, 8)
    for seed in range(21, 25):
        student, teacher = random_pair("noisy", seed)
        if student.config.vocab_size == teacher.config.vocab_size:
            continue  # the teacher alone could write tau
        packed = NativeT5.from_model(teacher, "teacher", dtype=dtype, device=device)
        ids, mask = random_batch(np.random.default_rng(seed), rows, VOCAB)
        expected = SingleModelDecoder(packed).generate(ids, mask, max_new_tokens=limit)
        for draft_length in (1, 3, 6):
            decoder = SpeculativeDecoder(student, packed, draft_length=draft_length, teacher_dtype=dtype, device=device)
            assert decoder.generate(ids, mask, max_new_tokens=limit).sequences.tolist() == expected.sequences.tolist()


@pytest.mark.parametrize("tied", [True, False])
def test_int8_is_near_fp32(tied: bool, device: str) -> None:
    """Largest difference of a logit beside their standard deviation, which is about 3 in these models."""
    rng = np.random.default_rng(9)
    for shape in SHAPES:
        if shape.tied != tied:
            continue
        model = random_t5(shape, VOCAB, seed=9)
        source, tokens = tokens_of(rng, 21, VOCAB), tokens_of(rng, 35, VOCAB)
        fp32, int8 = (
            NativeT5.from_model(model, dtype=d, device=device).decode_logits(source, tokens) for d in ("fp32", "int8")
        )
        error = np.sqrt(np.mean((fp32 - int8) ** 2)) / fp32.std()
        assert 0 < error < 0.1


def packed_bytes(model: T5ForConditionalGeneration, dtype: str) -> int:
    """What docs/design.md says: panels of 32 outputs; int8 pads inputs to 64 and adds 8 bytes per output."""

    def panels(outputs: int, inputs: int, dtype: str) -> int:
        padded = -(-outputs // 32) * 32
        if dtype == "int8":
            return padded * (-(-inputs // 64) * 64 + 8)
        return padded * (4 * inputs if dtype == "fp32" else 2 * (inputs + inputs % 2))

    stacked: dict[tuple[str, int], int] = {}
    for name, parameter in model.named_parameters():
        if not is_packed(name):
            continue
        outputs, inputs = parameter.shape
        if name.endswith(("SelfAttention.q.weight", "SelfAttention.k.weight", "SelfAttention.v.weight")):
            name = name[: -len("q.weight")]
        elif name.endswith(("EncDecAttention.k.weight", "EncDecAttention.v.weight")):
            name = name[: -len("k.weight")]
        elif name.endswith(("wi_0.weight", "wi_1.weight")):
            name = name[: -len("0.weight")]
        stacked[name, inputs] = stacked.get((name, inputs), 0) + outputs
    own_head = any(name == "lm_head.weight" for name, _ in stacked)
    return sum(
        panels(outputs, inputs, "bf16" if dtype == "int8" and own_head and name == "shared.weight" else dtype)
        for (name, inputs), outputs in stacked.items()
    )


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_are_held_once(dtype: str) -> None:
    for shape in SHAPES:
        model = random_t5(shape, VOCAB, seed=1)
        assert NativeT5.from_model(model, dtype=dtype).num_bytes == packed_bytes(model, dtype)


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
def test_a_weight_that_is_not_finite_is_an_error(dtype: str, device: str) -> None:
    model = random_t5(SHAPES[0], VOCAB, seed=2)
    with torch.no_grad():
        model.decoder.block[0].layer[2].DenseReluDense.wo.weight[3, 4] = float("nan")
    with pytest.raises(FloatingPointError, match="model"):
        SingleModelDecoder(NativeT5.from_model(model, dtype=dtype, device=device)).generate(
            [[5, 6, 1]], max_new_tokens=4
        )


# --- The shipped pair ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair("debian-de-en")


def test_the_pair_ships_in_bf16_and_decodes_as_in_fp32(pair: Pair) -> None:
    texts = [sample.source for sample in pair.samples(40)]
    for role in ("student", "teacher"):
        model = NativeT5.from_pretrained(pair.folder / role)
        assert model.dtype == "bf16"
        wide = NativeT5.from_pretrained(pair.folder / role, dtype="fp32")
        outputs = [SingleModelDecoder(m, tokenizer=pair.tokenizer)(texts, max_new_tokens=48) for m in (model, wide)]
        assert outputs[0].sequences.tolist() == outputs[1].sequences.tolist()


@pytest.mark.long
def test_int8_keeps_the_teachers_bleu(pair: Pair) -> None:
    samples = pair.samples()
    scores = []
    for dtype in ("fp32", "int8"):
        decoder = SingleModelDecoder(pair.folder / "teacher", tokenizer=pair.tokenizer, dtype=dtype)
        out = decoder([sample.source for sample in samples], max_new_tokens=64)
        scores.append(sacrebleu.corpus_bleu(out.texts, [[sample.target for sample in samples]]).score)
    assert abs(scores[0] - scores[1]) < 0.5


@pytest.mark.parametrize(("dtype", "cache_dtype"), [("fp32", "fp32"), ("bf16", "fp32"), ("int8", "bf16")])
def test_caches_are_bf16_beside_int8_weights_unless_told(pair: Pair, dtype: str, cache_dtype: str) -> None:
    assert NativeT5.from_model(pair.student, dtype=dtype).cache_dtype == cache_dtype
    assert NativeT5.from_model(pair.student, dtype=dtype, cache_dtype="fp32").cache_dtype == "fp32"
