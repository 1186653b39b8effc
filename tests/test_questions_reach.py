"""Where quotations stand, and how many annotated spans questions reach."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.questions.reach import locate, reached, spans_of

TEXT = (
    "The Agent\u2019s fee is 2.5 % \u2014 payable within\n thirty (30) days.  Neither party may assign this "
    "\u201cAgreement\u201d without the prior written consent of the other. It ends on May 5, 2030."
)


def found(quote: str, text: str = TEXT) -> str | None:
    place = locate(quote, text)
    return None if place is None else text[slice(*place)]


@pytest.mark.parametrize(
    ("quote", "there"),
    [
        ("Neither party may assign", "Neither party may assign"),
        ("neither PARTY may  assign", "Neither party may assign"),
        ('"Neither party may assign."', "Neither party may assign"),
        ("the agent's fee is", "The Agent\u2019s fee is"),
        ("2.5 % - payable within thirty (30) days", "2.5 % \u2014 payable within\n thirty (30) days"),
        ('assign this "agreement" without', "assign this \u201cAgreement\u201d without"),
        ("may assign ... written consent", "may assign this \u201cAgreement\u201d without the prior written consent"),
        ("fee is 2.5 [\u2026] May 5, 2030", TEXT[TEXT.index("fee") : -1]),
        ("(30) days", "(30) days"),
        ("May 5, 2030.", "May 5, 2030."),
        ("...without the prior written consent...", "without the prior written consent"),
    ],
)
def test_quotations_that_are_there(quote: str, there: str) -> None:
    assert found(quote) == there


@pytest.mark.parametrize(
    "quote",
    [
        "Neither party can assign",
        "written consent ... may assign",
        "either party may assign",
        "Neither party may ass",
        "prior written",
        "the ... of ... party",
        "consent",
        "5 %",
        "2.",
        "203",
        "",
        " ... ",
        '"".',
        "party may assign ... party may assign",
    ],
)
def test_quotations_that_are_not(quote: str) -> None:
    assert locate(quote, TEXT) is None


def test_few_words_count_if_they_are_all_there_is() -> None:
    assert found("Rent.", "Rent") == "Rent" and found("rent", "Rent is due") is None
    assert found("\u79df\u6237\u652f\u4ed8", "\u79df\u6237\u652f\u4ed8\u79df\u91d1") == "\u79df\u6237\u652f\u4ed8"
    assert found("the \ufb01rst of may", "on the first of May") == "the first of May"
    assert found("the first of may", "on the \ufb01r\u00adst of May") == "the \ufb01r\u00adst of May"


def test_an_ellipsis_of_the_text_itself() -> None:
    assert found("rent ... and costs", "pay rent ... and costs, rent and more and costs") == "rent ... and costs"


words = st.lists(st.text(st.characters(categories=["L", "N"]), min_size=1, max_size=6), min_size=3, max_size=12)
spaces = st.text(" \n\t\u00a0", min_size=1, max_size=3)


@settings(deadline=None)
@given(words, st.data())
def test_every_run_of_words_is_found(own: list[str], data: st.DataObject) -> None:
    gaps = [data.draw(spaces) for _ in own]
    text = "".join(gap + word for gap, word in zip(gaps, own, strict=True))
    start = data.draw(st.integers(0, len(own) - 3))
    stop = data.draw(st.integers(start + 3, len(own)))
    quote = "  ".join(own[start:stop])
    place = locate(quote, text)
    assert place is not None
    assert " ".join(text[slice(*place)].split()).casefold() == " ".join(quote.split()).casefold()


@settings(deadline=None)
@given(st.text(max_size=60), st.text(max_size=60))
def test_any_two_texts(quote: str, text: str) -> None:
    place = locate(quote, text)
    if place is not None:
        assert 0 <= place[0] < place[1] <= len(text)
        assert locate(text[slice(*place)], text[slice(*place)]) == (0, place[1] - place[0])


SPANS = {
    "a": [("Fee", "The fee is due within thirty days of the invoice"), ("Law", "the laws of Nevada govern")],
    "b": [("Fee", "No fee is due <omitted> until the first of June of every year")],
    "c": [],
}


@pytest.mark.parametrize(
    ("quotes", "share"),
    [
        ({}, 0),
        ({"a": ["the FEE is due, within thirty days"]}, 1),
        ({"a": ["due within thirty days of the whole agreement"]}, 1),
        ({"a": ["the laws of Nevada govern"], "b": ["until the first of June"]}, 2),
        ({"a": ["of the invoice"], "b": ["the laws of Nevada govern"]}, 1),
        ({"a": ["of the", "thirty", "The fee is not due before it is asked for"]}, 0),
        ({"a": ["The fee is due within the laws of Nevada govern"]}, 2),
        ({"a": ["The fee is due and nobody pays it before they have to"]}, 0),
        ({"a": ["the laws of ... Nevada"], "zzz": ["more"]}, 1),
        ({"a": ["the laws ... Nevada govern"], "b": ["first of ... every year"]}, 0),
    ],
)
def test_spans_reached(quotes: dict[str, list[str]], share: int) -> None:
    result = reached(SPANS, quotes)
    assert (result["spans"], result["reached"]) == (3, share) and result["share"] == pytest.approx(share / 3)
    assert sum(one["reached"] for one in result["by_category"].values()) == share
    assert sum(one["spans"] for one in result["by_document"].values()) == 3 and "c" not in result["by_document"]
    json.dumps(result)


def test_no_spans_have_no_share() -> None:
    assert reached({}, {"a": ["x"]})["share"] is None


@settings(deadline=None)
@given(st.dictionaries(st.sampled_from("ab"), st.lists(st.text(max_size=30), max_size=3)))
def test_more_quotations_reach_no_fewer(quotes: dict[str, list[str]]) -> None:
    more = {name: [*own, "the laws of Nevada govern"] for name, own in quotes.items()}
    assert reached(SPANS, quotes)["reached"] <= reached(SPANS, more)["reached"] <= 3


def test_gold_spans_of_contracts_are_located(shared: Path) -> None:
    def rows(name: str) -> list[dict[str, object]]:
        with gzip.open(shared / "data" / "legal" / name, "rt", encoding="utf8") as file:
            return [json.loads(line) for line in file]

    spans = spans_of(rows("cuad_master.jsonl.gz"))
    texts = {str(row["id"]): str(row["text"]) for row in rows("documents.jsonl.gz")}
    assert len(spans) == 39 and sum(map(len, spans.values())) == 386
    there = sum(locate(span, texts[name]) is not None for name, own in spans.items() for _, span in own)
    assert there == 382, "32 of them around an <omitted>; four more begin or end within a word"
    own = {name: [text for _, text in own] for name, own in spans.items()}
    assert reached(spans, own)["share"] == 1.0, "the spans reach themselves"
    others = list(own.values())
    crossed = reached(spans, dict(zip(own, [*others[1:], others[0]], strict=True)))
    assert crossed["share"] < 0.02, "those of other contracts do not"
