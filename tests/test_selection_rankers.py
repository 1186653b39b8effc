"""What every ranker promises, and what each of them says it does."""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ntk_jax as nj
from ntk_jax.errors import UserError
from ntk_jax.selection import bm25, length_matched
from ntk_jax.selection.ranker import Candidates, Checkpoint, Components, Embeddings, Ranker, Sketches
from ntk_jax.selection.rankers import RANKERS
from ntk_jax.selection.sketch_store import create_sketches
from ntk_jax.selection.votes import Votes, keep_most_voted
from ntk_jax.storage.arrays import write_block

SIZE, COUNT, WIDTH = 30, 7, 6
WORDS = ("sun", "moon", "Tide", "café", "x_1", "42")


def record(text: str, response: str = "") -> dict[str, str]:
    return {"id": "i", "source": "s", "prompt": text, "response": response}


def sketch_store(folder: Path, rng: np.random.Generator, rows: int, dropped: np.ndarray):
    facts = {"seed": 0, "examples": folder.name}
    store = create_sketches(folder, rows, 4, dim=WIDTH, dtype="float32", longest_id=2, facts=facts)
    units = rng.standard_normal((rows, WIDTH))
    units /= np.linalg.norm(units, axis=1, keepdims=True)
    values = {
        "sketch": units.astype(np.float32),
        "sketch_norm": rng.gamma(2.0, size=rows).astype(np.float32),
        "norm": np.ones(rows, np.float32),
        "id": np.zeros((rows, 2), np.uint8),
        "ordinal": np.arange(rows),
        "status": dropped.astype(np.uint8),
        "length": np.ones(rows, np.int32),
        "span": np.ones(rows, np.int32),
        "truncated": np.zeros(rows, np.uint8),
        "notes": np.zeros(rows, np.uint8),
    }
    for block in range(store.blocks):
        write_block(store, block, {name: array[slice(*store.block_range(block))] for name, array in values.items()})
    return store


@pytest.fixture(scope="module")
def everything(tmp_path_factory) -> Candidates:
    """Candidates with all that any ranker may need. A few places are not usable, have no score, no sketch, no vote."""
    rng, folder = np.random.default_rng(0), tmp_path_factory.mktemp("stores")
    usable = np.ones(SIZE, bool)
    usable[[0, 11, 29]] = False
    scores = rng.standard_normal(SIZE).astype(np.float32)
    scores[[0, 3, 29]] = np.nan
    places = np.delete(np.arange(SIZE), [2, 5])
    dropped = ~usable[places]
    dropped[0] = False  # a sketch of a place that is not usable: it must not be selected
    votes = rng.integers(0, 4, SIZE)
    votes[~usable] = -1
    pool = [record(" ".join(rng.choice(WORDS, 6)), str(rng.choice(WORDS))) for _ in range(SIZE)]
    embedded = rng.standard_normal((len(places), WIDTH)).astype(np.float16)
    losses = rng.gamma(2.0, size=(2, SIZE)).astype(np.float32)
    losses[:, [0, 7, 29]] = np.nan
    candidates = Candidates(
        count=COUNT,
        seed=3,
        usable=usable,
        length=np.where(usable, 12, 0).astype(np.int32),
        span=np.where(usable, rng.integers(1, 4, SIZE), 0).astype(np.int32),
        records=lambda: iter(pool),
        domain=[record("the sun and the moon", "tide")],
        scores=scores,
        sketches=Sketches(
            sketch_store(folder / "pool", rng, len(places), dropped),
            sketch_store(folder / "domain", rng, 3, np.zeros(3, bool)),
            places,
        ),
        components=Components(
            np.where(np.isnan(scores)[:, None], np.nan, rng.standard_normal((SIZE, 2))).astype(np.float32),
            np.array([2.0, 0.5]),
            np.array([0.7, 0.1]),
        ),
        checkpoints=[
            Checkpoint(
                Sketches(
                    sketch_store(folder / f"pool{number}", rng, len(places), dropped),
                    sketch_store(folder / f"domain{number}", rng, 1, np.zeros(1, bool)),
                    places,
                ),
                weight,
            )
            for number, weight in enumerate((0.75, 0.25))
        ],
        votes=(votes, rng.random(SIZE).astype(np.float32)),
        embeddings=Embeddings(
            lambda: iter(np.split(embedded, [5, 5, 20])), places, rng.standard_normal((3, WIDTH)).astype(np.float16)
        ),
        losses=(losses[0], losses[1]),
    )
    return dataclasses.replace(candidates, selected=earlier_selections(candidates))


def earlier_selections(candidates: Candidates) -> dict[str, np.ndarray]:
    """Those of all rankers that look at no other's."""
    free = {name: ranker for name, ranker in RANKERS.items() if not ranker.after(ranker.options())}
    return {name: ranker.rank(candidates, ranker.options()).order for name, ranker in free.items()}


@pytest.mark.parametrize("ranker", RANKERS.values(), ids=RANKERS)
class TestEveryRanker:
    def test_the_order_and_the_scores(self, everything: Candidates, ranker: Ranker):
        found = ranker.rank(everything, ranker.options())
        assert found.order.shape == (COUNT,) and np.issubdtype(found.order.dtype, np.integer)
        assert len(set(found.order.tolist())) == COUNT and everything.usable[found.order].all()
        assert found.scores.shape == (SIZE,) and found.scores.dtype == np.float32
        assert np.isnan(found.scores).all() or np.isfinite(found.scores[found.order]).all()

    def test_the_same_seed_gives_the_same(self, everything: Candidates, ranker: Ranker):
        first, again = (ranker.rank(everything, ranker.options()) for _ in range(2))
        np.testing.assert_array_equal(first.order, again.order)
        np.testing.assert_array_equal(first.scores, again.scores)

    def test_it_uses_only_what_it_says_it_needs(self, everything: Candidates, ranker: Ranker):
        every = {"scores", "sketches", "components", "checkpoints", "votes", "embeddings", "losses"}
        absent = {name: None for name in every - set(ranker.needs)}
        bare = dataclasses.replace(everything, **absent)
        expected = ranker.rank(everything, ranker.options())
        np.testing.assert_array_equal(ranker.rank(bare, ranker.options()).order, expected.order)
        for name in ranker.needs:
            with pytest.raises(UserError, match=f"the ranker {ranker.name} needs {name}"):
                ranker.rank(dataclasses.replace(everything, **{name: None}), ranker.options())

    def test_more_than_there_is(self, everything: Candidates, ranker: Ranker):
        with pytest.raises(UserError, match=r"^count = \d+"):
            ranker.rank(dataclasses.replace(everything, count=SIZE), ranker.options())

    def test_it_says_what_it_is(self, ranker: Ranker):
        assert RANKERS[ranker.name] is ranker and re.fullmatch(r"[a-z][a-z0-9_]*", ranker.name)
        assert ranker.title and ranker.help and not ranker.help.endswith(".")
        assert ranker.label_of(ranker.options(), {"objective": "probe"})
        for field in dataclasses.fields(ranker.options):
            assert field.metadata["help"] and not field.metadata["help"].endswith(".")


def test_the_options_are_read_without_jax():
    code = "import sys, ntk_jax.selection.rankers; sys.exit(bool({'jax', 'tensorstore'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_labels():
    options = {name: ranker.options() for name, ranker in RANKERS.items()}
    found = {name: RANKERS[name].label_of(options[name], {"objective": "probe"}) for name in RANKERS}
    assert found["kernel"] == "ntk:probe" and found["sketch"] == "sketch:cosine" and found["random"] == "random"
    assert found["embedding"] == "embedding:round_robin" and found["perplexity"] == "perplexity:middle"
    assert found["kernel_residual"] == "residual:probe", (
        "no exact score: the report takes what begins with ntk: for one"
    )


def bare(count: int, size: int, **more) -> Candidates:
    fields = {
        "usable": np.ones(size, bool),
        "length": np.ones(size, np.int32),
        "span": np.ones(size, np.int32),
        "records": lambda: iter(()),
        "domain": [],
        "seed": 0,
    }
    return Candidates(count=count, **{**fields, **more})


def test_kernel_ranks_by_score_and_ties_are_in_pool_order():
    scores = np.array([1, np.nan, 3, 1, 3, 2], np.float32)
    usable = np.array([1, 1, 1, 1, 1, 0], bool)
    found = RANKERS["kernel"].rank(bare(4, 6, scores=scores, usable=usable), RANKERS["kernel"].options())
    assert found.order.tolist() == [2, 4, 0, 3]
    np.testing.assert_array_equal(found.scores, scores)


def test_random_is_the_draw_from_the_usable_places():
    usable = np.arange(20) % 3 > 0
    found = RANKERS["random"].rank(bare(5, 20, usable=usable, seed=9), None)
    expected = np.flatnonzero(usable)[np.random.default_rng([9, 0x5E1]).permutation(usable.sum())[:5]]
    assert found.order.tolist() == expected.tolist() and np.isnan(found.scores).all()


def test_votes_take_what_preselection_keeps():
    votes, similarity = np.array([3, 1, 1, 1, -1]), np.array([0.1, 0.2, 0.9, 0.2, 0], np.float32)
    found = RANKERS["votes"].rank(bare(3, 5, votes=(votes, similarity), usable=votes >= 0), None)
    assert found.order.tolist() == [0, 2, 1]
    assert sorted(found.order.tolist()) == keep_most_voted(Votes(votes[:4], similarity[:4]), 3).tolist()


@pytest.mark.parametrize("by", ["mean", "cosine", "max", "round_robin"])
def test_sketches_are_ranked_by_place_in_the_pool(everything: Candidates, by: str):
    ranker = RANKERS["sketch"]
    found = ranker.rank(everything, ranker.options(by=by))
    sketches = everything.sketches
    kept = sketches.pool.read("status") == 0
    kept &= everything.usable[sketches.places]
    assert np.flatnonzero(~np.isnan(found.scores)).tolist() == sketches.places[kept].tolist()
    if by == "cosine":
        cosines = (sketches.pool.read("sketch") @ sketches.domain.read("sketch").T).mean(axis=1)
        np.testing.assert_allclose(found.scores[sketches.places[kept]], cosines[kept], rtol=1e-5, atol=1e-6)
    if by != "round_robin":
        assert (np.diff(found.scores[found.order]) <= 0).all()


def test_low_rank_is_its_two_formulas():
    values = np.array([[1, 2], [-3, 0], [np.nan, np.nan], [0, -4]], np.float32)
    components = Components(values, np.array([2.0, 0.5]), np.array([1.0, -1.0]))
    ranker = RANKERS["low_rank"]
    mean = ranker.rank(bare(2, 4, components=components), ranker.options())
    np.testing.assert_array_equal(mean.scores, np.array([-1, -3, np.nan, 4], np.float32))
    assert mean.order.tolist() == [3, 0]
    energy = ranker.rank(bare(2, 4, components=components), ranker.options(by="energy"))
    np.testing.assert_array_equal(energy.scores, np.array([4, 18, np.nan, 8], np.float32))
    assert energy.order.tolist() == [1, 3]


@pytest.mark.parametrize("shapes", [((3, 2), (2,), (3,)), ((3,), (2,), (2,)), ((3, 2), (1,), (1,)), ((3, 1), (), ())])
def test_components_that_do_not_fit_together_are_refused_from_python(shapes):
    with pytest.raises(UserError, match=r"components have shapes .*; give scores \[N, k\]"):
        nj.select(None, 1, by="low_rank", components=tuple(np.ones(shape) for shape in shapes))


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> list[Checkpoint]:
    """Two, of nine pool rows in blocks of four, one of them dropped, and five domain rows."""
    rng, folder, dropped = np.random.default_rng(1), tmp_path_factory.mktemp("checkpoints"), np.arange(9) == 4

    def one(number: int, weight: float) -> Checkpoint:
        pool = sketch_store(folder / f"pool{number}", rng, 9, dropped)
        domain = sketch_store(folder / f"domain{number}", rng, 5, np.zeros(5, bool))
        return Checkpoint(Sketches(pool, domain, np.arange(9)), weight)

    return [one(0, 0.8), one(1, 0.2)]


@pytest.mark.parametrize("by", ["subtask", "mean", "max"])
def test_less_adds_cosines_over_checkpoints_and_takes_the_best_group(checkpoints, by):
    """One pair at a time, as the formula is written."""
    tasks = ["a", "b", "a", "b", "b"]
    domain = [{**record("x"), "task": task} for task in tasks]
    groups = {"subtask": [[0, 2], [1, 3, 4]], "mean": [[0, 1, 2, 3, 4]], "max": [[0], [1], [2], [3], [4]]}[by]
    expected = np.full(9, np.nan)
    for x in range(9):
        if x != 4:
            per_group = []
            for group in groups:
                total = 0.0
                for one in checkpoints:
                    pool, targets = one.sketches.pool.read("sketch"), one.sketches.domain.read("sketch")
                    total += one.weight * np.mean([float(pool[x] @ targets[t]) for t in group])
                per_group.append(total)
            expected[x] = max(per_group)
    ranker = RANKERS["less"]
    usable = np.arange(9) != 4
    found = ranker.rank(bare(3, 9, usable=usable, domain=domain, checkpoints=checkpoints), ranker.options(by=by))
    np.testing.assert_allclose(found.scores, expected, rtol=1e-5, atol=1e-6)
    assert found.order.tolist() == np.argsort(-np.nan_to_num(expected, nan=-9), kind="stable")[:3].tolist()


def test_less_of_a_domain_without_gradients(tmp_path):
    store = sketch_store(tmp_path / "pool", np.random.default_rng(0), 3, np.zeros(3, bool))
    facts = {"seed": 0, "examples": "none"}
    empty = create_sketches(tmp_path / "domain", 2, 4, dim=WIDTH, dtype="float32", longest_id=2, facts=facts)
    arrays = {name: np.zeros((2, *array.shape[1:]), array.dtype.numpy_dtype) for name, array in empty.arrays.items()}
    write_block(empty, 0, arrays)
    candidates = bare(
        1, 3, domain=[record("x")] * 2, checkpoints=[Checkpoint(Sketches(store, empty, np.arange(3)), 1.0)]
    )
    with pytest.raises(UserError, match="the gradients of all domain examples are zero, so every score would be 0"):
        RANKERS["less"].rank(candidates, RANKERS["less"].options())


def test_less_of_a_key_that_no_record_has_or_of_another_domain(checkpoints):
    ranker = RANKERS["less"]
    with pytest.raises(UserError, match="group_by = topic: no record of the domain has this key"):
        candidates = bare(1, 9, domain=[record("x")] * 5, checkpoints=checkpoints)
        ranker.rank(candidates, ranker.options(group_by="topic"))
    with pytest.raises(UserError, match="holds 5 examples of the domain, which has 2"):
        ranker.rank(bare(1, 9, domain=[record("x")] * 2, checkpoints=checkpoints), ranker.options())


# ---------------------------------------------------------------------------------------------------------------
# BM25


def naive_bm25(pool: list[str], query: str, k1: float, b: float) -> list[float]:
    """As the formula is written: one sum over the words of the query, each as often as it is there."""
    words = [re.findall(r"\w+", text.lower()) for text in pool]
    mean = sum(map(len, words)) / len(words)
    scores = []
    for own in words:
        total = 0.0
        for term in re.findall(r"\w+", query.lower()):
            df = sum(term in other for other in words)
            idf = math.log(1 + (len(words) - df + 0.5) / (df + 0.5))
            tf = own.count(term)
            total += idf * tf / (tf + k1 * (1 - b + b * len(own) / mean)) if tf else 0.0
        scores.append(total)
    return scores


texts = st.lists(st.sampled_from([*WORDS, "SUN", "naïve", "-", "other"]), max_size=8).map(" ".join)


@settings(deadline=None)
@given(
    pool=st.lists(st.tuples(texts, texts), min_size=1, max_size=8),
    queries=st.lists(texts, min_size=1, max_size=3),
    k1=st.sampled_from([0.0, 0.5, 1.2, 3.0]),
    b=st.sampled_from([0.0, 0.75, 1.0]),
    data=st.data(),
)
def test_bm25_is_the_formula(pool, queries, k1, b, data):
    usable = np.array(data.draw(st.lists(st.booleans(), min_size=len(pool), max_size=len(pool))))
    usable[data.draw(st.integers(0, len(pool) - 1))] = True
    query = " ".join(queries)
    kept = [f"{prompt} {response}" for (prompt, response), use in zip(pool, usable, strict=True) if use]
    candidates = bare(
        1,
        len(pool),
        usable=usable,
        records=lambda: (record(*texts) for texts in pool),
        domain=[record(text) for text in queries],
    )
    if not re.findall(r"\w+", query):
        with pytest.raises(UserError, match="hold no word"):
            bm25.rank(candidates, bm25.Bm25Options(k1, b))
        return
    found = bm25.rank(candidates, bm25.Bm25Options(k1, b))
    if any(re.findall(r"\w+", text) for text in kept):
        np.testing.assert_allclose(found.scores[usable], naive_bm25(kept, query, k1, b), rtol=1e-6)
    assert np.isnan(found.scores[~usable]).all()
    assert found.order[0] == min(np.flatnonzero(usable), key=lambda i: (-found.scores[i], i))


def test_bm25_by_hand():
    """Three examples of 2, 4 and 3 words: the mean is 3. `sun` is in two of them, `moon` in one."""
    pool = [record("Sun sun"), record("sun rain wind", "moon"), record("a b c")]
    candidates = bare(2, 3, records=lambda: iter(pool), domain=[record("SUN", "moon")])
    found = bm25.rank(candidates, bm25.Bm25Options(k1=1.0, b=0.5))
    sun, moon = math.log(1 + 1.5 / 2.5), math.log(1 + 2.5 / 1.5)
    first = sun * 2 / (2 + 0.5 + 0.5 * 2 / 3)
    second = (sun + moon) * 1 / (1 + 0.5 + 0.5 * 4 / 3)
    np.testing.assert_allclose(found.scores, [first, second, 0.0], rtol=1e-6)
    assert found.order.tolist() == [1, 0]


def test_bm25_reads_messages_and_reports_progress():
    message = lambda role, text: {"role": role, "content": text}  # noqa: E731
    chat = {"id": "c", "messages": [message("system", "be kind"), message("user", "moon"), message("assistant", "Sun")]}
    assert bm25.words_of(chat) == ["be", "kind", "moon", "sun"], "what is said, not who says it"
    seen: list[tuple[int, int]] = []
    candidates = bare(1, 2, records=lambda: iter([chat, record("a")]), domain=[chat])
    candidates = dataclasses.replace(candidates, progress=lambda done, total: seen.append((done, total)))
    assert bm25.rank(candidates, bm25.Bm25Options()).order.tolist() == [0]
    assert seen == [(2, 4), (4, 4)]


@pytest.mark.parametrize("there, now", [(1, "now has 1"), (3, "now has more")])
def test_bm25_of_a_pool_that_changed(there, now):
    candidates = bare(1, 2, records=lambda: iter([record("sun")] * there), domain=[record("sun")])
    with pytest.raises(UserError, match=f"the pool had 2 examples and {now}; did a file change"):
        bm25.rank(candidates, bm25.Bm25Options())


# ---------------------------------------------------------------------------------------------------------------
# Matched lengths


@settings(deadline=None)
@given(seed=st.integers(0, 10**6), size=st.integers(1, 40), longest=st.integers(1, 12), data=st.data())
def test_lengths_are_matched_as_far_as_they_go(seed, size, longest, data):
    rng = np.random.default_rng(seed)
    span, usable = rng.integers(1, longest + 1, size).astype(np.int32), rng.random(size) < 0.8
    usable[0] = True
    count = data.draw(st.integers(1, int(usable.sum())))
    model = rng.permutation(np.flatnonzero(usable))[:count]
    candidates = bare(count, size, span=span, usable=usable, seed=seed, selected={"kernel": model})
    found = length_matched.rank(candidates, length_matched.LengthMatchedOptions())
    order = found.order
    assert len(set(order.tolist())) == count and usable[order].all()
    outside = np.setdiff1d(np.flatnonzero(usable), model)
    if len(outside) >= count:
        assert not set(order.tolist()) & set(model.tolist()), "there was enough besides the selection"
    else:
        assert set(outside.tolist()) <= set(order.tolist()), "what is outside goes first"
    supply, wanted = Counter(span[outside].tolist()), Counter(span[model].tolist())
    exact = Counter(int(a) for a, b in zip(span[order], span[model], strict=True) if a == b)
    for length, number in wanted.items():
        assert exact[length] >= min(number, supply[length])
    if all(supply[length] >= number for length, number in wanted.items()):
        assert Counter(span[order].tolist()) == wanted
    # Whatever was left in the end is no nearer to any example than what it has.
    left = np.setdiff1d(outside, order)
    for got, want in zip(span[order], span[model], strict=True):
        assert all(abs(int(got) - int(want)) <= abs(int(other) - int(want)) for other in span[left])


def test_the_nearest_length_and_of_two_the_shorter():
    span = np.array([5, 5, 4, 6, 9, 1], np.int32)
    options = length_matched.LengthMatchedOptions(to="bm25")
    found = length_matched.rank(bare(2, 6, span=span, selected={"bm25": np.array([0, 1])}), options)
    assert found.order.tolist() == [2, 3]
    assert RANKERS["length_matched"].after(options) == ("bm25",)


def test_the_draw_is_seeded():
    span, chosen = np.ones(100, np.int32), {"kernel": np.arange(10)}
    orders = [
        length_matched.rank(bare(10, 100, span=span, selected=chosen, seed=s), length_matched.LengthMatchedOptions())
        for s in (1, 1, 2)
    ]
    assert orders[0].order.tolist() == orders[1].order.tolist() != orders[2].order.tolist()


def test_a_selection_that_is_not_there_or_too_short():
    with pytest.raises(
        UserError, match="to = 'kernel': there is no selection of that ranker to match; there are: bm25"
    ):
        chosen = {"bm25": np.arange(1)}
        length_matched.rank(bare(1, 3, selected=chosen), length_matched.LengthMatchedOptions())
    with pytest.raises(UserError, match="count = 2, but kernel selected 1; ask for as many"):
        chosen = {"kernel": np.arange(1)}
        length_matched.rank(bare(2, 3, selected=chosen), length_matched.LengthMatchedOptions())
