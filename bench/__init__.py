"""Benchmarks: `pytest bench --benchmark-json=FILE` measures, `python -m bench.table` writes the README's tables."""
