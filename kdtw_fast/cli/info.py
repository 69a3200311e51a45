"""`kdtw info`: version, machine, build and the shipped pairs."""

from __future__ import annotations

from typing import Any

from kdtw_fast import __version__
from kdtw_fast.pairs import pair_names


def info() -> None:
    """Version, machine, build, SIMD level, threads and the shipped pairs."""
    show({"kdtw_fast": __version__, **described(), "pairs": ", ".join(pair_names()) or "none"})


def show(rows: dict[str, str]) -> None:
    """Prints what is known, a line each."""
    for name, value in rows.items():
        print(f"{name:<15} {value}")


def described() -> dict[str, str]:
    """Machine, versions and build, in words."""
    from kdtw_fast.machine import machine

    told = machine()
    build, versions = told["build"], told["versions"]
    return {
        "processor": f"{told['processor']}, {told['cores']} cores, {told['memory'] / 2**30:.0f} GiB, {told['system']}",
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items() if name != "kdtw_fast"),
        "compiler": build["compiler"],
        "CUDA": _cuda(build["cuda"]),
        "SIMD": f"{build['simd']} (built: {', '.join(build['simd_levels'])})",
        "threads": str(build["threads"]),
    }


def _cuda(library: dict[str, Any] | None) -> str:
    if library is None:
        return "not built in: this build decodes on the CPU only"
    devices = library["devices"]
    found = "no device here" if not devices else "; ".join(f"cuda:{i} is {device}" for i, device in enumerate(devices))
    kind = "" if library["kind"] == "CUDA" else f"{library['kind']}, "
    return f"{kind}built for {library['architectures']}; {found}"
