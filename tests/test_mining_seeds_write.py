"""Seeds written by a scripted language model: everything asked for comes, or is missed by number and reason."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from scripted_llm import ScriptedClient

from ntk_jax.data.alike import first_alike
from ntk_jax.errors import UserError
from ntk_jax.llm.request import Reply, Request
from ntk_jax.mining.seeds.duplicates import drop_duplicates
from ntk_jax.mining.seeds.own import seeds_of_keywords
from ntk_jax.mining.seeds.seed import Seed
from ntk_jax.mining.seeds.write import NEAR_DUPLICATE, PROBE, write_seeds, write_topics

DOMAINS = {"medicine": "diseases, drugs and patients", "law": "courts, contracts and rights"}
LETTERS = "abcdefghijklmnopqrstuvwxyz"


def document(request: Request, words: int = 40) -> str:
    """A text of its own for every request."""
    draw = random.Random(f"{request.seed} {request.sample} {is_repair(request)}")
    return " ".join("".join(draw.choices(LETTERS, k=6)) for _ in range(words)) + "."


def is_repair(request: Request) -> bool:
    return len(request.messages) == 3


def wants_json(request: Request) -> bool:
    return request.schema is not None


def good(request: Request) -> str:
    text = document(request)
    return json.dumps({"topic": text[:6], "document": text}) if wants_json(request) else text


def write(function: Callable[[Request], str | Reply], **how: object):
    client = ScriptedClient(function, last_first=bool(how.pop("last_first", False)))
    return write_seeds(client, DOMAINS, **{"per_domain": 12, **how}), client  # type: ignore[arg-type]


def test_exactly_what_was_asked_for_comes() -> None:
    result, client = write(good, two_domain_share=0.25)
    assert Counter(name for seed in result.seeds for name in seed.domains) == {"medicine": 12, "law": 12}
    assert len(result.seeds) == result.planned == 21 == len(client.asked)
    assert (result.failures, result.rejected, result.shortfall, result.format) == ({}, [], {}, "json")
    facts = result.seeds[0].facts
    assert facts["origin"] == "written" and facts["topic"] and facts["writer"] == "scripted" and facts["prompt_id"]
    assert {"type", "length", "demeanour"} <= set(facts)
    assert result.summary()["written"] == 21


def test_the_order_of_replies_and_a_repetition_change_nothing() -> None:
    once, _ = write(good)
    assert once.seeds == write(good, last_first=True)[0].seeds == write(good)[0].seeds
    assert once.seeds != write(good, seed=1)[0].seeds


def test_a_broken_reply_is_asked_for_once_more() -> None:
    def function(request: Request) -> str:
        return good(request) if is_repair(request) or request.seed % 3 else "{broken"

    result, client = write(function)
    broken = sum(1 for request in client.asked if is_repair(request))
    assert broken and result.repaired == broken and len(result.seeds) == result.planned and not result.failures
    assert result.asked == result.planned + broken == len(client.asked)
    repair = next(request for request in client.asked if is_repair(request))
    assert repair.messages[1]["content"] == "{broken" and "no JSON object" in repair.messages[2]["content"]


def test_what_stays_broken_is_counted_kept_and_tried_anew() -> None:
    result, _ = write(lambda request: "rubbish" if request.sample == 0 and request.seed % 4 == 0 else good(request))
    lost = result.failures["no JSON object"]
    assert lost > 0 and len(result.seeds) == result.planned and not result.shortfall
    assert [one["text"] for one in result.rejected] == ["rubbish"] * lost
    assert {one["reason"] for one in result.rejected} == {"no JSON object"} and {
        one["attempt"] for one in result.rejected
    } == {0}


def test_a_shortfall_is_stated() -> None:
    def function(request: Request) -> str | Reply:
        return Reply("", "failed", reason="time-out") if request.seed % 5 == 0 else good(request)

    result, _ = write(function)
    missing = result.planned - len(result.seeds)
    assert missing and sum(result.shortfall.values()) == missing
    assert result.failures == {"no reply: time-out": 2 * missing}, "two attempts each"


def test_one_bad_reply_loses_no_other() -> None:
    result, _ = write(lambda request: "\x00{" * 9 if request.seed % 4 == 0 else good(request), attempts=1)
    assert 0 < len(result.seeds) < result.planned == len(result.seeds) + len(result.rejected)


def test_near_duplicates_are_dropped_and_asked_for_anew() -> None:
    with pytest.raises(UserError, match="no seed for law: of .* a near-duplicate of another seed"):
        write(lambda request: json.dumps({"document": document(Request("", seed=1))}), two_domain_share=0)
    result = write_seeds(
        ScriptedClient(lambda r: json.dumps({"document": document(r if r.sample else Request("", seed=1))})),
        DOMAINS,
        per_domain=4,
        two_domain_share=0,
    )
    assert len(result.seeds) == 8 and result.failures == {NEAR_DUPLICATE: 7}


def test_a_model_that_cannot_write_json_is_asked_for_text() -> None:
    result, client = write(lambda request: "Once upon a time" if wants_json(request) else good(request), per_domain=20)
    assert result.format == "text" and len(result.seeds) == result.planned and not result.shortfall
    assert sum(wants_json(request) and not is_repair(request) for request in client.asked) == PROBE
    assert result.failures == {"no JSON object": PROBE}


def test_text_asks_for_no_json() -> None:
    result, client = write(good, format="text")
    assert not any(wants_json(request) for request in client.asked) and len(result.seeds) == result.planned


def test_nothing_usable_is_refused_with_the_reason() -> None:
    with pytest.raises(UserError, match=r"no seed for medicine, law: of \d+ replies 0 are usable .* begins 'I cannot"):
        write(lambda request: "I cannot help with that.")


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"format": "xml"}, "format must be one of auto, json, text"),
        ({"per_domain": 0}, "per_domain and attempts must be at least 1"),
        ({"two_domain_share": 1.5}, "two_domain_share between 0 and 1"),
    ],
)
def test_wrong_arguments(how: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        write(good, **how)


def test_progress_says_how_many_of_how_many() -> None:
    lines: list[tuple[int, int]] = []
    result, _ = write(good, progress=lambda done, total, _: lines.append((done, total)))
    assert lines == [(done, result.planned) for done in range(1, result.planned + 1)]


def test_topics_are_listed_by_the_model() -> None:
    client = ScriptedClient(lambda request: '["bail", "wills", "torts"]')
    assert write_topics(client, DOMAINS, per_domain=2) == {"medicine": ["bail", "wills"], "law": ["bail", "wills"]}
    with pytest.raises(UserError, match="no topic of 'medicine' came back"):
        write_topics(ScriptedClient(lambda request: " "), DOMAINS)


# -- duplicates --------------------------------------------------------------------------------------------------------


def seed(name: str, text: str, *domains: str) -> Seed:
    return Seed(name, text, domains or ("law",))


LONG = "The court held that the notice was late and that the tenant could stay in the house until the end of the year"


def test_equal_texts_become_one_seed_of_both_domains() -> None:
    seeds = [
        seed("a", LONG, "law"),
        seed("b", LONG.replace(" ", "  "), "medicine"),
        seed("c", "Quite another text here"),
    ]
    kept, left, dropped = drop_duplicates(seeds)
    assert kept == [0, 2] and left[0].domains == ("law", "medicine") and left[1] == seeds[2]
    assert [(one["id"], one["like"], one["reason"]) for one in dropped] == [("b", "a", "the same text")]


def test_nearly_the_same_words_and_nearly_the_same_embedding() -> None:
    seeds = [seed("a", LONG), seed("b", LONG + " now"), seed("c", "A dog barks at night"), seed("d", "A hound is loud")]
    kept, left, dropped = drop_duplicates(seeds, vectors=np.array([[1, 0], [0, 1], [3, 4.0], [6, 8.1]]), cosine=0.99)
    assert kept == [0, 2] and [one.id for one in left] == ["a", "c"]
    assert [(one["id"], one["reason"]) for one in dropped] == [
        ("b", "nearly the same words"),
        ("d", "nearly the same embedding"),
    ]
    assert drop_duplicates([]) == ([], [], [])


def test_keywords_are_not_alike_for_their_domain_s_description() -> None:
    domains = {"medicine": "diseases, their diagnosis and treatment, drugs, nursing, hospitals, patients and research"}
    seeds = seeds_of_keywords({"medicine": ["asthma", "stroke", "sepsis"]}, domains)
    seeds += [seed("a", LONG), seeds[0], seed("b", LONG + " now")]
    kept, _, dropped = drop_duplicates(seeds, vectors=np.ones((6, 2)))
    assert kept == [0, 1, 2, 3]
    assert [(one["like"], one["reason"]) for one in dropped] == [
        (seeds[0].id, "the same text"),
        ("a", "nearly the same words"),
    ]


def test_the_first_that_stays_is_found_as_by_a_plain_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ntk_jax.data.alike.BLOCK", 7)
    rows = np.random.default_rng(0).standard_normal((40, 3)).astype(np.float32)
    rows[11] = 0
    unit = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-30)
    expected: list[int] = []
    for i in range(len(rows)):
        stays = [j for j in range(i) if expected[j] == j and unit[i] @ unit[j] >= 0.9]
        expected.append(stays[0] if stays else i)
    assert first_alike(rows, 0.9).tolist() == expected and expected[11] == 11 and len(set(expected)) < 40
