"""`kdtw compare`: the whole command on a tiny random pair, its records, statistics, Pareto front, figures and table."""

from __future__ import annotations

import errno
import itertools
import json
import math
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import sacrebleu
from factories import SHAPES, random_t5, scale_row, with_tau
from kdtw_fast.training import models as training_models
from kdtw_fast.training.debian import read_jsonl
from kdtw_fast.training.new_recipes import split
from test_cli import make_tokenizer
from typer.testing import CliRunner

import kdtw_fast.cli as cli
from kdtw_fast import SingleModelDecoder
from kdtw_fast.comparison import claims, contenders, figures, table
from kdtw_fast.comparison.claims import Comparison, compare_latency, compare_quality
from kdtw_fast.comparison.contenders import chosen, load_contender, read_samples
from kdtw_fast.comparison.controls import ROUNDS, TOLERANCE, find_threshold
from kdtw_fast.comparison.examples import examples, examples_text
from kdtw_fast.comparison.measure import Measurement, Settings
from kdtw_fast.comparison.passes import PassClock
from kdtw_fast.comparison.plan import CONTROLS, GROUPS, Choices, OperatingPoint, make_plan
from kdtw_fast.comparison.quality import Interval, Statistics, resample
from kdtw_fast.comparison.records import Outputs, Records, ResultsFile, Sentence, Timing, read, to_line
from kdtw_fast.comparison.summary import Latency, Point, Samples, Spread, pareto, sample, summarise
from kdtw_fast.comparison.systems import MODELS, Native, OutsideSystems, pieces
from kdtw_fast.files import alone_in
from kdtw_fast.pairs import Sample
from kdtw_fast.peers import has_ctranslate2

SOURCES = ["dieses paket", "die doku", "enthält die", "paket paket paket", "doku mentation", "die die"]
SENTENCES = [{"source": source, "target": "this package holds the docs"} for source in SOURCES]
TINY = ["--max-new-tokens", "10", "--threads", "1", "--timed-sentences", "3", "--repetitions", "2", "--quiet"]
FEW = ["--budgets", "light,high", "--control-budgets", "high", "--draft-lengths", "2", "--leniences", "0,0.5"]
FEW += ["--verify-budgets", "high", "--verify-leniences", "0.5", "--fallbacks", "0.5", "--rollbacks", "1"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pair in a folder of its own, with a student to draft and data beside it."""
    folder, tokenizer = tmp_path_factory.mktemp("pairs") / "tiny", make_tokenizer()
    rows = len(tokenizer) + 1
    student = with_tau(random_t5(SHAPES[0], rows, seed=1), rows - 1, beta_scale=1.0, seed=2)
    scale_row(student, rows - 1, 2.0)
    teacher, gkd = random_t5(SHAPES[2], rows, seed=3), random_t5(SHAPES[0], rows, seed=4)
    for model in (student, teacher, gkd):
        for byte in range(3, 259):  # mostly words
            scale_row(model, byte, 0.2)
    teacher.config.teacher_prompt = gkd.config.teacher_prompt = "this: "
    student.config.student_prompt, student.config.teacher_prompt = "the {budget} this: ", "this: "
    student.save_pretrained(folder / "student")
    teacher.save_pretrained(folder / "teacher")
    gkd.save_pretrained(folder / "gkd")
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in SENTENCES), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def compare(folder: Path):
    """The command on that pair."""
    runner = CliRunner()

    def run(out: Path, *more: str, data: Path | None = None):
        arguments = ["compare", str(folder), "--data", str(data or folder / "data.jsonl"), "--out", str(out)]
        return runner.invoke(cli.app, [*arguments, *TINY, *FEW, *more])

    return run


@pytest.fixture
def without_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of what is measured: drawing takes longer than that."""
    monkeypatch.setattr("kdtw_fast.cli.compare._present", lambda folder, metric: None)


@pytest.fixture(scope="module")
def done(compare, folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison of everything that is installed."""
    out = tmp_path_factory.mktemp("done")
    result = compare(out, "--draft-student", str(folder / "gkd"))
    assert result.exit_code == 0, result.stderr
    assert "KDTW, high" in result.stdout and "results.jsonl" in result.stdout
    return out


@pytest.fixture
def shipped(folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The tiny pair in the place of a shipped one."""
    monkeypatch.setattr("kdtw_fast.comparison.named.pair_names", lambda: ["tiny"])
    monkeypatch.setattr("kdtw_fast.comparison.named.pair_folder", lambda name: folder)
    samples = [Sample(**row, package="") for row in SENTENCES]
    monkeypatch.setattr("kdtw_fast.comparison.named.load_samples", lambda name: samples)
    return "tiny"


def of(records: Records, method: str, **settings: Any) -> Outputs:
    """The one point with these settings."""
    found = [o for o in records.outputs.values() if o.method == method and settings.items() <= o.settings.items()]
    assert len(found) == 1, [o.id for o in found]
    return found[0]


# --- The command -----------------------------------------------------------------------------------------


def test_every_point_is_recorded_once_and_timed_every_turn(done: Path) -> None:
    records = read(done / "results.jsonl")
    plan = make_plan(Choices(), True)
    missing = set() if has_ctranslate2() else {"ctranslate2"}
    assert {o.group for o in records.outputs.values()} == {point.group for point in plan} - missing
    for outputs in records.outputs.values():
        by_index = {s.index: s for s in outputs.sentences}
        assert all(s.source == SOURCES[i] for i, s in by_index.items())
        assert len(by_index) == len(outputs.sentences) == (1 if outputs.group == "assisted" else len(SOURCES))
        assert outputs.id.startswith("tiny/") and outputs.task == "this"
        assert outputs.provenance["subject"]["sentences"] == len(SOURCES) and outputs.provenance["time"]
        timings = records.timings_of(outputs.id)
        assert [t.repetition for t in timings] == [0, 1]
        for timing in timings:
            assert len(timing.seconds) == len(timing.tokens) == timing.sentences == len(timing.indices)
            written = [len(by_index[i].tokens) for i in timing.indices]
            assert timing.tokens == written and min(timing.seconds) > 0


def test_records_hold_what_the_decoders_write(done: Path, folder: Path) -> None:
    records = read(done / "results.jsonl")
    for role in ("student", "teacher"):
        alone = records.outputs[f"tiny/greedy-{role}/alone"]
        decoder = SingleModelDecoder(folder / role, tokenizer=make_tokenizer())
        assert [s.text for s in alone.sentences] == decoder(SOURCES, max_new_tokens=10).texts
        assert {owner for s in alone.sentences for owner in s.owners} == {role}
        for timing in records.timings_of(alone.id):
            passes = timing.teacher_passes if role == "teacher" else timing.student_passes
            assert passes == timing.tokens  # one pass a token
    teacher = of(records, "greedy-teacher")
    assert all(s.teacher_logprobs is not None and None not in s.teacher_logprobs for s in teacher.sentences)
    lossless = of(records, "speculative", lenience=1.0)
    assert [s.tokens for s in lossless.sentences] == [s.tokens for s in teacher.sentences]
    assisted = of(records, "hugging-face-assisted")  # those that it is timed on, and no judgement
    for timing in records.timings_of(assisted.id):
        assert timing.indices == [s.index for s in assisted.sentences] and 0 < len(timing.indices) < len(SOURCES)
    assert [s.tokens for s in assisted.sentences] == [teacher.sentences[s.index].tokens for s in assisted.sentences]
    point = next(p for p in summarise(records) if p.id == assisted.id)
    assert point.latency is not None and not point.quality and point.gap_closed is None
    for method in ("hugging-face", *(["ctranslate2"] if has_ctranslate2() else [])):
        for role in ("student", "teacher"):
            other = of(records, method, model=role)
            alone = records.outputs[f"tiny/greedy-{role}/alone"]
            assert [s.text for s in other.sentences] == [s.text for s in alone.sentences]
    drafter = SingleModelDecoder(folder / "gkd", tokenizer=make_tokenizer())
    assert [s.text for s in of(records, "greedy-student", drafter="gkd").sentences] == drafter(
        SOURCES, max_new_tokens=10
    ).texts
    assert of(records, "speculative", drafter="gkd", lenience=0.5).label.startswith("DistillSpec")


@pytest.mark.parametrize("who", ["student", "teacher", "gkd", "draft student"])
def test_models_of_another_tokenizer_are_not_compared(who: str, folder: Path, tmp_path: Path) -> None:
    own = tmp_path / "pair"
    shutil.copytree(folder, own)
    draft = own / "gkd" if who == "gkd" else None
    if who == "draft student":
        draft = shutil.copytree(own / "gkd", tmp_path / "elsewhere")
    place = draft or own / who
    shutil.copytree(own / "tokenizer", place, dirs_exist_ok=True)
    told = {"data": own / "data.jsonl", "draft_student": draft}
    load_contender(str(own), **told)
    words = json.loads((place / "tokenizer.json").read_text())
    pieces = words["model"]["vocab"]
    pieces[5][0], pieces[6][0] = pieces[6][0], pieces[5][0]
    (place / "tokenizer.json").write_text(json.dumps(words))
    name = "draft student" if draft else who
    with pytest.raises(
        ValueError, match=f"pair and {name} must share a vocabulary: token id 5 is .* in the {name}'s; "
    ):
        load_contender(str(own), **told)


def test_all_decode_greedily_whatever_the_checkpoints_say(folder: Path, tmp_path: Path) -> None:
    rules = {"no_repeat_ngram_size": 1, "repetition_penalty": 3.0}
    says = {"student": {"do_sample": True, "top_k": 3}, "teacher": {"num_beams": 3, "top_p": 0.5}}
    written = []
    for told in (False, True):
        place = tmp_path / str(told) / "tiny"
        shutil.copytree(folder, place)
        for role in MODELS:
            file = place / role / "generation_config.json"
            own = json.loads(file.read_text()) | {"eos_token_id": [1, 40], "_from_model_config": False}
            file.write_text(json.dumps(own | (rules | says[role] if told else {})))
        contender = load_contender(str(place), data=place / "data.jsonl")
        outside = OutsideSystems(contender, 1, 8)
        wanted = ("student", "teacher", "speculative")
        points = [point for point in make_plan(Choices(draft_lengths=(2,)), False) if point.group in wanted]
        systems: list[Any] = [Native(point, contender, 1, 8) for point in points]
        systems += [outside.make(OperatingPoint("hugging-face", "hugging-face", role, model=role)) for role in MODELS]
        written.append([[one.tokens for one in system.write(range(3), lambda done: None)] for system in systems])
    assert len(written[0]) == 5 and written[0] == written[1]
    assert written[0][-1] == written[0][[point.group for point in points].index("teacher")]  # with its ends


def test_ids_without_a_piece_are_named_by_their_number() -> None:
    tokenizer = make_tokenizer()
    known = tokenizer.convert_ids_to_tokens([1])[0]
    assert pieces(tokenizer, [1, len(tokenizer) + 3]) == [known, f"<{len(tokenizer) + 3}>"]


def test_controls_ask_as_often_as_kdtw(done: Path) -> None:
    records = read(done / "results.jsonl")
    points = {point.id: point for point in summarise(records)}
    like = next(p for p in points.values() if p.group == "training-wheels" and p.budget == 0.4)
    assert like.teacher_use is not None and 0 < like.teacher_use.value < 1
    for name in CONTROLS:
        outputs = of(records, name)
        used = points[outputs.id].teacher_use
        assert used is not None and used.value == pytest.approx(outputs.settings["use"])
        assert outputs.settings["wanted_use"] == pytest.approx(like.teacher_use.value)
        assert all(s.owners.count("teacher") == s.teacher_calls for s in outputs.sentences)
        # six sentences of ten tokens cannot be matched to a hundredth, but to a few tokens
        assert used.value == pytest.approx(like.teacher_use.value, abs=0.15)
        assert outputs.settings["budget"] == "high" and outputs.settings["tolerance"] == TOLERANCE


def test_the_search_for_a_threshold_is_short() -> None:
    """Use as a share of a thousand tokens, steep and flat; where no threshold has the use, the closest is taken."""

    def searched(use: Callable[[float], float], wanted: float, highest: float) -> tuple[dict[str, float], int]:
        tried: list[float] = []

        def write(threshold: float) -> list[Sentence]:
            tried.append(threshold)
            calls = round(1000 * use(threshold / highest))
            return [sentence(len(tried), "a " * 1000, "t" * calls + "s" * (1000 - calls))]

        sentences, found = find_threshold(write, wanted, highest)
        assert found["threshold"] == tried[sentences[0].index - 1] and found["wanted_use"] == wanted
        assert found["use"] == pytest.approx(use(found["threshold"] / highest), abs=1e-3)
        return found, len(tried)

    curves = (
        lambda x: 1 - x,
        lambda x: (1 - x) ** 8,
        lambda x: (1 - x) ** 0.5,
        lambda x: 1 / (1 + math.exp(60 * x - 18)),
    )
    for curve, wanted, highest in itertools.product(curves, (0.0, 0.05, 0.3, 0.5, 1.0), (1.0, 8.3)):
        found, rounds = searched(curve, wanted, highest)
        assert abs(found["use"] - wanted) <= TOLERANCE and rounds <= ROUNDS
    assert searched(lambda x: 1 - x, 0.3, 1.0)[1] == 1  # asking at random: at once
    found, rounds = searched(lambda x: 0.9 if x < 0.5 else 0.2, 0.3, 1.0)
    assert (found["use"], rounds) == (0.2, ROUNDS)


@pytest.mark.long
def test_a_cut_file_is_continued(compare, without_figures, tmp_path: Path) -> None:
    methods = ("--methods", "student,training-wheels")
    assert compare(tmp_path, *methods).exit_code == 0
    path = tmp_path / "results.jsonl"
    whole = path.read_bytes()
    lines = whole.splitlines(keepends=True)
    torn = b"".join(lines[:-2]) + lines[-2][: len(lines[-2]) // 2]
    path.write_bytes(torn)
    assert len(read(path).timings) == len(read_bytes(whole, tmp_path).timings) - 2
    assert compare(tmp_path, *methods).exit_code == 0
    again = path.read_bytes()
    kept = b"".join(lines[:-2])
    assert again.startswith(kept) and len(again.splitlines()) == len(lines)
    now, before = read(path), read_bytes(whole, tmp_path)
    assert now.timings.keys() == before.timings.keys() and now.outputs.keys() == before.outputs.keys()
    assert compare(tmp_path, *methods).exit_code == 0
    assert path.read_bytes() == again  # nothing was left to do
    more = compare(tmp_path, "--methods", "student,training-wheels,teacher")
    assert more.exit_code == 0 and path.read_bytes().startswith(again)
    assert len(read(path).outputs) == len(now.outputs) + 1


def read_bytes(content: bytes, folder: Path) -> Records:
    path = folder / "copy.jsonl"
    path.write_bytes(content)
    return read(path)


def test_a_folder_has_one_comparison_at_a_time(compare, without_figures, tmp_path: Path) -> None:
    with alone_in(tmp_path) as alone:
        assert alone
        result = compare(tmp_path, "--methods", "student")
    assert (result.exit_code, result.stdout) == (2, "") and not (tmp_path / "results.jsonl").exists()
    assert result.stderr == (
        f"kdtw: --out={tmp_path} is being written by another run of kdtw compare; wait for its end, or choose another\n"
    )
    assert compare(tmp_path, "--methods", "student").exit_code == 0


def test_figures_that_cannot_be_written_leave_the_old_ones(done: Path, tmp_path: Path, monkeypatch) -> None:
    def full(figure: Any, file: Any, **_: Any) -> None:
        with Path(file).open("wb") if isinstance(file, str | Path) else nullcontext(file) as stream:
            stream.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", full)
    (tmp_path / "quality-latency.png").write_bytes(b"old")
    with pytest.raises(OSError, match="No space left") as caught:
        figures.draw(summarise(read(done / "results.jsonl")), tmp_path)
    assert caught.value.filename == str(tmp_path / "quality-latency.png")
    assert [file.read_bytes() for file in tmp_path.iterdir()] == [b"old"]


@pytest.mark.long
def test_results_of_something_else_are_refused(compare, without_figures, folder: Path, tmp_path: Path) -> None:
    assert compare(tmp_path, "--methods", "student").exit_code == 0
    before = (tmp_path / "results.jsonl").read_bytes()
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps(SENTENCES[0]) + "\n", encoding="utf-8")
    for more, word in (
        ({"data": other}, "data ="),
        ({"more": ["--max-new-tokens", "11"]}, "max_new_tokens = 10"),
        ({"more": ["--batch-size", "2"]}, "batch = 1"),
        ({"more": ["--dtype", "int8"]}, "dtype = fp32"),
    ):
        result = compare(tmp_path, "--methods", "student", *more.pop("more", []), **more)  # type: ignore[arg-type]
        assert result.exit_code == 2 and word in result.stderr, result.stderr
        assert "choose another --out" in result.stderr
    assert (tmp_path / "results.jsonl").read_bytes() == before


@pytest.mark.long
def test_a_device_decodes_the_same_and_its_results_are_its_own(
    compare, without_figures, tmp_path: Path, simulated: str
) -> None:
    few = ["--methods", "teacher,training-wheels,hugging-face", "--budgets", "high", "--sentences", "2"]
    result = compare(tmp_path / "there", *few, "--device", "cuda", "--repetitions", "1", "--timed-sentences", "1")
    assert result.exit_code == 0, result.stderr
    assert "without hugging-face: PyTorch" in result.stderr
    assert compare(tmp_path / "here", *few).exit_code == 0
    there, here = (read(tmp_path / place / "results.jsonl") for place in ("there", "here"))
    assert len(there.outputs) == 2
    for name, outputs in there.outputs.items():
        other = here.outputs[name]
        assert [(s.text, s.owners) for s in outputs.sentences] == [(s.text, s.owners) for s in other.sentences]
    result = compare(tmp_path / "there", *few)
    assert result.exit_code == 2 and "device = cuda:0" in result.stderr


@pytest.mark.long
def test_the_progress_told_of_is_the_work_there_was(folder: Path, tmp_path: Path) -> None:
    contender = load_contender(str(folder), data=folder / "data.jsonl", sentences=4)
    plan = make_plan(Choices(("student", "training-wheels", "entropy"), ["light"], control_budgets=["light"]), False)
    told: list[float] = []
    settings = Settings(timed_sentences=3, repetitions=2, threads=1, max_new_tokens=4)
    file = ResultsFile(tmp_path / "results.jsonl")
    run = Measurement(contender, plan, settings, file, lambda work, what: told.append(work))
    work = run.work()
    run.run()
    assert sum(told) == pytest.approx(work) and work > 0
    assert run.work() == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--methods", "studnet"], "did you mean 'student'"),
        (["--methods", "random,student"], "match the use of training-wheels"),
        (["--leniences", "0.5,x"], "--leniences must be numbers"),
        (["--draft-lengths", "0"], "at least 1, got 0"),
        (["--repetitions", "0"], "repetitions must be at least 1"),
        (["--data", "nothere.jsonl"], "--data was given 2 times"),
        (["--draft-student", "nothere"], "nothere is not a folder"),
        (["--metric", "meteor", "--methods", "student"], "unknown metric 'meteor'"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(compare, tmp_path: Path, arguments: list[str], words: str) -> None:
    result = compare(tmp_path, *arguments)
    assert result.exit_code == 2 and words in result.stderr, result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.long
def test_systems_that_are_not_there_are_left_out_with_a_line(
    compare, without_figures, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("kdtw_fast.peers.has_ctranslate2", lambda: False)
    result = compare(tmp_path, "--methods", "student,ctranslate2,assisted", "--batch-size", "2")
    assert result.exit_code == 0, result.stderr
    assert "without ctranslate2: CTranslate2 is not installed" in result.stderr
    assert "without assisted" in result.stderr
    assert len(read(tmp_path / "results.jsonl").outputs) == 2  # the student, and the pair's GKD student


@pytest.mark.long
def test_the_demo_is_a_quick_comparison_and_a_few_sentences(shipped: str, tmp_path: Path, monkeypatch) -> None:
    quick = Choices(groups=("student", "teacher", "training-wheels"), control_budgets=())
    monkeypatch.setattr("kdtw_fast.cli.compare.QUICK", quick)
    arguments = ["demo", "--pair", shipped, "--out", str(tmp_path), "--threads", "1"]
    result = CliRunner().invoke(cli.app, arguments)
    assert result.exit_code == 0, result.stderr
    records = read(tmp_path / "results.jsonl")
    assert len(records.outputs) == 9 and "quality-latency.png" in result.stdout
    shown = result.stdout[result.stdout.index("Who wrote what") :]
    assert shown.count("\nsource ") == shown.count("\nreference ") == min(3, len(SENTENCES))
    again = CliRunner().invoke(cli.app, arguments)
    assert again.stdout == result.stdout  # measured once


def test_calls_that_settle_are_not_counted(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of a second each to settle, and of two after that: the clock knows the latter only."""
    contender = load_contender(str(folder), data=folder / "data.jsonl", sentences=2)
    clock = PassClock(contender, [0, 1], 1, 1, 5)
    now, step = [0.0], [1.0]

    def perf_counter() -> float:
        now[0] += step[0]
        return now[0]

    monkeypatch.setattr("kdtw_fast.comparison.passes.time.perf_counter", perf_counter)
    clock.sample(0.0, counted=False)
    step[0] = 2.0
    clock.sample(0.0)
    assert clock.take(0, {}).call["student"] == pytest.approx(2.0, abs=0.1)


def test_verdicts_follow_the_intervals() -> None:
    def point(budget: float, use: float) -> Point:
        interval = Interval(use, use - 0.01, use + 0.01)
        settings = {"budget": f"b{budget:g}"}
        name = f"pair/kdtw/{budget:g}"
        return Point(
            name, "pair", "task", "training-wheels", "m", settings, name, budget, 4, 9.0, {}, None, interval, interval,
            0.1, None,
        )  # fmt: skip

    def comparison(question: str, budget: float, metric: str, low: float, high: float) -> Comparison:
        return Comparison(question, metric, f"pair/kdtw/{budget:g}", "x", Interval((low + high) / 2, low, high), 0.1)

    points = [point(0.1, 0.15), point(0.0, 0.0)]
    found = [
        comparison("better", 0.0, "rouge2", 0.5, 1.5),
        comparison("better", 0.1, "rouge2", -0.5, 1.5),
        comparison("faster", 0.0, "ms_per_token", -0.3, -0.1),
        comparison("slower", 0.0, "ms_per_token", 0.1, 0.3),
        comparison("mixed", 0.0, "rouge2", 0.1, 0.3),
        comparison("mixed", 0.1, "rouge2", -0.3, -0.1),
    ]
    records = Records({"a": outputs("a", [sentence(0, "a b")])})
    drawn = {
        name: Statistics.of(["a b c"] * 2, [text] * 2) for name, text in [("pair/kdtw/0", "a b c"), ("x", "d e f")]
    }
    samples = Samples(resample(2, 0), drawn | {"pair/kdtw/0.1": drawn["x"]})
    text = claims.claims_tables(records, {"pair": samples}, points, found, "rouge2")
    rows = [line.removesuffix(" |").split(" | ") for line in text.splitlines()]
    table = {row[0].removeprefix("| "): row[1:] for row in rows if len(row) == 5}
    assert table["claim"] == ["holds", "b0 (0)", "b0.1 (0.1)", "mean"]
    kept = next(row for name, row in table.items() if "share of all tokens" in name)
    assert kept == ["at 1 of 2, against it 1", "+0.0 (-1.0 to +1.0)", "+5.0 (+4.0 to +6.0)", "–"]
    better = ["at 1 of 2, open 1", "+1.0 (+0.5 to +1.5)", "+0.5 (-0.5 to +1.5)", "+50.0 (+50.0 to +50.0)"]
    assert table["better, ROUGE-2"] == better  # the mean is made anew: of 100 - 0 and 0 - 0
    assert table["faster, ms/token"] == ["yes", "-20 % (-30 % to -10 %)", "–", "–"]
    assert table["slower, ms/token"][0] == "no"
    assert table["mixed, ROUGE-2"][0] == "at 1 of 2, against it 1"


def test_examples_mark_the_teachers_tokens_and_need_all_three() -> None:
    def written(group: str, budget: float | None, owners: str) -> Outputs:
        names = {"s": "student", "t": "teacher"}
        pieces = ["\u2581a", "b", "\u2581c", "</s>"][: len(owners)]
        one = replace(sentence(0, "ab c"), tokens=pieces, owners=[names[code] for code in owners])
        return outputs(group, [one], group, budget=budget)

    made = [written("student", None, "ssss"), written("training-wheels", 0.1, "stst"), written("teacher", None, "tttt")]
    [example] = examples(Records({one.id: one for one in made}), "pair")
    assert [(name, text.plain) for name, text in example] == [
        ("source", "source 0"),
        ("student", "ab c"),
        ("training-wheels", "a[b] c[</s>]"),
        ("teacher", "ab c"),
        ("reference", "a b c d"),
    ]
    assert "training-wheels  a[b] c[</s>]" in examples_text([example])
    with pytest.raises(ValueError, match="the records of pair lack one"):
        examples(Records({one.id: one for one in made[:2]}), "pair")


def test_a_recipe_is_compared_by_what_it_trained(folder: Path, tmp_path: Path, monkeypatch) -> None:
    recipe = tmp_path / "mine.yaml"
    run = tmp_path / "run"
    recipe.write_text(
        f"base: debian-de-en/phase2\nout: {run}\ndata: {{folder: {tmp_path}}}\nteacher: {{path: {folder}/teacher}}\n"
    )
    with pytest.raises(FileNotFoundError, match=r"has no student in .*train it first"):
        load_contender(str(recipe))
    shutil.copytree(folder / "student", run / "best")
    shutil.copytree(folder / "tokenizer", run / "best", dirs_exist_ok=True)
    (tmp_path / "test.jsonl").write_text((folder / "data.jsonl").read_text())
    contender = load_contender(str(recipe))
    assert [example.source for example in contender.samples] == SOURCES and contender.folders["student"] == run / "best"
    assert "mine" in contender.name


def test_a_recipe_whose_teacher_is_on_the_hub_is_compared(folder: Path, tmp_path: Path, monkeypatch) -> None:
    recipe, run = tmp_path / "mine.yaml", tmp_path / "run"
    told = f"base: debian-de-en/phase2\nout: {run}\nteacher: {{path: owner/teacher}}\ndata: {{folder: {tmp_path}}}\n"
    recipe.write_text(told)
    shutil.copytree(folder / "student", run / "best")
    shutil.copytree(folder / "tokenizer", run / "best", dirs_exist_ok=True)
    (tmp_path / "test.jsonl").write_text((folder / "data.jsonl").read_text())
    monkeypatch.setattr(training_models, "check_place", lambda place, setting: None)
    monkeypatch.setattr(contenders, "snapshot_download", lambda place, **_: str(folder / place.split("/")[1]))
    contender = load_contender(str(recipe))
    assert contender.folders["teacher"] == folder / "teacher"
    assert [example.source for example in contender.samples] == SOURCES
    recipe.write_text(told.replace("data: {", "data: {chat: true, "))
    with pytest.raises(ValueError, match=r"mine\.yaml was trained on conversations \(data\.chat\), .* --data"):
        load_contender(str(recipe))


@pytest.mark.parametrize("odd", ["\u2028", "\u0085", "\x0b"])
def test_a_string_of_jsonl_holds_what_is_a_line_break_elsewhere(odd: str, tmp_path: Path) -> None:
    rows = [{"source": f"s{odd}{i}", "target": f"t{odd}"} for i in range(40)]
    file = tmp_path / "data.jsonl"
    file.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n", encoding="utf-8")
    assert [vars(sample)["source"] for sample in read_samples(file)] == [row["source"] for row in rows]
    parts = split(file, tmp_path / "parts")
    found = [row.source for part in ("train", "validation", "test") for row in read_jsonl(parts / f"{part}.jsonl")]
    assert sorted(found) == sorted(row["source"] for row in rows)


def test_a_line_of_jsonl_that_is_no_utf8_is_named(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_bytes(b'{"source": "a", "target": "b"}\n{"source": "\xe4", "target": "b"}\n')
    for reading in (read_samples, read_jsonl, lambda file: split(file, tmp_path / "parts")):
        with pytest.raises(ValueError, match=r"line 2 is not UTF-8 text \(byte 0xe4 at place 12\)") as caught:
            reading(file)
        assert str(caught.value).startswith(str(file))


def test_chosen_takes_items_from_the_whole_in_order() -> None:
    assert chosen(range(10), 3) == [0, 3, 6]
    assert chosen(range(3), 5) == chosen(range(3), 0) == [0, 1, 2]


# --- Plan and records ------------------------------------------------------------------------------------


def test_the_plan_has_the_papers_grid_and_every_point_once() -> None:
    for has_draft_student in (True, False):
        plan = make_plan(Choices(), has_draft_student)
        assert len({point.name for point in plan}) == len(plan)
        by_group = {group: [p for p in plan if p.group == group] for group in GROUPS}
        assert len(by_group["training-wheels"]) == 6 and len(by_group["speculative"]) == 5
        assert len(by_group["student"]) == 1 + has_draft_student
        lossy = by_group["distillspec"]
        own = [p for p in lossy if p.label.startswith("lossy, own student")]
        assert len(own) == 5 * 11  # l = 1 of the own student is lossless decoding
        gkd = [p for p in lossy if p.label.startswith("DistillSpec")]
        assert len(gkd) == (5 * 12 if has_draft_student else 0) and len(lossy) == len(own) + len(gkd)


def sentence(index: int, text: str, owners: str = "", reference: str = "a b c d") -> Sentence:
    names = {"s": "student", "t": "teacher", "c": "corrected"}
    codes = [names[code] for code in owners or "s" * len(text.split())]
    return Sentence(
        index, f"source {index}", reference, text, ["x"] * len(codes), codes, codes.count("teacher"), 0, 0, 0
    )


def outputs(name: str, sentences: list[Sentence], group: str = "training-wheels", **more: Any) -> Outputs:
    values: dict[str, Any] = {"settings": {}, "label": name, "budget": None, "signatures": {}, "provenance": {}}
    return Outputs(f"pair/{name}", "pair", "task", group, name, sentences=sentences, **{**values, **more})


def timing(name: str, repetition: int, seconds: list[float], tokens: list[int]) -> Timing:
    n = len(seconds)
    return Timing(f"pair/{name}", repetition, 1, 1, n, list(range(n)), seconds, tokens, [], [], {}, {})


def test_broken_lines_are_named(tmp_path: Path) -> None:
    path = tmp_path / "results.jsonl"
    good = to_line(outputs("a", [sentence(0, "a b")]))
    for line, words in (
        ("{\n", "no JSON"),
        ("[]\n", "expected an object"),
        ('{"kind": "other"}\n', "its kind is 'other'"),
        (good, "there twice"),
        (good.replace('"group"', '"gruop"'), "lacks group"),
        (good.replace('"accepted"', '"acepted"'), "sentence 0 lacks accepted and has unknown acepted"),
        (to_line(timing("b", 0, [1.0], [1])), "before its outputs"),
    ):
        path.write_text(good + line, encoding="utf-8")
        with pytest.raises(ValueError, match=rf"{path.name} line 2 .*{words}"):
            read(path)
    with pytest.raises(FileNotFoundError, match="kdtw compare writes it"):
        read(tmp_path / "none.jsonl")


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    file = ResultsFile(tmp_path / "results.jsonl")
    first = outputs("a", [replace(sentence(0, "ä\u2028b"), student_logprobs=[None, -0.5])])
    second = timing("a", 0, [0.1], [2])
    file.append(first)
    file.append(second)
    records = read(file.path)
    assert list(records.outputs.values()) == [first] and list(records.timings.values()) == [second]
    with pytest.raises(ValueError, match="twice"):
        file.append(second)


# --- Statistics ------------------------------------------------------------------------------------------


def test_scores_are_sacrebleus_and_intervals_cover_as_the_normal_law_says() -> None:
    rng = np.random.default_rng(1)
    words = np.array(list("abcdefgh"))
    references = [" ".join(rng.choice(words, 8)) for _ in range(300)]
    texts = [" ".join(w if rng.random() < 0.7 else "z" for w in r.split()) for r in references]
    statistics = Statistics.of(texts, references)
    assert statistics.score("bleu") == pytest.approx(sacrebleu.corpus_bleu(texts, [references]).score)
    assert statistics.score("chrf") == pytest.approx(sacrebleu.corpus_chrf(texts, [references]).score)
    each = statistics.sums["rouge1"][:, 0]
    interval = Interval.of(statistics.score("rouge1"), statistics.resampled("rouge1", resample(300, 0)))
    assert interval.value == pytest.approx(each.mean())
    half = 1.96 * each.std() / np.sqrt(len(each))
    assert (interval.high - interval.low) / 2 == pytest.approx(half, rel=0.1)
    assert interval.low < interval.value < interval.high


def test_a_paired_difference_that_is_the_same_everywhere_has_no_interval() -> None:
    """What two points share, here sentences of very different difficulty, does not blur their difference."""
    references = ["a b c d"] * 20
    worse = ["a x y z" if i % 2 else "a b x y" for i in range(20)]
    better = ["a b y z" if i % 2 else "a b c y" for i in range(20)]
    records = Records()
    records.add(outputs("worse", [sentence(i, t, reference=r) for i, (t, r) in enumerate(zip(worse, references))]))
    records.add(outputs("better", [sentence(i, t, reference=r) for i, (t, r) in enumerate(zip(better, references))]))
    samples = sample(records, "pair")
    found = compare_quality(samples, "?", "pair/better", "pair/worse", "rouge1")
    assert found.difference.value == pytest.approx(25.0)
    assert (found.difference.low, found.difference.high) == pytest.approx((25.0, 25.0))
    assert found.p == pytest.approx(1 / 1000)
    same = compare_quality(samples, "?", "pair/better", "pair/better", "rouge1")
    assert same.difference.value == 0 and same.p == 1.0


def test_latencies_are_compared_turn_by_turn() -> None:
    records = Records()
    for name, factor in (("slow", 1.2), ("fast", 1.0)):
        records.add(outputs(name, [sentence(0, "a b")]))
        for turn, machine in enumerate((1.0, 3.0, 2.0)):  # the machine drifts by three, the ratio does not
            records.add(timing(name, turn, [factor * machine], [2]))
    found = compare_latency(records, "?", "pair/slow", "pair/fast")
    assert found is not None and found.difference.value == pytest.approx(0.2)
    assert (found.difference.low, found.difference.high) == pytest.approx((0.2, 0.2))


def test_points_count_use_latency_and_the_gap() -> None:
    records = Records()
    texts = {"greedy-student/alone": "a x y z", "greedy-teacher/alone": "a b c d", "wheels": "a b y z"}
    for name, text in texts.items():
        owners = "ttcs" if name == "wheels" else ""
        records.add(outputs(name, [sentence(i, text, owners) for i in range(4)], budget=0.5))
    records.add(timing("wheels", 0, [0.004, 0.006], [4, 6]))
    records.add(timing("wheels", 1, [0.008, 0.012], [4, 6]))
    point = {p.id: p for p in summarise(records)}["pair/wheels"]
    assert point.teacher_use is not None and point.latency is not None and point.gap_closed is not None
    assert point.teacher_use.value == 0.75
    assert point.teacher_passes_per_token == 0.5
    assert point.latency.ms_per_token == pytest.approx(Spread(1.5, 1.25, 1.75))
    assert point.latency.ms_per_sentence.median == pytest.approx(7.5)
    assert point.latency.tokens_per_second.median == pytest.approx(750)
    assert point.gap_closed["rouge1"].value == pytest.approx(1 / 3)


def test_points_on_other_sentences_are_refused() -> None:
    records = Records()
    records.add(outputs("a", [sentence(0, "a b")]))
    records.add(outputs("b", [sentence(1, "a b")]))
    with pytest.raises(ValueError, match="not judged on the same sentences"):
        summarise(records)


# --- Front, table, figures -------------------------------------------------------------------------------


def point(name: str, quality: float, ms: float | None, group: str = "distillspec") -> Point:
    metrics = dict.fromkeys(("rouge1", "rouge2", "rougeL", "bleu", "chrf"), Interval(quality, quality, quality))
    spread = None if ms is None else Spread(ms, ms, ms)
    latency = None if spread is None else Latency(spread, spread, spread, 3, 1, 1)
    use = Interval(0.2, 0.1, 0.3)
    return Point(name, "pair", "task", group, "m", {}, name, 0.1, 4, 9.0, metrics, latency, use, use, 0.1, None)


def test_the_front_is_what_nothing_beats() -> None:
    points = [
        point("slow and good", 9, 4.0),
        point("beaten", 5, 3.0),
        point("fast", 3, 1.0),
        point("middle", 6, 2.0),
        point("as good, slower", 6, 2.5),
        point("as fast, worse", 5, 2.0),
        point("untimed", 10, None),
    ]
    assert [p.id for p in pareto(points, "bleu")] == ["fast", "middle", "slow and good"]
    assert pareto([], "bleu") == []


def test_the_table_shows_grids_by_their_front_and_all_else() -> None:
    points = [
        point("a", 3, 1.0),
        point("b", 2, 2.0),
        point("c", 2, 3.0, "training-wheels"),
        point("d", 1, None, "random"),
    ]
    assert [p.id for p in table.shown(points)] == ["a", "c", "d"]
    text = table.points_tables(points)
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert len(rows) == 4 and "| 10 % | 20.0 % | 2.0 ± 0.0 |" in text
    assert rows[3].count("–") == 3  # no gap, no latency, no rate


def test_figures_are_the_same_bytes_again_and_need_records_only(done: Path, tmp_path: Path) -> None:
    figures.draw(summarise(read(done / "results.jsonl")), tmp_path)
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == sorted(f"{n}.{e}" for n in ("quality-latency", "quality-use", "budgets") for e in ("png", "svg"))
    for name in names:
        drawn = (tmp_path / name).read_bytes()
        assert drawn == (done / name).read_bytes() and len(drawn) > 5000


def test_figures_only_measures_nothing(compare, done: Path, tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_bytes((done / "results.jsonl").read_bytes())
    result = compare(tmp_path, "--figures-only")
    assert result.exit_code == 0, result.stderr
    assert (tmp_path / "results.jsonl").read_bytes() == (done / "results.jsonl").read_bytes()
    summary = json.loads((tmp_path / "summary.json").read_text("utf-8"))
    asked = {claim["question"] for claim in summary["comparisons"]}
    assert asked >= {"better than the student alone", "faster than the fastest of DistillSpec"}
    assert compare(tmp_path / "empty", "--figures-only").exit_code == 2


def test_passes_of_a_turn_that_goes_on_are_not_the_next_ones() -> None:
    taken: list[int] = []
    clock = SimpleNamespace(sample=lambda *_, **__: None, take=lambda turn, _: taken.append(turn))
    added: list[str] = []
    turn = Measurement.__new__(Measurement)
    records = SimpleNamespace(passes={("pair", 0): "there"})
    stubs = {
        "_contender": SimpleNamespace(name="pair"),
        "_file": SimpleNamespace(records=records, append=added.append),
        "_plan": {"a": SimpleNamespace(label="a", group="student")},
        "_settings": Settings(),
        "_timing_shared": {},
        "_progress": lambda work, what: None,
        "_system": lambda name: None,
        "_timed_calls": lambda system, calls: [{}],
        "_timing": lambda *given: "timing",
        "_turn_work": lambda name: 1.0,
    }
    vars(turn).update(stubs)
    turn._repetition(0, ["a"], {"a": [lambda: None]}, clock)
    assert added == ["timing"] and taken == [0]
