"""The linear datamodeling score, and what a ranker is worth: trainings on subsets against `train`, and figures against
plain arithmetic."""

from __future__ import annotations

import dataclasses
import functools

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_reference import random_rows, tiny_model
from metagradient_reference import labels, summed_losses
from scipy.stats import spearmanr

import ntk_jax as nj
from ntk_jax.errors import UserError
from ntk_jax.kernels.agreement import partial_spearman
from ntk_jax.models.lora import LoRAConfig
from ntk_jax.models.model import with_lora
from ntk_jax.parallel.mesh import make_mesh
from ntk_jax.training.datamodels import lds, random_subsets, ranker_worth, subset_losses
from ntk_jax.training.feed import Examples
from ntk_jax.training.optimizer import TrainConfig
from ntk_jax.training.order import microbatches
from ntk_jax.training.train import train

LENGTH = 32
CONFIG = TrainConfig(epochs=1, learning_rate=1e-2, batch_size=3, tokens_per_microbatch=64)


@functools.cache
def data():
    rows = [row for row in random_rows(80, seed=5) if row.span[:-1].any()]
    return {"fixed": rows[:2], "candidates": rows[2:10], "held_out": rows[10:14]}


def measured(subsets, model=None, **options):
    arguments = {"config": CONFIG, "seed": 3, "row_length": LENGTH, **data()} | options
    return subset_losses(model or tiny_model(), subsets=subsets, **arguments)


@dataclasses.dataclass(frozen=True)
class Without(Examples):
    """The feed of a list, with only some of its rows left in their batches."""

    among: tuple[int, ...] = ()

    def step(self, step, shapes):
        rows = [self.rows[i] for i in self.ordinals(step) if i in self.among]
        return rows, microbatches(rows, shapes, self.row_length)


def test_the_losses_are_those_of_trainings(tmp_path):
    """By the trainer proper, reading each batch without what is not in the subset."""
    subsets = random_subsets(8, 3, 7, 0)
    losses, counts = measured(subsets)
    assert losses.shape == (3, 4) and counts.tolist() == labels(data()["held_out"]).tolist()
    rows = [*data()["fixed"], *data()["candidates"]]
    losses_of = jax.jit(lambda lora: summed_losses(tiny_model(), lora, data()["held_out"]))  # one program, not dozens
    for number, subset in enumerate(subsets):
        feed = Without(rows, CONFIG, 3, LENGTH, (0, 1, *(2 + subset).tolist()))
        lora = train(tiny_model(), feed, CONFIG, folder=tmp_path / str(number), seed=3, row_length=LENGTH).lora
        expected = losses_of(with_lora(tiny_model(), lora).lora)
        np.testing.assert_allclose(losses[number], expected, rtol=1e-4)
    assert not np.allclose(losses[0], losses[1])


def test_a_step_of_which_nothing_is_left():
    """Subsets of one of nine, nothing fixed, batches of three: most steps are empty."""
    losses, _ = measured(random_subsets(8, 2, 1, 0), fixed=())
    assert np.isfinite(losses).all()


def test_a_killed_call_goes_on_to_the_same_numbers(tmp_path):
    """Killed after each training once, five to two files: what was kept is not trained on again."""
    subsets = random_subsets(8, 5, 3, 1)
    whole, counts = measured(subsets)
    for at in range(1, 6):
        done = []

        def dies(number, total, at=at, done=done):
            done.append(number)
            if number == at:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            measured(subsets, keep=tmp_path / str(at), progress=dies)
        after = []
        losses, labels_of = measured(
            subsets, keep=tmp_path / str(at), progress=lambda n, total, after=after: after.append((n, total))
        )
        np.testing.assert_array_equal(losses, whole)
        assert (labels_of == counts).all()
        left = {1: [1, 2, 3, 4, 5], 2: [1, 2, 3, 4, 5], 3: [1, 2, 3, 4, 5], 4: [4, 5], 5: [4, 5]}
        assert after == [(n, 5) for n in left[at]]


def test_what_is_kept_is_of_one_training(tmp_path):
    subsets, model = random_subsets(8, 2, 3, 1), tiny_model()
    measured(subsets, keep=tmp_path)
    for changed in (
        {"subsets": subsets[::-1]},
        {"fixed": ()},
        {"held_out": data()["held_out"][::-1]},
        {"model": dataclasses.replace(model, lora_config=LoRAConfig(rank=4, alpha=1.0))},
    ):
        message = (
            r"is of another model, training or held-out set; .* delete subsets-000000-000002.npz in .* and run again"
        )
        with pytest.raises(UserError, match=message):
            measured(**{"subsets": subsets, "keep": tmp_path} | changed)
    (tmp_path / "subsets-000000-000002.npz").write_bytes(b"PK")
    with pytest.raises(UserError, match=r"is damaged .*; delete subsets-000000-000002.npz in .* and run again"):
        measured(subsets, keep=tmp_path)


def test_more_subsets_go_on(tmp_path):
    """The first ones stay what they are, and whole files of them are not trained on again."""
    measured(random_subsets(8, 5, 3, 1), keep=tmp_path)
    said = []
    losses, _ = measured(random_subsets(8, 7, 3, 1), keep=tmp_path, progress=lambda n, total: said.append(n))
    assert said == [4, 5, 6, 7]
    np.testing.assert_array_equal(losses, measured(random_subsets(8, 7, 3, 1))[0])


def test_a_mesh_does_not_matter():
    subsets = random_subsets(8, 2, 4, 0)
    config = TrainConfig(epochs=1, learning_rate=1e-2, batch_size=3, tokens_per_microbatch=8 * LENGTH)
    found, _ = measured(subsets, config=config, mesh=make_mesh(data=4, fsdp=2))
    np.testing.assert_allclose(found, measured(subsets)[0], rtol=1e-3)


@settings(max_examples=25, deadline=None)
@given(candidates=st.integers(2, 30), count=st.integers(1, 9), seed=st.integers(0, 99), share=st.floats(0.01, 0.99))
def test_subsets(candidates, count, seed, share):
    size = min(candidates - 1, max(1, int(share * candidates)))
    subsets = random_subsets(candidates, count, size, seed)
    assert subsets.shape == (count, size) and (np.diff(subsets, axis=1) > 0).all()
    assert subsets.min() >= 0 and subsets.max() < candidates
    np.testing.assert_array_equal(subsets, random_subsets(candidates, count, size, seed))
    more = random_subsets(candidates, count + 1, size, seed)  # more of them begin with the same
    np.testing.assert_array_equal(more[:count], subsets)


def made(candidates=12, subsets=30, examples=3, seed=0):
    rng = np.random.default_rng(seed)
    effect = rng.normal(size=(candidates, examples))
    chosen = random_subsets(candidates, subsets, None, seed)
    counts = np.array([2, 3, 5][:examples])
    losses = 50.0 - effect[chosen].sum(axis=1) + 0.3 * rng.normal(size=(subsets, examples))
    return effect, chosen, losses, counts


def test_lds_is_the_rank_correlation_of_sums():
    effect, subsets, losses, counts = made()
    scores = effect.sum(axis=1)
    found = lds({"good": scores, "bad": -scores, "flat": np.ones(12)}, subsets, losses, counts)
    sums = np.array([sum(scores[j] for j in subset) for subset in subsets])
    expected = spearmanr(sums, -losses.sum(axis=1) / counts.sum()).statistic
    assert found["good"]["value"] == pytest.approx(expected) and expected > 0.8
    assert found["good"]["low"] < expected < found["good"]["high"] <= 1.0
    each = np.mean([spearmanr(sums, -losses[:, e]).statistic for e in range(3)])
    assert found["good"]["by_example"] == pytest.approx(each)
    assert found["bad"]["value"] == pytest.approx(-expected)
    assert found["flat"] == {"value": None, "low": None, "high": None, "by_example": None, "scored": 12}


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), factor=st.floats(0.1, 50), shift=st.floats(-5, 5))
def test_lds_knows_no_scale(seed, factor, shift):
    """All subsets are of one size: a shift of all scores moves every sum alike."""
    effect, subsets, losses, counts = made(seed=seed, subsets=8)
    scores = np.round(effect[:, 0], 3)
    a = lds({"a": scores}, subsets, losses, counts)["a"]["value"]
    b = lds({"a": factor * scores + shift}, subsets, losses, counts)["a"]["value"]
    assert a == pytest.approx(b, abs=0.05)  # sums that are equal but for rounding may change places


def test_scores_that_are_missing_count_as_the_mean():
    effect, subsets, losses, counts = made()
    scores = effect[:, 0].copy()
    scores[[1, 4]] = np.nan, np.inf
    filled = np.where(np.isfinite(scores), scores, scores[np.isfinite(scores)].mean())
    found = lds({"a": scores, "b": filled, "none": np.full(12, np.nan)}, subsets, losses, counts)
    assert found["a"]["value"] == found["b"]["value"] and found["a"]["scored"] == 10 and found["b"]["scored"] == 12
    assert found["none"]["value"] is None and found["none"]["scored"] == 0
    scores[3:] = np.nan
    assert lds({"three": scores}, subsets, losses, counts)["three"]["value"] is None, "three scores rank no subsets"
    few = lds({"a": effect[:, 0]}, subsets[:3], losses[:3], counts)
    assert few["a"]["value"] is None


def test_lds_with_a_control_taken_out():
    """What follows the control alone foresees nothing beyond it, and a control of equal sums takes nothing away."""
    effect, subsets, losses, counts = made(subsets=40)
    lengths = np.arange(12.0) ** 2
    losses = losses + 0.5 * lengths[subsets].sum(axis=1, keepdims=True)  # more of it is worse, whatever the effects
    scores = {"good": effect.sum(axis=1), "short": -lengths, "none": np.full(12, np.nan)}
    found = lds(scores, subsets, losses, counts, control=lengths)
    sums = {name: values[subsets].sum(axis=1) for name, values in scores.items()}
    drop, given = -losses.sum(axis=1), lengths[subsets].sum(axis=1)
    assert found["short"]["value"] > 0.5 and found["short"]["partial"]["value"] is None
    partial = found["good"]["partial"]
    assert partial["value"] == pytest.approx(partial_spearman(sums["good"], drop, given))
    assert found["good"]["value"] < partial["value"] and partial["low"] < partial["value"] < partial["high"]
    assert found["none"]["partial"] == {"value": None, "low": None, "high": None}
    plain, same = (lds(scores, subsets, losses, counts, **how) for how in ({}, {"control": np.ones(12)}))
    assert "partial" not in plain["good"] and same["good"]["partial"]["value"] == plain["good"]["value"]


def test_worth_of_rankers():
    rng = np.random.default_rng(1)
    derivative = rng.normal(size=40)
    near = -derivative + 0.3 * rng.normal(size=40)
    missing = near.copy()
    missing[:10] = np.nan
    found = ranker_worth({"exact": -derivative, "near": near, "missing": missing}, derivative, top=8, seed=5)
    exact = found["exact"]
    assert exact["spearman"] == {"value": 1.0, "low": 1.0, "high": 1.0} and exact["scored"] == 40
    assert exact["precision"]["value"] == 1.0 and exact["precision"]["chance"] == 0.2
    assert found["near"]["spearman"]["value"] == pytest.approx(spearmanr(near, -derivative).statistic)
    best = [set(np.argsort(-values)[:8]) for values in (near, -derivative)]
    assert found["near"]["precision"]["value"] == len(best[0] & best[1]) / 8
    low, high = (found["near"]["spearman"][end] for end in ("low", "high"))
    assert low < found["near"]["spearman"]["value"] < high
    assert found["missing"]["scored"] == 30 and found["missing"]["precision"]["chance"] == 8 / 30
    assert found["missing"]["spearman"]["value"] == pytest.approx(spearmanr(near[10:], -derivative[10:]).statistic)


@pytest.mark.parametrize("count", [9, 10])
def test_a_few_in_perfect_order_have_no_interval(count):
    values = np.arange(float(count))
    found = ranker_worth({"a": values}, -values, top=2)["a"]["spearman"]
    assert found["value"] == 1.0 and found["low"] == found["high"] == (None if count < 10 else 1.0)


def test_fewer_candidates_than_the_top():
    values = np.array([3.0, 1.0, 2.0, 0.5, np.nan])
    found = ranker_worth({"a": values, "none": np.full(5, np.nan)}, -values, top=100)
    assert found["a"]["precision"]["top"] == 4 and found["a"]["precision"]["value"] == 1.0
    assert found["a"]["precision"]["chance"] == 1.0
    assert found["none"]["spearman"]["value"] is None and found["none"]["scored"] == 0


def test_mistakes():
    for size in (0, 8, 9):
        with pytest.raises(UserError, match=f"subsets of {size} of 8 candidates do not differ"):
            random_subsets(8, 4, size, 0)
    with pytest.raises(UserError, match="subsets = 0"):
        random_subsets(8, 0, 4, 0)
    with pytest.raises(UserError, match="ordinals of the 8 candidates"):
        measured(np.array([[0, 8]]))
    with pytest.raises(UserError, match="ends in a loss that is not finite; lower the learning rate"):
        config = TrainConfig(epochs=1, learning_rate=1e30, batch_size=3, tokens_per_microbatch=64)
        measured(random_subsets(8, 1, 4, 0), config=config)
    with pytest.raises(UserError, match=r"scores of 'a' are of shape \[3\], not \[5\]"):
        ranker_worth({"a": np.ones(3)}, np.ones(5), top=1)
    with pytest.raises(UserError, match="top = 0"):
        ranker_worth({"a": np.ones(5)}, np.ones(5), top=0)


@pytest.mark.parametrize("scores", [["a", "b"], [[1.0], [2.0, 3.0]], [None, {}]])
def test_scores_that_are_no_numbers(scores):
    model = nj.load_model("builtin:model", lora=nj.LoRAConfig(rank=2))
    pool = [{"prompt": f"{n} + 1 =", "response": str(n + 1)} for n in range(2)]
    with pytest.raises(UserError, match="scores of 'mine' are not numbers; give one for each of the 2 candidates"):
        nj.lds(model, pool, pool, {"mine": scores})


@pytest.mark.parametrize(
    ("control", "said"),
    [(np.ones(3), "control must be one number for each of the 2 candidates"), ([1.0, np.nan], "that are not finite")],
)
def test_a_control_that_does_not_fit_is_refused_before_anything_is_trained(control, said, monkeypatch):
    monkeypatch.setattr(nj.api.worth.datamodels, "subset_losses", None)
    model = nj.load_model("builtin:model", lora=nj.LoRAConfig(rank=2))
    pool = [{"prompt": f"{n} + 1 =", "response": str(n + 1)} for n in range(2)]
    with pytest.raises(UserError, match=said):
        nj.lds(model, pool, pool, {"mine": [1.0, 2.0]}, control=control)


def test_calls_that_are_kept_are_not_made_again(tmp_path):
    """Both in one folder, with other scores, from the public functions."""
    model = nj.load_model("builtin:model", lora=nj.LoRAConfig(rank=2), seed=1)
    pool = [{"prompt": f"{n} + 1 =", "response": str(n + 1)} for n in range(6)]
    training = nj.TrainConfig(max_steps=2, learning_rate=1e-2)
    options = {"training": training, "keep": str(tmp_path / "kept")}
    first = nj.metagradient(model, pool, pool[:2], **options)
    scores = {"a": -first.values, "b": np.arange(6.0)}
    found = nj.lds(model, pool, pool[:2], {"a": scores["a"]}, subsets=5, **options)
    assert len(list((tmp_path / "kept").iterdir())) > 3
    said = []
    again = nj.metagradient(model, pool, pool[:2], progress=lambda *step: said.append(step), **options)
    np.testing.assert_array_equal(again.values, first.values)
    more = nj.lds(model, pool, pool[:2], scores, subsets=5, progress=lambda *done: said.append(done), **options)
    assert "partial" in nj.lds(model, pool, pool[:2], scores, control=np.arange(6.0) ** 2, subsets=5, **options)["a"]
    assert more["a"] == found["a"] and said == [(4, 5), (5, 5)], "nothing is trained on again"
