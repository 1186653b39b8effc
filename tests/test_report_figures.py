"""The report's figures and numbers: marks stand where the values are, and every number reads well."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.report import amounts
from ntk_jax.report.axes import ticks
from ntk_jax.report.figures import Curve, Mark, WhiskerRow, curves, histogram, whiskers
from ntk_jax.report.figures_length import length_bins


def elements(drawing: str, name: str) -> list[dict[str, Any]]:
    """The attributes of every element of a kind, in the order drawn."""
    return [dict(re.findall(r'([\w-]+)="([^"]*)"', inside)) for inside in re.findall(f"<{name} ([^>]*)>", drawing)]


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (amounts.general(8.4312e-7), "8.43 × 10⁻⁷"),
        (amounts.general(-0.012345), "−0.0123"),
        (amounts.general(999.9), "1,000"),
        (amounts.general(72291.4), "72,291"),
        (amounts.general(3.8e12), "3.80 × 10¹²"),
        (amounts.general(float("nan")), "–"),
        (amounts.percent(0.4567), "45.7%"),
        (amounts.percent(0.0000001), "<0.1%"),
        (amounts.percent(0.0), "0.0%"),
        (amounts.points(-0.0312), "−3.1"),
        (amounts.points(0.00001), "0.0"),
        (amounts.count(1234567), "1,234,567"),
        (amounts.count(True), "–"),
        (amounts.metric(3.42e15, "FLOP"), "3.42 PFLOP"),
        (amounts.metric(999_999_999, "FLOP"), "1.00 GFLOP"),
        (amounts.metric(1_800_000), "1.80M"),
        (amounts.duration(812.4), "13 min 32 s"),
        (amounts.duration(12000), "3 h 20 min"),
        (amounts.times(4.444), "×4.44"),
    ],
)
def test_numbers_for_people(made: str, expected: str) -> None:
    assert made == expected


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_round_and_inside(low: float, size: float) -> None:
    found = ticks(low, low + size)
    assert 2 <= len(found) <= 11
    assert all(low - size * 1e-6 <= v <= low + size * (1 + 1e-6) for v in found)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(1, 9), st.floats(-1, 1, width=32)), min_size=1, max_size=200), st.floats(-1, 1))
def test_length_bins_hold_everyone_once(points: list[tuple[int, float]], threshold: float) -> None:
    length, score = np.array([p[0] for p in points]), np.array([p[1] for p in points])
    bins = length_bins(score, length, threshold, bins=4)
    assert sum(b.members for b in bins) == len(points)
    assert all(a.high <= b.low for a, b in zip(bins, bins[1:], strict=False))
    assert np.isclose(sum(b.selected * b.members for b in bins), (score >= threshold).sum())
    for b in bins:
        assert list(b.quantiles) == sorted(b.quantiles)


def test_whiskers_put_the_marks_where_the_values_are() -> None:
    rows = [
        WhiskerRow("a", "c-base", (Mark("normalized", 0.2, 0.1, 0.3, "20%"),)),
        WhiskerRow("b", "c-selected", (Mark("normalized", 0.4, 0.35, 0.45, "40%"),)),
    ]
    drawn = whiskers(rows, title="t", reference=(0.3, "chance"), scale_by=100, description="d")
    dots = [float(a["cx"]) for a in elements(drawn, "circle") if "c-key" not in a["class"]]
    (chance,) = [float(a["x1"]) for a in elements(drawn, "line") if a["class"] == "reference"]
    assert chance == pytest.approx(sum(dots) / 2, abs=0.2)
    ends = sorted({float(a["x1"]) for a in elements(drawn, "line") if a["class"] == "whisker c-base"})
    assert dots[0] == pytest.approx((ends[0] + ends[-1]) / 2, abs=0.2)
    assert dots[1] - dots[0] == pytest.approx(ends[-1] - ends[0], abs=0.2)  # both span 0.2


def test_histogram_heights_are_counts() -> None:
    drawn = histogram([0.0, 1.0, 2.0], [10, 40], [0, 20], 1.5, description="d")
    bars = [(a["class"], float(a["height"])) for a in elements(drawn, "rect") if a["height"] != "10"]
    assert [c for c, _ in bars] == ["fill-pool", "fill-pool", "fill-selected"]
    assert bars[1][1] == pytest.approx(4 * bars[0][1], rel=0.01)
    assert bars[2][1] == pytest.approx(2 * bars[0][1], rel=0.01)


def test_long_curves_are_thinned() -> None:
    steps = list(range(1, 100_001))
    drawn = curves([Curve("x", "c-base", steps, [1 / s for s in steps])], y_title="loss", description="d")
    assert len(drawn) < 20_000
    one = curves([Curve("x", "c-base", [1], [3.0])], y_title="loss", description="d")
    assert "nan" not in one


def test_the_axis_of_what_is_nought_everywhere_has_different_ticks() -> None:
    drawn = curves([Curve("x", "c-base", [0, 1, 2], [0.0, 0.0, 0.0])], y_title="accuracy, %", description="d")
    assert "1.0" in drawn and "0.000000" not in drawn
