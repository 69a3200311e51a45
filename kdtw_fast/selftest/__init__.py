"""What `kdtw selftest` does: a device's operations and whole decodes against their oracles, and what a token takes.

checks.py says what a check is, operations.py and decodes.py are the checks, tiny.py their models, agreement.py how an
output is compared with the oracle's, run.py runs them. The tests run the same checks. first_day/ is for minutes on a
machine with a GPU. Nothing of the core depends on this.
"""
