"""Benchmarks: `pytest bench` measures; `bench.speed_tables` and `bench.record_tables` write the tables of docs/."""
