"""The attention kernel, run by Pallas' interpreter, against plain XLA and float64; and lowered for a GPU. No test here
has a GPU, so none says that the kernel runs on one."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_reference import random_rows, tiny_config
from test_parallel import COLLECTIVES

from ntk_jax.errors import UserError
from ntk_jax.kernels.direction import mean_gradient, stack_directions
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.parameters import split_parameters
from ntk_jax.kernels.rows import Layout, batches_of, frozen_readout, make_step, on_devices
from ntk_jax.kernels.score import directional_scores
from ntk_jax.kernels.step import directional_step
from ntk_jax.models.attention import attend, visibility
from ntk_jax.models.attention_kernel import Kernel, attend_online, first_keys, forward_mode_of
from ntk_jax.models.lora import LoRAConfig
from ntk_jax.models.model import Model, random_model
from ntk_jax.parallel.mesh import make_mesh
from ntk_jax.parallel.rules import replicate
from ntk_jax.pipelines.common.sections import ScoreSection

SMALL = Kernel(queries=16, keys=16, interpret=True)


def exact(segments: np.ndarray, primals: Any, tangents: Any) -> tuple[np.ndarray, np.ndarray]:
    """(output, change) in float64, query by query, from the definition: ṗ = p (ṡ - Σ p ṡ) of normalised p."""
    q, k, v, dq, dk, dv = (np.asarray(x, np.float64) for x in (*primals, *tangents))
    out, change = np.zeros(q.shape), np.zeros(q.shape)
    for row, t, head in np.ndindex(q.shape[:3]):
        own, sharer = np.flatnonzero(segments[row, : t + 1] == segments[row, t]), head // (q.shape[2] // k.shape[2])
        keys, values = k[row, own, sharer], v[row, own, sharer]
        scores = keys @ q[row, t, head]
        weights = np.exp(scores - scores.max())
        weights /= weights.sum()
        moved = keys @ dq[row, t, head] + dk[row, own, sharer] @ q[row, t, head]
        out[row, t, head] = weights @ values
        change[row, t, head] = weights @ dv[row, own, sharer] + (weights * (moved - weights @ moved)) @ values
    return out, change


@functools.partial(jax.jit, static_argnums=0)
def with_tangents(mode: bool | Kernel, segments: jax.Array, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    """(output, its changes along the directions of the tangents' first axis), as the score's step takes them."""

    def function(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
        return attend(q, k, v, visibility(segments, None, mode), mode).reshape(q.shape)

    return jax.vmap(lambda *moved: jax.jvp(function, tuple(primals), moved), out_axes=(None, 0))(*tangents)


def close(value: Any, expected: Any, tolerance: float) -> bool:
    value, expected = (np.asarray(x, np.float64) for x in (value, expected))
    return bool(np.abs(value - expected).max() <= tolerance * np.abs(expected).max())


@settings(max_examples=4, deadline=None)  # each compiles two programs
@given(
    length=st.integers(1, 70),
    heads=st.sampled_from([(1, 1), (4, 2), (3, 1)]),
    width=st.sampled_from([8, 12, 16, 32]),
    blocks=st.sampled_from([(16, 16), (16, 32), (32, 16)]),
    directions=st.sampled_from([(1, 1), (2, 2), (3, 2), (4, 2)]),
    dtype=st.sampled_from([jnp.float32, jnp.bfloat16]),
    growth=st.sampled_from([0.0, 0.3, 20.0]),
    seed=st.integers(0, 1000),
)
def test_the_kernel_is_attention_with_its_tangents(
    length: int,
    heads: tuple[int, int],
    width: int,
    blocks: tuple[int, int],
    directions: tuple[int, int],
    dtype: Any,
    growth: float,
    seed: int,
) -> None:
    """Rows that no block divides, packed in any way, padding among them; growth: of the scores from key to key, so that
    the largest one moves in every block, a little or to where exp leaves nothing of what was before."""
    rng, (n, kv), (count, together) = np.random.default_rng(seed), heads, directions
    segments = np.sort(rng.integers(0, rng.integers(1, 6), (2, length)), axis=1)[:, ::-1].copy()  # 0, padding, is last

    def drawn(*shape: int) -> np.ndarray:
        return rng.standard_normal((*shape, width))

    q, k, v = drawn(2, length, n), drawn(2, length, kv), drawn(2, length, kv)
    along = np.eye(width)[0]
    q, k = q * width**-0.5 + along, k + growth * np.arange(length)[:, None, None] * along
    primals = [jnp.asarray(x, dtype) for x in (q, k, v)]
    tangents = [jnp.asarray(drawn(count, *x.shape[:3]), dtype) for x in primals]

    kernel = Kernel(*blocks, directions=together, interpret=True)
    out, change = with_tangents(kernel, jnp.asarray(segments), primals, tangents)
    plain, moved = with_tangents(False, jnp.asarray(segments), primals, tangents)
    assert (out.shape, change.shape, out.dtype, change.dtype) == (plain.shape, moved.shape, dtype, dtype)
    # Scores reach growth · length, and what fp32 rounds off them is an error of the weights: in XLA as in the kernel.
    tolerance = (2e-5 if growth < 1 else 3e-4) if dtype == jnp.float32 else 2e-2
    assert close(out, plain, tolerance) and close(change, moved, tolerance)
    for number in range(count):
        right = exact(segments, primals, [x[number] for x in tangents])
        assert close(out, right[0], tolerance) and close(change[number], right[1], tolerance)


def test_any_segments_are_told_apart() -> None:
    """Also those that come back after another one, which packing does not make, but the mask allows."""
    rng = np.random.default_rng(0)
    segments = rng.integers(-1, 3, (2, 40))
    first = np.asarray(first_keys(jnp.asarray(segments)))
    assert first.tolist() == [[row.tolist().index(number) for number in row] for row in segments]
    arrays = [jnp.asarray(rng.standard_normal((1, 2, 40, heads, 16)), jnp.float32) for heads in (2, 1, 1)]
    primals = [x[0] for x in arrays]
    for one, other in zip(*(with_tangents(mode, segments, primals, arrays) for mode in (SMALL, True)), strict=True):
        assert close(one, other, 1e-5)
    with pytest.raises(ValueError, match="segments only"):
        visibility(jnp.asarray(segments), jnp.asarray(segments), SMALL)


def test_mapped_tangents_are_directions_and_mapped_primals_are_rows() -> None:
    """One call whatever is mapped, and an output that is not copied for each direction: p is computed once for all the
    directions of a program, the primal pass once for all."""
    rng = np.random.default_rng(0)
    segments = jnp.ones((2, 20), jnp.int32)
    q, k, v, dq, dk, dv = (
        jnp.asarray(rng.standard_normal((3, 2, 20, heads, 16)), jnp.float32) for heads in (2, 1, 1) * 2
    )
    mode = dataclasses.replace(SMALL, directions=3)
    traced = jax.make_jaxpr(functools.partial(with_tangents, mode))(segments, (q[0], k[0], v[0]), (dq, dk, dv))
    assert [x.shape for x in traced.out_avals] == [(2, 20, 2, 16), (3, 2, 20, 2, 16)]
    assert str(traced).count(" = pallas_call[") == 1

    first = first_keys(segments)
    one = lambda *x: jax.jvp(lambda *y: attend_online(*y, first, SMALL), x[:3], x[3:])  # noqa: E731
    for mapped in (0, (0, 0, 0, None, None, None), (None, 0, None, 0, None, 0)):
        axes = (mapped,) * 6 if mapped == 0 else mapped
        arrays = [x if axis == 0 else x[0] for x, axis in zip((q, k, v, dq, dk, dv), axes, strict=True)]
        together = jax.jit(jax.vmap(one, in_axes=axes))(*arrays)
        alone = [jax.jit(one)(*(x[i] if axis == 0 else x for x, axis in zip(arrays, axes))) for i in range(3)]  # noqa: B905
        for mixed, single in zip(together, zip(*alone, strict=True), strict=True):
            assert close(mixed, np.stack(single), 1e-6)


@functools.cache
def strong_model(family: str) -> Model:
    """Weights of std 0.3: attention that is far from even, as in trained models."""
    return random_model(tiny_config(family), lora=LoRAConfig(rank=3, alpha=5.0), seed=0, std=0.3)


@pytest.mark.parametrize(("family", "kind", "count"), [("llama", "sum_logits", 1), ("qwen3", "probe", 2)])
def test_scores_are_those_of_plain_attention(family: str, kind: str, count: int) -> None:
    model, layout, objective = strong_model(family), Layout(64, 2), Objective(kind, probes=2)
    domain, pool = random_rows(2, seed=1), random_rows(9, seed=2)
    directions = [mean_gradient(model, [row], objective, layout) for row in domain[:count]]
    direction = stack_directions(directions) if count > 1 else directions[0]
    plain, kernel = (
        directional_scores(model, pool, direction, objective, layout, mean_hidden=True, attention=attention)
        for attention in ("xla", SMALL)
    )
    assert close(kernel.values, plain.values, 1e-5)
    assert close(kernel.mean_hidden, plain.mean_hidden, 1e-5)


def step_of(attention: Any, mesh: jax.sharding.Mesh | None, row_length: int = 64) -> Any:
    """The score's step as `directional_scores` calls it, two directions, traced."""
    model, objective, layout = strong_model("llama"), Objective(), Layout(row_length, 8, mesh)
    if mesh is not None:
        model = dataclasses.replace(model, base=replicate(model.base, mesh), lora=replicate(model.lora, mesh))
    theta, rest = split_parameters(model, "lora")
    along = jax.tree.map(lambda leaf: jnp.stack([jnp.ones_like(leaf), leaf])[:, None], theta)
    batch = on_devices(next(iter(batches_of(random_rows(30), layout, objective))).batch, layout)
    step = make_step(model, objective, layout, "lora", attention=attention)
    return directional_step.trace(step, theta, rest, frozen_readout(model, objective, "lora"), along, batch), batch


def test_over_a_mesh_every_device_has_its_own_rows() -> None:
    """Nothing is sent between devices, and none computes the rows of another; a mesh axis over heads is refused."""
    compiled = step_of(SMALL, make_mesh())[0].lower().compile()
    assert not re.search(COLLECTIVES, compiled.as_text() or "")
    model, layout = strong_model("llama"), Layout(64, 8)
    pool, direction = random_rows(30), mean_gradient(model, random_rows(2, seed=1), Objective(), layout)
    expected = directional_scores(model, pool, direction, Objective(), layout).values
    spread = dataclasses.replace(layout, mesh=make_mesh(2, 4, 1))
    assert close(
        directional_scores(model, pool, direction, Objective(), spread, attention=SMALL).values, expected, 1e-5
    )


@contextlib.contextmanager
def as_if_on_a_gpu() -> Any:
    """From jax 0.11 on, lowering asks the mesh of the context which GPU is meant."""
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")
    mesh = jax.sharding.AbstractMesh((), (), (), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        yield


@pytest.mark.filterwarnings("ignore:The Pallas Triton backend is deprecated:DeprecationWarning")
def test_the_score_step_lowers_for_a_gpu_without_any_square_of_scores() -> None:
    """Lowered means: Pallas has made a Triton module of the kernel. It is compiled only where there is a GPU."""
    length = 192  # the only 192 of this program

    def lowered(attention: Any) -> str:
        with as_if_on_a_gpu() if jax.__version_info__ >= (0, 11) else contextlib.nullcontext():
            return step_of(attention, None, length)[0].lower(lowering_platforms=("cuda",)).as_text()

    square = rf"{length}x(\d+x)*{length}(x|>)"
    assert re.search(square, lowered("xla"))
    text = lowered(Kernel())
    assert "__gpu$xla.gpu.triton" in text and not re.search(square, text)


def test_where_it_cannot_run() -> None:
    model, layout = strong_model("llama"), Layout(64, 2)
    direction = mean_gradient(model, random_rows(2), Objective(), layout)
    with pytest.raises(UserError, match="^attention = pallas: its kernel is written for GPUs, and this is a cpu; "):
        directional_scores(model, random_rows(2), direction, Objective(), layout, attention="pallas")
    assert forward_mode_of("auto", None, 128, "bfloat16") is forward_mode_of("xla", None, 128, "bfloat16") is True
    assert ScoreSection().attention == "xla"


def test_heads_are_not_split(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    wide = (128, "bfloat16")
    assert isinstance(forward_mode_of("pallas", make_mesh(), 64, "float32"), Kernel)
    assert isinstance(forward_mode_of("auto", make_mesh(2, 4, 1), *wide), Kernel)
    assert forward_mode_of("auto", make_mesh(4, 1, 2), *wide) is True
    for unknown in ((64, "bfloat16"), (128, "float32")):  # not measured
        assert forward_mode_of("auto", make_mesh(2, 4, 1), *unknown) is True
    with pytest.raises(UserError, match="tensor axis splits them; take attention = xla"):
        forward_mode_of("pallas", make_mesh(4, 1, 2), *wide)
