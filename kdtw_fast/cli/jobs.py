"""What `kdtw generate` was asked to do, as a value: another process can do a part of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kdtw_fast.cli.decoding_options import DEFAULTS
from kdtw_fast.generation import LENGTHS
from kdtw_fast.loaders import find_tokenizer
from kdtw_fast.methods import find_method, make_decoder
from kdtw_fast.pair_folders import load_models
from kdtw_fast.pairs import DEFAULT_PAIR, pair_folder

if TYPE_CHECKING:
    from kdtw_fast.decoders.interface import AnyDecoder

# What changes no output: a run that goes on may have others.
_FREE = ("cache", "num_threads", "batch_size", "pair", "student", "teacher", "tokenizer")


@dataclass(frozen=True)
class Job:
    """How lines are decoded.

    Args:
        method: its name.
        settings: of the method.
        call: options of the decoder's calls that were said.
        says_budget: whether a budget was said; otherwise it is light.
        generation_config: as decoders take it.
        pair, student, teacher, tokenizer, dtypes, cache, device: as for `load_models`.
        num_threads: of decoding.
        batch_size: lines decoded together.
        jsonl: whether lines come out as JSON objects.
        column: of the texts, where the input has rows.
    """

    method: str
    settings: Mapping[str, Any]
    call: Mapping[str, Any]
    says_budget: bool
    generation_config: Any
    pair: str | None
    student: Path | None
    teacher: list[Path] | None
    tokenizer: Path | None
    dtypes: dict[str, str]
    cache: bool
    device: str
    num_threads: int | None
    batch_size: int
    jsonl: bool
    column: str | None

    def make(self) -> tuple[AnyDecoder, dict[str, Any], Any]:
        """The decoder, the options of its calls, and the tokenizer."""
        own = self.pair, self.student, self.teacher, self.tokenizer
        models, words = load_models(find_method(self.method).models, *own, self.dtypes, self.cache, self.device)
        call = dict(self.call)
        if not self.says_budget and "budget" in call and len(models["student"].tau_token_ids) > 1:
            call["budget"] = dict.fromkeys(range(1, 1 + len(models["student"].tau_token_ids)), "light")
        decoder = make_decoder(
            self.method, models, words, self.num_threads, self.generation_config, **dict(self.settings)
        )
        # What is not said is as the checkpoint says, and otherwise as the command's help does.
        told_of = {LENGTHS.get(name, name) for name in decoder.defaults}
        return decoder, {name: value for name, value in DEFAULTS.items() if name not in told_of} | call, words

    def folders(self) -> list[Path]:
        """Where models and tokenizer lie."""
        if self.student is None and not self.teacher:
            home = pair_folder(self.pair or DEFAULT_PAIR)
            return [home / name for name in (*find_method(self.method).models, "tokenizer")]
        models = [*([self.student] if self.student is not None else []), *(self.teacher or [])]
        words = self.tokenizer or find_tokenizer(models[0])
        return [*models, *([words] if words is not None and words not in models else [])]

    def placed(self) -> Job:
        """The same for processes that run elsewhere: its folders are absolute."""
        student, tokenizer = (None if one is None else one.absolute() for one in (self.student, self.tokenizer))
        teacher = None if self.teacher is None else [one.absolute() for one in self.teacher]
        return replace(self, student=student, teacher=teacher, tokenizer=tokenizer)

    def described(self) -> dict[str, Any]:
        """What decides the outputs, but for the contents of models and input, as JSON has it."""
        return {name: value for name, value in vars(self).items() if name not in _FREE}
