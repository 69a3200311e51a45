"""Bad input gets one clear sentence: the exact exception type, and a message with the offending value in it.

Tables of (call, type, parts of the message); afterwards the decoder still decodes.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from factories import EOS, SHAPES, START, chain_student, chain_t5, kept, pack, path_table, random_pair, random_t5
from safetensors.torch import load_file, save_file
from transformers import T5Config

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

VOCAB = 43
STUDENT, TEACHER = random_pair("noisy", seed=2, vocab_size=VOCAB)  # tau = 43, beyond the teacher's rows
SOURCE = [[5, 6, 7, EOS], [8, EOS]]
IDS = torch.tensor([[5, 6, 7, EOS], [8, EOS, START, START]])
MASK = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])

Call = Callable[[], Any]
OnDevice = Callable[[str], Any]  # takes a device


@kept
def natives(device: str) -> tuple[NativeT5, NativeT5]:
    return pack(STUDENT, TEACHER, device)


NATIVE = natives("cpu")


class Tokenizer:
    """Letters to ids 2 ... 27, EOS last."""

    def __call__(self, texts: list[str], **_: Any) -> dict[str, list[list[int]]]:
        return {"input_ids": [[2 + ord(letter) % 26 for letter in text] + [EOS] for text in texts]}

    def batch_decode(self, sequences: Any, **_: Any) -> list[str]:
        return [" ".join(map(str, row)) for row in torch.as_tensor(sequences).tolist()]


def wheels(device: str = "cpu", **options: Any) -> TrainingWheelsDecoder:
    return TrainingWheelsDecoder(*natives(device), **options)


def speculative(device: str = "cpu", **options: Any) -> SpeculativeDecoder:
    return SpeculativeDecoder(*natives(device), **options)


def generate(*arguments: Any, decoder: OnDevice = wheels, **options: Any) -> OnDevice:
    return lambda device: decoder(device).generate(*(arguments or (SOURCE,)), **options)


def text(*arguments: Any, **options: Any) -> OnDevice:
    return lambda device: wheels(device, tokenizer=Tokenizer())(*arguments, **options)


INPUTS: list[tuple[str, OnDevice, type[Exception], list[str]]] = [
    ("empty batch", generate([]), ValueError, ["input_ids", "empty"]),
    ("empty tensor", generate(torch.zeros((0, 4), dtype=torch.long)), ValueError, ["input_ids", "empty"]),
    ("empty row", generate([[5, EOS], []]), ValueError, ["row 1", "empty"]),
    ("row of padding", generate(IDS, torch.tensor([[1, 1, 1, 1], [0, 0, 0, 0]])), ValueError, ["row 1", "empty"]),
    ("only EOS", generate([[5, EOS], [EOS]]), ValueError, ["row 1", "end token", "[1]"]),
    ("id too large", generate([[5, 99, EOS]]), ValueError, ["99", str(VOCAB + 1)]),
    ("negative id", generate([[5, -3, EOS]]), ValueError, ["-3", str(VOCAB + 1)]),
    ("id only the student has", generate([[5, VOCAB, EOS]]), ValueError, [str(VOCAB), "teacher"]),
    (
        "teacher's id",
        generate(SOURCE, teacher_inputs={"input_ids": [[5, EOS], [77, EOS]]}),
        ValueError,
        ["teacher_inputs", "77", str(VOCAB)],
    ),
    ("float ids", generate(torch.tensor([[5.0, 1.0]])), TypeError, ["input_ids", "float32"]),
    ("float in a list", generate([[5, 1.5]]), TypeError, ["input_ids", "1.5"]),
    ("string ids", generate("Hallo"), TypeError, ["input_ids", "str"]),
    ("no batch axis", generate(torch.tensor([5, EOS])), ValueError, ["[rows, length]", "[2]"]),
    ("flat list", generate([5, EOS]), TypeError, ["[rows, length]", "5"]),
    ("three axes", generate(torch.ones((1, 2, 3), dtype=torch.long)), ValueError, ["[1, 2, 3]"]),
    ("device", generate(torch.ones((1, 2), dtype=torch.long, device="meta")), ValueError, ["'meta'", "'cpu'"]),
    ("None", generate(None), TypeError, ["input_ids", "NoneType"]),
    ("truth values", generate([[True, 5]]), TypeError, ["input_ids row 0", "True", "bool"]),
    ("a tensor of them", generate(IDS.bool()), TypeError, ["input_ids", "bool"]),
    ("mask shape", generate(IDS, MASK[:, :3]), ValueError, ["attention_mask", "[2, 3]", "[2, 4]"]),
    ("mask rows", generate(IDS, MASK[:1]), ValueError, ["attention_mask", "[1, 4]", "[2, 4]"]),
    ("mask values", generate(IDS, MASK * 2), ValueError, ["attention_mask", "row 0", "2"]),
    ("mask with a hole", generate(IDS, torch.tensor([[1, 0, 1, 1]] * 2)), ValueError, ["row 0", "[1, 0, 1, 1]"]),
    ("long source", generate([[5] * 513]), ValueError, ["513", "512", "truncation"]),
    ("own source limit", generate([[5, 6, 7]], max_source_length=2), ValueError, ["3 tokens", "max_source_length=2"]),
    ("teacher rows", generate(SOURCE, teacher_inputs={"input_ids": [[5]]}), ValueError, ["1 rows", "2"]),
    ("teacher inputs", generate(SOURCE, teacher_inputs=[[5]]), TypeError, ["teacher_inputs", "input_ids"]),
    (
        "teacher inputs for one model",
        generate(
            SOURCE, decoder=lambda device: SingleModelDecoder(natives(device)[0]), teacher_inputs={"input_ids": SOURCE}
        ),
        TypeError,
        ["teacher_inputs", "SingleModelDecoder"],
    ),
    ("empty text", text("", budget="light"), ValueError, ["text 0", "empty"]),
    ("blank text", text(["a", " \n"], budget="light"), ValueError, ["text 1", r"' \n'"]),
    ("no texts", text([], budget="light"), ValueError, ["empty"]),
    ("number for a text", text(["a", 3], budget="light"), TypeError, ["text 1", "3"]),
    ("no budget", text("a"), ValueError, ["budget"]),
    ("unknown budget", text("a", budget="ligth"), ValueError, ["'ligth'", '"light"']),
    ("budget that is none of the six", text("a", budget=0.15), ValueError, ["0.15", "0.1", "0.2"]),
    ("budget of a row that is a list", text("a", budget=[[0.1]]), TypeError, ["budget of text 0", "[0.1]"]),
    ("budgets for other rows", text(["a", "b"], budget=["no"] * 3), ValueError, ["3 values", "2 texts"]),
    ("budget of a second teacher", text("a", budget={1: "no", 2: "light"}), ValueError, ["1 teacher", "'light'"]),
    ("budget of no teacher", text("a", budget={0: "no"}), ValueError, ["budget", "from 1 on", "{0: 'no'}"]),
    ("text without tokenizer", lambda device: wheels(device)("a", budget="light"), ValueError, ["tokenizer"]),
]

OPTIONS: list[tuple[dict[str, Any], type[Exception], list[str]]] = [
    ({"max_new_tokens": 0}, ValueError, ["max_new_tokens", "0"]),
    ({"max_new_tokens": -5}, ValueError, ["max_new_tokens", "-5"]),
    ({"max_new_tokens": 2**21}, ValueError, ["max_new_tokens", "2097152"]),
    ({"max_new_tokens": 2.5}, TypeError, ["max_new_tokens", "2.5"]),
    ({"max_new_tokens": "8"}, TypeError, ["max_new_tokens", "'8'"]),
    ({"max_new_tokens": True}, TypeError, ["max_new_tokens", "True"]),
    ({"max_new_tokens": None}, TypeError, ["max_new_tokens", "None"]),
    ({"min_new_tokens": -1}, ValueError, ["min_new_tokens", "-1"]),
    ({"min_new_tokens": 9, "max_new_tokens": 8}, ValueError, ["min_new_tokens", "9", "8"]),
    ({"temperature": -0.5}, ValueError, ["temperature", "-0.5"]),
    ({"temperature": math.inf}, ValueError, ["temperature", "inf"]),
    ({"temperature": math.nan}, ValueError, ["temperature", "nan"]),
    ({"temperature": "hot"}, TypeError, ["temperature", "'hot'"]),
    ({"temperature": None}, TypeError, ["temperature", "None"]),
    ({"teacher_temperature": -1}, ValueError, ["teacher_temperature", "-1"]),
    ({"top_k": -1}, ValueError, ["top_k", "-1"]),
    ({"top_k": 2.0}, TypeError, ["top_k", "2.0"]),
    ({"teacher_top_k": -2}, ValueError, ["teacher_top_k", "-2"]),
    ({"top_p": 0.0}, ValueError, ["top_p", "0.0"]),
    ({"top_p": 1.01}, ValueError, ["top_p", "1.01"]),
    ({"teacher_top_p": -0.1}, ValueError, ["teacher_top_p", "-0.1"]),
    ({"seed": -1}, ValueError, ["seed", "-1"]),
    ({"seed": 2**64}, ValueError, ["seed", str(2**64)]),
    ({"seed": 0.5}, TypeError, ["seed", "0.5"]),
    ({"row_ids": [1]}, ValueError, ["row_ids", "1", "2"]),
    ({"row_ids": [1, -1]}, ValueError, ["row_ids", "-1"]),
    ({"row_ids": [1, "a"]}, TypeError, ["row_ids", "'a'"]),
    ({"row_ids": [1, 2], "num_return_sequences": 2}, ValueError, ["row_ids", "2", "4"]),
    ({"num_return_sequences": 0}, ValueError, ["num_return_sequences", "0"]),
    ({"forced_tokens": [VOCAB + 1]}, ValueError, ["forced_tokens", str(VOCAB + 1)]),
    ({"forced_tokens": [VOCAB]}, ValueError, ["forced_tokens", str(VOCAB)]),  # tau; the teacher has no such row
    ({"forced_tokens": [-1]}, ValueError, ["forced_tokens", "-1"]),
    ({"forced_tokens": [5, EOS]}, ValueError, ["forced_tokens", "end token 1"]),
    ({"forced_tokens": [2.5]}, TypeError, ["forced_tokens", "2.5"]),
    ({"forced_tokens": None}, TypeError, ["forced_tokens must be a list", "None"]),
    ({"forced_tokens": 5}, TypeError, ["forced_tokens", "5"]),
    ({"forced_tokens": [5, 6], "max_new_tokens": 2}, ValueError, ["forced_tokens", "2"]),
    ({"max_teacher_fraction": 1.5}, ValueError, ["max_teacher_fraction", "1.5"]),
    ({"max_teacher_fraction": -0.1}, ValueError, ["max_teacher_fraction", "-0.1"]),
    ({"max_teacher_fraction": math.nan}, ValueError, ["max_teacher_fraction", "nan"]),
    ({"max_teacher_fraction": "light"}, TypeError, ["max_teacher_fraction", "'light'"]),
    ({"max_teacher_fraction": [0.1]}, ValueError, ["max_teacher_fraction", "1", "2"]),
    ({"max_teacher_fraction": [0.1, 7]}, ValueError, ["max_teacher_fraction", "7"]),
    ({"max_teacher_calls": -1}, ValueError, ["max_teacher_calls", "-1"]),
    ({"max_teacher_calls": 1.5}, TypeError, ["max_teacher_calls", "1.5"]),
    ({"max_time": 0}, ValueError, ["max_time", "0"]),
    ({"max_time": -1.0}, ValueError, ["max_time", "-1.0"]),
    ({"num_threads": 0}, ValueError, ["num_threads", "0"]),
    ({"max_source_length": 0}, ValueError, ["max_source_length", "0"]),
    ({"streamer": 3}, TypeError, ["streamer", "int"]),
    ({"output_logprobs": "yes"}, TypeError, ["output_logprobs", "'yes'"]),
    ({"truncation": 1}, TypeError, ["truncation", "1"]),
    ({"max_new_token": 5}, TypeError, ["'max_new_token'", "'max_new_tokens'"]),
    ({"max_teacher_fractions": 0.1}, TypeError, ["'max_teacher_fractions'", "'max_teacher_fraction'"]),
    ({"temprature": 1.0}, TypeError, ["'temprature'", "'temperature'"]),
    ({"num_beams": 4}, TypeError, ["'num_beams'"]),
]


def config_with(model: Any, **changes: Any) -> Any:
    changed = copy.deepcopy(model)
    for name, value in changes.items():
        setattr(changed.config, name, value)
    return changed


CONSTRUCTION: list[tuple[str, Call, type[Exception], list[str]]] = [
    ("lenience", lambda: speculative(lenience=1.2), ValueError, ["lenience", "1.2"]),
    ("negative lenience", lambda: speculative(lenience=-0.1), ValueError, ["lenience", "-0.1"]),
    ("lenience nan", lambda: speculative(lenience=math.nan), ValueError, ["lenience", "nan"]),
    ("lenience type", lambda: speculative(lenience="1"), TypeError, ["lenience", "'1'"]),
    ("draft length", lambda: speculative(draft_length=0), ValueError, ["draft_length", "0"]),
    ("negative draft length", lambda: speculative(draft_length=-2), ValueError, ["draft_length", "-2"]),
    ("draft length type", lambda: speculative(draft_length=2.0), TypeError, ["draft_length", "2.0"]),
    ("verify", lambda: wheels(verify_lenience=2), ValueError, ["verify_lenience", "2"]),
    ("random above 1", lambda: RandomCallDecoder(*NATIVE, threshold=1.1), ValueError, ["threshold", "[0, 1]", "1.1"]),
    ("random nan", lambda: RandomCallDecoder(*NATIVE, threshold=math.nan), ValueError, ["threshold", "nan"]),
    ("entropy below 0", lambda: EntropyCallDecoder(*NATIVE, threshold=-0.1), ValueError, ["threshold", "[0, inf)"]),
    ("entropy type", lambda: EntropyCallDecoder(*NATIVE, threshold="2"), TypeError, ["threshold", "'2'"]),
    ("control, no tau", lambda: RandomCallDecoder(TEACHER, TEACHER), ValueError, ["<tau>", "from_model"]),
    ("control, two", lambda: EntropyCallDecoder(STUDENT, [TEACHER] * 2), ValueError, ["1 teacher", "2 were given"]),
    ("threads", lambda: wheels(num_threads=0), ValueError, ["num_threads", "0"]),
    ("threads type", lambda: wheels(num_threads=1.5), TypeError, ["num_threads", "1.5"]),
    ("fallback", lambda: BigLittleDecoder(*NATIVE, fallback_threshold=1.1), ValueError, ["fallback_threshold", "1.1"]),
    ("rollback", lambda: BigLittleDecoder(*NATIVE, rollback_threshold=-1), ValueError, ["rollback_threshold", "-1"]),
    ("longest", lambda: BigLittleDecoder(*NATIVE, max_draft_length=0), ValueError, ["max_draft_length", "0"]),
    ("top k", lambda: InterleavedDecoder(*NATIVE, accept_top_k=0), ValueError, ["accept_top_k", "0"]),
    ("SKD draft", lambda: InterleavedDecoder(*NATIVE, draft_length=0), ValueError, ["draft_length", "0"]),
    ("keyword", lambda: speculative(draft_lenght=3), TypeError, ["'draft_lenght'", "'draft_length'"]),
    ("keyword of another", lambda: wheels(lenience=0.5), TypeError, ["'lenience'", "'verify_lenience'"]),
    ("no tau", lambda: TrainingWheelsDecoder(TEACHER, TEACHER), ValueError, ["<tau>", "from_model"]),
    ("not a model", lambda: SingleModelDecoder(torch.nn.Linear(2, 2)), TypeError, ["Linear"]),
    ("number for a model", lambda: SingleModelDecoder(3), TypeError, ["int"]),
    ("no folder", lambda: SingleModelDecoder("/nowhere/at/all"), FileNotFoundError, ["/nowhere/at/all"]),
    (
        "vocabulary",
        lambda: SpeculativeDecoder(random_t5(SHAPES[0], VOCAB + 7, 1), TEACHER),
        ValueError,
        ["vocabulary", str(VOCAB + 7), str(VOCAB)],
    ),
    ("pad", lambda: SpeculativeDecoder(STUDENT, config_with(TEACHER, pad_token_id=3)), ValueError, ["pad", "0", "3"]),
    ("eos", lambda: SpeculativeDecoder(STUDENT, config_with(TEACHER, eos_token_id=2)), ValueError, ["eos", "1", "2"]),
    (
        "start",
        lambda: SpeculativeDecoder(STUDENT, config_with(TEACHER, decoder_start_token_id=4)),
        ValueError,
        ["start", "0", "4"],
    ),
    ("tau", lambda: NativeT5.from_model(config_with(STUDENT, tau_token_id=90)), ValueError, ["tau_token_id=90", "44"]),
    ("eos out of range", lambda: NativeT5.from_model(config_with(TEACHER, eos_token_id=77)), ValueError, ["77", "43"]),
    (
        "activation",
        lambda: NativeT5.from_model(config_with(TEACHER, feed_forward_proj="gated-tanh")),
        ValueError,
        ["'gated-tanh'", "'gated-gelu'"],
    ),
    ("dtype", lambda: NativeT5.from_model(TEACHER, dtype="int4"), ValueError, ["'int4'", "'int8'"]),
    ("dtype of torch", lambda: SingleModelDecoder(TEACHER, dtype=torch.bfloat16), TypeError, ["bfloat16", "'bf16'"]),
    ("teacher's dtype", lambda: SpeculativeDecoder(STUDENT, TEACHER, teacher_dtype="fp8"), ValueError, ["'fp8'"]),
    ("cache dtype", lambda: NativeT5.from_model(TEACHER, cache_dtype="int8"), ValueError, ["cache_dtype", "'bf16'"]),
    ("packed otherwise", lambda: SingleModelDecoder(NATIVE[1], dtype="int8"), ValueError, ["model", "fp32", "'int8'"]),
]


def assert_raises(call: Call, expected: type[Exception], parts: list[str]) -> None:
    with pytest.raises(expected) as caught:
        call()
    assert type(caught.value) is expected
    message = str(caught.value)
    assert "\n" not in message and 10 < len(message) < 400, message
    for part in parts:
        assert part in message, f"{part!r} is not in {message!r}"


@pytest.mark.parametrize(("call", "expected", "parts"), [case[1:] for case in INPUTS], ids=[case[0] for case in INPUTS])
def test_inputs(call: OnDevice, expected: type[Exception], parts: list[str], device: str) -> None:
    assert_raises(lambda: call(device), expected, parts)


@pytest.mark.parametrize(("options", "expected", "parts"), OPTIONS, ids=[str(case[0]) for case in OPTIONS])
def test_options(options: dict[str, Any], expected: type[Exception], parts: list[str], device: str) -> None:
    assert_raises(lambda: generate(SOURCE, **options)(device), expected, parts)


@pytest.mark.parametrize(
    ("call", "expected", "parts"), [case[1:] for case in CONSTRUCTION], ids=[case[0] for case in CONSTRUCTION]
)
def test_construction(call: Call, expected: type[Exception], parts: list[str]) -> None:
    assert_raises(call, expected, parts)


def test_teacher_limits_belong_to_training_wheels(device: str) -> None:
    for name, value in (("max_teacher_fraction", 0.1), ("max_teacher_calls", 3)):
        call = generate(SOURCE, decoder=speculative, **{name: value})
        assert_raises(lambda call=call: call(device), TypeError, [name, "SpeculativeDecoder"])


def test_put_and_end_streamers_take_one_row(device: str) -> None:
    class Streamer:
        def put(self, value: Any) -> None: ...

        def end(self) -> None: ...

    assert_raises(lambda: generate(SOURCE, streamer=Streamer())(device), ValueError, ["one row", "2"])


def test_a_decoder_survives_every_bad_call(device: str) -> None:
    decoder = wheels(device)
    expected = decoder.generate(SOURCE, max_new_tokens=6).sequences.tolist()
    for options, expected_type, _ in OPTIONS:
        with pytest.raises(expected_type):
            decoder.generate(SOURCE, **options)
    assert decoder.generate(SOURCE, max_new_tokens=6).sequences.tolist() == expected


def test_truncation_is_explicit_and_keeps_the_end_token(device: str) -> None:
    decoder = SingleModelDecoder(natives(device)[1])
    long = [[*range(2, 12), EOS]]
    cut = decoder.generate(long, truncation=True, max_source_length=5, max_new_tokens=6)
    assert cut.sequences.tolist() == decoder.generate([[2, 3, 4, 5, EOS]], max_new_tokens=6).sequences.tolist()


# --- Weights that are not numbers ----------------------------------------------------------------------


@pytest.mark.parametrize("broken", ["student", "teacher"])
@pytest.mark.parametrize(
    ("token", "place"),
    [
        (3, ["row 0", "step 2"]),  # an output of every row, read as the input of step 2
        (9, ["row 1", "step 0"]),  # only in row 1's source
    ],
)
def test_nan_names_model_row_and_step(broken: str, token: int, place: list[str], device: str) -> None:
    table = path_table([2, 3, 4, 5, EOS], 16)
    models = {"student": chain_student(table, 15), "teacher": chain_t5(table)}
    with torch.no_grad():
        models[broken].shared.weight[token] = math.nan
    # Training Wheels never calls this teacher; speculation does.
    decoder = (TrainingWheelsDecoder if broken == "student" else SpeculativeDecoder)(*models.values(), device=device)
    assert_raises(lambda: decoder.generate([[6, EOS], [9, EOS]]), FloatingPointError, [broken, *place])
    assert decoder.generate([[6, EOS]], max_new_tokens=1).sequences.tolist() == [[START, 2]]


def test_infinity_in_the_head(device: str) -> None:
    teacher = copy.deepcopy(TEACHER)
    with torch.no_grad():
        teacher.lm_head.weight[7, 0] = math.inf
    alone, drafted = SingleModelDecoder(teacher, device=device), SpeculativeDecoder(STUDENT, teacher, device=device)
    for decoder, told in ((alone, []), (drafted, ["teacher"])):
        assert_raises(
            lambda d=decoder: d.generate(SOURCE, max_new_tokens=3), FloatingPointError, [*told, "row 0", "step 0"]
        )


# --- Folders ---------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    random_t5(SHAPES[2], VOCAB, seed=4).save_pretrained(tmp_path / "little")
    return tmp_path / "little"


def edit_tensors(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **changes: Any) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= changes
    (folder / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "gone"}))


def test_folder_equals_model_in_memory(folder: Path, device: str) -> None:
    model = random_t5(SHAPES[2], VOCAB, seed=4)
    tokens = [START, 5, 9, 30]
    loaded, packed = NativeT5.from_pretrained(folder, device=device), NativeT5.from_model(model, device=device)
    assert np.array_equal(loaded.decode_logits([4, EOS], tokens), packed.decode_logits([4, EOS], tokens))


@pytest.mark.parametrize("shape", [SHAPES[1], SHAPES[3]])
def test_shards_equal_one_file(shape: Any, tmp_path: Path, device: str) -> None:
    model = random_t5(shape, VOCAB, seed=6)
    model.save_pretrained(tmp_path / "one")
    model.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    assert len(list((tmp_path / "many").glob("*.safetensors"))) > 1
    tokens = [START, 5, 9, 30]
    expected = NativeT5.from_model(model, device=device).decode_logits([4, EOS], tokens)
    for name in ("one", "many"):
        loaded = NativeT5.from_pretrained(tmp_path / name, device=device)
        assert np.array_equal(loaded.decode_logits([4, EOS], tokens), expected)
    next((tmp_path / "many").glob("model-00001*")).unlink()
    assert_raises(lambda: NativeT5.from_pretrained(tmp_path / "many"), FileNotFoundError, ["model-00001", "many"])


QUERY = "decoder.block.0.layer.1.EncDecAttention.q.weight"
NORM = "encoder.final_layer_norm.weight"
BIAS = "decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"

TENSORS: list[tuple[str, Callable[[dict[str, torch.Tensor]], Any], list[str]]] = [
    ("missing matrix", lambda t: t.pop(QUERY), [QUERY, "missing"]),
    ("missing norm", lambda t: t.pop(NORM), [NORM, "missing"]),
    ("missing bias", lambda t: t.pop(BIAS), [BIAS, "missing"]),
    ("missing embedding", lambda t: t.pop("shared.weight"), ["shared.weight", "missing"]),
    ("extra", lambda t: t.update({"adapter.weight": torch.ones(2, 2)}), ["adapter.weight"]),
    (
        "extra layer",
        lambda t: t.update({QUERY.replace("block.0", "block.7"): torch.ones(2, 2)}),
        [QUERY.replace("block.0", "block.7")],
    ),
    ("transposed", lambda t: t.update({QUERY: t[QUERY].T.contiguous()}), [QUERY, "[33, 21]", "[21, 33]"]),
    ("short norm", lambda t: t.update({NORM: t[NORM][:-1].clone()}), [NORM, "[32]", "[33]"]),
    ("flat", lambda t: t.update({QUERY: t[QUERY].flatten()}), [QUERY, "[693]", "[21, 33]"]),
    ("integers", lambda t: t.update({QUERY: t[QUERY].int()}), [QUERY, "int32"]),
]


@pytest.mark.parametrize(("change", "parts"), [case[1:] for case in TENSORS], ids=[case[0] for case in TENSORS])
def test_tensors_are_checked_by_name(folder: Path, change: Callable[[Any], Any], parts: list[str]) -> None:
    edit_tensors(folder, change)
    assert_raises(lambda: NativeT5.from_pretrained(folder), ValueError, ["little", *parts])


CONFIG: list[tuple[dict[str, Any], list[str]]] = [
    ({"num_layers": 1}, ["encoder.block.1"]),  # the weights have two
    ({"num_layers": 3}, ["encoder.block.2", "missing"]),
    ({"d_model": 34}, ["[43, 33]", "[43, 34]"]),
    ({"d_kv": 8}, ["[21, 33]", "[24, 33]"]),
    ({"num_heads": 4}, ["[21, 33]", "[28, 33]"]),
    ({"d_ff": 64}, ["[65, 33]", "[64, 33]"]),
    ({"vocab_size": 44}, ["shared.weight", "[43, 33]", "[44, 33]"]),
    ({"relative_attention_num_buckets": 6}, ["relative_attention_bias", "[8, 3]", "[6, 3]"]),
    ({"feed_forward_proj": "relu"}, ["relu"]),
    ({"feed_forward_proj": "gated-tanh", "dense_act_fn": "tanh"}, ["'gated-tanh'", "'relu'", "'gated-gelu'"]),
    ({"dense_act_fn": "silu"}, ["dense_act_fn", "'silu'"]),
    ({"is_gated_act": False}, ["is_gated_act", "False"]),
    ({"model_type": "bort"}, ["'bort'", "'bart'"]),
    ({"rope_theta": 10000.0}, ["'rope_theta'", "10000.0"]),
    ({"d_model": "wide"}, ["d_model", "'wide'"]),
    ({"d_model": 0}, ["d_model", "0"]),
    ({"num_heads": -1}, ["num_heads", "-1"]),
    ({"num_heads": 2**30, "d_kv": 4}, ["heads and head_size", f"{2**30} and 4"]),
    ({"num_heads": 2**31}, ["num_heads", str(2**31)]),
    ({"d_model": 10**30}, ["d_model", str(10**30)]),
    ({"vocab_size": 2**31 - 1}, ["shared.weight", str(2**31 - 1)]),
    ({"num_layers": 10**9}, ["num_layers", str(10**9)]),
    ({"num_decoder_layers": 10**9}, ["num_decoder_layers", str(10**9)]),
    ({"relative_attention_max_distance": 10**9}, ["relative_attention_max_distance", str(10**9)]),
    ({"relative_attention_num_buckets": 2**30}, ["relative_attention_num_buckets", str(2**30)]),
    ({"d_ff": True}, ["d_ff", "True"]),
    ({"d_ff": 65.0}, ["d_ff", "65.0"]),
    ({"layer_norm_epsilon": True}, ["layer_norm_epsilon", "True"]),
    ({"layer_norm_epsilon": math.inf}, ["layer_norm_epsilon", "inf"]),
    ({"layer_norm_epsilon": math.nan}, ["layer_norm_epsilon", "nan"]),
    ({"layer_norm_epsilon": "1e-6"}, ["layer_norm_epsilon", "'1e-6'"]),
    ({"tie_word_embeddings": "false"}, ["tie_word_embeddings", "'false'"]),
    ({"scale_decoder_outputs": "no"}, ["scale_decoder_outputs", "'no'"]),
    ({"feed_forward_proj": ["relu"]}, ["feed_forward_proj", "['relu']"]),
    ({"eos_token_id": "1"}, ["eos_token_id", "'1'"]),
    ({"model_type": ["t5"]}, ["model_type", "['t5']"]),
    ({"eos_token_id": []}, ["eos_token_id"]),
    ({"eos_token_id": [1, True]}, ["eos_token_id", "True"]),
    ({"pad_token_id": 0.5}, ["pad_token_id", "0.5"]),
    ({"decoder_start_token_id": [0]}, ["decoder_start_token_id", "[0]"]),
    ({"teacher_prompt": 3}, ["teacher_prompt", "3"]),
    ({"layer_norm_epsilon": -1.0}, ["layer_norm_epsilon", "-1"]),
    ({"relative_attention_max_distance": 2}, ["relative_attention_max_distance", "2"]),
    ({"d_ff": "gone"}, ["d_ff", "missing"]),
    ({"eos_token_id": 43}, ["eos_token_id", "43"]),
    ({"pad_token_id": 100}, ["pad_token_id", "100"]),
    ({"tau_token_id": 40}, ["tau_token_id=40", "teacher_token_embedding"]),
]


def test_an_end_token_that_a_config_leaves_out_is_what_transformers_says(folder: Path) -> None:
    edit_config(folder, eos_token_id="gone")
    assert NativeT5.from_pretrained(folder).eos_token_ids == [T5Config().eos_token_id]


@pytest.mark.parametrize(("changes", "parts"), CONFIG, ids=[str(case[0]) for case in CONFIG])
def test_config_that_contradicts_the_weights(folder: Path, changes: dict[str, Any], parts: list[str]) -> None:
    edit_config(folder, **changes)
    (folder / "generation_config.json").unlink()  # which has tokens, too
    assert_raises(lambda: NativeT5.from_pretrained(folder), ValueError, ["little", *parts])


def test_broken_files(folder: Path) -> None:
    weights, config = folder / "model.safetensors", folder / "config.json"
    whole, text = weights.read_bytes(), config.read_text()
    for broken in (whole[: len(whole) // 2], whole[:5], b"", b"\xff" * 64, whole[:8] + b"x" + whole[9:]):
        weights.write_bytes(broken)
        assert_raises(lambda: NativeT5.from_pretrained(folder), ValueError, ["little", "model.safetensors"])
    weights.write_bytes(whole)
    for broken_text in (text[:-20], "", "[1, 2]"):
        config.write_text(broken_text)
        assert_raises(lambda: NativeT5.from_pretrained(folder), ValueError, ["little", "config.json"])
    config.unlink()
    assert_raises(lambda: NativeT5.from_pretrained(folder), FileNotFoundError, ["little", "config.json"])
    config.write_text(text)
    weights.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    assert_raises(lambda: NativeT5.from_pretrained(folder), FileNotFoundError, ["little", "model.safetensors"])


def test_a_model_without_values() -> None:
    with torch.device("meta"):
        empty = type(TEACHER)(TEACHER.config)
    assert_raises(lambda: NativeT5.from_model(empty), ValueError, ["meta"])


@pytest.mark.parametrize(
    ("arguments", "options", "parts"),
    [
        (([], [0]), {}, ["input_ids", "0"]),
        (([5], []), {}, ["decoder_input_ids", "0"]),
        (([5], [0, 99]), {}, ["99", "43"]),
        (([5], [0, 2]), {"chunks": [1]}, ["chunks", "2", "[1]"]),
        (([5], [0, 2]), {"chunks": [2, 0]}, ["chunks", "[2, 0]"]),
        (([5], [0, 2]), {"from_teacher": [True]}, ["from_teacher", "1", "2"]),
        (([5], [0, 2]), {"num_threads": 0}, ["num_threads", "0"]),
    ],
)
def test_decode_logits(arguments: Any, options: dict[str, Any], parts: list[str], device: str) -> None:
    assert_raises(lambda: natives(device)[1].decode_logits(*arguments, **options), ValueError, parts)
