"""`kdtw project`: what a comparison's methods would take on a device that is not here."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any

import typer
from rich.table import Table

from kdtw_fast.cli.console import make_console
from kdtw_fast.extras import require
from kdtw_fast.files import check_target, write_whole
from kdtw_fast.options import check_real, nearest
from kdtw_fast.shapes import SHAPES, find_shape
from kdtw_fast.tables import terminal_table

_DEVICE = "The device"


def project(
    results: Annotated[
        Path, typer.Argument(help="results.jsonl of kdtw compare, or the folder that it lies in.", show_default=False)
    ],
    student: Annotated[str, typer.Option(help=f"The student's shape: {', '.join(SHAPES)}.")] = "flan-t5-small",
    teacher: Annotated[str, typer.Option(help="The teacher's shape.")] = "flan-t5-xl",
    device: Annotated[str, typer.Option(help="t4, or any name with the next two.", rich_help_panel=_DEVICE)] = "t4",
    bandwidth: Annotated[float | None, typer.Option(help="Of its memory, GB/s.", rich_help_panel=_DEVICE)] = None,
    tflops: Annotated[
        float | None, typer.Option(help="TFLOP/s in the weights' format.", rich_help_panel=_DEVICE)
    ] = None,
    launch_us: Annotated[
        float | None, typer.Option(help="Microseconds of each operation's launch. Default: 5.", rich_help_panel=_DEVICE)
    ] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write everything to this file too.")] = None,
) -> None:
    """Project every method's latency to a device and models that are not here, from recorded passes.

    Nothing is measured here. First the same arithmetic with the pass times of the results' own machine, beside the
    latencies measured there. Then the projection, with what it assumes and the range that this leaves;
    docs/projection.md has the formulas.

        kdtw project out/compare/results.jsonl

        kdtw project out/compare --device mine --bandwidth 900 --tflops 120
    """
    require("comparing", "kdtw project")
    from kdtw_fast.comparison.records import read, results_file

    path = results_file(results)
    from kdtw_fast.comparison import projection

    where = _device(device, bandwidth, tflops, launch_us)
    shapes = {"student": find_shape(student), "teacher": find_shape(teacher)}
    if json_file is not None:
        check_target("json_file", json_file, path)
    records = read(path)
    if not records.outputs:
        raise ValueError(f"{results} holds no outputs yet; run kdtw compare")
    console, found = make_console(), []
    for pair in records.pairs:
        checks = projection.check(records, pair)
        projected = projection.project(records, pair, where, shapes)
        machine = next(iter(records.outputs.values())).provenance.get("machine", {}).get("processor", "its machine")
        console.print(_checked(pair, checks, str(machine)), crop=False)
        errors = [abs(check.error) for check in checks]
        console.print(
            "measured: the median over the turns; predicted: from the times of passes in the same turns. Error of the "
            f"prediction: median {100 * median(errors):.1f} %, at most {100 * max(errors):.1f} %.\n",
            soft_wrap=True,
        )
        console.print(_projected(pair, projected, where.name, shapes), crop=False)
        found.append({"pair": pair, "checks": [*map(_with_error, checks)], "projection": [*map(asdict, projected)]})
    assumptions = (
        f"A projection, not a measurement. Assumed: {student} and {teacher} draft, ask and agree as the recorded "
        f"models did, at the same lengths; {where.assumptions}"
    )
    console.print(assumptions, soft_wrap=True)
    if json_file is not None:
        content = {"device": asdict(where), "student": student, "teacher": teacher, "assumptions": assumptions}
        write_whole(json_file, json.dumps(content | {"pairs": found}, indent=1) + "\n")


def _device(name: str, bandwidth: float | None, tflops: float | None, launch_us: float | None) -> Any:
    from kdtw_fast.comparison.projection import DEVICES, Device

    given: dict[str, Any] = {}
    for option, field, value, scale in (
        ("bandwidth", "bandwidth", bandwidth, 1e9),
        ("tflops", "flops", tflops, 1e12),
        ("launch_us", "kernel_seconds", launch_us, 1e-6),
    ):
        if value is not None:
            given[field] = scale * check_real(option, value, 0.0, open_low=field != "kernel_seconds")
    if name in DEVICES:
        known = DEVICES[name]
        return replace(known, name=f"{known.name}, changed", **given) if given else known
    if not {"bandwidth", "flops"} <= given.keys():
        raise ValueError(f"unknown device {name!r}{nearest(name, DEVICES)}; or give --bandwidth and --tflops")
    return Device(name, **given)


def _with_error(check: Any) -> dict[str, Any]:
    return asdict(check) | {"error": check.error}


def _checked(pair: str, checks: list[Any], machine: str) -> Table:
    return terminal_table(
        f"{pair}, checked on {machine}: ms/token from pass times, beside what was measured",
        ("method", "measured", "predicted", "error"),
        ([c.label, f"{c.measured:.3g}", f"{c.predicted:.3g}", f"{100 * c.error:+.1f} %"] for c in checks),
    )


def _projected(pair: str, projected: list[Any], device: str, shapes: dict[str, Any]) -> Table:
    def row(point: Any) -> list[str]:
        against = "–" if point.speedup is None else f"{point.speedup:.2f}×"
        return [point.label, f"{point.ms_per_token:.3g}", f"{point.low:.3g} to {point.high:.3g}", against]

    title = f"PROJECTION: {shapes['student'].name} with {shapes['teacher'].name} on {device}, calls as in {pair}"
    return terminal_table(title, ("method", "ms/token", "range", "against teacher alone"), map(row, projected))
