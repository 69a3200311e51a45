"""A small HTTP client for load: one connection, requests one after the other, events as they come.

It costs little beside the service it measures, which shares the machine with it.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Answer:
    """What came, and when.

    Args:
        status: of HTTP.
        body: of an answer that is whole; the events of a stream.
        seconds: from the request to the end.
        times: seconds from the request to each event.
    """

    status: int
    body: bytes = b""
    seconds: float = 0.0
    events: list[bytes] = field(default_factory=list)
    times: list[float] = field(default_factory=list)


class Client:
    """A connection to a service; opened where there is none."""

    def __init__(self, host: str, port: int):
        self.host, self.port = host, port
        self.reader: asyncio.StreamReader | None = None
        self.writer: asyncio.StreamWriter | None = None

    async def send(self, path: str, body: bytes | Mapping[str, Any], kind: str = "application/json") -> float:
        """Sends a POST; returns when."""
        if self.writer is None:
            self.reader, self.writer = await asyncio.open_connection(self.host, self.port)
        payload = body if isinstance(body, bytes) else json.dumps(body).encode()
        head = f"POST {path} HTTP/1.1\r\nHost: {self.host}\r\nContent-Type: {kind}\r\n"
        head += f"Content-Length: {len(payload)}\r\n\r\n"
        begun = time.perf_counter()
        self.writer.write(head.encode() + payload)
        await self.writer.drain()
        return begun

    async def receive(self, begun: float) -> Answer:
        """The answer to what was sent then."""
        assert self.reader is not None
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().split("\r\n")
        answer = Answer(int(head[0].split()[1]))
        fields = dict(line.split(": ", 1) for line in head[1:] if ": " in line)
        if "content-length" in fields:
            answer.body = await self.reader.readexactly(int(fields["content-length"]))
        else:
            while size := int(await self.reader.readline(), 16):
                part = await self.reader.readexactly(size)
                await self.reader.readexactly(2)
                answer.events += [event for event in part.split(b"\n\n") if event]
                answer.times += [time.perf_counter() - begun] * (len(answer.events) - len(answer.times))
            await self.reader.readline()
        answer.seconds = time.perf_counter() - begun
        if fields.get("connection") == "close":
            self.close()
        return answer

    async def post(self, path: str, body: bytes | Mapping[str, Any]) -> Answer:
        """Asks and waits."""
        return await self.receive(await self.send(path, body))

    def close(self) -> None:
        """Ends the connection, whatever is under way."""
        if self.writer is not None:
            self.writer.transport.abort()
        self.reader = self.writer = None
