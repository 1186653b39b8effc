"""Likelihoods that are kept: none is computed twice, not even after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest

from ntk_jax.llm.database import Database
from ntk_jax.llm.likelihoods import KeptLikelihoods


def record(n: int, name: str = "") -> dict:
    return {"id": f"{name}{n}", "messages": [{"role": "user", "content": "x" * n}], "response": "y"}


def test_each_is_computed_once(tmp_path: Path) -> None:
    seen: list[str] = []

    def compute(records):
        seen.extend(one["id"] for one in records)
        return [None if len(one["messages"][0]["content"]) == 3 else (1.5 * n, n) for n, one in enumerate(records)]

    kept = KeptLikelihoods(compute, Database(tmp_path), "model", block=2)
    first = kept([record(n) for n in (1, 2, 3, 2)])
    assert seen == ["1", "2", "3"]
    assert first[2] is None
    assert first[1] == first[3] == (1.5, 1)
    again = KeptLikelihoods(compute, Database(tmp_path), "model")
    assert again([record(n, "other id ") for n in (3, 2, 1)]) == [None, first[1], first[0]]
    assert seen == ["1", "2", "3"]
    KeptLikelihoods(compute, Database(tmp_path), "another model")([record(1)])
    assert seen == ["1", "2", "3", "1"]
    assert again([]) == []


def test_a_block_is_kept_before_the_next_begins(tmp_path: Path) -> None:
    calls: list[int] = []

    def compute(records):
        calls.append(len(records))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return [(1.0, 1)] * len(records)

    kept = KeptLikelihoods(compute, Database(tmp_path), "model", block=4)
    with pytest.raises(KeyboardInterrupt):
        kept([record(n) for n in range(10)])
    calls.clear()
    assert kept([record(n) for n in range(10)]) == [(1.0, 1)] * 10
    assert calls == [2]
