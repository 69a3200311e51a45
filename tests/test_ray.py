"""On a Ray cluster of several nodes in this machine: what comes out is what one process gives, whatever is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

ray = pytest.importorskip("ray", reason="Ray is not installed (the extra 'ray')")
pytest.importorskip("ray.data", reason="ray[data] is not installed (the extra 'ray')")

from on_ray import KDTW, cluster  # noqa: E402
from test_cli import LINES, SMALL, TinyPair, kdtw, pair  # noqa: E402, F401 - fixtures

from kdtw_fast import TrainingWheelsDecoder  # noqa: E402
from kdtw_fast.cli.jobs import Job  # noqa: E402
from kdtw_fast.ray import Decode, decode, deployment  # noqa: E402
from kdtw_fast.serve.settings import ServeOptions  # noqa: E402

pytestmark = pytest.mark.long  # it starts clusters
TEXTS = [line for line in LINES if line.strip()]


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    with cluster(nodes=3, cpus=1) as made:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        yield made


def folders(pair: TinyPair) -> dict[str, str]:  # noqa: F811
    return {"student": str(pair.folder / "student"), "teacher": str(pair.folder / "teacher")}


def alone(pair: TinyPair, items: list[Any], **options: Any) -> list[Any]:  # noqa: F811
    decoder = TrainingWheelsDecoder(**folders(pair))
    return list(decoder.stream(items, in_order=True, on_error="return", **options))


def rows_of(count: int) -> list[dict[str, Any]]:
    return [{"id": n, "text": f"{TEXTS[n % len(TEXTS)]} {n % 7}"} for n in range(count)]


def processes(name: str) -> list[int]:
    """This cluster's processes with that in their names."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if name in " ".join(process.cmdline()):
                found.append(process.pid)
    return found


def packed_files(pid: int) -> set[tuple[str, str]]:
    """The packed files of students and teachers that a process has mapped: device with inode, and path."""
    maps = Path(f"/proc/{pid}/maps").read_text()
    return set(re.findall(r"(\S+ \d+) +(\S+/(?:student|teacher)/\.kdtw_fast-\w+\.packed)$", maps, re.MULTILINE))


def whole(dataset: Any, expected: list[Any], meanwhile: Any = None) -> None:
    """The dataset's rows are those expected, each once; ``meanwhile`` is called when the first have come."""
    got: dict[int, dict[str, Any]] = {}
    for batch in dataset.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        for row in batch.to_pylist():
            assert row["id"] not in got, row
            got[row["id"]] = row
        if meanwhile is not None:
            meanwhile()
            meanwhile = None
    assert sorted(got) == list(range(len(expected)))
    for n, out in enumerate(expected):
        assert (got[n]["output"], got[n]["output_ids"]) == (out.texts[0], out.sequences[0, out.spans[0]].tolist())


def test_a_stage_gives_what_one_process_gives_and_a_poison_row_its_error(nodes: Any, pair: TinyPair) -> None:  # noqa: F811
    own = [{}, {"max_new_tokens": 5}, {"budget": "high"}, {"temperature": 0.7, "seed": 4}]
    items = [{"text": text, "row_id": n, **own[n % 4]} for n, text in enumerate(TEXTS * 8)]
    items[7]["text"] = "paket " * 120
    items[9]["text"] = " "
    blanks = {"max_new_tokens": None, "budget": None, "temperature": None, "seed": None}
    rows = [{"id": n, **blanks, **item} for n, item in enumerate(items)]
    rows[11]["text"] = None
    options: dict[str, Any] = {"budget": "light", "max_new_tokens": 12, "max_source_length": 80}
    data = ray.data.from_items(rows, override_num_blocks=5)
    got = decode(data, actors=2, batch_size=6, slots=4, **folders(pair), **options).take_all()
    expected = alone(pair, items, **options)
    assert sorted(row["id"] for row in got) == list(range(len(items)))
    for row in got:
        n, out = row["id"], expected[row["id"]]
        if n in (7, 11):
            assert row["output"] is row["output_ids"] is row["finish_reason"] is None
            assert row["error"].startswith("the row") and ("tokens" in row["error"]) == (n == 7), row["error"]
            continue
        assert row["error"] is None and row["text"] == items[n]["text"] and row["row_id"] == n
        assert row["output"] == out.texts[0] and row["finish_reason"] == out.finish_reasons[0]
        assert row["output_ids"] == out.sequences[0, out.spans[0]].tolist()
        assert row["owners"] == out.owners[0, out.spans[0]].tolist()
        assert row["teacher_calls"] == int(out.teacher_calls[0])


def test_the_class_is_a_stage_by_itself_over_numpy_and_pandas(nodes: Any, pair: TinyPair) -> None:  # noqa: F811
    rows = [{"id": n, "german": text, "max_new_tokens": [None, 4][n % 2]} for n, text in enumerate(TEXTS)]
    items = [{"text": row["german"], "max_new_tokens": row["max_new_tokens"]} for row in rows]
    expected = alone(pair, items, budget="light", max_new_tokens=12)
    for form in ("numpy", "pandas"):
        stage = ray.data.from_items(rows).map_batches(
            Decode,
            fn_constructor_kwargs=folders(pair) | {"text": "german", "max_new_tokens": 12, "budget": "light"},
            compute=ray.data.ActorPoolStrategy(size=1),
            batch_size=256,
            batch_format=form,
        )
        whole(stage, expected)


def test_actors_map_one_packed_file_and_one_that_is_killed_loses_and_repeats_nothing(
    nodes: Any,
    pair: TinyPair,  # noqa: F811
) -> None:
    rows = rows_of(1500)
    expected = alone(pair, [row["text"] for row in rows], budget="light", max_new_tokens=12)
    seen: list[set[tuple[str, str]]] = []

    def kill() -> None:
        deadline = time.monotonic() + 60
        while len(seen) < 2 or not all(seen):  # the other has not loaded yet
            assert time.monotonic() < deadline, seen
            seen[:] = map(packed_files, running := processes("MapBatches(Decode)"))
        os.kill(running[0], signal.SIGKILL)

    data = ray.data.from_items(rows, override_num_blocks=100)
    whole(
        decode(data, actors=2, batch_size=15, budget="light", max_new_tokens=12, **folders(pair)),
        expected,
        kill,
    )
    assert seen[0] == seen[1] and len(seen[0]) == 2


def test_a_node_that_is_killed_loses_and_repeats_nothing(nodes: Any, pair: TinyPair) -> None:  # noqa: F811
    rows = rows_of(1500)
    expected = alone(pair, [row["text"] for row in rows], budget="light", max_new_tokens=12)
    added = nodes.add_node(num_cpus=1, object_store_memory=80 * 2**20)

    def kill() -> None:
        nodes.remove_node(added, allow_graceful=False)

    data = ray.data.from_items(rows, override_num_blocks=100)
    begun = time.monotonic()
    whole(
        decode(data, actors=4, batch_size=15, budget="light", max_new_tokens=12, **folders(pair)),
        expected,
        kill,
    )
    assert time.monotonic() - begun < 60


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"actors": 0}, "actors must be"),
        ({"methd": "speculative"}, "no argument 'methd'; did you mean 'method'"),
        ({"method": "speculativ"}, "unknown method 'speculativ'"),
        ({"max_new_tokens": 0}, "max_new_tokens must be"),
    ],
)
def test_wrong_arguments_are_told_before_anything_runs(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises((TypeError, ValueError), match=said):
        decode(None, **arguments)  # type: ignore[arg-type]


def test_what_a_stage_refuses(pair: TinyPair) -> None:  # noqa: F811
    import pyarrow as pa

    stage = Decode(**folders(pair), max_new_tokens=4)
    with pytest.raises(ValueError, match="no column 'text', only german; name theirs with text="):
        stage(pa.table({"german": TEXTS}))
    with pytest.raises(ValueError, match="a column 'owners' already"):
        stage(pa.table({"text": TEXTS, "owners": TEXTS}))
    with pytest.raises(ValueError, match="need a column 'row_id'"):
        Decode(**folders(pair), temperature=1.0)(pa.table({"text": TEXTS}))
    assert len(stage(pa.table({"text": pa.array([], pa.string())}))) == 0


def test_a_row_without_a_number_is_not_drawn(pair: TinyPair) -> None:  # noqa: F811
    import pyarrow as pa

    numbers, texts = [4, None, float("nan"), 7], TEXTS[:4]
    table = pa.table({"text": texts, "row_id": pa.array(numbers, pa.float64())})
    drawn = Decode(**folders(pair), max_new_tokens=8, budget="light", temperature=1.0)(table).to_pylist()
    own = Decode(**folders(pair), max_new_tokens=8, budget="light")
    plain = own(table.append_column("temperature", pa.array([1.0, 0.5, None, 1.0]))).to_pylist()
    items = [{"text": texts[n], "row_id": numbers[n]} for n in (0, 3)]
    expected = [out.texts[0] for out in alone(pair, items, max_new_tokens=8, budget="light", temperature=1.0)]
    for rows, unnamed in ((drawn, [1, 2]), (plain, [1])):
        assert [rows[0]["output"], rows[3]["output"]] == expected
        for n, row in enumerate(rows):
            assert (row["error"] is not None and "no row_id" in row["error"]) == (n in unnamed), row


def test_folders_are_those_of_who_asks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    asked: dict[str, Any] = {}

    class Dataset:
        def map_batches(self, stage: Any, **how: Any) -> None:
            asked.update(how["fn_constructor_kwargs"])

    own = {"student": "student", "teacher": [Path("one"), tmp_path / "two"], "tokenizer": None}
    decode(Dataset(), **own, max_new_tokens=3)  # type: ignore[arg-type]
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    expected = {"student": str(tmp_path / "student"), "teacher": [one, two], "tokenizer": None}
    assert asked == expected | {"max_new_tokens": 3}
    job = Job(
        *("training-wheels", {}, {}, False, None, None, Path("student"), own["teacher"], Path("words"), {}),
        *(False, "cpu", None, 8, False, None),
    )
    told = job.placed()
    assert (told.student, told.teacher) == (tmp_path / "student", [tmp_path / "one", tmp_path / "two"])
    assert told.tokenizer == tmp_path / "words" and told.described() == job.described()
    assert (
        replace(job, student=None, teacher=None, tokenizer=None).placed().folders()
        == replace(job, student=None, teacher=None, tokenizer=None).folders()
    )


def test_a_task_has_the_threads_that_it_was_given_cpus_for(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    from kdtw_fast.cli import on_ray

    job = Job(
        *("training-wheels", {}, {}, False, None, None, Path("student"), None, None, {}),
        *(False, "cpu", None, 8, False, None),
    )
    put: list[Job] = []
    quiet = SimpleNamespace(put=put.append, remote=lambda **how: lambda task: task, cancel=None)
    monkeypatch.setattr(on_ray, "ray", quiet)
    monkeypatch.setattr(on_ray, "connected", lambda *told: nullcontext())
    source = SimpleNamespace(pieces=lambda rows: iter(()))
    for threads, expected in ((None, 1), (2, 2)):
        on_ray._decode_all("auto", replace(job, num_threads=threads), source, None, 5, "raise", str, print)  # type: ignore[arg-type]
        assert put[-1].num_threads == expected and put[-1].student == Path("student").absolute()


# --- Ray Serve --------------------------------------------------------------------------------------------


@pytest.fixture
def served(nodes: Any) -> Iterator[str]:
    """Where Ray Serve listens."""
    serve = pytest.importorskip("ray.serve")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        serve.shutdown()


def test_a_deployment_answers_as_a_call_alone_does(served: str, pair: TinyPair) -> None:  # noqa: F811
    openai = pytest.importorskip("openai")
    httpx = pytest.importorskip("httpx")
    serve, more = ray.serve, {"max_new_tokens": 12, "max_source_length": 80}
    app = deployment(**folders(pair), name="tiny", replicas=(1, 2), api_key="key", limits=ServeOptions(**more))
    serve.run(app, name="tiny")
    client = openai.OpenAI(base_url=f"{served}/v1", api_key="key", max_retries=0)
    assert next(iter(client.models.list())).id == "tiny"
    expected = alone(pair, TEXTS, budget="high", **more)
    answer = client.completions.create(model="tiny", prompt=TEXTS, extra_body={"budget": "high"})
    assert [choice.text for choice in answer.choices] == [out.texts[0] for out in expected]
    stream = client.completions.create(model="tiny", prompt=TEXTS[0], stream=True, extra_body={"budget": "high"})
    assert "".join(piece.choices[0].text for piece in stream) == expected[0].texts[0]
    with pytest.raises(openai.BadRequestError, match="tokens"):
        client.completions.create(model="tiny", prompt="paket " * 120)
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{served}/v1", api_key="no", max_retries=0).models.list()
    assert httpx.get(f"{served}/health").json()["status"] == "ok"
    assert "kdtw_tokens_total" in httpx.get(f"{served}/metrics").text
    with ThreadPoolExecutor(1) as pool:  # a replica that is told to end answers first
        waits = pool.submit(client.completions.create, model="tiny", prompt=TEXTS * 12)
        time.sleep(0.05)
        serve.delete("tiny")
        assert len(waits.result(60).choices) == 12 * len(TEXTS)


def test_requests_that_wait_make_a_second_replica_that_maps_the_same_packed_files(
    monkeypatch: pytest.MonkeyPatch,
    served: str,
    pair: TinyPair,  # noqa: F811
) -> None:
    httpx = pytest.importorskip("httpx")
    serve, made = sys.modules[deployment.__module__].serve, ray.serve.deployment
    soon = {"upscale_delay_s": 0.5, "downscale_delay_s": 0.5, "metrics_interval_s": 0.2, "look_back_period_s": 1.0}

    def hasty(*told: Any, autoscaling_config: dict[str, Any], **more: Any) -> Any:
        return made(*told, autoscaling_config=autoscaling_config | soon, **more)

    monkeypatch.setattr(serve, "deployment", hasty)
    more = {"max_new_tokens": 64, "max_source_length": 80}
    limits = ServeOptions(batch_size=2, **more)
    ray.serve.run(deployment(**folders(pair), name="tiny", replicas=(1, 2), limits=limits), name="tiny")
    expected = [out.texts[0] for out in alone(pair, TEXTS, budget="light", **more)]

    def replicas() -> list[int]:
        states = ray.serve.status().applications["tiny"].deployments["tiny"].replica_states
        return processes("ServeReplica:tiny") if set(states) == {"RUNNING"} else []

    def until(count: int) -> list[int]:
        deadline = time.monotonic() + 120
        while len(found := replicas()) != count:
            assert time.monotonic() < deadline, found
            time.sleep(0.1)
        return found

    under_load = threading.Event()

    def ask(n: int) -> int:
        asked = 0
        with httpx.Client(base_url=served, timeout=60) as client:
            while not under_load.is_set():
                answer = client.post("/v1/completions", json={"prompt": TEXTS})
                assert [choice["text"] for choice in answer.json()["choices"]] == expected, answer.text
                asked += 1
        return asked

    (first,) = until(1)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, n) for n in range(8)]
        try:
            both = until(2)
            time.sleep(1)
        finally:
            under_load.set()
    assert first in both and all(one.result() > 0 for one in asked)
    mapped = [packed_files(pid) for pid in both]
    assert mapped[0] == mapped[1] and len(mapped[0]) == 2
    until(1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"pair": "debian"}, "unknown pair 'debian'"),
        ({"replicas": 0}, "replicas must be at least 1"),
        ({"replicas": (2, 1)}, "replicas must be at least 2"),
        ({"name": "a b"}, "name must be of letters"),
        ({"api_key": " "}, "the API key is empty"),
    ],
)
def test_what_a_deployment_refuses(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        deployment(**arguments)


def test_a_deployment_is_of_folders_here_and_lets_one_request_wait(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    module, places = sys.modules[deployment.__module__], list[Any]()
    ingress = module.serve.ingress
    builds: list[Any] = []
    monkeypatch.setattr(module.serve, "ingress", lambda build: (builds.append(build), ingress(build))[1])
    monkeypatch.setattr(module, "load_pair_or_folders", lambda roles, *where: places.extend(where) or {}["none"])
    made = deployment(student="student", teacher=["one"], name="tiny", limits=ServeOptions(max_queue=0))
    with pytest.raises(KeyError):
        builds[0]()
    assert places[:4] == [None, str(tmp_path / "student"), [str(tmp_path / "one")], None]
    assert made._bound_deployment._deployment_config.max_queued_requests == 1


# --- kdtw generate --ray ----------------------------------------------------------------------------------


def write_lines(folder: Path, count: int, then: bytes = b"") -> Path:
    """A file in.txt of so many lines, some of them blank, and what comes after them."""
    lines = "".join(f"{row['text']}\n" if row["id"] % 9 else "\n" for row in rows_of(count))
    (folder / "in.txt").write_bytes(lines.encode() + then)
    return folder / "in.txt"


@pytest.fixture
def generate(nodes: Any, kdtw: Any, pair: TinyPair, tmp_path: Path) -> Any:  # noqa: F811
    """`kdtw generate` of in.txt into a file beside it."""

    def run(output: str, *more: str) -> Any:
        files = ["--file", tmp_path / "in.txt", "-o", tmp_path / output]
        return kdtw("generate", *pair.folders, *SMALL, *files, *more)

    return run


def test_generate_gives_the_same_lines_and_says_the_same(generate: Any, tmp_path: Path) -> None:
    write_lines(tmp_path, 50, b"enth\xe4lt\n" + b"paket " * 120 + b"\ndoku")
    for form in ([], ["--jsonl"]):
        more = ["--on-error", "return", "--max-source-length", "80", *form]
        one, two = generate("one", *more), generate("two", *more, "--ray", "auto", "--piece-rows", "7")
        assert one.exit_code == two.exit_code == 0, two.stderr
        assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
        assert one.stderr == two.stderr and two.stderr.count("\n") == 2
        assert not (tmp_path / "two.pieces").exists()


def test_rows_of_json_and_parquet_have_options(nodes: Any, kdtw: Any, pair: TinyPair, tmp_path: Path) -> None:  # noqa: F811
    import pyarrow as pa
    from pyarrow.parquet import write_table

    rows = [{"german": text, "max_new_tokens": [3, None][n % 2], "more": n} for n, text in enumerate(TEXTS * 3)]
    (tmp_path / "in.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    write_table(pa.Table.from_pylist(rows), tmp_path / "in.parquet", row_group_size=4)
    items = [{"text": row["german"], "max_new_tokens": row["max_new_tokens"]} for row in rows]
    expected = [" ".join(out.texts[0].splitlines()) for out in alone(pair, items, budget="light", max_new_tokens=12)]
    for name in ("in.jsonl", "in.parquet"):
        for how in ([], ["--ray", "auto", "--piece-rows", "4"]):
            arguments = ["--file", tmp_path / name, "--column", "german", "-o", tmp_path / "out", *how]
            result = kdtw("generate", *pair.folders, *SMALL, *arguments)
            assert result.exit_code == 0, result.stderr
            assert (tmp_path / "out").read_text(encoding="utf-8").split("\n") == [*expected, ""]
    (tmp_path / "in.jsonl").write_text('{"english": "x"}\n')
    result = kdtw("generate", *pair.folders, "--file", tmp_path / "in.jsonl", "--column", "german")
    assert result.exit_code == 2 and result.stderr == "kdtw: line 1: column 'german' is missing; there are english\n"


def test_a_run_that_is_killed_goes_on_and_decodes_nothing_twice(nodes: Any, pair: TinyPair, tmp_path: Path) -> None:  # noqa: F811
    source, output = write_lines(tmp_path, 3000), tmp_path / "out"
    pieces = tmp_path / "out.pieces"
    command = [sys.executable, "-c", KDTW, "generate", *pair.folders, *SMALL, "--file", str(source)]
    on_ray = [*command, "-o", str(output), "--piece-rows", "20", "--ray", nodes.address]

    def finished() -> dict[str, int]:
        found = {}
        with suppress(FileNotFoundError):  # they go when the run ends
            for file in pieces.glob("0*.json"):
                found[file.name] = file.stat().st_mtime_ns
        return found

    with subprocess.Popen(on_ray, stderr=subprocess.PIPE) as driver:
        deadline = time.monotonic() + 90
        while len(finished()) < 20 and driver.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        driver.kill()
        _, said = driver.communicate()
    before = finished()
    assert 20 <= len(before) < 150 and not output.exists(), said
    refused = subprocess.run([*on_ray, "--max-new-tokens", "11"], capture_output=True, text=True)
    assert refused.returncode == 2 and "options.call.max_new_tokens was 12 there and is 11 now" in refused.stderr

    with subprocess.Popen(on_ray, stderr=subprocess.PIPE) as driver:  # and a process of a task is killed meanwhile
        killed = False
        while driver.poll() is None:
            now = finished()
            if not killed and len(now) > len(before) + 10:
                for pid in processes("ray::decode_piece")[:1]:
                    os.kill(pid, signal.SIGKILL)
                    killed = True
            assert output.exists() or all(now[name] == when for name, when in before.items())
            time.sleep(0.01)
        assert killed and driver.returncode == 0, driver.stderr and driver.stderr.read()
    whole_run = subprocess.run([*command, "-o", str(tmp_path / "one")], capture_output=True)
    assert whole_run.returncode == 0 and output.read_bytes() == (tmp_path / "one").read_bytes()
    assert not pieces.exists()


def test_a_wrong_line_ends_a_run_that_can_go_on_without_it(generate: Any, tmp_path: Path) -> None:
    write_lines(tmp_path, 30, b"enth\xe4lt\n" + b"doku\n" * 30)
    more = ["--ray", "auto", "--piece-rows", "5"]
    result = generate("out", *more, "--on-error", "raise")
    assert result.exit_code == 2 and result.stderr.startswith("kdtw: line 31 is not UTF-8 text"), result.stderr
    assert result.stderr.count("\n") == 1 and "the same command goes on from there" in result.stderr
    for told, status in (([], 2), (["--on-error", "return"], 0)):
        result = generate("out", *more, *told)
        assert result.exit_code == status and (tmp_path / "out").read_text().count("\n") == 61
        assert result.stderr.startswith("kdtw: line 31 is not UTF-8 text") and result.stderr.count("\n") == 1


def test_a_piece_that_kills_its_process_again_and_again_is_named(
    generate: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kdtw_fast.cli import on_ray

    def dies(job: Any, first: int, rows: list[Any]) -> Any:
        if first == 6:
            os.kill(os.getpid(), signal.SIGKILL)
        return [""] * len(rows), []

    monkeypatch.setattr(on_ray, "decode_piece", dies)
    monkeypatch.setattr(on_ray, "RETRIES", 1)
    write_lines(tmp_path, 12)
    result = generate("out", "--piece-rows", "5", "--ray", "auto")
    assert result.exit_code == 2 and result.stderr.count("\n") == 1, result.stderr
    assert "lines 6 to 10: the process that decodes them ended 2 times" in result.stderr


def test_a_local_cluster_listens_on_loopback_alone(pair: TinyPair, tmp_path: Path) -> None:  # noqa: F811
    source, heard = write_lines(tmp_path, 500), set[tuple[str, str]]()
    command = [sys.executable, "-m", "kdtw_fast", "generate", *pair.folders, *SMALL, "--file", str(source)]
    with subprocess.Popen([*command, "-o", str(tmp_path / "out"), "--ray", "local", "--piece-rows", "5"]) as driver:
        while driver.poll() is None:
            with suppress(psutil.NoSuchProcess):
                mine = psutil.Process(driver.pid)
                for process in (mine, *mine.children(recursive=True)):
                    with suppress(psutil.NoSuchProcess):
                        ports = [one.laddr for one in process.net_connections() if one.status == psutil.CONN_LISTEN]
                        heard |= {(process.name(), port.ip.removeprefix("::ffff:")) for port in ports}
            time.sleep(0.1)
    assert driver.returncode == 0
    assert {"gcs_server", "raylet"} <= {name for name, _ in heard} and {ip for _, ip in heard} == {"127.0.0.1"}, heard


def test_an_address_where_nobody_listens_is_told_at_once() -> None:
    from kdtw_fast.cli.on_ray import check_answers

    with pytest.raises(ConnectionError, match="no Ray cluster answers at"):
        check_answers("127.0.0.1:1")
    check_answers("auto")


def test_nothing_is_left_of_a_run_that_finished_nothing(nodes: Any, kdtw: Any, pair: TinyPair, tmp_path: Path) -> None:  # noqa: F811
    more = ["--student", tmp_path, "--file", write_lines(tmp_path, 3), "-o", tmp_path / "out"]
    result = kdtw("generate", *more, "--teacher", pair.folder / "teacher", "--ray", "auto")
    assert result.exit_code == 2 and "config.json" in result.stderr and result.stderr.count("\n") == 1, result.stderr
    assert os.listdir(tmp_path) == ["in.txt"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["a text", "--ray", "auto"], "--ray decodes a --file into an --output; name both"),
        (["--piece-rows", "5", "a text"], "--piece-rows goes with --ray"),
        (["--column", "german", "a text"], "--column=german is of a file's rows"),
    ],
)
def test_what_generate_refuses(kdtw: Any, arguments: list[str], said: str) -> None:  # noqa: F811
    result = kdtw("generate", *arguments)
    assert result.exit_code == 2 and said in result.stderr
