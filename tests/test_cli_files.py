"""What commands write replaces its target when it is whole, and nothing else ever does."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from test_cli import SMALL, TinyPair, kdtw, pair  # noqa: F401 - fixtures

from kdtw_fast.cli.files import check_target, replacing, write_whole
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


def test_a_line_that_is_not_utf8_is_named_after_those_before_it(kdtw, pair: TinyPair, tmp_path: Path) -> None:  # noqa: F811
    lines = b"die doku\n\npaket\n"
    before = kdtw("generate", *pair.folders, *SMALL, stdin=lines).stdout
    result = kdtw("generate", *pair.folders, *SMALL, stdin=lines + b"enth\xe4lt\nmore\n")
    said = "kdtw: line 4 is not UTF-8 text (byte 0xe4 at place 4); convert the input to UTF-8\n"
    assert (result.exit_code, result.stdout, result.stderr) == (2, before, said)


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
