"""The likeliest tokens at each place, scores of outputs, and forced tokens of each row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from factories import EOS, chain_t5, random_pair
from test_decoding_oracle import METHODS, random_case
from test_families import V, random_model

from kdtw_fast import NativeModel, Owner, SingleModelDecoder, SpeculativeDecoder, TrainingWheelsDecoder
from kdtw_fast.selftest.agreement import Tally, as_array, compare


@torch.no_grad()
def raw(model: Any, source: list[int], ids: list[int]) -> np.ndarray:
    """Log-probabilities [outputs, V] by transformers of what follows the source and each of these outputs."""
    if model.config.is_encoder_decoder:
        told = {"decoder_input_ids": torch.tensor([[model.config.decoder_start_token_id, *ids[:-1]]])}
        logits = model(input_ids=torch.tensor([source]), **told).logits[0]
    else:
        logits = model(torch.tensor([[*source, *ids[:-1]]])).logits[0, len(source) - 1 :]
    return torch.log_softmax(logits.double(), 1).numpy()


@pytest.mark.parametrize("kind", ["t5", "llama"])
@pytest.mark.parametrize("temperature", [0.0, 1.2])
def test_the_likeliest_are_the_models_own(kind: str, temperature: float) -> None:
    model = random_model(kind, 5)
    rules = {"suppress_tokens": [7, 8, 9], "repetition_penalty": 1.7}
    settings: dict[str, Any] = {"max_new_tokens": 9, "temperature": temperature, "top_k": 30, **rules}
    sources = [[5, 9, 7], [4, 8], [6, 6, 8, 11]]
    plain = SingleModelDecoder(model).generate(sources, **settings)
    assert plain.top_ids is None and plain.top_logprobs is None
    output = SingleModelDecoder(model).generate(sources, top_logprobs=4, output_logprobs=True, **settings)
    assert output.output_ids == plain.output_ids
    for row, source in enumerate(sources):
        ids, span = output.output_ids[row], output.spans[row]
        expected = raw(model, source, ids)
        ranked = np.argsort(-expected, axis=1, kind="stable")[:, :4]
        np.testing.assert_array_equal(output.top_ids[row, span], ranked)
        np.testing.assert_allclose(
            output.top_logprobs[row, span], np.take_along_axis(expected, ranked, 1), rtol=1e-4, atol=1e-5
        )
        outside = np.ones(output.sequences.shape[1], bool)
        outside[span] = False
        assert (as_array(output.top_ids)[row, outside] == -1).all()
        assert np.isnan(as_array(output.top_logprobs)[row, outside]).all()
        chosen = sum(float(expected[i, token]) for i, token in enumerate(ids))
        assert float(output.sequences_scores[row]) == pytest.approx(chosen, rel=1e-4)


def test_scores_are_those_of_transformers() -> None:
    """Several outputs of one input, drawn; transformers judges what came out."""
    model = random_model("t5", 6)
    output = SingleModelDecoder(model).generate(
        [[5, 9, 7]], num_return_sequences=4, temperature=1.0, max_new_tokens=8, output_logprobs=True
    )
    assert len({tuple(ids) for ids in output.output_ids}) == 4
    for ids, score in zip(output.output_ids, output.sequences_scores.tolist(), strict=True):
        told = raw(model, [5, 9, 7], ids)[range(len(ids)), ids].sum()
        assert score == pytest.approx(float(told), rel=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_every_method_tells_who_decided(method: str) -> None:
    """The best is what was picked where picks are greedy, and each log-probability is of the model that decided."""
    decided = 0
    for index in range(6):
        fast, _, settings, text = random_case(method, ["noisy", "swapped", "same"][index % 3], 700 + index)
        settings = {k: v for k, v in settings.items() if k != "output_logprobs"}
        plain = fast.generate(**settings)
        output = fast.generate(top_logprobs=3, output_logprobs=True, **settings)
        assert output.output_ids == plain.output_ids, text
        ids, log_probs = as_array(output.top_ids), as_array(output.top_logprobs)
        owners, chosen = as_array(output.owners), as_array(output.token_logprobs)
        sequences = as_array(output.sequences)
        for row, span in enumerate(output.spans):
            for t in range(span.start, span.stop):
                if owners[row, t] == Owner.FORCED:
                    assert (ids[row, t] == -1).all() and np.isnan(chosen[row, t]), text
                    continue
                decided += 1
                assert (np.diff(log_probs[row, t]) <= 0).all() and (ids[row, t] >= 0).all(), text
                found = np.flatnonzero(ids[row, t] == sequences[row, t])
                if len(found):
                    assert log_probs[row, t, found[0]] == pytest.approx(chosen[row, t], abs=1e-5), text
                else:
                    assert chosen[row, t] <= log_probs[row, t, -1] + 1e-6, text
    assert decided > 25


def test_streams_and_rows_alone_tell_the_same_bit_for_bit() -> None:
    student, teacher = random_pair("noisy", 4)
    shared: dict[str, Any] = {"max_new_tokens": 10, "top_logprobs": 5, "temperature": 0.9}
    sources = [[5, 6, 1], [9, 1], [7, 8, 9, 10, 1]]
    for decoder in (TrainingWheelsDecoder(student, teacher), SpeculativeDecoder(student, teacher, draft_length=3)):
        batch = decoder.generate(sources, **shared)
        streamed = list(decoder.stream(sources, batch_size=2, in_order=True, **shared))
        for row, source in enumerate(sources):
            alone = decoder.generate([source], row_ids=[row], **shared)
            for one in (alone, streamed[row], decoder.submit({"input_ids": source, "row_id": row}, **shared).result()):
                for name in ("top_ids", "top_logprobs"):
                    mine, others = (as_array(getattr(out, name)) for out in (one, batch))
                    np.testing.assert_array_equal(mine[0][one.spans[0]], others[row][batch.spans[row]])
        decoder.worker.close()


def test_a_small_vocabulary_has_no_more() -> None:
    output = SingleModelDecoder(chain_t5(np.zeros((8, 8)))).generate([[5, EOS]], top_logprobs=20, max_new_tokens=2)
    top = as_array(output.top_ids)[0, 1]
    assert top.tolist() == [*range(8)] + [-1] * 12


def test_devices_refuse_by_name(simulated: str) -> None:
    decoder = SingleModelDecoder(chain_t5(np.zeros((43, 43))), device=simulated)
    with pytest.raises(ValueError, match="top_logprobs are not told on device 'cuda:0' yet; decode on 'cpu'"):
        decoder.generate([[5, EOS]], max_new_tokens=3, top_logprobs=2)


# --- Forced tokens of each row ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_each_row_may_have_its_own_forced_tokens(method: str, oracle_tally: Tally) -> None:
    for index in range(3):
        fast, slow, settings, text = random_case(method, ["noisy", "swapped", "same"][index % 3], 800 + index)
        rng = np.random.default_rng([METHODS.index(method), index])
        rows = len(settings["input_ids"])
        forced = [rng.integers(2, 20, size=int(rng.integers(0, 4))).tolist() for _ in range(rows)]
        settings |= {"forced_tokens": forced, "max_new_tokens": settings["max_new_tokens"] + 4}
        output = fast.generate(**settings)
        oracle_tally.add(compare(output, slow.generate(**settings), text))
        repeats = settings.get("num_return_sequences", 1)
        for row, ids in enumerate(output.output_ids):
            assert ids[: len(forced[row // repeats])] == forced[row // repeats]
    assert oracle_tally.differing <= 1


def test_forced_tokens_of_a_row_are_transformers_decoder_input_ids() -> None:
    for seed in range(4):
        model = random_model("t5", seed)
        start = model.config.decoder_start_token_id
        prefixes = [[7, 9], [11], []]
        mine = SingleModelDecoder(model).generate([[5, 9, 7]] * 3, forced_tokens=prefixes, max_new_tokens=9).output_ids
        for prefix, ids in zip(prefixes, mine, strict=True):
            theirs = model.generate(
                torch.tensor([[5, 9, 7]]),
                decoder_input_ids=torch.tensor([[start, *prefix]]),
                do_sample=False,
                max_new_tokens=9 - len(prefix),
            )
            assert ids == theirs[0, 1:].tolist()


@pytest.mark.parametrize(
    ("call", "error", "said"),
    [
        (lambda d: d.generate([[5], [6]], forced_tokens=[[4]]), ValueError, "forced_tokens has 1 lists for 2 rows"),
        (lambda d: d.generate([[5], [6]], forced_tokens=[[4], 5]), TypeError, "forced_tokens must be ids, or a list"),
        (lambda d: d.generate([[5]], forced_tokens=[[4, 5]], max_new_tokens=2), ValueError, "leaves no room"),
        (lambda d: d.generate([[5]], forced_tokens=[[V]]), ValueError, f"got {V}"),
        (lambda d: d.stream([[5]], forced_tokens=[[4]]), ValueError, "an item may have its own"),
        (lambda d: d.submit([5], forced_tokens=[[4]]), ValueError, "takes one list of forced_tokens"),
        (lambda d: d.submit({"input_ids": [5], "forced_tokens": [[4]]}), TypeError, "must be a list of ids"),
        (lambda d: d.generate([[5]], top_logprobs=101), ValueError, "top_logprobs must be in 0..100, got 101"),
        (lambda d: d.generate([[5]]).sequences_scores, ValueError, "decode with output_logprobs=True"),
    ],
)
def test_what_is_wrong_is_said(call: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error) as raised:
        call(SingleModelDecoder(NativeModel.from_model(random_model("llama", 1))))
    assert said in str(raised.value) and "\n" not in str(raised.value)
