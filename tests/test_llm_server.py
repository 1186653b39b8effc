"""The client of servers, against one that fails in every way that servers do."""

from __future__ import annotations

import contextlib
import email.utils
import json
import os
import sqlite3
import threading
import time
from pathlib import Path

import pytest
from faulty_server import Answer, FastTime, FaultyServer, completion, echo, error
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.errors import TryAgain, UserError
from ntk_jax.llm import wire
from ntk_jax.llm.database import FILE, Database
from ntk_jax.llm.kept import Kept
from ntk_jax.llm.ledger import Ledger, Prices
from ntk_jax.llm.limits import Pace
from ntk_jax.llm.request import Request
from ntk_jax.llm.server import Server, ServerClient

KEY = "sk-a-secret-that-nobody-may-read"


def requests(count: int, **more) -> list[Request]:
    return [Request(({"role": "user", "content": f"question {n}"},), max_tokens=20, **more) for n in range(count)]


def make(
    folder, url: str, *, prices=None, cap=None, workers=4, fast=None, key=KEY, timeout=5.0, **more
) -> ServerClient:
    fast = fast or FastTime()
    pace = Pace(clock=fast.clock, sleep=fast.sleep)
    ledger = Ledger(Database(folder), prices, cap)
    return ServerClient(Server("m", url, key, workers=workers, timeout=timeout, **more), ledger, pace)


def answers(client, asked) -> dict[int, str]:
    found = {}
    for ordinal, reply in client.ask(asked):
        assert ordinal not in found
        found[ordinal] = reply.text if reply.finish != "failed" else f"failed: {reply.reason}"
    return found


def fail_first(*bad: Answer):
    """The first attempts of every request fail in these ways, one after another."""
    return lambda body, before: bad[before] if before < len(bad) else echo(body)


FAULTS = {
    "500": error(500),
    "html": Answer(b"<html><body>welcome</body></html>", headers={"Content-Type": "text/html"}),
    "cut body": Answer(completion("a long text " * 50).content, cut=100),
    "nothing sent": Answer(completion("x").content, cut=0),
    "half a JSON": Answer(completion("a text").content[:40]),
    "null content": completion(None),
    "null content and usage": completion(None, usage=None),
    "empty choices": completion("x", choices=[]),
    "null choices": completion("x", choices=None),
    "an error with status 200": Answer(b'{"error": {"message": "overloaded"}}'),
    "a list": Answer(b"[1]"),
    "nothing": Answer(b""),
    "429": error(429),
    "429 with Retry-After": error(429, Retry_After="2"),
    "429 with a date": error(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"),
    "429 with rubbish": error(429, Retry_After="soon"),
    "503": error(503),
    "504": error(504),
    "408": error(408),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_costs_no_record(fault, tmp_path):
    with FaultyServer(fail_first(FAULTS[fault])).running() as server:
        client = make(tmp_path, server.url)
        found = answers(client, requests(6))
        assert sorted(found) == list(range(6))
        assert all(found[n].startswith(f"question {n} ") for n in found)
        assert client.ledger.totals().attempts == len(server.bodies) == 12
        assert set(server.counts.values()) == {2}


def test_a_hang_is_given_up_and_billed(tmp_path):
    slow = lambda body, before: Answer(b"", hang=30) if before == 0 else echo(body)  # noqa: E731
    with FaultyServer(slow).running() as server:
        client = make(tmp_path, server.url, prices=Prices(1.0, 2.0), timeout=0.2)
        assert len(answers(client, requests(2))) == 2
        totals = client.ledger.totals()
        rows = _rows(client, "SELECT outcome, cost, reserved FROM attempts ORDER BY number")
        hung = [row for row in rows if row[0] == "time-out"]
        assert len(hung) == 2 and all(cost == reserved > 0 for _, cost, reserved in hung)
        assert totals.spent * 1e9 == pytest.approx(sum(row[1] for row in rows))


@pytest.mark.parametrize(
    ("fault", "billed"),
    [("500", False), ("429", False), ("503", False), ("html", True), ("cut body", True), ("504", True)],
)
def test_what_may_have_cost_money_is_billed(fault, billed, tmp_path):
    with FaultyServer(fail_first(FAULTS[fault])).running() as server:
        client = make(tmp_path, server.url, prices=Prices(1.0, 1.0))
        answers(client, requests(1))
        (first, _), (second, _) = _rows(client, "SELECT cost, reserved FROM attempts ORDER BY number")
        assert (first > 0) == billed
        assert second == 15_000  # 10 + 5 tokens at a millionth each, in billionths


@given(faults=st.lists(st.sampled_from(sorted(FAULTS)), max_size=4), workers=st.integers(1, 8))
@settings(max_examples=8, deadline=None)
def test_any_run_of_faults_costs_no_record(faults, workers, tmp_path_factory):
    with FaultyServer(fail_first(*(FAULTS[fault] for fault in faults))).running() as server:
        client = make(tmp_path_factory.mktemp("run"), server.url, workers=workers, prices=Prices(1.0, 1.0))
        found = answers(client, requests(3))
        assert sorted(found) == [0, 1, 2] and not any(text.startswith("failed") for text in found.values())
        assert client.ledger.totals().attempts == len(server.bodies) == 3 * (1 + len(faults))
        assert client.ledger.totals().reserved == 0


def test_a_large_reply_is_whole(tmp_path):
    text = "words \N{SNOWMAN} " * 100_000
    with FaultyServer(lambda body, before: completion(text)).running() as server:
        assert answers(make(tmp_path, server.url), requests(1)) == {0: text}


def test_half_a_surrogate_pair_can_be_asked_and_kept(tmp_path):
    odd = Answer(completion("x").content.replace(b'"x"', b'"\\ud83d and \\u0000"'))
    with FaultyServer(lambda body, before: odd).running() as server:
        client = make(tmp_path, server.url)
        asked = [Request(({"role": "user", "content": "\ud83d"},))]
        assert answers(client, asked) == {0: "? and \x00"}
        assert answers(Kept(client, client.ledger.database), asked) == {0: "? and \x00"}


@pytest.mark.parametrize("retry_after", [None, "3", "100000"])
def test_a_storm_pauses_all_workers(retry_after, tmp_path):
    fast = FastTime()
    storm_ends = 40.0
    headers = {} if retry_after is None else {"Retry_After": retry_after}

    def answer(body, before):
        return error(429, **headers) if fast.clock() < storm_ends else echo(body)

    with FaultyServer(answer).running() as server:
        client = make(tmp_path, server.url, fast=fast, workers=8)
        found = answers(client, requests(16))
        assert len(found) == 16 and not any(text.startswith("failed") for text in found.values())
        assert len(server.bodies) < 16 + 8 * 20
        assert fast.clock() < 200  # a Retry-After of a day is not believed


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("-3", 0.0),
        ("Wed, 99 Oct 2015", None),
        ("inf", None),
        ("nan", None),
        ("", None),
        (None, None),
    ],
)
def test_when_to_come_again_is_read(header, seconds):
    wait = wire.read_response(429, {} if header is None else {"retry-after": header}, b"").wait
    assert wait == seconds


@pytest.mark.parametrize("form", [{"usegmt": True}, {"localtime": True}])
def test_when_to_come_again_may_be_a_date(form):
    date = email.utils.formatdate(time.time() + 50, **form)
    assert 20 < wire.read_response(503, {"retry-after": date}, b"").wait <= 50


def test_an_attempt_is_in_the_ledger_before_it_is_sent(tmp_path):
    """As another process would find it, were this one killed now."""

    def answer(body, before):
        with contextlib.closing(sqlite3.connect(tmp_path / FILE)) as other:
            found.append(other.execute("SELECT outcome, reserved FROM attempts ORDER BY number").fetchall())
        return error(500) if before == 0 else echo(body)

    found: list[list[tuple]] = []
    with FaultyServer(answer).running() as server:
        answers(make(tmp_path, server.url, prices=Prices(1.0, 1.0), workers=1), requests(1))
    first, second = found
    assert [row[0] for row in first] == [None] and [row[0] for row in second] == ["HTTP 500: no", None]
    assert all(reserved > 0 for _, reserved in second)


def test_a_server_that_is_busy_for_ever_is_left(tmp_path):
    with FaultyServer(lambda body, before: error(429, "later")).running() as server:
        client = make(tmp_path, server.url, patience=120.0)
        with pytest.raises(TryAgain, match=r"turned away all calls for 120 s \(HTTP 429: later\)"):
            answers(client, requests(3))


def test_patience_is_for_one_stretch_of_busy_replies(tmp_path):
    fast, replies = FastTime(), iter([completion("x"), error(429), error(504), error(429), completion("y")])
    with FaultyServer(lambda body, before: next(replies)).running() as server:
        client = make(tmp_path, server.url, fast=fast, patience=120.0, attempts=1, workers=1)
        found = []
        for request in requests(3):
            found += answers(client, [request]).values()
            fast.sleep(1000)
        assert found == ["x", "failed: HTTP 504: no", "y"]


def test_a_server_that_is_not_there(tmp_path):
    client = make(tmp_path, "http://127.0.0.1:9/v1")
    with pytest.raises(TryAgain, match="no connection"):
        answers(client, requests(3))
    assert client.ledger.totals().spent == 0


def test_a_server_that_goes_away_gives_no_record_up(tmp_path):
    gone = threading.Event()

    def answer(body, before):
        if len(server.bodies) > 5:
            gone.set()
        return error(500) if gone.is_set() else echo(body)

    with FaultyServer(answer).running() as server:
        client = make(tmp_path, server.url, workers=2)
        with pytest.raises(TryAgain, match="has not replied to 9 request"):
            for _, reply in client.ask(requests(60)):
                assert reply.finish == "stop"


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "does not accept the key"), (402, "paid first"), (404, "ends in /v1"), (301, "sends elsewhere")],
)
def test_nobody_asks_on_in_vain(status, message, tmp_path):
    with FaultyServer(lambda body, before: error(status, f"bad key {KEY}")).running() as server:
        client = make(tmp_path, server.url)
        with pytest.raises(UserError, match=message) as caught:
            answers(client, requests(50))
        assert KEY not in str(caught.value) and "[key]" in str(caught.value)
        assert len(server.bodies) <= 4  # one a worker


def test_no_money_left_is_not_waited_for(tmp_path):
    broke = Answer(b'{"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}', 429)
    with FaultyServer(lambda body, before: broke).running() as server, pytest.raises(UserError, match="no money left"):
        answers(make(tmp_path, server.url), requests(1))


def test_a_refused_request_costs_itself_alone(tmp_path):
    def answer(body, before):
        return error(400, "prompt too long") if "question 2" in json.dumps(body) else echo(body)

    with FaultyServer(answer).running() as server:
        found = answers(make(tmp_path, server.url), requests(5))
        assert found.pop(2) == "failed: HTTP 400: prompt too long"
        assert len(found) == 4 and set(server.counts.values()) == {1}


def test_a_server_that_refuses_everything_is_named(tmp_path):
    refusing = FaultyServer(lambda body, before: error(400, "unknown field seed"))
    message = "refuses all requests, 9 so far: HTTP 400: unknown field seed"
    with refusing.running() as server, pytest.raises(UserError, match=message):
        answers(make(tmp_path, server.url), requests(40))


def test_what_was_paid_for_in_vain_is_not_paid_again(tmp_path):
    def answer(body, before):
        return completion(None) if "question 1" in json.dumps(body) else echo(body)

    with FaultyServer(answer).running() as server:
        client = make(tmp_path, server.url, attempts=3)
        kept = Kept(client, client.ledger.database)
        first = answers(kept, requests(3))
        assert first[1] == "failed: no text" and len(server.bodies) == 5
        assert answers(kept, requests(3)) == first and len(server.bodies) == 5
        again = Kept(client, client.ledger.database, ask_failed_again=True)
        server.answer = lambda body, before: echo(body)
        assert answers(again, requests(3))[1].startswith("question 1")
        assert answers(kept, requests(3))[1].startswith("question 1")
        assert len(server.bodies) == 6


def test_thoughts_that_leave_no_room_for_a_text_are_paid_for_once(tmp_path):
    with FaultyServer(lambda body, before: completion(None, finish="length")).running() as server:
        client = make(tmp_path, server.url)
        kept = Kept(client, client.ledger.database)
        for _ in range(2):
            assert answers(kept, requests(1)) == {0: "failed: no text: all of max_tokens went into hidden thoughts"}
        assert len(server.bodies) == 1


def test_the_key_is_sent_and_stands_nowhere(tmp_path, capfd):
    def answer(body, before):
        return error(500, KEY) if before == 0 else completion(f"your key is {KEY}")

    with FaultyServer(answer).running() as server:
        client = make(tmp_path, server.url)
        assert answers(client, requests(2)) == {0: "your key is [key]", 1: "your key is [key]"}
        assert set(server.keys) == {f"Bearer {KEY}"}
        assert KEY not in repr(client) + repr(client.server) + str(client.server) + repr(vars(client))
        client.ledger.database.close()
    files = [path for path in Path(tmp_path).rglob("*") if path.is_file()]
    assert files and all(KEY.encode() not in path.read_bytes() for path in files)
    assert all(server.url.encode() not in path.read_bytes() for path in files)
    captured = capfd.readouterr()
    assert KEY not in captured.out + captured.err


@pytest.mark.parametrize("key", ["two words", "line\nend", "caf\N{LATIN SMALL LETTER E WITH ACUTE}"])
def test_a_key_that_no_header_can_hold(key, tmp_path):
    with pytest.raises(UserError, match="key") as caught:
        make(tmp_path, "http://localhost/v1", key=key)
    assert key not in str(caught.value)


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x/v1", "http://", "http://[", "http://x:999999/v1"])
def test_an_address_that_is_none(url, tmp_path):
    with pytest.raises(UserError, match="address is malformed"):
        make(tmp_path, url)


def test_sixteen_workers_never_exceed_the_cap(tmp_path):
    """Every reply costs as much as it may; the server says so."""
    prices, cap = Prices(2.0, 10.0), 0.03
    together = threading.Event()

    def answer(body, before):
        if server.most_at_once >= 8:
            together.set()
        together.wait(5)  # until so many are under way
        size = sum(len(message["content"]) for message in body["messages"])
        return completion("x", prompt_tokens=size + 250, completion_tokens=body["max_tokens"])

    with FaultyServer(answer).running() as server:
        client = make(tmp_path, server.url, prices=prices, cap=cap, workers=16)
        found = {}
        with pytest.raises(UserError, match=r"the cap of 0.03 is reached: 0\.0\d+ spent"):
            for ordinal, reply in client.ask(requests(100)):
                found[ordinal] = reply.text
        spent = client.ledger.totals()
        assert 0.9 * cap < spent.spent <= cap and spent.reserved == 0
        assert len(found) == len(server.bodies) == spent.attempts
        assert server.most_at_once >= 8
        kept = Kept(make(tmp_path, server.url, prices=prices, cap=1.0, workers=16), client.ledger.database)
        assert len(answers(kept, requests(100))) == 100
        assert set(server.counts.values()) == {1}


def test_further_fields_of_the_body_count_under_the_cap(tmp_path):
    """They have the last word on how much is written and how often; and may stand in the prompt."""
    more = {"n": 3, "max_completion_tokens": 50, "chat_template_kwargs": {"note": "x" * 400}}

    def answer(body, before):
        return completion("x", prompt_tokens=600, completion_tokens=body["n"] * body["max_completion_tokens"])

    with FaultyServer(answer).running() as server:
        client = make(tmp_path, server.url, prices=Prices(1.0, 10.0), cap=0.0068, more=more)
        with pytest.raises(UserError, match="the cap of 0.0068 is reached"):
            answers(client, requests(9))
        totals = client.ledger.totals()
        assert 0 < totals.spent <= 0.0068 and totals.attempts == 3
        assert all(cost <= reserved for cost, reserved in _rows(client, "SELECT cost, reserved FROM attempts"))


def test_what_a_killed_process_had_sent_counts_as_spent(tmp_path):
    prices = Prices(1.0, 1.0)
    ledger = Ledger(Database(tmp_path), prices, cap=1.0)
    assert ledger.reserve("key", 400_000, 100_000) is not None  # and never settled
    ledger.database.close()
    other = Ledger(Database(tmp_path), prices, cap=1.0)
    assert other.totals().reserved == 0.5
    with pytest.raises(UserError, match=r"0 spent and 0\.5 held back by calls without an end.*may cost 0\.6"):
        other.reserve("key", 600_000, 0)
    assert other.reserve("key", 500_000, 0) is not None


def test_a_wait_for_others_under_the_cap_ends(tmp_path):
    ledger = Ledger(Database(tmp_path), Prices(1.0, 1.0), cap=1.0)
    first = ledger.reserve("a", 900_000, 0)
    assert first is not None
    threading.Timer(0.05, lambda: ledger.settle(first, "reply", (10, 10), True)).start()
    assert ledger.reserve("b", 900_000, 0) is not None
    assert ledger.totals().spent == pytest.approx(20e-6)


def test_who_stops_reading_stops_the_calls(tmp_path):
    with FaultyServer(lambda body, before: echo(body)).running() as server:
        client = make(tmp_path, server.url, workers=2)
        replies = client.ask(requests(500))
        next(replies)
        replies.close()
        sent = len(server.bodies)
        assert sent < 500
        assert _rows(client, "SELECT count(*) FROM replies") == [(sent,)], "what was under way is kept"


def test_stop_texts_are_cut_here_too(tmp_path):
    with FaultyServer(lambda body, before: completion("one END two STOP", finish="length")).running() as server:
        client = make(tmp_path, server.url)
        asked = requests(1, stop=("a", "b", "c", "d", "STOP", "END"))
        [(_, reply)] = client.ask(asked)
        assert (reply.text, reply.finish) == ("one ", "stop")
        assert len(server.bodies[0]["stop"]) == 4


def _rows(client: ServerClient, query: str) -> list[tuple]:
    with client.ledger.database.reading() as connection:
        return connection.execute(query).fetchall()


@pytest.fixture(autouse=True)
def no_proxy(monkeypatch):
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
