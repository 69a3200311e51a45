"""The figures' geometry and colours: what is written can be read, touches nothing, and explains every mark."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.colors import to_rgb

from bench.record_tables import recorded_panels
from bench.regions import RESULTS, read_region
from kdtw_fast.comparison.figures import (
    FONT,
    FRAME,
    NIGHT,
    NOISY,
    PAGE,
    SETTINGS,
    STYLES,
    WIDTH,
    Mark,
    Panel,
    latency_panels,
    make_figure,
)
from kdtw_fast.comparison.quality import Interval

PANELS = recorded_panels(read_region(RESULTS, "points"))


@pytest.fixture(scope="module", params=PANELS)
def figure(request: pytest.FixtureRequest) -> Iterator[Any]:
    """A pair's figure from its recorded points, as the documentation shows it."""
    with mpl.rc_context({**mpl.rcParamsDefault, **SETTINGS}):
        figure = make_figure(PANELS[request.param])
        figure.draw_without_rendering()
        yield figure, PANELS[request.param]


def labels_of(axes: Any) -> list[Any]:
    return [text for text in axes.texts if getattr(text, "arrow_patch", None) is not None]


def check_labels(axes: Any, panel: Panel) -> None:
    """Every text lies inside, on no mark and no other text, and its line crosses neither."""
    from matplotlib.text import Text

    point = axes.figure.dpi / 72
    places = axes.transData.transform([(mark.x.value, mark.y.value) for mark in panel.marks])
    places = [place for place in places if axes.bbox.contains(*place)]
    boxes = {text: Text.get_window_extent(text) for text in axes.texts}
    for text, box in boxes.items():
        assert axes.bbox.fully_containsx(box.x0) and axes.bbox.fully_containsx(box.x1), text
        assert axes.bbox.fully_containsy(box.y0) and axes.bbox.fully_containsy(box.y1), text
        assert not any(box.padded(2 * point).contains(*place) for place in places), text
        assert not any(box.overlaps(other) for name, other in boxes.items() if name is not text), text
    for text in labels_of(axes):
        mark = axes.transData.transform(text.xy)
        drawn = text.arrow_patch  # what is drawn, not what it should be
        ends = drawn.get_transform().transform(drawn.get_path().vertices)
        line = ends[0] + np.linspace(0, 1, 50)[:, None] * (ends[-1] - ends[0])
        assert np.hypot(*(ends[-1] - mark)) < 7 * point, text
        for place in places:
            if np.hypot(*(place - mark)) > 4.5 * point:  # not its own
                assert np.hypot(*(line - place).T).min() > 3.5 * point, text
        for name, box in boxes.items():
            assert name is text or not any(box.contains(*place) for place in line), (text, name)


def test_labels_touch_no_point_no_other_label_and_no_edge(figure) -> None:
    drawn, panels = figure
    for axes, panel in zip(drawn.axes, panels, strict=True):
        check_labels(axes, panel)
    named = {text.get_text() for axes in drawn.axes for text in axes.texts}
    assert named >= {mark.text for panel in panels for mark in panel.marks if mark.text}


def test_a_heap_of_points_is_labelled_beside_it() -> None:
    at = [(0.1, 30.0), (0.11, 30.2), (0.12, 30.1), (0.12, 30.4), (0.3, 40.0)]
    marks = [Mark("training-wheels", Interval(x, x, x), Interval(y, y, y), f"budget {y:g}") for x, y in at]
    panel = Panel("a heap", "x", "y", marks)
    with mpl.rc_context({**mpl.rcParamsDefault, **SETTINGS}):
        drawn = make_figure([panel])
        drawn.draw_without_rendering()
        assert len(labels_of(drawn.axes[0])) == len(at)
        check_labels(drawn.axes[0], panel)


def test_letters_can_be_read_on_a_phone(figure) -> None:
    from matplotlib.text import Text

    drawn, _ = figure
    pixels = 358 / (72 * WIDTH)  # of a point, where a page of 390 pixels leaves the figure 358
    sizes = [text.get_fontsize() for text in drawn.findobj(Text) if text.get_text().strip() and text.get_visible()]
    assert min(sizes) * pixels >= 8 and FONT * pixels >= 9
    for box in (drawn.legends[0].get_window_extent(), *(axes.get_tightbbox() for axes in drawn.axes)):
        assert box.x0 >= 0 and box.x1 <= drawn.bbox.x1  # nothing is cut


def test_every_mark_and_line_is_explained(figure) -> None:
    drawn, panels = figure
    told = [text.get_text() for text in drawn.legends[0].get_texts()]
    assert {STYLES[mark.group].label for panel in panels for mark in panel.marks} | {FRAME} <= set(told)
    assert NOISY not in told and len(told) == len(set(told))


def test_outside_systems_and_the_frame_stand_on_a_logarithmic_axis(figure) -> None:
    drawn, (whole, near) = figure
    assert {mark.group for mark in whole.marks} == STYLES.keys()
    assert [axes.get_xscale() for axes in drawn.axes] == ["log", "linear"]
    assert whole.frame == near.limits == (*drawn.axes[1].get_xlim(), *drawn.axes[1].get_ylim())


def test_latencies_of_few_turns_are_hollow() -> None:
    def exact(value: float) -> Interval:
        return Interval(value, value, value)

    marks = [Mark("bild", Interval(x, x - 0.1, x + 0.2), exact(30 + x)) for x in (1.0, 2.0, 3.0, 4.0)]
    for noisy in (False, True):
        panels = latency_panels("t", "ROUGE-2", [replace(mark, noisy=noisy) for mark in marks])
        with mpl.rc_context({**mpl.rcParamsDefault, **SETTINGS}):
            drawn = make_figure(panels)
        hollow = [line.get_markerfacecolor() == "none" for line in drawn.axes[1].lines if line.get_marker() == "^"]
        assert hollow == [noisy]
        assert (NOISY in [text.get_text() for text in drawn.legends[0].get_texts()]) == noisy
        assert [mark.x.low < mark.x.value for mark in panels[0].marks] == [noisy] * 4


def luminance(colour: str) -> float:
    linear = [x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in to_rgb(colour)]
    return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))


def contrast(one: str, other: str) -> float:
    """WCAG's ratio."""
    low, high = sorted([luminance(one), luminance(other)])
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("group", STYLES)
def test_colours_stand_out_by_day_and_by_night(group: str) -> None:
    style = STYLES[group]
    assert contrast(style.colour, PAGE) >= 3 and contrast(style.night, NIGHT) >= 4.5
    if group in {mark.group for panels in PANELS.values() for panel in panels for mark in panel.marks if mark.text}:
        assert contrast(style.colour, PAGE) >= 4.5  # words
