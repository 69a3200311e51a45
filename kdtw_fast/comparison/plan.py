"""What a comparison compares, its operating points, and how it measures them: as data.

An operating point is a method with its settings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from kdtw_fast.budgets import BUDGETS, resolve_budget
from kdtw_fast.options import check_int, check_real, nearest

# What --methods chooses from, in the order of measuring: a control comes after the points whose use it matches.
GROUPS: dict[str, str] = {
    "student": "the student alone, and the GKD student where there is one",
    "teacher": "the teacher alone",
    "training-wheels": "KDTW at each budget",
    "verify": "KDTW whose calls also check the drafts (verify_lenience)",
    "speculative": "lossless speculative decoding",
    "distillspec": "lossy speculative decoding, drafted by the GKD student and by the pair's own",
    "bild": "BiLD over its thresholds",
    "interleaved": "interleaved sampling (SKD): drafts among the teacher's best 25 stay",
    "random": "calls drawn at random, as many as KDTW makes",
    "entropy": "calls where the student's entropy is high, as many as KDTW makes",
    "hugging-face": "Hugging Face generate, student and teacher",
    "assisted": "Hugging Face assisted generation",
    "ctranslate2": "CTranslate2, student and teacher",
}
CONTROLS = ("random", "entropy")
OUTSIDE = ("hugging-face", "assisted", "ctranslate2")
TIMED_ONLY = ("assisted",)  # too slow for all sentences: writes those that it is timed on, and is not judged
METRICS: dict[str, str] = {
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
    "bleu": "BLEU",
    "chrf": "chrF",
}
OWN_STUDENT, DRAFT_STUDENT = "own", "gkd"  # who drafts


def check_metric(metric: str) -> None:
    """Raises ValueError for a metric that is not in :data:`METRICS`."""
    if metric not in METRICS:
        raise ValueError(f"unknown metric {metric!r}{nearest(metric, METRICS)}")


@dataclass(frozen=True)
class OperatingPoint:
    """A method with its settings.

    Args:
        group: one of :data:`GROUPS`.
        method: a name in :data:`kdtw_fast.methods.METHODS`, or of another system.
        label: in words.
        settings: by the names that :func:`kdtw_fast.methods.make_decoder` takes; a control's threshold is found later.
        options: of a call: the budget's phrase.
        budget: share of the tokens that the prompt allows the teacher, or that a control matches.
        drafter: which student: :data:`OWN_STUDENT`, or :data:`DRAFT_STUDENT` for the separate one.
        model: of a system that decodes with one model: "student" or "teacher".
    """

    group: str
    method: str
    label: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    budget: float | None = None
    drafter: str = OWN_STUDENT
    model: str | None = None

    @property
    def all_settings(self) -> dict[str, Any]:
        """Settings, call options, drafter and model in one mapping, as records have them."""
        parts: dict[str, Any] = {**self.settings, **self.options}
        if self.drafter != OWN_STUDENT:
            parts["drafter"] = self.drafter
        if self.model is not None:
            parts["model"] = self.model
        return parts

    @property
    def name(self) -> str:
        """Method and settings in one word, unique in a plan."""
        words = (f"{key}={_word(value)}" for key, value in self.all_settings.items())
        return f"{self.method}/{','.join(words) or 'alone'}"


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value).replace(" ", "-")


@dataclass(frozen=True)
class Choices:
    """What a plan is made of; the defaults hold the paper's grid where it has one.

    Args:
        groups: of :data:`GROUPS`.
        budgets: KDTW's budgets, by phrase.
        draft_lengths: K of speculative decoding, lossless and lossy, each >= 1.
        leniences: leniences of DistillSpec, each in [0, 1].
        verify_budgets: budgets at which KDTW also checks.
        verify_leniences: leniences of those checks, each in (0, 1].
        fallbacks: BiLD's fallback thresholds a, each in [0, 1].
        rollbacks: BiLD's rollback thresholds r, in nats, each >= 0.
        control_budgets: budgets whose use the random and entropy calls match.

    Raises:
        ValueError, TypeError: an unknown group or budget, or a number out of range.
    """

    groups: Sequence[str] = tuple(GROUPS)
    budgets: Sequence[str] = tuple(budget.phrase for budget in BUDGETS)
    draft_lengths: Sequence[int] = (1, 2, 3, 5, 10)
    leniences: Sequence[float] = (0.0, 0.01, 0.02, 0.04, 0.07, 0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 1.0)
    verify_budgets: Sequence[str] = ("light", "moderate", "very high")
    verify_leniences: Sequence[float] = (0.1, 0.3)
    fallbacks: Sequence[float] = (0.3, 0.5, 0.7, 0.9)
    rollbacks: Sequence[float] = (2.0, 5.0)
    control_budgets: Sequence[str] = tuple(budget.phrase for budget in BUDGETS if budget.fraction > 0)

    def __post_init__(self) -> None:
        for group in self.groups:
            if group not in GROUPS:
                raise ValueError(f"unknown method {group!r} in a comparison{nearest(group, GROUPS)}")
        for phrase in (*self.budgets, *self.verify_budgets, *self.control_budgets):
            resolve_budget(phrase)
        for length in self.draft_lengths:
            check_int("draft_length", length, 1)
        for value in (*self.leniences, *self.fallbacks):
            check_real("lenience and fallback", value, 0.0, 1.0)
        for value in self.verify_leniences:
            check_real("verify_lenience", value, 0.0, 1.0, open_low=True)
        for value in self.rollbacks:
            check_real("rollback", value, 0.0)
        missing = [b for b in self.control_budgets if b not in self.budgets]
        controls = [group for group in self.groups if group in CONTROLS]
        if controls and ("training-wheels" not in self.groups or missing):
            raise ValueError(
                f"{' and '.join(controls)} calls match the use of training-wheels at the budgets "
                f"{', '.join(self.control_budgets)}; compare it at those too, or leave {' and '.join(controls)} out"
            )


@dataclass(frozen=True)
class Settings:
    """How a comparison is measured.

    Args:
        sentences: sentences that quality is judged on, evenly spread; 0 = all.
        timed_sentences: sentences of a timed turn, evenly spread; 0 = all.
        repetitions: timed turns of every point, at least 1.
        batch_size: sentences a timed call, at least 1.
        max_new_tokens: longest output, in tokens.
        threads: of every system; None = all.

    Raises:
        ValueError, TypeError: a value out of range.
    """

    sentences: int = 0
    timed_sentences: int = 100
    repetitions: int = 5
    batch_size: int = 1
    max_new_tokens: int = 128
    threads: int | None = None

    def __post_init__(self) -> None:
        for name in ("sentences", "timed_sentences"):
            check_int(name, getattr(self, name), 0)
        for name in ("repetitions", "batch_size", "max_new_tokens"):
            check_int(name, getattr(self, name), 1)
        if self.threads is not None:
            check_int("threads", self.threads, 1)


# A few points of each kind, for a look in minutes.
QUICK = Choices(
    groups=[group for group in GROUPS if group not in ("assisted", "ctranslate2")],
    draft_lengths=(5,),
    leniences=(0.0, 0.1, 0.3, 0.6, 1.0),
    verify_budgets=("light", "very high"),
    verify_leniences=(0.3,),
    fallbacks=(0.3, 0.6, 0.9),
    rollbacks=(5.0,),
    control_budgets=("moderate",),
)
QUICK_SETTINGS = Settings(sentences=60, timed_sentences=20, repetitions=3)


def make_plan(choices: Choices, has_draft_student: bool) -> list[OperatingPoint]:
    """The operating points of a comparison, each once, in the order of :data:`GROUPS`.

    Args:
        choices: what to compare.
        has_draft_student: whether DistillSpec's student is there, which drafts beside the pair's own; labels say who.
    """
    drafters = {DRAFT_STUDENT: "DistillSpec"} if has_draft_student else {}
    drafters[OWN_STUDENT] = "lossy, own student"

    def wheels(group: str, phrase: str, **settings: float) -> OperatingPoint:
        checks = "".join(f", verify {value:g}" for value in settings.values())
        return asking(group, "training-wheels", f"KDTW, {resolve_budget(phrase).phrase}{checks}", phrase, **settings)

    def asking(group: str, method: str, label: str, phrase: str, **settings: float) -> OperatingPoint:
        budget = resolve_budget(phrase)
        return OperatingPoint(group, method, label, settings, {"budget": budget.phrase}, budget.fraction)

    def speculative(group: str, label: str, k: int, lenience: float, drafter: str = OWN_STUDENT) -> OperatingPoint:
        settings = {"draft_length": k, "lenience": float(lenience)}
        return OperatingPoint(group, "speculative", label, settings, drafter=drafter)

    def outside(group: str, label: str) -> list[OperatingPoint]:
        return [OperatingPoint(group, group, f"{label}, {role}", model=role) for role in ("student", "teacher")]

    students = [OperatingPoint("student", "greedy-student", "student alone")]
    if has_draft_student:
        students.append(OperatingPoint("student", "greedy-student", "GKD student alone", drafter=DRAFT_STUDENT))
    skd = {"draft_length": 5, "accept_top_k": 25}  # the paper's
    c = choices
    points: dict[str, list[OperatingPoint]] = {
        "student": students,
        "teacher": [OperatingPoint("teacher", "greedy-teacher", "teacher alone")],
        "training-wheels": [wheels("training-wheels", phrase) for phrase in c.budgets],
        "verify": [
            wheels("verify", phrase, verify_lenience=value)
            for phrase, value in product(c.verify_budgets, c.verify_leniences)
        ],
        "speculative": [speculative("speculative", f"speculative, lossless, K {k}", k, 1.0) for k in c.draft_lengths],
        "distillspec": [
            speculative("distillspec", f"{lossy}, K {k}, l {value:g}", k, value, drafter)
            for (drafter, lossy), k, value in product(drafters.items(), c.draft_lengths, c.leniences)
        ],
        "bild": [
            OperatingPoint("bild", "bild", f"BiLD {a:g} / {r:g}", {"fallback": float(a), "rollback": float(r)})
            for a, r in product(c.fallbacks, c.rollbacks)
        ],
        "interleaved": [OperatingPoint("interleaved", "interleaved", "interleaved (SKD), K 5, top 25", skd)],
        **{
            group: [asking(group, group, f"{label}, as KDTW, {resolve_budget(b).phrase}", b) for b in c.control_budgets]
            for group, label in (("random", "random calls"), ("entropy", "calls by entropy"))
        },
        "hugging-face": outside("hugging-face", "Hugging Face generate"),
        "assisted": [OperatingPoint("assisted", "hugging-face-assisted", "Hugging Face assisted generation")],
        "ctranslate2": outside("ctranslate2", "CTranslate2"),
    }
    once: dict[str, OperatingPoint] = {}
    for group in GROUPS:
        for point in points[group] if group in choices.groups else ():
            once.setdefault(point.name, point)  # the own student at l = 1 is lossless decoding, there already
    return list(once.values())
