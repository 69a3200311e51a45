"""Where the system gives no thread or no memory, a call gives its result or MemoryError, and never ends the process.

Every case is a child process, because a limit cannot be taken back.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from kdtw_fast.memory import memory_errors

ROOT = Path(__file__).resolve().parent.parent

SETUP = """
import ctypes, json, os, resource, sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(1)
from factories import T5Shape, random_t5
from kdtw_fast import NativeT5, SingleModelDecoder, SpeculativeDecoder
from kdtw_fast.families import describe
from kdtw_fast.options import GenerateOptions
from kdtw_fast.training.models import load_plain
from kdtw_fast.weights import read_module, tensor_reader
from transformers import T5ForConditionalGeneration

# Wide enough that its products are shared between threads.
SHAPE = T5Shape("limited", 64, 16, 4, 256, 1)
MODELS = [random_t5(SHAPE, 1000, seed) for seed in (1, 2)]
SOURCE = [[*range(3, 23), 1]] * 6

def calls(dtype, num_threads):
    student, teacher = (NativeT5.from_model(model, dtype=dtype) for model in MODELS)
    checked = SpeculativeDecoder(student, teacher, draft_length=3, num_threads=num_threads)
    return {
        "greedy": (checked, {}),
        "cut": (checked, {"temperature": 1.0, "top_p": 0.9}),
        "sampled": (SingleModelDecoder(student, num_threads=num_threads), {"temperature": 1.0}),
    }

def tokens(decoder, options):
    return decoder.generate(SOURCE, max_new_tokens=6, **options).sequences.tolist()
"""

NO_THREADS = """
def outputs():
    return [tokens(*call) for dtype in ("fp32", "int8") for call in calls(dtype, 4).values()]

# What must come out is found by a child: here, no region may have started the pool.
reading, writing = os.pipe()
if os.fork() == 0:
    os.write(writing, json.dumps(outputs()).encode())
    os._exit(0)
os.close(writing)
expected = json.load(os.fdopen(reading))
if os.getuid() == 0:
    os.setuid(65534)  # root may start any number of threads
resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
before = len(os.listdir("/proc/self/task"))
assert outputs() == expected
assert len(os.listdir("/proc/self/task")) == before, "a thread was started"
print("whole")
"""

LITTLE_MEMORY = """
def outcomes(call):
    # How far above what is mapped the limit lies decides which request is refused.
    for spare in (0, 1 << 12, 1 << 16, 1 << 18, 1 << 20, 1 << 22, 9 << 20, 1 << 26):
        mapped = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (mapped + spare, resource.RLIM_INFINITY))
        try:
            result = call()
        except MemoryError:
            continue
        finally:
            resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        yield result

for dtype in ("fp32", "int8"):
    alone = {name: tokens(*call) for name, call in calls(dtype, 1).items()}
    for name, call in calls(dtype, 4).items():
        long = dict(call[1], max_new_tokens=2000, max_time=0.01)
        for result in outcomes(lambda: tokens(*call)):
            assert result == alone[name], (dtype, name)
        list(outcomes(lambda: call[0].generate(SOURCE, **long)))
    folder = sys.argv[2] + "/" + dtype
    MODELS[0].save_pretrained(folder)
    size = NativeT5.from_model(MODELS[0], dtype=dtype).num_bytes
    assert set(outcomes(lambda: NativeT5.from_pretrained(folder, dtype=dtype).num_bytes)) <= {size}
    torch_ = lambda: T5ForConditionalGeneration.from_pretrained(folder)  # imports what it wants before
    torch_(), list(outcomes(lambda: load_plain(folder, "teacher.path")))
    assert set(outcomes(lambda: NativeT5.from_model(MODELS[0], dtype=dtype).num_bytes)) <= {size}
print("whole")
"""

FAILING_ALLOCATIONS = """
failing = ctypes.CDLL(sys.argv[2])
failing.fail_after.argtypes, failing.calls_left.restype = [ctypes.c_long], ctypes.c_long

def session(decoder, options):
    parsed = GenerateOptions(max_new_tokens=4, **options)
    opened = decoder._open(parsed, len(SOURCE), 30)
    for key, row in enumerate(decoder._rows(SOURCE, None, None, parsed)):
        opened.add(key, decoder._ledgers((None, None))[0], row.own, row.teachers)
    return opened

def check(prepare, expected):
    n, left, refused = 1, 0, 0
    while left <= 0:
        act, look = prepare()
        failing.fail_after(n)
        try:
            result = act()
        except MemoryError:
            result = None
        left = failing.calls_left()
        failing.fail_after(0)
        refused += result is None
        assert result is None or look(result) == expected, n
        n += 1 if n < 20 else 29
    assert refused > 5, refused

config, tensors = read_module(MODELS[0], "model")
read = tensor_reader(describe(config, tensors, "model", ()), tensors, "model", {})
arrays = {}  # made before anything fails

def reading(name, *shape):
    if name not in arrays:
        arrays[name] = read(name, *shape)
    return arrays[name]

for dtype in ("fp32", "int8"):
    model = NativeT5.from_model(MODELS[0], dtype=dtype)
    model.core.update("cpu", reading)
    packed = [blob.tobytes() for blob in model.core.blobs]
    def update():
        return lambda: model.core.update("cpu", reading) or model, lambda it: [b.tobytes() for b in it.core.blobs]
    check(update, packed)
    for call in calls(dtype, 2).values():
        def run():
            opened = session(*call)
            return lambda: opened.run(True, 0, None), lambda result: result["sequences"].tolist()
        act, look = run()
        check(run, look(act()))
print("whole")
"""


def child(script: str, *arguments: str, preload: str = "") -> str:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    if preload:
        environment["LD_PRELOAD"] = preload
    done = subprocess.run(
        [sys.executable, "-c", SETUP + script, str(ROOT / "tests"), *arguments],
        capture_output=True,
        text=True,
        env=environment,
        timeout=600,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-3000:])
    return done.stdout.strip()


def test_without_another_thread_one_does_the_work() -> None:
    assert child(NO_THREADS) == "whole"


@pytest.mark.long
def test_memory_that_is_refused_is_a_memory_error(tmp_path: Path) -> None:
    assert child(LITTLE_MEMORY, str(tmp_path)).splitlines()[-1] == "whole"


@pytest.mark.parametrize(
    ("error", "refused"),
    [
        (RuntimeError("unable to mmap 53 bytes from file <x>: Cannot allocate memory (12)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:127]\nDefaultCPUAllocator: can't allocate memory"), True),
        (OSError(12, "Cannot allocate memory"), True),
        (MemoryError("by the core"), True),
        (RuntimeError("shapes differ"), False),
        (OSError("Disk quota exceeded (os error 122)"), False),
        (ValueError("no"), False),
    ],
)
def test_what_libraries_say_of_memory_is_a_memory_error(error: Exception, refused: bool) -> None:
    with pytest.raises(MemoryError if refused else type(error)) as raised, memory_errors():
        raise error
    assert refused or raised.value is error
    assert "\n" not in str(raised.value)


@pytest.mark.long
def test_any_allocation_of_a_run_may_fail(tmp_path: Path) -> None:
    library = tmp_path / "failing_malloc.so"
    source = ROOT / "tests" / "failing_malloc.c"
    subprocess.run(["cc", "-O1", "-shared", "-fPIC", str(source), "-o", str(library)], check=True)
    assert child(FAILING_ALLOCATIONS, str(library), preload=str(library)) == "whole"
