"""The comparison behind `kdtw demo`: one sample, every method, quality beside cost, and a few outputs in full."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import sacrebleu
from rich import box
from rich.table import Table
from rich.text import Text
from rouge_score import rouge_scorer

from kdtw_fast.budgets import BUDGETS
from kdtw_fast.methods import make_decoder
from kdtw_fast.model import load
from kdtw_fast.outputs import GenerationOutput, Owner
from kdtw_fast.owners_view import LEGEND, Run, marked, runs, visible

EXAMPLE_METHOD = "KDTW, light"
STUDENT, TEACHER, LOSSLESS = "student alone", "teacher alone", "speculative, lossless"


@dataclass(frozen=True)
class Contestant:
    """A row of the table: a method's name in :data:`kdtw_fast.methods.METHODS`, its settings and call options."""

    method: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    asked: float | None = None


CONTESTANTS: dict[str, Contestant] = {
    STUDENT: Contestant("greedy-student"),
    TEACHER: Contestant("greedy-teacher"),
    **{
        f"KDTW, {budget.phrase}": Contestant(
            "training-wheels", options={"budget": budget.phrase}, asked=budget.fraction
        )
        for budget in BUDGETS
    },
    "KDTW, light, verify 0.3": Contestant("training-wheels", {"verify_lenience": 0.3}, {"budget": "light"}, asked=0.1),
    LOSSLESS: Contestant("speculative", {"draft_length": 5, "lenience": 1.0}),
    "speculative, lenience 0.3": Contestant("speculative", {"draft_length": 5, "lenience": 0.3}),
    "BiLD 0.6 / 5": Contestant("bild", {"fallback": 0.6, "rollback": 5.0}),
    "interleaved (SKD), top 25": Contestant("interleaved", {"draft_length": 5, "accept_top_k": 25}),
}


@dataclass
class Score:
    """What one contestant did on the whole sample, batch 1."""

    label: str
    asked: float | None
    texts: list[str] = field(default_factory=list)
    tokens: int = 0
    teacher_tokens: int = 0
    teacher_passes: int = 0
    seconds: float = 0.0
    bleu: float = 0.0
    rouge2: float = 0.0

    def add(self, out: GenerationOutput, teacher_alone: bool) -> None:
        """Counts one sentence's output; the seconds are the decoder's own (no tokenizing)."""
        assert out.lengths is not None and out.owners is not None and out.timings is not None
        assert out.texts is not None and out.student_passes is not None and out.teacher_passes is not None
        tokens = int(out.lengths[0])
        by_teacher = int(((out.owners == Owner.TEACHER) | (out.owners == Owner.CORRECTED)).sum())
        self.texts.append(out.texts[0])
        self.tokens += tokens
        self.teacher_tokens += tokens if teacher_alone else by_teacher
        self.teacher_passes += out.student_passes if teacher_alone else out.teacher_passes
        self.seconds += out.timings.total

    def judge(self, references: Sequence[str]) -> None:
        """Sets BLEU (sacrebleu's default) and mean ROUGE-2 F, both of 100."""
        self.bleu = sacrebleu.corpus_bleu(self.texts, [list(references)]).score
        rouge = rouge_scorer.RougeScorer(["rouge2"])
        each = [rouge.score(reference, text)["rouge2"].fmeasure for reference, text in zip(references, self.texts)]
        self.rouge2 = 100.0 * sum(each) / len(each)

    def cells(self) -> list[str]:
        """The row as text, in the order of :data:`COLUMNS`."""
        return [
            self.label,
            "–" if self.asked is None else f"{100 * self.asked:.0f} %",
            f"{100 * self.teacher_tokens / self.tokens:.1f} %",
            f"{self.bleu:.1f}",
            f"{self.rouge2:.1f}",
            f"{self.teacher_passes / self.tokens:.2f}",
            f"{1000 * self.seconds / self.tokens:.2f}",
            f"{self.tokens / self.seconds:.0f}",
        ]


COLUMNS = ("method", "asked", "used", "BLEU", "ROUGE-2", "teacher passes/token", "ms/token", "tokens/s")


@dataclass(frozen=True)
class Example:
    """One sentence in the words of student, KDTW (cut by owner), teacher and reference."""

    source: str
    student: str
    wheels: list[Run]
    teacher: str
    reference: str

    def lines(self) -> list[tuple[str, Text]]:
        """Name and text of each line."""
        return [
            ("source", Text(visible(self.source))),
            ("student alone", Text(visible(self.student))),
            (EXAMPLE_METHOD, marked(self.wheels)),
            ("teacher alone", Text(visible(self.teacher))),
            ("reference", Text(visible(self.reference))),
        ]


@dataclass(frozen=True)
class DemoResult:
    """Scores of all contestants and a few sentences in full."""

    scores: list[Score]
    examples: list[Example]
    sentences: int
    num_threads: int
    dtypes: tuple[str, str]  # of student and teacher

    @property
    def lossless_agreement(self) -> int:
        """Sentences in which lossless speculative decoding wrote the teacher's text."""
        by_label = {score.label: score for score in self.scores}
        return sum(a == b for a, b in zip(by_label[LOSSLESS].texts, by_label[TEACHER].texts))

    @property
    def caption(self) -> str:
        """What was measured, in one line."""
        student, teacher = self.dtypes
        formats = student if student == teacher else f"{student} student and {teacher} teacher"
        return f"{self.sentences} sentences, one at a time, {self.num_threads} threads, {formats}, greedy"

    @property
    def footnote(self) -> str:
        """What asked and used mean, and the agreement of the lossless method."""
        return (
            "asked, used: share of output tokens that the prompt allows the teacher and that it wrote. "
            f"Lossless speculative decoding wrote the teacher's text in {self.lossless_agreement} of {self.sentences}."
        )

    def table(self) -> Table:
        """The scores for a terminal."""
        table = Table(title=self.caption, title_justify="left", pad_edge=False, box=box.SIMPLE_HEAD)
        for i, column in enumerate(COLUMNS):
            table.add_column(column, justify="left" if i == 0 else "right", no_wrap=i == 0)
        for score in self.scores:
            table.add_row(*score.cells())
        return table

    def markdown(self) -> str:
        """Scores and examples for a README."""
        lines = [f"{self.caption}:", "", "| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
        lines += ["| " + " | ".join(score.cells()) + " |" for score in self.scores]
        lines += ["", self.footnote, "", f"Who wrote what ({LEGEND}):", "", "```text"]
        for i, example in enumerate(self.examples):
            lines += [""] * (i > 0)
            lines += [f"{name:<14} {text.plain}" for name, text in example.lines()]
        return "\n".join([*lines, "```"])


def spread(rows: Sequence[Any], count: int) -> list[Any]:
    """``count`` of the rows, evenly spread, in order; all of them if there are fewer."""
    if count >= len(rows):
        return list(rows)
    return [rows[i * len(rows) // count] for i in range(count)]


def run_demo(
    student: Any,
    teacher: Any,
    tokenizer: Any,
    sample: Sequence[tuple[str, str]],
    *,
    num_threads: int,
    max_new_tokens: int = 128,
    examples: int = 3,
    on_step: Callable[[], object] = lambda: None,
) -> DemoResult:
    """Decodes the sample with every contestant, sentence by sentence, in turns, so that a slow moment hits all alike.

    Args:
        student: a Training Wheels student, as decoders take it.
        teacher: its teacher.
        tokenizer: the pair's.
        sample: pairs (source, reference), at least one.
        num_threads: of every decoder.
        max_new_tokens: of every output.
        examples: sentences shown in full; those where the student asked come first.
        on_step: called after each of len(sample) * len(CONTESTANTS) decodes.
    """
    if not sample:
        raise ValueError("the sample is empty; the demo needs at least one sentence")
    models = {"student": load(student, "student"), "teacher": load(teacher, "teacher")}
    decoders = {
        label: make_decoder(c.method, models, tokenizer, num_threads, **c.settings) for label, c in CONTESTANTS.items()
    }
    scores = {label: Score(label, contestant.asked) for label, contestant in CONTESTANTS.items()}
    shown: list[list[Run]] = []

    def decode(label: str, text: str) -> GenerationOutput:
        return decoders[label](text, max_new_tokens=max_new_tokens, **CONTESTANTS[label].options)

    for label in CONTESTANTS:  # the first call of a decoder pays for cold caches
        decode(label, sample[0][0])
    labels = list(CONTESTANTS)
    for i, (source, _) in enumerate(sample):
        start = i % len(labels)
        for label in labels[start:] + labels[:start]:
            out = decode(label, source)
            scores[label].add(out, teacher_alone=label == TEACHER)
            if label == EXAMPLE_METHOD:
                assert out.sequences is not None and out.owners is not None
                shown.append(runs(out.sequences[0].tolist(), out.owners[0].tolist(), tokenizer))
            on_step()
    references = [reference for _, reference in sample]
    for score in scores.values():
        score.judge(references)
    asking = [i for i, row in enumerate(shown) if any(run.owner == Owner.TEACHER for run in row)]
    others = [i for i in range(len(sample)) if i not in set(asking)]
    chosen = sorted((spread(asking, examples) + others)[:examples])
    return DemoResult(
        list(scores.values()),
        [
            Example(sample[i][0], scores[STUDENT].texts[i], shown[i], scores[TEACHER].texts[i], sample[i][1])
            for i in chosen
        ],
        len(sample),
        num_threads,
        (models["student"].dtype, models["teacher"].dtype),
    )
