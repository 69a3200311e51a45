"""What commands write replaces its target when it is whole, and nothing else ever does."""

from __future__ import annotations

import errno
import json
import os
import select
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import SMALL, TinyPair, kdtw, pair  # noqa: F401 - fixtures

from kdtw_fast.cli.progress import Progress
from kdtw_fast.files import check_target, putting_into, replacing, replacing_folder, write_whole
from kdtw_fast.messages import Message


def run(*arguments: object, stdin: bytes | int | None = None, stdout: int = subprocess.PIPE) -> tuple[int, bytes, str]:
    """kdtw in a process of its own: its status, output and errors."""
    command = [sys.executable, "-m", "kdtw_fast", *map(str, arguments)]
    source = {"input": stdin} if isinstance(stdin, bytes) else {"stdin": stdin}
    done = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, **source)  # type: ignore[call-overload]
    return done.returncode, done.stdout, done.stderr.decode()


def test_a_file_is_replaced_when_it_is_whole(tmp_path: Path) -> None:
    target, link = tmp_path / "out.txt", tmp_path / "link.txt"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    with replacing(link) as stream:
        stream.write("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new" and link.is_symlink()
    assert stat.S_IMODE(target.stat().st_mode) == 0o640
    write_whole(target, "ä\n")
    assert target.read_bytes() == "ä\n".encode() and sorted(os.listdir(tmp_path)) == ["link.txt", "out.txt"]


def test_after_an_error_the_old_file_stays_and_the_new_lines_are_beside_it(tmp_path: Path) -> None:
    target = tmp_path / "out.txt"
    target.write_text("old")
    with pytest.raises(ValueError, match="no"), replacing(target):
        raise ValueError("no")
    assert os.listdir(tmp_path) == ["out.txt"]
    with pytest.raises(KeyboardInterrupt) as caught, replacing(target) as stream:
        stream.write("one\n")
        raise KeyboardInterrupt
    (note,) = caught.value.__notes__
    assert Path(note.split()[-1]).read_text() == "one\n" and target.read_text() == "old"


def test_devices_and_pipes_are_written_as_they_are(tmp_path: Path) -> None:
    write_whole(Path("/dev/null"), "x")
    assert Path("/dev/null").is_char_device()
    if Path("/dev/full").exists():
        with pytest.raises(OSError, match="No space left") as caught:
            write_whole(Path("/dev/full"), "x")
        assert caught.value.filename == "/dev/full"


def test_targets_that_cannot_be_are_refused(tmp_path: Path) -> None:
    source, same = tmp_path / "in.txt", tmp_path / "same.txt"
    source.write_text("x")
    same.hardlink_to(source)
    with source.open() as stream:
        for given in (source, stream.fileno()):
            with pytest.raises(ValueError, match="is the file that is being read; choose another") as caught:
                check_target("output", same, given)
            assert Message.of(caught.value).spelled(lambda option: f"--{option}").startswith(f"--output {same} is")
    with pytest.raises(FileNotFoundError, match="lies in a folder that does not exist"):
        check_target("output", tmp_path / "no" / "out.txt")
    with pytest.raises(IsADirectoryError, match="is a folder; name a file in it"):
        check_target("output", tmp_path)
    check_target("output", tmp_path / "new.txt", tmp_path / "missing.txt", source)


def test_wrong_options_and_inputs_leave_the_output_alone(kdtw, pair: TinyPair, tmp_path: Path) -> None:  # noqa: F811
    target = tmp_path / "out.txt"
    target.write_text("precious\n")
    bad = {
        "--max-new-tokens 0": "--max-new-tokens must be in",
        "--method speculative --lenience 2": "--lenience must be in",
        "--max-teacher-calls -1": "--max-teacher-calls must be in",
        "--max-source-length 3": "line 1: it has",
        "--top-k 99999999999": "--top-k must be at most 2147483647",
        "--method speculative --max-teacher-calls 1": "--max-teacher-calls belongs to",
    }
    for arguments, words in bad.items():
        result = kdtw("generate", *pair.folders, *arguments.split(), "-o", target, "dieses paket enthält die doku")
        assert (result.exit_code, result.stdout) == (2, "") and words in result.stderr, (arguments, result.stderr)
        assert result.stderr.count("\n") == 1
        assert target.read_text() == "precious\n" and os.listdir(tmp_path) == ["out.txt"], arguments


def test_a_line_that_is_not_utf8_is_named_and_the_rest_is_decoded(kdtw, pair: TinyPair, tmp_path: Path) -> None:  # noqa: F811
    lines = b"die doku\n\npaket\n"
    before = kdtw("generate", *pair.folders, *SMALL, stdin=lines).stdout
    result = kdtw("generate", *pair.folders, *SMALL, stdin=lines + b"enth\xe4lt\nmore\n")
    said = "kdtw: line 4 is not UTF-8 text (byte 0xe4 at place 4); convert the input to UTF-8\n"
    more = kdtw("generate", *pair.folders, *SMALL, stdin=b"more\n").stdout
    assert (result.exit_code, result.stdout, result.stderr) == (2, before + "\n" + more, said)
    result = kdtw("generate", *pair.folders, *SMALL, "--on-error", "raise", stdin=lines + b"enth\xe4lt\nmore\n")
    assert (result.exit_code, result.stdout, result.stderr) == (2, before, said)
    # What else is wrong ends it.
    long = lines + b"paket " * 30 + b"\nmore"
    result = kdtw("generate", *pair.folders, *SMALL, "--max-source-length", "20", stdin=long)
    assert (result.exit_code, result.stdout) == (2, before) and result.stderr.startswith("kdtw: line 4: it has")


def test_files_of_models_that_are_read_are_not_overwritten(kdtw, pair: TinyPair, tmp_path: Path) -> None:  # noqa: F811
    for name in ("student", "teacher", "tokenizer"):
        shutil.copytree(pair.folder / name, tmp_path / name)
    folders = ["--student", tmp_path / "student", "--teacher", tmp_path / "teacher"]
    for target in ("student/config.json", "teacher/model.safetensors", "tokenizer/tokenizer.json"):
        before = (tmp_path / target).read_bytes()
        result = kdtw("generate", *folders, *SMALL, "-o", tmp_path / target, "die doku")
        assert result.exit_code == 2 and (tmp_path / target).read_bytes() == before
        assert f"{tmp_path / target} is a file of {(tmp_path / target).parent}, which is being read" in result.stderr
        result = kdtw("bench", "--model", tmp_path / "student", "--json", tmp_path / "student/config.json")
        assert result.exit_code == 2 and "which is being read" in result.stderr
    assert kdtw("generate", *folders, *SMALL, "-o", tmp_path / "student/out.txt", "die doku").exit_code == 0


def test_folders_are_replaced_when_they_are_whole(tmp_path: Path) -> None:
    target = tmp_path / "pair"
    for text in ("one", "two"):
        with replacing_folder(target) as folder:
            folder.mkdir()
            (folder / text).write_text(text)
        assert os.listdir(tmp_path) == ["pair"] and os.listdir(target) == [text]
    with pytest.raises(OSError, match="full"), replacing_folder(target) as folder:
        folder.mkdir()
        (folder / "three").write_text("thr")
        raise OSError("full")
    assert os.listdir(tmp_path) == ["pair"] and os.listdir(target) == ["two"]
    target.rename(tmp_path / ".pair.old.kdtw")  # killed between the two renames
    with pytest.raises(OSError, match="full"), replacing_folder(target):
        raise OSError("full")
    assert os.listdir(tmp_path) == ["pair"] and os.listdir(target) == ["two"]
    (target / "more").mkdir()
    (target / "more/one").write_text("one")
    for text in ("three", "four"):
        with putting_into(target) as folder:
            (folder / "more").mkdir(parents=True)
            (folder / "three").write_text(text)
            (folder / "more/two").write_text(text)
    assert os.listdir(tmp_path) == ["pair"] and sorted(os.listdir(target)) == ["more", "three", "two"]
    assert (target / "three").read_text() == (target / "more/two").read_text() == "four"
    assert (target / "more/one").read_text() == "one"


def test_a_users_folders_beside_one_that_is_replaced_stay(tmp_path: Path) -> None:
    names = ["pair.old", "pair.writing"]
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine").write_text("mine")
    for write in (replacing_folder, putting_into, replacing_folder):
        with write(tmp_path / "pair") as folder:
            folder.mkdir()
            (folder / "new").write_text("new")
        assert sorted(os.listdir(tmp_path)) == ["pair", *names] and os.listdir(tmp_path / "pair") == ["new"]
    assert all((tmp_path / name / "mine").read_text() == "mine" for name in names)


def test_what_is_written_as_a_whole_leaves_nothing_after_an_error(tmp_path: Path) -> None:
    target = tmp_path / "old.png"
    target.write_bytes(b"old")
    with pytest.raises(OSError, match="full") as caught, replacing(target, "wb") as stream:
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "full")
    assert target.read_bytes() == b"old" and os.listdir(tmp_path) == ["old.png"]
    assert not hasattr(caught.value, "__notes__")


def test_stdin_is_not_overwritten(pair: TinyPair, tmp_path: Path) -> None:  # noqa: F811
    text = tmp_path / "text.txt"
    text.write_text("die doku\n")
    with text.open() as stream:
        status, out, said = run("generate", *pair.folders, *SMALL, "-o", text, stdin=stream.fileno())
    assert (status, out) == (
        2,
        b"",
    ) and said == f"kdtw: --output {text} is the file that is being read; choose another\n"
    assert text.read_text() == "die doku\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_is_one_sentence() -> None:
    for command in (["generate", "--help"], ["info"]):
        with Path("/dev/full").open("wb") as full:
            status, _, said = run(*command, stdout=full.fileno())
        assert (status, said) == (2, "kdtw: cannot write the output: No space left on device\n")


def test_a_reader_that_has_gone_is_no_error() -> None:
    reading, writing = os.pipe()
    os.close(reading)
    status, _, said = run("info", stdout=writing)
    os.close(writing)
    assert (status, said) == (141, "")


def test_what_nobody_foresaw_is_one_sentence_and_status_1(kdtw, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    def fails(*_: object) -> None:
        raise KeyError("shape")

    monkeypatch.setattr("kdtw_fast.cli.info.pair_names", fails)
    result = kdtw("info")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr == "kdtw: KeyError: 'shape'; set KDTW_TRACEBACK=1 to see where this comes from\n"
    monkeypatch.setenv("KDTW_TRACEBACK", "1")
    assert isinstance(kdtw("info").exception, KeyError)


def test_lines_come_out_while_the_pipe_is_open(pair: TinyPair) -> None:  # noqa: F811
    command = [sys.executable, "-m", "kdtw_fast", "generate", *map(str, pair.folders), *SMALL]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        for line in (b"die doku\n", b"paket\n"):
            child.stdin.write(line)
            child.stdin.flush()
            assert child.stdout.readline().endswith(b"\n")  # before the next line is there
        child.stdin.close()
        assert child.stdout.read() == b"" and child.wait() == 0


def test_what_needs_no_decoding_comes_out_while_the_pipe_is_open(pair: TinyPair) -> None:  # noqa: F811
    command = [sys.executable, "-m", "kdtw_fast", "generate", *map(str, pair.folders), *SMALL, "--jsonl"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as child:
        assert child.stdin is not None and child.stdout is not None
        for line, reason in ((b"\n", "empty"), (b"\xff\n", "error"), (b"die doku\n", "length"), (b" \n", "empty")):
            child.stdin.write(line)
            child.stdin.flush()
            ready, _, _ = select.select([child.stdout], [], [], 100)
            assert ready, f"the answer to {line!r} waits for what comes next"
            assert json.loads(child.stdout.readline())["finish_reason"] in (reason, "end")
        child.stdin.close()
        assert child.stdout.read() == b"" and child.wait() == 2  # of the line that is no text


def test_ctrl_c_while_a_pipe_is_waited_for(pair: TinyPair) -> None:  # noqa: F811
    command = [sys.executable, "-m", "kdtw_fast", "generate", *map(str, pair.folders), *SMALL]
    start = "import signal, runpy, sys; signal.signal(signal.SIGINT, signal.default_int_handler); "
    run_it = start + "sys.argv = sys.argv[1:]; runpy.run_module('kdtw_fast', run_name='__main__')"
    command = [sys.executable, "-c", run_it, *command[2:]]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None and child.stderr is not None
        child.stdin.write(b"die doku\n")
        child.stdin.flush()
        assert child.stdout.readline().endswith(b"\n")
        child.send_signal(signal.SIGINT)
        assert child.wait(60) == 130
        assert child.stderr.read() == b"kdtw: interrupted\n"


def test_a_row_whose_text_is_none_is_told(kdtw, pair: TinyPair, tmp_path: Path) -> None:  # noqa: F811
    (tmp_path / "rows.jsonl").write_text('{"text": "a\\ud800"}\n{"text": "paket"}\n')
    rows = ["--file", tmp_path / "rows.jsonl", "--column", "text"]
    result = kdtw("generate", *pair.folders, *SMALL, *rows, "--on-error", "return", "--jsonl")
    wrong, right = map(json.loads, result.stdout.splitlines())
    assert wrong["source"] == "a\ud800" and wrong["finish_reason"] == "error" and right["tokens"]
    assert "it has a lone surrogate ('\\ud800') at character 1" in wrong["error"] and "line 1: it has" in result.stderr
    result = kdtw("generate", *pair.folders, *SMALL, *rows)
    assert result.exit_code == 2 and result.stderr.startswith("kdtw: line 1: it has a lone surrogate")


@pytest.mark.long
def test_lines_that_cannot_be_decoded_are_told_and_others_follow(kdtw, pair: TinyPair) -> None:  # noqa: F811
    lines = b"die doku\n\nenth\xe4lt\n" + b"paket " * 30 + b"\npaket\n"
    arguments = ["generate", *pair.folders, *SMALL, "--max-source-length", "20"]
    status, out, err = run(*arguments, "--on-error", "return", stdin=lines)
    assert status == 0
    whole = run(*arguments, stdin=b"die doku\npaket\n")[1].splitlines()
    assert out.splitlines() == [whole[0], b"", b"", b"", whole[1]]
    assert [line[:14] for line in err.splitlines()] == ["kdtw: line 3 i", "kdtw: line 4: "]
    assert "--max-source-length=20" in err and "--truncate" in err
    status, out, err = run(*arguments, "--jsonl", "--on-error", "return", stdin=lines)
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["finish_reason"] == "error" for record in records] == [False, False, True, True, False]
    assert "not UTF-8" in records[2]["error"] and "tokens" in records[3]["error"]
    status, out, err = run(*arguments, stdin=lines)
    assert status == 2 and out.splitlines() == [whole[0], b"", b""]
    assert [line[:14] for line in err.splitlines()] == ["kdtw: line 3 i", "kdtw: line 4: "]


@pytest.mark.parametrize(
    ("option", "value"),
    [("--batch-size", 2**31 - 1), ("--batch-size", 2**31), ("--max-source-length", 2**31 - 1), ("--batch-size", 2**70)],
)
def test_sizes_that_no_machine_has_are_named_as_they_were_written(option: str, value: int) -> None:
    status, out, err = run("generate", "a text", option, value)
    assert (status, out) == (2, b"")
    assert option in err and str(value) in err and len(err.splitlines()) == 1


# --- Progress of a long run --------------------------------------------------------------------------------


def test_pieces_are_never_without_what_they_were_made_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    first = Progress(output, {"options": 1})
    with first.held():
        first.finish(1, ["a", "b"], [])
        (first.folder / "000000000003-000000000004.json.77.part").write_text("{")
        gone: list[str] = []
        unlink = Path.unlink
        monkeypatch.setattr(Path, "unlink", lambda file, **more: (gone.append(file.name), unlink(file, **more)))
        first.remove()
        monkeypatch.undo()
        assert gone[-1] == "manifest.json" and len(gone) == 3
        with pytest.raises(BlockingIOError), Progress(output, {"options": 1}).held():
            pass  # it is held to the end
    assert os.listdir(tmp_path) == []
    # A folder that lost its manifest, however it came to that: its pieces are of who knows what.
    with first.held():
        first.finish(1, ["a", "b"], [])
    (first.folder / "manifest.json").unlink()
    other = Progress(output, {"options": 2})
    with other.held():
        assert other.piece(1, 2) is None and not other.begun
