"""Texts beside the marks of a plot, each where it covers nothing, with a thin line to its mark.

Knows matplotlib's axes and nothing of a comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np


class Label(NamedTuple):
    """A text and the place, in the data's numbers, that it belongs to."""

    text: str
    x: float
    y: float
    colour: str


RADII = (14, 20, 28, 38, 50, 64, 80, 98)  # points from a mark to the near end of its text
ANGLES = 24
MARK = 4.5  # points: half of a mark's width, as wide as the widest


def write_labels(axes: Any, labels: Sequence[Label], marks: Sequence[tuple[float, float]], size: float) -> None:
    """Writes each label where it covers no mark, line, frame or other label, and where its line crosses none either.

    Args:
        axes: where all else is drawn and settled (``figure.draw_without_rendering()``).
        labels: what to write, the first first.
        marks: all marks, in the data's numbers.
        size: of the letters, in points.
    """
    from matplotlib.text import Text

    scale = axes.figure.dpi / 72  # pixels of a point
    at = np.reshape(axes.transData.transform(np.reshape(marks, (-1, 2))), (-1, 2))
    radius = MARK * scale
    taken = [_boxes(at, 2.6 * radius, 2.6 * radius)]
    circles = np.column_stack([at, np.full(len(at), radius)])  # that a label's line keeps out of
    for drawn in (*axes.lines, *axes.patches):
        if drawn.get_linestyle() not in ("None", ""):
            ends = drawn.get_transform().transform(drawn.get_path().vertices)
            taken.append(_boxes(_along(ends, 3 * scale), 4 * scale, 4 * scale))
    for bars in axes.collections:
        ends = [path.vertices for path in bars.get_paths() if len(path.vertices)]
        taken += [_boxes(_along(axes.transData.transform(e), 3 * scale), 4 * scale, 4 * scale) for e in ends]
    taken += [np.array([Text.get_window_extent(text).extents]) for text in axes.texts]
    room = np.array([axes.get_window_extent().padded(-3 * scale).extents])

    # Round the mark, ever farther; to the upper left first, where a rising line leaves room.
    steps = np.arange(ANGLES)
    angles = 0.75 * np.pi + (steps + 1) // 2 * (-1) ** steps * 2 * np.pi / ANGLES
    near = np.repeat(RADII, ANGLES)
    directions = np.tile(np.column_stack([np.cos(angles), np.sin(angles)]), (len(RADII), 1))
    for label in labels:
        text = axes.text(0, 0, label.text, fontsize=size)
        own = text.get_window_extent()
        text.remove()
        extent = np.array([own.width, own.height])
        width, height = extent + np.array([4, 2]) * scale
        mark = axes.transData.transform((label.x, label.y))
        asides = (near[:, None] * scale + extent / 2) * directions
        here = _boxes(mark + asides, width, height)
        outside = width * height - _shared(here, room)[:, 0]
        covered = _shared(here, np.concatenate(taken)).sum(1) + 4 * outside
        others = circles[np.hypot(*(circles[:, :2] - mark).T) > circles[:, 2]]
        starts = np.clip(mark, mark + asides - extent / 2, mark + asides + extent / 2)  # where its line begins
        crossings = (_distances(others[:, :2], starts, mark) < others[:, 2]).sum(1)
        best = int(np.argmin(100 * covered / (width * height) + 50 * crossings + near / 60))
        axes.annotate(
            label.text,
            (label.x, label.y),
            xytext=asides[best] / scale,
            textcoords="offset points",
            ha="center",
            va="center",
            fontsize=size,
            color=label.colour,
            arrowprops={
                "arrowstyle": "-",
                "lw": 0.7,
                "color": label.colour,
                "shrinkA": 1,
                "shrinkB": 5,
                "relpos": np.clip(0.5 - asides[best] / extent, 0, 1),  # from the text's nearest place, not its middle
            },
        )
        taken += [
            here[best : best + 1],
            _boxes(_along(np.array([starts[best], mark]), 3 * scale), 3 * scale, 3 * scale),
        ]
        parts = mark + asides[best] + np.outer([-0.4, 0.0, 0.4], [width, 0.0])
        circles = np.concatenate([circles, np.column_stack([parts, np.full(3, height / 2)])])


def _boxes(centres: Any, width: float, height: float) -> Any:
    """[N, 4]: left, bottom, right, top."""
    half = np.array([width, height]) / 2
    return np.concatenate([centres - half, centres + half], axis=1)


def _shared(a: Any, b: Any) -> Any:
    """Areas [A, B] that boxes have in common."""
    low, high = np.maximum(a[:, None, :2], b[:, :2]), np.minimum(a[:, None, 2:], b[:, 2:])
    return np.clip(high - low, 0, None).prod(2)


def _along(ends: Any, step: float) -> Any:
    """Places [N, 2] along a line through these, in pixels, no farther apart than a step."""
    places = [ends[:1]]
    for a, b in pairwise(ends):
        count = min(1000, max(1, int(np.ceil(np.hypot(*(b - a)) / step))))
        places.append(a + np.linspace(0, 1, count + 1)[1:, None] * (b - a))
    return np.concatenate(places)


def _distances(points: Any, starts: Any, end: Any) -> Any:
    """[S, P]: how far points [P, 2] lie from the lines between starts [S, 2] and the end."""
    towards = end - starts
    squares = np.maximum((towards**2).sum(1), 1e-12)
    along = np.clip(((points - starts[:, None]) * towards[:, None]).sum(2) / squares[:, None], 0, 1)
    return np.hypot(*np.moveaxis(starts[:, None] + along[..., None] * towards[:, None] - points, 2, 0))
