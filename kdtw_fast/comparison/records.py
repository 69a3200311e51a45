"""What a comparison leaves behind: results.jsonl, one record a line, raw numbers only.

Figures, tables and reports are made from this file alone. docs/comparison.md explains every field.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, ClassVar

from kdtw_fast.owner import Owner


@dataclass(frozen=True)
class Sentence:
    """One output of one operating point.

    Args:
        index: place of the sentence in the data, from 0.
        source, reference, text: what went in, what a person wrote, what came out.
        tokens: the T output tokens as pieces of the vocabulary, the end token included.
        owners: who wrote each of them, T names of :class:`kdtw_fast.Owner` in lower case; empty where the system does
            not tell.
        teacher_calls: passes of the teacher that served the sentence.
        drafted: tokens the student wrote, those later taken back included.
        accepted: student tokens that a check let stand.
        rolled_back: student tokens taken back.
        student_logprobs: T log-probabilities of the student's actions (its token, or asking), None where it took none;
            None altogether where the system does not tell.
        teacher_logprobs: T log-probabilities of the tokens under the teacher, None where it did not read the place.
        source_tokens: by role of a model that may read it, length of the source with its prompt; None where not told.
        student_reads: the tokens that each pass of the student's decoder read, in order; None where not told.
        teacher_reads: the same of the teacher.
    """

    index: int
    source: str
    reference: str
    text: str
    tokens: list[str]
    owners: list[str]
    teacher_calls: int
    drafted: int
    accepted: int
    rolled_back: int
    student_logprobs: list[float | None] | None = None
    teacher_logprobs: list[float | None] | None = None
    source_tokens: dict[str, int] | None = None
    student_reads: list[int] | None = None
    teacher_reads: list[int] | None = None

    @property
    def by_teacher(self) -> int:
        """How many of the tokens a teacher wrote."""
        return sum(self.owners.count(owner.name.lower()) for owner in Owner if owner.is_teacher)


@dataclass(frozen=True)
class Outputs:
    """What one operating point wrote. Greedy decoding is deterministic, so it is recorded once.

    Args:
        id: "<pair>/<method>/<settings>", unique in the file.
        pair, task: the pair's name, and "translation", "summarization", ….
        group: the part of the plan that the point belongs to, one of :data:`kdtw_fast.comparison.plan.GROUPS`.
        method: a name in :data:`kdtw_fast.methods.METHODS`, or of another system.
        settings: the method's settings; of a control also the use that its threshold was searched for, and had.
        label: the point in words.
        budget: share of the tokens that the prompt allows the teacher, in [0, 1]; None where there is none.
        signatures: by metric, how it is to be computed: versions and settings.
        sentences: one for each sentence of the data; of a group in :data:`kdtw_fast.comparison.plan.TIMED_ONLY` only
            those that it is timed on.
        provenance: where the record comes from (:mod:`kdtw_fast.comparison.provenance`).
    """

    kind: ClassVar[str] = "outputs"
    id: str
    pair: str
    task: str
    group: str
    method: str
    settings: dict[str, Any]
    label: str
    budget: float | None
    signatures: dict[str, str]
    sentences: list[Sentence]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Timing:
    """One turn of one operating point: some sentences of the data, evenly spread, decoded and timed call by call.

    Args:
        id: of the point's outputs.
        repetition: which turn, from 0.
        batch: sentences a call, at most.
        threads: of every call.
        sentences: how many were decoded in this turn.
        indices: which (:attr:`Sentence.index`), in the order of decoding; each call takes the next ``batch`` of them.
        seconds: wall time of each call, on token ids: no tokenizing, Python's part included.
        tokens: output tokens of each call, end tokens included.
        student_passes, teacher_passes: passes of the decoders in each call; empty where the system does not tell.
        timings: seconds inside the native core, summed over the calls: encode, student, teacher, other; empty where the
            system does not tell.
        provenance: as of :class:`Outputs`.
    """

    kind: ClassVar[str] = "timing"
    id: str
    repetition: int
    batch: int
    threads: int
    sentences: int
    indices: list[int]
    seconds: list[float]
    tokens: list[int]
    student_passes: list[int]
    teacher_passes: list[int]
    timings: dict[str, float]
    provenance: dict[str, Any]


@dataclass(frozen=True)
class Passes:
    """What passes of a pair's models took in one turn, timed within calls between the points.

    "encode" is the seconds of the encoder for each token of a source; the others are points [tokens that a pass reads,
    seconds of the pass], means over calls.

    Args:
        pair: its name.
        repetition: which turn, from 0.
        batch, threads: of the calls.
        student: "encode"; "alone": decoding by itself; "switched": each pass after one of the teacher's.
        teacher: "encode"; "alone"; "catch_up" and "verify": passes after the student's that ask the head about the last
            token they read, or about all ("catch_up" is empty for a student that cannot ask).
        call: by kind, seconds of a call beside encoders and passes: "student" and "teacher" of a decoder of one model;
            of two models "pair", and "unasked" where the teacher was not asked (not there if the student cannot ask).
        provenance: as of :class:`Outputs`.
    """

    kind: ClassVar[str] = "passes"
    pair: str
    repetition: int
    batch: int
    threads: int
    student: dict[str, Any]
    teacher: dict[str, Any]
    call: dict[str, float]
    provenance: dict[str, Any]


Record = Outputs | Timing | Passes
_KINDS: dict[str, type[Outputs] | type[Timing] | type[Passes]] = {kind.kind: kind for kind in (Outputs, Timing, Passes)}


@dataclass
class Records:
    """The records of a file: outputs by id, timings by (id, repetition), passes by (pair, repetition), in its order."""

    outputs: dict[str, Outputs] = field(default_factory=dict)
    timings: dict[tuple[str, int], Timing] = field(default_factory=dict)
    passes: dict[tuple[str, int], Passes] = field(default_factory=dict)

    def add(self, record: Record) -> None:
        """Takes one more record; ValueError if it is there already, or a timing comes before its outputs."""
        key: Any
        if isinstance(record, Outputs):
            key, words = record.id, f"the outputs of {record.id!r} are"
        elif isinstance(record, Passes):
            key = record.pair, record.repetition
            words = f"the passes of repetition {record.repetition} of {record.pair!r} are"
        else:
            key, words = (record.id, record.repetition), f"repetition {record.repetition} of {record.id!r} is"
            if record.id not in self.outputs:
                raise ValueError(f"there is a timing of {record.id!r} before its outputs")
        known: Any = {Outputs: self.outputs, Timing: self.timings, Passes: self.passes}[type(record)]
        if key in known:
            raise ValueError(f"{words} there twice")
        known[key] = record

    def timings_of(self, point: str) -> list[Timing]:
        """All timings of one operating point."""
        return [timing for (name, _), timing in self.timings.items() if name == point]

    @property
    def pairs(self) -> list[str]:
        """Names of the pairs, in the file's order."""
        return list(dict.fromkeys(outputs.pair for outputs in self.outputs.values()))


def results_file(place: Path) -> Path:
    """results.jsonl of a folder, or the file that was named; FileNotFoundError where it is not there."""
    path = place / "results.jsonl" if place.is_dir() else place
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there; kdtw compare writes it")
    return path


def read(path: str | Path) -> Records:
    """The records of a results file.

    A last line without its end, as a killed run leaves it, is not counted.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not a record, naming file, line and what is wrong with it.
    """
    path = results_file(Path(path))
    records = Records()
    with path.open("rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                records.add(parse(line.decode("utf-8")))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path} line {number} is not a record of kdtw compare: {error}") from None
    return records


def parse(line: str) -> Record:
    """The record of one line; ValueError says what is wrong with it."""
    try:
        data = json.loads(line)
    except json.JSONDecodeError as error:
        raise ValueError(f"no JSON ({error.msg} at place {error.pos})") from None
    if not isinstance(data, dict):
        raise ValueError(f"expected an object, got {type(data).__name__}")
    kind = data.pop("kind", None)
    if kind not in _KINDS:
        raise ValueError(f"its kind is {kind!r}; known are {', '.join(_KINDS)}")
    if kind == "outputs" and isinstance(data.get("sentences"), list):
        data["sentences"] = [_build(Sentence, item, f"sentence {i}") for i, item in enumerate(data["sentences"])]
    record: Record = _build(_KINDS[kind], data, kind)
    return record


def _build(cls: type[Any], data: Any, name: str) -> Any:
    if not isinstance(data, Mapping):
        raise ValueError(f"{name} is {data!r}, not an object")
    known = {f.name: f for f in fields(cls)}
    unknown = [key for key in data if key not in known]
    missing = [key for key in known if key not in data and known[key].default is not None]
    if unknown or missing:
        wrong = [f"lacks {', '.join(missing)}"] * bool(missing) + [f"has unknown {', '.join(unknown)}"] * bool(unknown)
        raise ValueError(f"{name} {' and '.join(wrong)}")
    return cls(**data)


def to_line(record: Record) -> str:
    """A record as one line of JSON, with its end."""
    return json.dumps({"kind": record.kind, **asdict(record)}, ensure_ascii=False, allow_nan=False) + "\n"


class ResultsFile:
    """A results file that grows: what is there is read, a torn last line is cut off, records are added at the end.

    Every record is on the disk before :meth:`append` returns, so that a kill loses at most the one under way.

    Raises:
        ValueError: the file holds a line that is no record.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.records = Records()
        if self.path.is_file():
            self.records = read(self.path)
            os.truncate(self.path, self.path.read_bytes().rfind(b"\n") + 1)

    def append(self, record: Record) -> None:
        """Adds one record to the file and to :attr:`records`."""
        self.records.add(record)
        with self.path.open("a", encoding="utf-8", newline="\n") as stream:
            stream.write(to_line(record))
            stream.flush()
            os.fsync(stream.fileno())
