"""The labelled set that the seeds' nearest chunks make."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.errors import UserError
from ntk_jax.mining.documents import labelled_documents
from ntk_jax.mining.labels import HARD, OTHER, POSITIVE, RANDOM, background, label, labels_of, negatives_below
from ntk_jax.mining.spread import spread


def searched(rng: np.random.Generator, chunks: int, seeds: int, domains: int, width: int = 6, top: int = 10):
    """What a search gives for random unit vectors, by brute force; the last seed is of every domain."""
    vectors, queries = rng.standard_normal((chunks, width)), rng.standard_normal((seeds, width))
    vectors, queries = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (vectors, queries))
    own = np.zeros((seeds, domains), bool)
    own[np.arange(seeds), np.arange(seeds) % domains] = True
    own[-1] = True
    cosines = (vectors @ queries.T).astype(np.float32)
    of_domain = np.where(own.T[None], cosines[:, None, :], -np.inf)  # [N, M, S]
    order = np.argsort(-cosines.T, axis=1, kind="stable")[:, :top]
    return {
        "best": of_domain.max(axis=2),
        "best_seed": of_domain.argmax(axis=2).astype(np.int32),
        "top_score": np.take_along_axis(cosines.T, order, axis=1),
        "top_chunk": order.astype(np.int64),
        "domain_of_seed": own,
    }, cosines


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    per_seed=st.integers(1, 12),
    margin=st.sampled_from([0.0, 0.05, 0.5, 3.0]),
    negatives=st.sampled_from([0.5, 1.0, 4.0]),
    hard_share=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_every_label_is_as_the_rules_say(seed, per_seed, margin, negatives, hard_share):
    rng = np.random.default_rng(seed)
    found, cosines = searched(rng, chunks=80, seeds=7, domains=3)
    limits = np.quantile(found["best"], 0.7, axis=0).astype(np.float32)
    usable = rng.random(80) < 0.9
    options = {"per_seed": per_seed, "margin": margin, "negatives": negatives, "hard_share": hard_share}
    got = label(**found, thresholds=limits, usable=usable, seed=seed, **options)
    again = label(**found, thresholds=limits, usable=usable, seed=seed, **options)
    np.testing.assert_array_equal(got.chunks, again.chunks)
    np.testing.assert_array_equal(got.labels, again.labels)
    assert (np.diff(got.chunks) > 0).all() and usable[got.chunks].all()
    best, full = found["best"], np.full((80, 3), np.nan)
    full[got.chunks] = got.labels
    for place in range(3):
        mine = best[:, place]
        positive, negative = full[:, place] == 1, full[:, place] == 0
        assert (mine[positive] >= limits[place]).all(), "no positive is below the threshold"
        assert (mine[negative] < limits[place]).all(), "what is above the threshold is never a negative"
        assert (best.max(axis=1) - mine <= margin)[positive].all()
        brought = set(found["top_chunk"][found["domain_of_seed"][:, place], :per_seed].ravel().tolist())
        for chunk in np.flatnonzero(positive):  # brought by a seed of its own, or second to a domain whose seed did
            near = best.max(axis=1)[chunk] - best[chunk] <= margin
            others = {
                int(c)
                for other in np.flatnonzero(near)
                for c in found["top_chunk"][found["domain_of_seed"][:, other], :per_seed].ravel()
            }
            assert int(chunk) in brought | others
        counts = got.counts[f"domain {place}"]
        wanted = round(negatives * counts[POSITIVE])
        assert counts[HARD] + counts[RANDOM] <= wanted and counts[HARD] <= round(wanted * hard_share)
        assert negative.sum() == counts[HARD] + counts[RANDOM] + counts[OTHER]
    assert got.score == pytest.approx(cosines[got.chunks, got.seed])


def test_by_hand():
    """Two domains, a seed each. Chunk 0 is of both, 1 of the first, 2 of the second, 3 of the first but beyond the cap,
    4 is above the first's threshold but nearer to the second, the rest is of none."""
    best = np.array([[0.8, 0.78], [0.7, 0.1], [0.2, 0.9], [0.65, 0.1], [0.66, 0.95], *[[0.1, 0.1]] * 5], np.float32)
    order = np.argsort(-best.T, axis=1, kind="stable")[:, :4]
    found = label(
        best,
        np.tile(np.array([0, 1], np.int32), (10, 1)),
        np.take_along_axis(best.T, order, axis=1),
        order,
        np.eye(2, dtype=bool),
        thresholds=[0.6, 0.7],
        names=["medicine", "law"],
        per_seed=3,
        negatives=1.0,
        middle=(0.0, 0.5),
    )
    full = np.full((10, 2), np.nan)
    full[found.chunks] = found.labels
    np.testing.assert_array_equal(full[:3], [[1, 1], [1, 0], [0, 1]])
    np.testing.assert_array_equal(full[[3, 4], 0], [np.nan, np.nan])
    assert full[4, 1] == 1
    assert found.counts["medicine"] == {
        POSITIVE: 2,
        "nearer to another domain": 1,
        "beyond the cap of a seed": 1,
        "with another domain": 1,
        OTHER: 1,
        HARD: 1,
        RANDOM: 1,
    }
    assert found.why[:3].tolist() == [POSITIVE] * 3 and found.seed[:2].tolist() == [0, 0] and found.seed[2] == 1
    assert found.take(np.array([1, 0])).chunks.tolist() == found.chunks[:2].tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"thresholds": [0.9, 0.5]}, r"the threshold 0.9 of medicine keeps 0 of 3; the best is 0.61"),
        ({"thresholds": [0.1, 0.5]}, r"the threshold 0.1 of medicine keeps all 3; the lowest is 0.20"),
        ({"thresholds": [np.nan, 0.5]}, r"the threshold of medicine is nan"),
        ({"names": ["law", "law"]}, r"the domain 'law' is named twice"),
        ({"names": ["law"]}, r"2 domains and 1 names"),
        ({"per_seed": 0}, r"per_seed = 0"),
        ({"margin": -0.1}, r"margin = -0.1"),
        ({"negatives": 0}, r"negatives = 0"),
        ({"hard_share": 2}, r"hard_share = 2"),
        ({"middle": (0.9, 0.5)}, r"middle = \[0.9, 0.5\]"),
    ],
)
def test_what_is_refused(options, message):
    best = np.array([[0.61, 0.2], [0.4, 0.6], [0.2, 0.1]], np.float32)
    order = np.argsort(-best.T, axis=1)
    found = (best, np.tile([0, 1], (3, 1)), np.take_along_axis(best.T, order, axis=1), order, np.eye(2, dtype=bool))
    with pytest.raises(UserError, match=message):
        label(*found, **{"thresholds": [0.5, 0.5], "names": ["medicine", "law"], **options})


def test_labels_of_known_domains():
    own = [["law"], ["medicine", "law"], []]
    np.testing.assert_array_equal(labels_of(own, ["medicine", "law"]), [[0, 1], [1, 1], [0, 0]])
    np.testing.assert_array_equal(labels_of(own, ["medicine", "law"], exclusive=False), [[np.nan, 1], [1, 1], [0, 0]])
    with pytest.raises(UserError, match="text 0 is of the domain 'sport', which is not one of medicine, law"):
        labels_of([["sport"]], ["medicine", "law"])


def test_background_is_a_draw_from_the_rest():
    chunks, labels = background(20, 2, np.arange(15), 4, seed=1)
    assert len(chunks) == 4 and (chunks >= 15).all() and (np.diff(chunks) > 0).all() and not labels.any()
    assert background(20, 2, np.arange(15), 99)[0].tolist() == [15, 16, 17, 18, 19]


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), most=st.integers(1, 12), margin=st.sampled_from([0.05, 3.0]))
def test_no_domain_has_more_positives_than_are_asked_for(seed, most, margin):
    rng = np.random.default_rng(seed)
    found, _ = searched(rng, chunks=80, seeds=7, domains=3)
    limits = np.quantile(found["best"], 0.7, axis=0).astype(np.float32)
    vectors = rng.standard_normal((80, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    options = {"thresholds": limits, "margin": margin, "per_seed": 10, "negatives": 1.0, "seed": seed}
    free = label(**found, **options)
    got = label(**found, **options, most=most, vectors=lambda chunks: vectors[chunks])
    for place in range(3):
        before, after = (one.chunks[one.labels[:, place] == 1] for one in (free, got))
        assert len(after) == min(most, len(before)) and set(after) <= set(before)
        negative = got.chunks[got.labels[:, place] == 0]
        assert not set(negative) & set(before), "what is passed over is no negative"
        assert got.counts[f"domain {place}"]["passed over for ones farther apart"] == len(before) - len(after)
        if len(before) > most:
            assert sorted(before[spread(vectors[before], most, seed)]) == sorted(after)


def test_a_spread_sample_takes_one_of_each_heap():
    rng = np.random.default_rng(0)
    heaps = np.repeat(np.eye(5), [50, 20, 5, 2, 1], axis=0) + 0.01 * rng.standard_normal((78, 5))
    heaps /= np.linalg.norm(heaps, axis=1, keepdims=True)
    found = spread(heaps, 5, seed=3)
    assert sorted(heaps[found].argmax(axis=1).tolist()) == [0, 1, 2, 3, 4]
    everything = spread(heaps, 78)
    assert sorted(everything.tolist()) == list(range(78))
    with pytest.raises(UserError, match="count = 79"):
        spread(heaps, 79)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), wanted=st.lists(st.integers(0, 40), min_size=2, max_size=2))
def test_negatives_alone_lie_below_the_thresholds(seed, wanted):
    rng = np.random.default_rng(seed)
    best = rng.random((60, 2)).astype(np.float32)
    limits = np.quantile(best, 0.7, axis=0)
    got = negatives_below(
        best, np.zeros((60, 2), np.int32), thresholds=limits, wanted=wanted, names=["a", "b"], seed=seed
    )
    assert not (got.labels == 1).any()
    for place, name in enumerate("ab"):
        own = got.chunks[got.labels[:, place] == 0]
        assert (best[own, place] < limits[place]).all()
        assert len(own) == sum(got.counts[name].values()) == min(wanted[place], (best[:, place] < limits[place]).sum())


def test_own_documents_are_cut_like_the_corpus(tmp_path):
    long = " ".join(f"Sentence number {n} has six words." for n in range(9))
    (tmp_path / "law.jsonl").write_text(f'{{"id": "l", "text": "{long}"}}\n{{"id": "s", "text": "Short one."}}\n')
    (tmp_path / "both.jsonl").write_text('{"id": "b", "text": "Of both.", "domains": ["law", "medicine"]}\n')
    (tmp_path / "medicine.jsonl").write_text('{"id": "m", "text": "Short one."}\n')
    files = {name: [str(tmp_path / f"{name}.jsonl")] for name in ("law", "medicine")}
    rows = labelled_documents(files | {"*": [str(tmp_path / "both.jsonl")]}, ["law", "medicine"], words=20, min_words=4)
    assert [row["domains"] for row in rows] == [["law"]] * 3 + [["law", "medicine"]] * 2
    assert " ".join(row["text"] for row in rows[:3]) == long and len({row["document"] for row in rows[:3]}) == 1
    with pytest.raises(UserError, match="medicine has no labelled document"):
        labelled_documents({"law": files["law"]}, ["law", "medicine"], words=20)
    with pytest.raises(UserError, match="gone.jsonl"):
        labelled_documents({"law": [str(tmp_path / "gone.jsonl")]}, ["law"], words=20)
