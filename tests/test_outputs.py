"""What people see of an output: its owners by name, its rows in a terminal and a notebook; and what can be saved."""

from __future__ import annotations

import copy
import io
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from factories import EOS, kept, pack, random_pair

from kdtw_fast import (
    AutoDecoder,
    GenerationOutput,
    NativeModel,
    Owner,
    SingleModelDecoder,
    SpeculativeDecoder,
    TrainingWheelsDecoder,
    load_pair,
)
from kdtw_fast.pairs import pair_folder

GERMAN = "Sie stellt Funktionen für alle wichtigen Operationen auf diesen Strukturen bereit."


@kept
def shipped() -> Any:
    pair = load_pair()
    return TrainingWheelsDecoder(pair.student, pair.teacher)


@kept
def natives() -> Any:
    return pack(*random_pair("noisy", seed=2, vocab_size=43), "cpu")


def test_owners_print_as_names_and_are_a_tensor_otherwise() -> None:
    out = shipped()([GERMAN, "Ein Spiel"], budget="light")
    text = str(out.owners)
    assert text == repr(out.owners) and text.splitlines()[0] == f"Owners, 2 rows of {out.owners.shape[1]}:"
    assert re.fullmatch(r"  -, student × \d+, teacher, student × \d+", text.splitlines()[1])
    assert repr(out.owners[1]).startswith("Owners(-, student × ") and f"{out.owners[1]}" == repr(out.owners[1])
    plain = torch.tensor(out.owners.tolist(), dtype=torch.uint8)
    assert (
        torch.equal(out.owners, plain)
        and out.owners.numpy().dtype == "uint8"
        and repr(out.owners[0, 0]) == "tensor(0, dtype=torch.uint8)"
    )
    for made in (out.owners == Owner.TEACHER, out.owners.clone(), out.owners + 1, torch.cat([out.owners, out.owners])):
        assert type(made) is torch.Tensor
    saved = io.BytesIO()
    torch.save(out.owners, saved)
    saved.seek(0)
    for made in (
        pickle.loads(pickle.dumps(out.owners)),
        torch.load(saved, weights_only=True),
        copy.deepcopy(out.owners),
    ):
        assert torch.equal(made, plain)
    assert "student" in repr(out) and len(str(shipped()(["Ein Spiel"] * 20, budget="no").owners).splitlines()) == 10


def test_show_prints_rows_with_their_owners(capsys: pytest.CaptureFixture[str]) -> None:
    shipped()([GERMAN, "Ein Spiel"], budget="light").show()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith(
        "  8 % used               It provides functions for all major [operations] on this structures."
    )
    assert len(lines) == 3 and "[teacher]" in lines[2]
    for out in shipped().stream(["", GERMAN], budget="no"):
        out.show()
    assert "sentials on this structures." in capsys.readouterr().out


def test_show_without_a_tokenizer_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    out = SpeculativeDecoder(*natives()).generate([[5, 6, EOS]])
    assert out._repr_html_() is None
    with pytest.raises(ValueError, match=r"no tokenizer: .* show\(tokenizer=…\)"):
        out.show()
    out = shipped()(GERMAN, budget="light")
    loaded = pickle.loads(pickle.dumps(out))
    assert type(loaded) is GenerationOutput and loaded.texts == out.texts and loaded._repr_html_() is None
    loaded.show(shipped().tokenizer)
    assert "[operations]" in capsys.readouterr().out


def test_a_notebook_shows_owners_and_nothing_that_acts() -> None:
    html = shipped()([GERMAN], budget="light")._repr_html_()
    assert re.search(r'<span style="background[^"]+" title="teacher">operations</span>', html)
    assert "8 % by the teacher" in html and "student" in html
    words = shipped().tokenizer
    hostile = SingleModelDecoder(shipped().student, tokenizer=words)("Ein Spiel")
    hostile.sequences = torch.tensor([words("<script>alert(1)</script> & \u202e").input_ids])
    hostile.owners = torch.ones_like(hostile.sequences, dtype=torch.uint8)
    hostile.teacher_index = torch.zeros_like(hostile.owners)
    page = hostile._repr_html_()
    assert "<script" not in page and "\u202e" not in page


def test_a_blank_text_of_a_stream_is_an_empty_output() -> None:
    texts = ["", GERMAN, " \n", "Ein Spiel\n"]
    expected = shipped()([GERMAN, "Ein Spiel"], budget="light").texts
    for inputs in (texts, iter(texts)):
        outs = list(shipped().stream(inputs, budget="light", in_order=True, batch_size=1))
        assert [out.texts[0] for out in outs] == ["", expected[0], "", expected[1]]
        assert [out.index for out in outs] == [0, 1, 2, 3]
        blank = outs[0]
        assert blank.finish_reasons == ["empty"] and blank.output_ids == [[]] and blank.lengths.tolist() == [0]
        assert blank.keys() == outs[1].keys()
        assert {k: v.dtype for k, v in blank.items() if isinstance(v, torch.Tensor)} == {
            k: v.dtype for k, v in outs[1].items() if isinstance(v, torch.Tensor)
        }
    assert [out.texts for out in shipped().stream(["", ""], budget="no")] == [[""], [""]]


def test_a_blank_text_has_what_was_asked_of_all() -> None:
    asked: dict[str, Any] = {"output_logprobs": True, "top_logprobs": 3, "output_reads": True, "max_new_tokens": 4}
    blank, other = shipped().stream([" ", GERMAN], budget="light", in_order=True, **asked)
    submitted = shipped().submit(" ", budget="light", **asked).result()
    for out in (blank, submitted):
        assert out.sequences_scores.tolist() == [0.0] and out.output_ids == [[]]
        assert out.keys() | {"index"} == other.keys()
        for name, value in other.items():
            if isinstance(value, torch.Tensor):
                assert out[name].dtype == value.dtype and out[name].dim() == value.dim(), name
                assert out[name].shape[2:] == value.shape[2:], name


def test_a_blank_text_needs_a_tokenizer_too() -> None:
    with pytest.raises(ValueError, match=r"item 0.*no tokenizer"):
        list(SpeculativeDecoder(*natives()).stream([""]))


def test_budgets_differ_by_row() -> None:
    german = [sample.source for sample in load_pair().samples(3)]
    budgets = ["no", "light", "very high"]
    out = shipped()(german, budget=budgets)
    alone = [shipped()(text, budget=budget) for text, budget in zip(german, budgets)]
    assert out.texts == [one.texts[0] for one in alone]
    assert out.teacher_calls.tolist() == [int(one.teacher_calls) for one in alone] and out.teacher_calls[0] == 0
    limited = shipped()(german, budget=budgets, max_teacher_calls=[1, 0, 2])
    assert (limited.teacher_calls <= torch.tensor([1, 0, 2])).all()
    with pytest.raises(TypeError, match=r"budget of a stream, whose items may have their own: .*got \['no', 'light'\]"):
        shipped().stream(german, budget=["no", "light"])


def test_folders_bring_their_tokenizer_and_keep_packed_weights(tmp_path: Path) -> None:
    shutil.copytree(pair_folder(), tmp_path / "pair")
    student, teacher = tmp_path / "pair/student", tmp_path / "pair/teacher"
    expected = shipped()(GERMAN, budget="light").texts
    assert TrainingWheelsDecoder(student, teacher)(GERMAN, budget="light").texts == expected
    assert not list(tmp_path.rglob("*.packed"))
    loaded = [NativeModel.from_pretrained(folder) for folder in (student, teacher)]
    assert TrainingWheelsDecoder(*loaded)(GERMAN, budget="light").texts == expected
    for decoder in (TrainingWheelsDecoder, AutoDecoder):
        decoder(student, teacher, cache=True)
    assert TrainingWheelsDecoder(student, teacher, cache=True)(GERMAN, budget="light").texts == expected
    assert sorted(path.parent.name for path in tmp_path.rglob("*.packed")) == ["student", "teacher"]
    with pytest.raises(ValueError, match="the teacher is a NativeModel, in memory already; give its folder"):
        SpeculativeDecoder(student, loaded[1], cache=True)
    with pytest.raises(TypeError, match="cache must be True or False, got 'x'"):
        SingleModelDecoder(student, cache="x")  # type: ignore[arg-type]


@pytest.mark.parametrize("way", [pickle.dumps, copy.deepcopy])
def test_what_cannot_be_pickled_says_what_to_do(way: Any) -> None:
    decoder = SpeculativeDecoder(*natives())
    for holder in (decoder, natives()[0]):
        with pytest.raises(
            TypeError, match=f"a {type(holder).__name__} holds weights .* make one from folders in each"
        ):
            way(holder)
    with pytest.raises(TypeError, match="a Stream decodes in this process"):
        way(decoder.stream([]))


@pytest.mark.long
def test_the_pages_pool_of_processes_runs(tmp_path: Path) -> None:
    page = (Path(__file__).parent.parent / "docs/howto/streams.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"^```py\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    shutil.copytree(pair_folder(), tmp_path / "pair")
    code = code.replace('"my-', f'"{tmp_path}/pair/')
    for method in ("spawn", "fork"):
        script = tmp_path / f"{method}.py"
        start = (
            f'import multiprocessing\n\nif __name__ == "__main__":\n    multiprocessing.set_start_method("{method}")\n'
        )
        script.write_text(start + code, encoding="utf-8")
        done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == 2
