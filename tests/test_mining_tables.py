"""The tables of scripts/experiment_mining.py."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

import mining_tables  # noqa: E402


@pytest.mark.parametrize(("values", "low", "high"), [([0.02, 0.2, 0.02], 0.0, None), ([0.99, 0.3, 0.98], None, 1.0)])
def test_an_interval_of_shares_stays_among_shares(values: list[float], low: float | None, high: float | None) -> None:
    found = mining_tables._over_draws(np.array(values))
    assert found is not None and 0 <= found[0] <= np.mean(values) <= found[1] <= 1
    assert low is None or found[0] == low
    assert high is None or found[1] == high
    assert mining_tables._over_draws(np.array([0.5])) is None


def test_the_table_says_what_its_intervals_are() -> None:
    truth, rng = np.array([2, 1, 0, 0, 0, 0], np.int8), np.random.default_rng(0)
    draws = [{"a": rng.random(6)} for _ in range(3)]
    found = {"seeds": "own", "domain": "law", **mining_tables.measured(draws, truth, np.arange(6))}
    text = mining_tables.tables([found], 6, 3)
    assert "cut at 0 and 1" in text and "| draws |" in text and text.count("| a |") == 2
