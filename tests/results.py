"""Records of a comparison made up by hand, for the tests of what is made from them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from kdtw_fast.comparison.records import Outputs, Passes, Records, Sentence, Timing

PROVENANCE = {"machine": {"processor": "made up"}, "commit": None, "command": "kdtw compare", "seed": 0}
SIGNATURES = {"rouge2": "rouge", "bleu": "bleu"}


def sentence(index: int, tokens: Sequence[str], owners: str, text: str, source: str, reference: str) -> Sentence:
    """A sentence whose owners are the letters s, t, a, c; the student stepped at every token."""
    names = [{"s": "student", "t": "teacher", "a": "accepted", "c": "corrected"}[letter] for letter in owners]
    calls = sum(name in ("teacher", "corrected") for name in names)
    return Sentence(
        index=index,
        source=source,
        reference=reference,
        text=text,
        tokens=list(tokens),
        owners=names,
        teacher_calls=calls,
        drafted=len(names) - calls,
        accepted=names.count("accepted"),
        rolled_back=0,
        student_logprobs=[-0.25] * len(names),
        teacher_logprobs=[None if name == "student" else -1.5 for name in names],
        student_reads=[1] * len(names),
        source_tokens={"student": 2, "teacher": 2},
        teacher_reads=[2] * calls,
    )


def outputs(
    group: str,
    sentences: list[Sentence],
    *,
    method: str | None = None,
    budget: float | None = None,
    pair: str = "de-en",
    label: str | None = None,
    **settings: Any,
) -> Outputs:
    """The outputs of one point."""
    method = method or group
    name = ",".join(f"{key}={value}" for key, value in settings.items()) or "alone"
    return Outputs(
        id=f"{pair}/{method}/{name}",
        pair=pair,
        task="translation",
        group=group,
        method=method,
        settings=settings,
        label=label or f"{group} {name}",
        budget=budget,
        signatures=SIGNATURES,
        sentences=sentences,
        provenance=PROVENANCE,
    )


def timing(of: Outputs, repetition: int, seconds: Sequence[float], batch: int = 1) -> Timing:
    """A turn over all sentences of a point."""
    tokens = [len(sentence.tokens) for sentence in of.sentences]
    indices = list(range(len(tokens)))
    return Timing(
        of.id, repetition, batch, 1, len(tokens), indices, list(seconds), tokens, [], [], {}, provenance=PROVENANCE
    )


def passes(repetition: int = 0, scale: float = 1.0, pair: str = "de-en") -> Passes:
    """Round numbers: a student's step is 1 ms, 1.5 after the teacher's; a teacher's 10 ms, a tenth more a token.

    Encoders take 2 and 20 ms for the two tokens of every source.
    """
    student = {"encode": 1e-3, "alone": [[1, 1e-3]], "switched": [[1, 1.5e-3], [2, 1.6e-3]]}
    teacher = {
        "encode": 10e-3,
        "alone": [[1, 10e-3]],
        "catch_up": [[1, 11e-3], [5, 15e-3]],
        "verify": [[1, 12e-3], [5, 20e-3]],
    }
    for role in (student, teacher):
        for kind, value in role.items():
            role[kind] = value * scale if kind == "encode" else [[n, taken * scale] for n, taken in value]
    call = {"student": 1e-4, "teacher": 4e-4, "pair": 2e-4, "unasked": 3e-4}
    return Passes(pair, repetition, 1, 1, student, teacher, call, PROVENANCE)


def small_records(texts: Sequence[str] = ("this is it", "that is all"), pair: str = "de-en") -> Records:
    """Student, teacher, KDTW at one budget and speculative decoding, each on all texts, timed in two turns."""
    records = Records()
    points: dict[str, tuple[str, dict[str, Any]]] = {
        "student": ("s", {"method": "greedy-student", "label": "student alone"}),
        "teacher": ("t", {"method": "greedy-teacher", "label": "teacher alone"}),
        "training-wheels": ("st", {"budget": 0.1, "label": "KDTW, light"}),
        "speculative": ("ac", {"draft_length": 5, "label": "speculative, lossless"}),
    }
    for group, (owners, more) in points.items():
        sentences = []
        for i, text in enumerate(texts):
            half = len(text) // 2
            tokens = ["▁" + text[:half], text[half:], "</s>"]
            pattern = (owners * 2)[:2] + owners[0]
            sentences.append(sentence(i, tokens, pattern, text, f"quelle {i}: {text}", f"reference {i}: {text}"))
        point = outputs(group, sentences, pair=pair, **more)
        records.add(point)
        for repetition in range(2):
            records.add(timing(point, repetition, [0.01 * (1 + repetition)] * len(texts)))
    records.add(passes(pair=pair))
    return records
