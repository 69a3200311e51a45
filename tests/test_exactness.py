"""What holds bit for bit: any cut of the tokens into passes, any batch, any number of threads; HF's logits.

No oracle and no near ties here: these are equalities of native results with each other, or a stated tolerance.
"""

from __future__ import annotations

import copy
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from factories import (
    EOS,
    RELATIONS,
    SHAPES,
    START,
    pack,
    random_batch,
    random_pair,
    random_t5,
    scale_row,
    with_tau,
)
from transformers import T5Config, T5ForConditionalGeneration

from kdtw_fast import (
    BigLittleDecoder,
    EntropyCallDecoder,
    InterleavedDecoder,
    NativeT5,
    RandomCallDecoder,
    SingleModelDecoder,
    SpeculativeDecoder,
    TrainingWheelsDecoder,
)
from kdtw_fast.selftest.agreement import as_array
from kdtw_fast.shapes import T5Shape, find_shape

FLAN_SMALL = find_shape("flan-t5-small")
WIDE_HEADS = T5Shape("wide heads", 72, 72, 2, 96, 1)  # whole vectors and a rest
VOCAB = 43
FIELDS = ("sequences", "owners", "lengths", "teacher_calls", "drafted", "accepted", "rolled_back")
LOGPROBS = ("student_logprobs", "teacher_logprobs")


@pytest.fixture(scope="module")
def flan_small() -> T5ForConditionalGeneration:
    return random_t5(FLAN_SMALL, 32128, seed=5)


def hugging_face_logits(model: T5ForConditionalGeneration, source: list[int], tokens: list[int]) -> np.ndarray:
    with torch.inference_mode():
        output = model(input_ids=torch.tensor([source]), decoder_input_ids=torch.tensor([tokens]))
    return output.logits[0].numpy()


def tokens_of(rng: np.random.Generator, length: int, vocab_size: int) -> list[int]:
    return rng.integers(0, vocab_size, size=length).tolist()


def cuts(rng: np.random.Generator, length: int) -> list[list[int]]:
    """Ways to read `length` tokens: one by one, halves, and two random ones."""
    ways = [[1] * length, [length // 2, length - length // 2] if length > 1 else [1]]
    for _ in range(2):
        ends = sorted({*rng.integers(1, length + 1, size=4).tolist(), length})
        ways.append([end - begin for begin, end in zip([0, *ends], ends, strict=False)])
    return ways


def threads_of(device: str) -> tuple[int, ...]:
    """Numbers of threads to compare: a CUDA device has no such number."""
    return (1, 2) if device == "cpu" else (1,)


# --- Logits --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 2, 31, 32, 33, 127])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: f"d{shape.d_model}")
def test_catch_up_equals_steps_and_hugging_face(shape: T5Shape, length: int, device: str) -> None:
    """Reading k tokens in one pass gives the bits of k steps, on one thread and on two, and HF's logits to 1e-4."""
    rng = np.random.default_rng([shape.d_model, length])
    model = random_t5(shape, VOCAB, seed=length)
    native = NativeT5.from_model(model, device=device)
    source = tokens_of(rng, int(rng.choice([1, 7, 33, 130])), VOCAB)
    tokens = tokens_of(rng, length, VOCAB)
    whole = native.decode_logits(source, tokens)
    assert whole.shape == (length, VOCAB) and whole.dtype == np.float32
    np.testing.assert_allclose(whole, hugging_face_logits(model, source, tokens), atol=1e-4, rtol=0)
    for chunks in cuts(rng, length)[: 4 if device == "cpu" else 2 if length < 100 else 1]:
        for threads in threads_of(device):
            assert np.array_equal(native.decode_logits(source, tokens, chunks=chunks, num_threads=threads), whole)


@pytest.mark.parametrize("device", ["cpu", pytest.param("simulated", marks=pytest.mark.long)], indirect=True)
def test_flan_t5_small_shape(flan_small: T5ForConditionalGeneration, device: str) -> None:
    rng = np.random.default_rng(0)
    native = NativeT5.from_model(flan_small, device=device)
    lengths, ways = ((64, 20), ([1] * 20, [3, 8, 9], [20])) if device == "cpu" else ((9, 4), ([1] * 4, [1, 3]))
    source, tokens = (tokens_of(rng, length, 32128) for length in lengths)
    whole = native.decode_logits(source, tokens)
    np.testing.assert_allclose(whole, hugging_face_logits(flan_small, source, tokens), atol=1e-4, rtol=0)
    for chunks, threads in itertools.product(ways, threads_of(device)):
        assert np.array_equal(native.decode_logits(source, tokens, chunks=chunks, num_threads=threads), whole)


def test_hugging_faces_own_initial_weights(device: str) -> None:
    """The factories' scales are ours; this is a T5 as its config makes it, tied and scaled."""
    torch.manual_seed(3)
    config = T5Config(vocab_size=97, d_model=64, d_kv=16, num_heads=4, d_ff=128, num_layers=3, decoder_start_token_id=0)
    model = T5ForConditionalGeneration(config).eval()
    rng = np.random.default_rng(1)
    source, tokens = tokens_of(rng, 40, 97), tokens_of(rng, 50, 97)
    native = NativeT5.from_model(model, device=device).decode_logits(source, tokens)
    np.testing.assert_allclose(native, hugging_face_logits(model, source, tokens), atol=1e-4, rtol=0)


def test_marked_tokens(device: str) -> None:
    """beta (Eq. 15) enters where the teacher wrote, in any cut; without marks the student is its T5."""
    for shape in SHAPES:
        base = random_t5(shape, VOCAB, seed=2)
        student = with_tau(base, VOCAB, beta_scale=1.0, seed=4)
        native = NativeT5.from_model(student, device=device)
        rng = np.random.default_rng(shape.d_model)
        source, tokens = tokens_of(rng, 9, VOCAB), tokens_of(rng, 17, VOCAB)
        marks = (rng.random(17) < 0.5).tolist()
        with torch.inference_mode():
            expected = student(
                input_ids=torch.tensor([source]),
                decoder_input_ids=torch.tensor([tokens]),
                decoder_from_teacher=torch.tensor([marks]),
            ).logits[0]
        marked = native.decode_logits(source, tokens, from_teacher=marks)
        np.testing.assert_allclose(marked, expected.numpy(), atol=1e-4, rtol=0)
        steps = native.decode_logits(source, tokens, from_teacher=marks, chunks=[1] * 17)
        assert np.array_equal(marked, steps)
        plain = native.decode_logits(source, tokens)
        np.testing.assert_allclose(plain[:, :VOCAB], hugging_face_logits(base, source, tokens), atol=1e-4, rtol=0)
        assert np.abs(marked - plain).max() > 0.1


def test_every_simd_level_keeps_the_promise(place: str) -> None:
    rng = np.random.default_rng(8)
    for shape in SHAPES:
        model = random_t5(shape, VOCAB, seed=1)
        native = NativeT5.from_model(model, device=place)  # packed for this level
        source, tokens = tokens_of(rng, 21, VOCAB), tokens_of(rng, 35, VOCAB)
        whole = native.decode_logits(source, tokens)
        np.testing.assert_allclose(whole, hugging_face_logits(model, source, tokens), atol=1e-4, rtol=0)
        for chunks in cuts(rng, 35):
            threads = threads_of(place)[-1]
            assert np.array_equal(native.decode_logits(source, tokens, chunks=chunks, num_threads=threads), whole)


def group_cuts(length: int) -> list[list[int]]:
    """Passes of every small size, so that attention's groups of queries begin and end everywhere."""
    rising = [size for size in range(1, length) if size * (size + 1) // 2 <= length]
    return [[1] * length, [*rising, length - sum(rising)], [5] * (length // 5) + [length % 5], [length - 1, 1]]


@pytest.mark.parametrize("shape", [SHAPES[0], WIDE_HEADS], ids=lambda shape: f"head{shape.d_kv}")
def test_groups_of_queries_over_long_contexts(shape: T5Shape, place: str) -> None:
    """Queries that share the reading of hundreds of keys have the bits that each has alone."""
    rng = np.random.default_rng(17)
    model = random_t5(shape, VOCAB, seed=3)
    native = NativeT5.from_model(model, device=place)
    source, tokens = tokens_of(rng, 301, VOCAB), tokens_of(rng, 167, VOCAB)
    whole = native.decode_logits(source, tokens)
    np.testing.assert_allclose(whole, hugging_face_logits(model, source, tokens), atol=1e-4, rtol=0)
    for chunks in group_cuts(167)[0 if place == "cpu" else 1 :]:
        for threads in threads_of(place):
            assert np.array_equal(native.decode_logits(source, tokens, chunks=chunks, num_threads=threads), whole)


def test_ragged_rows_encode_as_they_do_alone(place: str) -> None:
    """Rows of 1 to 400 source tokens: where a pass's rows meet, groups of queries end."""
    rng = np.random.default_rng(23)
    native = NativeT5.from_model(random_t5(WIDE_HEADS, VOCAB, seed=4), device=place)
    lengths = (1, 2, 13, 16, 17, 400, 5, 129, 64, 3)
    sources = [rng.integers(2, VOCAB, size=length).tolist() for length in lengths]
    decoder = SingleModelDecoder(native)
    limit = 20 if place == "cpu" else 6
    settings: dict[str, Any] = {"max_new_tokens": limit, "min_new_tokens": limit, "output_logprobs": True}
    batch = decoder.generate(sources, **settings)
    for row, source in enumerate(sources):
        alone = decoder.generate([source], num_threads=1, **settings)
        np.testing.assert_array_equal(as_array(batch.sequences)[row], as_array(alone.sequences)[0])
        np.testing.assert_array_equal(batch.student_logprobs[row], alone.student_logprobs[0])


# --- Keys and values in bf16 ---------------------------------------------------------------------------


def round_keys_and_values(model: T5ForConditionalGeneration) -> T5ForConditionalGeneration:
    """Hugging Face's model with what the decoder's keys and values would be after a bf16 cache."""
    model = copy.deepcopy(model)
    for name, module in model.decoder.named_modules():
        if name.endswith((".k", ".v")):
            module.register_forward_hook(lambda _module, _inputs, output: output.bfloat16().float())
    return model


@pytest.mark.parametrize("shape", [*SHAPES, WIDE_HEADS], ids=lambda shape: f"d{shape.d_model}")
def test_bf16_caches(shape: T5Shape, place: str) -> None:
    """The decoder over rounded keys and values, the same bits in any cut: odd head sizes and odd lengths too."""
    rng = np.random.default_rng(shape.d_kv)
    model = random_t5(shape, VOCAB, seed=6)
    source, tokens = tokens_of(rng, 61, VOCAB), tokens_of(rng, 83, VOCAB)
    native = NativeT5.from_model(model, cache_dtype="bf16", device=place)
    whole = native.decode_logits(source, tokens)
    for chunks in group_cuts(83)[0 if place == "cpu" else 1 :]:
        for threads in threads_of(place):
            assert np.array_equal(native.decode_logits(source, tokens, chunks=chunks, num_threads=threads), whole)
    exact = hugging_face_logits(model, source, tokens)
    rounded = hugging_face_logits(round_keys_and_values(model), source, tokens)
    # A key or value within rounding of a tie may fall on the other side: rare, so the mean is what is held.
    assert np.abs(whole - rounded).mean() < 0.1 * np.abs(rounded - exact).mean()


def test_bf16_caches_in_batches(device: str) -> None:
    rng = np.random.default_rng(29)
    native = NativeT5.from_model(random_t5(WIDE_HEADS, VOCAB, seed=8), cache_dtype="bf16", device=device)
    sources = [rng.integers(2, VOCAB, size=length).tolist() for length in (1, 18, 150, 33)]
    settings: dict[str, Any] = {"max_new_tokens": 37, "min_new_tokens": 37, "output_logprobs": True}
    batch = SingleModelDecoder(native).generate(sources, **settings)
    for row, source in enumerate(sources):
        alone = SingleModelDecoder(native, num_threads=1).generate([source], **settings)
        np.testing.assert_array_equal(as_array(batch.sequences)[row], as_array(alone.sequences)[0])
        np.testing.assert_array_equal(batch.student_logprobs[row], alone.student_logprobs[0])


@pytest.mark.parametrize("kind", ["0.SelfAttention", "1.EncDecAttention"])
def test_nan_stays_nan_in_a_bf16_cache(kind: str, place: str) -> None:
    """Rounding must not carry a NaN of all ones over into zero."""
    model = random_t5(SHAPES[0], VOCAB, seed=9)
    layer, name = kind.split(".")
    values = getattr(model.decoder.block[0].layer[int(layer)], name).v.weight
    with torch.no_grad():
        values[0, 0] = float(np.array(0x7FFFFFFF, dtype=np.uint32).view(np.float32))
    native = NativeT5.from_model(model, cache_dtype="bf16", device=place)
    with pytest.raises(FloatingPointError, match="not finite"):
        SingleModelDecoder(native).generate([[5, 6, EOS]], max_new_tokens=3)


# --- Whole decodes -------------------------------------------------------------------------------------


def test_greedy_equals_hugging_face_generate(device: str) -> None:
    for seed, shape in enumerate(SHAPES):
        model = random_t5(shape, VOCAB, seed=seed)
        scale_row(model, EOS, 1.5)
        ids, mask = random_batch(np.random.default_rng(seed), 4, VOCAB)
        for options in ({}, {"min_new_tokens": 6}):
            expected = model.generate(ids, attention_mask=mask, max_new_tokens=20, use_cache=False, **options)
            output = SingleModelDecoder(model, device=device).generate(ids, mask, max_new_tokens=20, **options)
            assert output.sequences.tolist() == expected.tolist()


def decoders(student: Any, teacher: Any, **options: Any) -> list[Any]:
    return [
        SingleModelDecoder(student, **options),
        TrainingWheelsDecoder(student, teacher, **options),
        TrainingWheelsDecoder(student, teacher, verify_lenience=0.7, **options),
        RandomCallDecoder(student, teacher, threshold=0.6, **options),
        EntropyCallDecoder(student, teacher, threshold=2.0, **options),
        SpeculativeDecoder(student, teacher, draft_length=4, **options),
        SpeculativeDecoder(student, teacher, draft_length=3, lenience=0.3, **options),
        BigLittleDecoder(student, teacher, fallback_threshold=0.4, rollback_threshold=2.0, **options),
        InterleavedDecoder(student, teacher, draft_length=4, accept_top_k=5, **options),
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("relation", RELATIONS)
def test_a_row_decodes_the_same_alone_and_in_any_batch(relation: str, temperature: float, device: str) -> None:
    """Tokens, owners, counts and the bits of all log-probabilities; the batch's order does not matter either."""
    student, teacher = random_pair(relation, seed=11)
    native = pack(student, teacher, device)
    rng = np.random.default_rng(RELATIONS.index(relation))
    rows, length = (9, 24) if device == "cpu" else (3, 6)  # a simulated device is slow
    ids, mask = random_batch(rng, rows, VOCAB)
    settings: dict[str, Any] = {"max_new_tokens": length, "temperature": temperature, "output_logprobs": True}
    settings["seed"] = 5
    for decoder in decoders(*native, num_threads=1):
        batch = decoder.generate(ids, mask, **settings)
        order = rng.permutation(rows)
        shuffled = decoder.generate(ids[order], mask[order], row_ids=order.tolist(), **settings)
        for place, row in enumerate(order):
            alone = decoder.generate(ids[row : row + 1], mask[row : row + 1], row_ids=[int(row)], **settings)
            end = int(alone.lengths[0]) + 1
            for name in FIELDS + LOGPROBS:
                one = as_array(getattr(alone, name))[0]
                for many in (as_array(getattr(batch, name))[row], as_array(getattr(shuffled, name))[place]):
                    np.testing.assert_array_equal(many[:end] if one.ndim else many, one)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("relation", RELATIONS)
def test_one_thread_equals_two(relation: str, temperature: float) -> None:
    student, teacher = random_pair(relation, seed=12)
    native = pack(student, teacher, "cpu")
    ids, mask = random_batch(np.random.default_rng(4), 7, VOCAB)
    settings: dict[str, Any] = {"max_new_tokens": 24, "temperature": temperature, "output_logprobs": True}
    pairs = zip(decoders(*native, num_threads=1), decoders(*native, num_threads=2), strict=True)
    for single, double in pairs:
        one, two = single.generate(ids, mask, **settings), double.generate(ids, mask, **settings)
        for name in FIELDS + LOGPROBS:
            np.testing.assert_array_equal(as_array(getattr(one, name)), as_array(getattr(two, name)))
        again = double.generate(ids, mask, num_threads=1, **settings)
        np.testing.assert_array_equal(as_array(again.sequences), as_array(one.sequences))


@pytest.mark.parametrize("device", ["cpu", pytest.param("simulated", marks=pytest.mark.long)], indirect=True)
def test_threads_and_batch_at_flan_t5_small_shape(flan_small: T5ForConditionalGeneration, device: str) -> None:
    native = NativeT5.from_model(flan_small, device=device)
    rows, longest, limit = (3, 64, 12) if device == "cpu" else (2, 8, 3)
    ids, mask = random_batch(np.random.default_rng(9), rows, 32128, longest=longest)
    settings: dict[str, Any] = {"max_new_tokens": limit, "output_logprobs": True}
    outputs = [SingleModelDecoder(native, num_threads=n).generate(ids, mask, **settings) for n in threads_of(device)]
    for other in outputs[1:]:
        for name in ("sequences", "student_logprobs"):
            np.testing.assert_array_equal(as_array(getattr(outputs[0], name)), as_array(getattr(other, name)))
    alone = SingleModelDecoder(native, num_threads=2).generate(ids[1:2], mask[1:2], **settings)
    end = int(alone.lengths[0]) + 1
    np.testing.assert_array_equal(outputs[0].student_logprobs[1, :end], alone.student_logprobs[0])


def test_padding_on_either_side_and_ragged_lists_are_the_same(device: str) -> None:
    student, teacher = random_pair("noisy", seed=3)
    ids, mask = random_batch(np.random.default_rng(6), 5, VOCAB)
    ragged = [row[kept.bool()].tolist() for row, kept in zip(ids, mask, strict=True)]
    width = ids.shape[1] + 3
    left = torch.tensor([[START] * (width - len(row)) + row for row in ragged])
    left_mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in ragged])
    decoder = SpeculativeDecoder(student, teacher, device=device)
    expected = decoder.generate(ids, mask, max_new_tokens=12).sequences.tolist()
    assert decoder.generate(ragged, max_new_tokens=12).sequences.tolist() == expected
    assert decoder.generate(left, left_mask, max_new_tokens=12).sequences.tolist() == expected
    assert decoder.generate(ids.numpy(), mask.numpy(), max_new_tokens=12).sequences.tolist() == expected
    assert decoder.generate(ids.int(), mask.bool(), max_new_tokens=12).sequences.tolist() == expected


# --- Methods that must coincide --------------------------------------------------------------------------


def own_row_pairs(count: int) -> list[tuple[Any, Any]]:
    """Pairs whose tau lies beyond the teacher's vocabulary, so that the teacher alone can never write it."""
    pairs = []
    for relation in RELATIONS:
        seed = 20
        while len(pairs) < count * (RELATIONS.index(relation) + 1):
            student, teacher = random_pair(relation, seed)
            if student.config.vocab_size > teacher.config.vocab_size:
                pairs.append((student, teacher))
            seed += 1
    return pairs


def test_lossless_speculation_is_the_teacher(device: str) -> None:
    """Greedy, lenience 1: token for token, every time, without a word about ties."""
    rows = 0
    pairs, batches, each, longest = (3, 2, 6, 40) if device == "cpu" else (1, 1, 2, 12)
    for student, teacher in own_row_pairs(pairs):
        native = pack(student, teacher, device)
        for batch in range(batches):
            rng = np.random.default_rng([rows, batch])
            ids, mask = random_batch(rng, each, VOCAB)
            limit = int(rng.integers(1, longest))
            expected = SingleModelDecoder(native[1]).generate(ids, mask, max_new_tokens=limit)
            for draft_length in range(1, 9):
                decoder = SpeculativeDecoder(*native, draft_length=draft_length)
                output = decoder.generate(ids, mask, max_new_tokens=limit)
                assert output.sequences.tolist() == expected.sequences.tolist()
                rows += len(ids)
    assert rows >= (1000 if device == "cpu" else 64)


def test_lenience_zero_is_the_student_with_a_bonus_token(device: str) -> None:
    student, teacher = own_row_pairs(1)[1]
    ids, mask = random_batch(np.random.default_rng(2), 4, VOCAB)
    output = SpeculativeDecoder(student, teacher, draft_length=5, lenience=0.0, device=device).generate(
        ids, mask, max_new_tokens=23
    )
    assert int(output.rolled_back.sum()) == 0
    owners = set(output.owners.flatten().tolist())
    assert owners == {0, 2, 3}


def test_always_asking_is_the_teacher_and_never_asking_the_student(device: str) -> None:
    for student, teacher in own_row_pairs(2 if device == "cpu" else 1):
        ids, mask = random_batch(np.random.default_rng(1), 5 if device == "cpu" else 2, VOCAB)
        settings: dict[str, Any] = {"max_new_tokens": 20 if device == "cpu" else 8, "output_logprobs": True}
        alone = SingleModelDecoder(student, device=device).generate(ids, mask, **settings)
        teacher_alone = SingleModelDecoder(teacher, device=device).generate(ids, mask, **settings)
        for limits in ({"max_teacher_fraction": 0.0}, {"max_teacher_calls": 0}):
            never = TrainingWheelsDecoder(student, teacher, device=device).generate(ids, mask, **settings, **limits)
            assert never.sequences.tolist() == alone.sequences.tolist()
            np.testing.assert_array_equal(never.student_logprobs, alone.student_logprobs)
            assert never.teacher_passes == 0 and never.timings.teacher == 0.0  # lazy: nothing was even encoded
            assert int(never.teacher_calls.sum()) == 0
        # tau's row is the only one that sees the constant direction beta adds after the first token; bias the start.
        always_ask(student)
        always = TrainingWheelsDecoder(student, teacher, device=device).generate(ids, mask, **settings)
        assert always.sequences.tolist() == teacher_alone.sequences.tolist()
        assert set(always.owners[:, 1:].flatten().tolist()) <= {0, 2}
        assert always.teacher_calls.tolist() == always.lengths.tolist()
        np.testing.assert_array_equal(always.teacher_logprobs, teacher_alone.student_logprobs)


def always_ask(student: Any) -> None:
    """Rebuilds the head so that tau always wins: the last hidden state is a constant direction that only tau reads."""
    with torch.no_grad():
        student.decoder.final_layer_norm.weight.zero_()
        student.decoder.final_layer_norm.weight[0] = 1.0
        for block in student.decoder.block:
            for layer in block.layer:
                for name, weight in layer.named_parameters():
                    if name.endswith((".o.weight", ".wo.weight")):
                        weight[0] = 0.0  # nothing is added to coordinate 0
        student.shared.weight[:, 0] = 5.0
        student.teacher_token_embedding[0] = 0.0
        head = torch.zeros_like(student.lm_head.weight)
        head[student.config.tau_token_id, 0] = 100.0
        student.lm_head.weight = torch.nn.Parameter(head)
        student.config.tie_word_embeddings = False
