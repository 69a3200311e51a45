"""Folders that others made: nothing in them runs, nothing outside is opened, and what is wrong is a sentence."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from factories import SHAPES, mostly_long, random_t5
from kdtw_fast.training.models import load_plain, load_student
from test_wheels import random_student

from kdtw_fast import NativeT5, SingleModelDecoder
from kdtw_fast.cli.bench_models import _saved
from kdtw_fast.comparison.systems import OutsideSystems
from kdtw_fast.loaders import load_tokenizer
from kdtw_fast.modeling import TrainingWheels, TrainingWheelsT5
from kdtw_fast.pairs import pair_folder

VOCAB = 43
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "home" / "little"
    random_t5(SHAPES[2], VOCAB, seed=4).save_pretrained(folder, max_shard_size="20KB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def edit_index(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))


def rename_first(folder: Path, name: str) -> None:
    """The index calls the first shard by another name."""
    edit_index(
        folder,
        lambda index: index["weight_map"].update(
            {tensor: name for tensor, shard in index["weight_map"].items() if "-00001-" in shard}
        ),
    )


def message(folder: Path, kind: type[Exception] = ValueError) -> str:
    with pytest.raises(kind) as caught:
        NativeT5.from_pretrained(folder)
    said = str(caught.value)
    assert type(caught.value) is kind and "\n" not in said and said.startswith("little: "), said
    return said


@pytest.mark.parametrize(
    "name", ["{home}/other.safetensors", "../other.safetensors", "sub/other.safetensors", "..", "."]
)
def test_shards_outside_of_the_folder_are_refused(sharded: Path, name: str) -> None:
    first = next(sharded.glob("model-00001*"))
    (sharded / "sub").mkdir()
    for place in (sharded.parent, sharded / "sub"):
        (place / "other.safetensors").write_bytes(first.read_bytes())
    name = name.format(home=sharded.parent)
    rename_first(sharded, name)
    said = message(sharded)
    assert repr(name) in said and "outside" in said


def test_a_link_that_leads_out_is_refused(sharded: Path) -> None:
    first = next(sharded.glob("model-00001*"))
    first.rename(sharded.parent / "elsewhere")
    first.symlink_to(sharded.parent / "elsewhere")
    assert "outside" in message(sharded)


def test_links_of_the_hubs_cache_are_followed(sharded: Path, tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--t5/snapshots/little", tmp_path / "models--t5/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, file in enumerate(sorted(sharded.iterdir())):
        (blobs / str(number)).write_bytes(file.read_bytes())
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    expected = NativeT5.from_pretrained(sharded).decode_logits([4, 1], [0, 5])
    assert (NativeT5.from_pretrained(snapshot).decode_logits([4, 1], [0, 5]) == expected).all()


@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_not_opened(sharded: Path, kind: str) -> None:
    first = next(sharded.glob("model-00001*"))
    first.unlink()
    if kind == "pipe":
        os.mkfifo(first)
    elif kind == "folder":
        first.mkdir()
    else:
        first.symlink_to("/dev/zero")
    said = message(sharded)
    assert first.name in said and ("outside" if kind == "device" else "not a file") in said


@pytest.mark.parametrize("name", ["gone", "x" * 5000, "nul\0", "circle"])
def test_shards_that_are_not_there(sharded: Path, name: str) -> None:
    (sharded / "circle").symlink_to("circle")
    rename_first(sharded, name)
    assert "is not in" in message(sharded, FileNotFoundError)


@pytest.mark.parametrize(
    "change",
    [
        lambda index: index.pop("weight_map"),
        lambda index: index.update(weight_map=["model.safetensors"]),
        lambda index: index.update(weight_map={}),
        lambda index: index["weight_map"].update({"shared.weight": 3}),
        lambda index: index["weight_map"].update({"shared.weight": None}),
        lambda index: index["weight_map"].update({"shared.weight": ["model-00001-of-00002.safetensors"]}),
    ],
)
def test_an_index_that_is_none(sharded: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    edit_index(sharded, change)
    assert "model.safetensors.index.json" in message(sharded)


@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
@pytest.mark.parametrize(
    "text", ["[" * 100_000, '{"a":' * 100_000, '{"vocab_size": ' + "9" * 5000 + "}", "\xff", "", "3", "{'a': 1}"]
)
def test_json_that_is_none(sharded: Path, file: str, text: str) -> None:
    (sharded / file).write_bytes(text.encode("latin-1"))
    assert file in message(sharded)


def test_a_tensor_in_two_shards(sharded: Path) -> None:
    first = next(sharded.glob("model-00001*"))
    (sharded / "twice.safetensors").write_bytes(first.read_bytes())
    edit_index(sharded, lambda index: index["weight_map"].update({"another": "twice.safetensors"}))
    assert "another shard" in message(sharded)


# --- Hugging Face's loaders, which follow what they find ---------------------------------------------------


def load_by_compare(folder: Path) -> Any:
    contender = SimpleNamespace(
        folders={"little": folder}, models={"little": SimpleNamespace(dtype="fp32")}, device="cpu"
    )
    systems = object.__new__(OutsideSystems)
    systems._models, systems._contender = {}, contender  # type: ignore[assignment]
    return systems._model("little")


HUGGING_FACE: dict[str, Callable[[Path], Any]] = {
    "load_plain": lambda folder: load_plain(str(folder), "little"),
    "load_student": lambda folder: load_student(folder, VOCAB - 1),
    "TrainingWheels": TrainingWheels.from_pretrained,
    "TrainingWheelsT5": TrainingWheelsT5.from_pretrained,
    "compare": load_by_compare,
    "bench": lambda folder: _saved(folder).reference(),
}


def lead_out(folder: Path, way: str) -> None:
    """What stands for the folder's weights is not in it, or no file."""
    first = next(folder.glob("model-00001*"))
    outside = folder.parent / "elsewhere.safetensors"
    if way == "single link":
        random_student("t5").save_pretrained(folder)
        for file in (*folder.glob("model-0*"), folder / "model.safetensors.index.json"):
            file.unlink()
        first = folder / "model.safetensors"
    if way == "pipe":
        first.unlink()
        os.mkfifo(first)
        return
    first.rename(outside)
    if "link" in way:
        first.symlink_to(outside)
    else:
        rename_first(folder, f"../{outside.name}" if way == ".." else str(outside))


@pytest.mark.parametrize("way", ["..", "absolute", "link", "pipe", "single link"])
@pytest.mark.parametrize("loader", HUGGING_FACE)
def test_hugging_faces_loaders_stay_in_the_folder(loader: str, way: str, tmp_path: Path) -> None:
    folder = tmp_path / "home" / "little"
    random_student("t5").save_pretrained(folder, max_shard_size="20KB")
    HUGGING_FACE[loader](folder)
    lead_out(folder, way)
    with pytest.raises(ValueError, match="not a file" if way == "pipe" else "lies outside of"):
        HUGGING_FACE[loader](folder)
    if way != "pipe":
        assert "outside" in message(folder)


@pytest.mark.parametrize("within", ["", "student"])
def test_hugging_faces_loaders_read_the_hubs_cache(sharded: Path, within: str, tmp_path: Path) -> None:
    for whole in (False, True):
        snapshot, blobs = tmp_path / f"models--{whole}/snapshots/little" / within, tmp_path / f"models--{whole}/blobs"
        snapshot.mkdir(parents=True)
        blobs.mkdir()
        if whole:
            random_t5(SHAPES[2], VOCAB, seed=4).save_pretrained(tmp_path / "whole")
        for number, file in enumerate(sorted((tmp_path / "whole" if whole else sharded).iterdir())):
            (blobs / str(number)).write_bytes(file.read_bytes())
            (snapshot / file.name).symlink_to(blobs / str(number))
        assert load_plain(str(snapshot), "little").config.vocab_size == VOCAB
        assert NativeT5.from_pretrained(snapshot).vocab_size == VOCAB


def test_an_index_that_nobody_opens_is_not_looked_into(tmp_path: Path) -> None:
    random_t5(SHAPES[2], VOCAB, seed=4).save_pretrained(tmp_path)
    index = json.dumps({"weight_map": {"shared.weight": "pytorch_model-00001-of-00002.bin"}})
    (tmp_path / "pytorch_model.bin.index.json").write_text(index)
    assert load_plain(str(tmp_path), "little").config.vocab_size == VOCAB


def test_a_student_of_a_config_and_tensors_has_no_folder() -> None:
    student = random_student("t5")
    again = type(student).from_pretrained(None, config=student.config, state_dict=student.state_dict())
    assert again.tau_token_ids == student.tau_token_ids


def test_token_ids_need_no_tokenizer_that_can_be_read(tmp_path: Path) -> None:
    random_t5(SHAPES[2], VOCAB, seed=4).save_pretrained(tmp_path)
    for part in (pair_folder() / "tokenizer").iterdir():
        (tmp_path / part.name).write_bytes(part.read_bytes())
    (tmp_path / "tokenizer.json").write_text("[")
    decoder = SingleModelDecoder(NativeT5.from_pretrained(tmp_path))
    assert decoder.generate([[5, 6, 1]], max_new_tokens=3).lengths[0] <= 3
    with pytest.raises(ValueError, match="tokenizer"):
        decoder("text")


# --- Tokenizers that are damaged -------------------------------------------------------------------------------


@pytest.mark.parametrize("file", ["tokenizer.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    "text", ["[" * 100_000, "", "3", "[]", "{}", '{"model": 5}', '{"model": {"type": "Unigram"}}', "\xff"]
)
def test_a_damaged_tokenizer_is_a_sentence(file: str, text: str, tmp_path: Path) -> None:
    for part in (pair_folder() / "tokenizer").iterdir():
        (tmp_path / part.name).write_bytes(part.read_bytes())
    (tmp_path / file).write_bytes(text.encode("latin-1"))
    try:
        load_tokenizer(tmp_path)
    except ValueError as error:
        said = str(error)
        assert type(error) is ValueError and said.startswith("tokenizer: ") and file in said and "\n" not in said
    else:
        assert file == "tokenizer_config.json" and text.startswith("{")  # which says less, but what it says is right


@pytest.mark.parametrize("length", [0, 4, 30, 1000])
def test_a_damaged_gguf_has_no_tokenizer(length: int, tmp_path: Path) -> None:
    pytest.importorskip("gguf")
    path = tmp_path / "words.gguf"
    path.write_bytes((b"GGUF" + bytes([3, 0, 0, 0]) + b"\xff" * 1000)[:length])
    with pytest.raises(ValueError, match=r"^tokenizer: .*words.gguf cannot be read"):
        load_tokenizer(path)


def test_a_long_reason_of_a_tokenizer_keeps_what_is_to_be_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise ValueError("x" * 300 + " install sentencepiece" + "x" * 300)

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", fail)
    with pytest.raises(
        ValueError, match=r"install sentencepiecex*\); save the tokenizer again, or install what it needs$"
    ):
        load_tokenizer(tmp_path)


# --- Code in folders -------------------------------------------------------------------------------------


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A model's folder with a tokenizer, whose files ask for code.py to be run: it makes the file "ran"."""
    folder = tmp_path / "evil"
    random_t5(SHAPES[2], VOCAB, seed=4).save_pretrained(folder)
    for file in (pair_folder() / "tokenizer").iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    (folder / "code.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w')\n"
        "from transformers import PreTrainedTokenizerFast, T5Config, T5ForConditionalGeneration\n"
        "class Config(T5Config): model_type = 'evil'\n"
        "class Tokenizer(PreTrainedTokenizerFast): pass\n"
    )
    for name, asks in {
        "config.json": {"auto_map": {"AutoConfig": "code.Config"}, "model_type": "evil"},
        "tokenizer_config.json": {"auto_map": {"AutoTokenizer": [None, "code.Tokenizer"]}, "tokenizer_class": "Evil"},
    }.items():
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | asks))
    return folder


def test_a_tokenizer_that_wants_to_run_code(evil: Path) -> None:
    with pytest.raises(ValueError, match="auto_map, which names Python code in the folder to be run, and none is"):
        load_tokenizer(evil)
    assert not (evil.parent / "ran").exists()


LOADERS = [
    "from kdtw_fast import NativeT5; NativeT5.from_pretrained(folder)",
    "from kdtw_fast import SingleModelDecoder; SingleModelDecoder(folder)",
    "from kdtw_fast import pair_folders as f; f.load_models(('student',), None, p, None, None, {'student': 'fp32'})",
    "from kdtw_fast.training.models import load_student; load_student(folder, 40)",
    "from kdtw_fast.training.models import load_tokenizer; load_tokenizer(SimpleNamespace(tokenizer=folder))",
    "from kdtw_fast.training.number_format import decided; decided(SimpleNamespace("
    "bf16='auto', out='', student=SimpleNamespace(path=folder)))",
]


@pytest.mark.parametrize("loader", mostly_long(LOADERS, keep=(0, 4)))
def test_no_loader_runs_code_or_asks(evil: Path, loader: str) -> None:
    """A yes on standard input changes nothing: nobody reads it."""
    script = f"""
import sys
from pathlib import Path
from types import SimpleNamespace
folder, p = sys.argv[1], Path(sys.argv[1])
try:
    {loader}
except ValueError as error:
    print(type(error).__name__, sys.stdin.read())
"""
    done = subprocess.run(
        [sys.executable, "-c", script, str(evil)],
        input="y\n",
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
    )
    assert not (evil.parent / "ran").exists()
    assert done.stdout == "ValueError y\n\n", (done.stdout, done.stderr[-2000:])


def test_a_model_folder_without_a_vocabulary_has_no_tokenizer(tmp_path: Path) -> None:
    """Transformers makes up a tokenizer of a hundred pieces there."""
    (tmp_path / "config.json").write_bytes((pair_folder() / "teacher" / "config.json").read_bytes())
    with pytest.raises(OSError, match=f"{tmp_path} holds no tokenizer: none of .*tokenizer.json.* is there; save"):
        load_tokenizer(tmp_path)


def test_a_decoder_takes_a_tokenizers_folder(tmp_path: Path) -> None:
    """What it says of the words is what the loaded one says; what holds no tokenizer is refused when it is made."""
    home = pair_folder()
    native = NativeT5.from_pretrained(home / "student")
    words = home / "tokenizer"
    decoders = [SingleModelDecoder(native, tokenizer=given) for given in (load_tokenizer(words), words, str(words))]
    first, *others = [decoder("Ein Spiel.", max_new_tokens=8) for decoder in decoders]
    assert all(out.texts == first.texts for out in others)
    for given, kind, said in (
        ("nope", FileNotFoundError, "tokenizer nope is not a folder; give one that"),
        (tmp_path, FileNotFoundError, f"tokenizer {tmp_path} is a folder without one; give one that"),
        (3, TypeError, "tokenizer must be a tokenizer, or the folder of one, got int"),
    ):
        with pytest.raises(kind, match=f"^{re.escape(said)}"):
            SingleModelDecoder(native, tokenizer=given)
        with pytest.raises(kind, match=f"^{re.escape(said)}"):
            first.show(tokenizer=given)
