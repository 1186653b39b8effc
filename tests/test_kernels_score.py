"""The directional score against explicit per-example gradients, and what it must not depend on."""

from __future__ import annotations

import dataclasses
import functools
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from crossed import crossed
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from kernel_reference import centred, flatten, random_rows, reference_gradients, tiny_model

from ntk_jax.data.batch import TokenRow
from ntk_jax.errors import UserError
from ntk_jax.kernels.direction import adam_preconditioned, mean_gradient, stack_directions
from ntk_jax.kernels.names import OBJECTIVES
from ntk_jax.kernels.objectives import LABEL_AWARE, LINEAR, Objective, head_coherence
from ntk_jax.kernels.parameters import refuse_fresh_lora, split_parameters
from ntk_jax.kernels.rows import Layout, batches_of, frozen_readout, layout_for, make_step
from ntk_jax.kernels.score import directional_scores, mean_hidden_states, pooled_hidden_states
from ntk_jax.kernels.step import directional_step, gradient_step
from ntk_jax.models.attention_kernel import Kernel
from ntk_jax.models.decoder import hidden_states
from ntk_jax.models.lora import LoRAConfig
from ntk_jax.models.model import quantized, random_model
from ntk_jax.parallel.mesh import make_mesh
from ntk_jax.parallel.rules import param_shardings

FAMILIES = ("llama", "qwen2", "qwen3")
KINDS = OBJECTIVES
LAYOUT = Layout(row_length=64, rows_per_batch=8)


def objective_of(kind):
    """The same one for a kind wherever a test does not need another: its programs are compiled once."""
    return Objective(kind, probes=2, seed=7) if kind == "probe" else Objective(kind)


def logit_gap(hidden: jax.Array, targets: jax.Array, head: jax.Array) -> jax.Array:
    """A user's objective: the target's logit less the mean logit, squared."""
    target = jnp.einsum("...d,...d->...", hidden, head[targets])
    return (target - hidden @ head.mean(axis=0)) ** 2


def explicit_scores(model, domain, pool, objective, parameters="lora"):
    """mean_i ⟨g(x_i), g(x)⟩, averaged over channels, in float64."""
    mean = np.mean(reference_gradients(model, domain, objective, parameters), axis=0)
    features = reference_gradients(model, pool, objective, parameters)
    return np.array([(mean * feature).sum(axis=1).mean() for feature in features])


def assert_same_scores(actual, expected):
    """1e-5 of the largest score: what two orders of the same fp32 sums may differ by, also where a score cancels."""
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


def assert_close(actual, expected, rtol=1e-4):
    """Relative to each score, with a tenth of the tolerance relative to the largest: fp32 sums that cancel."""
    np.testing.assert_allclose(actual, expected, rtol=rtol, atol=0.1 * rtol * np.abs(expected).max())


def test_every_name_has_one_function():
    """Names are read without jax, functions with it; what each one is, the reference says."""
    assert sorted(OBJECTIVES) == sorted(LINEAR + LABEL_AWARE)
    code = "import sys, ntk_jax.pipelines.common.sections; sys.exit('jax' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(("family", "kind"), crossed(FAMILIES, [*KINDS, logit_gap]))
def test_scores_equal_explicit_gradient_inner_products(family, kind):
    model = tiny_model(family)
    domain, pool = random_rows(3, seed=1), random_rows(5, seed=2)
    objective = objective_of(kind)
    expected = explicit_scores(model, domain, pool, objective)
    for packed in (True, False):
        layout = dataclasses.replace(LAYOUT, packed=packed)
        direction = mean_gradient(model, domain, objective, layout)
        scores = directional_scores(model, pool, direction, objective, layout).values
        assert scores.dtype == np.float32
        assert_close(scores, expected)


@pytest.mark.parametrize(
    "kind, normalize",  # `none` is `sum` by another name
    [pytest.param("sum_logits", "sum", marks=pytest.mark.slow), ("cross_entropy", "sum"), ("sum_logits", "none")],
)
def test_normalisation(kind, normalize):
    model, rows = tiny_model(), random_rows(4, seed=3, lengths=(9,))
    objective = Objective(kind, normalize)
    direction = mean_gradient(model, rows, objective, LAYOUT)
    scores = directional_scores(model, rows, direction, objective, LAYOUT).values
    assert_close(scores, explicit_scores(model, rows, rows, objective))


@pytest.mark.parametrize(
    ("parameters", "kind"),
    [pytest.param("all", kind, marks=() if kind == "probe" else pytest.mark.slow) for kind in KINDS]
    + [("layers/(q_proj|up_proj)/", "sum_logits"), ("base/(norm|embed|head)$", "cross_entropy")],
)
def test_other_parameters_than_lora(parameters, kind):
    model = tiny_model()
    domain, pool = (random_rows(count, seed=count, lengths=(9,)) for count in (2, 3))
    objective = objective_of(kind)
    direction = mean_gradient(model, domain, objective, LAYOUT, parameters=parameters)
    scores = directional_scores(model, pool, direction, objective, LAYOUT, parameters=parameters).values
    assert_close(scores, explicit_scores(model, domain, pool, objective, parameters))


@pytest.mark.parametrize("kind", [pytest.param("sum_logits", marks=pytest.mark.slow), "probe"])
def test_the_last_layers_alone(kind):
    """Their gradient is the end of the whole one, and their scores are those along the whole one's end."""
    model, last = tiny_model(num_layers=3), "lora[-2:]"
    domain, pool = random_rows(3, seed=1), random_rows(5, seed=2)
    objective = objective_of(kind)
    axis = 1 if kind == "probe" else 0  # behind that of the probes

    def cut(tree):
        return jax.tree.map(lambda leaf: jnp.moveaxis(jnp.moveaxis(leaf, axis, 0)[1:], 0, axis), tree)

    direction = mean_gradient(model, domain, objective, LAYOUT)
    of_last = mean_gradient(model, domain, objective, LAYOUT, parameters=last)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-6), of_last, cut(direction))
    padded = jax.tree.map(lambda leaf, end: leaf.at[:].set(0).at[(slice(None),) * axis + (slice(1, None),)].set(end),
                          direction, of_last)  # fmt: skip
    expected = directional_scores(model, pool, padded, objective, LAYOUT).values
    assert_close(directional_scores(model, pool, of_last, objective, LAYOUT, parameters=last).values, expected)


def test_options_go_together():
    """The last layers' adapters over quantized weights that are split over devices, and with the attention kernel."""
    model = quantized(tiny_model(num_layers=3), "int8")
    rows, objective, last = random_rows(8, seed=2), Objective("sum_logits"), "lora[-2:]"
    directions = stack_directions(
        [mean_gradient(model, rows[start : start + 2], objective, LAYOUT, parameters=last) for start in (0, 2)]
    )
    plain = directional_scores(model, rows, directions, objective, LAYOUT, parameters=last).values
    kernel = Kernel(16, 16, interpret=True)
    of_kernel = directional_scores(model, rows, directions, objective, LAYOUT, parameters=last, attention=kernel).values
    assert_same_scores(of_kernel, plain)
    mesh = make_mesh(1, 8, 1)
    split = dataclasses.replace(
        model,
        base=jax.device_put(model.base, param_shardings(model.base, mesh)),
        lora=jax.device_put(model.lora, param_shardings(model.lora, mesh)),
    )
    layout = Layout(64, 8, mesh)
    assert_same_scores(directional_scores(split, rows, directions, objective, layout, parameters=last).values, plain)


def test_no_tangent_enters_the_layers_before_the_last():
    """Read from the traced step: the first scan has the products of a forward pass, the second those of a score."""
    model, rows, objective = tiny_model(num_layers=3), random_rows(4), Objective("sum_logits")

    def products(jaxpr):
        nested = [value.jaxpr for eqn in jaxpr.eqns for value in eqn.params.values() if hasattr(value, "jaxpr")]
        return sum(eqn.primitive.name == "dot_general" for eqn in jaxpr.eqns) + sum(map(products, nested))

    def of_scans(parameters):
        theta, rest = split_parameters(model, parameters)
        along = jax.tree.map(lambda leaf: jnp.ones((1, 1, *leaf.shape)), theta)
        batch = next(iter(batches_of(rows, LAYOUT, objective))).batch
        step, read = make_step(model, objective, LAYOUT, parameters), frozen_readout(model, objective, parameters)
        inside = jax.make_jaxpr(directional_step, static_argnums=0)(step, theta, rest, read, along, batch).jaxpr
        return [products(eqn.params["jaxpr"].jaxpr) for eqn in scans_of(inside)]

    def scans_of(jaxpr):
        own = [eqn for eqn in jaxpr.eqns if eqn.primitive.name == "scan"]
        nested = [value.jaxpr for eqn in jaxpr.eqns for value in eqn.params.values() if hasattr(value, "jaxpr")]
        return own or [eqn for inside in nested for eqn in scans_of(inside)]

    (whole,) = of_scans("lora")
    early, late = of_scans("lora[-1:]")
    assert late == whole
    assert early == 7 * 3 + 2  # xW, xA and (xA)B of seven linears, and attention's two


def test_mean_gradient_is_the_mean_of_explicit_gradients():
    model, rows = tiny_model("qwen3"), random_rows(6, seed=4, lengths=(9,))
    objective = Objective("probe", probes=3)
    direction = mean_gradient(model, rows, objective, LAYOUT)
    expected = np.mean(reference_gradients(model, rows, objective), axis=0)
    actual = flatten(direction, 3)
    assert np.linalg.norm(actual - expected) < 1e-5 * np.linalg.norm(expected)


@pytest.mark.parametrize("kind", KINDS)
def test_scores_do_not_depend_on_batch_neighbours(kind):
    model, pool = tiny_model(), random_rows(12, seed=5)
    objective = objective_of(kind)
    direction = mean_gradient(model, random_rows(3, seed=6), objective, LAYOUT)
    together = directional_scores(model, pool, direction, objective, LAYOUT).values
    alone = np.concatenate([directional_scores(model, [row], direction, objective, LAYOUT).values for row in pool])
    backwards = directional_scores(model, pool[::-1], direction, objective, LAYOUT).values[::-1]
    assert_same_scores(together, alone)
    assert_same_scores(together, backwards)


def test_scores_do_not_depend_on_the_batch_size():
    """8,192 tokens a step, mostly padding: where jax 0.12.0.1 is wrong on the CPU by a fifth."""
    model, rows = tiny_model(vocab_size=260), random_rows(4)
    direction = mean_gradient(model, rows[:1], Objective(), LAYOUT)
    small, large = (
        directional_scores(model, rows, direction, Objective(), Layout(64, count)).values for count in (1, 128)
    )
    assert_same_scores(large, small)


def test_batch_of_directions_equals_each_alone():
    model, pool = tiny_model(), random_rows(6, seed=7)
    for objective in (objective_of("sum_logits"), objective_of("probe")):
        each = [mean_gradient(model, random_rows(2, seed=s), objective, LAYOUT) for s in (8, 9, 10)]
        together = directional_scores(model, pool, stack_directions(each), objective, LAYOUT).values
        assert together.shape == (6, 3)
        for column, direction in enumerate(each):
            assert_close(
                together[:, column], directional_scores(model, pool, direction, objective, LAYOUT).values, 1e-5
            )


def test_sum_logits_vanishes_on_a_centred_head_and_probe_does_not_change():
    """The softmax gauge: predictions are the same, the sum of logits is not."""
    model, pool, domain = tiny_model(), random_rows(6, seed=11), random_rows(3, seed=12)
    flat = centred(model)
    results = {}
    for name, which in (("raw", model), ("centred", flat)):
        for kind in ("sum_logits", "probe", "cross_entropy"):
            objective = objective_of(kind)
            direction = mean_gradient(which, domain, objective, LAYOUT)
            results[name, kind] = directional_scores(which, pool, direction, objective, LAYOUT).values
    scale = np.abs(results["raw", "sum_logits"]).max()
    assert np.abs(results["centred", "sum_logits"]).max() < 1e-9 * scale
    assert_close(results["centred", "probe"], results["raw", "probe"])
    assert_close(results["centred", "cross_entropy"], results["raw", "cross_entropy"])
    assert head_coherence(flat.base["head"]) < 1e-9 < 0.01 < head_coherence(model.base["head"])


def test_probes_converge_to_the_trace_of_the_centred_kernel():
    """With every one of V orthogonal probes the mean is exact; here: many random ones, within four standard errors."""
    model, rows = tiny_model(vocab_size=24), random_rows(2, seed=13, vocab=24, lengths=(9,))
    x, y = (_logit_features(model, row) for row in rows)  # [V, P], centred
    exact = float((x * y).sum())
    pairs = x @ y.T
    variance = 2 * (((pairs + pairs.T) / 2) ** 2).sum() - 2 * (np.diag(pairs) ** 2).sum()  # Hutchinson, Rademacher
    probes = 256
    objective = Objective("probe", probes=probes, seed=3)
    direction = mean_gradient(model, rows[:1], objective, Layout(64, 1))
    estimate = float(directional_scores(model, rows[1:], direction, objective, Layout(64, 1)).values[0])
    assert abs(estimate - exact) < 4 * np.sqrt(variance / probes)


def _logit_features(model, row):
    """[V, P]: gradients of each centred span-mean logit, by V orthogonal one-hot readings."""
    theta, rest = split_parameters(model, "lora")

    def logits(theta):
        ids = jnp.asarray(row.ids)[None]
        hidden = hidden_states(
            model.graphdef, theta, rest["base"], ids, jnp.arange(ids.shape[1])[None], jnp.ones_like(ids)
        )[0]
        mean = (hidden * row.span[:, None]).sum(axis=0) / row.span.sum()
        values = model.base["head"] @ mean
        return values - values.mean()

    return flatten(jax.jit(jax.jacrev(logits))(theta), model.config.vocab_size)


@pytest.mark.parametrize("kind", ["sum_logits", "cross_entropy"])
def test_one_and_eight_devices_agree(kind):
    model, pool, domain = tiny_model(), random_rows(40, seed=14), random_rows(20, seed=15)
    objective = Objective(kind)
    scores = []
    for mesh in (None, make_mesh(devices=jax.devices()[:1]), make_mesh()):
        layout = dataclasses.replace(LAYOUT, mesh=mesh)
        direction = mean_gradient(model, domain, objective, layout)
        scores.append(directional_scores(model, pool, direction, objective, layout).values)
    assert len(jax.devices()) == 8
    assert_same_scores(scores[1], scores[0])
    assert_same_scores(scores[2], scores[0])
    assert list(np.argsort(-scores[2], kind="stable")) == list(np.argsort(-scores[0], kind="stable"))


def test_linear_objectives_never_build_logits():
    """The compiled steps hold no array with a vocabulary axis but the weights themselves."""
    for kind, expected in (("sum_logits", False), ("probe", False), ("cross_entropy", True)):
        model, rows = tiny_model(vocab_size=1009, hidden_size=32), random_rows(3, vocab=1009)
        objective = Objective(kind, probes=1)
        direction = mean_gradient(model, rows, objective, LAYOUT)
        theta, rest = split_parameters(model, "lora")
        axes = (0,) if kind == "probe" else (0, 1)
        stacked = jax.tree.map(lambda d, axes=axes: jnp.expand_dims(d, axes), direction)
        batch = next(iter(batches_of(rows, LAYOUT, objective))).batch
        step, read = make_step(model, objective, LAYOUT, "lora"), frozen_readout(model, objective, "lora")
        for lowered in (
            directional_step.lower(step, theta, rest, read, stacked, batch),
            gradient_step.lower(step, theta, rest, read, batch),
        ):
            text = lowered.as_text()
            assert ("x1009x" in text or "x1009>" in text) == expected, kind


def test_mean_hidden_state_comes_from_the_same_pass():
    model, pool = tiny_model(), random_rows(7, seed=16)
    objective = Objective("sum_logits")
    direction = mean_gradient(model, pool[:2], objective, LAYOUT)
    fused = directional_scores(model, pool, direction, objective, LAYOUT, mean_hidden=True).mean_hidden
    alone = mean_hidden_states(model, pool, LAYOUT)
    np.testing.assert_allclose(fused, alone, rtol=1e-5, atol=1e-6)
    ids = jnp.asarray(pool[3].ids)[None]
    direct = hidden_states(
        model.graphdef, model.lora, model.base, ids, jnp.arange(ids.shape[1])[None], jnp.ones_like(ids)
    )
    np.testing.assert_allclose(fused[3], np.asarray(direct)[0].mean(axis=0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", ("llama", "qwen2"))
@pytest.mark.parametrize(
    ("pooling", "over"), [("mean", "all"), ("position", "all"), ("mean", "response"), ("position", "response")]
)
def test_pooled_hidden_states_are_those_of_each_example_alone(family, pooling, over):
    """Σ w_i h_i / Σ w_i, as plainly as can be, over the states of one unpadded example."""
    model, pool = tiny_model(family), random_rows(9, seed=21)
    found = pooled_hidden_states(model, pool, LAYOUT, pooling=pooling, over=over)
    for row, pooled in zip(pool, found, strict=True):
        ids = jnp.asarray(row.ids)[None]
        states = hidden_states(
            model.graphdef, model.lora, model.base, ids, jnp.arange(ids.shape[1])[None], jnp.ones_like(ids)
        )
        total, weights = np.zeros(model.config.hidden_size), 0.0
        for number, state in enumerate(np.asarray(states, np.float64)[0], start=1):
            if over == "all" or row.span[number - 1]:
                weight = number if pooling == "position" else 1
                total, weights = total + weight * state, weights + weight
        np.testing.assert_allclose(pooled, total / weights, rtol=1e-4, atol=1e-5)
    alone = pooled_hidden_states(model, pool, dataclasses.replace(LAYOUT, packed=False), pooling=pooling, over=over)
    np.testing.assert_allclose(alone, found, rtol=1e-4, atol=1e-5)
    if (pooling, over) == ("mean", "all"):
        np.testing.assert_array_equal(found, mean_hidden_states(model, pool, LAYOUT))


@pytest.mark.parametrize("sizes", [(8, 1, 1), (2, 4, 1)], ids=["data", "fsdp"])
def test_pooled_hidden_states_of_one_and_eight_devices_agree(sizes):
    model, pool, mesh = tiny_model(), random_rows(12, seed=22), make_mesh(*sizes)
    spread = dataclasses.replace(
        model,
        base=jax.device_put(model.base, param_shardings(model.base, mesh)),
        lora=jax.device_put(model.lora, param_shardings(model.lora, mesh)),
    )
    one = pooled_hidden_states(model, pool, LAYOUT, pooling="position", over="response")
    many = pooled_hidden_states(
        spread, pool, dataclasses.replace(LAYOUT, mesh=mesh), pooling="position", over="response"
    )
    np.testing.assert_allclose(many, one, rtol=1e-4, atol=1e-5)


def test_a_pooled_state_that_is_not_finite_names_the_example():
    model, pool = tiny_model(), random_rows(3, seed=23)
    token = int(pool[1].ids[-1])
    first = next(row for row in pool if token in row.ids)
    broken = dataclasses.replace(model, base={**model.base, "embed": model.base["embed"].at[token].set(jnp.nan)})
    with pytest.raises(UserError, match=f"example {first.id}: its hidden state is not finite"):
        pooled_hidden_states(broken, pool, LAYOUT, pooling="position")


def test_adam_preconditioned_direction():
    model, pool = tiny_model(), random_rows(4, seed=17, lengths=(9,))
    objective = Objective("cross_entropy")
    direction = mean_gradient(model, pool, objective, LAYOUT)
    moments = jax.tree.map(lambda leaf: jnp.abs(leaf) + 0.5, direction)
    expected = jax.tree.map(lambda d, v: d / (jnp.sqrt(v) + 1e-8), direction, moments)
    made = adam_preconditioned(direction, moments)
    scores = directional_scores(model, pool, made, objective, LAYOUT).values
    features = np.stack([f[0] for f in reference_gradients(model, pool, objective)])
    assert_close(scores, features @ flatten(jax.tree.map(lambda d: d[None], expected), 1)[0])


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**31), st.floats(-3, 3), st.floats(-3, 3))
def test_scores_are_linear_in_the_direction(seed, a, b):
    assume(abs(a) + abs(b) > 1e-6)  # the zero direction is refused
    model, pool = tiny_model(), random_rows(4, seed=seed)
    objective = Objective("sum_logits")
    first, second = (mean_gradient(model, random_rows(2, seed=s), objective, LAYOUT) for s in (1, 2))
    combined = jax.tree.map(lambda x, y: a * x + b * y, first, second)
    score = lambda d: directional_scores(model, pool, d, objective, LAYOUT).values.astype(np.float64)  # noqa: E731
    one, two = score(first), score(second)
    scale = np.abs(a * one).max() + np.abs(b * two).max()  # a single score may cancel, as in assert_same_scores
    assert np.abs(score(combined) - (a * one + b * two)).max() < 1e-5 * scale


@pytest.mark.parametrize("factor", [1e-30, 1e25])
def test_directions_whose_squares_leave_fp32(factor):
    model, pool = tiny_model(), random_rows(4)
    direction = mean_gradient(model, random_rows(2), Objective(), LAYOUT)
    scaled = jax.tree.map(lambda leaf: leaf * np.float32(factor), direction)
    expected = directional_scores(model, pool, direction, Objective(), LAYOUT).values * np.float64(factor)
    assert_same_scores(directional_scores(model, pool, scaled, Objective(), LAYOUT).values.astype(float), expected)


def test_bfloat16_ranks_like_float32():
    model = tiny_model(num_layers=2, hidden_size=64)
    pool, domain = random_rows(64, seed=18), random_rows(4, seed=19)
    objective = Objective("sum_logits")
    direction = mean_gradient(model, domain, objective, LAYOUT)
    exact = directional_scores(model, pool, direction, objective, LAYOUT).values
    low = dataclasses.replace(
        model, dtype=jnp.bfloat16, base=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.base)
    )
    rough = directional_scores(low, pool, direction, objective, LAYOUT).values
    assert np.corrcoef(np.argsort(np.argsort(exact)), np.argsort(np.argsort(rough)))[0, 1] > 0.97


def test_layout_fits_the_longest_row_and_the_devices():
    layout = layout_for(100, 1024, make_mesh())
    assert layout.row_length == 128 and layout.rows_per_batch == 8
    assert layout_for(10, 10).rows_per_batch == 1


class TestMistakes:
    def test_unknown_objective(self):
        with pytest.raises(UserError, match="objective 'sum_logit' is not one of sum_logits"):
            Objective("sum_logit")

    def test_unknown_normalisation(self):
        with pytest.raises(UserError, match="normalize = 'max' is not one of mean, sum, none"):
            Objective("sum_logits", "max")

    def test_empty_domain(self):
        with pytest.raises(UserError, match="empty; give at least one example"):
            mean_gradient(tiny_model(), [], Objective(), LAYOUT)

    def test_pattern_without_match(self):
        with pytest.raises(UserError, match="'nothing_here' matches no parameter"):
            split_parameters(tiny_model(), "nothing_here")

    def test_fresh_adapter_is_refused(self):
        model = tiny_model()
        fresh = jax.tree_util.tree_map_with_path(lambda p, x: x * (p[-1].key != "b"), model.lora)
        with pytest.raises(UserError, match="fresh .* warm it up"):
            refuse_fresh_lora(dataclasses.replace(model, lora=fresh), "lora")
        refuse_fresh_lora(model, "lora")

    def test_direction_of_another_rank(self):
        other = tiny_model(rank=2)
        direction = mean_gradient(other, random_rows(1), Objective(), LAYOUT)
        with pytest.raises(UserError, match="does not fit parameters of shape"):
            directional_scores(tiny_model(), random_rows(1), direction, Objective(), LAYOUT)

    def test_direction_of_other_leaves(self):
        config = tiny_model().config
        other = random_model(config, lora=LoRAConfig(rank=4, targets=("q_proj",)))
        direction = mean_gradient(other, random_rows(1), Objective(), LAYOUT)
        with pytest.raises(UserError, match="leaves are not those of the parameters"):
            directional_scores(tiny_model(), random_rows(1), direction, Objective(), LAYOUT)

    @pytest.mark.parametrize("factor, message", [(0.0, "is zero, so every score"), (np.nan, "holds NaN or Inf")])
    def test_directions_that_rank_nothing(self, factor, message):
        model, rows = tiny_model(), random_rows(2)
        good = mean_gradient(model, rows, Objective(), LAYOUT)
        bad = jax.tree.map(lambda leaf: leaf * factor, good)
        with pytest.raises(UserError, match=f"the direction {message}"):
            directional_scores(model, rows, bad, Objective(), LAYOUT)
        with pytest.raises(UserError, match=f"direction 1 of 2 {message}"):
            directional_scores(model, rows, stack_directions([good, bad]), Objective(), LAYOUT)

    def test_nonfinite_score_names_the_example(self):
        model = tiny_model()
        direction = mean_gradient(model, random_rows(2), Objective(), LAYOUT)
        base = {**model.base, "embed": model.base["embed"].at[5].set(jnp.nan)}
        rows = [TokenRow(np.array([1, 2, 3], np.int32), np.array([1, 1, 0], bool), "good"),
                TokenRow(np.array([1, 5, 3], np.int32), np.array([1, 1, 0], bool), "poisoned")]  # fmt: skip
        layout = dataclasses.replace(LAYOUT, packed=False)
        with pytest.raises(UserError, match="example poisoned: its score is not finite"):
            directional_scores(dataclasses.replace(model, base=base), rows, direction, Objective(), layout)

    def test_label_objective_without_labels(self):
        last = TokenRow(np.arange(4, dtype=np.int32), np.array([0, 0, 0, 1], bool), "final-only")
        with pytest.raises(UserError, match="final-only: its span has no position with a next token"):
            mean_gradient(tiny_model(), [last], Objective("cross_entropy"), LAYOUT)

    def test_callable_of_the_wrong_shape(self):
        with pytest.raises(UserError, match="return one value per token"):
            mean_gradient(tiny_model(), random_rows(1), Objective(lambda h, y, w: h.sum()), LAYOUT)
