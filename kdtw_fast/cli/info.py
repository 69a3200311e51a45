"""`kdtw info`: version, machine, build and the shipped pairs; or the number formats of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from kdtw_fast import __version__
from kdtw_fast.cli.options import Device, Dtype
from kdtw_fast.options import check_device, check_dtype
from kdtw_fast.pair_folders import check_model_folder
from kdtw_fast.pairs import pair_names


def info(
    model: Annotated[
        Path | None, typer.Argument(help="A model's folder, or a GGUF file: in which formats it is held, and why.")
    ] = None,
    dtype: Dtype = "auto",
    device: Device = "cpu",
) -> None:
    """Version, machine, build, SIMD level, threads and the shipped pairs; of a model, its number formats."""
    check_dtype(dtype)
    check_device(device)
    if model is None:
        show({"kdtw_fast": __version__, **described(), "pairs": ", ".join(pair_names()) or "none"})
    else:
        check_model_folder("model", model)
        show(_formats(model, dtype, device))


def _formats(folder: Path, dtype: str, device: str) -> dict[str, str]:
    """Of a model that is packed in a number format."""
    from kdtw_fast.model import NativeT5

    native = NativeT5.from_pretrained(folder, dtype=dtype, device=device)
    told = {
        "model": str(folder),
        "matrices": f"{native.dtype}, {native.num_bytes / 1e6:.1f} MB on {native.device}",
        "keys, values": native.cache_dtype,
    }
    if native.dtype != "int8":
        return told
    return told | {"kept in bf16": _kept(native.kept_bf16)}


def _kept(kept: dict[str, float]) -> str:
    if not kept:
        return "none: int8 loses little in every matrix"
    lines = [f"{name} (int8's noise is {100 * lost:.2g} % of its signal)" for name, lost in kept.items()]
    return f"\n{'':<16}".join(lines)


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
