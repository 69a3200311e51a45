"""The operating points as things that run: kdtw_fast's decoders, and the other systems on the same weights.

Each writes all sentences once (for quality) and offers single calls on token ids (to be timed).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from kdtw_fast import peers
from kdtw_fast.decoders import SingleModelDecoder
from kdtw_fast.generation import IGNORE
from kdtw_fast.methods import make_decoder
from kdtw_fast.options import NO_LIMIT
from kdtw_fast.owner import Owner
from kdtw_fast.pairs import quietly
from kdtw_fast.weights import own_files

from .contenders import Contender
from .plan import DRAFT_STUDENT, OWN_STUDENT, OperatingPoint
from .provenance import SEED
from .records import Sentence

QUALITY_BATCH = 32  # rows decoded together where nothing is timed; results do not depend on it
OnDone = Callable[[int], object]  # told how many sentences are done


Tokens = list[tuple[list[int], Sequence[list[int] | None]]]  # of sentences, for the model that writes and its teachers
MODELS = ("student", "teacher")
PHASES = ("encode", "student", "teacher", "other")  # of the native core's seconds


class _Prompted:
    """What systems share: the contender's sentences behind the prompts of a decoder of its models."""

    def __init__(self, contender: Contender, decoder: Any, budget: str | None = None):
        self._contender, self._decoder, self._budget = contender, decoder, budget

    def tokens(self, indices: Sequence[int]) -> Tokens:
        """These sentences' source tokens, prompts included."""
        texts = [self._contender.samples[i].source for i in indices]
        found: Tokens = self._decoder.tokenize(texts, [self._budget] * len(texts))
        return found

    def _sentence(self, index: int, ids: list[int], text: str, **told: Any) -> Sentence:
        sample = self._contender.samples[index]
        pieces_ = pieces(self._contender.tokenizer, ids)
        return Sentence(index=index, source=sample.source, reference=sample.target, text=text, tokens=pieces_, **told)


class Native(_Prompted):
    """A decoder of kdtw_fast, greedy whatever the models' generation configs say; more options may be given."""

    def __init__(self, point: OperatingPoint, contender: Contender, threads: int, max_new_tokens: int, **options: Any):
        student = contender.models["student" if point.drafter == OWN_STUDENT else DRAFT_STUDENT]
        models = {"student": student, "teacher": contender.models["teacher"]}
        decoder = make_decoder(point.method, models, contender.tokenizer, threads, IGNORE, **point.settings)
        super().__init__(contender, decoder, point.options.get("budget"))
        self._point = point
        self._options: dict[str, Any] = {
            "max_new_tokens": max_new_tokens,
            "max_source_length": NO_LIMIT,
            "seed": SEED,  # with the sentence's index as row id: where a control asks at random
            **options,
        }
        if point.method == "training-wheels" and point.budget == 0:
            self._options["max_teacher_calls"] = 0  # what "no" sets where strings go in, for the timed calls too

    def write(self, indices: Sequence[int], on_done: OnDone) -> list[Sentence]:
        """These sentences, with log-probabilities."""
        sentences: list[Sentence] = []
        lengths = self.source_tokens(indices)
        for start in range(0, len(indices), QUALITY_BATCH):
            some = list(indices[start : start + QUALITY_BATCH])
            out = self._decoder(
                [self._contender.samples[i].source for i in some],
                **self._point.options,
                **self._options,
                row_ids=some,
                output_logprobs=True,
                output_reads=True,
            )
            for r, index in enumerate(some):
                here = out.spans[r]
                counts = {name: int(out[name][r]) for name in ("teacher_calls", "drafted", "accepted", "rolled_back")}
                logprobs = {f"{who}_logprobs": _known(out[f"{who}_logprobs"][r, here].tolist()) for who in MODELS}
                reads = {f"{who}_reads": out[f"{who}_reads"][r] for who in MODELS}
                owners = [Owner(code).name.lower() for code in out.owners[r, here].tolist()]
                told = {"owners": owners, "source_tokens": lengths[start + r], **counts, **logprobs, **reads}
                sentences.append(self._sentence(index, out.sequences[r, here].tolist(), out.texts[r], **told))
            on_done(len(some))
        return sentences

    def calls(self, indices: Sequence[int], batch: int) -> list[Callable[[], Any]]:
        """Calls of ``generate``."""
        calls: list[Callable[[], Any]] = []
        for start in range(0, len(indices), batch):
            some = list(indices[start : start + batch])
            ids, teacher_ids = zip(*self.tokens(some))
            inputs = [{"input_ids": own} for own in zip(*teacher_ids)] or None
            options = {**self._options, "teacher_inputs": inputs, "row_ids": some}
            calls.append(partial(self._decoder.generate, list(ids), **options))
        return calls

    def source_tokens(self, indices: Sequence[int]) -> list[dict[str, int]]:
        """By role of its models, lengths of these sentences' sources with their prompts."""
        own = "teacher" if self._point.method == "greedy-teacher" else "student"
        return [
            {own: len(ids)} | ({"teacher": len(others[0] or ids)} if others else {})
            for ids, others in self.tokens(indices)
        ]

    def count(self, result: Any) -> dict[str, Any]:
        """What a call did, by the names of :class:`Timing`; seconds by phase."""
        phases = {name: getattr(result.timings, name) for name in PHASES}
        passes = {f"{who}_passes": getattr(result, f"{who}_passes") for who in MODELS}
        return {"tokens": int(result.lengths.sum()), **passes, **phases}


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """What the vocabulary calls these ids: "<4063>" for a row of the model that it has no piece for."""
    return [piece or f"<{id}>" for piece, id in zip(tokenizer.convert_ids_to_tokens(ids), ids, strict=True)]


def _known(values: list[float]) -> list[float | None]:
    """Log-probabilities to four digits, None for NaN."""
    return [None if math.isnan(value) else round(value, 4) for value in values]


class Outside(_Prompted):
    """Another system on the same weights: one model, or a teacher with an assistant; it tells tokens and no more.

    Args:
        generate: greedy, from lists of ids to the outputs up to their end tokens.
        owner: who writes its tokens; None = it does not tell.
        largest_batch: rows that it decodes together at most; None = any.
    """

    def __init__(
        self,
        generate: peers.Generate,
        contender: Contender,
        role: str,
        owner: Owner | None,
        largest_batch: int | None = None,
    ):
        own = {"tokenizer": contender.tokenizer, "generation_config": IGNORE}
        decoder = SingleModelDecoder(contender.models[role], role=role, **own)  # its prompts
        super().__init__(contender, decoder)
        self._generate, self._owner = generate, owner
        self._batch = min(QUALITY_BATCH, largest_batch or QUALITY_BATCH)

    def write(self, indices: Sequence[int], on_done: OnDone) -> list[Sentence]:
        """These sentences; rows of like length together."""
        rows = [ids for ids, _ in self.tokens(indices)]
        order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
        written: dict[int, list[int]] = {}
        for start in range(0, len(order), self._batch):
            some = order[start : start + self._batch]
            written |= zip(some, self._generate([rows[i] for i in some]).ids)
            on_done(len(some))
        return [self._told(index, written[i]) for i, index in enumerate(indices)]

    def _told(self, index: int, ids: list[int]) -> Sentence:
        by_teacher = self._owner == Owner.TEACHER
        return self._sentence(
            index,
            ids,
            self._contender.tokenizer.decode(ids, skip_special_tokens=True),
            owners=[] if self._owner is None else [self._owner.name.lower()] * len(ids),
            teacher_calls=len(ids) if by_teacher else 0,
            drafted=0 if by_teacher else len(ids),
            accepted=0,
            rolled_back=0,
        )

    def calls(self, indices: Sequence[int], batch: int) -> list[Callable[[], Any]]:
        """Calls of its generate."""
        rows = [ids for ids, _ in self.tokens(indices)]
        return [partial(self._generate, rows[start : start + batch]) for start in range(0, len(rows), batch)]

    def count(self, result: Any) -> dict[str, Any]:
        """Tokens only."""
        return {"tokens": sum(map(len, result.ids))}


System = Native | Outside


class OutsideSystems:
    """Makes the other systems of a pair, each model loaded once.

    Args:
        contender: the pair.
        threads: of every call.
        max_new_tokens: of every output.
    """

    def __init__(self, contender: Contender, threads: int, max_new_tokens: int):
        self._contender, self._threads, self._max_new_tokens = contender, threads, max_new_tokens
        self._models: dict[str, Any] = {}

    def make(self, point: OperatingPoint) -> Outside:
        """The system of a point of an outside group."""
        role = point.model or "teacher"
        owner = {"student": Owner.STUDENT, "teacher": Owner.TEACHER}.get(point.model or "")
        if point.group == "assisted":
            generate = self._hugging_face(role, assistant_model=self._model("student"))
            return Outside(generate, self._contender, role, owner, largest_batch=1)
        if point.group == "hugging-face":
            return Outside(self._hugging_face(role), self._contender, role, owner)
        generate = peers.CTranslate2(self._model(role)).generate(
            self._max_new_tokens,
            self._threads,
            peers.ctranslate2_beside(self._contender.models[role].dtype, self._contender.device).split()[-1],
            min_new_tokens=1,
            suppressed=self._suppressed(role),
            device=self._contender.device,
        )
        return Outside(generate, self._contender, role, owner)

    def _hugging_face(self, role: str, **options: Any) -> peers.Generate:
        if self._suppressed(role):
            options["suppress_tokens"] = self._suppressed(role)
        return peers.hugging_face(self._model(role), self._max_new_tokens, self._threads, 1, **options)

    def _suppressed(self, role: str) -> list[int]:
        """<tau>, which nobody writes."""
        tau = self._contender.models["student"].tau_token_id
        return [tau] if tau is not None and tau < self._contender.models[role].vocab_size else []

    def _model(self, role: str) -> Any:
        if role not in self._models:
            from transformers import T5ForConditionalGeneration

            folder = self._contender.folders[role]
            with quietly():  # about beta, which Hugging Face's T5 does not know and does not need
                model = T5ForConditionalGeneration.from_pretrained(own_files(folder, role), dtype=torch.float32).eval()
            self._models[role] = peers.beside(model, self._contender.models[role].dtype, self._contender.device)
        return self._models[role]
