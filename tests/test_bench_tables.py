"""The measured parts of README.md and docs/: markers, and what must never get between them."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.record_tables import points_text, read_tables, recorded_panels, summary_text
from bench.regions import BENCHMARKS, README, RESULTS, read_region, split, write_region
from bench.speed_tables import speed_tables
from kdtw_fast.comparison.figures import STYLES
from kdtw_fast.comparison.records import Outputs, Sentence, Timing, read, to_line
from kdtw_fast.tables import markdown_table


def test_a_region_is_what_stands_between_its_markers(tmp_path: Path) -> None:
    file = tmp_path / "a.md"
    file.write_text("a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb\n", encoding="utf-8")
    for _ in range(2):
        write_region(file, "x", "new\n")
        assert file.read_text(encoding="utf-8") == "a\n<!-- x:begin -->\n\nnew\n\n<!-- x:end -->\nb\n"
    assert read_region(file, "x") == "new"


@pytest.mark.parametrize("text", ["", "<!-- x:begin -->", "<!-- x:end --><!-- x:begin -->"])
def test_a_file_without_its_markers_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="x:begin"):
        split(text, "x")


def test_tiny_results_never_reach_a_table() -> None:
    with pytest.raises(ValueError, match="--tiny"):
        speed_tables({"machine_info": {"kdtw": {"tiny": True}}, "benchmarks": []})


@pytest.mark.parametrize(
    ("file", "regions"),
    [
        (README, ["summary"]),
        (RESULTS, ["points", "examples", "claims", "one-thread", "ablation", "seeds", "quantisation"]),
        (BENCHMARKS, ["bench", "training"]),
    ],
)
def test_every_measured_part_has_its_place(file: Path, regions: list[str]) -> None:
    assert all(read_region(file, region) for region in regions)


def test_the_readme_holds_the_numbers_of_the_results() -> None:
    points, one_thread = (read_region(RESULTS, region) for region in ("points", "one-thread"))
    assert read_region(README, "summary") == summary_text(points, one_thread)


def test_tables_are_read_as_they_were_written() -> None:
    text = "\n".join(["**one**", *markdown_table(["a", "b"], [["x", "1"]]), "more", *markdown_table(["c"], [["y"]])])
    assert read_tables(text) == {"one": [{"a": "x", "b": "1"}, {"c": "y"}]}


def test_the_comparison_comes_from_its_records(tmp_path: Path) -> None:
    machine = {"processor": "Some CPU", "cores": 2, "build": {"simd": "avx2"}}
    provenance = {"machine": machine, "command": "kdtw compare p", "time": "2026-01-02T03:04:05+00:00"}
    sentence = Sentence(0, "ein Haus", "a house", "a house", ["a", "house"], ["student"] * 2, 0, 2, 0, 0)
    alone = Outputs("p/x", "p", "t", "student", "x", {}, "student alone", None, {}, [sentence], provenance)
    path = tmp_path / "results.jsonl"
    path.write_text(to_line(alone), encoding="utf-8")
    with pytest.raises(ValueError, match="no timings yet"):
        points_text(read(path))
    timing = Timing("p/x", 0, 1, 1, 1, [0], [0.5], [2], [2], [], {}, provenance)
    path.write_text(to_line(alone) + to_line(timing), encoding="utf-8")
    text = points_text(read(path))
    assert "Some CPU, 2 cores, avx2; `kdtw compare p` on 2026-01-02." in text
    assert "| student alone |" in text and "250.00 (250.00–250.00) | 4 |" in text


def test_tables_align_text_left_and_numbers_right() -> None:
    assert markdown_table(["a", "b"], [["x", "1"]]) == ["| a | b |", "|---|---:|", "| x | 1 |"]


def results(*benchmarks: tuple[dict[str, object], float]) -> dict[str, object]:
    """pytest-benchmark's JSON as far as the tables read it."""
    kdtw = {"tiny": False, "cores": 2, "simd": "avx2", "versions": {"kdtw_fast": "1"}}
    return {
        "machine_info": {"kdtw": kdtw, "cpu": {}, "system": "Linux"},
        "datetime": "2026-01-02T03:04",
        "benchmarks": [{"extra_info": info, "stats": {"median": median}} for info, median in benchmarks],
    }


def one_model(system: str, dtype: str, threads: int, median: float) -> tuple[dict[str, object], float]:
    info = {"kind": "one model", "system": system, "dtype": dtype, "threads": threads, "new_tokens": 10, "shape": "s"}
    return info | {"gb_per_s": 6.0, "read_gb_per_s": 8.0, "bytes_per_token": 2_000_000}, median


def test_ratios_stand_beside_their_marks() -> None:
    text = speed_tables(
        results(
            one_model("kdtw_fast", "int8", 1, 0.02),
            one_model("CTranslate2 int8", "int8", 1, 0.05),
            one_model("kdtw_fast", "int8", 2, 0.01),
            one_model("CTranslate2 int8", "int8", 2, 0.02),
        )
    )
    assert "| kdtw_fast, int8 | 1 | 2.00 | 500 | 75 % (≥ 60 %) |  |" in text
    assert "| CTranslate2 int8 | 1 | 5.00 | 200 |  | 2.50× (≥ 2.5×) |" in text
    assert "Two threads against one (≥ 1×): int8 2.00×." in text


def test_reading_several_tokens_is_shown_against_a_step() -> None:
    def one(kind: str, tokens: int, median: float) -> tuple[dict[str, object], float]:
        return {"kind": kind, "dtype": "int8", "tokens": tokens, "threads": 1}, median

    passes = [one("catch-up", n, 0.001 * n**0.5) for n in (1, 4, 8)] + [
        one("verification", n, 0.001 * n) for n in (1, 4, 8)
    ]
    text = speed_tables(results(*passes))
    assert "| catch-up, int8 | 1.00 | 2.00× (≤ 1.5×) | 2.83× (≤ 2.2×) |" in text
    assert "| verification, int8 | 1.00 | 4.00× | 8.00× |" in text


def test_hugging_face_is_held_against_itself_and_the_best_peer_bears_the_mark() -> None:
    def method(name: str, median: float, tokens: int = 10, **more: float) -> tuple[dict[str, object], float]:
        info = {"kind": "large teacher", "method": name, "student": None, "new_tokens": tokens, "dtype": "int8"}
        return info | {"teacher": "t", "threads": 1} | more, median

    text = speed_tables(
        results(
            method("teacher alone", 1.0),
            method("speculative, K = 5", 0.5, shares={"encode": 0.2, "student": 0.5, "teacher": 0.3}),
            method("Training Wheels", 0.25, shares={"encode": 0.4, "student": 0.25, "teacher": 0.35}),
            method("Hugging Face fp32, teacher alone", 2.0, 4),
            method("Hugging Face fp32, assisted", 1.0, 4),
        )
    )
    assert "| speculative, K = 5 | – | 10 | 50.00 | 10.00 | 25.00 | 15.00 | 2.00× (≥ 1.5×) |" in text
    assert "| Hugging Face fp32, assisted | – | 4 | 250.00 |  |  |  | 2.00× |" in text
    assert "Training Wheels at 6× may take 16.67 ms per token; encoders and teacher's passes alone take 18.75." in text

    def batch(system: str, setting: str, median: float) -> tuple[dict[str, object], float]:
        info = {"kind": "batch", "system": system, "setting": setting, "dtype": "fp32", "rows": 2, "tokens": 20}
        return info, median

    text = speed_tables(
        results(batch("kdtw_fast", "x", 1.0), batch("CTranslate2", "a", 4.0), batch("CTranslate2", "b", 2.0))
    )
    assert "| CTranslate2, fp32, a | 5 | 4.00× |" in text and "| CTranslate2, fp32, b | 10 | 2.00× (≥ 1.8×) |" in text


def test_other_families_are_held_against_the_fastest_other() -> None:
    def one(system: str, kind: str, reading: float, step: float) -> tuple[dict[str, object], float]:
        info = {"kind": "language model", "model": "m", "group": "int8", "system": system, "format": kind}
        info |= {"threads": 1, "prompt_tokens": 512, "new_tokens": 33, "reading": reading, "step": step}
        info |= {"reading_of_roof": 1.5, "step_of_roof": 0.9, "read_gb_per_s": 20.0, "gemm_gflop_per_s": 100.0}
        return info | {"llama_cpp": "AVX2"}, reading + 32 * step

    text = speed_tables(
        results(
            one("kdtw_fast", "int8", 0.4, 0.01),
            one("llama.cpp", "Q8_0", 0.8, 0.014),
            one("CTranslate2", "int8", 0.5, 0.02),
        )
    )
    assert "| kdtw_fast, int8 | 1 | 400 | 150 % |  | 10.00 | 90 % |  |" in text
    assert "| llama.cpp, Q8_0 | 1 | 800 | 150 % | 2.00× | 14.00 | 90 % | 1.40× (≥ 1.3×) |" in text
    assert "| CTranslate2, int8 | 1 | 500 | 150 % | 1.25× (≥ 1×) | 20.00 | 90 % | 2.00× |" in text
    assert "built for AVX2" in text and "20.0 GB/s and 100 GFLOP/s with 1 thread)" in text

    def encoded(system: str, threads: int, workers: int, seconds: float) -> tuple[dict[str, object], float]:
        info = {"kind": "encoded model", "model": "m", "dtype": "fp32", "rows": 32, "system": system, "tokens": 1024}
        return info | {"threads": threads, "workers": workers, "source_tokens": 64, "of_roof": 0.5}, seconds

    text = speed_tables(
        results(
            encoded("kdtw_fast", 1, 1, 4.0),
            encoded("kdtw_fast", 2, 1, 2.0),
            encoded("CTranslate2", 1, 1, 8.0),
            encoded("CTranslate2", 2, 1, 5.0),
            encoded("CTranslate2", 1, 2, 3.0),
        )
    )
    assert "| kdtw_fast, 2 threads | 32 | 2000 | 512 | 50 % |  |" in text
    assert "| CTranslate2, 1 thread | 32 | 8000 | 128 | 50 % | 2.00× (≥ 1.3×) |" in text
    assert "| CTranslate2, 2 threads | 32 | 5000 | 205 | 50 % | 2.50× |" in text
    assert "| CTranslate2, 2 workers | 32 | 3000 | 341 | 50 % | 1.50× (≥ 1.3×) |" in text


def test_streams_stand_in_one_line_per_method_and_batch() -> None:
    def one(contestant: str, rows: int, median: float) -> tuple[dict[str, object], float]:
        info = {"kind": "stream", "method": "m", "student": "s", "teacher": "t", "threads": 2, "tokens": 100}
        return info | {"contestant": contestant, "rows": rows}, median

    text = speed_tables(results(one("half", 8, 1.0), one("all", 8, 2.0), one("half", 16, 0.5), one("all", 16, 0.25)))
    assert "| method | rows | half | all |" in text
    assert "| m | 8 | 100 | 50 |" in text and "| m | 16 | 200 | 400 |" in text


def test_training_stands_beside_its_marks() -> None:
    rates = {("both", "kdtw_fast"): 900.0}
    rates |= {("student", "kdtw_fast"): 800.0, ("student", "HF"): 200.0}
    rates |= {("teacher", "kdtw_fast"): 700.0, ("teacher", "HF"): 100.0}
    rollouts = [
        ({"kind": "rollout", "models": models, "system": system, "tokens_per_second": rate}, 1.0)
        for (models, system), rate in rates.items()
    ]
    parts = [({"kind": "phase 2", "part": part}, s) for part, s in (("batch", 2.0), ("renewal", 0.01))]
    text = speed_tables(results(*rollouts, *parts))
    assert "| rollouts | kdtw_fast | HF | faster by |" in text
    assert "| student and teacher (phase 2) | 900 | – | – |" in text
    assert "| student alone (GKD) | 800 | 200 | 4.0× (≥ 5×) |" in text
    assert "both models together write 4.5 times HF's of the student and 9.0 times HF's of the teacher alone." in text
    assert "takes 2.00 s, renewing the decoder's weights 10.0 ms of it: 0.50 % (≤ 2 %)" in text


def test_results_without_a_table_are_refused() -> None:
    with pytest.raises(ValueError, match="kind 'new', for which there is no table"):
        speed_tables(results(({"kind": "new"}, 1.0)))


def test_of_several_runs_the_later_part_counts() -> None:
    def method(median: float) -> tuple[dict[str, object], float]:
        info = {"kind": "large teacher", "method": "teacher alone", "student": None, "new_tokens": 10, "dtype": "int8"}
        return info | {"teacher": "t", "threads": 1}, median

    first, second = results(method(1.0)), results(method(2.0)) | {"datetime": "2027-02-03T00:00"}
    text = speed_tables(first, second)
    assert "`make bench` on 2026-01-02 and 2027-02-03, in 2 runs" in text
    assert "| 200.00 |" in text and "| 100.00 |" not in text
    assert "| 100.00 |" in speed_tables(first, results())
    second["machine_info"] = {"kdtw": {"tiny": False, "cores": 3}}
    with pytest.raises(ValueError, match="different machines or builds"):
        speed_tables(first, second)


def test_the_figure_has_the_points_of_the_table() -> None:
    points = read_region(RESULTS, "points")
    recorded = recorded_panels(points)
    assert recorded.keys() == {"debian-de-en", "debian-synopsis"}
    for pair, (whole, near) in recorded.items():
        rows = [row for title, table in read_tables(points).items() if title.startswith(pair) for row in table]
        judged = [row for row in rows if row["ROUGE-2"] != "–"]
        assert len(whole.marks) == len(near.marks) == len(judged) == len(rows) - 1  # assisted generation is timed only
        assert {mark.group for mark in whole.marks} == STYLES.keys()
        (light,) = (mark for mark in near.marks if mark.text == "light")
        (row,) = (row for row in rows if row["method"] == "KDTW, light")
        assert row["ms/token"].startswith(f"{light.x.value:.2f}") and row["ROUGE-2"].startswith(f"{light.y.value:g}")
