"""The two controls in a comparison: the same pair, asked at random or by entropy as often as KDTW asked.

They decode in plain PyTorch (:mod:`kdtw_fast.training.controls`), so they have quality and use, and no latency.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from kdtw_fast.decoders import TrainingWheelsDecoder
from kdtw_fast.outputs import Owner
from kdtw_fast.pairs import quietly
from kdtw_fast.random import uniform

from .plan import OperatingPoint
from .provenance import SEED
from .records import Outputs, Sentence
from .subjects import Subject
from .systems import pieces

BATCH = 64  # rows decoded together; the results do not depend on it
TOLERANCE, ROUNDS = 0.01, 6  # of the search for the threshold
_COIN = 3  # stream of the coin flips; the decoders have 0 to 2
OnDone = Callable[[int], object]


@dataclass
class _Written:
    """What a control wrote, by sentence: ids, their scores (one above the threshold asks), and which were asked for."""

    threshold: float
    outputs: list[list[int]]
    scores: list[list[float]]
    marks: list[list[bool]]

    @property
    def use(self) -> float:
        """Share of the tokens that were asked for."""
        return sum(map(sum, self.marks)) / max(1, sum(map(len, self.marks)))

    def threshold_for(self, wanted: float) -> float:
        """The threshold that so large a share of the scores exceeds."""
        return float(np.quantile(np.concatenate([np.asarray(s) for s in self.scores]), 1 - wanted))


class Controls:
    """Both controls on one pair.

    Args:
        subject: the pair, whose student has <tau> and reads the budget's prompt, but never decides itself.
        max_new_tokens: of every output.
    """

    def __init__(self, subject: Subject, max_new_tokens: int):
        from transformers import T5ForConditionalGeneration

        from kdtw_fast.modeling import TrainingWheelsT5

        self._subject, self._max_new_tokens = subject, max_new_tokens
        folders, fp32 = subject.folders, torch.float32
        with quietly():
            self._student = TrainingWheelsT5.from_pretrained(folders["student"], dtype=fp32).eval()
            self._teacher = T5ForConditionalGeneration.from_pretrained(folders["teacher"], dtype=fp32).eval()
        models = subject.models
        self._prompts = TrainingWheelsDecoder(models["student"], models["teacher"], tokenizer=subject.tokenizer)

    def write(
        self, point: OperatingPoint, matched_to: Outputs, on_done: OnDone
    ) -> tuple[list[Sentence], dict[str, float]]:
        """All sentences, asking as often as a point of KDTW did; and the settings that were found.

        The threshold is searched for on these very sentences (which favours the control), each time where so many of
        the last round's scores lie above it, or halfway between one that is too low and one that is too high, until use
        is within the tolerance; the closest is taken.

        Args:
            point: a control's.
            matched_to: outputs of KDTW at the same budget.
            on_done: told of sentences, all of them after each round of the search.
        """
        wanted = teacher_use(matched_to.sentences)
        pair = self._tokenized(point.options["budget"])
        entropy = point.method == "entropy"
        low, high = 0.0, math.log(self._student.config.vocab_size) if entropy else 1.0
        threshold = (1 - wanted) * (0.5 * high if entropy else high)
        best: _Written | None = None
        for _ in range(ROUNDS):
            written = self._decode(entropy, threshold, pair)
            on_done(len(pair))
            if best is None or abs(written.use - wanted) < abs(best.use - wanted):
                best = written
            if abs(best.use - wanted) <= TOLERANCE:
                break
            low, high = (threshold, high) if written.use > wanted else (low, threshold)
            threshold = written.threshold_for(wanted)
            if not low < threshold < high:  # other calls make other texts, which have other scores
                threshold = (low + high) / 2
        assert best is not None
        found = {"threshold": best.threshold, "wanted_use": wanted, "use": best.use, "tolerance": TOLERANCE}
        return [self._sentence(i, ids, marks) for i, (ids, marks) in enumerate(zip(best.outputs, best.marks))], found

    def _tokenized(self, budget: str) -> list[tuple[list[int], list[int]]]:
        texts = [example.source for example in self._subject.examples]
        rows = self._prompts.tokenize(texts, [budget] * len(texts))
        return [(own, (told[0] if told else None) or own) for own, told in rows]

    def _decode(self, entropy: bool, threshold: float, rows: list[tuple[list[int], list[int]]]) -> _Written:
        from kdtw_fast.training import controls
        from kdtw_fast.training.oracle import decode_with_rule

        written = _Written(threshold, [[] for _ in rows], [[] for _ in rows], [[] for _ in rows])
        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        tau = self._student.config.tau_token_id
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            steps: list[list[float]] = []

            def rule(mine: Any, theirs: Any, step: int, some: Any = some, steps: Any = steps) -> torch.Tensor:
                coins = torch.from_numpy(uniform(SEED, np.asarray(some), step, _COIN))[:, None]
                scores = controls.entropy(mine, tau) if entropy else coins
                steps.append(scores[:, 0].tolist())
                return scores > threshold

            own, told = (self._batch([rows[i][k] for i in some]) for k in (0, 1))
            outputs, _ = decode_with_rule(self._student, self._teacher, own, told, rule, self._max_new_tokens)
            for r, (i, ids) in enumerate(zip(some, outputs)):
                written.outputs[i] = ids
                written.scores[i] = [steps[t][r] for t in range(len(ids))]
                written.marks[i] = [score > threshold for score in written.scores[i]]
        return written

    def _batch(self, rows: list[list[int]]) -> Any:
        from kdtw_fast.peers import padded
        from kdtw_fast.training.batches import Batch

        ids, mask = padded(rows, self._subject.tokenizer.pad_token_id)
        return Batch(ids, mask, torch.empty(len(rows), 0, dtype=torch.long))

    def _sentence(self, index: int, ids: list[int], marks: list[bool]) -> Sentence:
        example, tokenizer = self._subject.examples[index], self._subject.tokenizer
        student, teacher = Owner.STUDENT.name.lower(), Owner.TEACHER.name.lower()
        return Sentence(
            index=index,
            source=example.source,
            reference=example.reference,
            text=tokenizer.decode(ids, skip_special_tokens=True),
            tokens=pieces(tokenizer, ids),
            owners=[teacher if mark else student for mark in marks],
            teacher_calls=sum(marks),
            drafted=len(ids) - sum(marks),
            accepted=0,
            rolled_back=0,
        )


def teacher_use(sentences: list[Sentence]) -> float:
    """Share of all output tokens that the teacher wrote."""
    by_teacher = {Owner.TEACHER.name.lower(), Owner.CORRECTED.name.lower()}
    total = sum(len(sentence.tokens) for sentence in sentences)
    return sum(owner in by_teacher for sentence in sentences for owner in sentence.owners) / max(1, total)
