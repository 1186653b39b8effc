"""The derivative of a training the plain way: every example alone and from whole logits, AdamW as its paper writes it,
and reverse mode through all steps at once. As a program: the same in double precision, beside central differences.

    python tests/metagradient_reference.py        prints JSON
"""

from __future__ import annotations

import dataclasses
import functools
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    jnp.float32 = jnp.float64  # type: ignore[misc,assignment]  # before the package, which says fp32 by this name

from kernel_reference import random_rows
from kernel_reference import tiny_model as model_of

from ntk_jax.models.decoder import hidden_states
from ntk_jax.models.head import head_matrix
from ntk_jax.models.lora import initial_lora
from ntk_jax.models.model import Model
from ntk_jax.training.metagradient import Metagradients, metagradient
from ntk_jax.training.optimizer import TrainConfig, learning_rates
from ntk_jax.training.order import step_indices
from ntk_jax.training.unrolled import course, example_losses, held_out_rows, trained

LENGTH, SEED = 32, 7
CONFIG = TrainConfig(
    max_steps=3, learning_rate=1e-2, batch_size=5, weight_decay=0.1, max_grad_norm=1.0, tokens_per_microbatch=64
)
WEIGHTS = np.array([1.0, 0.5, 0.0, 2.0, 1.0, 1.5, 1.0, 0.25, 1.0])


def rows_with_labels(count: int, seed: int) -> list[Any]:
    return [row for row in random_rows(6 * count, seed=seed) if row.span[:-1].any()][:count]


def tiny_model() -> Model:
    """One layer: what is differentiated twice through all steps compiles slowly."""
    return model_of("llama", num_layers=1)


@functools.cache
def fresh_model() -> Model:
    """B = 0."""
    model = tiny_model()
    return dataclasses.replace(model, lora=initial_lora(model.lora, 3))


@functools.cache
def data() -> dict[str, Any]:
    return {"fixed": rows_with_labels(3, 1), "candidates": rows_with_labels(9, 2), "held_out": rows_with_labels(4, 3)}


def found(model: Model | None = None, config: TrainConfig = CONFIG, **options: Any) -> Metagradients:
    given = {**data(), **options}
    arguments = (model or tiny_model(), given.pop("candidates"), given.pop("held_out"))
    return metagradient(*arguments, config=config, seed=SEED, row_length=LENGTH, **given)


def summed_losses(model: Model, lora: Any, rows: list[Any]) -> jax.Array:
    """[N] summed -log p of the labels of each row, each padded alone."""
    ids = np.stack([np.pad(row.ids, (0, LENGTH - len(row.ids))) for row in rows])
    spans = np.stack([np.pad(row.span[:-1], (0, LENGTH - len(row.span))) for row in rows])

    def one(ids: jax.Array, span: jax.Array) -> jax.Array:
        positions = jnp.arange(LENGTH)[None]
        segments = jnp.ones_like(positions)  # causal: what pads at the end is seen by no label
        hidden = hidden_states(model.graphdef, lora, model.base, ids[None], positions, segments, dtype=model.dtype)
        log_probs = jax.nn.log_softmax((hidden[0] @ head_matrix(model.base).T).astype(jnp.float32))[:-1]
        return -(jnp.take_along_axis(log_probs, ids[1:, None], axis=1)[:, 0] * span).sum()

    return jax.vmap(one)(jnp.asarray(ids), jnp.asarray(spans))


def labels(rows: list[Any]) -> np.ndarray:
    return np.array([int(row.span[:-1].sum()) for row in rows])


def update(lora: Any, m: Any, v: Any, gradient: Any, step: int, rate: float, config: TrainConfig) -> Any:
    """Clipping and AdamW; the root's derivative at 0 is set to 0."""
    norm = jnp.sqrt(sum((leaf**2).sum() for leaf in jax.tree.leaves(gradient)))
    factor = jnp.minimum(1.0, config.max_grad_norm / norm) if config.max_grad_norm else 1.0
    gradient = jax.tree.map(lambda g: g * factor, gradient)
    m = jax.tree.map(lambda m, g: config.beta1 * m + (1 - config.beta1) * g, m, gradient)
    v = jax.tree.map(lambda v, g: config.beta2 * v + (1 - config.beta2) * g**2, v, gradient)

    def moved(p: Any, m: Any, v: Any) -> Any:
        v = v / (1 - config.beta2 ** (step + 1))
        root = jnp.where(v > 0, jnp.sqrt(jnp.where(v > 0, v, 1.0)), 0.0)
        return p - rate * (m / (1 - config.beta1 ** (step + 1)) / (root + 1e-8) + config.weight_decay * p)

    return jax.tree.map(moved, lora, m, v), m, v


def loss_after(weights: jax.Array, lora: Any, model: Model, config: TrainConfig, by: str) -> jax.Array:
    """The held-out loss after the training with these weights of the candidates."""
    rows, held_out = [*data()["fixed"], *data()["candidates"]], data()["held_out"]
    m = v = jax.tree.map(jnp.zeros_like, lora)
    everyone = jnp.concatenate([jnp.ones(len(data()["fixed"])), weights])
    for step in range(config.max_steps or 0):
        chosen = step_indices(step, len(rows), config.batch_size, SEED)
        here = [rows[i] for i in chosen]

        def loss(lora: Any, chosen: np.ndarray = chosen, here: list[Any] = here) -> jax.Array:
            return (everyone[chosen] * summed_losses(model, lora, here)).sum() / labels(here).sum()

        rate = learning_rates(config, config.max_steps or 0)[step]
        lora, m, v = update(lora, m, v, jax.grad(loss)(lora), step, rate, config)
    last = summed_losses(model, lora, held_out)
    return last.sum() / labels(held_out).sum() if by == "token" else (last / labels(held_out)).mean()


def plain(
    weights: np.ndarray, model: Model | None = None, config: TrainConfig = CONFIG, by: str = "token"
) -> tuple[float, np.ndarray]:
    """(the loss after the training, [N] its gradient by the weights)."""
    model = model or tiny_model()

    def run(weights: jax.Array, lora: Any, base: Any) -> jax.Array:
        return loss_after(weights, lora, dataclasses.replace(model, base=base), config, by)

    run_ = jax.jit(jax.value_and_grad(run))
    value, gradient = run_(jnp.asarray(weights, jnp.float32), model.lora, model.base)
    return float(value), np.asarray(gradient, np.float64)


def loss_of(
    model: Model,
    weights: np.ndarray,
    config: TrainConfig = CONFIG,
    rows: list[Any] | None = None,
    by: str = "token",
) -> float:
    """The held-out loss, nats a label token, after a training with these weights of the candidates: no derivative.
    rows: all that is trained on, which begins with what has weight 1; None: that of `found`."""
    rows = rows or [*data()["fixed"], *data()["candidates"]]
    run = course(model, rows, config, seed=SEED, row_length=LENGTH)
    held_out = held_out_rows(data()["held_out"], config, LENGTH)
    lora = trained(run, np.concatenate([np.ones(len(rows) - len(weights)), weights]))
    return float(held_out.weights(by) @ example_losses(run, lora, held_out))


def _in_double() -> dict[str, Any]:
    """From a fresh adapter, by example: {"ours", "plain", "differences": of the first two, "after": ours and plain}."""
    given = fresh_model()
    wide = {
        part: jax.tree.map(lambda leaf: leaf.astype(jnp.float64), getattr(given, part)) for part in ("lora", "base")
    }
    model = dataclasses.replace(given, dtype=np.dtype("float64"), **wide)
    ours = found(model, weights=WEIGHTS, by="example")
    after, gradient = plain(WEIGHTS, model, by="example")
    # Small: where a coordinate's gradient is nearly 0 Adam's update turns from one sign to the other within little.
    h, differences = 2.0**-18, []
    for j in range(2):
        ends = [loss_of(model, WEIGHTS + s * h * (np.arange(len(WEIGHTS)) == j), by="example") for s in (1, -1)]
        differences.append((ends[0] - ends[1]) / (2 * h))
    return {
        "ours": ours.values.tolist(), "plain": gradient.tolist(), "differences": differences,
        "after": [ours.after, after],
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(_in_double()))
