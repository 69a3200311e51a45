"""Holds decodes of the shipped pairs to what they were, bit for bit: all methods, number formats, batch sizes, levels.

    python -m bench.identity record FILE    # before a change that must not change what is computed
    python -m bench.identity check FILE     # after it

Bits differ between SIMD levels (docs/design.md), so each level that the machine has is recorded and compared by its own
name. A digest covers token ids, owners and log-probabilities.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import typer

import kdtw_fast
import kdtw_fast.pairs
from kdtw_fast import _core

SENTENCES = 12
Make = Callable[..., Any]


def _methods(pair: kdtw_fast.Pair) -> dict[str, tuple[Make, dict[str, Any]]]:
    """Each method's name, what makes its decoder (given dtype and num_threads), and the options of its calls."""
    two = (pair.student, pair.teacher)
    shared = {"tokenizer": pair.tokenizer}

    def of(kind: Make, *models: Any, **settings: Any) -> Make:
        return lambda **given: kind(*models, **shared, **settings, **given)

    wheels = of(kdtw_fast.TrainingWheelsDecoder, *two)
    sampled = {"temperature": 0.9, "top_k": 40, "top_p": 0.95, "seed": 7}
    return {
        "student": (of(kdtw_fast.SingleModelDecoder, pair.student), {}),
        "teacher": (of(kdtw_fast.SingleModelDecoder, pair.teacher), {}),
        "teacher sampled": (of(kdtw_fast.SingleModelDecoder, pair.teacher), sampled),
        "wheels no": (wheels, {"budget": "no"}),
        "wheels light": (wheels, {"budget": "light"}),
        "wheels very high": (wheels, {"budget": "very high"}),
        "wheels sampled": (wheels, {"budget": "moderate", **sampled}),
        "wheels bounded": (wheels, {"budget": "high", "max_teacher_fraction": 0.2, "max_teacher_calls": 3}),
        "wheels verify": (of(kdtw_fast.TrainingWheelsDecoder, *two, verify_lenience=0.3), {"budget": "light"}),
        "random": (of(kdtw_fast.RandomCallDecoder, *two, threshold=0.7), {"budget": "moderate"}),
        "entropy": (of(kdtw_fast.EntropyCallDecoder, *two, threshold=1.0), {"budget": "moderate"}),
        "speculative": (of(kdtw_fast.SpeculativeDecoder, *two, draft_length=3), {}),
        "speculative lossy": (of(kdtw_fast.SpeculativeDecoder, *two, draft_length=5, lenience=0.3), {}),
        "speculative sampled": (of(kdtw_fast.SpeculativeDecoder, *two), sampled),
        "bild": (of(kdtw_fast.BigLittleDecoder, *two, fallback_threshold=0.5, rollback_threshold=2.0), {}),
        "interleaved": (of(kdtw_fast.InterleavedDecoder, *two), {}),
        "interleaved sampled": (of(kdtw_fast.InterleavedDecoder, *two), sampled),
    }


def _log_probs(out: Any) -> np.ndarray:
    """Both models' log-probabilities; of a model alone its own, under whichever of the two names they stand."""
    student, teacher = out.student_logprobs.numpy(), out.teacher_logprobs.numpy()
    if np.isnan(student).all() or np.isnan(teacher).all():
        return np.where(np.isnan(student), teacher, student)
    return np.concatenate([student, teacher])


def _digest(outputs: list[Any], with_owners: bool) -> str:
    """Of the rows of all outputs, each without the padding that its batch gave it."""
    seen = hashlib.sha256()
    for out in outputs:
        log_probs = _log_probs(out)
        rows = len(out.sequences)
        for r, length in enumerate(out.lengths.tolist()):
            end = 1 + length
            seen.update(out.sequences[r, :end].numpy().tobytes())
            if with_owners:
                seen.update(out.owners[r, :end].numpy().tobytes())
            for own in log_probs.reshape(-1, rows, log_probs.shape[1]):
                seen.update(np.where(np.isnan(own[r, :end]), np.float32(1), own[r, :end]).tobytes())
    return seen.hexdigest()[:24]


def _cases() -> Iterator[tuple[str, str]]:
    """(case, digest of what it decodes), for every SIMD level of this machine."""
    for name in kdtw_fast.pairs.pair_names():
        pair = kdtw_fast.load_pair(name)
        texts = [sample.source for sample in pair.samples(SENTENCES)]
        for level, dtype in itertools.product(kdtw_fast.build_info()["simd_levels"], ("fp32", "bf16", "int8")):
            _core.set_simd(level)
            for method, (make, options) in _methods(pair).items():
                decoder = make(dtype=dtype, num_threads=1 + len(method) % 2)
                for batch in (1, 5, SENTENCES):
                    given = dict(options, max_new_tokens=48, output_logprobs=True)
                    outputs = []
                    for begin in range(0, len(texts), batch):
                        part = texts[begin : begin + batch]
                        keys = range(begin, begin + len(part))
                        outputs.append(decoder(part, row_ids=list(keys), **given))
                    # A model alone is named by its role, which is no part of what is computed.
                    yield f"{name}/{level}/{dtype}/{method}/{batch}", _digest(outputs, len(decoder.teachers) > 0)


app = typer.Typer(help=__doc__, add_completion=False)


@app.command()
def record(file: Path) -> None:
    """Writes the digests of all decodes to a file."""
    found = dict(_cases())
    file.write_text(json.dumps(found, indent=0, sort_keys=True) + "\n", encoding="utf-8")
    print(f"{len(found)} decodes recorded")


@app.command()
def check(file: Path) -> None:
    """Compares all decodes with a file's digests; exits with 1 where one differs, or none could be compared."""
    known, found = json.loads(file.read_text(encoding="utf-8")), dict(_cases())
    common = [case for case in found if case in known]
    different = [case for case in common if found[case] != known[case]]
    for case in different:
        print(f"differs: {case}")
    print(f"{len(common)} decodes compared, {len(different)} differ; {len(found) - len(common)} are not in {file}")
    sys.exit(bool(different) or not common)


if __name__ == "__main__":
    app()
