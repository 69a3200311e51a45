"""What comes into ``generate`` and ``stream``, checked at the boundary and turned into plain token lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch

from kdtw_fast.budgets import resolve_budgets
from kdtw_fast.messages import Message, OptionName, named
from kdtw_fast.model import NativeT5
from kdtw_fast.options import LIMITS, ROW_OPTIONS, GenerateOptions, check_int, check_limit, nearest

PIECE = 256  # texts that are tokenized in one call: milliseconds, and enough for all threads


def token_rows(ids: Any, mask: Any, name: str, model: NativeT5, options: GenerateOptions) -> list[list[int]]:
    """Returns [R, S] ``ids`` as R checked token lists without padding; raises as ``generate`` documents."""
    rows = _lists(ids, name)
    if not rows:
        raise ValueError(f"{name} is an empty batch; give at least one row")
    if mask is not None:
        masks = _lists(mask, "attention_mask", flags=True)
        if [len(m) for m in masks] != [len(row) for row in rows]:
            raise ValueError(
                f"attention_mask has shape {_shape(masks)}, but {name} has shape {_shape(rows)}; they must agree"
            )
        rows = [_unmasked(row, flags, r) for r, (row, flags) in enumerate(zip(rows, masks))]
    return [source(row, f"{name} row {r}", model, options, mask is None) for r, row in enumerate(rows)]


def source(row: list[int], label: str, model: NativeT5, options: GenerateOptions, padded: bool = True) -> list[int]:
    """Returns one row's tokens without padding (if ``padded``), cut and checked.

    Padding stands at a source's end, or at a prompt's beginning. Where pad is an end token, too, one stays as a
    source's own end unless an end stands before it, and a prompt, which may begin with it, is taken as it is.

    Raises:
        ValueError: nothing is left, it is too long, or an id is not the model's; the message begins with ``label``.
    """
    if padded:
        start, end, ends = 0, len(row), model.pad_token_id in model.eos_token_ids
        if model.has_encoder or not ends:
            while end > 0 and row[end - 1] == model.pad_token_id:
                end -= 1
            if ends and end < len(row) and (end == 0 or row[end - 1] not in model.eos_token_ids):
                end += 1
        while not model.has_encoder and not ends and start < end and row[start] == model.pad_token_id:
            start += 1
        row = row[start:end]
    if not row:
        raise ValueError(f"{label} is empty")
    if model.has_encoder and all(token in model.eos_token_ids for token in row):
        raise ValueError(f"{label} holds nothing but the end token {row}")
    if len(row) > options.max_source_length:
        if not options.truncation:
            limit = OptionName("max_source_length", options.max_source_length)
            raise ValueError(
                Message(
                    *(f"{label} has {len(row)} tokens, more than ", limit, "; raise ", OptionName(limit.name)),
                    *(", or cut it with ", OptionName("truncation", True)),
                )
            )
        if not model.has_encoder:  # what a prompt ends with is what is to be gone on with
            row = row[-options.max_source_length :]
        else:
            ends = row[-1] in model.eos_token_ids
            row = row[: options.max_source_length - ends] + row[-1:] * ends
    check_ids(row, label, model)
    return row


def check_ids(row: Sequence[int], label: str, model: NativeT5) -> None:
    """Raises ValueError for the first id outside the model's vocabulary."""
    if min(row) >= 0 and max(row) < model.vocab_size:
        return
    token = next(token for token in row if not 0 <= token < model.vocab_size)
    raise ValueError(f"{label} has token id {token}, outside the {model.name}'s vocabulary of {model.vocab_size}")


def check_items(inputs: Any, *kinds: type) -> None:
    """Raises TypeError for what is none of these kinds of iterables, and for one text or mapping."""
    if isinstance(inputs, (str, bytes, Mapping)) or not isinstance(inputs, kinds):
        raise TypeError(
            f"inputs must be an iterable of strings, token lists or mappings, got {type(inputs).__name__}; "
            f"one item makes a list of one"
        )


def check_text(text: Any, label: str) -> None:
    """Raises TypeError for what is no string, ValueError for a blank one."""
    if not isinstance(text, str):
        raise TypeError(f"{label} must be a string, got {text!r} of type {type(text).__name__}")
    if not text.strip():
        raise ValueError(f"{label} is empty ({text!r})")
    check_characters(text, label)


def check_characters(text: str, label: str) -> None:
    """Raises ValueError for half of a surrogate pair, which is no character: no tokenizer reads it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half, place = text[error.start], error.start
        raise ValueError(
            f"{label} has a lone surrogate ({half!r}) at character {place}, which is no text; leave it out, or decode "
            f"the text as UTF-16 where it comes from"
        ) from None


def check_chat(chat: Any, label: str) -> None:
    """Raises TypeError for what is no list of messages, ValueError where one is not a role and a content."""
    if not isinstance(chat, Sequence) or isinstance(chat, (str, bytes)):
        raise TypeError(f"{label} must be a list of messages, got {chat!r} of type {type(chat).__name__}")
    if not chat:
        raise ValueError(f"{label} is empty; give at least one message, {{'role': 'user', 'content': …}}")
    for i, message in enumerate(chat):
        if not isinstance(message, Mapping) or not all(isinstance(message.get(key), str) for key in _MESSAGE_KEYS):
            raise ValueError(f"{label}: message {i} must have a 'role' and a 'content', both strings; got {message!r}")
        for key in _MESSAGE_KEYS:
            check_characters(message[key], f"{label}: message {i}'s {key}")
    if not any(message["role"] == "user" for message in chat):
        raise ValueError(f"{label} has no message of the role 'user'")


def encode_texts(tokenizer: Any, prompts: Sequence[str], texts: Sequence[Any]) -> list[list[int]]:
    """Token ids of strings, each behind its prompt, or of conversations in the tokenizer's chat template.

    In a conversation the prompt comes before the content of the user's last message.

    Raises:
        ValueError: there is a conversation, and the tokenizer has no chat template.
    """
    written: list[str] = []
    chats = [i for i, text in enumerate(texts) if not isinstance(text, str)]
    for prompt, text in zip(prompts, texts):
        written.append(prompt + text if isinstance(text, str) else _in_template(tokenizer, prompt, text))
    ids = token_ids(tokenizer, written)
    for i in chats:  # the template has the special tokens
        ids[i] = tokenizer(written[i], add_special_tokens=False)["input_ids"]
    return ids


def token_ids(tokenize: Callable[[list[str]], Any], texts: Sequence[str]) -> list[list[int]]:
    """What a tokenizer's call makes of texts, in pieces between which Ctrl-C is heard; Rust's code hears nothing."""
    ids: list[list[int]] = []
    for begin in range(0, len(texts), PIECE):
        ids += tokenize(list(texts[begin : begin + PIECE]))["input_ids"]
    return ids


def _in_template(tokenizer: Any, prompt: str, chat: Sequence[Mapping[str, str]]) -> str:
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            "the tokenizer has no chat template; give strings instead of messages, or set tokenizer.chat_template"
        )
    last = max(i for i, message in enumerate(chat) if message["role"] == "user")
    messages = [dict(message) for message in chat]
    messages[last]["content"] = prompt + messages[last]["content"]
    text: str = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return text


def token_list(row: Any, label: str, flags: bool = False) -> list[int]:
    """A list, 1-D array or tensor of integers (with ``flags``, of truth values too) as ints; TypeError otherwise."""
    if isinstance(row, (torch.Tensor, np.ndarray)):
        row = row.tolist()
    if not isinstance(row, Sequence) or isinstance(row, (str, bytes)):
        raise TypeError(f"{label} must be a list of token ids, got {row!r} of type {type(row).__name__}")
    if set(map(type, row)) <= {int}:
        return list(row)
    kinds = (int, np.integer, np.bool_) if flags else (int, np.integer)
    for token in row:
        if not isinstance(token, kinds) or (isinstance(token, bool) and not flags):
            raise TypeError(f"{label} must hold integers, got {token!r} of type {type(token).__name__}")
    return [int(token) for token in row]


@dataclass(frozen=True)
class Item:
    """One input of ``stream``. A mapping with these keys stands for one; so do a string and a list of token ids.

    Args:
        text: what to decode, for decoders with a tokenizer (a blank one gives an empty output); or
        messages: a conversation, see ``chat``; or
        input_ids: the student's source tokens, its prompt included.
        teacher_input_ids: the teacher's, where they differ; goes with ``input_ids``. Several teachers have a list of
            lists, one for each (None = the student's).
        budget: a text's own budget, instead of the stream's; for several teachers {1: …, 2: …}.
        row_id: its name to the random numbers; None = its place in the input.
        max_teacher_fraction: its own limit, instead of the stream's: a number, or by teacher.
        max_teacher_calls: the same.
        max_new_tokens: its own, up to the stream's.
        min_new_tokens: its own, instead of the stream's, as all that follow.
        temperature, top_k, top_p: of the student, and of the teacher where it has none of its own.
        teacher_temperature, teacher_top_k, teacher_top_p: of the teacher.
        seed: of its random numbers.
        max_time: seconds from when it came to its turn.
        forced_tokens, stop, stop_token_ids: of its output.
        suppress_tokens, begin_suppress_tokens, bad_words_ids, no_repeat_ngram_size, repetition_penalty, logit_bias,
        forced_eos_token_id: its rules on tokens.
    """

    text: str | None = None
    messages: Sequence[Mapping[str, str]] | None = None
    input_ids: Any = None
    teacher_input_ids: Any = None
    budget: Any = None
    row_id: int | None = None
    max_teacher_fraction: float | Mapping[int, float] | None = None
    max_teacher_calls: int | Mapping[int, int] | None = None
    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    teacher_temperature: float | None = None
    teacher_top_k: int | None = None
    teacher_top_p: float | None = None
    seed: int | None = None
    max_time: float | None = None
    forced_tokens: Sequence[int] | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    suppress_tokens: Sequence[int] | None = None
    begin_suppress_tokens: Sequence[int] | None = None
    bad_words_ids: Sequence[Sequence[int]] | None = None
    no_repeat_ngram_size: int | None = None
    repetition_penalty: float | None = None
    logit_bias: Mapping[int | tuple[int, ...], float] | None = None
    forced_eos_token_id: int | None = None

    def options(self, shared: GenerateOptions, label: str = "item") -> GenerateOptions:
        """The item's options where the others' are ``shared``; ValueError or TypeError for what it may not have."""
        asked: tuple[GenerateOptions, GenerateOptions] | None = self.__dict__.get("_asked")
        if asked is not None and asked[0] is shared:
            return asked[1]
        own = {name: value for name in ROW_OPTIONS if (value := getattr(self, name)) is not None}
        if not own:
            self.__dict__["_asked"] = shared, shared  # a row asks several times
            return shared
        with named(label):
            options = shared.with_own(own)
            if options.forced_by_row:
                raise TypeError(f"forced_tokens must be a list of ids, got {options.forced_tokens!r}")
        if options.max_new_tokens > shared.max_new_tokens:
            most = OptionName("max_new_tokens", shared.max_new_tokens)
            raise ValueError(Message(f"{label}: max_new_tokens={options.max_new_tokens} exceeds the stream's ", most))
        self.__dict__["_asked"] = shared, options
        return options

    @classmethod
    def of(cls, value: Any, label: str) -> Item:
        """The item that ``value`` stands for, checked as far as can be without models; ``label`` names it."""
        if isinstance(value, Mapping):
            for key in value:
                if key not in _ITEM_KEYS:
                    raise TypeError(f"{label} has an unknown key {key!r}{nearest(str(key), _ITEM_KEYS)}")
            item = cls(**value)
        else:
            item = cls(text=value) if isinstance(value, str) else cls(input_ids=value)
        item._check(label)
        return item

    @property
    def words(self) -> Any:
        """The text or the conversation; None = token ids."""
        return self.messages if self.text is None else self.text

    @property
    def is_blank(self) -> bool:
        """Whether it is a text in which there is nothing to decode."""
        return isinstance(self.text, str) and not self.text.strip()

    def _check(self, label: str) -> None:
        if (self.text is not None) + (self.messages is not None) + (self.input_ids is not None) != 1:
            raise ValueError(f"{label} must have either 'text', 'messages' or 'input_ids'")
        if self.input_ids is None:
            if self.text is None:
                check_chat(self.messages, label)
            elif not self.is_blank:
                check_text(self.text, label)
            if self.teacher_input_ids is not None:
                raise ValueError(f"{label} has 'teacher_input_ids' beside a text; they go with 'input_ids'")
        elif self.budget is not None:
            raise ValueError(
                f"{label} has the budget {self.budget!r} beside 'input_ids'; a budget is put into a text's prompt, "
                f"and token ids hold theirs already"
            )
        if self.budget is not None:
            with named(label):
                resolve_budgets(self.budget)
        if self.row_id is not None:
            check_int(f"{label}: row_id", self.row_id, 0, 2**64 - 1)
        for name in ("max_teacher_fraction", "max_teacher_calls"):
            check_limit(name, getattr(self, name), f"{label}: {name}")


_BY_NUMBER = ("budget", *LIMITS, "logit_bias")  # of teachers, and of token ids
_WHOLE = tuple(field.name for field in fields(Item) if "int" in str(field.type) and "float" not in str(field.type))


def item_of_row(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of JSON or of a table, with keys of :class:`Item`, as an item: in the types that such rows cannot hold.

    Null and NaN are left out, as for all. Keys that are numbers are strings in JSON and in structs, and a table's map
    is a list of pairs. A table's integers with gaps are floats, and 16.0 is 16. What is none of this stays as it is,
    for :meth:`Item.of` to refuse.
    """
    item = {name: value for name, value in row.items() if value is not None and value == value}
    for name in item.keys() & _BY_NUMBER:
        value = item[name]
        if isinstance(value, list) and value and all(isinstance(pair, tuple) for pair in value):
            value = dict(value)
        if isinstance(value, dict):
            item[name] = {_number(key): one for key, one in value.items() if one is not None}
    for name in item.keys() & _WHOLE:
        if isinstance(item[name], float) and item[name].is_integer():
            item[name] = int(item[name])
    return item


def _number(key: Any) -> Any:
    """The number that a key stands for; any other key as it is."""
    return int(key) if isinstance(key, str) and key.isdecimal() and len(key) < 9 else key


_MESSAGE_KEYS = ("role", "content")
_ITEM_KEYS = tuple(field.name for field in fields(Item))


def _unmasked(row: list[int], flags: list[int], r: int) -> list[int]:
    on = [i for i, flag in enumerate(flags) if flag]
    if any(flag not in (0, 1) for flag in flags) or (on and on[-1] - on[0] + 1 != len(on)):
        raise ValueError(f"attention_mask row {r} must be zeros and ones with its ones in one run, got {flags}")
    return [row[i] for i in on]


def _lists(value: Any, name: str, flags: bool = False) -> list[list[int]]:
    """A [R, S] tensor, array or list of lists as lists of ints; with ``flags``, of truth values too."""
    if isinstance(value, torch.Tensor):
        if not value.is_cpu:
            raise ValueError(f"{name} is on device '{value.device}'; token ids are read on 'cpu', pass .cpu()")
        value = value.numpy()
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in ("iub" if flags else "iu"):
            raise TypeError(f"{name} must hold integers, got dtype {value.dtype}")
        if value.ndim != 2:
            raise ValueError(f"{name} must have shape [rows, length], got {list(value.shape)}")
        return value.astype(np.int64, copy=False).tolist()
    if not isinstance(value, Sequence) or isinstance(value, (str, bytes)):
        raise TypeError(f"{name} must be a tensor or a list of lists of token ids, got {type(value).__name__}")
    for r, row in enumerate(value):
        if not isinstance(row, (torch.Tensor, np.ndarray, Sequence)) or isinstance(row, (str, bytes)):
            raise TypeError(f"{name} must have shape [rows, length]; row {r} is {row!r}, not a list of token ids")
    return [token_list(row, f"{name} row {r}", flags) for r, row in enumerate(value)]


def _shape(rows: list[list[int]]) -> list[Any]:
    lengths = sorted({len(row) for row in rows})
    return [len(rows), lengths[0] if len(lengths) == 1 else f"{lengths[0]}..{lengths[-1]}"] if rows else [0]


def row_keys(row_ids: Sequence[int] | None, count: int) -> list[int]:
    """Returns the names of ``count`` output rows to the random numbers: ``row_ids``, checked, or 0, 1, 2, …"""
    if row_ids is None:
        return list(range(count))
    keys = [check_int("row_ids entry", key, 0, 2**64 - 1) for key in row_ids]
    if len(keys) != count:
        raise ValueError(f"row_ids has {len(keys)} values for {count} output rows")
    return keys
