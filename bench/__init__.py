"""Benchmarks: `pytest bench --benchmark-json=FILE` measures, `python -m bench.table FILE` writes the README's tables."""
