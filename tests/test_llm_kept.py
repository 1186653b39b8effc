"""What is kept: one request has one reply, and a process that is killed at any moment loses none that it gave out."""

from __future__ import annotations

import dataclasses
import random
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
from faulty_server import FaultyServer, echo
from hypothesis import given
from hypothesis import strategies as st
from scripted_llm import ScriptedClient

from ntk_jax.errors import UserError
from ntk_jax.llm.cache import canonical, key_of
from ntk_jax.llm.database import FILE, Database
from ntk_jax.llm.kept import Kept
from ntk_jax.llm.ledger import Ledger, Prices
from ntk_jax.llm.request import Reply, Request

CHILD = Path(__file__).with_name("llm_child.py")
TALK = ({"role": "user", "content": "hello"},)

requests = st.builds(
    Request,
    st.text() | st.lists(st.fixed_dictionaries({"role": st.just("user"), "content": st.text()}), min_size=1).map(tuple),
    st.integers(1, 100),
    st.floats(0, 2),
    st.floats(0.1, 1),
    st.integers(0, 50),
    st.floats(0, 0.5),
    st.lists(st.text(min_size=1), max_size=3).map(tuple),
    st.integers(0, 2**31 - 1),
    st.integers(0, 9),
    st.none() | st.just({"type": "object"}),
)


@given(requests, requests)
def test_keys_differ_where_requests_do(one, other):
    assert (key_of(canonical("m", one)) == key_of(canonical("m", other))) == (one == other)
    assert key_of(canonical("m", one)) != key_of(canonical("n", one)) != key_of(canonical("n", one, {"effort": "low"}))


def test_how_a_number_is_written_does_not_matter():
    assert canonical("m", Request(TALK, temperature=1)) == canonical("m", Request(TALK, temperature=1.0))


def test_a_key_stays_what_it_was():
    """Replies that were paid for by an earlier version must be found again."""
    found = key_of(canonical("m", Request(TALK, 16, 0.7, seed=3, stop=("END",))))
    assert found == "3b43436ea066ac1617056d2bfb2438fd523a0f01087569c477341f1a0c06b288"


def test_the_same_request_is_asked_once(tmp_path):
    client = ScriptedClient(lambda request: f"{request.seed} {time.time_ns()}", last_first=True)
    asked = [Request(TALK, seed=seed) for seed in (1, 2, 1, 3, 2)]
    steps = []
    first = dict(Kept(client, Database(tmp_path)).ask(asked, lambda *step: steps.append(step[:2])))
    assert sorted(request.seed for request in client.asked) == [1, 2, 3]
    assert first[0].text == first[2].text and [first[n].cached for n in range(5)] == [False, False, True, False, True]
    assert steps[-1] == (5, 5) and steps == sorted(steps)
    second = dict(Kept(client, Database(tmp_path)).ask([*asked, Request(TALK, seed=4)]))
    assert len(client.asked) == 4
    assert all(second[n] == dataclasses.replace(first[n], cached=True) for n in range(5))


def test_it_is_kept_before_it_is_given_out(tmp_path):
    asked = [Request(TALK, seed=seed) for seed in range(3)]
    for _, reply in Kept(ScriptedClient(lambda request: "x"), Database(tmp_path)).ask(asked):
        if not reply.cached:
            with sqlite3.connect(tmp_path / FILE) as other:
                count = other.execute("SELECT count(*) FROM replies").fetchone()[0]
            other.close()
            assert count >= 1
            break


def test_the_client_is_made_when_it_is_needed(tmp_path):
    made = []

    def make():
        made.append(1)
        return ScriptedClient(lambda request: "x")

    kept = Kept(make, Database(tmp_path), name="m")
    assert not made
    list(kept.ask([Request(TALK)]))
    list(kept.ask([Request(TALK, seed=1)]))
    assert made == [1]
    assert list(Kept(make, Database(tmp_path), name="m").ask([Request(TALK)]))[0][1].text == "x" and made == [1]
    list(Kept(make, Database(tmp_path), name="another").ask([Request(TALK)]))
    assert made == [1, 1]


def test_a_failure_without_a_bill_is_asked_again(tmp_path):
    replies = iter([Reply("", "failed", reason="no"), "now"])
    kept = Kept(ScriptedClient(lambda request: next(replies)), Database(tmp_path))
    assert [reply.finish for _, reply in kept.ask([Request(TALK)])] == ["failed"]
    assert [reply.text for _, reply in kept.ask([Request(TALK)])] == ["now"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a database at all, but a longer text", "not a database"),
        (b"SQLite format 3\0" + b"x" * 500, "cannot be opened"),
    ],
)
def test_a_damaged_file_is_named(content, message, tmp_path):
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(UserError, match=message):
        Database(tmp_path)


def test_a_file_of_another_version(tmp_path):
    with sqlite3.connect(tmp_path / FILE) as other:
        other.execute("PRAGMA user_version = 99")
    other.close()
    with pytest.raises(UserError, match="tables 99, here 1"):
        Database(tmp_path)


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be opened"):
        Database(tmp_path / "file" / "below")


@pytest.mark.parametrize("cap", [0, -1, float("nan")])
def test_a_cap_that_lets_nothing_through(cap, tmp_path):
    with pytest.raises(UserError, match="lets no call through"):
        Ledger(Database(tmp_path), Prices(1, 1), cap)


def test_amounts_without_an_end(tmp_path):
    assert Ledger(Database(tmp_path), Prices(1, 1), float("inf")).reserve("key", 10**9, 10**9) is not None
    for price in (-1.0, float("nan"), float("inf")):
        with pytest.raises(UserError, match="price is negative or no number"):
            Ledger(Database(tmp_path), Prices(0, price))


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**4), st.integers(0, 10**4))
def test_costs_are_whole_and_never_less_than_true(prompt, completion, price_in, price_out):
    prices = Prices(price_in / 100, price_out / 100)
    cost = prices.cost(prompt, completion)
    assert 0 <= cost - (prompt * price_in + completion * price_out) * 10 < 1


def test_two_processes_share_one_cap(tmp_path):
    one, other = (Ledger(Database(tmp_path), Prices(1, 1), cap=1.0) for _ in range(2))
    assert one.reserve("a", 600_000, 0) is not None
    with pytest.raises(UserError, match="the cap of 1 is reached"):
        other.reserve("b", 600_000, 0)


@pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_killed_process_repeats_at_most_what_was_under_way(seed, tmp_path):
    """SIGKILL at random moments; the server counts."""
    draw, workers, total, kills = random.Random(seed), 4, 120, 0

    def answer(body, before):
        time.sleep(draw.uniform(0.0, 0.02))
        return echo(body)

    with FaultyServer(answer).running() as server:
        command = [sys.executable, str(CHILD), str(tmp_path), server.url, str(total), str(workers)]
        while True:
            process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            try:
                out, _ = process.communicate(timeout=draw.uniform(0.0, 0.25) if kills < 6 else 60)
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.communicate()
                kills += 1
        assert process.returncode == 0 and out.split() == [str(total)]
        repeats = {body: count - 1 for body, count in server.counts.items() if count > 1}
        assert len(server.counts) == total
        assert sum(repeats.values()) <= kills * workers
        ledger = Ledger(Database(tmp_path))
        assert len(server.bodies) <= ledger.totals().attempts <= total + kills * workers
        assert kills > 0
