"""What bf16 and int8 weights cost in quality on the shipped pair: next tokens, whole outputs and BLEU beside fp32.

`python -m bench.quantisation` (`make quantisation`) measures it and writes the table into docs/results.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import Any

import sacrebleu

from bench.regions import RESULTS, write_region
from kdtw_fast import NativeT5, SingleModelDecoder, TrainingWheelsDecoder
from kdtw_fast.pairs import Pair, load_pair
from kdtw_fast.tables import markdown_table

DTYPES = ("fp32", "bf16", "int8")
KDTW_BUDGET = "moderate"


@dataclass(frozen=True)
class Quality:
    """One way to decode in one number format, over the same sentences.

    Args:
        method: what decoded.
        dtype: format of the weights of all its models.
        same_next: share of the fp32 output's tokens that the model would also have written after the same prefix;
            None for two models.
        same_output: share of sentences whose whole output equals fp32's.
        bleu: sacrebleu's corpus BLEU.
        sentences: how many.
    """

    method: str
    dtype: str
    same_next: float | None
    same_output: float
    bleu: float
    sentences: int


def measure(limit: int | None = None, num_threads: int | None = None) -> list[Quality]:
    """One row per method and format, over the first ``limit`` sample sentences (None = all)."""
    pair = load_pair()
    samples = pair.samples(limit)
    sources, references = [s.source for s in samples], [s.target for s in samples]
    rows: list[Quality] = []
    for method in ("student alone", "teacher alone", f"KDTW, {KDTW_BUDGET}"):
        exact: list[list[int]] = []
        for dtype in DTYPES:
            decoder, models = _decoder(pair, method, dtype, num_threads)
            options = {"budget": KDTW_BUDGET} if isinstance(decoder, TrainingWheelsDecoder) else {}
            out = decoder(sources, max_new_tokens=64, **options)
            tokens = [row[: 1 + int(n)] for row, n in zip(out.sequences.tolist(), out.lengths)]
            exact = exact or tokens
            same_next = _same_next(models[0], decoder, sources, exact) if len(models) == 1 else None
            same_output = sum(a == b for a, b in zip(tokens, exact)) / len(exact)
            bleu = sacrebleu.corpus_bleu(out.texts, [references]).score
            rows.append(Quality(method, dtype, same_next, same_output, bleu, len(samples)))
    return rows


def _decoder(pair: Pair, method: str, dtype: str, num_threads: int | None) -> tuple[Any, list[NativeT5]]:
    student = NativeT5.from_model(pair.student, "student", dtype=dtype)
    teacher = NativeT5.from_model(pair.teacher, "teacher", dtype=dtype)
    settings: dict[str, Any] = {"tokenizer": pair.tokenizer, "num_threads": num_threads}
    if method.startswith("KDTW"):
        return TrainingWheelsDecoder(student, teacher, **settings), [student, teacher]
    model = student if method.startswith("student") else teacher
    return SingleModelDecoder(model, **settings), [model]


def _same_next(
    model: NativeT5, decoder: SingleModelDecoder, texts: Sequence[str], outputs: Sequence[list[int]]
) -> float:
    prompt = model.teacher_prompt or ""
    if model.student_prompt is not None:
        prompt = model.student_prompt.format(budget="no")
    same = total = 0
    for text, tokens in zip(texts, outputs):
        logits = model.decode_logits(decoder.tokenizer(prompt + text)["input_ids"], tokens[:-1])
        if model.tau_token_id is not None:
            logits[:, model.tau_token_id] = float("-inf")
        same += int((logits.argmax(axis=1) == tokens[1:]).sum())
        total += len(tokens) - 1
    return same / total


def formats_table(rows: Sequence[Quality]) -> str:
    """Quality by method and number format."""
    cells = [
        [
            row.method,
            row.dtype,
            "–" if row.same_next is None else f"{100 * row.same_next:.2f} %",
            f"{100 * row.same_output:.1f} %",
            f"{row.bleu:.2f}",
        ]
        for row in rows
    ]
    sentences = rows[0].sentences
    columns = ("method", "weights", "next token as fp32", "whole output as fp32", "BLEU")
    return "\n".join(
        [
            *markdown_table(columns, cells, text_columns=2),
            "",
            f"The pair's {sentences} sample sentences, greedy. The pair ships in bf16, so bf16 holds it exactly.",
        ]
    )


if __name__ == "__main__":
    write_region(
        RESULTS, "quantisation", f"`make quantisation` on {date.today().isoformat()}.\n\n{formats_table(measure())}"
    )
