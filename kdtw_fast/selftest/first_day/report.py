"""A run's report in Markdown: what could be found out, in tables; what could not, and what it would have needed."""

from __future__ import annotations

from typing import Any


def markdown(run: dict[str, Any]) -> str:
    """The report of what report.json holds."""
    steps = run["steps"]
    lines = ["# First day on a device", ""]
    lines.append(f"{run['started']}, {run['seconds']:.0f} s of {60 * run['minutes']:.0f} s.")
    if run["tiny"]:
        lines.append("Tiny sizes: this shows that the steps run. **No number here is a measurement.**")
    if not run["finished"]:
        lines.append("**The run did not come to its end**, or is not there yet.")
    lines += ["", "| step | | s | |", "|---|---|---:|---|"]
    for step in steps:
        said = _cell(step.get("said") or step["what"])
        lines.append(f"| {step['name']} | {step['status']} | {step.get('seconds', 0.0):.0f} | {said} |")
    for step in steps:
        results = [result for result in step["results"] if "needs" not in result]
        log = step.get("log", [])
        if not results and not log:
            continue
        lines += ["", f"## {step['name']}", "", step["what"][0].upper() + step["what"][1:] + "."]
        lines += _tables(results)
        if log:
            lines += ["", "```", *(line.replace("```", "'''") for line in log), "```"]
    return "\n".join(lines)


def _tables(results: list[dict[str, Any]]) -> list[str]:
    """A table of each run of results with the same keys; checks that passed are only counted."""
    lines: list[str] = []
    passed = [result for result in results if result.get("check") and not result.get("failure")]
    if passed:
        close = [result for result in passed if result.get("permitted")]
        worst = max(close, key=lambda result: result["error"] / result["permitted"], default=None)
        lines += ["", f"{len(passed)} checks passed."]
        if worst is not None:
            lines[-1] += (
                f" Nearest to its limit: {worst['check']}, {worst['error']:.1e} of {worst['permitted']:.1e} permitted."
            )
    columns: list[str] | None = None
    for result in results:
        if result.get("check") and not result.get("failure"):
            continue
        if list(result) != columns:
            columns = list(result)
            numbers = [isinstance(value, int | float) and not isinstance(value, bool) for value in result.values()]
            lines += ["", "| " + " | ".join(map(_cell, columns)) + " |"]
            lines.append("|" + "|".join("---:" if number else "---" for number in numbers) + "|")
        lines.append("| " + " | ".join(map(_cell, result.values())) + " |")
    return lines


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "\\|").replace("\n", " ")[:400]
