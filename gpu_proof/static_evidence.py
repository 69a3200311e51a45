"""What the compiler says about the kernels: registers, spills, stack, occupancy, and the loads in its machine code.

    python -m gpu_proof.static_evidence          compare with occupancy.json
    python -m gpu_proof.static_evidence --renew  write occupancy.json

Occupancy is computed from CUDA's published limits per multiprocessor. No kernel runs.
"""

import argparse
import json
import math
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from gpu_proof.build import CSRC, JOBS, NVCC, OUT, content_key, find_nvcc, kernel_sources, run, to_ptx
from gpu_proof.translate import plain_names

TABLE = Path(__file__).with_name("occupancy.json")
# Kernels that a token waits for: no spill and no stack frame. Others may keep a small array on the stack.
HOT = re.compile(
    r"linear|attend|norm_kernel|scale_kernel|store|copy|angles|turn_heads|embed|activate|summarise|weigh|sift|"
    r"advance|condition"
)
# Kernels that stream weights: 16 bytes a load.
STREAMS = re.compile(r"linear_(int8_|tensor_)?kernel")
# Kernels that multiply on tensor cores.
TENSOR = re.compile(r"linear_tensor_kernel")


# Of a multiprocessor (CUDA C++ Programming Guide, technical specifications per compute capability): threads, blocks,
# registers, bytes of shared memory, and bytes of it that the system takes for each block.
LIMITS = {"sm_75": (1024, 16, 65536, 65536, 0), "sm_90": (2048, 32, 65536, 233472, 1024)}


@dataclass(frozen=True)
class Usage:
    """What one kernel needs, and how much of a multiprocessor it can fill."""

    threads: int
    registers: int
    shared: int
    stack: int
    spilled: int
    blocks: int
    occupancy: int  # percent of the threads that a multiprocessor can hold


def occupancy(arch: str, threads: int, registers: int, shared: int) -> tuple[int, int]:
    """Blocks on a multiprocessor at a time, and the percentage of its threads that they are."""
    most_threads, most_blocks, all_registers, all_shared, system = LIMITS[arch]
    warps = math.ceil(threads / 32)
    of_registers = all_registers // (math.ceil(registers * 32 / 256) * 256 * warps)
    of_shared = all_shared // max(shared + system, 1)
    blocks = min(most_blocks, most_threads // (warps * 32), of_registers, of_shared)
    return blocks, 100 * blocks * warps * 32 // most_threads


def _cubin(source: Path, arch: str) -> tuple[Path, str]:
    """The compiled kernels and what ptxas said about them."""
    nvcc = find_nvcc()
    assert nvcc is not None
    flags = [*NVCC, f"-arch={arch}", "-Xptxas", "-v,-warn-spills", "-cubin"]
    path = OUT / "cubin" / f"{source.stem}-{arch}-{content_key(source, [CSRC], flags, nvcc)}.cubin"
    told = path.with_suffix(".txt")
    if not (path.exists() and told.exists()):
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}")
        command = [nvcc, *flags, f"-I{CSRC}", "-o", str(partial), str(source)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(done.stderr)
        told.write_text(done.stderr, encoding="utf-8")
        partial.rename(path)
    return path, told.read_text(encoding="utf-8")


_PTXAS = re.compile(
    r"Compiling entry function '(?P<name>\S+)'.*?(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, "
    r"(?P<loads>\d+) bytes spill loads\s*\n.*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def usage(source: Path, arch: str) -> dict[str, Usage]:
    """What ptxas says about each kernel of a file; the threads of its blocks are its __launch_bounds__ in the PTX."""
    found = list(_PTXAS.finditer(_cubin(source, arch)[1]))
    ptx = to_ptx(source, arch).read_text(encoding="utf-8")
    table = {}
    for match, name in zip(found, plain_names(match["name"] for match in found)):
        bound = re.search(rf"\.entry\s+{re.escape(match['name'])}\s*\([^)]*\)[^{{]*\.maxntid\s+(\d+)", ptx)
        assert bound is not None, f"{name} has no __launch_bounds__"
        shared = re.search(r"(\d+) bytes smem", match["rest"])
        block, size, registers = int(bound[1]), int(shared[1]) if shared else 0, int(match["registers"])
        spilled = int(match["stores"]) + int(match["loads"])
        table[name] = Usage(
            block, registers, size, int(match["stack"]), spilled, *occupancy(arch, block, registers, size)
        )
    return table


def tables() -> dict[str, dict[str, Usage]]:
    """What ptxas says about all kernels, by architecture."""
    jobs = [(arch, source) for arch in LIMITS for source in kernel_sources()]
    with ThreadPoolExecutor(JOBS) as pool:
        parts = list(pool.map(lambda job: usage(job[1], job[0]), jobs))
    found: dict[str, dict[str, Usage]] = {}
    for (arch, _), part in zip(jobs, parts):
        found.setdefault(arch, {}).update(part)
    return {arch: dict(sorted(rows.items())) for arch, rows in found.items()}


def faults(found: dict[str, dict[str, Usage]]) -> list[str]:
    """Hot kernels that spill or have a stack frame."""
    return [
        f"{arch} {name}: {row.spilled} bytes spilled, {row.stack} bytes of stack"
        for arch, rows in found.items()
        for name, row in rows.items()
        if HOT.search(name) and (row.spilled or row.stack)
    ]


def version() -> str:
    """nvcc's version, as "13.0.88"."""
    nvcc = find_nvcc()
    assert nvcc is not None
    match = re.search(r"V([\d.]+)", run([nvcc, "--version"]))
    return match[1] if match else "unknown"


def differences(found: dict[str, dict[str, Usage]]) -> list[str]:
    """Where `found` differs from occupancy.json; of another nvcc, which gives other registers, where occupancy fell."""
    kept = json.loads(TABLE.read_text(encoding="utf-8"))
    same = kept["nvcc"] == version()
    said = []
    for arch, rows in found.items():
        before = kept["kernels"].get(arch, {})
        said += [f"{arch} {name}: in the table, but no kernel" for name in before.keys() - rows.keys()]
        for name, row in rows.items():
            if name not in before:
                said.append(f"{arch} {name}: not in the table")
            elif same and asdict(row) != before[name]:
                said.append(f"{arch} {name}: {before[name]} became {asdict(row)}")
            elif row.occupancy < before[name]["occupancy"]:
                said.append(f"{arch} {name}: occupancy fell from {before[name]['occupancy']} to {row.occupancy} %")
    return said


def find_tool(name: str) -> str | None:
    """cuobjdump or nvdisasm: on the PATH, beside nvcc, or as pip installs it."""
    nvcc = find_nvcc()
    beside = [str(Path(nvcc).resolve().parent)] if nvcc else []
    pip = [str(path) for path in Path(sysconfig.get_path("purelib")).glob("nvidia/*/bin")]
    return shutil.which(name) or shutil.which(name, path=os.pathsep.join([*beside, *pip]))


def machine_code(source: Path, arch: str) -> dict[str, str]:
    """Each kernel's machine code, as text.

    Raises:
        FileNotFoundError: no cuobjdump (pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm).
    """
    tool = find_tool("cuobjdump")
    if tool is None:
        raise FileNotFoundError("no cuobjdump: pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm")
    cubin, _ = _cubin(source, arch)
    parts = re.split(r"Function : (\S+)", run([tool, "-sass", cubin]))[1:]
    return dict(zip(plain_names(parts[::2]), parts[1::2]))


def instructions(source: Path, arch: str) -> dict[str, Counter[str]]:
    """How often each load, store and tensor-core instruction is in each kernel's machine code."""
    kind = re.compile(r"\b((?:LDG|LDL|STL|STG|LDS|STS|HMMA)[.\w]*)")
    return {name: Counter(kind.findall(text)) for name, text in machine_code(source, arch).items()}


def loads_in_flight(code: str) -> int:
    """The most 16-byte loads of global memory that a kernel begins before an instruction names what one brings.

    Of the machine code from its first line to its last one: branches are not followed.
    """
    waiting: dict[int, int] = {}  # register: the load that fills it
    most = 0
    for number, line in enumerate(re.findall(r"/\*[0-9a-f]{4,}\*/\s+(.+?);", code)):
        load = re.search(r"\bLDG\.\S*128\S*\s+R(\d+)", line)
        named = {int(register) for register in re.findall(r"\bR(\d+)", line)}
        used = {waiting[register] for register in named if register in waiting}
        waiting = {register: one for register, one in waiting.items() if one not in used}
        if load:
            waiting |= dict.fromkeys(range(int(load[1]), int(load[1]) + 4), number)
        most = max(most, len(set(waiting.values())))
    return most


def machine_code_faults() -> list[str]:
    """Kernels that stream weights without 128-bit loads, touch local memory, or should use tensor cores and do not."""
    said = []
    for arch in LIMITS:
        found: dict[str, Counter[str]] = {}
        for source in sorted((CSRC / "backend/cuda/kernels").glob("linear*.cu")):
            found |= instructions(source, arch)
        streaming = {name: counts for name, counts in found.items() if STREAMS.search(name)}
        for pattern in (STREAMS, TENSOR):
            if not any(map(pattern.search, streaming)):
                said.append(f"{arch}: no kernel in the machine code is called {pattern.pattern}")
        for name, counts in streaming.items():
            if not any(i.startswith("LDG") and ".128" in i for i in counts):
                said.append(f"{arch} {name}: no 128-bit load, but {sorted(counts)}")
            if bool(TENSOR.search(name)) != any(i.startswith("HMMA.1688.F32") for i in counts):
                said.append(f"{arch} {name}: tensor cores, {sorted(counts)}")
            if any(i.startswith(("LDL", "STL")) for i in counts):
                said.append(f"{arch} {name}: local memory, {counts}")
    return said


def main() -> int:
    """The command; 1 when something is amiss."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--renew", action="store_true", help="write occupancy.json")
    options = parser.parse_args()
    if find_nvcc() is None:
        sys.exit("no nvcc: set CUDA_HOME or put it on the PATH")
    found, code = tables(), find_tool("cuobjdump") is not None
    for arch, rows in found.items():
        texts = [machine_code(source, arch) for source in kernel_sources()] if code else []
        in_flight = {name: loads_in_flight(text) for one in texts for name, text in one.items()}
        for name, row in rows.items():
            print(f"{arch} {name:52s} registers {row.registers:3d} shared {row.shared:6d} block {row.threads:4d}: "
                  f"{row.blocks:2d} blocks a multiprocessor, {row.occupancy:3d} %, 16-byte loads in flight "
                  f"{in_flight.get(name, '?')}")  # fmt: skip
    if options.renew:
        kept = {arch: {name: asdict(row) for name, row in rows.items()} for arch, rows in found.items()}
        TABLE.write_text(json.dumps({"nvcc": version(), "kernels": kept}, indent=1) + "\n", encoding="utf-8")
    said = faults(found) + differences(found)
    said += machine_code_faults() if code else []
    print(*said, sep="\n")
    return int(bool(said))


if __name__ == "__main__":
    sys.exit(main())
