"""The README's measured parts: markers, and what must never get between them."""

from __future__ import annotations

import pytest

from bench.table import README, bench_markdown, fill, markdown_table


def test_fill_replaces_what_stands_between_the_markers() -> None:
    text = "a\n<!-- x:begin -->\nold\n<!-- x:end -->\nb\n"
    once = fill(text, "x", "new\n")
    assert once == "a\n<!-- x:begin -->\n\nnew\n\n<!-- x:end -->\nb\n"
    assert fill(once, "x", "new") == once


@pytest.mark.parametrize("text", ["", "<!-- x:begin -->", "<!-- x:end --><!-- x:begin -->"])
def test_fill_refuses_a_file_without_its_markers(text: str) -> None:
    with pytest.raises(ValueError, match="x:begin"):
        fill(text, "x", "new")


def test_tiny_results_never_reach_the_readme() -> None:
    with pytest.raises(ValueError, match="--tiny"):
        bench_markdown({"machine_info": {"kdtw": {"tiny": True}}, "benchmarks": []})


def test_the_readme_has_both_regions() -> None:
    readme = README.read_text(encoding="utf-8")
    assert fill(fill(readme, "bench", "x"), "demo", "y") != readme


def test_tables_align_text_left_and_numbers_right() -> None:
    assert markdown_table(["a", "b"], [["x", "1"]]) == ["| a | b |", "|---|---:|", "| x | 1 |"]
