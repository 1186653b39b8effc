"""Progress lines: where they go, how often, and what they say."""

from __future__ import annotations

import io

import pytest

from ntk_jax.progress import Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_plain_lines_first_last_and_every_ten_seconds() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress("score", 100, "examples", stream=stream, clock=clock)
    clock.now = 60.0  # a long compilation before the first call
    progress(20)  # a resumed run starts here
    for done in range(21, 101):
        clock.now += 1.0
        progress(done, note=f"loss {done}")
    lines = stream.getvalue().splitlines()
    assert lines[0] == "score              20/100 examples   20%"
    assert lines[1] == "score              30/100 examples   30%  1 examples/s  1m10s left  loss 30"
    assert lines[-1] == "score              100/100 examples  100%  1 examples/s  in 2m20s  loss 100"
    assert len(lines) == 1 + 7 + 1
    progress(100)
    assert len(stream.getvalue().splitlines()) == len(lines), "a finished stage says nothing more"


def test_terminal_refreshes_one_line() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress("warmup", 3, "steps", stream=stream, clock=clock)
    for done in (0, 1, 2, 3):
        clock.now += 1.0
        progress(done)
    text = stream.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n")
    assert text.count("\r") == 4
    assert "2/3 steps   67%  1 steps/s  1s left" in text


def test_terminal_line_is_left_whole_when_a_stage_stops() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress("warmup", 3, "steps", stream=stream, clock=clock)
    progress(1)
    progress.close()
    progress.close()
    assert stream.getvalue().count("\n") == 1


def test_unknown_total_and_late_total() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress("score", stream=stream, clock=clock)
    progress(5)
    clock.now = 10.0
    progress(1005, 2005)
    assert stream.getvalue().splitlines() == [
        "score              5 examples",
        "score              1,005/2,005 examples   50%  100 examples/s  10s left",
    ]


def test_a_stage_with_nothing_to_count() -> None:
    stream = io.StringIO()
    Progress("warmup", None, "", stream=stream)(1, 1, "done before")
    assert stream.getvalue() == "warmup             done before\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0s"), (59, "59s"), (200, "3m20s"), (7500, "2h05m"), (273600, "3d04h")]
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text
