"""The service's queue and clock: who waits, who leaves, whose time is over, and how it ends."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

openai = pytest.importorskip("openai", reason="the openai client is not installed (the extra 'test')")
httpx = pytest.importorskip("httpx")
pytest.importorskip("uvicorn", reason="the extra 'serve' is not installed")

from factories import SHAPES, random_t5  # noqa: E402
from serving import NAME, TEXT, check_error, client, serving, settled, shipped  # noqa: E402

from kdtw_fast import NativeModel  # noqa: E402
from kdtw_fast.cli import app  # noqa: E402
from kdtw_fast.serve.app import Service  # noqa: E402
from kdtw_fast.serve.run import run  # noqa: E402
from kdtw_fast.serve.served import Served  # noqa: E402
from kdtw_fast.serve.settings import ServeOptions  # noqa: E402

LONG = {"max_tokens": 20_000, "extra_body": {"min_tokens": 20_000, "method": "greedy-student"}}
LONG_BODY = {"max_tokens": 20_000, "min_tokens": 20_000, "method": "greedy-student"}


def test_a_full_queue_is_told_when_to_come_again() -> None:
    with serving(batch_size=1, max_queue=1, max_new_tokens=20_000) as (url, service):
        ask = client(url)
        streams = [ask.completions.create(model=NAME, prompt="Ein Spiel.", stream=True, **LONG) for _ in range(2)]
        with pytest.raises(openai.RateLimitError) as error:
            ask.completions.create(model=NAME, prompt="Ein Spiel.")
        assert error.value.code == "queue_full" and int(error.value.response.headers["Retry-After"]) >= 1
        check_error(429, httpx.post(f"{url}/v1/completions", json={"prompt": ["a", "b", "c"]}))
        for stream in streams:
            stream.close()
        settled(service)
        assert ask.completions.create(model=NAME, prompt="Ein Spiel.").choices[0].text


def test_a_client_that_leaves_ends_its_rows() -> None:
    with serving(batch_size=2, max_new_tokens=20_000) as (url, service):
        stream = client(url).completions.create(model=NAME, prompt="Ein Spiel.", stream=True, **LONG)
        next(iter(stream))
        stream.close()
        settled(service, 5)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{url}/v1/completions", json=TEXT | LONG_BODY, timeout=0.3)
        settled(service, 5)
        with socket.create_connection(url.removeprefix("http://").split(":")) as half:
            half.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n")
        settled(service, 5)
        assert "kdtw_disconnects_total 2.0" in httpx.get(f"{url}/metrics").text


def test_a_request_has_its_time() -> None:
    with serving(max_new_tokens=20_000, request_timeout=0.3) as (url, service):
        check_error(504, httpx.post(f"{url}/v1/completions", json=TEXT | LONG_BODY), "0.3 seconds")
        with pytest.raises(openai.APIError, match=r"0\.1 seconds"):
            body = LONG["extra_body"] | {"timeout": 0.1}
            for _ in client(url).completions.create(
                model=NAME, prompt="Ein Spiel.", stream=True, max_tokens=20_000, extra_body=body
            ):
                pass
        settled(service)
        # What its rows took to hand in is part of it.
        handed_in = service.served.submit
        service.served.submit = lambda *given: (time.sleep(0.15), handed_in(*given))[1]
        for stream in (False, True):
            body = TEXT | {"max_tokens": 1, "timeout": 0.1, "stream": stream}
            answer = httpx.post(f"{url}/v1/completions", json=body)
            assert "not done after 0.1 seconds" in answer.text, (answer.status_code, answer.text)
        service.served.submit = handed_in
        settled(service)
        # A row's own time ends it where it is, which is an answer.
        answer = httpx.post(f"{url}/v1/completions", json=TEXT | LONG_BODY | {"max_time": 0.05}).json()
        assert answer["choices"][0]["finish_reason"] == "length"
        assert 0 < answer["usage"]["completion_tokens"] < 20_000


def test_a_short_request_does_not_wait_for_a_long_one() -> None:
    with serving(batch_size=4, max_new_tokens=20_000) as (url, service):
        ask = client(url)
        stream = ask.completions.create(model=NAME, prompt="Ein Spiel.", stream=True, **LONG)
        next(iter(stream))
        for method in ("greedy-student", "speculative"):  # in its session, and in another
            short = ask.completions.create(model=NAME, prompt="Ein Spiel.", max_tokens=5, extra_body={"method": method})
            assert short.choices[0].text and service.served.worker.running == 1
        stream.close()


@pytest.fixture
def process() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    command = [sys.executable, "-m", "kdtw_fast", "serve", "--port", "0", "--max-new-tokens", "4000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        found = re.search(r"http://\S+", line)
        assert found, line
        yield found[0], process
        if process.poll() is None:
            process.kill()


def test_sigterm_lets_requests_end(process: tuple[str, subprocess.Popen[str]]) -> None:
    url, child = process
    ask = client(url)
    options = {"max_tokens": 4000, "extra_body": {"min_tokens": 4000, "method": "greedy-student"}}
    stream = ask.completions.create(model=NAME, prompt="Ein Spiel.", stream=True, **options)
    pieces = iter(stream)
    next(pieces)
    os.kill(child.pid, signal.SIGTERM)
    last = [*pieces][-1]
    assert last.choices[0].finish_reason == "length" and last.choices[0].usage["completion_tokens"] == 4000
    assert child.wait(60) == 0 and child.stderr.read() == ""
    with pytest.raises(openai.APIConnectionError):
        ask.completions.create(model=NAME, prompt="Ein Spiel.")


def test_the_command_refuses_what_it_cannot_do() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for arguments, said in (
            (["--port", port], "Address already in use"),
            (["--port", "70000"], "--port"),
            (["--method", "speculativ"], "did you mean 'speculative'"),
            (["--translates", "german"], "two language codes"),
            (["--batch-size", "0"], "--batch-size"),
            (["--port", "0", "--method", "auto"], "not offered"),
            (["no-such-pair", "--port", "0"], "unknown pair"),
        ):
            done = CliRunner().invoke(app, ["serve", *arguments])
            assert done.exit_code == 2 and said in done.output, (arguments, done.output)


def test_what_a_pair_cannot_do_is_told_and_one_that_fits_in_nothing_is_refused(capsys: Any) -> None:
    tokenizer = shipped()[1]
    rows = len(tokenizer)
    student, teacher = (random_t5(SHAPES[0], rows, seed) for seed in (1, 2))  # without <tau>: it cannot ask
    models = {"student": NativeModel.from_model(student), "teacher": NativeModel.from_model(teacher)}
    served = Served("plain", models, tokenizer, ServeOptions(), num_threads=1)
    assert served.method == "speculative" and "training-wheels" not in served.decoders
    ((why, methods),) = served.unfit.items()
    assert methods == ["training-wheels", "random", "entropy"] and "<tau>" in why
    said: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kdtw_fast.serve.run.make_server", lambda _: SimpleNamespace(run=lambda sockets: None))
        with socket.create_server(("127.0.0.1", 0)) as listening:
            run(Service(served), listening, said.append)
    assert said[1:] == [f"plain: without training-wheels, random, entropy: {why}"]
    other = random_t5(SHAPES[0], rows, 2)
    other.config.eos_token_id, other.generation_config = 2, None
    models["teacher"] = NativeModel.from_model(other)
    with pytest.raises(ValueError, match=r"plain: no method decodes with student and teacher: .*eos_token_id"):
        Served("plain", models, tokenizer, ServeOptions(), num_threads=1)
    alone = Served("plain", {"student": models["student"]}, tokenizer, ServeOptions(), num_threads=1)
    assert alone.method == "greedy-student" and not alone.unfit
    alone.worker.close()
