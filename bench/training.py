"""Phase 2 on the shipped pair: rollouts beside Hugging Face's generate, and a batch beside what renews the decoder.

A rollout decodes with both models, the oracle's and GKD's with one; all of ours note log-probabilities. Hugging Face's
generate has no rollouts of two models: it decodes the same sentences with one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from kdtw_fast.training.allocations import Instructions
from kdtw_fast.training.batches import encode, prompt_ids
from kdtw_fast.training.debian import write_jsonl
from kdtw_fast.training.path_consistency import PathConsistency
from kdtw_fast.training.recipes import resolve
from kdtw_fast.training.rollouts import Rollouts, Tasks
from kdtw_fast.training.settings import PhaseSettings

from bench.rows import How, Row
from kdtw_fast import BUDGETS, SingleModelDecoder
from kdtw_fast.options import NO_LIMIT
from kdtw_fast.paired_timing import take_turns
from kdtw_fast.pairs import Pair, load_pair

MOST_NEW = 80
HUGGING_FACE = "Hugging Face generate"
MODELS = ("student", "teacher")
ROLLOUTS = [("both", "kdtw_fast"), *((model, system) for model in MODELS for system in ("kdtw_fast", HUGGING_FACE))]


def measure(how: How) -> Iterator[Row]:
    """Kinds "rollout" and "phase 2"."""
    pair = load_pair("debian-de-en")
    yield from _rollouts(how, pair)
    yield from _phase_2(how, pair)


def _rollouts(how: How, pair: Pair) -> Iterator[Row]:
    torch.set_num_threads(how.threads)
    rows = encode(pair.samples()[: 6 if how.tiny else 48], pair.tokenizer)
    budgets = [i % len(BUDGETS) for i in range(len(rows))]
    instructions = Instructions(pair.student.config.student_prompt)
    own = prompt_ids(pair.tokenizer, instructions.texts)
    (told,) = prompt_ids(pair.tokenizer, [pair.student.config.teacher_prompt])
    settings = PhaseSettings(max_new_tokens=MOST_NEW, threads=how.threads)
    rollouts = Rollouts(pair.student, [pair.teacher], own, told, instructions.fractions, settings)

    def ours() -> int:
        return sum(map(len, rollouts.on_policy(Tasks(rows, budgets), temperature=1.0)))

    def alone(name: str, system: str) -> Callable[[], int]:
        model: Any = getattr(pair, name)
        prompts = [own[b] for b in budgets] if name == "student" else [told] * len(rows)
        sources = [[*prompt, *row.source, model.config.eos_token_id] for prompt, row in zip(prompts, rows)]
        batch = pair.tokenizer.pad({"input_ids": sources}, return_tensors="pt")
        decoder = SingleModelDecoder(model, num_threads=how.threads)

        def native() -> int:
            options = {"max_source_length": NO_LIMIT, "temperature": 1.0, "output_logprobs": True}
            out = decoder.generate(sources, max_new_tokens=MOST_NEW, **options)
            assert out.lengths is not None
            return int(out.lengths.sum())

        def theirs() -> int:
            options = {
                "do_sample": True,
                "num_beams": 1,
                "top_k": 0,
                "suppress_tokens": decoder.student.tau_token_ids or None,
            }
            with torch.inference_mode():
                out = model.generate(**batch, max_new_tokens=MOST_NEW, **options)
            return int((out[:, 1:] != model.config.pad_token_id).sum())

        return native if system == "kdtw_fast" else theirs

    both, *others = ROLLOUTS
    taken = take_turns({", ".join(both): ours} | {", ".join(one): alone(*one) for one in others}, how.rounds(5))
    for (models, system), recorded in zip(ROLLOUTS, taken.values(), strict=True):
        rates = sorted(tokens / seconds for tokens, seconds in zip(recorded.results, recorded.seconds))
        seen = {"tokens_per_second": rates[len(rates) // 2]}
        yield Row("rollout", {"models": models, "system": system}, recorded.seconds, seen)
        assert min(recorded.results) > 0


def _phase_2(how: How, pair: Pair) -> Iterator[Row]:
    with TemporaryDirectory() as name:
        algorithm = _algorithm(how, pair, Path(name))
    numbers = count()
    parts: dict[str, Callable[[], object]] = {
        "batch": lambda: algorithm.train_batch(next(numbers)),
        "renewal": lambda: algorithm.rollouts.decoder.student.update_weights(algorithm.student),
    }
    for part, recorded in take_turns(parts, how.rounds(7)).items():
        yield Row("phase 2", {"part": part}, recorded.seconds)


def _algorithm(how: How, pair: Pair, folder: Path) -> PathConsistency:
    write_jsonl(folder / "train.jsonl", pair.samples()[120:])
    write_jsonl(folder / "validation.jsonl", pair.samples()[:120])
    places = {
        "data.folder": folder,
        "out": folder / "out",
        "student.path": pair.folder / "student",
        "teacher.path": pair.folder / "teacher",
        "tokenizer": pair.folder / "tokenizer",
        "threads": how.threads,
        "tasks": 6 if how.tiny else 24,
    }
    recipe = resolve("debian-de-en/phase2", [f"{name}={value}" for name, value in places.items()])
    algorithm = recipe.build()
    assert isinstance(algorithm, PathConsistency)
    return algorithm
