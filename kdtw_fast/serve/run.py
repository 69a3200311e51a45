"""Runs a service until it is told to end."""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Callable

import uvicorn

from kdtw_fast.serve.app import Service


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens there; port 0 = any that is free. OSError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Its protocol is named, as socket.create_server does not: asyncio switches Nagle's algorithm off only where it is.
    # Otherwise an answer's body waits 40 ms for the client to acknowledge its head.
    listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if os.name == "posix":
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listening.bind((host, port))
        listening.listen(1024)
    except BaseException:
        listening.close()
        raise
    return listening


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
        proxy_headers=False,  # clients' addresses are nothing to it
        lifespan="on",
        timeout_graceful_shutdown=max(1, round(service.served.limits.drain_timeout)),
    )
    return uvicorn.Server(config)


def run(service: Service, listening: socket.socket, say: Callable[[str], None] = print) -> None:
    """Answers requests until SIGTERM or Ctrl-C; then those under way are ended first."""
    served = service.served
    # Texts are tokenized one by one, for which threads would only take processors from the decoding.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.getLogger("asyncio").setLevel(logging.ERROR)  # it warns of every client that leaves in the middle
    # uvicorn raises the signal again when it has ended, for whoever waits for it too: nobody does.
    before = {number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        say(f"{served.name}: {address(listening)}  ({', '.join(served.decoders)}; by default {served.method})")
        for why, methods in served.unfit.items():
            say(f"{served.name}: without {', '.join(methods)}: {why}")
        make_server(service).run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        served.worker.close()
