"""How decoders look from outside: documented and typed keywords, one refusal of unknown ones, names that changed."""

from __future__ import annotations

import inspect
import math
import pydoc
from contextlib import nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import torch
from factories import EOS, kept, pack, random_pair
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast, T5ForConditionalGeneration
from typer.testing import CliRunner

import kdtw_fast
from kdtw_fast import (
    AutoDecoder,
    GenerateOptions,
    GreedyDecoder,
    SingleModelDecoder,
    SpeculativeDecoder,
    budgets,
    decoder_options,
    loaders,
    options,
)
from kdtw_fast.cli import app
from kdtw_fast.inputs import source
from kdtw_fast.keywords import entries
from kdtw_fast.modeling import TrainingWheelsT5
from kdtw_fast.pair_folders import load_models

DECODERS = [
    getattr(kdtw_fast, name) for name in kdtw_fast.__all__ if name.endswith("Decoder") and name != "GreedyDecoder"
]


@kept
def natives() -> Any:
    return pack(*random_pair("noisy", seed=2, vocab_size=43), "cpu")


def test_help_lists_every_option_with_its_meaning_and_range() -> None:
    text = pydoc.plain(pydoc.render_doc(SpeculativeDecoder.generate))
    documented = entries(GenerateOptions)
    for field in fields(GenerateOptions):
        assert f"{field.name}: " in text.partition(") ->")[0], field.name  # the signature
        for line in documented[field.name]:
            assert line in text, field.name
    assert "temperature: >= 0; 0 is greedy" in text and "**options" not in text
    for name in ("max_new_tokens", "top_p", "seed", "max_time", "max_teacher_fraction", "teacher_batch"):
        assert any(sign in " ".join(documented[name]) for sign in (" in ", "in [", ">=", "> 0", " to ")), name


@pytest.mark.parametrize("call", ["generate", "__call__", "stream"])
@pytest.mark.parametrize("decoder", DECODERS)
def test_calls_show_the_options_with_their_defaults(decoder: type, call: str) -> None:
    shown = inspect.signature(getattr(decoder, call)).parameters
    for field in fields(GenerateOptions):
        assert shown[field.name].default == field.default
    assert all(parameter.kind is not inspect.Parameter.VAR_KEYWORD for parameter in shown.values())


@pytest.mark.parametrize("decoder", DECODERS)
def test_constructors_show_and_document_what_decoders_share(decoder: type) -> None:
    shown = inspect.signature(decoder).parameters
    shared = decoder_options.DecoderOptions if decoder is SingleModelDecoder else decoder_options.PairOptions
    text = pydoc.plain(pydoc.render_doc(decoder))
    for field in fields(shared):
        assert shown[field.name].default == field.default
        assert entries(shared)[field.name][0] in text
    for name in shown:
        assert f"{name}: " in text or "input_ids, " in text, name


@pytest.mark.parametrize(
    ("keywords", "fields_of"),
    [
        (options.GenerateKeywords, GenerateOptions),
        (decoder_options.DecoderKeywords, decoder_options.DecoderOptions),
        (decoder_options.PairKeywords, decoder_options.PairOptions),
    ],
)
def test_typed_keywords_are_the_fields(keywords: type, fields_of: type) -> None:
    hints = get_type_hints(fields_of)
    assert get_type_hints(keywords) == {field.name: hints[field.name] for field in fields(fields_of)}
    assert not keywords.__required_keys__  # type: ignore[attr-defined]
    assert entries(fields_of).keys() == get_type_hints(keywords).keys()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda d: SpeculativeDecoder(*natives(), draft_lenght=3),
            "SpeculativeDecoder has no parameter 'draft_lenght'; did you mean 'draft_length'?",
        ),
        (lambda d: AutoDecoder(*natives(), num_thread=1), "AutoDecoder has no parameter 'num_thread'; did you mean"),
        (lambda d: SingleModelDecoder(natives()[0], teacher_dtype="int8"), "no parameter 'teacher_dtype'"),
        (lambda d: d.generate([[5, EOS]], max_tokens=3), "SpeculativeDecoder.generate has no option 'max_tokens'"),
        (
            lambda d: d("text", temprature=1.0),
            "SpeculativeDecoder has no option 'temprature'; did you mean 'temperature'",
        ),
        (lambda d: d.stream([], batchsize=3), "SpeculativeDecoder.stream has no option 'batchsize'; did you mean"),
    ],
)
def test_unknown_keywords_are_refused_in_one_way(call: Any, message: str) -> None:
    with pytest.raises(TypeError) as raised:
        call(SpeculativeDecoder(*natives()))
    assert message in str(raised.value)


def test_the_old_name_of_the_single_model_warns() -> None:
    with pytest.warns(DeprecationWarning, match="GreedyDecoder is deprecated; use SingleModelDecoder") as seen:
        old = GreedyDecoder(natives()[1])
    assert seen[0].filename == __file__
    new = SingleModelDecoder(natives()[1], role="student")
    assert isinstance(old, SingleModelDecoder) and old.role == "student"
    ids = [[5, 6, EOS]]
    assert old.generate(ids).owners.tolist() == new.generate(ids).owners.tolist()


def test_a_teacher_alone_says_so() -> None:
    teacher = natives()[1]
    alone, decoder = SingleModelDecoder(teacher), SingleModelDecoder(teacher, role="teacher")
    assert (decoder.teacher, decoder.teachers, decoder.student) == (teacher, (teacher,), None)
    assert (alone.teacher, alone.teachers, alone.student) == (None, (), teacher)
    ids = [[5, 6, EOS], [9, EOS]]
    expected, out = (d.generate(ids, max_new_tokens=9, output_logprobs=True) for d in (alone, decoder))
    assert out.sequences.tolist() == expected.sequences.tolist()
    assert set(out.owners[out.owners > 0].tolist()) == {2} and set(expected.owners[expected.owners > 0].tolist()) == {1}
    assert out.teacher_fraction.tolist() == [1.0, 1.0] and out.teacher_calls.tolist() == out.lengths.tolist()
    assert out.student_logprobs.isnan().all() and not out.teacher_logprobs[out.owners > 0].isnan().any()
    assert out.student_passes == 0 < out.teacher_passes and out.timings.student == 0 < out.timings.teacher
    # It samples as a teacher does: by its own temperature where there is one.
    own = decoder.generate(ids, teacher_temperature=0.8, seed=3)
    assert own.sequences.tolist() == alone.generate(ids, temperature=0.8, seed=3).sequences.tolist()
    with pytest.raises(ValueError, match="role must be 'student' or 'teacher', got 'judge'"):
        SingleModelDecoder(teacher, role="judge")


@pytest.mark.parametrize(
    ("old", "new"),
    [("experts", "teacher_index"), ("expert_calls", "calls_by_teacher"), ("expert_fraction", "fraction_by_teacher")],
)
def test_old_names_of_output_fields_warn(old: str, new: str) -> None:
    out = SpeculativeDecoder(*natives()).generate([[5, 6, EOS]])
    with pytest.warns(DeprecationWarning, match=f"GenerationOutput.{old} is deprecated; use {new}"):
        assert getattr(out, old) is getattr(out, new)


# --- Small promises ------------------------------------------------------------------------------------------


class Reader:
    """A Hugging Face streamer's two methods."""

    def __init__(self) -> None:
        self.ends = 0

    def put(self, tokens: Any) -> None:
        pass

    def end(self) -> None:
        self.ends += 1


@pytest.mark.parametrize("options", [{}, {"top_k": -1}, {"forced_tokens": [EOS]}, {"num_return_sequences": 2}])
@pytest.mark.parametrize("decoder", [SpeculativeDecoder, AutoDecoder])
def test_a_streamer_is_ended_whatever_happens(decoder: type, options: dict[str, Any]) -> None:
    """Otherwise who reads it waits for ever."""
    reader = Reader()
    made = decoder(*natives(), **({"costs": costs()} if decoder is AutoDecoder else {}))
    with pytest.raises(ValueError) if options else nullcontext():
        made.generate([[5, 6, EOS]], streamer=reader, max_new_tokens=4, **options)
    assert reader.ends == 1
    with pytest.raises(ValueError, match="no tokenizer"):
        made("text", streamer=reader)
    assert reader.ends == 2


def costs() -> Any:
    from kdtw_fast.costs import Costs, ModelCosts

    return Costs(*(ModelCosts(0.0, {1: 0.1, 17: 0.2}) for _ in range(2)))


@pytest.mark.parametrize("temperature", [1e-39, 1e-44, 1e-300])
def test_temperatures_whose_inverse_is_infinite_are_greedy(temperature: float) -> None:
    for decoder in (SpeculativeDecoder(*natives()), SingleModelDecoder(natives()[0])):
        ids = [[5, 6, EOS], [9, 30, EOS]]
        greedy, least = (decoder.generate(ids, temperature=t, max_new_tokens=12) for t in (0.0, temperature))
        assert greedy.sequences.tolist() == least.sequences.tolist()


def test_where_pad_is_the_end_a_sources_own_end_stays() -> None:
    model, _ = random_pair("noisy", seed=2, vocab_size=43)
    model.config.pad_token_id = EOS
    decoder = SingleModelDecoder(kdtw_fast.NativeT5.from_model(model))

    def written(ids: Any, mask: Any = None) -> list[list[int]]:
        out = decoder.generate(ids, attention_mask=mask, max_new_tokens=12)
        return [row[: 1 + int(n)] for row, n in zip(out.sequences.tolist(), out.lengths)]

    padded = torch.tensor([[5, 6, EOS, EOS, EOS], [9, 30, 7, 8, EOS]])
    rows = [[5, 6, EOS], [9, 30, 7, 8, EOS]]
    assert written(padded) == written(rows)
    mask = torch.tensor([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1]])  # explicit: it wins
    assert written(padded, mask) == written([rows[0][:2], rows[1]])
    several = SingleModelDecoder(decoder.model, generation_config={"eos_token_id": [EOS, 17]})
    options = decoder._parsed({})
    for ids, left in (
        ([5, 6, 17, EOS, EOS, EOS], [5, 6, 17]),  # its own end stands already: what follows pads
        ([5, 6, EOS, EOS], [5, 6, EOS]),
        ([5, EOS, 6, 17], [5, EOS, 6, 17]),
    ):
        assert source(ids, "row", several.model, options) == left


def test_an_output_without_tokens_has_no_time_per_token() -> None:
    out = SpeculativeDecoder(*natives()).generate([[5, 6, EOS]])
    out.lengths.zero_()
    assert math.isnan(out.ms_per_token)
    late = SpeculativeDecoder(*natives()).generate([[5, 6, EOS], [7, EOS]], max_time=1e-9)
    assert late.lengths.tolist() == [0, 0] and late.finish_reasons == ["time", "time"]
    assert late.teacher_fraction.tolist() == [0, 0] and late.fraction_by_teacher.tolist() == [[0], [0]]


def test_an_output_of_a_stream_says_where_its_times_are() -> None:
    decoder = SpeculativeDecoder(*natives())
    row, wrong = decoder.stream([[5, 6, EOS], []], in_order=True, on_error="return", max_new_tokens=3)
    for out in (row, wrong, decoder.submit([5, 6, EOS], max_new_tokens=3).result(60)):
        with pytest.raises(ValueError, match=r"no timings: .*stream\.timings.*ticket\.started"):
            out.ms_per_token  # noqa: B018
    assert wrong.output_ids == wrong.spans == []


@pytest.mark.parametrize(
    "prompt",
    [
        *("{budget:>3000000000}", "{0}", "{budget} {budget}", "{", "{budget!r}: ", "{percent}", "{x} {budget}: "),
        *("translate: ", ""),
    ],
)
def test_a_prompt_is_a_text_with_one_place(prompt: str, tmp_path: Path) -> None:
    student, teacher = random_pair("noisy", seed=2, vocab_size=43)
    said = r"student_prompt {} hold \"\{{budget\}}\" once and no other braces"
    student.config.student_prompt = prompt
    with pytest.raises(ValueError, match="student: " + said.format("must")):
        kdtw_fast.NativeT5.from_model(student, "student")
    with pytest.raises(ValueError, match=said.format("must")):
        budgets.student_prompt("light", prompt)
    if prompt:  # nothing stands for the model's own
        with pytest.raises(ValueError, match=said.format("must")):
            TrainingWheelsT5.from_t5(teacher, tokenizer_size=40, student_prompt=prompt)
    # A model that asks nobody need have no place for a budget, but nothing else either.
    teacher.config.student_prompt = prompt
    if "{" in prompt:
        with pytest.raises(ValueError, match="model: " + said.format("may")):
            kdtw_fast.NativeT5.from_model(teacher)
    else:
        assert kdtw_fast.NativeT5.from_model(teacher).student_prompt == prompt


def letters(words: str) -> Any:
    """A tokenizer of a few letters, in this order."""
    vocabulary = {word: number for number, word in enumerate(["<pad>", "</s>", "<unk>", *words])}
    made = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    return PreTrainedTokenizerFast(tokenizer_object=made, eos_token="</s>", pad_token="<pad>")


def pair_of_letters(root: Path) -> list[Path]:
    """The folders of a student and a teacher whose tokenizers have the same letters at other ids."""
    for model, name, words in zip(random_pair("noisy", seed=2, vocab_size=43), ("student", "teacher"), ("ab", "ba")):
        model.save_pretrained(root / name)
        letters(words).save_pretrained(root / name)
    return [root / "student", root / "teacher"]


def in_memory(folder: Path) -> Any:
    return T5ForConditionalGeneration.from_pretrained(folder) if folder.name == "teacher" else student_of(folder)


def student_of(folder: Path) -> Any:
    return TrainingWheelsT5.from_pretrained(folder)


WAYS: dict[str, tuple[Any, Any]] = {
    "two native models": (kdtw_fast.NativeT5.from_pretrained, kdtw_fast.NativeT5.from_pretrained),
    "a native model and a folder": (kdtw_fast.NativeT5.from_pretrained, Path),
    "a folder and a native model": (Path, kdtw_fast.NativeT5.from_pretrained),
    "two in memory": (in_memory, in_memory),
    "a native model of one in memory": (lambda folder: kdtw_fast.NativeT5.from_model(in_memory(folder)), in_memory),
}


@pytest.mark.parametrize("way", WAYS)
def test_tokenizers_of_models_whose_folders_are_known_are_compared(way: str, tmp_path: Path) -> None:
    """Where token ids are given, too."""
    folders = pair_of_letters(tmp_path)
    models = [make(folder) for make, folder in zip(WAYS[way], folders)]
    for decoder in (SpeculativeDecoder, AutoDecoder):
        with pytest.raises(
            ValueError, match="token id 3 is 'a' in the student's tokenizer, 'b' in the teacher's; pass"
        ):
            decoder(*models)
        given = decoder(*models, tokenizer=letters("ab"))  # says that only the files differ
        assert len(given.generate([[3, EOS]], max_new_tokens=3).sequences) == 1
    letters("ab").save_pretrained(folders[1])
    assert len(SpeculativeDecoder(*models).generate([[3, EOS]], max_new_tokens=3).sequences) == 1
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folders[1] / name).unlink()
    assert len(SpeculativeDecoder(*models).generate([[3, EOS]], max_new_tokens=3).sequences) == 1


def test_tokenizers_with_the_same_files_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = pair_of_letters(tmp_path)
    letters("ab").save_pretrained(folders[1])
    models = [kdtw_fast.NativeT5.from_pretrained(folder) for folder in folders]
    read: list[Path] = []
    real = loaders.load_tokenizer
    monkeypatch.setattr(loaders, "load_tokenizer", lambda place: read.append(place) or real(place))
    SpeculativeDecoder(*models)
    assert read == []
    settings = folders[1] / "tokenizer_config.json"
    settings.write_text(settings.read_text() + " ")  # says the same
    for _ in range(3):
        SpeculativeDecoder(*models)
    assert read == folders


def test_two_tokenizers_that_differ_are_refused(tmp_path: Path) -> None:
    folders = pair_of_letters(tmp_path)
    made = letters("ba")
    for decoder in (SpeculativeDecoder, AutoDecoder):
        with pytest.raises(ValueError, match="token id 3 is 'a' in the student's tokenizer, 'b' in the teacher's"):
            decoder(*folders)
        assert decoder(*folders, tokenizer=made).tokenizer is made
    assert len(SpeculativeDecoder(folders[0], folders[1], tokenizer=made).generate([[3, EOS]]).sequences) == 1
    # What commands and Ray load is compared too; a folder may be given twice, as may one tokenizer beside both.
    roles, dtypes = ("student", "teacher"), dict.fromkeys(("student", "teacher"), "fp32")
    told = ["--student", str(folders[0]), "--teacher", str(folders[1])]
    for command in (["generate", *told, "a"], ["export", str(tmp_path / "out"), *told]):
        run = CliRunner().invoke(app, command)
        assert run.exit_code == 2 and "3 is 'a' in the student's tokenizer, 'b' in the teacher's" in run.stderr
        assert "pass --tokenizer=… if only the files differ" in run.stderr
    with pytest.raises(ValueError, match="'b' in the teacher 2's; pass tokenizer="):
        load_models(roles, None, folders[0], [folders[0], folders[1]], None, dtypes)
    _, given = load_models(roles, None, folders[0], [folders[1]], folders[1], dtypes)
    assert given.get_vocab()["b"] == 3
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folders[1] / name).unlink()
    assert load_models(roles, None, folders[0], [folders[1]], None, dtypes)[1].get_vocab()["a"] == 3


def test_the_old_name_of_a_students_teachers_warns() -> None:
    _, plain = random_pair("noisy", seed=2, vocab_size=43)
    with pytest.warns(DeprecationWarning, match=r"from_t5\(experts=…\) is deprecated; use teachers=…") as seen:
        student = kdtw_fast.TrainingWheelsT5.from_t5(plain, experts=2)
    assert seen[0].filename == __file__
    assert student.tau_token_ids == kdtw_fast.TrainingWheelsT5.from_t5(plain, teachers=2).tau_token_ids
