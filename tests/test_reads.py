"""How many tokens each pass read: by hand on chains, by the counts on random pairs, alike in batches and streams."""

from __future__ import annotations

import numpy as np
import pytest
from factories import EOS, chain_student, chain_t5, path_table, random_batch, random_pair

from kdtw_fast import AutoDecoder, RandomCallDecoder, SingleModelDecoder, SpeculativeDecoder, TrainingWheelsDecoder
from kdtw_fast.costs import Costs, ModelCosts

VOCAB, TAU = 12, 11
PATH = [2, 3, 4, 5, 6, 7, EOS]


def test_greedy_reads_one_token_a_step(device: str) -> None:
    out = SingleModelDecoder(chain_t5(path_table(PATH, VOCAB)), device=device).generate([[5, 1]], output_reads=True)
    assert out.student_reads == [[1] * len(PATH)] and out.teacher_reads == [[]]


def test_speculative_reads_as_the_rounds_say(device: str) -> None:
    """The student agrees up to 4, then once more after each correction: a check reads what it has not seen."""
    teacher = path_table(PATH, VOCAB)
    student = teacher.copy()
    student[4] = 0.0
    student[4, 9] = 12.0  # after 4 it drafts 9 where the teacher wants 5
    decoder = SpeculativeDecoder(chain_t5(student), chain_t5(teacher), draft_length=2, device=device)
    out = decoder.generate([[5, 1]], output_reads=True)
    assert out.sequences[0].tolist()[1:] == PATH
    # drafts 2 3, both stand, the teacher adds 4; drafts 9 (and 3), 9 is replaced by 5; drafts 6 7, EOS is added
    assert out.teacher_reads == [[3, 3, 3]]
    assert out.student_reads == [[1, 1, 2, 1, 1, 1]]


def test_a_call_reads_what_came_since_the_last(device: str) -> None:
    table = path_table(PATH, VOCAB)
    asks = table.copy()
    asks[4, TAU] = asks[6, TAU] = 20.0
    decoder = TrainingWheelsDecoder(chain_student(asks, TAU), chain_t5(table), device=device)
    out = decoder.generate([[5, 1]], output_reads=True)
    assert out.sequences[0].tolist()[1:] == PATH
    assert out.teacher_reads == [[4, 2]]  # start 2 3 4, then 5 6
    assert out.student_reads == [[1] * len(PATH)]


def test_what_the_teacher_writes_at_random_costs_the_student_no_pass(device: str) -> None:
    """It reads what the teacher wrote when it writes again itself: of seven tokens the last four are its own."""
    table = path_table(PATH, VOCAB)
    decoder = RandomCallDecoder(chain_student(table, TAU), chain_t5(table), threshold=0.0, device=device)
    out = decoder.generate([[5, 1]], output_reads=True, max_teacher_calls=3)
    assert out.sequences[0].tolist()[1:] == PATH
    assert out.teacher_reads == [[1, 1, 1]]
    assert out.student_reads == [[4, 1, 1, 1]]


@pytest.mark.parametrize("relation", ["noisy", "unrelated"])
def test_reads_agree_with_the_counts_and_do_not_depend_on_the_batch(relation: str, device: str) -> None:
    student, teacher = random_pair(relation, seed=3)
    ids, mask = random_batch(np.random.default_rng(5), 5, 43)
    rows = [row[: int(length)].tolist() for row, length in zip(ids, mask.sum(1))]
    for decoder in (
        TrainingWheelsDecoder(student, teacher, verify_lenience=0.3, device=device),
        SpeculativeDecoder(student, teacher, draft_length=3, device=device),
    ):
        options = {"max_new_tokens": 14, "output_reads": True}
        together = decoder.generate(rows, **options)
        streamed = list(decoder.stream(rows, batch_size=2, in_order=True, **options))
        for r, row in enumerate(rows):
            alone = decoder.generate([row], **options)
            assert alone.student_reads == [together.student_reads[r]] == streamed[r].student_reads
            assert alone.teacher_reads == [together.teacher_reads[r]] == streamed[r].teacher_reads
            assert len(alone.student_reads[0]) == alone.student_passes
            assert len(alone.teacher_reads[0]) == alone.teacher_passes == int(alone.teacher_calls[0])
            assert min(alone.student_reads[0]) == 1 and min(alone.teacher_reads[0], default=1) >= 1


def test_reads_come_only_when_asked_for(device: str) -> None:
    out = SingleModelDecoder(chain_t5(path_table(PATH, VOCAB)), device=device).generate([[5, 1]])
    assert out.student_reads is None and out.teacher_reads is None


def test_auto_gives_the_reads_of_the_teacher_alone_to_the_teacher(device: str) -> None:
    model = chain_t5(path_table(PATH, VOCAB))
    cheap, dear = ModelCosts(0.0, {1: 1.0}), ModelCosts(0.0, {1: 100.0})
    decoder = AutoDecoder(model, model, quality="teacher", costs=Costs(dear, cheap), device=device)
    out = decoder.generate([[5, 1]], output_reads=True)
    assert out.prediction.method == "greedy-teacher"
    assert out.teacher_reads == [[1] * len(PATH)] and out.student_reads == [[]]
