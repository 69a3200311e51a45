"""The one maker of prompts: what stands around a prompt and a source, as a pair's tokenizer has it.

Texts and conversations of a run become token ids here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from kdtw_fast.inputs import token_ids

from .batches import PLACE, Encoded, with_prompt
from .debian import Example

HERE = "\ufdd0"  # in a text: where the prompt stands (a noncharacter, which texts have none of)


class Frame:
    """How sources, prompts and outputs of a pair become tokens.

    Models with an encoder read prompt and source as the tokenizer frames them (T5's: EOS behind). Models without one go
    on with prompt and source: what the tokenizer puts in front (BOS) stands there, nothing behind. A conversation is
    framed by the tokenizer's chat template, and the prompt stands before the user's last message, as in `decoder.chat`.

    Args:
        tokenizer: of both models.
        encoder: whether they have one.
        prompts: the texts that will stand before sources, templates included. Their blanks at the end, which must be
            the same, go over to the source: tokenizers cut before a blank.

    Attributes:
        classic: T5's frame: sources are without PLACE.
        eos, pad: the tokens that end outputs and fill rows.

    Raises ValueError for a tokenizer without EOS, or prompts that end in different blanks.
    """

    def __init__(self, tokenizer: Any, encoder: bool = True, prompts: Sequence[str] = ()):
        self.tokenizer, self.encoder = tokenizer, encoder
        self.eos: int = tokenizer.eos_token_id
        if self.eos is None:
            raise ValueError("the tokenizer has no eos_token, and outputs would have no end; set tokenizer.eos_token")
        self.pad: int = self.eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        whole, bare = tokenizer("x")["input_ids"], tokenizer("x", add_special_tokens=False)["input_ids"]
        places = [i for i in range(len(whole)) if whole[i : i + len(bare)] == bare]
        at = places[0] if places else len(whole)
        self.before: list[int] = whole[:at]
        self.behind: list[int] = whole[at + len(bare) :] if encoder else []
        self.classic = encoder and not self.before and self.behind == [self.eos]
        blanks = {text[len(text.rstrip(" ")) :] for text in prompts}
        if len(blanks) > 1 and not self.classic:
            raise ValueError(
                f"prompts end in different blanks ({', '.join(map(repr, prompts))}), but a source's tokens are the "
                f"same behind all of them; let all prompts end alike, for example in a line break"
            )
        self.blank = "" if self.classic or not blanks else blanks.pop()

    # ------------------------------------------------------------ tokens

    def prompts(self, texts: Sequence[str]) -> list[list[int]]:
        """Token ids of prompts; ValueError for one that does not end in the frame's blank."""
        return [self._bare(self._without_blank(text)) if text else [] for text in texts]

    def _without_blank(self, text: str) -> str:
        found = text[len(text.rstrip(" ")) :]
        if found != self.blank and not self.classic:
            raise ValueError(f"the prompt {text!r} ends in {found!r}, other prompts of this run in {self.blank!r}")
        return text[: len(text) - len(self.blank)]

    def _bare(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"] if text else []
        return ids

    def _plain(self, texts: list[str]) -> Any:
        return self.tokenizer(texts, add_special_tokens=False)

    def sources(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of sources, with the place of the prompt in them where this frame needs it."""
        if not texts:
            return []
        if self.classic and not any(HERE in text for text in texts):
            return [tuple(ids) for ids in token_ids(self._plain, texts)]
        parts = [tuple(text.split(HERE, 1)) if HERE in text else (None, text) for text in texts]
        found = token_ids(self._plain, [self.blank + rest for _, rest in parts])
        starts = {first: self.before if first is None else self._bare(first) for first, _ in parts}
        return [(*starts[first], PLACE, *ids, *self.behind) for (first, _), ids in zip(parts, found)]

    def targets(self, texts: Sequence[str]) -> list[tuple[int, ...]]:
        """Token ids of outputs, with EOS at their end."""
        if not texts:
            return []
        if self.encoder:  # some have pieces of their own, or a language's token, for outputs
            found = token_ids(lambda some: self.tokenizer(text_target=some), texts)
        else:
            found = token_ids(self._plain, texts)
        if self.classic:
            return [tuple(ids) for ids in found]
        ends = [ids.index(self.eos) if self.eos in ids else len(ids) for ids in found]
        return [(*ids[:end], self.eos) for ids, end in zip(found, ends)]

    def encode(self, examples: Sequence[Example], max_source: int = 96, max_target: int = 80) -> list[Encoded]:
        """Tokenise, leaving out examples longer than the bounds (in tokens, without prompt), or without tokens."""
        rows = zip(self.sources([e.source for e in examples]), self.targets([e.target for e in examples]), strict=True)
        return [
            Encoded(source, target)
            for source, target in rows
            if 0 < len(source) - (PLACE in source) <= max_source and 1 < len(target) <= max_target
        ]

    def reads(self, prompt: Sequence[int], source: Sequence[int]) -> list[int]:
        """What a model reads of a source behind a prompt."""
        return with_prompt(prompt, source, self.eos)

    def reads_texts(self, examples: Sequence[Example]) -> bool:
        """Whether a decoder that is given the texts themselves makes the same tokens of them."""
        return self.classic and not any(HERE in example.source for example in examples)


def rendered(value: Any, tokenizer: Any, options: Mapping[str, Any], place: str) -> str:
    """A conversation (messages with "role" and "content") by the tokenizer's chat template, up to the answer.

    A string is the one message of a user. HERE stands at the beginning of the user's last message. `place` names the
    data in errors: ValueError for what is no conversation, or a tokenizer without template.
    """
    messages = [{"role": "user", "content": value}] if isinstance(value, str) else value
    if not is_conversation(messages):
        raise ValueError(f'{place} holds {value!r}, which is neither text nor messages with "role" and "content"')
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            f"{place} holds messages, but the tokenizer has no chat_template; set tokenizer to one that has"
        )
    marked = [dict(message) for message in messages]
    asks = [message for message in marked if message["role"] == "user"]
    if not asks:
        raise ValueError(f"{place} holds a conversation without a message of the role 'user' before its answer")
    asks[-1]["content"] = HERE + asks[-1]["content"]
    text: str = tokenizer.apply_chat_template(marked, tokenize=False, add_generation_prompt=True, **options)
    if text.count(HERE) != 1:
        raise ValueError(f"{place}: the chat template shows the user's message {text.count(HERE)} times, expected once")
    return text


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages, at least one, each with text."""
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        return False
    return all(
        isinstance(one, Mapping) and {str} == {type(one.get(key)) for key in ("role", "content")} for one in value
    )
