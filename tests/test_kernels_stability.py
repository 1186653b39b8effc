"""Agreement of kernels and rankings, cross-output cosines, linearisation, and the comparison of checkpoints."""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path

import hypothesis.extra.numpy as hnp
import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_reference import centred, random_rows, tiny_model
from scipy.stats import rankdata, spearmanr

from ntk_jax.errors import UserError
from ntk_jax.kernels import exact
from ntk_jax.kernels.agreement import (
    centered_alignment,
    effective_rank,
    frobenius_cosine,
    partial_spearman,
    relative_error,
    spearman,
    spectrum,
    top_overlap,
)
from ntk_jax.kernels.backbone import span_mean, stacked
from ntk_jax.kernels.cross_output import cross_output_cosines
from ntk_jax.kernels.exact import tangent_kernel
from ntk_jax.kernels.linearization import linearization_gap
from ntk_jax.kernels.objectives import Objective, head_coherence
from ntk_jax.kernels.rows import layout_for
from ntk_jax.kernels.stability import Checkpoint, stability
from ntk_jax.models.lora import LoRAConfig
from ntk_jax.models.model import random_model, with_lora

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
from resampled_ranks import partial  # noqa: E402

matrices = hnp.arrays(np.float64, (5, 3), elements=st.floats(-3, 3, width=16)).filter(lambda x: np.abs(x).max() > 0.1)


class TestAgreement:
    @given(matrices, st.floats(0.1, 10))
    @settings(max_examples=40, deadline=None)
    def test_a_factor_changes_no_cosine(self, features, factor):
        gram = features @ features.T
        assert frobenius_cosine(gram, factor * gram) == pytest.approx(1.0)
        assert relative_error(factor * gram, gram, scaled=True) == pytest.approx(0.0, abs=1e-6)
        assert relative_error(factor * gram, gram) == pytest.approx(abs(factor - 1))

    @given(matrices, hnp.arrays(np.float64, (3,), elements=st.floats(-5, 5, width=16)))
    @settings(max_examples=40, deadline=None)
    def test_alignment_does_not_see_a_common_feature(self, features, shift):
        moved = (features + shift) @ (features + shift).T
        spread = np.abs(features - features.mean(axis=0)).max()
        if spread > 0.1:
            assert centered_alignment(features @ features.T, moved) == pytest.approx(1.0, abs=1e-6)

    def test_all_positive_kernels_look_alike_to_the_cosine_and_not_to_the_alignment(self):
        rng = np.random.default_rng(0)
        a, b = (rng.standard_normal((20, 4)) * 0.1 + [5, 0, 0, 0] for _ in range(2))
        assert frobenius_cosine(a @ a.T, b @ b.T) > 0.99
        assert centered_alignment(a @ a.T, b @ b.T) < 0.9

    def test_effective_rank(self):
        assert effective_rank(np.eye(6)) == pytest.approx(6.0)
        assert effective_rank(np.ones((6, 6))) == pytest.approx(1.0)
        assert spectrum(np.diag([1.0, 3.0, 2.0])).tolist() == [3.0, 2.0, 1.0]

    @given(hnp.arrays(np.float64, 12, elements=st.integers(-3, 3).map(float)))
    @settings(max_examples=40, deadline=None)
    def test_spearman_is_scipys(self, values):
        other = np.random.default_rng(1).permutation(12)
        if len(set(values)) > 1:
            assert spearman(values, other) == pytest.approx(spearmanr(values, other).statistic)
        else:
            assert np.isnan(spearman(values, other))

    @given(hnp.arrays(np.int64, (3, 12), elements=st.integers(-4, 4)))
    @settings(max_examples=60, deadline=None)
    def test_partial_spearman_is_the_correlation_of_what_a_regression_leaves(self, values):
        a, b, given = rankdata(values, axis=1)
        lines = np.stack([np.ones(12), given], axis=1)
        x, y = (ranks - lines @ np.linalg.lstsq(lines, ranks, rcond=None)[0] for ranks in (a, b))
        size = np.linalg.norm(x) * np.linalg.norm(y)
        found = partial_spearman(*values)
        if size > 1e-6:
            assert found == pytest.approx(x @ y / size, abs=1e-6)
        else:
            assert np.isnan(found)

    def test_what_follows_length_alone_has_no_correlation_beyond_it(self):
        rng = np.random.default_rng(0)
        length, noise = rng.standard_normal(400), rng.standard_normal((2, 400))
        a, b = length + 0.3 * noise
        assert spearman(a, b) > 0.85 and abs(partial_spearman(a, b, length)) < 0.15
        assert np.isnan(partial_spearman(length, b, length))
        assert partial_spearman(a, b, np.ones(400)) == spearman(a, b)
        assert np.isnan(partial_spearman(a, b, np.full(400, np.nan)))

    def test_partial_spearman_of_many_that_differ_by_one_swap(self):
        given = np.arange(1000.0)
        a, b = given.copy(), given.copy()
        a[[10, 11]], b[[700, 701]] = a[[11, 10]], b[[701, 700]]
        assert partial_spearman(a, a, given) == pytest.approx(1, abs=1e-6)
        assert partial_spearman(a, b, given) == pytest.approx(0, abs=1e-3)
        weights = np.ones((1, 1000), int)
        assert partial_spearman(a, b, given) == pytest.approx(partial(a, b, given, weights)[0], abs=1e-6)

    def test_top_overlap(self):
        scores = np.arange(10.0)
        assert top_overlap(scores, scores, 3) == 1.0
        assert top_overlap(scores, -scores, 3) == 0.0
        assert top_overlap(scores, np.roll(scores, 1), 2) == 0.5


class TestCrossOutput:
    def test_little_memory_takes_more_passes_to_the_same(self, monkeypatch):
        model, rows = tiny_model(vocab_size=23), random_rows(1, seed=1, vocab=23)
        passes, features = [], exact._features
        monkeypatch.setattr(exact, "_features", lambda *a: passes.append(len(a[-1])) or features(*a))
        much = cross_output_cosines(model, rows, pairs=100)["plain"]
        width = model.config.hidden_size
        assert passes == [width] and width > exact.CHANNELS  # so that they are pulled back in parts
        little = cross_output_cosines(model, rows, pairs=100, memory=1)["plain"]
        assert len(passes) > width and set(passes[1:]) == {1}
        assert little["root_mean_square"] == pytest.approx(much["root_mean_square"], rel=1e-5)

    def test_means_over_all_pairs_are_those_of_the_full_kernel(self):
        model, rows = tiny_model(vocab_size=23), random_rows(2, seed=1, vocab=23)
        function, theta, frozen, head = span_mean(model, "lora")
        examples = stacked(rows)
        full = tangent_kernel(function, theta, frozen, examples, examples, kind="full", outputs=head).astype(np.float64)
        found = cross_output_cosines(model, rows, pairs=20_000)
        centre = np.eye(23) - 1 / 23
        for name, project in (("plain", np.eye(23)), ("centered", centre)):
            means, squares, coherence = [], [], []
            for n in range(2):
                own = project @ full[n, n] @ project
                cosines = own / np.sqrt(np.outer(np.diag(own), np.diag(own)))
                off = cosines[~np.eye(23, dtype=bool)]
                means.append(off.mean())
                squares.append((off**2).mean())
                coherence.append(own.sum() / np.trace(own))
            assert found[name]["mean"] == pytest.approx(np.mean(means), abs=1e-5)
            assert found[name]["root_mean_square"] == pytest.approx(np.mean(np.sqrt(squares)), rel=1e-4)
            assert found[name]["coherence"] == pytest.approx(np.mean(coherence), rel=1e-4, abs=1e-6)
        assert sum(found["plain"]["histogram"]["counts"]) == 20_000

    def test_a_shared_direction_of_the_head_makes_the_cosines_positive(self):
        model, rows = tiny_model(vocab_size=64), random_rows(2, seed=2, vocab=64)
        head = model.base["head"]
        common = dataclasses.replace(model, base={**model.base, "head": head + 2.0 * head[0]})
        plain, leaning = (cross_output_cosines(m, rows, pairs=2000)["plain"] for m in (model, common))
        assert head_coherence(common.base["head"]) > 5 * head_coherence(head)
        assert leaning["mean"] > 0.3 > abs(plain["mean"])
        assert leaning["coherence"] > 5 * plain["coherence"]

    def test_a_centred_head_has_no_coherence(self):
        model = centred(tiny_model(vocab_size=31))
        found = cross_output_cosines(model, random_rows(1, seed=3, vocab=31), pairs=100)
        assert abs(found["plain"]["coherence"]) < 1e-6

    def test_mistakes(self):
        model = tiny_model(vocab_size=31)
        with pytest.raises(UserError, match="no examples"):
            cross_output_cosines(model, [])
        with pytest.raises(UserError, match="hold the head"):
            cross_output_cosines(model, random_rows(1, vocab=31), parameters="all")


class TestLinearization:
    def test_the_gap_shrinks_with_the_step(self):
        model, rows = tiny_model(), random_rows(3, seed=4)
        rng = np.random.default_rng(0)
        step = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), model.lora)

        def gap(size):
            moved = jax.tree.map(lambda leaf, d: leaf + size * d, model.lora, step)
            return linearization_gap(model, moved, rows)

        large, small = gap(2e-3), gap(1e-3)
        assert small["gap"] == pytest.approx(large["gap"] / 2, rel=0.15)  # the second-order term is all that is left
        assert small["cosine"] > 0.99 and small["moved"] < large["moved"]

    def test_nothing_moved(self):
        model = tiny_model()
        found = linearization_gap(model, model.lora, random_rows(2))
        assert found == {"gap": 0.0, "cosine": 1.0, "moved": 0.0, "distance": 0.0}


def checkpoints(model, count=3, size=0.05):
    rng = np.random.default_rng(5)
    step = jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape).astype(np.float32), model.lora)
    return [
        Checkpoint("seed 0", t, jax.tree.map(lambda leaf, d, t=t: leaf + t * size * d, model.lora, step))
        for t in range(count)
    ]


@pytest.fixture(scope="module")
def compared():
    model, rows, pool = tiny_model(vocab_size=40), random_rows(4, vocab=40), random_rows(20, seed=9, vocab=40)
    objectives = [Objective("sum_logits"), Objective("cross_entropy")]
    calls = []
    report = stability(
        model, rows, checkpoints(model), candidates=pool, objectives=objectives, layout=layout_for(24, 256),
        progress=lambda *done: calls.append(done),
    )  # fmt: skip
    return report, calls


class TestStability:
    def test_what_is_compared(self, compared):
        report, calls = compared
        assert calls == [(1, 3), (2, 3), (3, 3)]
        assert report.kernel_cosine.shape == (3, 3) and report.kernels.shape == (3, 4, 4)
        np.testing.assert_allclose(np.diag(report.kernel_cosine), 1.0)
        np.testing.assert_allclose(report.kernel_cosine, report.kernel_cosine.T)
        assert report.kernel_cosine[0, 1] > report.kernel_cosine[0, 2]  # twice as far
        assert set(report.score_spearman) == {"sum_logits", "cross_entropy"} and report.top == 2
        np.testing.assert_allclose(np.diag(report.score_spearman["cross_entropy"]), 1.0)
        lengths = [row.span.sum() for row in random_rows(20, seed=9, vocab=40)]
        one, other = report.scores["cross_entropy"][:2]
        assert report.score_spearman_length["cross_entropy"][0] == pytest.approx(spearman(one, lengths))
        less = report.score_spearman_less_length["cross_entropy"]
        np.testing.assert_allclose([less[0, 0], less[0, 1]], [1.0, partial_spearman(one, other, np.array(lengths))])
        gaps = [point["linearization"]["gap"] for point in report.points]
        assert gaps[0] == 0 < gaps[1] < gaps[2]
        assert list(report.objectives_spearman) == ["sum_logits ~ cross_entropy"]

    def test_the_table_and_the_json(self, compared):
        report, _ = compared
        assert "seed 0, step 2" in str(report) and "rho sum_logits" in str(report)
        assert json.loads(json.dumps(report.to_dict()))["candidates"] == 20

    def test_a_checkpoint_of_another_rank(self):
        model = tiny_model(vocab_size=40)
        other = random_model(model.config, lora=LoRAConfig(rank=2), seed=1)
        with pytest.raises(UserError, match=r"checkpoint seed 1, step 7: its adapter \(rank 2 on 7 linears\) does not"):
            stability(model, random_rows(2, vocab=40), [Checkpoint("seed 1", 7, other.lora)])

    def test_nothing_to_compare(self):
        model = tiny_model(vocab_size=40)
        with pytest.raises(UserError, match="no checkpoints"):
            stability(model, random_rows(2, vocab=40), [])
        with pytest.raises(UserError, match="probe set holds 0 examples"):
            stability(model, [], checkpoints(model, 1))

    def test_a_checkpoint_that_is_not_finite(self):
        model = tiny_model(vocab_size=40)
        broken = jax.tree.map(lambda leaf: leaf * np.nan, model.lora)
        with pytest.raises(UserError, match="not finite"):
            stability(model, random_rows(2, vocab=40), [Checkpoint("seed 0", 0, broken)])


def test_layers_add_up():
    """The kernel over all layers' adapters is the sum over the last k and the others."""
    model, rows = tiny_model(), random_rows(3, seed=11)
    function, theta, frozen, head = span_mean(model, "lora")
    x = stacked(rows)
    whole = tangent_kernel(function, theta, frozen, x, x, outputs=head)
    last = tangent_kernel(*span_mean(model, "lora[-1:]")[:3], x, x, outputs=head)
    first = tangent_kernel(_FirstLayer(function), *_first(theta, frozen), x, x, outputs=head)
    np.testing.assert_allclose(last + first, whole, rtol=1e-4, atol=1e-5 * np.abs(whole).max())


@dataclasses.dataclass(frozen=True)
class _FirstLayer:
    function: object

    def __call__(self, theta, frozen, x):
        later, rest = frozen
        return self.function(jax.tree.map(lambda a, b: jax.numpy.concatenate([a, b]), theta, later), rest, x)


def _first(theta, frozen):
    return jax.tree.map(lambda leaf: leaf[:1], theta), (jax.tree.map(lambda leaf: leaf[1:], theta), frozen)


def test_with_lora_keeps_the_rest():
    model = tiny_model()
    assert with_lora(model, model.lora).base is model.base
