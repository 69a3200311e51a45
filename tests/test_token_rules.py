"""Rules on tokens: as transformers' logits processors have them, in drafts, checks and teachers' tokens alike."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from factories import EOS, START, chain_t5, mostly_long, path_table, random_pair
from test_decoding_oracle import METHODS, random_case
from test_families import V, random_model
from transformers import GenerationConfig

from kdtw_fast import InterleavedDecoder, NativeModel, SingleModelDecoder, SpeculativeDecoder, TrainingWheelsDecoder
from kdtw_fast.options import GenerateOptions
from kdtw_fast.reference.rules import edit
from kdtw_fast.selftest.agreement import Tally, as_array, compare

KINDS = ["t5", "bart", "llama", "olmo2"]


def random_rules(rng: np.random.Generator, vocab: int, end: int, length: int, before: int = 0) -> dict[str, Any]:
    """Some of the options, with values that bite in a small vocabulary."""

    def ids(most: int) -> list[int]:
        return [int(token) for token in rng.integers(0, vocab, size=int(rng.integers(1, most)))]

    def words() -> list[list[int]]:
        return [ids(4) for _ in range(8)] + [[end]]

    def biases() -> dict[Any, float]:
        found = {token: float(rng.normal(0, 3)) for token in ids(12)}
        return found | {tuple(word): float(rng.normal(0, 6)) for word in words()[:-1] if len(word) > 1}

    rules = {
        "suppress_tokens": ids(vocab // 2),
        "begin_suppress_tokens": ids(vocab // 2),
        "bad_words_ids": words(),
        "no_repeat_ngram_size": int(rng.integers(1 if length + before < vocab - 4 else 2, 4)),
        "repetition_penalty": float(rng.choice([0.7, 1.1, 1.5, 4.0])),
        "logit_bias": biases(),
        "forced_eos_token_id": end,
    }
    chosen = {name: value for name, value in rules.items() if rng.random() < 0.5} or {"suppress_tokens": ids(9)}
    if "forced_eos_token_id" in chosen:  # not both
        for name in ("suppress_tokens", "begin_suppress_tokens"):
            chosen[name] = [token for token in chosen.get(name, ()) if token != end]
    return chosen


def as_transformers(rules: dict[str, Any]) -> dict[str, Any]:
    """The same under transformers' names."""
    told = dict(rules)
    if biases := told.pop("logit_bias", None):
        told["sequence_bias"] = {key if isinstance(key, tuple) else (key,): bias for key, bias in biases.items()}
    return told


def native_outputs(output: Any) -> list[list[int]]:
    return output.output_ids


# --- Against transformers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_tokens_are_those_of_transformers(kind: str) -> None:
    differing = changed = 0
    for seed in range(12):
        model = random_model(kind, seed)
        decoder = SingleModelDecoder(model)
        end = decoder.model.eos_token_ids[0]
        for case in range(4):
            rng = np.random.default_rng([KINDS.index(kind), seed, case])
            rules = random_rules(rng, V, end, 12, 9)
            source = [int(token) for token in rng.integers(3, V, size=int(rng.integers(1, 9)))]
            least = int(rng.integers(0, 4))
            settings = {"max_new_tokens": 12, "min_new_tokens": least}
            expected = model.generate(
                torch.tensor([source]),
                attention_mask=torch.ones(1, len(source), dtype=torch.long),
                do_sample=False,
                return_dict_in_generate=True,
                output_scores=True,
                **settings,
                **as_transformers(rules),
            )
            begin = 1 if model.config.is_encoder_decoder else len(source)
            theirs = expected.sequences[0, begin:].tolist()
            mine = decoder.generate([source], **settings, **rules).output_ids[0]
            changed += mine != decoder.generate([source], **settings).output_ids[0]
            if mine == theirs:
                continue
            place = next(i for i, pair in enumerate(zip(mine, theirs)) if pair[0] != pair[1])
            best = torch.topk(expected.scores[place][0], 2).values
            assert best[0] - best[1] < 1e-4, (kind, seed, case, rules, mine, theirs)
            differing += 1
    assert differing <= 1
    assert changed > 30  # the rules bite


def test_the_oracles_rules_are_transformers_processors() -> None:
    """On random logits: the distribution itself, so that what is sampled is theirs, too."""
    vocab, model = 31, random_pair("noisy", 0, 31)[1]
    for case in range(400):
        rng = np.random.default_rng(case)
        length = int(rng.integers(1, 20))
        rules = random_rules(rng, vocab, EOS, length)
        least = int(rng.integers(0, length + 1))
        options = GenerateOptions(max_new_tokens=length, min_new_tokens=least, **rules)
        config = GenerationConfig(max_new_tokens=length, min_new_tokens=least or None, **as_transformers(rules))
        config.max_length = length + 1
        config._eos_token_tensor = torch.tensor([EOS])
        processors = model._get_logits_processor(config, input_ids_seq_length=1)
        position = int(rng.integers(0, length))
        read = [START, *rng.integers(0, vocab, size=position).tolist()]
        logits = torch.from_numpy(rng.normal(0, 3, size=vocab)).float()
        theirs = processors(torch.tensor([read]), logits[None])[0].double()
        mine = edit(logits, read, position, [EOS] if position < least else [], options, 0, EOS)
        assert torch.equal(mine.isinf(), theirs.isinf()), (case, rules)
        torch.testing.assert_close(torch.softmax(mine, 0), torch.softmax(theirs, 0), rtol=1e-4, atol=1e-6)


# --- Every method -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", mostly_long(METHODS, keep=(0, 2, 3, 7, 9)))
def test_every_method_obeys_as_the_oracle_does(method: str, oracle_tally: Tally) -> None:
    for index in range(24):
        fast, slow, settings, text = random_case(method, ["noisy", "swapped", "same"][index % 3], 500 + index)
        rng = np.random.default_rng([METHODS.index(method), index])
        vocab = min(model.vocab_size for model in (fast.model, *fast.teachers))
        settings |= random_rules(rng, vocab, EOS, settings["max_new_tokens"])
        output = fast.generate(output_logprobs=index % 2 == 0, **settings)
        oracle_tally.add(compare(output, slow.generate(**settings), text))
    assert oracle_tally.differing <= 1


def decoder_only_pair(seed: int) -> tuple[NativeModel, NativeModel]:
    return tuple(NativeModel.from_model(random_model("llama", seed + k), name) for k, name in enumerate(("s", "t")))  # type: ignore[return-value]


@pytest.mark.parametrize("kinds", [("t5", "t5"), ("llama", "llama"), ("t5", "llama"), ("llama", "t5")])
def test_lossless_speculative_decoding_is_the_teacher_alone(kinds: tuple[str, str]) -> None:
    """Also where student and teacher read different prompts, which the rules of each read."""
    outputs: set[tuple[int, ...]] = set()
    for seed in range(10):
        student, teacher = (NativeModel.from_model(random_model(kind, seed + 50 * k)) for k, kind in enumerate(kinds))
        rng = np.random.default_rng([seed, 7])
        rules = random_rules(rng, V, 1, 14, 6) | {"max_new_tokens": 14}
        own, theirs = ([rng.integers(3, V, size=n).tolist() for n in (5, 1, 6)] for _ in range(2))
        alone = SingleModelDecoder(teacher).generate(theirs, **rules).output_ids
        for draft_length in (1, 4, 9):
            pair = SpeculativeDecoder(student, teacher, draft_length=draft_length)
            assert pair.generate(own, teacher_inputs={"input_ids": theirs}, **rules).output_ids == alone
        outputs |= {tuple(row) for row in alone}
    assert len(outputs) > 15


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_drafts_of_the_same_model_all_stand_when_sampling(kind: str) -> None:
    """q must be the distribution that the draft was drawn from: p and q are equal, so nothing is rejected."""
    for seed in range(8):
        model = NativeModel.from_model(random_model(kind, seed))
        rules = random_rules(np.random.default_rng(seed), V, 1, 14, 6)
        warp = {"temperature": 1.3, "top_k": 20 * (seed % 2), "max_new_tokens": 14, "seed": seed}
        output = SpeculativeDecoder(model, model, draft_length=4).generate([[5, 9, 7], [4]], **warp, **rules)
        assert as_array(output.rolled_back).sum() == 0
        assert as_array(output.accepted).sum() > 0


def test_where_prompts_differ_the_draft_is_judged_by_its_own_rules() -> None:
    """Bans that the draft's prompt alone makes: q is without the banned token, p is not, and what is sampled is p's."""
    model = NativeModel.from_model(random_model("llama", 3))
    settings = {"temperature": 1.0, "max_new_tokens": 1, "no_repeat_ngram_size": 1}
    rows = 4000
    own, theirs = [[5, 9, 7]] * rows, {"input_ids": [[11, 12, 13]] * rows}
    pair = SpeculativeDecoder(model, model, draft_length=1)
    drawn = [row[0] for row in pair.generate(own, teacher_inputs=theirs, **settings).output_ids]
    alone = SingleModelDecoder(model).generate([[11, 12, 13]] * rows, **settings | {"seed": 9}).output_ids
    counts = [np.bincount(ids, minlength=V) / rows for ids in (drawn, [row[0] for row in alone])]
    assert 0.5 * np.abs(counts[0] - counts[1]).sum() < 0.08
    assert not set(drawn) & {11, 12, 13}


def test_a_batch_is_its_rows_bit_for_bit() -> None:
    for kind in ("t5", "llama"):
        student, teacher = (NativeModel.from_model(random_model(kind, seed)) for seed in (1, 2))
        rng = np.random.default_rng(5)
        sources = [rng.integers(3, V, size=n).tolist() for n in (1, 4, 7, 2)]
        for decoder in (SingleModelDecoder(student), SpeculativeDecoder(student, teacher, draft_length=3)):
            for case in range(6):
                rules = random_rules(np.random.default_rng([case]), V, 1, 10, 7)
                shared = rules | {"max_new_tokens": 10, "temperature": 0.9 * (case % 2), "output_logprobs": True}
                batch = decoder.generate(sources, **shared)
                streamed = list(decoder.stream(sources, batch_size=2, in_order=True, **shared))
                for row, source in enumerate(sources):
                    alone = decoder.generate([source], row_ids=[row], **shared)
                    for one in (alone, streamed[row]):
                        assert one.output_ids[0] == batch.output_ids[row]
                        for name in ("student_logprobs", "teacher_logprobs"):
                            mine, others = (as_array(getattr(out, name)) for out in (one, batch))
                            np.testing.assert_array_equal(mine[0][one.spans[0]], others[row][batch.spans[row]])


def test_log_probabilities_stay_the_models_own() -> None:
    model = NativeModel.from_model(random_model("t5", 4))
    rules = {"repetition_penalty": 3.0, "logit_bias": {7: 4.0}, "suppress_tokens": [9, 10], "no_repeat_ngram_size": 2}
    for temperature in (0.0, 1.0):
        warp = {"temperature": temperature, "top_k": int(temperature) * 30}
        output = SingleModelDecoder(model).generate(
            [[5, 6, 1]], output_logprobs=True, max_new_tokens=9, **rules, **warp
        )
        ids = output.output_ids[0]
        raw = torch.log_softmax(
            torch.from_numpy(model.decode_logits([5, 6, 1], [model.decoder_start_token_id, *ids])), 1
        )
        expected = [float(raw[i, token]) for i, token in enumerate(ids)]
        np.testing.assert_allclose(as_array(output.student_logprobs)[0, 1:], expected, rtol=1e-4, atol=1e-5)


def test_a_bias_on_tau_makes_the_student_ask() -> None:
    student, teacher = random_pair("noisy", 2)
    decoder = TrainingWheelsDecoder(student, teacher)
    tau = decoder.student.tau_token_ids[0]
    shares = [
        float(decoder.generate([[5, 6, 7, 1]], max_new_tokens=20, logit_bias={tau: bias}).teacher_fraction[0])
        for bias in (-1000.0, 1000.0)
    ]
    assert shares == [0.0, 1.0]


# --- What is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"suppress_tokens": [43]}, ValueError, "suppress_tokens's id must be in 0..42, got 43"),
        ({"suppress_tokens": 4}, TypeError, "suppress_tokens must be a list of ids"),
        ({"suppress_tokens": [1.5]}, TypeError, "must be an integer"),
        ({"begin_suppress_tokens": [-1]}, ValueError, "begin_suppress_tokens's id must be at least 0"),
        ({"bad_words_ids": [[]]}, ValueError, "bad_words_ids entry must not be empty"),
        ({"bad_words_ids": [4]}, TypeError, "bad_words_ids entry must be a list of ids"),
        ({"bad_words_ids": 4}, TypeError, "bad_words_ids must be lists of ids"),
        ({"no_repeat_ngram_size": -1}, ValueError, "no_repeat_ngram_size must be in 0.."),
        ({"repetition_penalty": 0}, ValueError, "repetition_penalty must be in"),
        ({"logit_bias": [4]}, TypeError, "logit_bias must map ids to numbers"),
        ({"logit_bias": {4: float("-inf")}}, ValueError, "logit_bias of 4 must be in"),
        ({"logit_bias": {"a": 1.0}}, TypeError, "must be an integer"),
        ({"logit_bias": {(): 1.0}}, ValueError, "logit_bias key must not be empty"),
        ({"forced_eos_token_id": 5}, ValueError, "forced_eos_token_id=5 is no end token"),
        (
            {"forced_eos_token_id": 1, "suppress_tokens": [1]},
            ValueError,
            "forced_eos_token_id=1 is one of suppress_tokens",
        ),
        ({"suppress_tokens": range(43)}, FloatingPointError, "options leave no token for output 0"),
    ],
)
def test_what_is_wrong_is_said(options: dict[str, Any], error: type[Exception], said: str) -> None:
    model = chain_t5(np.zeros((43, 43)))
    decoder = SingleModelDecoder(model)
    with pytest.raises(error) as raised:
        decoder.generate([[5, EOS]], max_new_tokens=3, **options)
    assert said in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_vocabulary_that_runs_out_is_an_error_of_its_row(temperature: float) -> None:
    """No token may come twice, and there are as many as positions but one."""
    model = chain_t5(np.zeros((8, 8)))
    decoder = SingleModelDecoder(model)
    rules = {"no_repeat_ngram_size": 1, "suppress_tokens": [EOS], "temperature": temperature}
    assert sorted(decoder.generate([[5, EOS]], max_new_tokens=6, **rules).output_ids[0]) == [2, 3, 4, 5, 6, 7]
    with pytest.raises(FloatingPointError, match="row 0's options leave no token for output 6"):
        decoder.generate([[5, EOS]], max_new_tokens=7, **rules)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("draft_length", [1, 2, 4])
def test_no_token_left_behind_a_draft_that_does_not_stand_is_no_error(draft_length: int, temperature: float) -> None:
    """Nothing may follow 6, which only the student writes: neither its next draft nor the teacher's answer there."""
    student, teacher = (chain_t5(path_table([5, second, 7, 8, EOS], 20, 60.0)) for second in (6, 9))
    for sources in ([[5, EOS]], [[5, EOS], [7, 8, EOS]]):
        rules = {"bad_words_ids": [[6, token] for token in range(20)], "temperature": temperature, "max_new_tokens": 8}
        expected = SingleModelDecoder(teacher).generate(sources, **rules).output_ids
        assert expected == [[5, 9, 7, 8, EOS]] * len(sources)
        speculative = SpeculativeDecoder(student, teacher, draft_length=draft_length)
        interleaved = InterleavedDecoder(student, teacher, draft_length=draft_length, accept_top_k=1)
        for decoder in (speculative, interleaved):
            output = decoder.generate(sources, output_logprobs=True, top_logprobs=2, **rules)
            assert output.output_ids == expected
    with pytest.raises(FloatingPointError, match="row 0's options leave no token for output 2; ban fewer"):
        SpeculativeDecoder(student, student, draft_length=draft_length).generate([[5, EOS]], **rules)


def test_what_only_the_drafters_prompt_forbids_the_teacher_writes() -> None:
    """Nothing is left to the student, whose prompt has every token; the teacher's has one of them."""
    model = NativeModel.from_model(random_model("llama", 3))
    rules = {"no_repeat_ngram_size": 1, "max_new_tokens": 6}
    alone = SingleModelDecoder(model).generate([[7]], **rules).output_ids
    pair = SpeculativeDecoder(model, model, draft_length=3)
    assert pair.generate([list(range(V))], teacher_inputs={"input_ids": [[7]]}, **rules).output_ids == alone


def test_devices_refuse_by_name(simulated: str) -> None:
    decoder = SingleModelDecoder(chain_t5(np.zeros((43, 43))), device=simulated)
    for name, value in {"suppress_tokens": [4], "no_repeat_ngram_size": 2, "logit_bias": {3: 1.0}}.items():
        with pytest.raises(ValueError, match=f"{name} is not obeyed on device 'cuda:0' yet; decode on 'cpu'"):
            decoder.generate([[5, EOS]], max_new_tokens=3, **{name: value})
