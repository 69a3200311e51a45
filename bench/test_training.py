"""Phase 2 on the shipped pair: rollouts beside Hugging Face's generate, and a batch beside what renews the decoder.

A rollout decodes with both models, the oracle's and GKD's with one; all of ours note log-probabilities. Hugging Face's
generate has no rollouts of two models: it decodes the same sentences with one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from kdtw_fast.training.allocations import Instructions
from kdtw_fast.training.debian import write_jsonl
from kdtw_fast.training.frames import Frame
from kdtw_fast.training.path_consistency import PathConsistency
from kdtw_fast.training.recipes import resolve
from kdtw_fast.training.rollouts import Rollouts, Tasks
from kdtw_fast.training.settings import PhaseSettings
from pytest_benchmark.fixture import BenchmarkFixture

from bench.replay import replay_timer, report
from kdtw_fast import BUDGETS, SingleModelDecoder
from kdtw_fast.options import NO_LIMIT
from kdtw_fast.paired_timing import Recorded, take_turns
from kdtw_fast.pairs import Pair, load_pair

MOST_NEW = 80
HUGGING_FACE = "Hugging Face generate"
MODELS = ("student", "teacher")
ROLLOUTS = [("both", "kdtw_fast"), *((model, system) for model in MODELS for system in ("kdtw_fast", HUGGING_FACE))]


@pytest.fixture(scope="module")
def pair() -> Pair:
    return load_pair("debian-de-en")


@pytest.fixture(scope="module")
def rolled(pair: Pair, tiny: bool, rounds: int | None, threads: int) -> dict[tuple[str, str], Recorded]:
    torch.set_num_threads(threads)
    frame = Frame(pair.tokenizer)
    rows = frame.encode(pair.samples()[: 6 if tiny else 48])
    budgets = [i % len(BUDGETS) for i in range(len(rows))]
    instructions = Instructions(pair.student.config.student_prompt)
    own = frame.prompts(instructions.texts)
    (told,) = frame.prompts([pair.student.config.teacher_prompt])
    settings = PhaseSettings(max_new_tokens=MOST_NEW, threads=threads)
    rollouts = Rollouts(pair.student, [pair.teacher], own, told, instructions.fractions, settings)

    def ours() -> int:
        return sum(map(len, rollouts.on_policy(Tasks(rows, budgets), temperature=1.0)))

    def alone(name: str, system: str) -> Callable[[], int]:
        model: Any = getattr(pair, name)
        prompts = [own[b] for b in budgets] if name == "student" else [told] * len(rows)
        sources = [[*prompt, *row.source, model.config.eos_token_id] for prompt, row in zip(prompts, rows)]
        batch = pair.tokenizer.pad({"input_ids": sources}, return_tensors="pt")
        decoder = SingleModelDecoder(model, num_threads=threads)

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
    return take_turns({both: ours} | {one: alone(*one) for one in others}, rounds or 5)


@pytest.mark.benchmark(timer=replay_timer)
@pytest.mark.parametrize("contestant", ROLLOUTS, ids=", ".join)
def test_rollouts(
    benchmark: BenchmarkFixture, rolled: dict[tuple[str, str], Recorded], contestant: tuple[str, str]
) -> None:
    recorded = rolled[contestant]
    benchmark.group = "rollouts"
    rates = sorted(tokens / seconds for tokens, seconds in zip(recorded.results, recorded.seconds))
    report(benchmark, recorded.seconds)
    models, system = contestant
    rate = rates[len(rates) // 2]
    benchmark.extra_info |= {"kind": "rollout", "models": models, "system": system, "tokens_per_second": rate}
    assert min(recorded.results) > 0


@pytest.fixture(scope="module")
def trained(
    pair: Pair, tiny: bool, rounds: int | None, threads: int, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Recorded]]:
    folder: Path = tmp_path_factory.mktemp("phase2")
    write_jsonl(folder / "train.jsonl", pair.samples()[120:])
    write_jsonl(folder / "validation.jsonl", pair.samples()[:120])
    places = {
        "data.folder": folder,
        "out": folder / "out",
        "student.path": pair.folder / "student",
        "teacher.path": pair.folder / "teacher",
        "tokenizer": pair.folder / "tokenizer",
        "threads": threads,
        "tasks": 6 if tiny else 24,
    }
    recipe = resolve("debian-de-en/phase2", [f"{name}={value}" for name, value in places.items()])
    algorithm = recipe.build()
    assert isinstance(algorithm, PathConsistency)
    numbers = count()
    yield take_turns(
        {
            "batch": lambda: algorithm.train_batch(next(numbers)),
            "renewal": lambda: algorithm.rollouts.decoder.student.update_weights(algorithm.student),
        },
        rounds or 7,
    )


@pytest.mark.benchmark(timer=replay_timer)
@pytest.mark.parametrize("part", ["batch", "renewal"])
def test_batch_of_phase_2(benchmark: BenchmarkFixture, trained: dict[str, Recorded], part: str) -> None:
    benchmark.group = "phase 2"
    report(benchmark, trained[part].seconds)
    benchmark.extra_info |= {"kind": "phase 2", "part": part}
