"""The multi-label head, its calibration and its files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.errors import UserError
from ntk_jax.mining.calibration import calibrate, check_labels, held_out, sigmoid
from ntk_jax.mining.classifier import Head, HeadConfig, class_weights, load_head, train_head
from ntk_jax.mining.metrics import average_precision

NAMES = ("medicine", "law")
QUICK = HeadConfig(steps=150, batch=128, penalties=(1e-3, 1e-1))


def two_domains(rows: int = 900, width: int = 12, noise: float = 1.0, seed: int = 0):
    """Unit embeddings of chunks of none, one or both of two domains, with labels of which some are not used."""
    rng = np.random.default_rng(seed)
    truth = rng.random((rows, 2)) < (0.15, 0.3)
    directions = np.random.default_rng(1).standard_normal((2, width))
    embeddings = truth @ directions + noise * rng.standard_normal((rows, width)) * 0.5
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    labels = truth.astype(np.float32)
    labels[rng.random(labels.shape) < 0.2] = np.nan
    return embeddings.astype(np.float32), labels, truth


@pytest.fixture(scope="module")
def head() -> Head:
    embeddings, labels, _ = two_domains()
    return train_head(embeddings, labels, NAMES, config=QUICK, facts={"encoder": "a", "dim": 12})


def test_it_finds_the_domains(head: Head):
    embeddings, _, truth = two_domains(seed=7)
    probabilities = head.probabilities(embeddings)
    assert probabilities.shape == truth.shape and probabilities.dtype == np.float32
    for place, name in enumerate(NAMES):
        assert average_precision(truth[:, place], probabilities[:, place]) > 0.9
        kept = probabilities[:, place] >= head.thresholds[place]
        assert (kept == truth[:, place]).mean() > 0.9
        mean = probabilities[:, place].mean()
        assert mean == pytest.approx(truth[:, place].mean(), abs=0.05), "calibrated in spite of the class weights"
        figures = head.calibration.figures[name]
        assert figures["held-out positives"] > 0 and 0.5 < figures["average precision"] <= 1


def test_labels_in_random_order_teach_nothing():
    embeddings, labels, truth = two_domains()
    shuffled = labels[np.random.default_rng(0).permutation(len(labels))]
    found = train_head(embeddings, shuffled, NAMES, config=QUICK).probabilities(two_domains(seed=7)[0])
    for place in range(2):
        share = truth[:, place].mean()
        assert average_precision(two_domains(seed=7)[2][:, place], found[:, place]) < share + 0.15


def test_a_hidden_layer_learns_what_no_line_parts():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((800, 4)).astype(np.float32)
    labels = (x[:, :1] * x[:, 1:2] > 0).astype(np.float32)
    config = HeadConfig(steps=400, batch=256, penalties=(1e-4,))
    linear = train_head(x, labels, ["xor"], config=config)
    bent = train_head(x, labels, ["xor"], config=HeadConfig(**{**vars(config), "hidden": 32}))
    right = [((own.probabilities(x) > 0.5) == labels).mean() for own in (linear, bent)]
    assert right[0] < 0.65 and right[1] > 0.9


def test_blocks_change_nothing(head: Head):
    embeddings = two_domains(rows=77)[0]
    np.testing.assert_allclose(head.logits(embeddings), head.logits(embeddings, rows=16), rtol=1e-6, atol=1e-6)
    by_hand = (embeddings - head.weights["mean"]) / head.weights["deviation"] @ head.weights["w"] + head.weights["b"]
    np.testing.assert_allclose(head.logits(embeddings), by_hand, rtol=1e-4, atol=1e-4)
    assert head.probabilities(embeddings[:0]).shape == (0, 2)


def test_the_same_seed_gives_the_same_head(head: Head):
    embeddings, labels, _ = two_domains()
    again = train_head(embeddings, labels, NAMES, config=QUICK)
    for name, value in head.weights.items():
        np.testing.assert_array_equal(value, again.weights[name])


def test_it_reads_back(head: Head, tmp_path: Path):
    head.save(tmp_path / "head")
    again = load_head(tmp_path / "head")
    embeddings = two_domains(rows=50)[0]
    np.testing.assert_array_equal(again.probabilities(embeddings), head.probabilities(embeddings))
    assert again.names == NAMES and again.thresholds.tolist() == head.thresholds.tolist()
    assert again.facts == json.loads(json.dumps(head.facts))
    np.testing.assert_allclose(again.calibration.curves["law"].recall, head.calibration.curves["law"].recall)


def test_of_penalties_alike_the_strongest_is_kept_and_never_one_that_is_worse(head: Head):
    """0.1 does as well as 0.001 here; 1e6 leaves nothing of the weights."""
    losses = head.facts["training"]["held-out loss by penalty"]
    assert len(losses) == 2 and head.facts["training"]["penalty"] == 0.1
    embeddings, labels, _ = two_domains()
    shifted = embeddings + np.float32(3)  # also where embeddings are far from the origin
    config = HeadConfig(steps=150, batch=128, penalties=(1e-3, 1.0, 1e9))
    found = train_head(shifted, labels, NAMES, config=config).facts["training"]
    assert found["penalty"] < 1e9 and found["held-out loss by penalty"]["1000000000.0"] > 1.0


def test_wrong_labels_cost_little():
    """A third of the positives are wrong: what is kept still finds the true ones."""
    embeddings, labels, truth = two_domains(rows=1500, width=200, seed=3)
    noisy = truth.astype(np.float32)
    rng = np.random.default_rng(0)
    for place in range(2):
        wrong = rng.permutation(np.flatnonzero(~truth[:, place]))[: int(truth[:, place].sum() / 2)]
        noisy[wrong, place] = 1.0
    config = HeadConfig(steps=400, penalties=(1e-4, 0.1, 1.0, 10.0))
    unseen, _, right = two_domains(rows=1500, width=200, seed=4)
    found = train_head(embeddings, noisy, NAMES, config=config)
    weak = train_head(embeddings, noisy, NAMES, config=HeadConfig(steps=400, penalties=(1e-4,)))
    for place in range(2):
        ours, other = (average_precision(right[:, place], head.logits(unseen)[:, place]) for head in (found, weak))
        assert ours > other


def test_what_is_refused(head: Head, tmp_path: Path):
    embeddings, labels, _ = two_domains(rows=30)
    with pytest.raises(UserError, match=r"embeddings \[30, 5\] do not fit a classifier of width 12; embed with"):
        head.logits(embeddings[:, :5])
    with pytest.raises(UserError, match="have encoder 'b', but the classifier was trained with 'a'"):
        head.check_facts({"dim": 12, "encoder": "b", "other": 1})
    head.check_facts({"dim": 12, "other": 1})
    for value, what in ((0.0, "positive"), (1.0, "negative")):
        with pytest.raises(UserError, match=f"the domain law has no {what} example"):
            train_head(embeddings, np.stack([labels[:, 0], np.full(30, value, np.float32)], 1), NAMES, config=QUICK)
    with pytest.raises(UserError, match=r"labels \[30, 2\] do not match 29 rows"):
        check_labels(labels, NAMES, 29)
    embeddings[3, 2] = np.inf
    with pytest.raises(UserError, match="embedding 3 is not finite"):
        train_head(embeddings, labels, NAMES, config=QUICK)
    with pytest.raises(UserError, match="classifier.json"):
        load_head(tmp_path)
    head.save(tmp_path)
    (tmp_path / "classifier.safetensors").write_bytes(b"x" * 30)
    with pytest.raises(UserError, match="classifier.safetensors is damaged"):
        load_head(tmp_path)
    text = (tmp_path / "classifier.json").read_text()
    (tmp_path / "classifier.json").write_text(text.replace("embedding head", "n-grams"))
    with pytest.raises(UserError, match="of the kind 'n-grams', not 'embedding head'; train the classifier again"):
        load_head(tmp_path)
    (tmp_path / "classifier.json").write_text('{"kind": "embedding head", "names": ["a"]}')
    with pytest.raises(UserError, match="lacks curves|is no classifier's"):
        load_head(tmp_path)


def test_two_examples_are_enough_to_train_and_none_to_calibrate():
    found = train_head(np.eye(2, dtype=np.float32), np.array([[1.0], [0.0]]), ["law"], config=QUICK)
    assert found.facts["training"]["rows held out"] == 0 and found.thresholds.tolist() == [0.5]
    assert found.calibration.figures["law"]["how"].startswith("½")
    assert found.probabilities(np.eye(2, dtype=np.float32)).argmax() == 0


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 6), st.sampled_from([0.0, 1.0, np.nan])), min_size=2, max_size=40))
def test_no_group_is_on_both_sides(rows):
    groups = np.array([group for group, _ in rows])
    labels = np.array([[value] for _, value in rows], np.float32)
    apart = held_out(labels, 0.3, 0, groups)
    for group in set(groups.tolist()):
        assert len(set(apart[groups == group].tolist())) == 1
    assert not apart.all()


@settings(deadline=None)
@given(st.lists(st.sampled_from([0.0, 1.0, np.nan]), min_size=1, max_size=30))
def test_both_classes_weigh_the_same(values):
    labels = np.array(values, np.float32)[:, None]
    weights = class_weights(labels)
    for value in (0.0, 1.0):
        assert weights[labels == value].sum() == pytest.approx(0.5 if (labels == value).any() else 0.0)
    assert not weights[np.isnan(labels)].any()


@pytest.mark.parametrize(("scale", "offset"), [(0.5, -1.0), (2.0, 0.5)])
def test_a_known_scale_is_found_again(scale, offset):
    rng = np.random.default_rng(0)
    z = rng.standard_normal((40_000, 1)) * 2
    labels = (rng.random(z.shape) < sigmoid(z * scale + offset)).astype(np.float32)
    found = calibrate(z, labels, ["law"])
    assert found.scale[0] == pytest.approx(scale, rel=0.05) and found.offset[0] == pytest.approx(offset, abs=0.05)
    assert found.figures["law"]["temperature"] == pytest.approx(1 / scale, rel=0.05)


def test_thresholds_for_a_precision_or_the_best_f1():
    z = np.array([[3.0], [2.0], [1.0], [0.0], [-1.0]])
    labels = np.array([[1.0], [1.0], [0.0], [1.0], [0.0]])
    for precision, kept in ((1.0, 2), (0.7, 4), (None, 4)):
        found = calibrate(z, labels, ["law"], precision=precision)
        assert (found.probabilities(z)[:, 0] >= found.thresholds[0]).sum() == kept
    found = calibrate(z, np.array([[0.0], [1.0], [0.0], [0.0], [0.0]]), ["law"], precision=0.9)
    assert found.figures["law"]["how"] == "best F1"


def test_a_precision_that_next_to_nothing_has_is_not_aimed_at():
    """One positive lies above all others by luck; the rest stand among unlabelled chunks that belong as well."""
    z = np.array([[9.0], [8.0], *[[5.0 - 0.1 * n] for n in range(20)], *[[-5.0]] * 40])
    labels = np.array([[1.0], [0.0], *[[float(n % 4 != 0)] for n in range(20)], *[[0.0]] * 40])
    for precision in (None, 0.9):
        found = calibrate(z, labels, ["law"], precision=precision)
        assert (found.probabilities(z)[:, 0] >= found.thresholds[0]).sum() == 22
    assert found.figures["law"]["how"] == "best F1, for precision 0.9 would keep 6% of what belongs"
    assert calibrate(z, labels, ["law"], precision=0.7).figures["law"]["how"] == "precision 0.7"


def test_precision_is_counted_on_rows_that_did_not_choose_the_threshold():
    """What a threshold keeps of scores that say nothing has the base rate, but on the rows that chose it."""
    rng, kept, right = np.random.default_rng(0), 0, 0
    for _ in range(30):
        labels = (rng.random((60, 1)) < 0.2).astype(np.float32)
        found = calibrate(rng.standard_normal((60, 1)), labels, ["law"], precision=0.8).figures["law"]["counted"]
        assert found["positives"] == labels.sum() and found["right"] <= found["kept"]
        kept, right = kept + found["kept"], right + found["right"]
    assert right / kept < 0.3


def test_no_group_chooses_a_threshold_for_itself():
    """Two documents, one of each half: what one of them chooses is counted on the other."""
    z = np.array([[5.0], [4.0], [1.0], [0.0], [9.0], [8.0], [2.0], [1.0]])
    labels, groups = np.array([[1.0], [1.0], [0.0], [0.0]] * 2), np.repeat(["a", "b"], 4)
    found = calibrate(z, labels, ["law"], groups=groups).figures["law"]["counted"]
    assert found == {"kept": 2, "right": 2, "positives": 4}  # b's cut is 8, a's is 4
    assert "counted" not in calibrate(z[:4], labels[:4], ["law"], groups=groups[:4]).figures["law"]


def test_a_set_that_a_threshold_parts_has_a_finite_scale():
    z, labels = np.array([[-1.0], [1.0]] * 20), np.array([[0.0], [1.0]] * 20)
    found = calibrate(z, labels, ["law"])
    assert np.isfinite(found.scale).all() and found.probabilities(z)[1, 0] < 1
