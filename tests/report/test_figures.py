"""Figures are well-formed SVG inside their view box, whatever the numbers."""

import math
import re
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from humpback_ray.report import figures, ratings, training
from humpback_ray.report.ratings import Ratings
from humpback_ray.report.training import ModelRow
from humpback_ray.stages.manifest import Manifest

RATINGS = Ratings(1, 10, (), tuple([0] * 14 + [7, 0, 3]), (0, 0, 0, 0, 10), 4.5, 5.0, 4.6, 4.5, 10)


def model(losses: list[float], name: str = "m0") -> ModelRow:
    points = tuple(enumerate(losses, start=1))
    return ModelRow(name, None, None, len(losses), points, None, None, None, 1.0)


def inside(svg: str) -> ElementTree.Element:
    """Parse a figure and check that no coordinate leaves its view box."""
    root = ElementTree.fromstring(svg)
    _, _, width, height = map(float, root.attrib["viewBox"].split())
    for element in root.iter():
        for name, bound in (("x", width), ("x1", width), ("x2", width), ("y", height), ("y1", height), ("y2", height)):
            if name in element.attrib:
                assert -0.1 <= float(element.attrib[name]) <= bound + 0.1, (element.tag, element.attrib)
        for place in re.findall(r"[-\d.]+,[-\d.]+", element.attrib.get("points", "")):
            x, y = map(float, place.split(","))
            assert -0.1 <= x <= width + 0.1
            assert -0.1 <= y <= height + 0.1
    return root


def test_a_histogram_has_a_bar_per_filled_bin_and_the_threshold() -> None:
    root = inside(figures.histogram(RATINGS))
    assert [element.attrib["class"] for element in root.iter("rect")] == ["bar kept", "bar kept"]
    assert any(element.attrib["class"] == "threshold" for element in root.iter("line"))


def test_bars_below_the_threshold_are_not_drawn_as_kept() -> None:
    low = replace(RATINGS, bins=(5, *[0] * 12, 4, 7, 0, 3))
    kinds = [element.attrib["class"] for element in inside(figures.histogram(low)).iter("rect")]
    assert kinds == ["bar", "bar", "bar kept", "bar kept"]


def test_a_round_without_a_single_score_still_has_a_figure() -> None:
    empty = Ratings(1, 0, (), tuple([0] * 17), (0,) * 5, None, None, None, None, None)
    assert not list(inside(figures.histogram(empty)).iter("rect"))


@given(st.lists(st.floats(0, 1e4), min_size=1, max_size=900))
def test_loss_curves_of_any_length_stay_in_their_frame(losses: list[float]) -> None:
    inside(figures.loss_curve(model(losses)))


def test_nan_losses_are_left_out_and_without_losses_nothing_is_drawn() -> None:
    inside(figures.loss_curve(model([2.0, math.nan, 1.0, math.inf])))
    assert figures.loss_curve(model([])) == ""
    assert figures.loss_curve(model([math.nan])) == ""


@given(st.lists(st.floats(0, 100), min_size=1, max_size=5000))
def test_thinning_keeps_the_ends_and_the_bound(losses: list[float]) -> None:
    points = list(enumerate(losses, start=1))
    thin = figures.thin(points)
    assert len(thin) <= figures.POINTS
    assert thin[0] == points[0]
    assert thin[-1][0] == points[-1][0]


def test_smoothing_leaves_a_straight_line_straight() -> None:
    line = [(float(step), 3.0 - 0.01 * step) for step in range(100)]
    for (_, smoothed), (_, plain) in zip(figures.smooth(line), line, strict=True):
        assert math.isclose(smoothed, plain)


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_and_within_the_range(low: float, span: float) -> None:
    found = figures.ticks(low, low + span)
    assert len(found) <= 7
    assert all(low - span * 1e-3 <= tick <= low + span * 1.001 for tick in found)


def test_a_hostile_model_name_is_escaped_in_the_label() -> None:
    root = inside(figures.loss_curve(model([2.0, 1.0], name='"><script>alert(1)</script>')))
    assert "<script>" in root.attrib["aria-label"], "as a text, not as an element"
    assert not list(root.iter("script"))


def test_figures_of_a_finished_run_are_well_formed(finished: dict[str, Manifest]) -> None:
    for row in training.model_rows(finished):
        inside(figures.loss_curve(row))
    for number in ratings.rounds(finished):
        found = ratings.ratings(finished, number)
        assert found is not None
        inside(figures.histogram(found))
