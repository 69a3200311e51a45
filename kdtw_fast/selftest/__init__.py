"""What `kdtw selftest` does: a device's operations and whole decodes against their oracles, and what a token takes.

checks.py says what a check is, operations.py and decodes.py are the checks, tiny.py their models, agreement.py how an
output is compared with the oracle's. The tests run the same checks. Nothing of the core depends on this.
"""

from kdtw_fast.selftest.run import CHECKS, Item, run_checks

__all__ = ["CHECKS", "Item", "run_checks"]
