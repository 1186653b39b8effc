"""`--measure`: the real score step and training step on the devices of this machine, for a few seconds each."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.engine.costs import Grounds
from ntk_jax.engine.rates import Rate
from ntk_jax.errors import UserError
from ntk_jax.kernels.parameters import split_parameters
from ntk_jax.kernels.rows import batches_of, frozen_readout, make_step, on_devices
from ntk_jax.kernels.step import directional_step
from ntk_jax.models.memory import memory_limit
from ntk_jax.models.model import Model, load_model
from ntk_jax.models.peft import load_adapter
from ntk_jax.parallel.rules import param_shardings, replicate, shard_batch
from ntk_jax.pipelines.common.model import RunModel, mesh_of
from ntk_jax.pipelines.common.shape import model_folder
from ntk_jax.pipelines.select.load import MAX_SEGMENTS, Load
from ntk_jax.pipelines.select.memory import peak_memory, recomputes
from ntk_jax.pipelines.select.state import SelectRun
from ntk_jax.training.flops import score_flops, training_flops
from ntk_jax.training.loss import loss_sum
from ntk_jax.training.optimizer import TrainConfig
from ntk_jax.training.order import microbatches, plan_shapes

SECONDS = 3.0  # of each step, beside its compilation
LEAST = 2  # steps timed, however long they take


def measured_rate(load: Load, grounds: Grounds) -> Rate:
    """FLOP/s a device reaches at the config's own batch shapes: with the real weights if they are here, else random
    ones of their shape; on random tokens, in examples of the pool's mean length.

    Raises UserError: the devices do not fit the mesh, or the model does not fit their memory by `memory.py`.
    """
    mesh = mesh_of(load.run.config.mesh)
    count, kind = 1 if mesh is None else mesh.size, jax.devices()[0].device_kind
    steps = {"score": (load, "score", score_once), "training": (load.target, "finetune", train_once)}
    for part, stage, _ in steps.values():
        _refuse_too_large(part, mesh, stage)
    rates, real, measured = {}, None, None
    for name, (part, _, made) in steps.items():
        if part is not measured:  # another model only where a proxy selects; the one before it is let go of
            real = None
            real, measured = _real(part, mesh, grounds), part
        assert real is not None
        once, tokens, flops = made(real, random_rows(real, part))
        taken = _time(once)
        del once
        rates[name] = flops / taken / count
        text = f"{tokens / taken:,.0f} tokens/s, {rates[name] / 1e12:.4g} TFLOP/s a device"
        grounds.known(f"{name} step", rates[name], text, f"measured here, {count} × {kind}, {tokens:,} tokens a step")
    peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    if peak:
        grounds.known("peak memory of these steps", peak, f"{peak / 1e9:.1f} GB", "as the device counts it")
    return Rate(rates["score"], rates["training"], kind)


def _real(load: Load, mesh: Any, grounds: Grounds) -> SelectRun:
    """The run with weights."""
    run, model = load.run, _model(load.run, mesh, grounds)
    return SelectRun(run.config, run.job, RunModel(lambda: mesh, lambda _: model), run.pool)


def random_rows(run: SelectRun, load: Load) -> list[TokenRow]:
    """Enough examples of random tokens to fill one batch of the score step, all of the pool's mean length."""
    length = max(2, min(round(load.pool.tokens), run.row_length))
    each = min(MAX_SEGMENTS, run.row_length // length)
    total = run.layout.rows_per_batch
    random = np.random.default_rng(0)
    start = min(length - 2, round(length * (1 - load.pool.responses / load.pool.tokens)))
    span = (np.arange(length) >= start) & (np.arange(length) < length - 1)
    return [
        TokenRow(random.integers(0, run.model.base.config.vocab_size, length).astype(np.int32), span, str(number))
        for number in range(total * each)
    ]


def score_once(run: SelectRun, rows: list[TokenRow]) -> tuple[Callable[[], Any], int, float]:
    """(a call that sends one score step off, its tokens, its FLOPs with padding)."""
    model, parameters, objective = run.model.base, run.config.score.parameters, run.objective
    theta, rest = split_parameters(model, parameters)
    step = make_step(model, objective, run.layout, parameters, attention=run.config.score.attention)
    read = frozen_readout(model, objective, parameters)
    channels = objective.channels
    directions = jax.tree.map(lambda leaf: jnp.full((1, channels, *leaf.shape), 1e-3, jnp.float32), theta)
    packed = next(batches_of(rows, run.layout, objective))
    batch = on_devices(packed.batch, run.layout)
    used = packed.index[packed.index >= 0].tolist()
    tokens = sum(len(rows[i].ids) for i in used)
    labels = 0 if objective.is_linear else sum(int(rows[i].span.sum()) for i in used)
    positions = packed.batch.tokens.size
    flops = score_flops(model.config, positions, labels, directions=channels, **run.differentiated)
    return lambda: directional_step(step, theta, rest, read, directions, batch), tokens, flops


def train_once(run: SelectRun, rows: list[TokenRow]) -> tuple[Callable[[], Any], int, float]:
    """(a call that sends the gradient of one microbatch of the fine-tuning off, its tokens, its FLOPs with padding)."""
    model, mesh = run.model.base, run.model.mesh
    settings = TrainConfig(
        batch_size=len(rows), max_steps=1, tokens_per_microbatch=run.config.finetune.tokens_per_microbatch
    )
    groups = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    shapes = plan_shapes(rows, settings, steps=1, seed=0, row_length=run.row_length, groups=groups)
    packed = microbatches(rows, shapes, run.row_length)[0]
    batch = packed.batch if mesh is None else shard_batch(packed.batch, mesh)
    tokens = int((np.asarray(packed.batch.segments) > 0).sum())
    labels = int((np.asarray(packed.batch.label_segment) > 0).sum())
    remat = recomputes(run)

    def loss(lora: Any, base: Any, batch: Any) -> jax.Array:
        return loss_sum(model.graphdef, lora, base, batch, dtype=model.dtype, remat=remat)[0]

    gradient = jax.jit(jax.value_and_grad(loss))

    def once() -> Any:
        with jax.set_mesh(mesh) if mesh is not None else contextlib.nullcontext():
            return gradient(model.lora, model.base, batch)

    positions = packed.batch.tokens.size
    flops = training_flops(model.config, positions, labels, remat, lora_parameters=run.model.adapter_size)
    return once, tokens, flops


def _time(once: Callable[[], Any]) -> float:
    """Mean seconds of a call, its compilation and first run left out."""
    jax.block_until_ready(once())
    begun, calls = time.monotonic(), 0
    while calls < LEAST or time.monotonic() - begun < SECONDS:
        jax.block_until_ready(once())
        calls += 1
    return (time.monotonic() - begun) / calls


def _model(run: SelectRun, mesh: Any, grounds: Grounds) -> Model:
    section, abstract = run.config.model, run.model.base
    folder = model_folder(section.path)
    if folder is not None and any(folder.glob("*.safetensors")):
        grounds.known("weights of the measurement", "real", "the real ones", str(folder))
        return load_model(
            str(folder),
            lora=None if section.adapter else abstract.lora_config,
            adapter=section.adapter,
            dtype=section.dtype,
            quantization=section.quantization,
            mesh=mesh,
            tokenizer=False,
            ignore_config_keys=section.ignore_config_keys,
        )
    grounds.assume("weights of the measurement", "random", "random, of the same shape", "the weights are not here")
    base = random_weights(abstract.base, mesh)
    if section.adapter:
        lora, _ = load_adapter(section.adapter, abstract.config)
    else:
        lora = random_weights(abstract.lora, mesh)
    if mesh is not None:
        lora = replicate(lora, mesh)
    return Model(
        abstract.config, abstract.graphdef, lora, base, abstract.lora_config, None, section.path, abstract.dtype
    )


def random_weights(shapes: Any, mesh: Any) -> Any:
    """Arrays of these shapes, uniform with deviation 0.02 (int8: over its range), made where they will lie, layer by
    layer. Not constants: the power that a device draws, and with it its clock, depends on the bits it multiplies."""
    leaves, structure = jax.tree.flatten(shapes)

    def draw(key: jax.Array, leaf: Any) -> jax.Array:
        def one(key: jax.Array, shape: tuple[int, ...] = leaf.shape[1:]) -> jax.Array:
            if jnp.issubdtype(leaf.dtype, jnp.integer):
                return jax.random.randint(key, shape, -127, 128, leaf.dtype)
            return jax.random.uniform(key, shape, minval=-0.035, maxval=0.035).astype(leaf.dtype)

        if len(leaf.shape) < 3:
            return one(key, leaf.shape)
        return jax.lax.map(one, jax.random.split(key, leaf.shape[0]))

    def draw_all(key: jax.Array) -> list[jax.Array]:
        return [draw(jax.random.fold_in(key, number), leaf) for number, leaf in enumerate(leaves)]

    places = jax.tree.leaves(param_shardings(shapes, mesh)) if mesh is not None else None
    return jax.tree.unflatten(structure, jax.jit(draw_all, out_shardings=places)(jax.random.key(0)))


def _refuse_too_large(load: Load, mesh: Any, stage: str) -> None:
    abstract, run = load.run.model, load.run
    here = SelectRun(run.config, run.job, RunModel(lambda: mesh, lambda _: abstract.base), run.pool)
    need = peak_memory(here, stage, load.pool, load.questions)
    limit = memory_limit(1 if mesh is None else mesh.size)
    if limit is not None and need > limit:
        raise UserError(
            f"--measure: the steps need about {need / 1e9:,.1f} GB a device, of which there are {limit / 1e9:,.1f}; "
            "lower score.batch_tokens and finetune.tokens_per_microbatch, split the weights with mesh.fsdp, or "
            "estimate without --measure"
        )
