"""How fast calls go out, by a clock that only sleeping moves."""

from __future__ import annotations

from faulty_server import FastTime
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.llm.limits import LONGEST_PAUSE, MINUTE, Pace


def pace(*limits, jitter: float = 0.0) -> tuple[Pace, FastTime]:
    fast = FastTime()
    return Pace(*limits, clock=fast.clock, sleep=fast.sleep, jitter=lambda: jitter), fast


@given(
    st.integers(1, 5),
    st.integers(1, 50),
    st.lists(st.tuples(st.integers(0, 70), st.floats(0, 30)), min_size=1, max_size=12),
)
@settings(max_examples=30, deadline=None)
def test_no_minute_has_more_than_allowed(requests, tokens, calls):
    limit, fast = pace(requests, tokens)
    fast.sleep = lambda seconds: setattr(fast, "_now", fast._now + seconds)
    limit._sleep = fast.sleep
    sent: list[tuple[float, int]] = []
    for size, gap in calls:
        fast.sleep(gap)
        assert limit.wait(size)
        sent.append((fast.clock(), size))
    for start, _ in sent:
        inside = [size for when, size in sent if start <= when < start + MINUTE - 1e-6]
        assert len(inside) <= requests
        assert sum(inside) <= tokens or len([size for size in inside if size]) == 1, "one that is too large goes alone"


def test_without_limits_nobody_waits():
    limit, fast = pace()
    assert all(limit.wait(10**9) for _ in range(100))
    assert fast.slept == []


def test_a_call_is_not_held_back_longer_than_needed():
    limit, fast = pace(2)
    for _ in range(5):
        limit.wait(1)
    assert 2 * MINUTE <= fast.clock() < 2 * MINUTE + 0.5


def test_a_pause_holds_for_all_and_is_capped():
    limit, fast = pace()
    limit.pause(sent=0.0, seconds=86_400.0)
    limit.wait(1)
    assert LONGEST_PAUSE <= fast.clock() < LONGEST_PAUSE + 0.5


def test_pauses_double_only_for_what_was_sent_after_the_last():
    limit, fast = pace(jitter=1.0)
    for _ in range(16):
        limit.pause(sent=0.0, seconds=None)  # one storm meets sixteen workers
    limit.wait(1)
    assert 1.0 <= fast.clock() < 1.5
    lengths = []
    for _ in range(8):
        before = fast.clock()
        limit.pause(sent=fast.clock(), seconds=None)
        limit.wait(1)
        lengths.append(round(fast.clock() - before))
    assert lengths == [2, 4, 8, 16, 32, 60, 60, 60]
    limit.went_well()
    before = fast.clock()
    limit.pause(sent=before, seconds=None)
    limit.wait(1)
    assert round(fast.clock() - before) == 1


def test_back_off_doubles_with_jitter_and_is_capped():
    limit, _ = pace(jitter=1.0)
    assert [limit.back_off(n) for n in (1, 2, 3, 4, 20)] == [1, 2, 4, 8, LONGEST_PAUSE]
    limit, _ = pace(jitter=0.0)
    assert [limit.back_off(n) for n in (1, 2)] == [0.5, 1.0]


def test_waiting_ends_when_all_is_stopped():
    limit, fast = pace()
    limit.pause(sent=0.0, seconds=50.0)
    looks = iter([False, False, True])
    assert not limit.wait(1, lambda: next(looks))
    limit.rest(50.0, lambda: fast.clock() > 3)
    assert fast.clock() < 4


def test_a_late_refusal_never_leaves_the_server_without_a_pause():
    limit, fast = pace(jitter=1.0)
    limit.pause(sent=0.0, seconds=None)
    fast.sleep(1.0)
    limit.pause(sent=0.0, seconds=None)  # an old request, turned away when the pause is over
    limit.pause(sent=1.0, seconds=None)
    before = fast.clock()
    limit.wait(1)
    assert fast.clock() > before
