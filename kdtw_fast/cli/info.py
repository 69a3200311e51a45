"""`kdtw info`: version, build and the shipped pairs."""

from __future__ import annotations

from typing import Any

from kdtw_fast import __version__
from kdtw_fast.pairs import pair_names


def info() -> None:
    """Version, build, SIMD level, threads and the shipped pairs."""
    from kdtw_fast import build_info

    build = build_info()
    rows = {
        "kdtw_fast": __version__,
        "compiler": build["compiler"],
        "torch at build": build["torch"],
        "CUDA": _cuda(build["cuda"]),
        "SIMD": f"{build['simd']} (built: {', '.join(build['simd_levels'])})",
        "threads": build["threads"],
        "pairs": ", ".join(pair_names()) or "none",
    }
    for name, value in rows.items():
        print(f"{name:<15} {value}")


def _cuda(library: dict[str, Any] | None) -> str:
    if library is None:
        return "not built in: this build decodes on the CPU only"
    devices = library["devices"]
    found = "no device here" if not devices else "; ".join(f"cuda:{i} is {device}" for i, device in enumerate(devices))
    return f"built for {library['architectures']}; {found}"
