"""The comparison of all methods: plan, measurement, raw records, summary, figures and table (`kdtw compare`).

May depend on everything in kdtw_fast but the CLI, and on kdtw_fast.training; nothing of the core depends on it.
"""
