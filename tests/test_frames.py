"""The maker of prompts: what each kind of pair reads of texts and conversations, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from kdtw_fast.training.batches import PLACE, collate, with_prompt
from kdtw_fast.training.debian import Example
from kdtw_fast.training.frames import HERE, Frame, rendered
from kdtw_fast.training.settings import Data
from kdtw_fast.training.tasks import read_examples
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

TEXTS = [
    "With light teacher use, translate: Das Paket enthält 12 Dateien für die Bibliothek.",
    "With no teacher use, translate: the package contains files for the library",
    "translate: ein Programm mit Spielen, und noch eins",
]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>\n{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% if thinks is defined and not thinks %}<no>{% endif %}{% endif %}"
)


def byte_level(single: str = "$A", **more: Any) -> PreTrainedTokenizerFast:
    """A small byte-level BPE, as GPT-2, Llama 3, Qwen and SmolLM have, which frames texts as `single` says."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "</s>", "<s>", "<|user|>", "<|assistant|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        TEXTS * 3, trainers.BpeTrainer(vocab_size=350, special_tokens=special, initial_alphabet=alphabet)
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, special_tokens=[("</s>", 1), ("<s>", 2), ("<pad>", 0)]
    )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="</s>", bos_token="<s>", pad_token="<pad>", **more
    )
    made.chat_template = TEMPLATE
    return made


FRAMES = {
    "t5": (True, "$A </s>", True, [], [1]),
    "bart": (True, "<s> $A </s>", False, [2], [1]),
    "t5gemma": (True, "<s> $A", False, [2], []),
    "llama": (False, "<s> $A", False, [2], []),
    "qwen": (False, "$A", False, [], []),
    "with an end": (False, "<s> $A </s>", False, [2], []),
}


@pytest.mark.parametrize("name", FRAMES)
def test_tokens_are_those_of_the_whole_text(name: str) -> None:
    encoder, single, classic, before, behind = FRAMES[name]
    tokenizer = byte_level(single)
    prompts = ["With light teacher use, translate: ", "translate: "]
    frame = Frame(tokenizer, encoder, prompts)
    assert (frame.classic, frame.before, frame.behind) == (classic, before, behind)
    for text in ("Das Paket enthält 12 Dateien", "für die Bibliothek.", "x", "... und (noch) eins"):
        for prompt, ids in zip(prompts, frame.prompts(prompts)):
            (source,) = frame.sources([text])
            whole = tokenizer(prompt + text, add_special_tokens=False)["input_ids"]
            if classic:  # T5's tokens of prompt and text stand one behind the other
                whole = [*ids, *tokenizer(text, add_special_tokens=False)["input_ids"]]
            assert frame.reads(ids, source) == [*before, *whole, *behind]
            assert (PLACE in source) is not classic
    (target,) = frame.targets(["the package"])
    own = tokenizer("the package", add_special_tokens=False)["input_ids"]
    assert target == ((*before, *own, 1) if encoder else (*own, 1))


def test_a_prompt_stands_in_its_place() -> None:
    assert with_prompt([8, 9], (5, 6), 1) == [8, 9, 5, 6, 1]
    assert with_prompt([8, 9], (2, PLACE, 5), 1) == [2, 8, 9, 5]
    frame = Frame(byte_level(), False)
    rows = frame.encode([Example("Das Paket", "the package"), Example("", "x"), Example("x", "")], 40, 40)
    batch = collate(rows[:1], [[7, 1, 0]], frame.eos, frame.pad, count=2)
    length = len(rows[0].source) + 2
    assert batch.source_mask.sum(1).tolist() == [length, 1]  # a pad token in a prompt is no padding
    assert batch.source_ids[0, :length].tolist() == [7, 1, 0, *rows[0].source[1:]]
    assert [len(row.target) > 1 for row in rows] == [True] * len(rows)


def test_prompts_end_alike_or_are_refused() -> None:
    tokenizer = byte_level()
    with pytest.raises(ValueError, match="end in different blanks"):
        Frame(tokenizer, False, ["With {budget} help: ", "translate:"])
    frame = Frame(tokenizer, False, ["With {budget} help: ", "translate: "])
    with pytest.raises(ValueError, match=r"the prompt 'help:' ends in '', other prompts of this run in ' '"):
        frame.prompts(["help:"])
    assert Frame(tokenizer, False, ["With {budget} help:\n", ""]).prompts([""]) == [[]]
    Frame(byte_level("$A </s>"), True, ["With {budget} help: ", ""])  # T5 is as it was
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match="no eos_token"):
        Frame(tokenizer, False)


# --- conversations ----------------------------------------------------------------------------------------

TALK = [
    {"role": "user", "content": "Wer bist du?"},
    {"role": "assistant", "content": "Ein Programm."},
    {"role": "user", "content": "Und was kannst du?"},
    {"role": "assistant", "content": "Dateien lesen."},
]


def written(folder: Path, **row: Any) -> Data:
    for split in ("train", "validation"):
        (folder / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
    return Data(folder=str(folder))


def test_conversations_are_framed_by_the_chat_template(tmp_path: Path) -> None:
    tokenizer = byte_level("<s> $A")
    data = replace(written(tmp_path, messages=TALK), source="messages", target="")
    (example,) = read_examples(data, "train", tokenizer=tokenizer)
    assert example.target == "Dateien lesen."
    frame = Frame(tokenizer, False, ["{budget}: ", "t: "])
    (row,) = frame.encode([example], 1000, 100)
    (prompt,) = frame.prompts(["light: "])
    asked = [*TALK[:2], {"role": "user", "content": "light: Und was kannst du?"}]
    whole = tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True)
    assert frame.reads(prompt, row.source) == tokenizer(whole, add_special_tokens=False)["input_ids"]
    assert row.target == (*tokenizer("Dateien lesen.", add_special_tokens=False)["input_ids"], 1)


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": TALK[:1], "completion": TALK[1:2]},
        {"prompt": TALK[:1], "completion": "Ein Programm."},
        {"prompt": "Wer bist du?", "completion": "Ein Programm."},
    ],
)
def test_prompts_and_completions_may_be_conversations(row: dict[str, Any], tmp_path: Path) -> None:
    data = replace(
        written(tmp_path, **row), source="prompt", target="completion", chat=True, template={"thinks": False}
    )
    (example,) = read_examples(data, "train", tokenizer=byte_level())
    assert example.source == f"<s><|user|>\n{HERE}Wer bist du?\n<|assistant|>\n<no>"
    assert example.target == "Ein Programm."


def test_prompts_and_completions_are_texts_without_a_template(tmp_path: Path) -> None:
    data = replace(written(tmp_path, prompt="Q: wer?", completion=" A: ich"), source="prompt", target="completion")
    assert [(e.source, e.target) for e in read_examples(data, "train")] == [("Q: wer?", " A: ich")]


def test_what_is_no_conversation_is_refused(tmp_path: Path) -> None:
    tokenizer = byte_level()
    data = replace(written(tmp_path, messages=TALK[:3]), source="messages", target="")
    with pytest.raises(ValueError, match=r"'messages' must hold messages of which the last is the assistant's, got"):
        read_examples(data, "train", tokenizer=tokenizer)
    with pytest.raises(ValueError, match="neither text nor messages"):
        rendered([{"role": "user"}], tokenizer, {}, "here")
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="here holds messages, but the tokenizer has no chat_template"):
        rendered(TALK[:1], tokenizer, {}, "here")
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="shows the user's message 2 times"):
        rendered(TALK[:1], tokenizer, {}, "here")
    with pytest.raises(ValueError, match=r"column 'source' holds list, not text"):
        read_examples(written(tmp_path, source=[1], target="x"), "train", tokenizer=tokenizer)
