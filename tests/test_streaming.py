"""Streaming, stopping on time, several threads on one decoder, and the bookkeeping of passes and times."""

from __future__ import annotations

import threading
import time
from typing import Any

import numpy as np
import pytest
import torch
from factories import RELATIONS, SHAPES, START, random_batch, random_pair, slow_model

from kdtw_fast import (
    BigLittleDecoder,
    EntropyCallDecoder,
    InterleavedDecoder,
    Owner,
    SingleModelDecoder,
    SpeculativeDecoder,
    TrainingWheelsDecoder,
)
from kdtw_fast.selftest.agreement import as_array

VOCAB = 43
METHODS: list[tuple[str, dict[str, Any]]] = [
    ("SingleModelDecoder", {}),
    ("TrainingWheelsDecoder", {}),
    ("TrainingWheelsDecoder", {"verify_lenience": 0.8}),
    ("EntropyCallDecoder", {"threshold": 2.0}),
    ("SpeculativeDecoder", {"draft_length": 4}),
    ("BigLittleDecoder", {"fallback_threshold": 0.4, "rollback_threshold": 2.0}),
    ("InterleavedDecoder", {"draft_length": 3, "accept_top_k": 4}),
]
CLASSES = {
    cls.__name__: cls
    for cls in (
        SingleModelDecoder,
        TrainingWheelsDecoder,
        EntropyCallDecoder,
        SpeculativeDecoder,
        BigLittleDecoder,
        InterleavedDecoder,
    )
}


def make(name: str, options: dict[str, Any], relation: str = "noisy", seed: int = 2, device: str = "cpu") -> Any:
    student, teacher = random_pair(relation, seed)
    return CLASSES[name](
        *((student,) if name == "SingleModelDecoder" else (student, teacher)), device=device, **options
    )


@pytest.mark.parametrize("relation", RELATIONS)
@pytest.mark.parametrize(("name", "options"), METHODS)
def test_a_callable_sees_every_token_once_in_order(
    name: str, options: dict[str, Any], relation: str, device: str
) -> None:
    """What was streamed is the output: no token that was taken back later, no owner that changed later."""
    decoder = make(name, options, relation, device=device)
    ids, mask = random_batch(np.random.default_rng(3), 4, VOCAB)
    seen: dict[int, list[tuple[int, int, int]]] = {row: [] for row in range(4)}
    settings: dict[str, Any] = {"max_new_tokens": 15 if device == "cpu" else 8, "forced_tokens": [3, 4]}
    output = decoder.generate(
        ids, mask, streamer=lambda row, position, token, owner: seen[row].append((position, token, owner)), **settings
    )
    for row in range(4):
        length = int(output.lengths[row])
        tokens = output.sequences[row, 1 : 1 + length].tolist()
        owners = output.owners[row, 1 : 1 + length].tolist()
        assert seen[row] == list(zip(range(length), tokens, owners, strict=True))
    silent = decoder.generate(ids, mask, **settings)
    assert silent.sequences.tolist() == output.sequences.tolist()


def test_tokens_arrive_while_decoding_goes_on(device: str) -> None:
    """Training Wheels without a check streams each token at once; speculation holds a draft until it is settled."""
    arrivals: list[int] = []
    decoder = make("SpeculativeDecoder", {"draft_length": 4}, "same", device=device)
    output = decoder.generate([[5, 6, 1]], max_new_tokens=15, streamer=lambda r, p, t, o: arrivals.append(p))
    assert arrivals == list(range(int(output.lengths[0])))

    class StopError(Exception):
        pass

    def stop(row: int, position: int, token: int, owner: int) -> None:
        if position == 3:
            raise StopError(f"enough at {position}")

    for name, options in METHODS:
        decoder = make(name, options, "same", device=device)
        with pytest.raises(StopError, match="enough at 3"):
            decoder.generate([[5, 6, 1]], min_new_tokens=10, max_new_tokens=15, streamer=stop)
        assert decoder.generate([[5, 6, 1]], max_new_tokens=4).lengths.tolist() <= [4]


class PutStreamer:
    """Collects like Hugging Face's streamers: the prompt (start token) first, then ids, then end."""

    def __init__(self) -> None:
        self.ids: list[int] = []
        self.ended = 0

    def put(self, value: torch.Tensor) -> None:
        assert not self.ended
        self.ids.extend(value.flatten().tolist())

    def end(self) -> None:
        self.ended += 1


@pytest.mark.parametrize(("name", "options"), METHODS)
def test_hugging_face_streamers(name: str, options: dict[str, Any], device: str) -> None:
    streamer = PutStreamer()
    output = make(name, options, device=device).generate([[5, 6, 1]], max_new_tokens=12, streamer=streamer)
    assert streamer.ids == output.sequences[0].tolist()
    assert streamer.ended == 1


@pytest.mark.parametrize("options", [{"max_new_token": 3}, {"attention_masks": None}, {}])
def test_arguments_that_do_not_fit_end_a_streamer(options: dict[str, Any]) -> None:
    decoder = make(*METHODS[0], device="cpu")
    for call in (decoder.generate, decoder):
        streamer = PutStreamer()
        rows = [[[5, 6, 1]]] if options else []
        with pytest.raises(TypeError):
            call(*rows, streamer=streamer, **options)
        assert streamer.ended == 1


# --- Time ------------------------------------------------------------------------------------------------


def test_max_time_stops_rows_where_they_are(device: str) -> None:
    model = slow_model(device)
    full = SingleModelDecoder(model).generate([[5, 6, 1]] * 2, min_new_tokens=60, max_new_tokens=60)
    start = time.perf_counter()
    output = SingleModelDecoder(model).generate([[5, 6, 1]] * 2, min_new_tokens=2000, max_new_tokens=2000, max_time=0.3)
    seconds = time.perf_counter() - start
    assert 0.25 < seconds < 1.0
    assert output.finish_reasons == ["time", "time"]
    reached = int(output.lengths.min())
    assert 0 < reached < 2000
    common = min(reached, 60) + 1
    assert output.sequences[:, :common].tolist() == full.sequences[:, :common].tolist()
    assert set(full.finish_reasons) <= {"length", "end"}


def test_max_time_leaves_no_unchecked_draft(device: str) -> None:
    """Speculation stopped on time returns a prefix of the teacher's output, not a draft nobody has checked."""
    student, teacher = slow_model(device, 1), slow_model(device, 2)
    expected = (
        SingleModelDecoder(teacher).generate([[5, 6, 1]], min_new_tokens=80, max_new_tokens=80).sequences[0].tolist()
    )
    for max_time in (0.05, 0.11, 0.17):
        output = SpeculativeDecoder(student, teacher, draft_length=8).generate(
            [[5, 6, 1]], min_new_tokens=500, max_new_tokens=500, max_time=max_time
        )
        length = min(int(output.lengths[0]), 80)
        assert output.sequences[0, : length + 1].tolist() == expected[: length + 1]
        assert not (as_array(output.owners) == Owner.STUDENT).any()


# --- Threads ---------------------------------------------------------------------------------------------


def test_two_python_threads_share_a_decoder(device: str) -> None:
    """Both get what they would have got alone, and they run at the same time: the lock is released."""
    decoder = make("TrainingWheelsDecoder", {"verify_lenience": 0.5, "num_threads": 2}, "swapped", device=device)
    batches = [random_batch(np.random.default_rng(seed), 5, VOCAB) for seed in range(8)]
    limit, turns = (30, 24) if device == "cpu" else (6, 3)
    settings: dict[str, Any] = {"max_new_tokens": limit, "temperature": 0.8}
    expected = [decoder.generate(*batch, **settings).sequences.tolist() for batch in batches]
    failures: list[str] = []

    def work(offset: int) -> None:
        for turn in range(turns):
            index = (turn + offset) % len(batches)
            if decoder.generate(*batches[index], **settings).sequences.tolist() != expected[index]:
                failures.append(f"batch {index} differs in thread {offset}")

    threads = [threading.Thread(target=work, args=(offset,)) for offset in (0, 3, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_python_goes_on_while_a_thread_decodes(device: str) -> None:
    model = slow_model(device)
    decoder = SingleModelDecoder(model, num_threads=1)
    done = threading.Event()

    def work() -> None:
        decoder.generate([[5, 6, 1]], min_new_tokens=400, max_new_tokens=400)
        done.set()

    thread = threading.Thread(target=work)
    thread.start()
    start = last = time.perf_counter()
    turns, longest = 0, 0.0
    while not done.is_set():
        time.sleep(0.001)
        now = time.perf_counter()
        longest, last, turns = max(longest, now - last), now, turns + 1
    thread.join()
    # Were the lock held, the first sleep would last as long as the decode.
    assert turns > 10 and longest < 0.5 * (last - start)


# --- What the output says ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "options"), METHODS)
def test_counts_agree_with_the_owners(name: str, options: dict[str, Any], device: str) -> None:
    for relation in RELATIONS if device == "cpu" else ["swapped"]:
        decoder = make(name, options, relation, seed=5, device=device)
        ids, mask = random_batch(np.random.default_rng(5), 6, VOCAB)
        output = decoder.generate(ids, mask, max_new_tokens=20 if device == "cpu" else 8, temperature=0.5)
        owners = as_array(output.owners)
        by = {owner: (owners == owner).sum(axis=1) for owner in Owner}
        np.testing.assert_array_equal(as_array(output.accepted), by[Owner.ACCEPTED])
        kept = by[Owner.STUDENT] + by[Owner.ACCEPTED]
        np.testing.assert_array_equal(as_array(output.drafted) - as_array(output.rolled_back), kept)
        written = by[Owner.TEACHER] + by[Owner.CORRECTED]
        np.testing.assert_allclose(as_array(output.teacher_fraction), written / as_array(output.lengths), rtol=1e-6)
        assert (as_array(output.teacher_calls) >= written).all()
        if name != "InterleavedDecoder" and name != "SpeculativeDecoder":
            np.testing.assert_array_equal(as_array(output.teacher_calls), written)
        ended = [row[1 + int(length) - 1] == 1 for row, length in zip(output.sequences, output.lengths, strict=True)]
        assert output.finish_reasons == ["end" if end else "length" for end in ended]
        # A pass serves every row that waits, so there are at least as many as the busiest row needs.
        assert output.teacher_passes >= int(output.teacher_calls.max())
        assert output.teacher_passes <= int(output.teacher_calls.sum())
        assert output.student_passes >= int(output.drafted.max())
        times = output.timings
        assert min(times.encode, times.student, times.other) >= 0.0 and times.total > 0.0
        assert (times.teacher > 0.0) == (output.teacher_passes > 0)


def test_rows_are_served_together(device: str) -> None:
    """Eight equal rows need no more passes than one: the student steps all, the teacher answers all in one pass."""
    for name, options in METHODS:
        decoder = make(name, options, "swapped", seed=3, device=device)
        settings: dict[str, Any] = {"max_new_tokens": 20 if device == "cpu" else 5}
        one = decoder.generate([[5, 6, 1]], **settings)
        eight = decoder.generate([[5, 6, 1]] * 8, **settings)
        assert eight.sequences.tolist() == one.sequences.tolist() * 8
        assert (eight.student_passes, eight.teacher_passes) == (one.student_passes, one.teacher_passes)


def test_output_is_a_hugging_face_model_output(device: str) -> None:
    output = make("SpeculativeDecoder", {}, device=device).generate([[5, 6, 1]], max_new_tokens=4)
    assert output["sequences"] is output.sequences and "owners" in output
    assert output.sequences.dtype == torch.int64 and int(output.sequences[0, 0]) == START
    assert output.student_logprobs is None and output.texts is None
    logged = make("SpeculativeDecoder", {}, device=device).generate([[5, 6, 1]], max_new_tokens=4, output_logprobs=True)
    assert logged.student_logprobs.shape == logged.teacher_logprobs.shape == logged.sequences.shape


def test_shapes_of_the_factories_are_odd() -> None:
    """The sizes that break kernels are really there."""
    assert any(shape.d_model % 8 for shape in SHAPES) and any(shape.d_ff % 2 for shape in SHAPES)
    assert all(shape.d_kv * shape.heads != shape.d_model for shape in SHAPES)
    assert any(shape.stacks["encoder"] != shape.layers for shape in SHAPES)
    assert {(shape.tied, shape.scaled) for shape in SHAPES} == {(a, b) for a in (True, False) for b in (True, False)}
    assert {shape.activation for shape in SHAPES} == {"relu", "gated-gelu"}
