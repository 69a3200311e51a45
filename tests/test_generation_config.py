"""What a checkpoint says of generating is obeyed as transformers obeys it, or refused by the field's name."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import random_pair
from test_cli import TinyPair, kdtw, pair  # noqa: F401
from test_families import V, random_model
from test_token_rules import as_transformers, random_rules
from transformers import AutoModelForSeq2SeqLM, GenerationConfig

from kdtw_fast import (
    AutoDecoder,
    NativeModel,
    SingleModelDecoder,
    SpeculativeDecoder,
    TrainingWheels,
    TrainingWheelsDecoder,
)
from kdtw_fast.generation import _OTHERS, _SAME, _WITHOUT_EFFECT, generation_fields

KINDS = ["t5", "bart", "llama"]


def told(model: Any, **fields: Any) -> Any:
    """The model with such a generation config, as a published one has it."""
    own = {name: getattr(model.generation_config, name) for name in ("eos_token_id", "pad_token_id", "bos_token_id")}
    start = {"decoder_start_token_id": model.config.decoder_start_token_id} if model.config.is_encoder_decoder else {}
    model.generation_config = GenerationConfig(**(own | start | fields))
    return model


def theirs(model: Any, source: list[int]) -> list[int]:
    """What transformers' generate writes when it is told nothing."""
    mask = torch.ones(1, len(source), dtype=torch.long)
    sequence = model.generate(torch.tensor([source]), attention_mask=mask)[0].tolist()
    return sequence[1 if model.config.is_encoder_decoder else len(source) :]


@pytest.mark.parametrize("where", ["memory", "folder"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_call_that_says_nothing_is_that_of_transformers(kind: str, where: str, tmp_path: Path) -> None:
    same = changed = 0
    for seed in range(10):
        rng = np.random.default_rng([KINDS.index(kind), seed])
        fields = as_transformers(random_rules(rng, V, 2 if kind == "bart" else 1, 12, 8))
        if "sequence_bias" in fields:  # as files have it
            fields["sequence_bias"] = [[list(ids), bias] for ids, bias in fields["sequence_bias"].items()]
        counted = {"max_length": 17, "min_length": 10} if kind == "llama" else {"max_length": 11, "min_length": 5}
        lengths = [{"max_new_tokens": 12, "min_new_tokens": 3}, counted]
        ends = {"eos_token_id": [2 if kind == "bart" else 1, *rng.integers(5, V, size=6).tolist()]}
        fields |= lengths[seed % len(lengths)] | (ends if seed % 3 == 0 else {})
        model = told(random_model(kind, seed), **fields)
        if where == "folder":
            model.save_pretrained(tmp_path / str(seed))
        decoder = SingleModelDecoder(model if where == "memory" else tmp_path / str(seed))
        source = rng.integers(3, V, size=6).tolist()
        mine = decoder.generate([source]).output_ids[0]
        same += mine == theirs(model, source)
        plain = (
            SingleModelDecoder(decoder.model, generation_config="ignore")
            .generate([source], max_new_tokens=20)
            .output_ids[0]
        )
        changed += mine != plain
        assert next(iter(decoder.stream([source], max_source_length=16))).output_ids[0] == mine
    assert same >= 9  # but for a near tie
    assert changed >= 7


def test_keywords_come_before_it_and_defaults_behind() -> None:
    model = told(random_model("t5", 1), max_new_tokens=9, min_new_tokens=7, suppress_tokens=[5, 6])
    decoder = SingleModelDecoder(model)
    assert decoder.defaults == {"max_new_tokens": 9, "min_new_tokens": 7, "suppress_tokens": [5, 6]}
    row = [[9, 8, 7, 1]]
    assert 7 <= decoder.generate(row).lengths[0] <= 9
    assert decoder.generate(row, max_new_tokens=4, logit_bias={30: 99.0}).output_ids == [[30] * 4]  # its minimum yields
    assert decoder.generate(row, max_new_tokens=4, logit_bias={5: 99.0}).output_ids != [[5] * 4]
    assert decoder.generate(row, max_new_tokens=4, logit_bias={5: 99.0}, suppress_tokens=()).output_ids == [[5] * 4]
    with pytest.raises(ValueError, match=r"min_new_tokens must be in 0..9, got 12"):
        decoder.generate(row, min_new_tokens=12)


def test_it_samples_where_it_says_so() -> None:
    row = [[9, 8, 7, 1]]
    model = random_model("t5", 2)
    sampled = {"do_sample": True, "temperature": 0.7, "top_k": 9, "top_p": 0.8}
    says = SingleModelDecoder(told(model, **sampled))
    explicit = SingleModelDecoder(model, generation_config="ignore")
    warp = {"temperature": 0.7, "top_k": 9, "top_p": 0.8}
    assert says.defaults == warp
    assert says.generate(row, seed=3).output_ids == explicit.generate(row, seed=3, **warp).output_ids
    assert says.generate(row, temperature=0.0).output_ids == explicit.generate(row).output_ids
    assert SingleModelDecoder(told(model, do_sample=True)).defaults == {"temperature": 1.0, "top_k": 50}
    # Warps that it names hold where a call samples, but do not make it sample.
    assert SingleModelDecoder(told(model, top_p=0.8)).defaults == {"top_p": 0.8}


REFUSED = {
    "num_beams": 4,
    "penalty_alpha": 0.6,
    "typical_p": 0.9,
    "min_p": 0.1,
    "epsilon_cutoff": 3e-4,
    "eta_cutoff": 3e-4,
    "exponential_decay_length_penalty": [5, 1.1],
    "encoder_repetition_penalty": 1.2,
    "encoder_no_repeat_ngram_size": 3,
    "guidance_scale": 1.5,
    "top_h": 0.4,
    "num_return_sequences": 3,
    "dola_layers": "low",
    "token_healing": True,
    "watermarking_config": {"bias": 2.0},
    "diversity_penalty": 0.5,
    "num_beam_groups": 2,
    "force_words_ids": [[5]],
}


@pytest.mark.parametrize("field", REFUSED)
def test_what_the_core_does_not_do_is_refused_by_name(field: str, tmp_path: Path) -> None:
    model = random_model("t5", 0)
    model.save_pretrained(tmp_path)
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: REFUSED[field]}))
    native = NativeModel.from_pretrained(tmp_path, "student")
    with pytest.raises(ValueError) as raised:
        SingleModelDecoder(native)
    said = str(raised.value)
    assert said.startswith(f"student: its generation_config says {field}={REFUSED[field]!r}, ")
    assert "generation_config='ignore'" in said and "\n" not in said
    if "beam" in field:
        assert "transformers' generate of the same model" in said
    row = [[5, 6, 1]]
    plain = SingleModelDecoder(native, generation_config="ignore").generate(row).output_ids
    instead = eval(said[said.rindex("{") :])
    assert set(instead) == {field}
    assert SingleModelDecoder(native, generation_config=instead).generate(row).output_ids == plain
    assert SingleModelDecoder(native, generation_config={field: None}).generate(row).output_ids == plain


def test_every_field_of_transformers_is_obeyed_without_effect_or_refused() -> None:
    known = set(_SAME) | set(_OTHERS) | set(_WITHOUT_EFFECT)
    assert known <= generation_fields() | {"_from_model_config", "transformers_version"}
    assert set(REFUSED) <= generation_fields()
    assert generation_fields() - known - set(REFUSED) == {"constraints"}


def test_lengths_that_count_a_prompt_are_each_rows_own() -> None:
    rng = np.random.default_rng(3)
    sources = [rng.integers(3, V, size=length).tolist() for length in (3, 14, 8, 1, 17)]
    fields: dict[str, Any] = {"max_length": 18, "min_length": 16, "eos_token_id": [1, *range(5, 15)]}
    model = told(random_model("llama", 4), **fields)
    decoder = SingleModelDecoder(model)
    assert decoder.defaults == {"max_length": 18, "min_length": 16}
    alone = [theirs(model, source) for source in sources]
    assert len({len(row) for row in alone}) > 3
    assert decoder.generate(sources).output_ids == alone
    assert decoder.generate(sources, num_return_sequences=2).output_ids == [row for row in alone for _ in range(2)]
    assert decoder.generate(sources, forced_tokens=[[]] * 5).output_ids == alone
    streamed = decoder.stream(sources, batch_size=2, max_source_length=20, in_order=True)
    assert [out.output_ids[0] for out in streamed] == alone
    assert [decoder.submit(source).result().output_ids[0] for source in sources] == alone

    async def handed_in() -> dict[int, list[int]]:
        return {out.index: out.output_ids[0] async for out in decoder.astream(sources, max_source_length=20)}

    assert asyncio.run(handed_in()) == dict(enumerate(alone))
    student = random_model("llama", 5)
    assert SpeculativeDecoder(told(student, **fields), model).generate(sources).output_ids == alone
    with pytest.raises(ValueError, match="max_length is 19 by the student's generation_config, 18 by the teacher's"):
        SpeculativeDecoder(told(student, **(fields | {"max_length": 19})), model)


def test_keywords_and_items_come_before_lengths_that_count_a_prompt() -> None:
    model = told(random_model("llama", 4), max_length=18, min_length=12)
    decoder = SingleModelDecoder(model)
    plain = SingleModelDecoder(model, generation_config="ignore")
    source = [5, 6, 7, 8, 9, 10]

    def both(**call: Any) -> tuple[list[int], list[int]]:
        mask = torch.ones(1, len(source), dtype=torch.long)
        whole = model.generate(torch.tensor([source]), attention_mask=mask, **call)[0].tolist()
        return decoder.generate([source], **call).output_ids[0], whole[len(source) :]

    end = {1: 99.0}
    assert decoder.generate([source], logit_bias=end).lengths.tolist() == [7]  # min_length: six, and the end
    assert decoder.generate([source], logit_bias=end, min_new_tokens=0).lengths.tolist() == [1]
    assert decoder.generate([source], logit_bias=end, max_new_tokens=3).lengths.tolist() == [3]
    for call in ({"max_new_tokens": 20}, {"max_new_tokens": 2}, {"min_new_tokens": 9}, {}):
        mine, whole = both(**call)
        assert mine == whole
    items = [{"input_ids": source}, {"input_ids": source, "max_new_tokens": 5}]
    items += [{"input_ids": source, "min_new_tokens": 0, "logit_bias": end}]
    outs = list(decoder.stream(items, in_order=True))
    assert outs[0].output_ids[0] == decoder.generate([source]).output_ids[0]
    assert outs[1].lengths.tolist() == [5]
    assert outs[2].output_ids == [[1]]
    long = list(range(3, 21))
    with pytest.raises(ValueError) as raised:
        decoder.generate([source, long])
    assert str(raised.value) == (
        "row 1 has a prompt of 18 tokens, which max_length=18 of the checkpoint's generation_config counts; shorten "
        "it, or pass max_new_tokens"
    )
    with pytest.raises(ValueError, match=r"Input length of input_ids is 18, but `max_length` is set to 18"):
        theirs(model, long)
    assert decoder.generate([long], max_new_tokens=4).output_ids == plain.generate([long], max_new_tokens=4).output_ids
    with pytest.raises(ValueError, match=r"row 0 has a prompt of 6 tokens.* and min_new_tokens=13 are wanted; shorten"):
        decoder.generate([source], min_new_tokens=13)
    with pytest.raises(ValueError, match=r"^item 0 has a prompt of 18 tokens"):
        next(decoder.stream([long]))
    with pytest.raises(ValueError, match=r"^the input has a prompt of 18 tokens"):
        decoder.submit(long)
    with pytest.raises(ValueError, match=r"max_length must be in 1\.\."):
        SingleModelDecoder(model, generation_config={"max_length": -3}).generate([source])


@pytest.mark.parametrize(("kind", "fields"), [("t5", {"min_length": 8}), ("llama", {"min_new_tokens": 7})])
def test_an_item_that_wants_less_than_a_checkpoints_minimum_gets_it(kind: str, fields: dict[str, Any]) -> None:
    decoder = SingleModelDecoder(told(random_model(kind, 4), max_new_tokens=12, **fields))
    source, end = [5, 6, 7, 1], {"logit_bias": {1: 99.0}}
    items = [{"input_ids": source} | own for own in ({}, {"max_new_tokens": 3}, {"min_new_tokens": 2})]
    assert [int(out.lengths[0]) for out in decoder.stream(items, in_order=True, **end)] == [8, 3, 3]
    assert [int(decoder.submit(item, **end).result(60).lengths[0]) for item in items] == [8, 3, 3]
    both = {"input_ids": source, "max_new_tokens": 3, "min_new_tokens": 5}  # an item's own is no checkpoint's
    for call in (lambda: decoder.submit(both), lambda: decoder.submit(items[1], min_new_tokens=5)):
        with pytest.raises(ValueError, match=r"min_new_tokens must be in 0\.\.3, got 5"):
            call()


def test_a_checkpoints_minimum_gives_way_to_its_whole_length() -> None:
    model = told(random_model("llama", 4), max_length=9, min_new_tokens=5)
    decoder = SingleModelDecoder(model)
    for source in ([5, 6, 7], [5, 6, 7, 8, 9, 10]):
        assert decoder.generate([source]).output_ids == [theirs(model, source)]


@pytest.mark.parametrize(
    ("value", "error", "said"),
    [
        (
            "ignored",
            TypeError,
            "generation_config must be 'ignore', a dict of fields to override or None, got 'ignored'",
        ),
        (3, TypeError, "must be 'ignore'"),
        ({"num_beam": 1}, ValueError, "unknown field 'num_beam'; did you mean 'num_beams'?"),
    ],
)
def test_wrong_values_of_the_option(value: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=None) as raised:
        SingleModelDecoder(random_model("t5", 0), generation_config=value)
    assert said in str(raised.value)


def test_a_wrong_value_in_a_file_names_the_option() -> None:
    model = random_model("t5", 0)
    model.generation_config.no_repeat_ngram_size = -3
    with pytest.raises(ValueError, match=r"no_repeat_ngram_size must be in 0\.\."):
        SingleModelDecoder(model).generate([[5, 1]])


WRONG: list[tuple[str, Any]] = [
    *(("suppress_tokens", value) for value in (5, ["a"], [V])),
    *(("max_length", value) for value in ("20", -3, 2**21, [20])),
    *(("min_length", value) for value in (2**21, "7")),
    *(("sequence_bias", value) for value in ([5], [[["a"], 1.0]], [[[5], "x"]], "x", [[[V], 1.0]])),
    *(("forced_eos_token_id", value) for value in ("x", [1, 2], 5)),
    *(("bad_words_ids", value) for value in ([5], 5, [[]])),
    *(("do_sample", value) for value in ("no", 1)),
    *(("max_new_tokens", 0), ("stop_strings", 3), ("top_k", "9"), ("temperature", []), ("max_time", True)),
]


@pytest.mark.parametrize("kind", ["t5", "llama"])
@pytest.mark.parametrize(("field", "value"), WRONG, ids=str)
def test_a_wrong_value_in_a_file_is_a_sentence_that_says_how_to_ignore_it(
    field: str, value: Any, kind: str, tmp_path: Path
) -> None:
    random_model(kind, 0).save_pretrained(tmp_path)
    path = tmp_path / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ValueError) as raised:
        SingleModelDecoder(tmp_path)
    said = str(raised.value)
    assert said.startswith(f"model: its generation_config says {field}={value!r}, but ") and "\n" not in said
    assert "pass generation_config='ignore'" in said and repr(field) in said
    for instead in ("ignore", {field: None}):
        assert SingleModelDecoder(tmp_path, generation_config=instead).generate([[5, 1]], max_new_tokens=2).output_ids


# --- Pairs --------------------------------------------------------------------------------------------------


def test_a_pair_has_one_set_of_rules() -> None:
    student, teacher = random_model("t5", 1), random_model("t5", 2)
    told(student, no_repeat_ngram_size=2, repetition_penalty=1.0)
    told(teacher)
    with pytest.raises(ValueError) as raised:
        SpeculativeDecoder(student, teacher)
    assert str(raised.value).startswith(
        "student and teacher must share how they generate: no_repeat_ngram_size is 2 by the student's "
        "generation_config, 0 by the teacher's; pass generation_config='ignore'"
    )
    told(teacher, no_repeat_ngram_size=2)
    both = SpeculativeDecoder(student, teacher)
    row = [[9, 8, 7, 1]]
    assert both.defaults["no_repeat_ngram_size"] == 2
    alone = SingleModelDecoder(teacher).generate(row).output_ids
    assert both.generate(row).output_ids == alone
    assert AutoDecoder(student, teacher, method="greedy-teacher").generate(row).output_ids == alone
    told(teacher, no_repeat_ngram_size=3)
    for override in ({"no_repeat_ngram_size": 0}, "ignore"):
        pair_of = SpeculativeDecoder(student, teacher, generation_config=override)
        plain = SingleModelDecoder(teacher, generation_config="ignore").generate(row).output_ids
        assert pair_of.generate(row).output_ids == plain


def test_training_wheels_obey_it() -> None:
    student, teacher = random_pair("noisy", 1)
    # <tau> is suppressed for transformers' generate; a decoder that asks by it goes on to.
    told(student, suppress_tokens=[student.config.tau_token_id, *range(5, 30)], max_new_tokens=15)
    told(teacher, suppress_tokens=list(range(5, 30)), max_new_tokens=15)
    decoder = TrainingWheelsDecoder(student, teacher)
    asked = decoder.generate([[5, 6, 1]], logit_bias={student.config.tau_token_id: 99.0})
    assert asked.teacher_fraction.tolist() == [1.0]
    for row in decoder.generate([[5, 6, 1], [9, 1]], temperature=1.0).output_ids:
        assert len(row) <= 15 and not set(row) & set(range(5, 30))


# --- Tokens -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["memory", "folder"])
def test_ends_that_differ_from_the_configs_are_the_generation_configs(where: str, tmp_path: Path) -> None:
    model = told(random_model("llama", 3), eos_token_id=[1, 17, 23], pad_token_id=23)
    model.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["eos_token_id"] == 1
    native = NativeModel.from_pretrained(tmp_path) if where == "folder" else NativeModel.from_model(model)
    assert (native.eos_token_ids, native.pad_token_id) == ([1, 17, 23], 23)
    out = SingleModelDecoder(native).generate([[5, 6]], logit_bias={17: 99.0})
    assert out.output_ids == [[17]] and out.finish_reasons == ["end"]


def test_old_configs_hold_it_themselves(tmp_path: Path) -> None:
    random_model("bart", 0).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"no_repeat_ngram_size": 3, "max_length": 21, "forced_eos_token_id": 2}))
    assert SingleModelDecoder(tmp_path).defaults == {
        "no_repeat_ngram_size": 3,
        "max_new_tokens": 20,
        "forced_eos_token_id": 2,
    }
    path.write_text(json.dumps(config | {"num_beams": 4}))
    with pytest.raises(ValueError, match="num_beams=4"):
        SingleModelDecoder(tmp_path)


@pytest.mark.parametrize("kind", ["bart", "mbart"])
def test_the_first_token_that_an_old_config_forces_is_written(kind: str, tmp_path: Path) -> None:
    random_model(kind, 4).save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    path = tmp_path / "config.json"
    old = json.loads(path.read_text()) | {"force_bos_token_to_be_generated": True, "bos_token_id": 33}
    path.write_text(json.dumps(old))
    decoder = SingleModelDecoder(tmp_path)
    model = AutoModelForSeq2SeqLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    row = [5, 6, 7, 2]
    mask = torch.ones(1, len(row), dtype=torch.long)
    whole = model.generate(torch.tensor([row]), attention_mask=mask, max_new_tokens=6, do_sample=False)[0].tolist()
    assert decoder.generate([row], max_new_tokens=6).sequences[0].tolist() == whole and whole[1] == 33
    for change, said in (
        ({"force_bos_token_to_be_generated": "yes"}, "must be true or false, got 'yes'"),
        ({"bos_token_id": None}, "is true, but bos_token_id is missing"),
    ):
        path.write_text(json.dumps(old | change))
        with pytest.raises(ValueError, match=f"model: config field force_bos_token_to_be_generated {said}"):
            SingleModelDecoder(tmp_path)


@pytest.mark.parametrize("kind", ["t5", "mbart"])
def test_special_tokens_that_a_user_says_are_obeyed(kind: str) -> None:
    model, row = random_model(kind, 3), [[9, 8, 7]]
    native = NativeModel.from_model(model)
    before = dict(vars(native))
    own: dict[str, Any] = {"forced_bos_token_id": 33, "eos_token_id": [21, 22], "pad_token_id": 4}
    told_so = SingleModelDecoder(native, generation_config=own | {"decoder_start_token_id": 6})
    both = random_model(kind, 3)
    told(both, **own)
    both.generation_config.decoder_start_token_id = 6
    expected = SingleModelDecoder(both, generation_config="ignore").generate(row, max_new_tokens=20)
    found = told_so.generate(row, max_new_tokens=20)
    assert found.sequences.tolist() == expected.sequences.tolist() and found.sequences[0, :2].tolist() == [6, 33]
    assert told_so.generate(row, max_new_tokens=20, logit_bias={22: 99.0}).output_ids == [[33, 22]]
    # A view of the same weights: the model itself is as it was, for other decoders.
    assert vars(native) == before and told_so.model.core is native.core
    assert SingleModelDecoder(native, generation_config={"top_k": 3}).model is native
    assert told_so.model.with_tokens({"forced_bos_token_id": None}).first_tokens == []
    assert told_so.model.with_tokens({"pad_token_id": None}).pad_token_id == 0
    for field, value, said in (
        ("eos_token_id", None, "generation_config's eos_token_id is missing; a decode would have no end token"),
        ("eos_token_id", V, f"generation_config's eos_token_id={V} is outside the vocabulary of {V}"),
        ("forced_bos_token_id", "de", f"generation_config's forced_bos_token_id='de' is outside the vocabulary of {V}"),
    ):
        with pytest.raises(ValueError) as raised:
            SingleModelDecoder(native, generation_config={field: value})
        assert str(raised.value) == f"model: {said}"


def test_a_pair_shares_what_its_outputs_begin_with() -> None:
    student, teacher = random_model("mbart", 3), random_model("mbart", 4)
    student.generation_config.forced_bos_token_id, teacher.generation_config.forced_bos_token_id = 17, 33
    for model in (student, teacher):
        model.generation_config.forced_eos_token_id = None
    for kind in (SpeculativeDecoder, AutoDecoder):
        with pytest.raises(ValueError) as raised:
            kind(student, teacher)
        assert str(raised.value) == (
            "student and teacher must share first_tokens (forced_bos_token_id): the student has [17], the teacher "
            "[33]; pass generation_config with what holds for both, {'forced_bos_token_id': …}"
        )
    row, own = [[9, 8, 7]], {"forced_bos_token_id": 33}
    lossless = SpeculativeDecoder(student, teacher, generation_config=own).generate(row, max_new_tokens=9)
    alone = SingleModelDecoder(teacher).generate(row, max_new_tokens=9)
    assert lossless.output_ids == alone.output_ids and alone.output_ids[0][0] == 33
    auto = AutoDecoder(student, teacher, method="greedy-teacher", generation_config=own)
    assert auto.generate(row, max_new_tokens=9).output_ids == alone.output_ids
    wheels = TrainingWheels.from_model(random_model("t5", 1))  # whose <tau> is no row of its teacher's
    auto = AutoDecoder(wheels, random_model("t5", 2), method="greedy-teacher", generation_config=own)
    assert wheels.config.tau_token_id == V and auto.generate(row, max_new_tokens=3).output_ids[0][0] == 33
    ends = told(random_model("llama", 1), eos_token_id=[1, 7]), random_model("llama", 2)
    with pytest.raises(ValueError, match=r"share eos_token_ids: the student has \[1, 7\], the teacher \[1\]; pass gen"):
        SpeculativeDecoder(*ends)
    assert SpeculativeDecoder(*ends, generation_config={"eos_token_id": [1, 7]}).teachers[0].eos_token_ids == [1, 7]


# --- Calls and the command line -------------------------------------------------------------------------------


def test_names_of_transformers_say_what_to_do_instead() -> None:
    decoder = SingleModelDecoder(random_model("t5", 0))
    for name, said in {"num_beams": "beam search is in transformers' generate", "do_sample": "temperature"}.items():
        with pytest.raises(TypeError, match=f"SingleModelDecoder.generate has no option {name!r}: .*{said}"):
            decoder.generate([[5, 1]], **{name: 4})


def test_the_command_obeys_and_refuses(kdtw: Any, pair: TinyPair, tmp_path: Path) -> None:  # noqa: F811
    def run(*arguments: str) -> Any:
        return kdtw("generate", "--method", "greedy-teacher", *pair.folders, *arguments, "--jsonl", "paket")

    file = pair.folder / "teacher/generation_config.json"
    was = file.read_text()
    try:
        file.write_text(json.dumps(json.loads(was) | {"max_new_tokens": 3, "min_new_tokens": 3}))
        assert len(json.loads(run().stdout)["tokens"]) == 3
        assert len(json.loads(run("--max-new-tokens", "2").stdout)["tokens"]) <= 2
        long = run("--generation-config", "ignore", "--min-new-tokens", "100")
        assert len(json.loads(long.stdout)["tokens"]) >= 100
        short = run("--generation-config", '{"max_new_tokens": 2, "min_new_tokens": null}')
        assert len(json.loads(short.stdout)["tokens"]) <= 2
        for wrong in ("[1]", "{"):
            assert "--generation-config is neither ignore nor a JSON object" in run("--generation-config", wrong).stderr
        file.write_text(json.dumps(json.loads(was) | {"num_beams": 4}))
        result = run()
        assert result.exit_code == 2
        assert "says num_beams=4" in result.stderr and "pass --generation-config='ignore'" in result.stderr
    finally:
        file.write_text(was)


@pytest.fixture
def beams(pair: TinyPair, tmp_path: Path) -> dict[str, Path]:  # noqa: F811
    """The pair as folders whose generation configs say beams."""
    folders = {name: tmp_path / name for name in ("student", "teacher", "tokenizer")}
    for name, folder in folders.items():
        shutil.copytree(pair.folder / name, folder)
        if name != "tokenizer":
            file = folder / "generation_config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | {"num_beams": 4}))
    return folders


def test_the_service_takes_what_its_error_asks_for(beams: Any, kdtw: Any, monkeypatch: Any) -> None:  # noqa: F811
    served: list[Any] = []
    monkeypatch.setattr("kdtw_fast.serve.run.run", lambda service, *rest: served.append(service.served))
    command = ["serve", "--port", "0", "--student", beams["student"], "--teacher", beams["teacher"], "--threads", 1]
    refused = kdtw(*command)
    assert refused.exit_code == 2 and "says num_beams=4" in refused.stderr and not served
    assert "pass --generation-config='ignore' for none of it" in refused.stderr
    for told in ("ignore", '{"num_beams": 1}'):
        run = kdtw(*command, "--generation-config", told)
        assert run.exit_code == 0, run.stderr
    assert [set(one.decoders) >= {"training-wheels", "greedy-teacher"} for one in served] == [True, True]
    for one in served:
        one.worker.close()


def test_an_export_is_of_any_generation_config(beams: Any, kdtw: Any, tmp_path: Path) -> None:  # noqa: F811
    run = kdtw("export", tmp_path / "out", "--student", beams["student"], "--teacher", beams["teacher"])
    assert run.exit_code == 0, run.stderr
    assert json.loads((tmp_path / "out/teacher/generation_config.json").read_text())["num_beams"] == 4


def test_stages_of_ray_take_it(beams: Any) -> None:
    pytest.importorskip("ray.data", reason="ray[data] is not installed (the extra 'ray')")
    from kdtw_fast.ray import Decode

    folders = {name: str(folder) for name, folder in beams.items()}
    with pytest.raises(ValueError, match="says num_beams=4"):
        Decode(**folders)
    assert Decode(**folders, generation_config="ignore").decoder.defaults == {}
