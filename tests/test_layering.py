"""Which folder of C++ may include which, and which Python module may import which: the design, held by tests."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

CSRC = Path(__file__).parent.parent / "csrc"
# folder -> folders (or files) it may include
OPERATIONS, RUNNER = "backend/operations.h", "backend/runner.h"
ALLOWED = {
    "core": {"core"},
    "backend": {"core", OPERATIONS, RUNNER},
    "backend/cpu": {"core", OPERATIONS, "backend/cpu"},
    "backend/cuda": {"core", OPERATIONS, RUNNER, "backend/cuda"},
    "backend/cuda/kernels": {"core", "backend/cuda/kernels.h", "backend/cuda/rt.h", "backend/cuda/kernels"},
    "model": {"core", OPERATIONS, RUNNER, "model"},
    "decode": {"core", OPERATIONS, RUNNER, "model", "decode"},
    "bindings": {"core", OPERATIONS, RUNNER, "backend/cpu", "backend/cuda", "model", "decode", "bindings"},
}
SHARED = ("both.h", "draft.h", "pass.h", "random.h", "rotary.h")  # of core: compiled for the host and for devices
SIMULATED = CSRC.parent / "gpu_proof/sim"  # knows no kernel and nothing of the engine
RT = CSRC / "backend/cuda/rt.h"
SOURCES = sorted(p for p in CSRC.rglob("*") if p.suffix in {".h", ".cpp", ".cu"})


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


@pytest.mark.parametrize("name", SHARED)
def test_what_devices_compile_uses_nothing_of_the_standard_library(name: str) -> None:
    path = CSRC / "core" / name
    assert all(included.endswith(".h") for included in includes(path, "<>"))
    assert {Path(included).name for included in includes(path, '""')} <= set(SHARED)


@pytest.mark.parametrize(
    "path", [p for p in SOURCES if p.parent.name != "bindings"], ids=lambda p: str(p.relative_to(CSRC))
)
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


# --- Python -----------------------------------------------------------------------------------------------

# A module may import those of its own layer and of the layers before it; a package stands for all that is in it.
LAYERS = {
    "foundations": "_core budgets decoder_options deprecation extras files gguf_file keywords loaders machine memory "
    "messages options owner random tables visible",
    "models": "equalising families generation model modeling packed pair_folders pairs probing random_pairs roofline "
    "shapes special_tokens torch_allocator weights",
    "inputs and outputs": "costs feeds inputs outputs owners_tensor owners_view stops streams token_rules worker",
    "decoding": "auto cost_measuring decoders methods",
    "the package": "kdtw_fast",  # what users import: kdtw_fast/__init__.py
    "measuring": "comparison paired_timing peers profiling reference selftest",
    "for others": "hub ray serve",
    "commands": "__main__ cli",
    "training": "training",
    "beside the package": "bench gpu_proof",
}
# Imports inside functions, which say what is loaded only where it is used, may also go the other way:
LATER = {
    ("kdtw_fast.cli", "training"),  # `kdtw train` and `kdtw curves`
    ("kdtw_fast.comparison", "training"),  # a recipe's data, for `kdtw compare RECIPE`
}
ROOT = CSRC.parent
PACKAGES = ("kdtw_fast", "training", "bench", "gpu_proof")


def python_modules() -> dict[str, Path]:
    """Every module of the repository by its dotted name; `kdtw_fast.training` is called `training`."""
    paths = (path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")))
    parts = {path: path.relative_to(ROOT).with_suffix("").parts for path in paths}
    return {".".join(p[:-1] if p[-1] == "__init__" else p): path for path, p in parts.items()}


MODULES = python_modules()


def imports(module: str) -> Iterator[tuple[str, bool]]:
    """The modules of the repository that a module imports, and whether it does so inside a function.

    Those under TYPE_CHECKING count as imports of the module: a reader has to understand what they name all the same.
    That a module's packages are loaded before it does not count.
    """
    path = MODULES[module]
    here = module.split(".") if path.name == "__init__.py" else module.split(".")[:-1]
    pending: list[tuple[ast.AST, bool]] = [(ast.parse(path.read_text(encoding="utf-8")), False)]
    while pending:
        node, inside = pending.pop()
        inside = inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        pending += [(child, inside) for child in ast.iter_child_nodes(node)]
        names: list[str] = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            package = here[: len(here) - node.level + 1] if node.level else []
            base = ".".join([*package, *([node.module] if node.module else [])])
            names = [f"{base}.{alias.name}" if known(f"{base}.{alias.name}") else base for alias in node.names]
        for name in names:
            name = re.sub(r"^kdtw_fast\.training\b", "training", name)
            if name.split(".")[0] in PACKAGES:
                yield name, inside


def known(name: str) -> bool:
    return re.sub(r"^kdtw_fast\.training\b", "training", name) in {*MODULES, "kdtw_fast._core"}


def layer(module: str) -> int:
    """The place of a module's layer in the table."""
    first = module.removeprefix("kdtw_fast.").split(".")[0]
    found = [place for place, names in enumerate(LAYERS.values()) if first in names.split()]
    assert found, f"{module} is in no layer; put it where it belongs"
    return found[0]


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_its_layer_and_those_before(module: str) -> None:
    for imported, inside in imports(module):
        later = inside and any(module.startswith(a) and imported.startswith(b) for a, b in LATER)
        assert later or layer(imported) <= layer(module), f"{module} must not import {imported}"


def test_no_python_module_imports_itself_by_way_of_others() -> None:
    graph = {module: {name for name, inside in imports(module) if not inside} - {module} for module in MODULES}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))
