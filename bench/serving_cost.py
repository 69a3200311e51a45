"""What an answer of the service costs in processor time, by thread: it hardly depends on what else the machine does."""

from __future__ import annotations

import time
from typing import Any

import psutil

from bench.serving_load import METHODS, WARM, Streamed, ask, kdtw
from kdtw_fast.tables import markdown_table

KINDS: dict[str, dict[str, Any]] = {"whole": {}, "streamed": {"stream": True}}


def by_thread(pid: int) -> dict[str, float]:
    """Processor seconds of a service: its event loop's (the main thread), and all others'."""
    seconds = {thread.id: thread.user_time + thread.system_time for thread in psutil.Process(pid).threads()}
    return {"event loop": seconds.get(pid, 0.0), "other threads": sum(seconds.values()) - seconds.get(pid, 0.0)}


def costs(method: str, clients: int, count: int) -> list[list[str]]:
    streamed = Streamed(method)
    streamed.rate(clients, 2 * WARM)
    before = time.process_time()
    streamed.rate(clients, count)
    lines = [[f"{method}, decoder.stream", "", _ms(time.process_time() - before, count), ""]]
    with kdtw("--batch-size", str(clients), "--method", method) as (host, port, process):
        for kind, fields in KINDS.items():
            ask(host, port, clients, 8 * WARM, fields)
            begun, mine = by_thread(process.pid), time.process_time()
            ask(host, port, clients, count, fields)
            spent = {name: seconds - begun[name] for name, seconds in by_thread(process.pid).items()}
            cells = [_ms(spent[name], count) for name in ("event loop", "other threads")]
            lines.append([f"{method}, kdtw serve, {kind}", *cells, _ms(time.process_time() - mine, count)])
    return lines


def _ms(seconds: float, count: int) -> str:
    return f"{1000 * seconds / count:.2f}"


def costs_table(clients: int, requests: int) -> str:
    lines = [line for method in METHODS for line in costs(method, clients, requests)]
    return "\n".join(
        markdown_table(["processor ms per answer", "event loop", "decoding and the rest", "client"], lines)
    )
