"""The `kdtw` command on a tiny random pair: alignment, outputs, owners' marks, errors in one sentence, the demo."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from factories import SHAPES, random_t5, scale_row, with_tau
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

import kdtw_fast.cli as cli
from kdtw_fast import Owner, TrainingWheelsDecoder, __version__, build_info
from kdtw_fast.methods import METHODS
from kdtw_fast.modeling import TrainingWheelsT5
from kdtw_fast.owners_view import Span, gauge, marked, spans
from kdtw_fast.pairs import Sample
from kdtw_fast.visible import visible

WORDS = ["dieses", "paket", "enthält", "die", "doku", "mentation", "this", "package", "holds", "the", "docs"]
SMALL = ["--max-new-tokens", "12"]
LINES = ["dieses paket", "", "die doku", "   ", "enthält die", "paket paket paket", "doku mentation"]


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, letters and bytes, as the shipped tokenizer has them."""
    pieces = ["<pad>", "</s>", "<unk>"] + [f"<0x{byte:02X}>" for byte in range(256)]
    pieces += [f"▁{word}" for word in WORDS] + list("abcdefghijklmnopqrstuvwxyzä▁.,:-") + ["mentation"]
    tokenizer = Tokenizer(models.Unigram([(p, -float(i > 258)) for i, p in enumerate(pieces)], 2, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="always", split=True), decoders.Fuse()]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        clean_up_tokenization_spaces=False,
    )


@dataclass(frozen=True)
class TinyPair:
    """What the CLI needs of a shipped pair, and the folders it was saved in."""

    student: object
    teacher: object
    tokenizer: PreTrainedTokenizerFast
    folder: Path

    def samples(self) -> list[Sample]:
        return [Sample(line, "this package holds the docs", "p") for line in LINES if line.strip()]

    @property
    def folders(self) -> list[str]:
        return ["--student", str(self.folder / "student"), "--teacher", str(self.folder / "teacher")]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> TinyPair:
    folder, tokenizer = tmp_path_factory.mktemp("pair"), make_tokenizer()
    rows = len(tokenizer) + 1
    student = with_tau(random_t5(SHAPES[0], rows, seed=1), rows - 1, beta_scale=1.0, seed=2)
    scale_row(student, rows - 1, 2.0)
    teacher = random_t5(SHAPES[2], rows, seed=3)
    for byte in range(3, 259):  # mostly words, so that texts differ where tokens do
        scale_row(student, byte, 0.2)
        scale_row(teacher, byte, 0.2)
    teacher.config.teacher_prompt = "this: "
    student.config.student_prompt, student.config.teacher_prompt = "the {budget} this: ", "this: "
    student.save_pretrained(folder / "student")
    teacher.save_pretrained(folder / "teacher")
    tokenizer.save_pretrained(folder / "tokenizer")
    return TinyPair(student, teacher, tokenizer, folder)


@pytest.fixture
def kdtw():
    runner = CliRunner()
    return lambda *args, stdin=None: runner.invoke(cli.app, [str(a) for a in args], input=stdin)


def test_each_text_gives_one_line_as_the_decoder_wrote_it(kdtw, pair: TinyPair, device: str) -> None:
    options = [*SMALL, "--budget", "high", "--device", device]
    result = kdtw("generate", *pair.folders, *options, *[x for x in LINES if x.strip()])
    decoder = TrainingWheelsDecoder(pair.student, pair.teacher, tokenizer=pair.tokenizer, device=device)
    expected = decoder([x for x in LINES if x.strip()], budget="high", max_new_tokens=12).texts
    assert result.exit_code == 0, result.stderr
    assert result.stdout.split("\n") == [*(" ".join(text.splitlines()) for text in expected), ""]


def test_a_line_that_had_no_time_has_no_share_of_a_teacher(kdtw, pair: TinyPair) -> None:
    late = ["generate", *pair.folders, "--max-time", "1e-9", "die doku"]
    record = json.loads(kdtw(*late, "--jsonl").stdout, parse_constant=pytest.fail)
    assert (record["tokens"], record["teacher_fraction"], record["finish_reason"]) == ([], 0, "time")
    result = kdtw(*late, "--show-owners")
    assert result.exit_code == 0 and "0 %" in result.stdout, result.stderr


def test_auto_decodes_at_the_quality_asked_for_and_says_how(kdtw, pair: TinyPair) -> None:
    def run(*arguments: str) -> str:
        result = kdtw("generate", *pair.folders, *SMALL, *arguments, stdin="\n".join(LINES))
        assert result.exit_code == 0, result.stderr
        return result.stdout

    teacher = run("--method", "speculative")
    assert run("--method", "auto") == run("--method", "auto", "--quality", "teacher", "--batch-size", "1") == teacher
    assert run("--method", "auto", "--quality", "student") == run("--method", "greedy-student")
    ran = {json.loads(line)["method"] for line in run("--method", "auto", "--quality", "0.3", "--jsonl").splitlines()}
    assert ran <= {"training-wheels", "greedy-teacher", "auto"} and ran != {"auto"}  # "auto": an empty line's


def test_several_teachers(kdtw, pair: TinyPair, tmp_path: Path) -> None:
    student = TrainingWheelsT5.from_t5(pair.student, tau_token_id=pair.student.config.tau_token_id, teachers=2).eval()
    with torch.no_grad():  # the second <tau> wins where the first's logit is clearly negative
        student.lm_head.weight[-1] = -student.lm_head.weight[-2]
    student.save_pretrained(tmp_path / "student")
    second = random_t5(SHAPES[1], pair.teacher.config.vocab_size, seed=5)
    second.config.teacher_prompt = "docs: "
    second.save_pretrained(tmp_path / "second")
    folders = ["--student", tmp_path / "student", "--tokenizer", pair.folder / "tokenizer"]
    both = [*folders, "--teacher", pair.folder / "teacher", "--teacher", tmp_path / "second"]
    texts = [x for x in LINES if x.strip()]
    decoder = TrainingWheelsDecoder(student, [pair.teacher, second], tokenizer=pair.tokenizer)
    assert decoder(texts, budget={1: "high", 2: "no"}, max_new_tokens=12).calls_by_teacher.sum(0)[1] == 0
    out = decoder(texts, budget={1: "moderate-light", 2: "high"}, max_new_tokens=12)
    assert min(out.calls_by_teacher.sum(0)) > 0
    result = kdtw("generate", *both, *SMALL, "--budget", "moderate-light,high", "--jsonl", *texts)
    assert result.exit_code == 0, result.stderr
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["calls_by_teacher"] for record in records] == out.calls_by_teacher.tolist()
    for record, row, length in zip(records, out.teacher_index.tolist(), out.lengths.tolist(), strict=True):
        assert record["teacher_index"] == row[1 : 1 + length]
    result = kdtw("generate", *both, *SMALL, "--budget", "moderate-light,high", "--show-owners", *texts)
    assert "[1:" in result.stdout and "[2:" in result.stdout
    light = kdtw("generate", *both, *SMALL, *texts)
    assert light.stdout == kdtw("generate", *both, *SMALL, "--budget", "light,light", *texts).stdout != result.stdout
    for arguments, words in (
        ([*folders, "--teacher", pair.folder / "teacher"], "can ask 2 teachers, but 1 were given"),
        ([*both, "--budget", "light"], "2 teachers, give a budget for each"),
        ([*both, "--method", "speculative"], "SpeculativeDecoder has one teacher, got 2"),
    ):
        result = kdtw("generate", *arguments, "paket")
        assert result.exit_code == 2 and words in result.stderr and result.stderr.count("\n") == 1, result.stderr


def test_packed_weights_are_kept_where_it_is_said(kdtw, pair: TinyPair) -> None:
    arguments = ["generate", *pair.folders, *SMALL, "--teacher-dtype", "int8", *[x for x in LINES if x.strip()]]
    plain = kdtw(*arguments)
    files = [pair.folder / "student/.kdtw_fast-fp32.packed", pair.folder / "teacher/.kdtw_fast-int8.packed"]
    assert not any(file.exists() for file in files)
    first, second = (kdtw(*arguments, "--cache-weights") for _ in range(2))
    assert all(file.stat().st_size > 1000 for file in files)
    assert (plain.exit_code, plain.stdout) == (first.exit_code, first.stdout) == (second.exit_code, second.stdout)
    assert plain.exit_code == 0


def test_stdin_file_dash_and_output_file_agree_and_stay_aligned(kdtw, pair: TinyPair, tmp_path: Path) -> None:
    source, target = tmp_path / "in.txt", tmp_path / "out.txt"
    source.write_bytes("\n".join(LINES).encode())  # no newline at the end
    arguments = ["generate", *pair.folders, *SMALL, "--batch-size", "3"]
    results = [
        kdtw(*arguments, stdin="\n".join(LINES)),
        kdtw(*arguments, "--file", "-", stdin="\r\n".join(LINES) + "\r\n"),
        kdtw(*arguments, "--file", source),
    ]
    written = kdtw(*arguments, "--file", source, "--output", target)
    assert [r.exit_code for r in [*results, written]] == [0] * 4
    assert written.stdout == ""
    assert len({r.stdout for r in results} | {target.read_text("utf-8")}) == 1
    lines = results[0].stdout.split("\n")[:-1]
    assert [bool(line) for line in lines] == [bool(line.strip()) for line in LINES]


def test_no_input_gives_no_output(kdtw, pair: TinyPair) -> None:
    result = kdtw("generate", *pair.folders, stdin="")
    assert (result.exit_code, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("method", METHODS)
def test_results_depend_on_line_and_seed_not_on_batches_or_threads(kdtw, pair: TinyPair, method: str) -> None:
    arguments = ["generate", *pair.folders, *SMALL, "--method", method, "--temperature", "0.8", "--top-k", "20"]

    def run(*more: str) -> str:
        result = kdtw(*arguments, *more, stdin="\n".join(LINES))
        assert result.exit_code == 0, result.stderr
        return result.stdout

    whole = run("--batch-size", "7", "--seed", "5")
    assert whole == run("--batch-size", "2", "--seed", "5", "--threads", "1")
    assert whole != run("--batch-size", "7", "--seed", "6")


def test_settings_reach_the_decoder(kdtw, pair: TinyPair) -> None:
    def run(*arguments: str) -> str:
        result = kdtw("generate", *pair.folders, *SMALL, *arguments, stdin="\n".join(LINES))
        assert result.exit_code == 0, result.stderr
        return result.stdout

    teacher, student = run("--method", "greedy-teacher"), run("--method", "greedy-student")
    assert run("--method", "speculative", "--lenience", "1") == teacher
    assert run("--method", "speculative", "--lenience", "0", "--draft-length", "11") not in (teacher, student)
    assert run("--method", "speculative", "--lenience", "0", "--draft-length", "1") != run(
        "--method", "speculative", "--lenience", "0", "--draft-length", "11"
    )
    assert run("--method", "bild", "--fallback", "0", "--rollback", "99") == student
    assert run("--method", "bild", "--fallback", "1", "--rollback", "0") == teacher
    assert run("--method", "interleaved", "--accept-top-k", "1") == teacher
    assert run("--max-teacher-calls", "0", "--budget", "no") == student
    assert run("--method", "random", "--threshold", "0") == run("--method", "entropy", "--threshold", "0") == teacher
    assert run("--method", "entropy", "--threshold", "99") == run("--max-teacher-calls", "0", "--budget", "light")


def test_jsonl_holds_tokens_owners_and_counts(kdtw, pair: TinyPair) -> None:
    result = kdtw(
        "generate",
        *pair.folders,
        *SMALL,
        "--jsonl",
        "--budget",
        "0.5",
        "--max-teacher-calls",
        "3",
        stdin="\n".join(LINES),
    )
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [r["line"] for r in records] == list(range(1, len(LINES) + 1))
    assert [r["source"] for r in records] == LINES
    assert sum(r["teacher_calls"] for r in records) > 0
    for record in records:
        assert len(record["tokens"]) == len(record["owners"]) <= 12
        assert record["teacher_calls"] == record["owners"].count("teacher") <= 3
        if record["source"].strip():
            assert record["teacher_fraction"] == pytest.approx(
                record["teacher_calls"] / len(record["tokens"]), abs=1e-6
            )
            text = pair.tokenizer.decode(record["tokens"], skip_special_tokens=True)
            assert record["text"] == " ".join(text.splitlines())
            assert record["finish_reason"] in ("end", "length")
        else:
            assert (record["text"], record["tokens"], record["finish_reason"]) == ("", [], "empty")


def test_owners_are_marked_without_colour_in_pipes(kdtw, pair: TinyPair) -> None:
    arguments = ["generate", *pair.folders, *SMALL, "--budget", "high", "--max-teacher-fraction", "0.5"]
    plain = kdtw(*arguments, stdin="\n".join(LINES)).stdout
    shown = kdtw(*arguments, "--show-owners", stdin="\n".join(LINES)).stdout
    assert "\x1b" not in shown
    assert len(shown.splitlines()) == len(LINES)
    records = kdtw(*arguments, "--jsonl", stdin="\n".join(LINES)).stdout.splitlines()
    for line, marks, record in zip(plain.splitlines(), shown.splitlines(), map(json.loads, records), strict=True):
        assert ("[" in marks) == ("teacher" in record["owners"]) or "�" in line
        if not record["text"]:
            continue
        used = 100 * record["teacher_fraction"]
        bar, text = marks[:35], marks[37:]
        assert bar.endswith(f" {used:3.0f} % used,  40 % asked") and bar[4] == ("┿" if used >= 45 else "┼")
        assert text.replace("[", "").replace("]", "").replace("</s>", "") == visible(line)


def owner_marks(words: list[tuple[str, Owner]]) -> str:
    tokenizer = make_tokenizer()
    ids = [tokenizer.convert_tokens_to_ids(word) for word, _ in words]
    assert tokenizer.unk_token_id not in ids
    return marked(spans([0, *ids, 0], [Owner.NONE, *(owner for _, owner in words), Owner.NONE], tokenizer)).plain


def test_runs_of_one_owner_are_marked_together() -> None:
    s, t, a, c, f = Owner.STUDENT, Owner.TEACHER, Owner.ACCEPTED, Owner.CORRECTED, Owner.FORCED
    assert owner_marks([("▁this", s), ("▁package", t), ("▁holds", s), ("</s>", s)]) == "this [package] holds"
    assert owner_marks([("▁doku", s), ("mentation", t), ("▁the", t), ("▁docs", s)]) == "doku[mentation the] docs"
    assert owner_marks([("▁this", f), ("▁the", a), ("▁docs", c)]) == "<this> (the) {docs}"
    assert owner_marks([("▁this", s), ("</s>", t)]) == "this[</s>]"
    # a character of two bytes, one of each model, belongs to the one that finished it
    assert owner_marks([("▁die", s), ("<0xC3>", s), ("<0xA4>", t), ("▁docs", s)]) == "die[ä] docs"


def test_the_gauge_has_one_width_and_a_tick_at_the_budget() -> None:
    assert gauge(0.31, 0.3).plain == "━━━┼───────  31 % used,  30 % asked"
    assert gauge(0.004, 0.0).plain == "┿━─────────   0 % used,   0 % asked"
    assert gauge(1.0, 0.5).plain == "━━━━━┿━━━━━ 100 % used,  50 % asked"
    assert gauge(0.5).plain == "━━━━━─────   50 % used             "
    assert {len(gauge(used / 7, asked)) for used in range(8) for asked in (None, 0.0, 0.1, 1.0)} == {35}


def test_no_character_acts_on_the_terminal() -> None:
    hostile = "\x1b[31mred\x1b]0;title\x07 \r\n\t\x7f\x9b2J \u202eltr\u2066 \u2028 \ufeff \ud800 ä 👩\u200d🚀"
    shown = visible(hostile)
    assert shown == ("␛[31mred␛]0;title␇ ␍␊␉␡⟨U+009B⟩2J ⟨U+202E⟩ltr⟨U+2066⟩ ⟨U+2028⟩ ⟨U+FEFF⟩ ⟨U+D800⟩ ä 👩\u200d🚀")
    assert marked([Span(Owner.TEACHER, hostile, " ")]).plain == f" [{shown}]"
    assert visible(shown) == shown


MODELS = ["--student", "{pair}/student", "--teacher", "{pair}/teacher"]
BAD = {
    "unknown command": (["generat"], "generat"),
    "unknown option": (["generate", "--metod", "bild", "x"], "--method"),
    "unknown method": (["generate", "--method", "speculativ", "x"], "'speculativ'; did you mean 'speculative'?"),
    "unknown pair": (["generate", "--pair", "debian-de-fr", "x"], "debian-de-fr"),
    "unknown budget": (["generate", *MODELS, "--budget", "ligth", "x"], "'ligth'; did you mean \"light\"?"),
    "budget not in the table": (["generate", *MODELS, "--budget", "0.15", "x"], "0.15"),
    "budget of another method": (
        ["generate", "--method", "bild", "--budget", "light", "x"],
        "--budget belongs to training-wheels",
    ),
    "lenience of another method": (["generate", "--lenience", "1", "x"], "--lenience belongs to speculative"),
    "quality of another method": (["generate", "--quality", "teacher", "x"], "--quality belongs to auto"),
    "unknown quality": (["generate", *MODELS, "--method", "auto", "--quality", "best", "x"], "unknown budget 'best'"),
    "lenience out of range": (
        ["generate", *MODELS, "--method", "speculative", "--lenience", "1.5", "x"],
        "--lenience must be in [0, 1], got 1.5",
    ),
    "lenience not a number": (["generate", "--lenience", "much", "x"], "--lenience"),
    "draft length 0": (
        ["generate", *MODELS, "--method", "speculative", "--draft-length", "0", "x"],
        "--draft-length must be at least 1, got 0",
    ),
    "no new tokens": (
        ["generate", *MODELS, "--max-new-tokens", "0", "x"],
        "--max-new-tokens must be in 1..1048576, got 0",
    ),
    "fraction out of range": (
        ["generate", *MODELS, "--max-teacher-fraction", "1.1", "x"],
        "--max-teacher-fraction must be in [0, 1], got 1.1",
    ),
    "negative temperature": (["generate", *MODELS, "--temperature", "-1", "x"], "--temperature must be in"),
    "batch of none": (["generate", *MODELS, "--batch-size", "0", "x"], "--batch-size must be in 1..65536, got 0"),
    "no threads": (["generate", *MODELS, "--threads", "0", "x"], "--threads must be at least 1, got 0"),
    "missing file": (["generate", *MODELS, "--file", "/nowhere/in.txt"], "cannot use /nowhere/in.txt: No such file"),
    "a folder as file": (["generate", *MODELS, "--file", "{pair}"], "Is a directory"),
    "texts and file": (["generate", *MODELS, "--file", "in.txt", "x"], "not both"),
    "output over input": (
        ["generate", *MODELS, "--file", "{pair}/long.txt", "--output", "{pair}/long.txt"],
        "choose another",
    ),
    "output in a missing folder": (
        ["generate", *MODELS, "--output", "/nowhere/out.txt", "x"],
        "--output /nowhere/out.txt lies in a folder that does not exist",
    ),
    "missing folder": (
        ["generate", "--student", "/nowhere", "--teacher", "{pair}/teacher", "x"],
        "--student /nowhere is not a folder",
    ),
    "folder without a model": (
        ["generate", "--student", "{pair}/tokenizer", "--teacher", "{pair}/teacher", "x"],
        "student: no config.json",
    ),
    "a teacher is needed": (["generate", "--student", "{pair}/student", "x"], "--teacher"),
    "a student is needed": (["generate", "--teacher", "{pair}/teacher", "x"], "--student"),
    "student without tau": (["generate", "--student", "{pair}/teacher", "--teacher", "{pair}/teacher", "x"], "<tau>"),
    "pair and folders": (["generate", *MODELS, "--pair", "debian-de-en", "x"], "not both"),
    "no tokenizer": (["generate", *MODELS, "--tokenizer", "{pair}/student", "x"], "no tokenizer in"),
    "jsonl and owners": (["generate", *MODELS, "--jsonl", "--show-owners", "x"], "leave out --show-owners"),
    "demo of an unknown pair": (["demo", "--pair", "nowhere"], "nowhere"),
}


@pytest.mark.parametrize("case", BAD)
def test_errors_are_one_sentence_on_stderr(kdtw, pair: TinyPair, case: str) -> None:
    (pair.folder / "long.txt").write_text("die doku\n", encoding="utf-8")
    arguments, expected = BAD[case]
    result = kdtw(*(argument.format(pair=pair.folder) for argument in arguments))
    assert result.exit_code == 2, (result.stdout, result.stderr, result.exception)
    assert result.stdout == ""
    assert result.stderr.startswith("kdtw: ") and result.stderr.count("\n") == 1, result.stderr
    assert expected in result.stderr
    assert (pair.folder / "long.txt").read_text(encoding="utf-8") == "die doku\n"


def test_an_error_names_its_line_and_keeps_the_lines_before_it(kdtw, pair: TinyPair) -> None:
    lines = ["die doku", "", "paket", "dieses " * 30, "doku"]
    arguments = ["generate", *pair.folders, *SMALL, "--max-source-length", "20", "--batch-size", "2"]
    result = kdtw(*arguments, stdin="\n".join(lines))
    assert result.exit_code == 2
    assert result.stderr.startswith("kdtw: line 4: ") and "--truncate" in result.stderr
    assert "--max-source-length=20" in result.stderr and result.stderr.count("\n") == 1
    before = kdtw(*arguments, stdin="\n".join(lines[:3])).stdout
    assert result.stdout == before
    cut = kdtw(*arguments, "--truncate", stdin="\n".join(lines))
    assert cut.exit_code == 0 and len(cut.stdout.splitlines()) == 5


def test_an_interruption_keeps_finished_lines_and_exits_130(kdtw, pair: TinyPair, tmp_path: Path, monkeypatch) -> None:
    finished = kdtw("generate", *pair.folders, *SMALL, "die doku").stdout
    whole = cli.generate.decode

    def interrupted(decoder, lines, options, on_error):
        for line in whole(decoder, lines, options, on_error):
            if line.number == 2:
                raise KeyboardInterrupt
            yield line

    monkeypatch.setattr(cli.generate, "decode", interrupted)
    target = tmp_path / "out.txt"
    result = kdtw("generate", *pair.folders, *SMALL, "--batch-size", "1", "-o", target, stdin="die doku\npaket\n")
    assert result.exit_code == 130 and not target.exists()
    assert result.stderr.startswith("kdtw: interrupted; what was finished is in ") and result.stderr.count("\n") == 1
    assert Path(result.stderr.split()[-1]).read_text("utf-8") == finished


def test_the_module_is_the_command_and_shows_no_traceback() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "kdtw_fast", "generate", "--method", "greedy", "x"], capture_output=True, text=True
    )
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.splitlines()[-1].startswith("kdtw: unknown method 'greedy'")
    assert "Traceback" not in result.stderr


def test_help_names_every_method_and_option(kdtw) -> None:
    text = kdtw("generate", "--help").stdout
    assert all(method in text for method in METHODS)
    assert all("--" + option.replace("_", "-") in text for m in METHODS.values() for option in m.own_options)
    assert kdtw("--help").stdout.count("generate") >= 2


def test_info_tells_version_simd_and_threads(kdtw) -> None:
    build = build_info()
    text = kdtw("info").stdout
    assert __version__ in text and build["simd"] in text and "threads" in text
    assert ("CPU only" if build["cuda"] is None else build["cuda"]["architectures"]) in text


README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")


def test_commands_shown_to_users_have_only_options_that_exist(kdtw) -> None:
    shown = README + kdtw("generate", "--help").stdout + kdtw("--help").stdout
    commands = re.findall(r"kdtw generate ([^\n|]*)", shown)
    options = set(re.findall(r"(--[a-z][a-z-]+|-[a-z]) ", kdtw("generate", "--help").stdout)) | {"--help"}
    used = {option for command in commands for option in re.findall(r"(?<!\w)--[a-z][a-z-]+", command)}
    assert len(commands) >= 6 and {"--file", "--show-owners", "--max-teacher-fraction"} <= used
    assert used <= options


def test_the_readmes_python_prints_what_the_readme_shows(capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```\s*```text\n(.*?)```", README, re.DOTALL)
    assert blocks
    for code, shown in blocks:
        exec(compile(code, "README.md", "exec"), {})
        assert capsys.readouterr().out == shown
