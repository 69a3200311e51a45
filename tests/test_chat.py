"""Conversations: the tokenizer's chat template, with each model's prompt before the user's last message."""

from __future__ import annotations

import copy
import json
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from kdtw_fast.decoders import SingleModelDecoder, SpeculativeDecoder

WORDS = [
    "<pad>",
    "</s>",
    "<unk>",
    "<user>",
    "<system>",
    "<assistant>",
    "<end>",
    "be",
    "short",
    "sum",
    "up:",
    "Who",
    "is",
]
TEMPLATE = (
    "{% for message in messages %}<{{ message.role }}> {{ message.content }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
CHAT = [
    {"role": "system", "content": "be short"},
    {"role": "user", "content": "Who is"},
    {"role": "assistant", "content": "short"},
    {"role": "user", "content": "Who"},
]


@pytest.fixture
def tokenizer() -> Any:
    made = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    made.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=made, eos_token="</s>", pad_token="<pad>", unk_token="<unk>", chat_template=TEMPLATE
    )


@pytest.fixture
def pair() -> list[Any]:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    models = [LlamaForCausalLM(copy.deepcopy(config)).eval() for _ in range(2)]
    models[1].config.teacher_prompt = "sum up: "
    return models


def ids(text: str) -> list[int]:
    return [WORDS.index(word) for word in text.split()]


OWN = "<system> be short <end> <user> Who is <end> <assistant> short <end> <user> Who <end> <assistant>"
TEACHERS = OWN.replace("<user> Who <end> <assistant>", "<user> sum up: Who <end> <assistant>")


def test_a_conversation_is_its_tokens_in_the_template(pair: list[Any], tokenizer: Any) -> None:
    decoder = SpeculativeDecoder(*pair, tokenizer=tokenizer)
    output = decoder.chat(CHAT, max_new_tokens=8)
    expected = decoder.generate([ids(OWN)], teacher_inputs={"input_ids": [ids(TEACHERS)]}, max_new_tokens=8)
    assert output.sequences.tolist() == expected.sequences.tolist()
    assert output.texts == tokenizer.batch_decode(expected.output_ids, skip_special_tokens=True)
    assert output.sequences[0, : len(ids(OWN))].tolist() == ids(OWN)
    both = decoder.chat([CHAT, CHAT[:2]], max_new_tokens=8)
    assert both.texts == [output.texts[0], decoder.chat(CHAT[:2], max_new_tokens=8).texts[0]]
    (item,) = decoder.stream([{"messages": CHAT}], max_new_tokens=8)
    assert item.texts == output.texts


def test_the_messages_are_not_changed(pair: list[Any], tokenizer: Any) -> None:
    before = json.dumps(CHAT)
    SpeculativeDecoder(*pair, tokenizer=tokenizer).chat(CHAT, max_new_tokens=2)
    assert json.dumps(CHAT) == before


@pytest.mark.parametrize(
    ("messages", "error", "words"),
    [
        ([], ValueError, "conversation 0 is empty"),
        ([[]], ValueError, "conversation 0 is empty"),
        ("Who", TypeError, "conversation 0 must be a list of messages, got 'Who'"),
        ([{"role": "user"}], ValueError, "message 0 must have a 'role' and a 'content'"),
        ([{"role": "user", "content": ["Who"]}], ValueError, "both strings"),
        (CHAT[:1], ValueError, "no message of the role 'user'"),
    ],
)
def test_what_is_no_conversation(messages: Any, error: Any, words: str, pair: list[Any], tokenizer: Any) -> None:
    decoder = SingleModelDecoder(pair[0], tokenizer=tokenizer)
    with pytest.raises(error, match=words):
        decoder.chat(messages)


def test_without_a_template_or_tokenizer(pair: list[Any], tokenizer: Any) -> None:
    with pytest.raises(ValueError, match="no tokenizer"):
        SingleModelDecoder(pair[0]).chat(CHAT)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="the tokenizer has no chat template; give strings instead of messages"):
        SingleModelDecoder(pair[0], tokenizer=tokenizer).chat(CHAT)
