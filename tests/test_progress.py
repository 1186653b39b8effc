"""Progress lines: where they go, how often, and what they say."""

from __future__ import annotations

import io

import pytest

from ntk_jax.engine.progress import Progress, duration


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
    assert stream.getvalue() == "score              0/100 examples    0%  starting or compiling\n"  # at once
    clock.now = 60.0
    progress(20)  # a resumed run starts here
    for done in range(21, 101):
        clock.now += 1.0
        progress(done, note=f"loss {done}")
    lines = stream.getvalue().splitlines()[1:]
    assert lines[0] == "score              20/100 examples   20%"
    assert lines[1] == "score              30/100 examples   30%  1 examples/s  1m10s left  loss 30"
    assert lines[-1] == "score              100/100 examples  100%  1 examples/s  in 2m20s  loss 100"
    assert len(lines) == 1 + 7 + 1
    progress(100)
    assert len(stream.getvalue().splitlines()) == 1 + len(lines), "a finished stage says nothing more"


def test_a_larger_total_opens_the_line_again() -> None:
    """What asks in waves knows how many the next one has when the last one is done."""
    stream, clock = io.StringIO(), Clock()
    progress = Progress("method facts", None, "replies", stream=stream, clock=clock)
    progress(4, 4)
    progress(4, 4)
    clock.now = 20.0
    progress(5, 12)
    progress(12, 12)
    shown = [" ".join(line.split()[2:4]) for line in stream.getvalue().splitlines()[1:]]
    assert shown == ["4/4 replies", "5/12 replies", "12/12 replies"]
    progress.close()
    progress(5, 12)
    assert len(stream.getvalue().splitlines()) == 4


def test_compilation_counts_neither_in_the_rate_nor_in_the_time_left() -> None:
    """A store's first call says what is done before; the next distinct one comes with the first batch's compilation."""
    stream, clock = io.StringIO(), Clock()
    progress = Progress("score", 1000, "examples", stream=stream, clock=clock)
    progress(0)
    clock.now = 100.0  # the first batch of 10, nearly all of it compilation
    progress(10)
    clock.now = 109.0  # not yet time for a line
    progress(20)
    clock.now = 110.0
    progress(110)
    assert stream.getvalue().splitlines() == [
        "score              0/1,000 examples    0%  starting or compiling",
        "score              10/1,000 examples    1%",
        "score              110/1,000 examples   11%  10 examples/s  1m29s left",
    ]


def test_no_time_left_before_the_second_batch() -> None:
    """A training's first call comes with its first step; only from the second on is a step what the next will be."""
    stream, clock = Terminal(), Clock()
    progress = Progress("warmup", 12, "steps", stream=stream, clock=clock)
    for done, now in ((1, 30.0), (1, 31.0), (2, 32.0), (4, 36.0)):
        clock.now = now
        progress(done)
    lines = [line.removesuffix("\x1b[K") for line in stream.getvalue().split("\r")[1:]]
    assert [" left" in line for line in lines] == [False, False, False, False, True]
    assert lines[-1] == "warmup             4/12 steps   33%  0.5 steps/s  16s left"


def test_terminal_refreshes_one_line() -> None:
    stream, clock = Terminal(), Clock()
    progress = Progress("warmup", 4, "steps", stream=stream, clock=clock)
    for done in range(5):
        clock.now += 1.0
        progress(done)
    text = stream.getvalue()
    assert text.count("\n") == 1 and text.endswith("\n")
    assert text.count("\r") == 6
    assert "3/4 steps   75%  1 steps/s  1s left" in text


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
    progress(6)
    clock.now = 10.0
    progress(1006, 2006)
    assert stream.getvalue().splitlines() == [
        "score              starting or compiling",
        "score              5 examples",
        "score              1,006/2,006 examples   50%  100 examples/s  10s left",
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
