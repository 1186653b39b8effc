"""What is left out of a selection: evaluation items, near-duplicates, full groups; how rankers are asked for more."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ntk_jax as nj
from ntk_jax.data.evaluation_items import evaluation_items
from ntk_jax.data.near_duplicates import MinHash, band_keys, bands, keys_of_bands, near_duplicates, signature
from ntk_jax.data.near_index import NearIndex
from ntk_jax.data.words import bare_words
from ntk_jax.errors import UserError
from ntk_jax.selection.clean import (
    CONTAMINATED,
    NEAR_DOMAIN,
    NEAR_SKETCH,
    NEAR_TEXT,
    QUOTA,
    Leaks,
    NearTexts,
    NearVectors,
    walk,
)
from ntk_jax.selection.deeper import again, deeper
from ntk_jax.selection.quotas import QuotaOptions, Quotas, caps_of, check_filled
from ntk_jax.selection.ranker import Ranking
from ntk_jax.selection.top import top_places

LETTERS = st.lists(st.sampled_from("abc"), max_size=12)


def item(prompt: str, response: str = "", **more):
    return {"id": prompt[:8], "prompt": prompt, "response": response, **more}


def runs_of(words: list[str], length: int) -> set[tuple[str, ...]]:
    return {tuple(words[i : i + length]) for i in range(len(words) - length + 1)}


class TestEvaluationItems:
    def test_a_shared_run_is_found_with_its_item_and_words(self):
        text = "one two three four five six seven eight nine ten"
        items = evaluation_items([("a.jsonl", item("zero " * 9)), ("b.jsonl", item(text, "yes"))], words=4)
        found = items.overlap("Before. FIVE, six - seven; eight! nine, after")
        assert found is not None and items.ids[found.item] == text[:8] and items.files[found.item] == "b.jsonl"
        assert found.words == "five six seven eight"
        assert found.share == pytest.approx(2 / 8), "2 runs of the 7 of the prompt and the one with the response"
        assert items.overlap("five six seven and eight nine ten") is None
        assert items.overlap("five six seven eight nine", 0.25) == items.overlap("five six seven eight nine")
        assert items.overlap("five six seven eight nine", 0.26) is None
        assert items.overlap("") is None

    def test_shorter_items_are_looked_for_whole(self):
        records = [item("What is the capital of France?", "Paris"), item("Is it so?", "no"), item("a b c d", "e")]
        items = evaluation_items([("f", record) for record in records], words=13, shortest=5)
        assert items.short == 1, "four words with the answer"
        found = items.overlap("Tell me: what is the capital of France? It is Lyon.")
        assert found is not None and found.words == "what is the capital of france"
        assert items.overlap("what is the capital of Spain? of France?") is None
        whole = items.overlap("x a b c d e y")
        assert whole is not None and whole.item == 2 and whole.share == 1.0
        assert items.overlap("x a b c d y") is None, "the prompt alone has four words"

    def test_a_short_question_with_choices_counts_with_its_answer_alone(self):
        record = item("Which of the following is true?", "Cats purr", choices=["Cats purr", "Dogs purr"], answer=0)
        items = evaluation_items([("f", record)])
        assert items.overlap("Which of the following is true? Fish swim") is None
        assert items.overlap("Which of the following is true? Cats purr") is not None

    def test_nothing_to_look_for(self):
        assert evaluation_items([]).overlap("any text at all") is None
        assert evaluation_items([("f", item("a"))]).overlap("a") is None

    @given(LETTERS, st.lists(st.tuples(LETTERS, LETTERS), max_size=4), st.integers(1, 4), st.integers(1, 3))
    def test_it_finds_what_comparing_finds(self, text, parts, words, shortest):
        items = evaluation_items(
            [("f", item(" ".join(prompt), " ".join(response))) for prompt, response in parts], words, shortest
        )
        own: list[set[tuple[str, ...]]] = []
        for prompt, response in parts:
            found = set()
            for one in (prompt, prompt + response):
                if len(one) >= shortest:
                    found |= runs_of(one, min(words, len(one)))
            own.append({run for run in found if run and not any(run in before for before in own)})
        shares = [len({r for r in runs if r in runs_of(text, len(r))}) / max(len(runs), 1) for runs in own]
        overlap = items.overlap(" ".join(text))
        if not any(shares):
            assert overlap is None
        else:
            assert overlap is not None and overlap.share == pytest.approx(max(shares))
            assert overlap.item == shares.index(max(shares))
            assert tuple(bare_words(overlap.words)) in own[overlap.item] & runs_of(text, len(overlap.words.split()))


class TestNearIndex:
    @given(st.lists(LETTERS, max_size=8), st.sampled_from([0.2, 0.5, 0.9, 1.0]))
    def test_it_finds_the_first_that_comparing_finds(self, texts, threshold):
        hashing = MinHash(words=2, permutations=32)
        signatures = [signature(" ".join(text), hashing) for text in texts]
        index = NearIndex(threshold, 32)
        count = bands(threshold, 32)[0]
        for place, own in enumerate(signatures):
            expected = None
            for before, other in enumerate(signatures[:place]):
                pair = np.stack([own, other])
                share = float((own == other).mean())
                if share >= threshold and any(len(set(band_keys(pair, b, threshold))) == 1 for b in range(count)):
                    expected = before, share
                    break
            assert index.first_like(own) == expected
            assert index.add(own) == place

    def test_a_key_is_that_of_its_band(self):
        for threshold in (0.3, 0.8, 1.0):
            own = signature("the cat sat on the mat and looked at me")
            count = bands(threshold, len(own))[0]
            expected = [int(band_keys(own[None], band, threshold)[0]) for band in range(count)]
            assert keys_of_bands(own, threshold).tolist() == expected

    def test_a_threshold_outside(self):
        with pytest.raises(ValueError, match="threshold"):
            NearIndex(0.0, 128)


def near(texts: list[str], threshold: float, domain: dict[str, str] | None = None) -> NearTexts:
    hashing = MinHash(words=2)
    return NearTexts(
        threshold,
        lambda place: signature(texts[place], hashing),
        lambda place: f"id-{place}",
        permutations=hashing.permutations,
        domain={name: signature(text, hashing) for name, text in (domain or {}).items()},
    )


class TestWalk:
    def test_nothing_to_check_is_the_order_itself(self):
        cleaned = walk(np.array([4, 2, 7]), 2, [])
        assert cleaned.kept.tolist() == [4, 2] and cleaned.drops == []

    def test_the_better_ranked_of_two_alike_stays(self):
        texts = ["a cat sat on a mat", "dogs bark all night long", "A cat, sat on a mat!", "the end of it all"]
        cleaned = walk([2, 1, 0, 3], None, [near(texts, 0.8)])
        assert cleaned.kept.tolist() == [2, 1, 3]
        (drop,) = cleaned.drops
        assert (drop.place, drop.rank, drop.refusal.reason) == (0, 3, NEAR_TEXT)
        assert (drop.refusal.of, drop.refusal.where, drop.refusal.similarity) == ("id-2", "selection", 1.0)

    def test_what_is_refused_refuses_nothing(self):
        """A copy of what another check refused stays: it is like nothing that was selected."""
        texts = ["a cat sat on a mat", "a cat sat on a mat", "dogs bark all night long"]
        quotas = Quotas(["full", "free", "free"], {"full": 0, "free": 3})
        cleaned = walk([0, 1, 2], 2, [quotas, near(texts, 0.8)])
        assert cleaned.kept.tolist() == [1, 2] and cleaned.counts == {QUOTA: 1}

    def test_the_domain_comes_first(self):
        cleaned = walk([0, 1], None, [near(["a cat sat on a mat", "x y z"], 0.8, {"box": "A cat sat on a mat."})])
        assert cleaned.kept.tolist() == [1] and cleaned.drops[0].refusal.reason == NEAR_DOMAIN
        assert (cleaned.drops[0].refusal.of, cleaned.drops[0].refusal.where) == ("box", "domain")

    def test_leaks_name_the_item(self):
        items = evaluation_items([("test.jsonl", item("one two three four five six", "seven"))])
        texts = ["nothing", "say one two three four five six"]
        cleaned = walk([1, 0], 1, [Leaks(items, lambda place: items.overlap(texts[place]))])
        assert cleaned.kept.tolist() == [0] and cleaned.counts == {CONTAMINATED: 1}
        refusal = cleaned.drops[0].refusal
        assert (refusal.of, refusal.where, refusal.shared) == ("one two ", "test.jsonl", "one two three four five six")

    @given(st.lists(LETTERS, max_size=8), st.sampled_from([0.3, 1.0]))
    def test_of_what_stays_no_two_are_alike(self, texts, threshold):
        written = [" ".join(text) for text in texts]
        cleaned = walk(range(len(texts)), None, [near(written, threshold)])
        left = [written[place] for place in cleaned.kept]
        assert near_duplicates(left, threshold, hashing=MinHash(words=2)).tolist() == list(range(len(left)))
        assert len(cleaned.drops) + len(cleaned.kept) == len(texts)

    @given(st.integers(0, 1000), st.sampled_from([0.3, 0.8, 1.0]), st.booleans())
    def test_vectors_as_comparing_all_with_all(self, seed, threshold, with_domain):
        rng = np.random.default_rng(seed)
        rows = rng.integers(-1, 2, (12, 3)).astype(np.float32)
        norms = np.linalg.norm(rows, axis=1, keepdims=True)
        rows = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
        absent = {3, 7}
        domain = {"d": rows[11]} if with_domain else {}
        check = NearVectors(threshold, lambda p: None if p in absent else rows[p], str, domain=domain)
        cleaned = walk(range(10), None, [check])
        kept: list[int] = []
        reasons = []
        for place in range(10):
            others = [(NEAR_DOMAIN, rows[11])] if with_domain else []
            others += [(NEAR_SKETCH, rows[other]) for other in kept if other not in absent]
            alike = [reason for reason, other in others if place not in absent and rows[place] @ other >= threshold]
            if alike:
                reasons.append(alike[0])
            else:
                kept.append(place)
        assert cleaned.kept.tolist() == kept
        assert [drop.refusal.reason for drop in cleaned.drops] == reasons

    def test_more_vectors_than_the_first_room(self):
        rows = np.eye(600, dtype=np.float32)
        cleaned = walk([*range(600), 599, 0], None, [NearVectors(0.9, lambda place: rows[place], str)])
        assert cleaned.kept.tolist() == list(range(600)) and [d.refusal.of for d in cleaned.drops] == ["599", "0"]


class TestQuotas:
    def test_shares_and_numbers(self):
        options = QuotaOptions(most=0.5, groups={"a": 3, "b": 0.29, "c": 0, "d": 1000, "e": 0.0})
        assert caps_of(options, "abcdef", 100) == {"a": 3, "b": 29, "c": 0, "d": 100, "e": 0, "f": 50}
        assert caps_of(QuotaOptions(), "ab", 7) == {"a": 7, "b": 7} and not QuotaOptions().on
        assert caps_of(QuotaOptions(most=0.001), "a", 9) == {"a": 1}, "a share is one example at least"

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (QuotaOptions(most=0.0), "most = 0: a share"),
            (QuotaOptions(most=1.5), "most = 1.5: a share"),
            (QuotaOptions(groups={"a": 1.5}), "a = 1.5: a share is at most 1"),
            (QuotaOptions(groups={"a": -1}), "a = -1 is neither a share"),
            (QuotaOptions(groups={"a": "half"}), "a = 'half' is neither a share"),
            (QuotaOptions(groups={"a": True}), "a = True is neither a share"),
        ],
    )
    def test_what_is_no_quota(self, options, message):
        with pytest.raises(UserError, match=message):
            caps_of(options, "ab", 10)

    def test_groups_that_cannot_fill_a_selection_are_named(self):
        check_filled({"a": 5, "b": 5}, {"a": 50, "b": 5}, 10)
        with pytest.raises(UserError, match=r"leave 8 examples for a selection of 10; they hold back a 5 of 50;"):
            check_filled({"a": 5, "b": 5}, {"a": 50, "b": 3}, 10)

    @given(st.lists(st.sampled_from("abc"), min_size=1, max_size=30), st.integers(0, 4), st.integers(1, 30))
    def test_the_first_of_each_group_stay(self, groups, cap, want):
        cleaned = walk(range(len(groups)), want, [Quotas(groups, dict.fromkeys("abc", cap))])
        counts: Counter[str] = Counter()
        expected = []
        for place, group in enumerate(groups):
            if counts[group] < cap and len(expected) < want:
                counts[group] += 1
                expected.append(place)
        assert cleaned.kept.tolist() == expected


def by_score(scores: np.ndarray, asked: list[int]):
    def rank(count: int, usable: np.ndarray) -> Ranking:
        asked.append(count)
        return Ranking(scores, top_places(scores, usable, count))

    return rank


class TestDeeper:
    @settings(deadline=None)
    @given(st.integers(0, 500), st.integers(1, 20), st.data())
    def test_what_stays_is_the_clean_part_of_the_whole_order(self, seed, size, data):
        rng = np.random.default_rng(seed)
        scores = rng.standard_normal(size).astype(np.float32)
        scores[rng.random(size) < 0.2] = np.nan
        usable = rng.random(size) < 0.8
        known = int((usable & ~np.isnan(scores)).sum())
        if not known:
            return
        count = data.draw(st.integers(1, known))
        want = data.draw(st.integers(count, size + 3))
        bad = rng.random(size) < 0.5
        caps = {"good": size, "bad": 0}
        groups = ["bad" if b else "good" for b in bad]
        asked: list[int] = []
        chosen = deeper(
            by_score(scores, asked), lambda order, n: walk(order, n, [Quotas(groups, caps)]), usable, count, want
        )
        whole = [place for place in top_places(scores, usable, known).tolist() if not bad[place]]
        assert chosen.cleaned.kept.tolist() == whole[:want]
        assert asked[0] == count and max(asked) <= known and asked == sorted(set(asked))

    def test_it_asks_no_deeper_than_it_must(self):
        asked: list[int] = []
        scores = -np.arange(100, dtype=np.float32)
        chosen = deeper(by_score(scores, asked), lambda order, n: walk(order, n, []), np.ones(100, bool), 10, 10)
        assert asked == [10] and chosen.cleaned.kept.tolist() == list(range(10))
        asked.clear()
        deeper(by_score(scores, asked), lambda order, n: walk(order[order % 3 == 0], n, []), np.ones(100, bool), 10, 10)
        assert asked == [10, 20, 40]

    def test_a_ranker_without_scores_can_rank_all(self):
        def rank(count, usable):
            return Ranking(np.full(30, np.nan, np.float32), np.flatnonzero(usable)[:count])

        chosen = deeper(rank, lambda order, n: walk(order[order > 20], n, []), np.ones(30, bool), 5, 5)
        assert chosen.cleaned.kept.tolist() == [21, 22, 23, 24, 25]


class TestAgain:
    def test_what_was_refused_is_drawn_no_more(self):
        scores = -np.arange(20, dtype=np.float32)
        asked: list[int] = []
        texts = [f"number {place // 2} of all these" for place in range(20)]
        chosen = again(
            by_score(scores, asked), lambda order, n: walk(order, n, [near(texts, 0.9)]), np.ones(20, bool), 4
        )
        assert chosen.cleaned.kept.tolist() == [0, 2, 4, 6] and set(asked) == {4}
        assert [drop.place for drop in chosen.cleaned.drops] == [1, 3, 5]

    def test_a_full_group_is_left_at_once(self):
        asked: list[int] = []
        groups = ["big"] * 90 + ["small"] * 10
        chosen = again(
            by_score(-np.arange(100, dtype=np.float32), asked),
            lambda order, n: walk(order, n, [Quotas(groups, {"big": 3, "small": 9})]),
            np.ones(100, bool),
            10,
            groups,
        )
        assert chosen.cleaned.kept.tolist() == [0, 1, 2, *range(90, 97)] and len(asked) == 2

    def test_too_few_are_left(self):
        chosen = again(
            by_score(np.zeros(6, np.float32), []),
            lambda order, n: walk(order, n, [Quotas(["a"] * 6, {"a": 2})]),
            np.ones(6, bool),
            4,
            ["a"] * 6,
        )
        assert len(chosen.cleaned.kept) < 4 and chosen.cleaned.counts == {QUOTA: 2}


class TestApi:
    """The same functions without a run directory."""

    RECORDS = (
        item("one two three four five", "six", source="a"),
        item("a b c d e f g", "h", source="a"),
        item("ONE two, three four five", "six", source="a"),
    )

    def pool(self):
        return [{**record, "id": f"r{place}"} for place, record in enumerate(self.RECORDS)]

    def test_decontaminate_streams_and_names_items(self):
        drops = nj.decontaminate(iter(self.pool()), [item("zero one two three four five", "no")], ngram=4)
        assert [(drop.place, drop.refusal.of, drop.refusal.shared) for drop in drops] == [
            (0, "zero one", "one two three four"),
            (2, "zero one", "one two three four"),
        ]

    def test_near_duplicates_in_pool_order_in_a_given_order_and_of_the_domain(self):
        assert [(d.place, d.refusal.of) for d in nj.near_duplicates(self.pool())] == [(2, "r0")]
        assert [(d.place, d.rank, d.refusal.of) for d in nj.near_duplicates(self.pool(), order=[2, 1, 0])] == [
            (0, 3, "r2")
        ]
        drops = nj.near_duplicates(self.pool(), domain=[item("a b c d e f g", "h") | {"id": "d"}])
        assert [(d.place, d.refusal.of, d.refusal.where) for d in drops] == [(1, "d", "domain"), (2, "r0", "selection")]

    def test_diversify_takes_texts_and_features(self):
        pool = [{"id": str(n), "prompt": text, "response": ""} for n, text in enumerate(["a b"] * 3 + ["c d", "e f"])]
        assert sorted(nj.diversify(pool, 3, quality=0.1).tolist()) == [0, 3, 4]
        assert sorted(nj.diversify(np.eye(3)[[0, 0, 1, 2]], 3, method="dpp", quality=0.1).tolist()) == [0, 2, 3]

    @pytest.mark.parametrize(
        ("call", "message"),
        [
            (lambda pool: nj.decontaminate(pool, pool, ngram=0), "ngram = 0"),
            (lambda pool: nj.decontaminate(pool, [item("a")]), "none of 1 evaluation items has shortest = 5 words"),
            (lambda pool: nj.decontaminate(pool, pool, share=1.5), "share = 1.5"),
            (lambda pool: nj.near_duplicates(pool, 0.0), "threshold = 0: a threshold is above 0"),
            (lambda pool: nj.near_duplicates(pool, 1.1), "threshold = 1.1"),
            (lambda pool: nj.near_duplicates(pool, words=0), "words = 0"),
            (lambda pool: nj.near_duplicates(pool, order=[3]), "order names the place 3, and there are 3 examples"),
            (lambda pool: nj.near_duplicates(pool, order=[-1]), "order names the place -1"),
            (lambda pool: nj.diversify(pool, 4), "count = 4 is larger than the pool"),
            (lambda pool: nj.diversify(pool, 1, dim=0), "dim = 0"),
        ],
    )
    def test_bad_input(self, call, message):
        with pytest.raises(UserError, match=message):
            call(self.pool())
