"""Ctrl-C in every phase of a call: KeyboardInterrupt soon after the signal, and the decoder still works afterwards.

`python -m bench.interrupts` measures how soon; here the bound only tells hearing it from not hearing it. A CUDA device
hears it after the longest draft, of 64 steps, which takes the simulated one as long as it takes.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import SIMULATED
from kdtw_fast.training.frames import Frame

import kdtw_fast
from bench.interrupts import WAITS, Interrupted
from kdtw_fast.inputs import PIECE, encode_texts

ROOT = Path(__file__).resolve().parent.parent

# A process of its own, started once. It prints the time of the KeyboardInterrupt by the clock that the test
# reads before it sends the signal, so that neither start-up nor the pipe is measured.
SCRIPT = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell may start what it puts behind it deaf to it
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from factories import SHAPES, T5Shape, random_t5
from kdtw_fast import SingleModelDecoder, NativeT5, SpeculativeDecoder

device = sys.argv[2]
shape = T5Shape("slow", 384, 64, 6, 1024, 4, tied=True, scaled=True) if device == "cpu" else SHAPES[0]
models = [NativeT5.from_model(random_t5(shape, 1000, seed), device=device) for seed in (1, 2)]
decoders = {"greedy": SingleModelDecoder(models[0]), "speculative": SpeculativeDecoder(*models, draft_length=5)}
for line in sys.stdin:
    method, rows, source_length, length = line.split()
    decoder = decoders[method]
    source = [[*range(2, 2 + int(source_length)), 1]] * int(rows)
    before = decoder.generate(source[:1], max_new_tokens=3).sequences.tolist()
    print("decoding", flush=True)
    try:
        decoder.generate(source, max_new_tokens=int(length), min_new_tokens=int(length))
        print("finished", flush=True)
    except KeyboardInterrupt:
        print("interrupted", time.clock_gettime(time.CLOCK_MONOTONIC), flush=True)
    after = decoder.generate(source[:1], max_new_tokens=3).sequences.tolist()
    print("usable" if after == before else "broken", flush=True)
"""


@pytest.fixture(scope="module", params=["cpu", SIMULATED])
def process(request: pytest.FixtureRequest) -> Iterator[subprocess.Popen[str]]:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    device = "cpu"
    if request.param == SIMULATED:
        device = request.getfixturevalue("simulated")
        environment["KDTW_CUDA_LIBRARY"] = kdtw_fast.build_info()["cuda"]["library"]
    child = subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(ROOT / "tests"), device],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    )
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


@pytest.mark.parametrize(
    ("method", "rows", "source_length", "length", "wait"),
    [
        ("greedy", 1, 20, 100_000, 0.5),
        ("speculative", 4, 20, 20_000, 0.5),
        ("greedy", 100, 500, 2_000, 0.2),  # still encoding
    ],
)
def test_ctrl_c(
    process: subprocess.Popen[str],
    request: pytest.FixtureRequest,
    method: str,
    rows: int,
    source_length: int,
    length: int,
    wait: float,
) -> None:
    assert process.stdin is not None and process.stdout is not None
    process.stdin.write(f"{method} {rows} {source_length} {length}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "decoding\n"
    time.sleep(wait)
    sent = time.clock_gettime(time.CLOCK_MONOTONIC)
    process.send_signal(signal.SIGINT)
    word, at = process.stdout.readline().split()
    assert word == "interrupted"
    assert float(at) - sent < (2 if request.node.callspec.params["process"] == "cpu" else 30)
    assert process.stdout.readline() == "usable\n"


@pytest.fixture(scope="module")
def phases() -> Iterator[Interrupted]:
    process = Interrupted()
    yield process
    process.close()


@pytest.mark.parametrize("phase", WAITS)
def test_every_phase_hears_it(phases: Interrupted, phase: str) -> None:
    for wait in WAITS[phase]:
        assert phases.seconds(phase, wait) < 2


class Counting:
    """A tokenizer that keeps how many texts a call had: nothing hears Ctrl-C inside of one."""

    eos_token_id, pad_token_id = 1, 0

    def __init__(self) -> None:
        self.calls: list[int] = []

    def __call__(self, text: Any = None, text_target: Any = None, add_special_tokens: bool = True) -> Any:
        texts = text if text_target is None else text_target
        if isinstance(texts, str):
            return {"input_ids": [ord(c) for c in texts] + [1] * add_special_tokens}
        self.calls.append(len(texts))
        return {"input_ids": [[ord(c) for c in text] + [1] * add_special_tokens for text in texts]}


def test_many_texts_are_tokenized_in_pieces_between_which_it_is_heard() -> None:
    tokenizer = Counting()
    texts = [f"{i}" for i in range(3 * PIECE + 5)]
    ids = [[ord(c) for c in text] for text in texts]
    assert encode_texts(tokenizer, ["p"] * len(texts), texts) == [[ord("p"), *row, 1] for row in ids]
    frame = Frame(tokenizer)
    assert frame.sources(texts) == [tuple(row) for row in ids]
    assert frame.targets(texts) == [(*row, 1) for row in ids]
    assert tokenizer.calls == 3 * [PIECE, PIECE, PIECE, 5]
