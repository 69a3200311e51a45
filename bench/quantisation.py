"""What bf16 and int8 weights cost in quality on the shipped pair: next tokens, whole outputs and BLEU beside fp32.

`python -m bench.quantisation` (`make quantisation`) measures it and writes the table into docs/results.md.
"""

from __future__ import annotations

from datetime import date
from typing import Any

import sacrebleu

from bench.outliers import same_next
from bench.regions import RESULTS, write_region
from kdtw_fast import SingleModelDecoder, TrainingWheelsDecoder
from kdtw_fast.pairs import load_pair
from kdtw_fast.tables import markdown_table

DTYPES = ("fp32", "bf16", "int8")
KDTW_BUDGET = "moderate"


def formats_table(limit: int | None = None, num_threads: int | None = None) -> str:
    """Quality by method and number format, over the first ``limit`` sample sentences (None = all).

    Columns: the share of the fp32 output's tokens that the model would also have written after the same prefix (of one
    model), the share of sentences whose whole output equals fp32's, and sacrebleu's corpus BLEU.
    """
    pair = load_pair()
    samples = pair.samples(limit)
    sources, references = [s.source for s in samples], [s.target for s in samples]
    settings: dict[str, Any] = {"tokenizer": pair.tokenizer, "num_threads": num_threads}
    cells: list[list[str]] = []
    for method in ("student alone", "teacher alone", f"KDTW, {KDTW_BUDGET}"):
        exact: list[list[int]] = []
        for dtype in DTYPES:
            if method.startswith("KDTW"):
                decoder: Any = TrainingWheelsDecoder(pair.student, pair.teacher, dtype=dtype, **settings)
                options = {"budget": KDTW_BUDGET}
            else:
                role = method.split()[0]
                decoder, options = SingleModelDecoder(getattr(pair, role), role=role, dtype=dtype, **settings), {}
            out = decoder(sources, max_new_tokens=64, **options)
            tokens = [row[: 1 + int(n)] for row, n in zip(out.sequences.tolist(), out.lengths)]
            exact = exact or tokens
            ids = [own for own, _ in decoder.tokenize(sources, [None] * len(sources))]
            picked = "–" if options else f"{100 * same_next(decoder.model, ids, exact):.2f} %"
            same_output = sum(a == b for a, b in zip(tokens, exact)) / len(exact)
            bleu = sacrebleu.corpus_bleu(out.texts, [references]).score
            cells.append([method, dtype, picked, f"{100 * same_output:.1f} %", f"{bleu:.2f}"])
    columns = ("method", "weights", "next token as fp32", "whole output as fp32", "BLEU")
    note = f"The pair's {len(samples)} sample sentences, greedy. The pair ships in bf16, so bf16 holds it exactly."
    return "\n".join([*markdown_table(columns, cells, text_columns=2), "", note])


if __name__ == "__main__":
    write_region(RESULTS, "quantisation", f"`make quantisation` on {date.today().isoformat()}.\n\n{formats_table()}")
