"""Decoding on more than one machine: a stage of a Ray Data pipeline and a Ray Serve deployment.

Needs the extra "ray" (ray[data,serve]). Nothing here opens a port or sends statistics; Ray's own settings hold.
"""

from __future__ import annotations

from kdtw_fast.extras import require

require("decoding on Ray", "kdtw_fast.ray")

from kdtw_fast.ray.deployment import deployment  # noqa: E402
from kdtw_fast.ray.stage import Decode, decode  # noqa: E402

__all__ = ["Decode", "decode", "deployment"]
