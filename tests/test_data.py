"""The Debian corpus builder on a small mirror of its own, its splits, the tokenizer, and the pair that ships."""

import hashlib
import json
import shutil

import pytest
import torch
from kdtw_fast.training import debian
from kdtw_fast.training.batches import IGNORED, Batches, Encoded, collate, plan_epoch
from kdtw_fast.training.debian import Description, Example, grouped
from kdtw_fast.training.tokenizer import padded_vocabulary, train_tokenizer
from transformers import AutoTokenizer, T5ForConditionalGeneration

from kdtw_fast.budgets import BUDGETS, student_prompt
from kdtw_fast.modeling import TrainingWheelsT5
from kdtw_fast.pairs import DATA, load_pair, load_samples, pair_names

# ---------------------------------------------------------------- alignment


def test_segments_are_paragraphs_and_items():
    lines = (
        " First paragraph goes",
        " on here. It ends.",
        " .",
        " Features:",
        "  * one thing",
        "    and its rest",
        "  * another",
        " .",
        "  verbatim line",
        " Last.",
    )
    assert debian.segments(lines) == [
        "First paragraph goes on here. It ends.",
        "Features:",
        "one thing and its rest",
        "another",
        "verbatim line",
        "Last.",
    ]


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Das ist z. B. Eines. Zwei! Drei?", ["Das ist z. B. Eines.", "Zwei!", "Drei?"]),
        ("Version 3. Ausgabe. Neu.", ["Version 3. Ausgabe.", "Neu."]),
        ("Uses GNU make etc. Also more. End", ["Uses GNU make etc. Also more.", "End"]),
        ("no end", ["no end"]),
    ],
)
def test_sentences(text, expected):
    assert debian.sentences(text) == expected


def test_aligned_pairs_fall_back_where_sides_are_cut_differently():
    german = Description("Kurz", (" Eins. Zwei.", " .", " Drei. Vier."))
    same = Description("Short", (" One. Two.", " .", " Three. Four."))
    assert list(debian.aligned_pairs(german, same)) == [
        ("Kurz", "Short"),
        ("Eins.", "One."),
        ("Zwei.", "Two."),
        ("Drei.", "Three."),
        ("Vier.", "Four."),
    ]
    merged = Description("Short", (" One and two.", " .", " Three. Four."))
    assert list(debian.aligned_pairs(german, merged))[1] == ("Eins. Zwei.", "One and two.")
    fewer = Description("Short", (" One. Two.",))
    assert list(debian.aligned_pairs(german, fewer)) == [("Kurz", "Short")]


@pytest.mark.parametrize(
    "source, target, kept",
    [
        ("Dieses Paket enthält die Dokumentation.", "This package contains the documentation.", True),
        ("Paket", "Package", False),  # one word
        ("Dieses Paket enthält die Dokumentation von Foo.", "Documentation files.", False),  # half is missing
        ("libfoo libbar libbaz libqux", "libfoo libbar libbaz libqux", False),  # a copy
        ("This is the library of the thing.", "This is the library of a thing.", False),  # never translated
        ("Es unterstützt 640x480 und 800x600 Punkte.", "It supports 1024x768 and 1280x960 pixels.", False),  # numbers
        ("=== --- 12 34 ===", "=== --- 12 34 ==", False),  # no words
    ],
)
def test_filter(source, target, kept):
    assert debian.looks_aligned(source, target) is kept


# ---------------------------------------------------------------- splits


def test_splits_share_no_package_and_no_text():
    examples = [Example(f"Quelle {i // 2}", f"Target {i % 50}", f"package{i % 40}") for i in range(400)]
    groups = grouped((f"package{i}", f"package{i + 1}") for i in range(0, 40, 4))
    splits = debian.make_splits(examples, groups, held_out=0.2)
    assert splits == debian.make_splits(list(reversed(examples)), groups, held_out=0.2)
    assert splits != debian.make_splits(examples, groups, key="another", held_out=0.2)
    packages = {name: {groups.get(row.package, row.package) for row in rows} for name, rows in splits.items()}
    keys = {
        name: {debian.text_key(text) for row in rows for text in (row.source, row.target)}
        for name, rows in splits.items()
    }
    for one, other in (("train", "validation"), ("train", "test"), ("validation", "test")):
        assert packages[one].isdisjoint(packages[other])
        assert keys[one].isdisjoint(keys[other])
    assert splits["train"]


def test_held_out_splits_are_not_empty_when_texts_differ():
    examples = [Example(f"Quelle {i}", f"Target {i}", f"package{i}") for i in range(1000)]
    splits = debian.make_splits(examples, {}, held_out=0.1)
    assert {name: len(rows) for name, rows in splits.items()} == pytest.approx(
        {"train": 800, "validation": 100, "test": 100}, abs=30
    )


def test_a_groups_name_does_not_depend_on_the_order_of_unions():
    unions = [("c", "d"), ("b", "c"), ("e",), ("a", "b")]
    expected = {**dict.fromkeys("abcd", "a"), "e": "e"}
    assert grouped(unions) == grouped([pair[::-1] for pair in reversed(unions)]) == expected


# ---------------------------------------------------------------- the builder on lists of its own


def write_lists(folder, count=300):
    packages, english, german = [], [], []
    for i in range(count):
        text = f"Library number {i} for reading files\n This package number {i} contains the library."
        md5 = hashlib.md5(text.encode()).hexdigest()
        source = f"Source: src{i // 2} (1.0)\n" if i % 2 else ""
        name = f"lib{i}" if i % 2 else f"src{i // 2}"
        packages.append(f"Package: {name}\n{source}Version: 1\nDescription-md5: {md5}\n")
        english.append(
            f"Package: {name}\nDescription-md5: {md5}\nDescription-en: {text}\n .\n With more words in it.\n"
        )
        german.append(
            f"Package: {name}\nDescription-md5: {md5}\nDescription-de: Bibliothek Nummer {i} zum Lesen von Dateien\n"
            f" Dieses Paket Nummer {i} enthält die Bibliothek.\n .\n Mit noch mehr Wörtern darin.\n"
        )
    folder.mkdir()
    (folder / "mirror_dists_x_main_binary-amd64_Packages").write_text("\n".join(packages))
    (folder / "mirror_dists_x_main_i18n_Translation-en").write_text("\n".join(english))
    (folder / "mirror_dists_x_main_i18n_Translation-de").write_text("\n".join(german))


def test_build_writes_both_tasks(tmp_path):
    write_lists(tmp_path / "lists")
    counts = debian.build(tmp_path / "lists", tmp_path / "out", held_out=0.1)
    assert all(counts[task][split] > 0 for task in debian.TASKS for split in debian.SPLITS)
    rows = {split: debian.read_jsonl(tmp_path / "out/translation" / f"{split}.jsonl") for split in debian.SPLITS}
    some = rows["train"][0]
    number = "".join(c for c in some.source if c.isdigit())
    assert some.package == f"src{int(number) // 2}"
    assert number in some.target
    packages = [{row.package for row in rows[split]} for split in debian.SPLITS]
    assert not (packages[0] & packages[1] or packages[0] & packages[2] or packages[1] & packages[2])
    summary = debian.read_jsonl(tmp_path / "out/summary/train.jsonl")[0]
    assert summary.source.endswith("With more words in it.") and summary.target.startswith("Library number")


def test_build_without_german_lists_says_so(tmp_path):
    write_lists(tmp_path / "lists", count=4)
    (tmp_path / "lists" / "mirror_dists_x_main_i18n_Translation-de").unlink()
    with pytest.raises(RuntimeError, match=r"holds 0 German descriptions, 4 English ones and 4 packages"):
        debian.build(tmp_path / "lists", tmp_path / "out")


def test_without_apt_one_sentence_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(RuntimeError, match=r"apt-get and .*apt-helper cannot be found.*build the data on Debian"):
        debian.fetch_lists(tmp_path)


@pytest.mark.parametrize("line", ['{"source": "a"}', "[1]", "{"])
def test_bad_jsonl_names_file_and_line(line, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"source": "a b", "target": "c d"}\n' + line + "\n")
    with pytest.raises(ValueError, match=r"x\.jsonl:2: expected a JSON object"):
        debian.read_jsonl(path)


# ---------------------------------------------------------------- tokenizer and batches


@pytest.fixture(scope="module")
def tokenizer():
    texts = [f"Das Paket Nummer {i} enthält Dateien für »GNU«. The package holds files." for i in range(300)]
    return train_tokenizer(texts, 420, [student_prompt(budget) for budget in BUDGETS])


def test_tokenizer_is_t5_shaped_and_survives_saving(tokenizer, tmp_path):
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    tokenizer.save_pretrained(tmp_path)
    again = AutoTokenizer.from_pretrained(tmp_path)
    for text in ("Das Paket enthält 12 Dateien.", "漢字 & émojis 🙂 fall back to bytes", "a  b\tc\n d"):
        ids = again(text)["input_ids"]
        assert ids == tokenizer(text)["input_ids"]
        assert ids[-1] == 1 and 2 not in ids
        assert again.decode(ids, skip_special_tokens=True) == " ".join(text.split())


def test_prompt_and_text_tokens_can_be_concatenated(tokenizer):
    for budget in BUDGETS:
        prompt, text = student_prompt(budget), "Das Paket enthält Dateien."
        apart = tokenizer(prompt, add_special_tokens=False)["input_ids"] + tokenizer(text)["input_ids"]
        assert apart == tokenizer(prompt + text)["input_ids"]


@pytest.mark.parametrize("size, rows", [(4064, 4096), (4063, 4064), (32100, 32128), (1, 32)])
def test_vocabulary_always_has_a_spare_row(size, rows):
    assert padded_vocabulary(size) == rows


def some_rows(count=100):
    return [Encoded(tuple(range(3, 4 + i % 29)), (*range(3, 4 + i % 19), 1)) for i in range(count)]


def test_an_epoch_holds_every_row_once():
    plan = plan_epoch(some_rows(), seed=1, epoch=0, target_tokens=64)
    assert sorted(i for batch in plan for i in batch) == list(range(100))
    assert plan == plan_epoch(some_rows(), 1, 0, 64)
    assert plan != plan_epoch(some_rows(), 1, 1, 64)


def test_batches_have_one_shape_a_bucket_and_depend_on_the_step_alone():
    batches = Batches(some_rows(), [[40, 41], [42]], seed=3, target_tokens=64, eos=1, pad=0)
    shapes = {}
    for step in range(2 * batches.per_epoch):
        batch = batches[step]
        count, width = batch.labels.shape
        assert width % 8 == 0 and batch.source_ids.shape[1] % 8 == 0
        assert shapes.setdefault(width, count) == count == max(1, 64 // width)
    late = Batches(some_rows(), [[40, 41], [42]], seed=3, target_tokens=64, eos=1, pad=0)
    step = batches.per_epoch + 2
    assert torch.equal(late[step].source_ids, batches[step].source_ids)
    firsts = {int(x) for step in range(9) for x in batches[step].source_ids[:, 0]}
    assert {40, 42} <= firsts  # both prompts are drawn
    told = batches.at(step, [50])
    assert torch.equal(told.labels, batches[step].labels)
    assert int(told.source_ids[0, 0]) == 50


def test_collate_pads_and_masks():
    batch = collate([Encoded((5, 6), (7, 1)), Encoded((5,), (1,))], [[9], [9]], eos=1, pad=0, count=3)
    assert batch.source_ids.tolist()[0] == [9, 5, 6, 1, 0, 0, 0, 0]
    assert batch.source_mask.sum(1).tolist() == [4, 3, 1]
    assert batch.labels.tolist()[2] == [IGNORED] * 8


# ---------------------------------------------------------------- what ships

PAIRS = ["debian-de-en", "debian-synopsis"]


@pytest.mark.parametrize("name", PAIRS)
def test_pair_loads_and_fits_together(name):
    pair = load_pair(name)
    assert isinstance(pair.student, TrainingWheelsT5) and type(pair.teacher) is T5ForConditionalGeneration
    assert pair.student.dtype == pair.teacher.dtype == torch.float32
    assert not pair.student.training and not pair.teacher.training
    assert pair.student.config.vocab_size == pair.teacher.config.vocab_size
    assert pair.student.config.tau_token_id == len(pair.tokenizer)
    assert pair.student.config.student_prompt.count("{budget}") == 1
    assert pair.teacher.config.teacher_prompt == pair.student.config.teacher_prompt
    assert pair.teacher.num_parameters() >= 5e6 and pair.student.num_parameters() <= 1e6
    assert pair.student.teacher_token_embedding.abs().sum() > 0


@pytest.mark.parametrize("name", PAIRS)
def test_sample_is_held_out_text_with_a_licence_note(name):
    samples = load_samples(name)
    assert len({sample.source for sample in samples}) == len(samples) >= 500
    assert all(sample.source and sample.target and sample.package for sample in samples)
    assert load_pair(name).samples(2) == samples[:2]
    note = (DATA / "samples" / "LICENCE.md").read_text()
    assert "Debian" in note and "debian/copyright" in note


@pytest.mark.parametrize("name", PAIRS)
def test_samples_fit_the_vocabulary_and_prompts_are_short(name):
    pair = load_pair(name)
    tokenizer, template = pair.tokenizer, pair.student.config.student_prompt
    for budget in BUDGETS:
        assert len(tokenizer(student_prompt(budget, template), add_special_tokens=False)["input_ids"]) <= 9
    for sample in load_samples(name):
        ids = tokenizer(sample.source)["input_ids"]
        assert tokenizer.unk_token_id not in ids
        assert tokenizer.decode(ids, skip_special_tokens=True) == sample.source


@pytest.mark.parametrize("name", PAIRS)
def test_shipped_data_stay_small(name):
    assert sum(path.stat().st_size for path in (DATA / "pairs" / name).rglob("*") if path.is_file()) <= 25e6


@pytest.mark.parametrize("name", PAIRS)
def test_model_card_has_measured_numbers(name):
    card = (DATA / "pairs" / name / "README.md").read_text()
    numbers = json.loads((DATA / "pairs" / name / "metrics.json").read_text())
    assert f"{numbers['teacher']['bleu']:.2f}" in card and numbers["teacher"]["signature"] in card
    assert numbers["teacher"]["rouge2"] - numbers["student"]["rouge2"] >= 4


def test_unknown_pair_names_the_nearest():
    assert pair_names() == PAIRS
    with pytest.raises(ValueError, match=r"unknown pair 'debian-en-de'; did you mean 'debian-de-en'\?"):
        load_pair("debian-en-de")
    with pytest.raises(TypeError, match="a pair's name is a string, got int"):
        load_pair(3)
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        load_samples(limit=0)
