"""What is said of seeds: which cells they cover, and how their words compare with the corpus's."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.mining.seeds.coverage import coverage
from ntk_jax.mining.seeds.dimensions import Dimensions, Length
from ntk_jax.mining.seeds.lexical import FIGURES, compare_lexical, lexical, syllables_of
from ntk_jax.mining.seeds.plan import plan_seeds
from ntk_jax.mining.seeds.seed import Seed

SMALL = Dimensions(("memo", "email"), (Length("short", 5, 10),), ("calm", "cross", "dry"))


def seed(number: int, *domains: str, **facts: object) -> Seed:
    return Seed(str(number), f"text {number}", domains, facts)


def test_coverage_counts_cells_and_names_gaps() -> None:
    seeds = [
        seed(0, "law", origin="written", type="memo", length="short", demeanour="calm", topic="Bail. "),
        seed(1, "law", "art", origin="written", type="memo", length="short", demeanour="dry", topic="bail"),
        seed(2, "law", origin="written", type="memo", length="short", demeanour="dry", topics=["wills"]),
        seed(3, "law", origin="document"),
        seed(4, "law", type="sonnet", length="short", demeanour="dry"),
    ]
    found = coverage(seeds, ["law", "art"], SMALL, {"law": ["Wills", "torts"]})
    law = found["law"]
    assert (law["seeds"], law["placed"], law["several"], law["cells"], law["of"]) == (5, 3, 1, 2, 6)
    assert law["origins"] == {"document": 1, "file": 1, "written": 3}
    assert law["types"] == {"memo": 3, "email": 0} and law["demeanours"] == {"calm": 1, "cross": 0, "dry": 2}
    assert law["table"] == [[1, 0, 2], [0, 0, 0]]
    assert law["gaps"] == {"types": ["email"], "lengths": [], "demeanours": ["cross"]}
    assert law["topics"] == 2 and law["topic_gaps"] == ["torts"]
    assert found["art"]["seeds"] == 1 and "topic_gaps" not in found["art"]


def test_a_plan_that_is_filled_covers_all_its_cells() -> None:
    slots = plan_seeds(["law"], per_domain=6, two_domain_share=0, dimensions=SMALL)
    seeds = [
        Seed(s.id, s.id, s.domains, {"type": s.type, "length": s.length.name, "demeanour": s.demeanour}) for s in slots
    ]
    law = coverage(seeds, ["law"], SMALL)["law"]
    assert law["cells"] == law["of"] == 6 and not any(law["gaps"].values())


def test_lexical_figures_of_a_text_counted_by_hand() -> None:
    found = lexical(["The cat sat. The dog ran away."])  # 7 words, 6 different, 2 sentences, 8 syllables
    assert (found["texts"], found["words"]) == (1, 7)
    assert found["diversity"] == pytest.approx(6 / 7)
    assert found["hapax_share"] == pytest.approx(5 / 6)
    assert found["richness"] == pytest.approx(6 / math.sqrt(7))
    assert found["distinct_pairs"] == 1.0
    assert found["words_per_sentence"] == 3.5
    assert found["reading_ease"] == pytest.approx(206.835 - 1.015 * 3.5 - 84.6 * 8 / 7)
    assert found["grade"] == pytest.approx(0.39 * 3.5 + 11.8 * 8 / 7 - 15.59)


@pytest.mark.parametrize(
    ("word", "number"), [("cat", 1), ("away", 2), ("table", 2), ("take", 1), ("medicine", 3), ("the", 1), ("nth", 1)]
)
def test_syllables(word: str, number: int) -> None:
    assert syllables_of(word) == number


def test_harder_text_has_a_lower_reading_ease() -> None:
    easy = lexical(["The cat sat on the mat. It was warm. The dog ran."])
    hard = lexical(
        ["Jurisdictional considerations notwithstanding, administrative adjudication necessitates deliberation."]
    )
    assert easy["reading_ease"] > 80 > 0 > hard["reading_ease"] and easy["grade"] < hard["grade"]


def test_both_sides_are_measured_on_equally_many_words() -> None:
    draw = random.Random(0)
    texts = [
        " ".join(draw.choices([f"w{chr(97 + i)}{chr(97 + j)}" for i in range(26) for j in range(9)], k=60))
        for _ in range(90)
    ]
    found = compare_lexical({"seeds": texts[:10], "corpus": texts})
    assert found["seeds"]["words"] == found["corpus"]["words"] == 600
    for figure in ("hapax_share", "richness", "diversity"):  # the same kind of text: all of it would have other figures
        assert found["seeds"][figure] == pytest.approx(found["corpus"][figure], rel=0.12)
    assert lexical(texts)["hapax_share"] < 0.2 * found["seeds"]["hapax_share"]
    assert compare_lexical({"seeds": texts, "corpus": texts}, most=100)["corpus"]["words"] == 100


def test_no_word_gives_no_figures() -> None:
    found = compare_lexical({"seeds": ["", "123 !"], "corpus": ["one two"]})
    assert found["seeds"]["words"] == 0 and all(math.isnan(found["seeds"][name]) for name in FIGURES)
    assert found["corpus"]["words"] == 2


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text(alphabet="ab cd.\n", max_size=80), max_size=5), st.none() | st.integers(1, 40), st.integers(0, 3)
)
def test_shares_are_shares(texts: list[str], words: int | None, draw: int) -> None:
    found = lexical(texts, words=words, seed=draw)
    assert found == pytest.approx(lexical(texts, words=words, seed=draw), nan_ok=True)
    if found["words"]:
        assert words is None or found["words"] <= words
        assert all(0 < found[name] <= 1 for name in ("diversity",)) and 0 <= found["hapax_share"] <= 1
        assert found["words_per_sentence"] > 0
