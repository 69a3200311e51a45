"""How soon Ctrl-C is heard in every phase of a call: python -m bench.interrupts [--tries N].

A process of its own begins a phase and says so; it is sent SIGINT a moment later, and prints when KeyboardInterrupt
came, by the clock that the sender reads before it sends. The slowest of the tries counts.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Seconds within which a phase has begun what takes long, and has not ended it.
WAITS = {
    "packing fp32": (0.02, 0.15),
    "packing int8": (0.02, 0.15),
    "encoding many sources": (0.1, 1.0),
    "encoding a long source": (0.1, 2.0),
    "a greedy decode": (0.1, 1.0),
    "drafts and checks": (0.1, 1.0),
    "cut picks over a large vocabulary": (0.3, 1.5),
    "a stream that waits for its input": (0.1, 1.0),
}


def phases() -> dict[str, Callable[[], object]]:
    """The phases by name; each lasts longer than its waits."""
    import torch

    from kdtw_fast import NativeT5, SingleModelDecoder, SpeculativeDecoder
    from kdtw_fast.shapes import T5Shape, random_native, random_tensors, t5_of

    torch.set_num_threads(1)
    shape = T5Shape("slow", 384, 64, 6, 1024, 4, 1000, tied=True, scaled=True)
    wide = T5Shape("wide", 128, 64, 2, 256, 1, 120_000, tied=True, scaled=True)
    models = [random_native(shape, seed=seed) for seed in (1, 2)]
    greedy, checked = SingleModelDecoder(models[0]), SpeculativeDecoder(*models, draft_length=5)
    broad = SingleModelDecoder(random_native(wide))
    packed = T5Shape("packed", 1024, 64, 16, 2816, 2, 100_000, tied=True, scaled=True)
    large = t5_of(packed, {name: make() for name, make in random_tensors(packed).items()})

    def source(length: int) -> list[int]:
        return [*[7] * (length - 1), 1]

    def waiting() -> object:
        def never() -> object:
            yield source(9)
            time.sleep(60)

        return list(greedy.stream(never(), max_new_tokens=4))

    long = {"max_new_tokens": 100_000, "min_new_tokens": 100_000}
    return {
        "packing fp32": lambda: NativeT5.from_model(large, dtype="fp32"),
        "packing int8": lambda: NativeT5.from_model(large, dtype="int8"),
        "encoding many sources": lambda: greedy.generate([source(500)] * 100),
        "encoding a long source": lambda: greedy.generate([source(12_000)], max_source_length=12_000),
        "a greedy decode": lambda: greedy.generate([source(20)], **long),
        "drafts and checks": lambda: checked.generate([source(20)] * 4, **long),
        "cut picks over a large vocabulary": lambda: broad.generate([source(9)] * 256, temperature=1.0, top_p=0.9),
        "a stream that waits for its input": waiting,
    }


def serve() -> None:
    """Begins the phases that are named on stdin, and says when each was interrupted."""
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start what it puts behind it deaf to it
    known = phases()
    print("ready", flush=True)
    for line in sys.stdin:
        print("begun", flush=True)
        try:
            known[line.strip()]()
            print("finished", flush=True)
        except KeyboardInterrupt:
            print("interrupted", time.clock_gettime(time.CLOCK_MONOTONIC), flush=True)


class Interrupted:
    """A process whose phases are interrupted."""

    def __init__(self) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
        self._child = subprocess.Popen(
            [sys.executable, "-c", "from bench.interrupts import serve; serve()"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self._read()

    def seconds(self, phase: str, wait: float) -> float:
        """From the signal, sent `wait` seconds after the phase began, to KeyboardInterrupt.

        Raises RuntimeError where the phase ended before it heard the signal, or the process has died.
        """
        assert self._child.stdin is not None
        self._child.stdin.write(phase + "\n")
        self._child.stdin.flush()
        self._read()
        time.sleep(wait)
        sent = time.clock_gettime(time.CLOCK_MONOTONIC)
        self._child.send_signal(signal.SIGINT)
        word, *at = self._read().split()
        if word != "interrupted":
            raise RuntimeError(f"{phase}: {word} within {wait:.2f} s")
        return float(at[0]) - sent

    def close(self) -> None:
        self._child.kill()
        self._child.communicate()

    def _read(self) -> str:
        assert self._child.stdout is not None
        line = self._child.stdout.readline()
        if not line:
            raise RuntimeError(f"the process ended with status {self._child.wait()}")
        return line


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.interrupts", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tries", type=int, default=10, help="of each phase, at waits drawn at random")
    tries = parser.parse_args(arguments).tries
    draw = random.Random(0)
    process = Interrupted()
    try:
        for phase, (low, high) in WAITS.items():
            seconds = sorted(process.seconds(phase, draw.uniform(low, high)) for _ in range(tries))
            print(f"{phase:36} median {1000 * seconds[tries // 2]:6.0f} ms, slowest {1000 * seconds[-1]:6.0f} ms")
    finally:
        process.close()


if __name__ == "__main__":
    main()
