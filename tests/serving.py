"""A service on loopback for tests, in this process."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from kdtw_fast import load_pair
from kdtw_fast.methods import make_decoder
from kdtw_fast.model import NativeModel
from kdtw_fast.pairs import load_samples
from kdtw_fast.serve.app import Service
from kdtw_fast.serve.run import address, listen, make_server
from kdtw_fast.serve.served import Served
from kdtw_fast.serve.settings import ServeOptions

NAME = "debian-de-en"
TEXT = {"prompt": "Ein Spiel."}


@cache
def shipped() -> tuple[dict[str, NativeModel], Any]:
    """The shipped pair's models and tokenizer."""
    pair = load_pair(NAME)
    models = {role: NativeModel.from_model(getattr(pair, role), role) for role in ("student", "teacher")}
    return models, pair.tokenizer


@contextmanager
def serving(
    api_key: str | None = None, languages: tuple[str, str] | None = ("de", "en"), tokenizer: Any = None, **limits: Any
) -> Iterator[tuple[str, Service]]:
    """The address of a service and the service, until the block ends."""
    models, words = shipped()
    served = Served(NAME, models, tokenizer or words, ServeOptions(**limits), num_threads=2)
    service = Service(served, api_key, languages)
    listening = listen("127.0.0.1", 0)
    server = make_server(service)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.001)
    try:
        yield address(listening), service
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


def settled(service: Service, seconds: float = 60.0) -> None:
    """Waits until the service has nothing to do."""
    deadline = time.monotonic() + seconds
    worker = service.served.worker
    while worker.running or worker.waiting or service.served.open:
        assert time.monotonic() < deadline, (worker.running, worker.waiting, service.served.open)
        time.sleep(0.002)


def client(url: str, **more: Any) -> Any:
    import openai

    return openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0, **more)


def texts(count: int) -> list[str]:
    return [sample.source for sample in load_samples(NAME, count)]


def alone(text: Any, method: str = "training-wheels", **options: Any) -> Any:
    models, words = shipped()
    decoder = make_decoder(method, models, words, 2)
    settings = {"max_new_tokens": 64} | options
    budget = settings.pop("budget", "light") if decoder._keeps_limits else None
    if isinstance(text, str):
        return decoder(text, budget, **settings)
    out = decoder.generate([text], **settings)
    out.texts = words.batch_decode(out.output_ids, skip_special_tokens=True)
    return out


def check_error(status: int, response: Any, *words: str) -> dict[str, Any]:
    """An OpenAI error object of this status that says these words."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    for word in words:
        assert word in error["message"], error
    return error
