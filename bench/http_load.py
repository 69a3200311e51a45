"""Many HTTP clients in one thread, for load: what comes is kept as it is, and read when the clock has stopped.

A client costs the machine, which it shares with the service that it measures, little more than its calls of the system.
"""

from __future__ import annotations

import selectors
import socket
import time
from collections.abc import Iterable
from dataclasses import dataclass, field

ENDS = b"\r\n0\r\n\r\n"  # of an answer in chunks; none of those asked here has such bytes inside
PATIENCE = 60.0  # seconds without a byte from any connection


@dataclass
class Answer:
    """What came, and when.

    Args:
        status: of HTTP.
        body: of an answer that is whole.
        seconds: from the request to the end.
        events: of a stream.
        times: seconds from the request to each event.
    """

    status: int
    body: bytes = b""
    seconds: float = 0.0
    events: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


class _Connection:
    """One client: requests one after the other."""

    def __init__(self, host: str, port: int):
        self.socket = socket.create_connection((host, port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.answers: list[tuple[bytearray, list[tuple[int, float]]]] = []

    def ask(self, request: bytes) -> None:
        self.came, self.marks, self.size = bytearray(), list[tuple[int, float]](), -1
        self.begun = time.perf_counter()
        self.socket.sendall(request)

    def take(self) -> bool:
        """Takes what has come; whether the answer is whole."""
        part = self.socket.recv(1 << 16)
        if not part:
            raise ConnectionError(f"the service closed a connection after {bytes(self.came[-200:])!r}")
        self.came += part
        self.marks.append((len(self.came), time.perf_counter() - self.begun))
        if self.size < 0 and (head := self.came.find(b"\r\n\r\n")) >= 0:
            place = self.came.lower().find(b"content-length:", 0, head)
            self.size = head + 4 + int(self.came[place + 15 : self.came.find(b"\r", place)]) if place >= 0 else 0
        whole = self.came.endswith(ENDS) if self.size == 0 else len(self.came) == self.size
        if whole:
            self.answers.append((self.came, self.marks))
        return whole


def drive(host: str, port: int, clients: int, path: str, bodies: Iterable[bytes]) -> tuple[float, list[Answer]]:
    """Seconds and answers of clients that POST these bodies of JSON, each the next one when it has its answer."""
    head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: "
    left = iter([f"{head}{len(body)}\r\n\r\n".encode() + body for body in bodies])
    connections = [_Connection(host, port) for _ in range(clients)]
    with selectors.DefaultSelector() as selector:
        for one in connections:
            selector.register(one.socket, selectors.EVENT_READ, one)
        begun, busy = time.perf_counter(), 0
        for one, request in zip(connections, left):
            one.ask(request)
            busy += 1
        while busy:
            ready = selector.select(PATIENCE)
            if not ready:
                raise ConnectionError(f"the service said nothing for {PATIENCE} s, with {busy} requests under way")
            for key, _ in ready:
                if key.data.take():
                    if (request := next(left, None)) is not None:
                        key.data.ask(request)
                    else:
                        busy -= 1
        seconds = time.perf_counter() - begun
    for one in connections:
        one.socket.close()
    return seconds, [_read(*answer) for one in connections for answer in one.answers]


def _read(came: bytearray, marks: list[tuple[int, float]]) -> Answer:
    head, _, body = bytes(came).partition(b"\r\n\r\n")
    answer = Answer(int(head.split()[1]), seconds=marks[-1][1])
    if came.endswith(ENDS):
        place, begin = 0, len(head) + 4
        later = iter(marks)
        end, when = next(later)
        while size := int(body[place : (data := body.index(b"\r\n", place) + 2)], 16):
            place = data + size + 2
            while end < begin + place:  # what came with the last byte of a chunk
                end, when = next(later)
            answer.events += (events := [event for event in body[data : data + size].split(b"\n\n") if event])
            answer.times += [when] * len(events)
    else:
        answer.body = body
    return answer
