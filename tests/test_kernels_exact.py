"""The exact kernel: closed forms, routes that must agree, and the approximations that must converge to it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_reference import flatten, random_rows, reference_logit_jacobian, tiny_model

from ntk_jax.errors import UserError
from ntk_jax.kernels.backbone import span_mean, stacked
from ntk_jax.kernels.exact import probe_vectors, tangent_kernel
from ntk_jax.kernels.parameters import split_parameters

KINDS = ("trace", "centered_trace", "pseudo")


def mlp(theta, _, x):
    return theta["out"] @ jnp.tanh(theta["in"] @ x)


def mlp_parts(width=7, hidden=11, inputs=5, seed=0):
    rng = np.random.default_rng(seed)
    theta = {"in": rng.standard_normal((hidden, inputs)), "out": rng.standard_normal((width, hidden))}
    a, b = rng.standard_normal((4, inputs)), rng.standard_normal((3, inputs))
    return jax.tree.map(lambda x: x.astype(np.float32), (theta, a, b))


def mlp_closed_form(theta, a, b):
    """Θ(x, x') = ⟨h, h'⟩ I + V diag(φ'(Ux) ⊙ φ'(Ux')) Vᵀ ⟨x, x'⟩ with h = φ(Ux)."""
    theta, a, b = jax.tree.map(lambda x: np.asarray(x, np.float64), (theta, a, b))
    za, zb = np.tanh(a @ theta["in"].T), np.tanh(b @ theta["in"].T)
    slopes = np.einsum("ah,bh->abh", 1 - za**2, 1 - zb**2)
    inner = np.einsum("vh,abh,wh->abvw", theta["out"], slopes, theta["out"]) * (a @ b.T)[:, :, None, None]
    return inner + np.einsum("ah,bh->ab", za, zb)[:, :, None, None] * np.eye(len(theta["out"]))


def of_kind(full, kind):
    """A kernel [Na, Nb] from the full one [Na, Nb, V, V]."""
    v = full.shape[-1]
    centre = np.eye(v) - 1 / v
    weights = {"trace": np.eye(v), "centered_trace": centre, "pseudo": np.ones((v, v)) / v}[kind]
    return np.einsum("abvw,vw->ab", full, weights)


def explicit_full(model, rows_a, rows_b, parameters="lora"):
    """[Na, Nb, V, V] in float64 from Jacobians of the whole logits, one example at a time."""
    theta, rest = split_parameters(model, parameters)

    def features(row):
        jacobian = reference_logit_jacobian(model.graphdef, theta, rest, row.ids, row.span, parameters)
        return flatten(jacobian, model.config.vocab_size)

    left, right = ([features(row) for row in rows] for rows in (rows_a, rows_b))
    return np.array([[x @ y.T for y in right] for x in left])


def kernel_of(model, rows_a, rows_b, parameters="lora", **options):
    function, theta, frozen, outputs = span_mean(model, parameters)
    return tangent_kernel(function, theta, frozen, stacked(rows_a), stacked(rows_b), outputs=outputs, **options)


def assert_close(actual, expected, rtol=1e-5):
    assert np.abs(actual - expected).max() <= rtol * np.abs(expected).max()


@pytest.mark.parametrize("method", ["jacobian", "products"])
def test_a_two_layer_mlp_has_its_closed_form(method):
    theta, a, b = mlp_parts()
    full = mlp_closed_form(theta, a, b)
    if method == "jacobian":
        assert_close(tangent_kernel(mlp, theta, None, a, b, kind="full"), full)
    for kind in KINDS:
        assert_close(tangent_kernel(mlp, theta, None, a, b, kind=kind, method=method), of_kind(full, kind))
    whole_set = tangent_kernel(mlp, theta, None, a, b, kind="probe", probes=7, orthogonal=True, method=method)
    assert_close(whole_set, of_kind(full, "centered_trace"))


def test_a_linear_map_behind_the_function_changes_nothing():
    theta, a, b = mlp_parts(width=40)
    short = {"in": theta["in"]}
    inner = lambda theta, _, x: jnp.tanh(theta["in"] @ x)  # noqa: E731
    for kind in ("full", *KINDS):
        whole = tangent_kernel(lambda t, out, x: out @ inner(t, None, x), short, theta["out"], a, b, kind=kind)
        assert_close(tangent_kernel(inner, short, None, a, b, kind=kind, outputs=theta["out"]), whole)


# A kind is a sum over the outputs of any function: of the MLP each is taken by each route.
KINDS_OF_MODELS = [("qwen3", ("centered_trace",))] + [
    pytest.param(family, kinds, marks=pytest.mark.slow)
    for family, kinds in (("llama", KINDS), ("qwen2", KINDS), ("qwen3", ("trace", "pseudo")))
]


@pytest.mark.parametrize(("family", "kinds"), KINDS_OF_MODELS)
def test_both_routes_agree_with_explicit_jacobians(family, kinds):
    model = tiny_model(family, vocab_size=41)
    a, b = (random_rows(2, seed=seed, vocab=41) for seed in (1, 2))  # of one shape: all is compiled once for both
    full = explicit_full(model, a, b)
    assert_close(kernel_of(model, a, b, kind="full"), full)
    for kind in kinds:
        contraction = kernel_of(model, a, b, kind=kind)
        assert_close(contraction, of_kind(full, kind))
        assert_close(kernel_of(model, a, b, kind=kind, method="products"), contraction)


@pytest.mark.parametrize(
    ("parameters", "family"),  # qwen2: the embedding is the head
    [
        pytest.param("base/(head|embed)", "qwen2", marks=pytest.mark.slow),
        ("all", "llama"),
        pytest.param("base/layers/o_proj", "qwen3", marks=pytest.mark.slow),
    ],
)
def test_other_parameters_than_lora(parameters, family):
    model = tiny_model(family, vocab_size=29)
    a, b = random_rows(2, seed=3, vocab=29), random_rows(2, seed=4, vocab=29)
    full = explicit_full(model, a, b, parameters)
    assert_close(kernel_of(model, a, b, parameters, kind="full"), full)
    trace = kernel_of(model, a, b, parameters, kind="centered_trace", method="products")  # the full one: by Jacobians
    assert_close(trace, of_kind(full, "centered_trace"))


def test_probes_converge_within_their_variance():
    model = tiny_model(vocab_size=24)
    a, b = random_rows(2, seed=5, vocab=24), random_rows(2, seed=6, vocab=24)
    centre = np.eye(24) - 1 / 24
    full = np.einsum("vx,abxy,yw->abvw", centre, explicit_full(model, a, b), centre)
    exact = of_kind(full, "trace")
    symmetric = (full + full.transpose(0, 1, 3, 2)) / 2
    variance = 2 * ((symmetric**2).sum(axis=(2, 3)) - (np.einsum("abvv->abv", full) ** 2).sum(axis=2))
    probes = 256
    estimate = kernel_of(model, a, b, kind="probe", probes=probes, seed=3)
    assert (np.abs(estimate - exact) < 4 * np.sqrt(variance / probes)).all()
    assert np.abs(estimate - exact).max() > 1e-3 * np.abs(exact).max(), "random signs are not exact"
    assert_close(kernel_of(model, a, b, kind="probe", probes=24, orthogonal=True), exact)


@pytest.mark.parametrize("orthogonal", [False, True])
def test_probe_vectors_have_unit_second_moment(orthogonal):
    vectors = np.concatenate([np.asarray(probe_vectors(8, 8, seed, orthogonal)) for seed in range(400)])
    np.testing.assert_allclose(vectors.T @ vectors / len(vectors), np.eye(8), atol=0.1)
    if orthogonal:
        one = np.asarray(probe_vectors(8, 8, 0, True))
        np.testing.assert_allclose(one.T @ one / 8, np.eye(8), atol=1e-5)


@pytest.mark.parametrize("kind", ["full", "centered_trace"])
def test_memory_changes_the_blocks_and_not_the_result(kind):
    theta, a, b = mlp_parts()
    size = sum(leaf.size for leaf in theta.values())
    whole = tangent_kernel(mlp, theta, None, a, b, kind=kind)
    for features in (1, 2, 5):
        assert_close(tangent_kernel(mlp, theta, None, a, b, kind=kind, memory=4 * size * features), whole, 1e-6)


@pytest.mark.parametrize("kind", ["full", "trace"])
@pytest.mark.parametrize("method", ["jacobian", "products"])
def test_half_the_pairs_give_the_whole_kernel_of_a_set(kind, method):
    """One object on both sides is computed by halves; blocks of two, so that there are blocks beside the diagonal."""
    if (kind, method) == ("full", "products"):
        return
    theta, a, _ = mlp_parts()
    a = np.concatenate([a, a[:1] + 1.0])  # an odd number: the last block is padded
    memory = 4 * sum(leaf.size for leaf in theta.values()) * 2
    whole = tangent_kernel(mlp, theta, None, a, a.copy(), kind=kind, method=method)
    calls = []
    half = tangent_kernel(mlp, theta, None, a, a, kind=kind, method=method, memory=memory,
                          progress=lambda *done: calls.append(done))  # fmt: skip
    assert_close(half, whole, 1e-6)
    assert calls[-1][0] == calls[-1][1] > 1 and [done for done, _ in calls] == [*range(1, len(calls) + 1)]


def test_a_kernel_of_a_set_with_itself_is_symmetric_and_positive():
    model, rows = tiny_model(), random_rows(6, seed=7)
    for kind in KINDS:
        gram = kernel_of(model, rows, rows, kind=kind).astype(np.float64)
        assert_close(gram, gram.T)
        assert np.linalg.eigvalsh(gram).min() > -1e-5 * np.abs(gram).max()


class TestMistakes:
    def test_empty_sets(self):
        theta, a, b = mlp_parts()
        with pytest.raises(UserError, match="b: there are no examples"):
            tangent_kernel(mlp, theta, None, a, b[:0])

    def test_unknown_names(self):
        theta, a, b = mlp_parts()
        with pytest.raises(UserError, match="kinds are"):
            tangent_kernel(mlp, theta, None, a, b, kind="traces")
        with pytest.raises(UserError, match="computed by method='jacobian'"):
            tangent_kernel(mlp, theta, None, a, b, kind="full", method="products")

    def test_more_orthogonal_probes_than_outputs(self):
        theta, a, b = mlp_parts()
        with pytest.raises(UserError, match="only 7 orthogonal directions"):
            tangent_kernel(mlp, theta, None, a, b, kind="probe", probes=8, orthogonal=True)

    def test_a_scalar_function(self):
        theta, a, b = mlp_parts()
        with pytest.raises(UserError, match="must return one vector an example"):
            tangent_kernel(lambda t, f, x: mlp(t, f, x).sum(), theta, None, a, b)

    def test_nonfinite(self):
        theta, a, b = mlp_parts()
        a = a.copy()
        a[1, 0] = np.nan
        with pytest.raises(UserError, match="examples 1 and 0 is not finite"):
            tangent_kernel(mlp, theta, None, a, b)
