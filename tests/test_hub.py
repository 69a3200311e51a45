"""kdtw_fast under transformers' generate, and folders for the hub."""

from __future__ import annotations

import multiprocessing
import weakref
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from test_api import in_memory, letters, pair_of_letters
from test_families import V, random_model
from test_streaming import PutStreamer
from typer.testing import CliRunner

from kdtw_fast import NativeModel, hub, load_pair
from kdtw_fast.cli import app
from kdtw_fast.hub import FOLDER, _packed, _sums_of, generate
from kdtw_fast.pairs import load_samples, pair_folder

NATIVE = {"custom_generate": FOLDER, "trust_remote_code": True}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers copies the code that it runs; not into the user's cache."""
    import transformers.dynamic_module_utils as dynamic

    monkeypatch.setattr(dynamic, "HF_MODULES_CACHE", str(tmp_path_factory.mktemp("modules")))


SETTINGS: list[dict[str, Any]] = [
    {},
    {"max_new_tokens": 12},
    {"max_length": 15},
    {"max_new_tokens": 9, "min_new_tokens": 5, "no_repeat_ngram_size": 2},
    {"max_new_tokens": 8, "repetition_penalty": 1.5, "suppress_tokens": [5, 6], "bad_words_ids": [[7], [8, 9]]},
]


@pytest.mark.parametrize("kind", ["t5", "bart", "llama"])
@pytest.mark.parametrize("assisted", [False, True])
def test_greedy_tokens_are_those_of_generate(kind: str, assisted: bool) -> None:
    model, student = random_model(kind, 3), random_model(kind, 4)
    pad = model.config.pad_token_id or 0
    ids = torch.tensor([[5, 9, 7, 11], [pad, pad, 8, 4]] if kind == "llama" else [[5, 9, 7, 11], [8, 4, pad, pad]])
    mask = (ids != pad).long()
    for settings in SETTINGS:
        theirs = model.generate(ids, attention_mask=mask, do_sample=False, pad_token_id=pad, **settings)
        told = settings | NATIVE | ({"assistant_model": student} if assisted else {})
        mine = model.generate(ids, attention_mask=mask, do_sample=False, pad_token_id=pad, **told)
        assert mine.dtype == theirs.dtype and mine.tolist() == theirs.tolist(), settings


def test_an_assistant_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    """Where the folders that both came from have tokenizers."""
    student, teacher = map(in_memory, pair_of_letters(tmp_path))
    options: dict[str, Any] = {"max_new_tokens": 3, "assistant_model": student, **NATIVE}
    ids = torch.tensor([[3, 1]])
    with pytest.raises(ValueError, match="token id 3 is 'a' in the student's tokenizer, 'b' in the teacher's; pass"):
        teacher.generate(ids, **options)
    assert teacher.generate(ids, tokenizer=letters("ab"), **options).shape[0] == 1


def test_the_shipped_pair_decodes_as_generate_does() -> None:
    pair = load_pair()
    prompt = pair.teacher.config.teacher_prompt
    texts = [prompt + sample.source for sample in load_samples(pair.name, 3)]
    inputs = pair.tokenizer(texts, return_tensors="pt", padding=True)
    theirs = pair.teacher.generate(**inputs, do_sample=False, max_new_tokens=40)
    mine = pair.teacher.generate(**inputs, do_sample=False, max_new_tokens=40, assistant_model=pair.student, **NATIVE)
    assert mine.tolist() == theirs.tolist()
    out = pair.teacher.generate(
        **inputs, max_new_tokens=9, assistant_model=pair.student, return_dict_in_generate=True, **NATIVE
    )
    assert out.sequences.shape[0] == 3 and out.owners is not None


def test_a_prefix_samples_and_weights_that_change() -> None:
    model = random_model("t5", 5)
    ids, start = torch.tensor([[5, 9, 7]]), model.config.decoder_start_token_id
    prefix = torch.tensor([[start, 11, 12]])
    for settings in ({"max_new_tokens": 6}, {"max_length": 9}, {}):
        told = settings | {"do_sample": False, "decoder_input_ids": prefix}
        assert model.generate(ids, **told, **NATIVE).tolist() == model.generate(ids, **told).tolist(), settings
    draws = {"do_sample": True, "max_new_tokens": 8, "num_return_sequences": 3}
    torch.manual_seed(1)
    first = model.generate(ids, **draws, **NATIVE)
    torch.manual_seed(1)
    again = model.generate(ids, **draws, **NATIVE)
    other = model.generate(ids, **draws, **NATIVE)
    assert first.shape[0] == 3 and first.tolist() == again.tolist() != other.tolist()
    kept: NativeModel = _packed[model][1]
    model.generate(ids, max_new_tokens=3, **NATIVE)
    assert _packed[model][1] is kept
    with torch.no_grad():
        model.shared.weight.mul_(-1.5)
    changed = model.generate(ids, do_sample=False, max_new_tokens=8, **NATIVE)
    assert changed.tolist() == model.generate(ids, do_sample=False, max_new_tokens=8).tolist()
    place, version = model.shared.weight.data_ptr(), model.shared.weight._version
    model.shared.weight.data.mul_(-0.5)  # which changes neither
    assert (place, version) == (model.shared.weight.data_ptr(), model.shared.weight._version)
    again = model.generate(ids, do_sample=False, max_new_tokens=8, **NATIVE)
    assert again.tolist() == model.generate(ids, do_sample=False, max_new_tokens=8).tolist()
    assert _packed[model][1] is not kept
    kept = _packed[model][1]
    model.shared.weight.data.copy_(model.shared.weight.data.flip(0))  # the same values in other places
    model.generate(ids, max_new_tokens=3, **NATIVE)
    assert _packed[model][1] is not kept


def test_sums_tell_what_has_changed_places() -> None:
    for shape in ((), (0,), (7, 13), (300, 8), (64, 64)):
        values = torch.randn(shape).to(torch.bfloat16)
        place = torch.cat([values.new_zeros(1), values.flatten()])[1:].view(shape)  # where no integer begins
        assert all(torch.equal(a, b) for a, b in zip(_sums_of(values), _sums_of(place), strict=True)), shape
        for axis in range(values.ndim if values.numel() else 0):
            sums = zip(_sums_of(values), _sums_of(values.flip(axis)), strict=True)
            assert any(not torch.equal(a, b) for a, b in sums), (shape, axis)


@pytest.mark.parametrize("assisted", [False, True])
def test_special_tokens_are_those_of_the_call_and_of_the_model_as_it_is_now(assisted: bool) -> None:
    from transformers import GenerationConfig

    model, student = random_model("mbart", 3), random_model("mbart", 4)
    for one in (model, student):
        one.generation_config.forced_eos_token_id = None
    ids = torch.tensor([[5, 9, 7, 11], [8, 4, 6, 2]])
    native = NATIVE | ({"assistant_model": student} if assisted else {})

    def both(**told: Any) -> list[list[int]]:
        told |= {"do_sample": False, "attention_mask": torch.ones_like(ids)}
        theirs = model.generate(ids, max_new_tokens=9, **told).tolist()
        assert model.generate(ids, max_new_tokens=9, **told, **native).tolist() == theirs, told
        return theirs

    plain = both()
    end = plain[0][4]
    assert both(eos_token_id=[2, end]) != plain
    assert both(forced_bos_token_id=33)[0][1] == 33
    assert both(generation_config=GenerationConfig(forced_bos_token_id=35, eos_token_id=end))[1][1] == 35
    start = torch.tensor([[model.config.decoder_start_token_id]] * 2)
    assert both(forced_bos_token_id=33, decoder_input_ids=start)[0][1] == 33
    assert both(decoder_start_token_id=6, pad_token_id=4)[0][0] == 6
    assert both() == plain  # what one call says is its own
    model.generation_config.forced_bos_token_id = 37
    model.generation_config.eos_token_id = [2, end]
    assert both()[0][1] == 37
    assert both(forced_bos_token_id=33)[0][1] == 33
    model.generation_config.forced_bos_token_id = None
    model.generation_config.eos_token_id = 2
    assert both() == plain


@pytest.mark.parametrize(
    ("given", "error", "said"),
    [
        ({"num_beams": 3}, ValueError, "beam search is in transformers"),
        ({"logits_processor": [lambda ids, scores: scores]}, ValueError, "logits_processor has no place"),
        ({"output_scores": True, "return_dict_in_generate": True}, ValueError, "scores of all tokens are not kept"),
        ({"max_tokens": 3}, TypeError, "no argument 'max_tokens'"),
        ({"assistant_model": "student"}, TypeError, "student must be a transformers model, got str"),
        ({"input_ids": torch.tensor([[V]]), "inputs": None}, ValueError, f"token id {V}"),
    ],
)
def test_what_is_not_done_is_said(given: dict[str, Any], error: type[Exception], said: str) -> None:
    model = random_model("t5", 5)
    with pytest.raises(error, match=said):
        model.generate(**({"inputs": torch.tensor([[5, 9, 7]])} | given), **NATIVE)


@pytest.mark.parametrize(
    "given",
    [
        *({"num_beams": 4}, {"foo": 1}, {"typical_p": 0.5}, {"output_scores": True}, {"max_new_tokens": 3}),
        *({"logits_processor": [lambda ids, scores: scores]}, {"assistant_model": "student"}, {"max_new_tokens": "x"}),
    ],
)
def test_a_streamer_is_ended_once_whatever_is_asked(given: dict[str, Any]) -> None:
    streamer = PutStreamer()
    with nullcontext() if given == {"max_new_tokens": 3} else pytest.raises((TypeError, ValueError)):
        generate(random_model("t5", 5), torch.tensor([[5, 9, 7]]), streamer=streamer, **given)
    assert streamer.ended == 1


def test_who_asks_for_a_format_gets_it_while_others_ask_for_another(monkeypatch: pytest.MonkeyPatch) -> None:
    class Racing(weakref.WeakKeyDictionary[Any, Any]):
        def __setitem__(self, model: Any, value: Any) -> None:
            super().__setitem__(model, value)
            super().__setitem__(model, ("of another thread", other))  # which comes at once

    model = random_model("t5", 5)
    other = NativeModel.from_model(model, dtype="bf16")
    monkeypatch.setattr(hub, "_packed", Racing())
    assert hub._native(model, "model", "fp32").dtype == "fp32"


def test_a_fork_while_another_thread_packs_does_not_hang() -> None:
    model, ids = random_model("t5", 5), torch.tensor([[5, 9, 7]])
    with hub._packing:
        child = multiprocessing.get_context("fork").Process(target=generate, args=(model, ids))
        child.start()
    child.join(60)
    child.kill()
    assert child.exitcode == 0


def test_an_exported_folder_is_ready_for_the_hub(tmp_path: Path) -> None:
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    from kdtw_fast import TrainingWheelsT5

    out = tmp_path / "pair"
    run = CliRunner().invoke(app, ["export", str(out), "--name", "me/pair"])
    assert run.exit_code == 0, run.output
    assert {path.name for path in out.iterdir()} >= {"student", "teacher", "tokenizer", "custom_generate", "README.md"}
    card = (out / "README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: kdtw_fast\n") and "custom_generate" in card and "me/pair" in card
    teacher = AutoModelForSeq2SeqLM.from_pretrained(out, subfolder="teacher", dtype=torch.float32)
    student = TrainingWheelsT5.from_pretrained(out, subfolder="student", dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(out / "tokenizer")
    inputs = words([teacher.config.teacher_prompt + "Ein Spiel."], return_tensors="pt")
    told = {"do_sample": False, "max_new_tokens": 20}
    mine = teacher.generate(**inputs, assistant_model=student, custom_generate=str(out), trust_remote_code=True, **told)
    assert mine.tolist() == teacher.generate(**inputs, **told).tolist()
    again = CliRunner().invoke(app, ["export", str(out)])
    assert again.exit_code == 2 and "is not empty" in again.output
    folders = ["--student", str(out / "student"), "--teacher", str(out / "teacher")]
    second = CliRunner().invoke(app, ["export", str(tmp_path / "own"), *folders])
    assert second.exit_code == 0, second.output
    for role in ("student", "teacher"):
        names = [path.name for path in (tmp_path / "own" / role).iterdir()]
        assert "model.safetensors" in names and "config.json" in names


def test_pickled_weights_are_not_exported(tmp_path: Path) -> None:
    bad = tmp_path / "model"
    bad.mkdir()
    (bad / "config.json").write_text("{}")
    (bad / "pytorch_model.bin").write_bytes(b"")
    args = ["export", str(tmp_path / "out"), "--student", str(bad), "--teacher", str(pair_folder() / "teacher")]
    run = CliRunner().invoke(app, args)
    assert run.exit_code == 2 and "safetensors" in run.output
    assert not (tmp_path / "out").exists()
