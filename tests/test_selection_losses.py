"""Rankings by losses, and kernel scores without what lengths predict."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from ntk_jax.errors import UserError
from ntk_jax.selection import kernel_residual, paths, perplexity
from ntk_jax.selection.kernel_residual import KernelResidualOptions, residuals
from ntk_jax.selection.perplexity import LowestPerplexityOptions, PerplexityOptions
from ntk_jax.selection.ranker import Candidates, NoOptions
from ntk_jax.selection.rankers import RANKERS


def with_losses(base: list[float], warm: list[float], count: int) -> Candidates:
    size = len(base)
    return Candidates(
        count=count,
        seed=0,
        usable=np.ones(size, bool),
        length=np.ones(size, np.int32),
        span=np.ones(size, np.int32),
        records=lambda: iter(()),
        domain=[],
        losses=(np.array(base, np.float32), np.array(warm, np.float32)),
    )


class TestPerplexity:
    BASE, WARM = [3.0, 1.0, np.nan, 9.0, 2.0, 5.0], [1.0, 4.0, np.nan, 0.5, 2.0, 3.0]

    @pytest.mark.parametrize(
        ("take", "of", "expected"),
        [
            ("lowest", "base", [1, 4, 0]),
            ("highest", "base", [3, 5, 0]),
            ("middle", "base", [0, 4, 5]),  # of 1, 2, 3, 5, 9 the third, then the second and the fourth
            ("lowest", "warm", [3, 0, 4]),
            ("highest", "warm", [1, 5, 4]),
        ],
    )
    def test_what_is_taken(self, take, of, expected):
        found = perplexity.rank(with_losses(self.BASE, self.WARM, 3), PerplexityOptions(take, of))
        assert found.order.tolist() == expected and np.isnan(found.scores[2])
        assert (np.diff(found.scores[found.order]) <= 0).all()

    @pytest.mark.parametrize("of", ["base", "warm"])
    def test_the_lowest_stand_beside_the_middle(self, of):
        found = RANKERS["perplexity_lowest"].rank(with_losses(self.BASE, self.WARM, 3), LowestPerplexityOptions(of))
        same = perplexity.rank(with_losses(self.BASE, self.WARM, 3), PerplexityOptions("lowest", of))
        np.testing.assert_array_equal(found.scores, same.scores)
        assert found.order.tolist() == same.order.tolist()

    @settings(max_examples=60)
    @given(st.lists(st.integers(1, 6), min_size=1, max_size=15), st.data())
    def test_the_middle_is_a_run_of_the_sorted_losses(self, losses, data):
        count = data.draw(st.integers(1, len(losses)))
        found = perplexity.rank(with_losses(losses, losses, count), PerplexityOptions("middle"))
        taken, left = np.sort(np.array(losses)[found.order]), np.delete(losses, found.order)
        below, above = int((left <= taken[0]).sum()), int((left >= taken[-1]).sum())
        assert all(other <= taken[0] or other >= taken[-1] for other in left), "nothing between is left out"
        assert below + above >= len(left)
        if len(set(losses)) == len(losses):
            assert abs(int((left < taken[0]).sum()) - int((left > taken[-1]).sum())) <= 1, "as many on either side"

    def test_equal_losses_are_equal(self):
        found = perplexity.rank(with_losses([2.0, 1.0, 2.0, 3.0], [0.0] * 4, 2), PerplexityOptions("middle"))
        assert found.scores[0] == found.scores[2] == 0.0 and found.order.tolist() == [0, 2]

    def test_more_than_have_a_loss(self):
        with pytest.raises(UserError, match="^count = 6 is larger than the pool .5 usable"):
            perplexity.rank(with_losses(self.BASE, self.WARM, 6), PerplexityOptions())


class TestPaths:
    @settings(max_examples=40)
    @given(
        st.lists(st.tuples(st.floats(0.0078125, 20, width=32), st.floats(0, 20, width=32)), min_size=1, max_size=10),
        st.data(),
    )
    def test_the_score_is_the_share_lost(self, losses, data):
        base, warm = zip(*losses, strict=True)
        assume(base != warm)
        count = data.draw(st.integers(1, len(losses)))
        found = paths.rank(with_losses(list(base), list(warm), count), NoOptions())
        expected = [(before - after) / before for before, after in losses]
        np.testing.assert_allclose(found.scores, np.array(expected, np.float32), rtol=1e-5, atol=1e-6)
        assert found.order.tolist() == np.argsort(-found.scores, kind="stable")[:count].tolist()

    def test_what_was_certain_before(self):
        found = paths.rank(with_losses([0.0, 0.0, 2.0], [0.0, 0.5, 1.0], 3), NoOptions())
        assert found.order.tolist() == [2, 0, 1] and np.isfinite(found.scores).all()

    def test_a_warm_up_that_changed_nothing(self):
        with pytest.raises(UserError, match="the warm-up changed no example's loss.*more steps"):
            paths.rank(with_losses([1.0, 2.0], [1.0, 2.0], 1), NoOptions())


class TestKernelResidual:
    @settings(max_examples=40)
    @given(
        seed=st.integers(0, 10**6),
        size=st.integers(400, 900),
        trend=st.sampled_from(["falls", "rises", "bends"]),
        noise=st.sampled_from([0.3, 0.6, 2.0]),
        spread=st.booleans(),
        scale=st.sampled_from([1e-7, 1.0]),
    )
    def test_nothing_of_the_length_is_left(self, seed, size, trend, noise, spread, scale):
        rng = np.random.default_rng(seed)
        lengths = np.maximum(1, rng.lognormal(2.5, 1.1, size)).astype(np.int32)
        shape = {"falls": 1 / np.sqrt(lengths), "rises": np.log(lengths), "bends": -np.abs(np.log(lengths) - 2.5)}[
            trend
        ]
        shape = (shape - shape.mean()) / shape.std()
        scores = scale * (shape + noise * rng.standard_normal(size) / np.sqrt(lengths) ** 0.5)
        left = residuals(scores, lengths, 40, spread)
        assert abs(spearmanr(left, lengths).statistic) < 0.12
        if trend != "bends" and noise < 1:
            assert abs(spearmanr(scores, lengths).statistic) > 0.5, "there was a trend to remove"

    @settings(max_examples=40)
    @given(seed=st.integers(0, 10**6), examples=st.integers(1, 30), size=st.integers(1, 60), spread=st.booleans())
    def test_it_is_the_running_line(self, seed, examples, size, spread):
        """Length by length, each line by the normal equations of its own examples."""
        rng = np.random.default_rng(seed)
        lengths, scores = rng.integers(1, 40, size), rng.standard_t(2, size)
        order = np.argsort(lengths, kind="stable")
        logs, values, weights = np.log(lengths[order]), scores[order], np.ones(size)
        for _ in range(3):
            left, distance, mine = np.zeros(size), np.zeros(size), {}
            for length in set(lengths.tolist()):
                own = np.flatnonzero(lengths[order] == length)
                more = max(0, int(np.ceil((examples - len(own)) / 2)))
                near = np.arange(max(0, own[0] - more), min(size, own[-1] + 1 + more))
                mine[length] = own, near
                root = np.sqrt(weights[near])
                columns = np.stack([root, root * (logs[near] - np.log(length))], axis=1)
                line = np.linalg.lstsq(columns, root * values[near], rcond=1e-7)[0]
                left[own] = values[own] - line[0]
            for own, near in mine.values():
                distance[own] = np.abs(left[near]).mean()
            weights = (1 - np.clip(left / (6 * distance + 1e-300), -1, 1) ** 2) ** 2
        assume((distance > 1e-6).all())  # what is 0 but for rounding has no spread to speak of
        expected = left / distance if spread else left
        np.testing.assert_allclose(residuals(scores, lengths, examples, spread)[order], expected, rtol=1e-5, atol=1e-7)

    @settings(max_examples=40)
    @given(seed=st.integers(0, 10**6), a=st.floats(-9, 9), b=st.floats(-9, 9), examples=st.integers(5, 60))
    def test_a_line_in_log_length_is_removed_wholly(self, seed, a, b, examples):
        rng = np.random.default_rng(seed)
        lengths = np.maximum(1, rng.lognormal(2, 1, 80)).astype(int)
        scores, line = rng.standard_normal(80), a + b * np.log(lengths)
        np.testing.assert_allclose(residuals(line, lengths, examples), 0, atol=1e-7)
        np.testing.assert_allclose(
            residuals(scores + line, lengths, examples), residuals(scores, lengths, examples), atol=1e-6
        )

    def test_one_absurd_score_does_not_bend_the_line(self):
        rng = np.random.default_rng(1)
        lengths, scores = rng.integers(1, 40, 300), rng.standard_normal(300)
        before = residuals(scores, lengths, 100)
        scores[7] = 1000.0
        after = np.delete(residuals(scores, lengths, 100) - before, 7)
        assert np.abs(after).max() < 0.7, "a plain mean of 100 would move by 10"

    def test_spread_makes_deviations_alike(self):
        rng = np.random.default_rng(0)
        lengths = np.repeat([1, 100], 300)
        scores = rng.standard_normal(600) / lengths
        plain, scaled = (np.abs(residuals(scores, lengths, 50, spread)) for spread in (False, True))
        assert plain[:300].mean() > 50 * plain[300:].mean()
        assert scaled[:300].mean() == pytest.approx(1.0) and scaled[300:].mean() == pytest.approx(1.0)
        assert not residuals(np.ones(10), np.ones(10), 2, True).any(), "scores that are all equal"

    def candidates(self, scores: list[float], span: list[int], count: int) -> Candidates:
        bare = with_losses([0.0] * len(scores), [0.0] * len(scores), count)
        return dataclasses.replace(bare, scores=np.array(scores, np.float32), span=np.array(span, np.int32))

    def test_the_ranking(self):
        """Short responses score 10 more; without that, the long one at the end is the best."""
        scores, span = [10.0, 11.0, np.nan, 9.0, 0.0, 1.0, 3.0], [2, 2, 2, 2, 40, 40, 40]
        found = kernel_residual.rank(self.candidates(scores, span, 3), KernelResidualOptions(examples=3))
        assert found.order[0] == 6 and np.isnan(found.scores[2]) and found.scores[1] > found.scores[0] > found.scores[3]
        assert abs(np.nanmean(found.scores[:4])) < 0.1 and abs(np.median(found.scores[4:])) < 1

    def test_a_length_that_is_missing(self):
        with pytest.raises(UserError, match="some scored examples have no response length; give the lengths"):
            kernel_residual.rank(self.candidates([1.0, 2.0], [3, 0], 1), KernelResidualOptions())
        found = kernel_residual.rank(self.candidates([1.0, np.nan], [3, 0], 1), KernelResidualOptions())
        assert found.order.tolist() == [0], "what is not scored needs no length"
