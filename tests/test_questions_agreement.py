"""How far two answers say the same, and numbers in one way of writing."""

from __future__ import annotations

import math

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ntk_jax.questions.agreement import agreement, consistency
from ntk_jax.questions.numerals import number_at, numbered, plain_number

WORDS = (
    "yes no Yes, No. not without never 30 thirty (30) days one million $5 % May 5, 2020-01-05 cannot don't the "
    "party \u79df \u0416 \ufb01 \u00bd ... \ud800 1,000 twenty five and hundred"
)
texts = st.text(max_size=40) | st.lists(st.sampled_from(WORDS.split()), max_size=9).map(" ".join)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("thirty (30) days", "30 days"),
        ("Fifty percent (50%)", "50 percent"),
        ("twenty-five years", "25 years"),
        ("one hundred and twenty (120) days", "120 days"),
        ("two thousand five hundred", "2500"),
        ("two hundred thousand", "200000"),
        ("$5 million", "5000000 dollars"),
        ("five million dollars ($5,000,000)", "5000000 dollars"),
        ("1.5 million", "1500000"),
        ("$1,000.50", "1000.5 dollars"),
        ("2020-01-05", "5 january 2020"),
        ("Jan. 5th, 2020", "january 5 2020"),
        ("one year", "1 year"),
        ("no one", "no one"),
        ("one of the parties", "one of the parties"),
        ("one two", "1 2"),
        ("Section 4.20.1", "section 4.2 1"),
        ("\uff13\uff10 days", "30 days"),
        ("2020-13-05", "2020 13 5"),
        ("c0de 10-K", "c0de 10 k"),
        ("-2 million or \u22125%", "-2000000 or -5 percent"),
        ("5-10 days, 5 - 10 days, -0", "5 10 days 5 10 days 0"),
    ],
)
def test_numbers_in_one_way(text: str, words: str) -> None:
    assert " ".join(numbered(text)) == words


@settings(deadline=None)
@given(st.integers(0, 99), st.integers(0, 99))
def test_numbers_in_words(tens: int, rest: int) -> None:
    units = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    units += "seventeen eighteen nineteen"
    names = ["twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety"]

    def spelled(value: int) -> list[str]:
        if value < 20:
            return [units.split()[value]]
        return [names[value // 10 - 2], *([units.split()[value % 10]] if value % 10 else [])]

    assert number_at(spelled(tens), 0) == (tens, len(spelled(tens)))
    if tens and rest:
        long = [*spelled(tens), "thousand", *spelled(rest)]
        assert number_at(long, 0) == (1000 * tens + rest, len(long))


@settings(deadline=None)
@given(st.decimals(0, 10**12, allow_nan=False, places=3))
def test_a_plain_number_is_the_same_number(number: object) -> None:
    assert float(plain_number(f"{number:,}")) == float(str(number))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("thirty (30) days", "30 days"),
        ("Yes.", "Yes, because the tenant pays the rent."),
        ("No", "No. The agreement forbids it."),
        ("The laws of Nevada", "law of nevada"),
        ("The licensee may not assign it.", "No, the licensee may not assign it."),
        ("It doesn't apply.", "It does not apply"),
        ("According to the passage, the term is five years.", "The term is 5 years."),
        ("January 5, 2020", "5 January 2020"),
        ("He may not sell nor lease it.", "He may not sell or lease it."),
        ("The passage states that the term is 5 years.", "5 years is the term"),
    ],
)
def test_the_same(a: str, b: str) -> None:
    assert agreement(a, b) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Yes, the tenant pays the rent.", "No, the tenant pays the rent."),
        ("The notice is 30 days.", "The notice is 60 days."),
        ("The notice is thirty days.", "The notice is two months, or 61 days."),
        ("It ends on May 5.", "It ends on June 6."),
        ("The licensee may assign the contract.", "The licensee may not assign the contract."),
        ("He may assign with consent.", "He may assign without consent."),
        ("The agent cannot sign for the owner.", "The agent can sign for the owner."),
        ("There is no cure. It is not rare.", "There is a cure. It is not rare."),
        ("The margin was -2 percent.", "The margin was 2 percent."),
        ("Nor may he assign the contract.", "He may assign the contract."),
        ("apples", "rent"),
        ("", "rent"),
        ("30 days", "?"),
    ],
)
def test_not_the_same(a: str, b: str) -> None:
    assert agreement(a, b) == 0.0


def test_between() -> None:
    assert agreement("red green blue", "red green") == pytest.approx(0.8)
    both = agreement("30 days and 5 percent", "30 days and 10 percent")
    assert both == pytest.approx((1 / 3) * 0.75), "one number of three in common, three of four words"
    assert agreement("30 days and 5 percent", "30 days") == pytest.approx(2 / 3), "nothing contradicts"
    assert 0 < agreement("May 5, 2020", "June 5, 2020") < 0.5
    assert agreement("No party may assign this.", "Yes, a party may assign this.") == 0.0


@settings(deadline=None)
@given(texts, texts)
@example("not", "")
@example("!", "?")
def test_of_any_two_texts(a: str, b: str) -> None:
    assert agreement(a, b) == agreement(b, a)
    assert 0.0 <= agreement(a, b) <= 1.0
    assert agreement(a, a) == 1.0 and agreement(b, f" {b}\n") == 1.0


@settings(deadline=None)
@given(st.lists(texts, min_size=2, max_size=4))
def test_consistency_is_a_mean(answers: list[str]) -> None:
    assert consistency(answers) == pytest.approx(consistency(answers[::-1]))
    assert 0.0 <= consistency(answers) <= 1.0 and consistency([answers[0]] * 3) == 1.0


def test_consistency_by_hand() -> None:
    assert consistency(["30 days", "thirty days", "60 days"]) == pytest.approx(1 / 3)
    assert math.isnan(consistency(["alone"])) and math.isnan(consistency([]))
