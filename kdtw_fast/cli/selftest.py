"""`kdtw selftest`: whether a device computes what it should, in a report that can be pasted."""

from __future__ import annotations

from typing import Annotated

import typer

from kdtw_fast import __version__
from kdtw_fast.cli.info import described, show
from kdtw_fast.cli.options import Device
from kdtw_fast.options import check_device


def selftest(
    device: Device = "auto",
    quick: Annotated[bool, typer.Option("--quick", help="Leave out the table of latencies.")] = False,
) -> None:
    """Check a device: every operation against its oracle, whole decodes of tiny models, and what a token takes.

    Exit status 1 where a check fails. On a machine with a GPU that the kernels have not met, run this first.

        kdtw selftest --device cuda
    """
    check_device(device)
    from kdtw_fast import _core

    chosen = _core.resolve_device(device)
    from kdtw_fast.selftest.run import measure_latencies, run_checks

    cuda = _core.build_info()["cuda"]
    show({"device": chosen, "kdtw_fast": __version__, **described()})
    print()
    count = failed = left_out = 0
    for item in run_checks(chosen):
        count, failed, left_out = count + 1, failed + bool(item.failure), left_out + bool(item.left_out)
        if item.left_out:
            print(f"left out       {item.name}: the device was lost in {item.left_out!r}")
            continue
        measured = f"  largest error {item.error:.1e} of {item.permitted:.1e}" if item.permitted else ""
        measured += f"  rows that fell otherwise at a near tie: {item.near_ties}" if item.near_ties else ""
        print(f"{'FAIL' if item.failure else 'pass'} {item.seconds:6.1f} s  {item.name}{measured}", flush=True)
        for line in item.failure.splitlines()[:6]:
            print(f"                {line[:400]}", flush=True)
    print(f"\n{count - failed - left_out} of {count} checks passed on {chosen}")
    if chosen != "cpu" and cuda["kind"] != "CUDA":
        print(f"no latencies: {cuda['kind']}, whose times mean nothing")
    elif not quick:
        print("\none row, a source of 64 tokens, random weights: ms to the first token, ms for each token after it")
        for row in measure_latencies(chosen):
            print(f"{row.shape:16s} {row.dtype:5s} {row.first:9.2f} {row.following:9.3f}", flush=True)
    if failed:
        raise typer.Exit(1)
