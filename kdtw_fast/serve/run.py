"""Runs a service until it is told to end."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Callable

import uvicorn

from kdtw_fast.serve.app import Service


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 = any that is free. OSError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    return socket.create_server((host, port), family=family, backlog=1024)


def address(listening: socket.socket) -> str:
    """Where clients find it."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(service: Service) -> uvicorn.Server:
    """The server, which `run` runs."""
    config = uvicorn.Config(
        service.app(),
        log_level="warning",
        access_log=False,
        server_header=False,
        lifespan="on",
        timeout_graceful_shutdown=max(1, round(service.served.limits.drain_timeout)),
    )
    return uvicorn.Server(config)


def run(service: Service, listening: socket.socket, say: Callable[[str], None] = print) -> None:
    """Answers requests until SIGTERM or Ctrl-C; then those under way are ended first."""
    served = service.served
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of every client that leaves in the middle
    # uvicorn raises the signal again when it has ended, for whoever waits for it too: nobody does.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        say(f"{served.name}: {address(listening)}  ({', '.join(served.decoders)}; by default {served.method})")
        make_server(service).run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        served.worker.close()
