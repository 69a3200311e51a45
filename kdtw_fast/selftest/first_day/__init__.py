"""The first minutes on a machine with a GPU: every check and every measurement by its worth, each in its own process.

    python -m kdtw_fast.selftest.first_day --out DIR --minutes 12

It is started from a source tree and needs no network. The files that __main__ loads are plain Python: they work
before the core is built and, started by their path, where PyTorch is missing.
"""
