"""A Ray cluster of several nodes in this machine, on loopback, for tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_DISABLE_IMPORT_WARNING": "1",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

# A node that has gone is missed after two seconds instead of ten.
SOON = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4}

# What runs `kdtw` in a process of its own that finds this cluster: Ray replaces loopback by the machine's address.
KDTW = "from ray._private import ray_constants as c; c.ENABLE_RAY_CLUSTER = False; import kdtw_fast.cli as k; k.main()"


@contextmanager
def cluster(nodes: int = 3, cpus: int = 1) -> Iterator[Any]:
    """A cluster whose first node has the head, to which this process is connected."""
    os.environ.update(QUIET)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    import ray
    from ray._private import ray_constants
    from ray.cluster_utils import Cluster

    ray_constants.ENABLE_RAY_CLUSTER = False  # otherwise nodes of Cluster listen on the address of the machine

    node = {"num_cpus": cpus, "object_store_memory": 80 * 2**20}
    made = Cluster(initialize_head=True, head_node_args=node | {"include_dashboard": False, "_system_config": SOON})
    try:
        for _ in range(nodes - 1):
            made.add_node(**node)
        ray.init(address=made.address, logging_level="ERROR", log_to_driver=False)
        yield made
    finally:
        ray.shutdown()
        made.shutdown()
