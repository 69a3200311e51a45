"""The tests of the proof itself, and what the compiler and the traffic counter say about the project's CUDA kernels.

Always: planted bugs still apply, and the arithmetic of the bounds. `make test-all`: three are caught. `make gpu-proof`:
the rest.
"""

import pytest

from gpu_proof import mutations, roofline, static_evidence, traffic
from gpu_proof.build import NVCC, ROOT, find_nvcc
from kdtw_fast.roofline import decoder_pass
from kdtw_fast.shapes import SHAPES

needs_nvcc = pytest.mark.skipif(find_nvcc() is None, reason="no nvcc on this machine")
BUGS = mutations.bugs()


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_planted_bug_still_applies(bug: mutations.Bug) -> None:
    planted = bug.path(mutations.plant(bug))
    assert bug.replace in planted.read_text(encoding="utf-8")


def test_stale_bug_is_an_error() -> None:
    bug = mutations.Bug("gone", "norm.cu", "what nobody wrote", "", "norm", "")
    with pytest.raises(mutations.StaleBugError, match="0 times"):
        mutations.plant(bug)


@pytest.mark.long
@pytest.mark.parametrize("bug", [bug for bug in BUGS if bug.quick], ids=lambda bug: bug.name)
def test_planted_bug_is_caught(bug: mutations.Bug) -> None:
    assert mutations.attempt(bug) is not None


@pytest.mark.gpu_proof
@pytest.mark.parametrize("bug", [bug for bug in BUGS if not bug.quick], ids=lambda bug: bug.name)
def test_planted_bug_is_caught_too(bug: mutations.Bug) -> None:
    assert mutations.attempt(bug) is not None


def test_what_is_proved_is_compiled_as_what_is_shipped() -> None:
    flags = [flag for flag in NVCC if flag != "-lineinfo"]
    assert ", ".join(f'"{flag}"' for flag in flags) in (ROOT / "csrc/backend/cuda/build.py").read_text(encoding="utf-8")


def test_the_roofs_are_those_of_the_documentation() -> None:
    text = (ROOT / "docs/cuda.md").read_text(encoding="utf-8")
    assert roofline.table() in text, "if that is meant: put there what python -m gpu_proof.roofline prints"


def test_bytes_of_a_step_are_the_weights_and_the_caches() -> None:
    shape = SHAPES["flan-t5-small"]
    count = decoder_pass(shape, length=64, source=512, weights="fp16")
    assert count.layers + count.head == 2 * shape.step_parameters
    assert count.cache == shape.layers * 2 * shape.heads * shape.d_kv * (64 + 512) * 2


@pytest.mark.parametrize(
    ("arch", "threads", "registers", "shared", "expected"),
    [("sm_75", 256, 64, 0, (4, 100)), ("sm_75", 256, 65, 0, (3, 75)), ("sm_90", 256, 32, 40_000, (5, 62))],
)
def test_occupancy(arch: str, threads: int, registers: int, shared: int, expected: tuple[int, int]) -> None:
    assert static_evidence.occupancy(arch, threads, registers, shared) == expected


@needs_nvcc
@pytest.mark.gpu_proof
def test_hot_kernels_neither_spill_nor_use_a_stack() -> None:
    assert static_evidence.faults(static_evidence.tables()) == []


@needs_nvcc
@pytest.mark.gpu_proof
def test_registers_and_occupancy_are_those_of_the_table() -> None:
    said = static_evidence.differences(static_evidence.tables())
    assert said == [], "if that is meant: python -m gpu_proof.static_evidence --renew"


@needs_nvcc
@pytest.mark.gpu_proof
@pytest.mark.skipif(static_evidence.find_tool("cuobjdump") is None, reason="no cuobjdump: pip install '.[gpu-proof]'")
def test_weights_are_read_16_bytes_at_a_time_and_multiplied_on_tensor_cores() -> None:
    assert static_evidence.machine_code_faults() == []


@needs_nvcc
@pytest.mark.gpu_proof
def test_memory_requests_stay_within_their_limits() -> None:
    found = traffic.count()
    assert traffic.above(found) == [], "if that is meant: python -m gpu_proof.traffic --renew"
    for name, expected in traffic.on_paper().items():
        counted = sum(count.bytes for kernel, count in found.items() if kernel.startswith(name))
        assert counted == pytest.approx(expected, rel=0.05), name


@needs_nvcc
@pytest.mark.gpu_proof
def test_passes_move_the_bytes_that_they_do_on_paper() -> None:
    for name, (counted, paper) in traffic.decoder_passes().items():
        assert counted == pytest.approx(paper, rel=0.05), name
