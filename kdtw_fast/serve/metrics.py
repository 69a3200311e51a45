"""What a service counts, for Prometheus."""

from __future__ import annotations

from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from kdtw_fast.serve.served import Served

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)


class Metrics:
    """The numbers of one service."""

    def __init__(self, served: Served):
        self.registry = CollectorRegistry()
        shared: dict[str, Any] = {"registry": self.registry}
        self._requests = Counter("kdtw_requests", "Answers, by endpoint and status.", ("endpoint", "status"), **shared)
        self._seconds = Histogram(
            "kdtw_request_seconds", "From a request to the end of its answer.", ("endpoint",), buckets=SECONDS, **shared
        )
        self._first = Histogram(
            "kdtw_first_token_seconds", "From a request to its first token, of streams.", buckets=SECONDS, **shared
        )
        self._queue = Histogram("kdtw_queue_seconds", "Rows' wait for a place.", buckets=SECONDS, **shared)
        self._tokens = Counter("kdtw_tokens", "Output tokens, by who wrote them.", ("owner",), **shared)
        self._prompts = Counter("kdtw_prompt_tokens", "Source tokens.", **shared)
        self._calls = Counter("kdtw_teacher_calls", "Rows' passes of the teacher.", **shared)
        self._gone = Counter("kdtw_disconnects", "Clients that did not wait for their answer.", **shared)
        running = Gauge("kdtw_rows_running", "Rows that are decoded now.", **shared)
        waiting = Gauge("kdtw_rows_waiting", "Rows that wait for a place.", **shared)
        running.set_function(lambda: served.worker.running)
        waiting.set_function(lambda: served.worker.waiting)

    def request(self, endpoint: str, status: int, seconds: float) -> None:
        """Counts an answer."""
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)

    def first_token(self, seconds: float) -> None:
        """Counts a stream's first token."""
        self._first.observe(seconds)

    def row(self, counted: dict[str, Any]) -> None:
        """Counts an output by its usage."""
        for owner, tokens in counted["by_owner"].items():
            self._tokens.labels(owner).inc(tokens)
        self._prompts.inc(counted["prompt_tokens"])
        self._calls.inc(counted["teacher_calls"])
        self._queue.observe(counted["queue_ms"] / 1000)

    def disconnect(self) -> None:
        """Counts a client that has gone."""
        self._gone.inc()

    def text(self) -> bytes:
        """All numbers, as Prometheus reads them."""
        return generate_latest(self.registry)
