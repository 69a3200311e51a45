"""Which folder of C++ may include which: the design, held by a test."""

import re
from pathlib import Path

import pytest

CSRC = Path(__file__).parent.parent / "csrc"
# folder -> folders (or files) it may include
ALLOWED = {
    "core": {"core"},
    "backend": {"core", "backend/backend.h"},
    "backend/cpu": {"core", "backend/backend.h", "backend/cpu"},
    "backend/cuda": {"core", "backend/backend.h", "backend/cuda"},
    "backend/cuda/kernels": {"backend/cuda/kernels.h", "backend/cuda/rt.h", "backend/cuda/kernels"},
    "model": {"core", "backend/backend.h", "model"},
    "decode": {"core", "backend/backend.h", "model", "decode"},
}
SIMULATED = CSRC.parent / "gpu_proof/sim"  # knows no kernel and nothing of the engine
RT = CSRC / "backend/cuda/rt.h"
SOURCES = sorted(p for p in CSRC.rglob("*") if p.suffix in {".h", ".cpp", ".cu"} and p.parent != CSRC)


def includes(path: Path, brackets: str) -> list[str]:
    opening, closing = re.escape(brackets[0]), re.escape(brackets[1])
    pattern = rf"^\s*#\s*include\s*{opening}(.+?){closing}"
    return re.findall(pattern, path.read_text(encoding="utf-8"), re.MULTILINE)


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(CSRC)))
def test_folder_includes_only_what_it_may(path: Path) -> None:
    allowed = ALLOWED[str(path.parent.relative_to(CSRC))]
    for included in includes(path, '""'):
        assert (CSRC / included).is_file(), f"{included} is not given from csrc/"
        assert included in allowed or str(Path(included).parent) in allowed, f"must not include {included}"


def test_simulated_device_includes_only_itself() -> None:
    for path in sorted(SIMULATED.glob("*.*")):
        for included in includes(path, '""'):
            assert (SIMULATED / included).is_file(), f"{path.name} must not include {included}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(CSRC)))
def test_only_the_bindings_know_python_or_torch(path: Path) -> None:
    for included in includes(path, "<>"):
        assert not included.startswith(("torch", "ATen", "c10", "pybind11", "Python")), included


@pytest.mark.parametrize("path", [p for p in SOURCES if p != RT], ids=lambda p: str(p.relative_to(CSRC)))
def test_only_rt_includes_cuda(path: Path) -> None:
    """The engine is compiled without CUDA and opens the kernels' library at run time."""
    for included in includes(path, "<>"):
        assert not included.startswith(("cuda", "cooperative_groups")), included


@pytest.mark.parametrize("level", ["avx512", "avx2"])
def test_simd_files_define_nothing_shared(level: str) -> None:
    """Nothing that other files could link against may be compiled for a wider instruction set."""
    source = (CSRC / f"backend/cpu/kernels_{level}.cpp").read_text(encoding="utf-8")
    after = source[source.index("#pragma GCC target") :]
    bodies = re.findall(r'#\s*include\s*"(.+?)"', after)
    assert bodies and "<" not in re.findall(r"#\s*include\s*(.)", after)
    for body in bodies:
        assert "#include" not in (CSRC / body).read_text(encoding="utf-8")
