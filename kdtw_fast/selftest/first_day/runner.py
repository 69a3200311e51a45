"""Runs steps, each in a process of its own under its own limit, and writes the report after every line that one says.

A step's process says what it found as lines of JSON objects; all else that it prints is for its log. A report is put
in its place as a whole, so that one is there and valid whenever the run is killed.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import selectors
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kdtw_fast.roofline import memory_rate
from kdtw_fast.selftest.first_day.report import markdown

LEAST = 8.0  # seconds: no step begins with less
LINES = 12  # of a log that the report shows where a step failed
SUMMARY = re.compile(r"ERROR SUMMARY|\d+ (passed|failed)")  # in a line of pytest's or compute-sanitizer's


@dataclass(frozen=True)
class Step:
    """One thing to do.

    Attributes:
        name: short; its log's, too.
        what: in a line, for people.
        command: of its process.
        limit: seconds that it may take.
        environment: variables beside those of this process.
        missing: why it cannot run here, as known before it starts; "" where it can.
    """

    name: str
    what: str
    command: list[str]
    limit: int
    environment: dict[str, str] = field(default_factory=dict)
    missing: str = ""


class Run:
    """A run and its report.

    Attributes:
        faults: steps that found something wrong. A step that could not run here, or had too little time, found nothing.
    """

    def __init__(self, out: Path, seconds: float, root: Path, tiny: bool) -> None:
        self.out, self.root = out, root
        self.faults = 0
        self._begin = time.monotonic()
        self._seconds = seconds
        self._rate: float | None = None  # GB/s of the device's memory, when a step has told the device
        self._told: dict[str, Any] = {
            "started": time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
            "minutes": seconds / 60,
            "tiny": tiny,
            "finished": False,
            "steps": [],
        }
        out.mkdir(parents=True, exist_ok=True)
        self._write()

    @property
    def left(self) -> float:
        """Seconds until the run must end."""
        return self._seconds - (time.monotonic() - self._begin)

    def step(self, step: Step) -> None:
        """Runs a step, or says why not."""
        told: dict[str, Any] = {"name": step.name, "what": step.what, "limit": step.limit, "results": []}
        self._told["steps"].append(told)
        if step.missing:
            told |= {"status": "not run", "said": step.missing}
        elif self.left < LEAST:
            told |= {"status": "not run", "said": "no time left"}
        else:
            told["status"] = "running"
            self._write()
            begin = time.monotonic()
            self._run(step, told, min(step.limit, self.left))
            told["seconds"] = round(time.monotonic() - begin, 1)
        self.faults += told["status"] == "failed"
        self._write()
        print(f"{told['status']:12s} {told.get('seconds', 0):6.1f} s  {step.name}  {told.get('said', '')}", flush=True)

    def end(self) -> None:
        """Writes that the run came to its end."""
        self._told["finished"] = True
        self._write()

    def _run(self, step: Step, told: dict[str, Any], limit: float) -> None:
        log = self.out / f"{step.name.replace(' ', '-')}.log"
        lines: list[str] = []
        end = time.monotonic() + limit
        try:
            process = subprocess.Popen(
                step.command,
                cwd=self.root,
                env=os.environ | step.environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except OSError as error:
            told |= {"status": "not run", "said": f"{step.command[0]}: {error.strerror}"}
            return
        try:
            with log.open("w", encoding="utf-8") as to:
                late = not self._read(process, end, lambda line: self._line(line, told, lines, to))
            if not late:
                try:
                    process.wait(max(1.0, end - time.monotonic()))
                except subprocess.TimeoutExpired:
                    late = True
        finally:
            _kill(process)
        self._conclude(told, process.returncode, late, limit, lines)

    @staticmethod
    def _read(process: subprocess.Popen[bytes], end: float, take: Callable[[str], None]) -> bool:
        """Hands on what the process prints, line by line; False where its time was up before its end."""
        assert process.stdout is not None
        rest = b""
        with selectors.DefaultSelector() as waiting:
            waiting.register(process.stdout, selectors.EVENT_READ)
            while waiting.select(max(0.0, end - time.monotonic())):
                piece = os.read(process.stdout.fileno(), 1 << 16)
                *whole, rest = (rest + piece).split(b"\n")
                for line in whole if piece else [rest] if rest else []:
                    take(line.decode(errors="replace"))
                if not piece:
                    return True
        return False

    def _line(self, text: str, told: dict[str, Any], lines: list[str], log: Any) -> None:
        found: Any = None
        if text.startswith("{"):
            try:
                found = json.loads(text)
            except ValueError:
                found = None
        if isinstance(found, dict):
            if "GB/s of a copy" in found:
                copied = found["GB/s of a copy"]
                known = memory_rate(found["device"])
                found["GB/s by the data sheet"] = None if known is None else known / 1e9
                self._rate = copied if known is None else known / 1e9
            elif "GB/s" in found:
                found["of the rate"] = None if self._rate is None else found["GB/s"] / self._rate
            told["results"].append(found)
            self._write()
        else:
            lines.append(text)
        log.write(text + "\n")
        log.flush()

    @staticmethod
    def _conclude(told: dict[str, Any], status: int, late: bool, limit: float, lines: list[str]) -> None:
        results = told["results"]
        needs = [result["needs"] for result in results if "needs" in result]
        faults = sum(bool(result.get("failure")) for result in results)
        if faults:
            told |= {"status": "failed", "said": f"{faults} of {len(results)} results are faults"}
        elif late:
            told |= {"status": "out of time", "said": f"stopped after {limit:.0f} s; what it had found is below"}
        elif status == 0:
            told["status"] = "not run" if needs and len(needs) == len(results) else "done"
            summaries = [line.strip("= ") for line in lines if SUMMARY.search(line)]
            told["said"] = "; ".join([f"needs {what}" for what in needs] or summaries[-1:])
        else:
            said = f"killed by signal {signal.Signals(-status).name}" if status < 0 else f"exit status {status}"
            told |= {"status": "failed", "said": said}
        if told["status"] in ("failed", "out of time") or not results:
            told["log"] = [line[:300] for line in lines if line.strip()][-LINES:]

    def _write(self) -> None:
        self._told["seconds"] = round(time.monotonic() - self._begin, 1)
        for name, text in (("report.json", json.dumps(self._told, indent=1)), ("report.md", markdown(self._told))):
            partial = self.out / f".{name}.partial"
            partial.write_text(text + "\n", encoding="utf-8")
            partial.replace(self.out / name)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """The process and what it started."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
