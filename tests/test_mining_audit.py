"""The judge's verdicts, the audit of a labelling with planted wrong labels, and labels by a model directly."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scripted_llm import ScriptedClient

from ntk_jax.errors import UserError
from ntk_jax.llm.request import Reply, Request
from ntk_jax.llm.verdicts import ask_verdicts, first_words, read_verdict
from ntk_jax.mining.annotate import annotate
from ntk_jax.mining.audit import Audit, Item, Share, audit, audit_sample
from ntk_jax.mining.judge import question

DOMAINS = {"medicine": "illness and its treatment", "law": "statutes, courts and contracts"}
NAMES = list(DOMAINS)


def asked(request: Request) -> tuple[str, str]:
    """(domain, text) of a question."""
    content = request.messages[1]["content"]
    return content.split("Domain: ")[1].split("\n")[0], content.split("Text:\n")[1].split("\n\nDoes")[0]


def by_word(request: Request) -> str:
    """A judge that looks for the domain's name in the text."""
    domain, text = asked(request)
    return json.dumps({"reason": "its words", "answer": "yes" if domain in text else "no"})


@pytest.mark.parametrize(
    ("reply", "value"),
    [
        ('{"reason": "r", "answer": "yes"}', 1.0),
        ('Sure! ```json\n{"reason": "r", "answer": "No"}\n```', 0.0),
        ('{"reason": "r", "answer": true}', 1.0),
        ("Yes.", 1.0),
        ("No, it is about trees. no", 0.0),
    ],
)
def test_a_verdict_is_read(reply, value):
    assert read_verdict(Reply(reply, "stop"))[0] == value


@pytest.mark.parametrize("reply", ["", "maybe", "yes and no", '{"answer": "perhaps"}', "[]"])
def test_what_says_nothing_is_no_verdict(reply):
    found = read_verdict(Reply(reply, "stop"))
    assert found.reason and found.raw == reply


def test_a_failed_reply_is_no_verdict():
    assert read_verdict(Reply("yes", "failed", reason="timed out")).reason == "timed out"


def test_what_cannot_be_read_is_asked_once_more():
    replies = iter(["perhaps", "yes", "perhaps", "still perhaps", '{"reason": "", "answer": "no"}'])
    client = ScriptedClient(lambda request: next(replies))
    questions = [question(text, "law", DOMAINS["law"]) for text in ("a", "b", "c")]
    found = ask_verdicts(client, questions)  # replies: a perhaps, b yes, c perhaps; again a perhaps, c no
    np.testing.assert_array_equal(found.values, [np.nan, 1, 0])
    assert sum(found.failures.values()) == 1 and len(client.asked) == 5
    replies = iter(["perhaps"] * 3)
    assert np.isnan(ask_verdicts(client, questions, repair=False).values).all() and len(client.asked) == 8


def test_a_long_text_is_cut():
    assert first_words("a b c", 2) == "a b ..." and first_words("a b", 2) == "a b"
    assert asked(question("w " * 500, "law", "d", max_words=3))[1] == "w w w ..."


def labelled(rng: np.random.Generator):
    """Chunks whose text names their true domains, and a labelling that is right for 80% of those it labels law."""
    truth = rng.random((400, 2)) < 0.3
    assigned = truth.copy()
    wrong = np.flatnonzero(~truth[:, 1])[: int(truth[:, 1].sum() / 4)]
    assigned[wrong, 1] = True
    probabilities = np.where(assigned, 0.9, 0.1 + 0.2 * truth)
    texts = [" ".join(name for name, own in zip(NAMES, row, strict=True) if own) or "trees" for row in truth]
    return truth, assigned, probabilities, texts


def test_the_sample_is_what_it_says():
    truth, assigned, probabilities, _ = labelled(np.random.default_rng(0))
    items = audit_sample(
        assigned, NAMES, probabilities=probabilities, per_domain=20, planted=0.5, known={"law": [0, 1]}, seed=3
    )
    assert items == audit_sample(
        assigned, NAMES, probabilities=probabilities, per_domain=20, planted=0.5, known={"law": [0, 1]}, seed=3
    )
    for place, name in enumerate(NAMES):
        own = {
            kind: [i.ordinal for i in items if (i.domain, i.kind) == (name, kind)] for kind in ("labelled", "planted")
        }
        assert len(set(own["labelled"])) == 20 and assigned[own["labelled"], place].all()
        assert len(set(own["planted"])) == 10 and not assigned[own["planted"], place].any()
        assert (probabilities[own["planted"], place] <= 0.1 + 1e-9).all()
        assert assigned[own["planted"]].any(axis=1).sum() >= 5, "half of them belong elsewhere"
    assert [i.ordinal for i in items if i.kind == "known"] in ([0, 1], [1, 0])
    kinds = [item.kind for item in items]
    assert kinds != sorted(kinds), "the order says nothing"


def test_a_perfect_judge_measures_the_precision():
    truth, assigned, probabilities, texts = labelled(np.random.default_rng(0))
    items = audit_sample(assigned, NAMES, probabilities=probabilities, per_domain=400, planted=0.3)
    client = ScriptedClient(by_word, last_first=True)
    found = audit(client, items, DOMAINS, texts.__getitem__)
    expected = truth[assigned[:, 1], 1].mean()
    law = found.shares["law"]
    assert law["labelled"].value == pytest.approx(expected) and law["planted"].value == 0
    assert found.precision_bound("law") == pytest.approx(expected) and found.precision_bound("medicine") == 1.0
    assert 0 < found.precision_at_least("law") < expected, "the ends of both intervals, for verdicts are few"
    assert law["labelled"].interval[0] < expected < law["labelled"].interval[1]
    assert found.shares["all"]["labelled"].judged == assigned.sum() and not found.failures
    assert len(found.rows) == len(items) and {row["verdict"] for row in found.rows} == {"yes", "no"}
    assert [row["domain"] for row in found.table()] == ["all", "law", "medicine"]


def test_a_judge_that_accepts_everything_is_found_out():
    _, assigned, probabilities, texts = labelled(np.random.default_rng(0))
    items = audit_sample(assigned, NAMES, probabilities=probabilities, planted=0.3)
    found = audit(ScriptedClient(lambda request: "yes"), items, DOMAINS, texts.__getitem__)
    assert found.shares["all"]["labelled"].value == 1 and found.shares["all"]["planted"].value == 1
    assert np.isnan(found.precision_bound()), "such a judge says nothing on the precision"


def test_two_planted_labels_promise_little():
    """All 10 labels right and both planted ones refused: that is no precision of 1."""
    shares = {"law": {"labelled": Share(10, 10, 0), "planted": Share(0, 2, 0)}}
    found = Audit("j", shares, [], {})
    assert found.precision_bound("law") == 1.0 and found.precision_at_least("law") < 0.3
    unknown = Audit("j", {"law": {"labelled": Share(10, 10, 0), "planted": Share(0, 0, 0)}}, [], {})
    assert np.isnan(unknown.precision_at_least("law"))


def test_a_lenient_judge_is_corrected_for():
    """A judge that accepts every fourth wrong label: its agreement is above the precision, the bound is at it."""
    truth, assigned, probabilities, texts = labelled(np.random.default_rng(0))
    items = audit_sample(assigned, NAMES, probabilities=probabilities, per_domain=400, planted=1.0)
    wrong = iter(range(10**6))

    def lenient(request: Request) -> str:
        verdict = by_word(request)
        return verdict if "yes" in verdict or next(wrong) % 4 else "yes"

    found = audit(ScriptedClient(lenient), items, DOMAINS, texts.__getitem__)
    precision = truth[assigned].mean()
    assert found.shares["all"]["labelled"].value > precision + 0.02
    assert found.precision_bound() == pytest.approx(precision, abs=0.02)


def test_known_texts_measure_what_the_judge_accepts():
    items = [Item(0, "law", "known"), Item(1, "law", "known"), Item(0, "law", "labelled")]
    seeds = ["law", "a lease"]
    found = audit(ScriptedClient(by_word), items, DOMAINS, lambda chunk: "law", known_text=seeds.__getitem__)
    assert found.shares["law"]["known"].value == 0.5 and found.table()[0]["accepts known"] == 0.5


def test_what_is_refused():
    with pytest.raises(UserError, match="no chunk was labelled"):
        audit_sample(np.zeros((3, 2), bool), NAMES)
    with pytest.raises(UserError, match="per_domain = 0"):
        audit_sample(np.ones((3, 2), bool), NAMES, per_domain=0)
    items = [Item(0, "law", "labelled")]
    with pytest.raises(UserError, match="the judge scripted gave no verdict on any of 1 questions"):
        audit(ScriptedClient(lambda request: "hm"), items, DOMAINS, lambda chunk: "a")
    with pytest.raises(UserError, match="the domain law has no description"):
        audit(ScriptedClient(by_word), items, {"law": " "}, lambda chunk: "a")


def test_a_model_labels_texts():
    replies = {
        "one": '{"reason": "", "domains": ["Law", "medicine"]}',
        "two": '{"reason": "", "domains": []}',
        "three": '{"reason": "", "domains": ["sport"]}',
    }

    def answer(request: Request) -> str:
        return replies[request.messages[1]["content"].split("Text:\n")[1].split("\n")[0]]

    client = ScriptedClient(answer, last_first=True)
    found = annotate(client, list(replies), DOMAINS)
    np.testing.assert_array_equal(found.labels, [[1, 1], [0, 0], [np.nan, np.nan]])
    assert found.failures == {"a domain that is not on the list": 1}
    assert all(f"- {name}: {text}" in client.asked[0].messages[1]["content"] for name, text in DOMAINS.items())
    with pytest.raises(UserError, match="scripted labelled none of 1 texts"):
        annotate(ScriptedClient(lambda request: '{"domains": 3}'), ["one"], DOMAINS)
