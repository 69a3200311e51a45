"""Weights that change under decoders: the next call decodes with them, and no decode sees them change."""

from __future__ import annotations

import copy
import multiprocessing
import re
import threading
from typing import Any

import pytest
import torch
from factories import EOS, SHAPES, START, random_t5, with_tau

from kdtw_fast import NativeT5, SingleModelDecoder, TrainingWheelsDecoder, weights

VOCAB = 43
ROWS = [[4, 8, EOS], [5, 6, 7, 30, EOS]]


def student(seed: int, shape: int = 1) -> torch.nn.Module:
    return with_tau(random_t5(SHAPES[shape], VOCAB, seed=seed), VOCAB - 1, beta_scale=1.0, seed=seed)


def logits(native: NativeT5) -> bytes:
    tokens = [START, 5, 9, 30, 7]
    return native.decode_logits(ROWS[0], tokens, from_teacher=[False, True, False, True, True]).tobytes()


@pytest.mark.parametrize("dtype", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("shape", range(4))
def test_new_weights_are_those_of_a_new_model(shape: int, dtype: str, device: str) -> None:
    native = NativeT5.from_model(student(1, shape), dtype=dtype, device=device)
    before = logits(native)
    native.update_weights(student(2, shape))
    assert before != logits(native) == logits(NativeT5.from_model(student(2, shape), dtype=dtype, device=device))
    native.update_weights(student(1, shape))
    assert logits(native) == before


def test_decoders_use_the_new_weights(device: str) -> None:
    native, teacher = (
        NativeT5.from_model(student(1), device=device),
        NativeT5.from_model(random_t5(SHAPES[1], VOCAB, seed=9), device=device),
    )
    decoder = TrainingWheelsDecoder(native, teacher)
    for seed in (2, 3):
        model = student(seed)
        native.update_weights(model)
        ours = decoder.generate(ROWS, max_new_tokens=12)
        fresh = TrainingWheelsDecoder(model, teacher, device=device).generate(ROWS, max_new_tokens=12)
        assert ours.sequences.tolist() == fresh.sequences.tolist()
        assert ours.owners.tolist() == fresh.owners.tolist()


def test_an_optimiser_step_arrives(device: str) -> None:
    model = student(1)
    native = NativeT5.from_model(model, device=device)
    before = logits(native)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.125)
    assert logits(native) == before  # packed: a copy
    native.update_weights(model)
    assert logits(native) == logits(NativeT5.from_model(model, device=device)) != before


def test_weights_do_not_change_under_a_stream(device: str) -> None:
    native = NativeT5.from_model(student(1), device=device)
    decoder = SingleModelDecoder(native)
    expected = decoder.generate(ROWS, max_new_tokens=9).sequences.tolist()
    with decoder.stream(ROWS, batch_size=1, max_new_tokens=9) as stream:
        first = next(stream)
        with pytest.raises(RuntimeError, match="model: weights cannot change while the model decodes"):
            native.update_weights(student(2))
        outputs = [first, *stream]
    for out, whole in zip(outputs, expected, strict=True):
        assert out.sequences[0].tolist() == whole[: 1 + int(out.lengths[0])]
    native.update_weights(student(2))
    assert logits(native) == logits(NativeT5.from_model(student(2), device=device))


def test_weights_do_not_change_under_a_generate_of_another_thread(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The decode begins before the update, or between two tensors that the update packs: one of the two is refused."""
    native = NativeT5.from_model(student(1), device=device)
    decoder = SingleModelDecoder(native)
    outputs = {}
    for seed in (1, 2):
        native.update_weights(student(seed))
        outputs[seed] = decoder.generate(ROWS, max_new_tokens=9).sequences.tolist()
    refused = []

    def between_tensors(*arguments: Any) -> Any:
        read = weights.tensor_reader(*arguments)

        def reading(*which: Any) -> Any:
            try:
                decoder.generate(ROWS, max_new_tokens=9)
            except RuntimeError as error:
                refused.append(str(error))
            return read(*which)

        return reading

    monkeypatch.setattr("kdtw_fast.model.tensor_reader", between_tensors)
    native.update_weights(student(1))  # at any tensor, any other thread's Python may run
    assert len(refused) > 3 and set(refused) == {
        "model: another thread is replacing the weights; call when it has done so"
    }
    assert decoder.generate(ROWS, max_new_tokens=9).sequences.tolist() == outputs[1]

    def broken(*which: Any) -> Any:
        raise LookupError(which)

    monkeypatch.setattr("kdtw_fast.model.tensor_reader", lambda *arguments: broken)
    with pytest.raises(LookupError):
        native.update_weights(student(2))
    assert decoder.generate(ROWS, max_new_tokens=9).sequences.tolist() == outputs[1]  # nobody holds it any more


def test_threads_that_decode_while_weights_change() -> None:
    native = NativeT5.from_model(student(1))
    decoder = SingleModelDecoder(native)
    models = [student(seed) for seed in (1, 2)]
    known = []
    for model in models:
        native.update_weights(model)
        known.append(decoder.generate(ROWS, max_new_tokens=9).sequences.tolist())
    stop = threading.Event()
    seen: list[object] = []

    def decode() -> None:
        while not stop.is_set():
            try:
                seen.append(decoder.generate(ROWS, max_new_tokens=9).sequences.tolist())
            except RuntimeError as error:
                assert "replacing the weights" in str(error)

    threads = [threading.Thread(target=decode) for _ in range(3)]
    for thread in threads:
        thread.start()
    changed = 0
    for turn in range(200):
        try:
            native.update_weights(models[turn % 2])
            changed += 1
        except RuntimeError as error:
            assert "while the model decodes" in str(error)
    stop.set()
    for thread in threads:
        thread.join(60)
    assert seen and all(tokens in known for tokens in seen)


def test_a_fork_in_the_middle_of_a_decode_says_that_it_keeps_the_weights() -> None:
    native, new = NativeT5.from_model(student(1)), student(2)
    decoder = SingleModelDecoder(native)
    begun, forked = threading.Event(), threading.Event()

    def wait(*_: int) -> None:
        begun.set()
        forked.wait()

    def in_a_fork() -> None:
        with pytest.raises(RuntimeError, match=r"weights cannot change.* is a fork.*make a NativeModel in this"):
            native.update_weights(new)
        mine = NativeT5.from_model(student(1))
        mine.update_weights(new)
        assert logits(mine) == logits(NativeT5.from_model(new))

    decoding = threading.Thread(target=decoder.generate, args=(ROWS,), kwargs={"streamer": wait})
    decoding.start()
    begun.wait()
    child = multiprocessing.get_context("fork").Process(target=in_a_fork)
    child.start()
    forked.set()
    decoding.join()
    child.join(100)
    child.kill()
    assert child.exitcode == 0
    native.update_weights(new)


def test_packed_bytes_that_are_looked_at_stay() -> None:
    native = NativeT5.from_model(student(1))
    blobs = native.core.blobs
    before = [blob.tobytes() for blob in blobs]
    with pytest.raises(RuntimeError, match="cannot change"):
        native.update_weights(student(2))
    assert [blob.tobytes() for blob in blobs] == before


def test_a_wrong_model_changes_nothing(device: str) -> None:
    native = NativeT5.from_model(student(1), name="policy", device=device)
    before = logits(native)
    with pytest.raises(ValueError, match="policy: update_weights takes models of the same config, but encoder"):
        native.update_weights(student(2, shape=0))
    with pytest.raises(ValueError, match="teachers is 1 here and None"):
        native.update_weights(random_t5(SHAPES[1], VOCAB, seed=2))
    for field, value in (
        ("eos_token_id", 2),
        ("pad_token_id", 3),
        ("decoder_start_token_id", 4),
        ("tau_token_id", 7),
        ("forced_bos_token_id", 8),
        ("student_prompt", "Use {budget}: "),
        ("teacher_prompt", "Translate: "),
    ):
        other = student(2)
        setattr(other.config, field, value)
        other.generation_config = None  # which repeats the config's tokens
        said = f"policy: update_weights takes .* {field} is .*{re.escape(repr(value))}.* in the model"
        with pytest.raises(ValueError, match=said):
            native.update_weights(other)
    with pytest.raises(TypeError, match="got Linear"):
        native.update_weights(torch.nn.Linear(2, 2))
    broken = copy.deepcopy(student(2))
    broken.encoder.final_layer_norm.weight = torch.nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"encoder\.final_layer_norm\.weight' has shape \[3\]"):
        native.update_weights(broken)
    assert logits(native) == before
