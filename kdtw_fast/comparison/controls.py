"""The two controls in a comparison: the same pair, asked at random or by entropy as often as KDTW asked.

They decode in plain PyTorch (:mod:`kdtw_fast.training.controls`), so they have quality and use, and no latency.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from kdtw_fast.decoders import TrainingWheelsDecoder
from kdtw_fast.outputs import Owner

from .plan import OperatingPoint
from .provenance import SEED
from .records import Outputs, Sentence
from .subjects import Subject

BATCH = 64  # rows decoded together; the results do not depend on it
TOLERANCE, ROUNDS = 0.01, 8  # of the search for the rate or the threshold
OnDone = Callable[[int], object]
_Written = tuple[list[list[int]], list[list[bool]]]  # by sentence: ids, and which of them the teacher wrote


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
        self._student = TrainingWheelsT5.from_pretrained(folders["student"], dtype=fp32).eval()
        self._teacher = T5ForConditionalGeneration.from_pretrained(folders["teacher"], dtype=fp32).eval()
        models = subject.models
        self._prompts = TrainingWheelsDecoder(models["student"], models["teacher"], tokenizer=subject.tokenizer)

    def write(self, point: OperatingPoint, matched_to: Outputs, on_done: OnDone) -> tuple[list[Sentence], dict]:
        """All sentences, asking as often as a point of KDTW did; and the settings that were found.

        The rate or the threshold is searched for on these very sentences, which favours the control.

        Args:
            point: a control's.
            matched_to: outputs of KDTW at the same budget.
            on_done: told of sentences, all of them after each round of the search.
        """
        from kdtw_fast.training.controls import matched

        wanted = teacher_use(matched_to.sentences)
        pair = self._tokenized(point.options["budget"])
        last: dict[float, _Written] = {}

        def decode(level: float) -> tuple[list[list[int]], float]:
            last[level] = self._decode(point.method, level, pair)
            outputs, marks = last[level]
            on_done(len(outputs))
            return outputs, sum(map(sum, marks)) / max(1, sum(map(len, marks)))

        guess = wanted if point.method == "random" else 0.5 + 0.5 * wanted
        level, _, use = matched(decode, wanted, guess, TOLERANCE, ROUNDS)
        found = {"level": level, "wanted_use": wanted, "use": use, "tolerance": TOLERANCE}
        return [self._sentence(i, ids, marks) for i, (ids, marks) in enumerate(zip(*last[level]))], found

    def _tokenized(self, budget: str) -> list[tuple[list[int], list[int]]]:
        texts = [example.source for example in self._subject.examples]
        rows = self._prompts.tokenize(texts, [budget] * len(texts))
        return [(own, told or own) for own, told in rows]

    def _decode(self, name: str, level: float, rows: list[tuple[list[int], list[int]]]) -> _Written:
        from kdtw_fast.training.controls import ask_rule
        from kdtw_fast.training.oracle import decode_with_rule

        order = sorted(range(len(rows)), key=lambda i: len(rows[i][0]))
        outputs: list[list[int]] = [[] for _ in rows]
        marks: list[list[bool]] = [[] for _ in rows]
        for start in range(0, len(order), BATCH):
            some = order[start : start + BATCH]
            rule = ask_rule(name, level, self._student.config, some, SEED)
            steps: list[list[bool]] = []

            def recording(mine: Any, theirs: Any, step: int, rule: Any = rule, steps: Any = steps) -> torch.Tensor:
                asked = rule(mine, theirs, step)
                steps.append(asked[:, 0].tolist())
                return asked

            own, told = (self._batch([rows[i][k] for i in some]) for k in (0, 1))
            written, _ = decode_with_rule(self._student, self._teacher, own, told, recording, self._max_new_tokens)
            for r, (i, ids) in enumerate(zip(some, written)):
                outputs[i], marks[i] = ids, [steps[t][r] for t in range(len(ids))]
        return outputs, marks

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
            tokens=tokenizer.convert_ids_to_tokens(ids),
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
