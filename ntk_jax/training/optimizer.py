"""What one training is (`TrainConfig`), its learning rates and its optax chain."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ntk_jax.errors import UserError


@dataclass(frozen=True)
class TrainConfig:
    """One training. The paper's final training: 3 epochs, 2e-5, batch 128, linear, warm-up ratio 0.03."""

    epochs: float = 3.0
    max_steps: int | None = None  # instead of epochs
    learning_rate: float = 2e-5
    batch_size: int = 128  # examples per optimiser step, at most (see order.py)
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: float = 0.03
    floor: float = 0.0  # share of the peak at which the decay ends
    weight_decay: float = 0.0  # on matrices only: never on norms and biases
    beta1: float = 0.9
    beta2: float = 0.999
    max_grad_norm: float = 1.0  # 0: no clipping
    loss: Literal["token_mean", "example_mean"] = "token_mean"  # over all label tokens of a step, or over its examples
    tokens_per_microbatch: int = 8192  # over all devices
    checkpoint_every: int = 50  # optimiser steps


def check_config(config: TrainConfig, where: str = "training") -> None:
    """Raises `UserError` for values that cannot be trained with, naming the field. where: what to call the settings."""
    least = {
        "epochs": 0.0,
        "learning_rate": 0.0,
        "batch_size": 1,
        "warmup_ratio": 0.0,
        "weight_decay": 0.0,
        "max_grad_norm": 0.0,
        "tokens_per_microbatch": 1,
        "checkpoint_every": 1,
    }
    for name, bound in least.items():
        if not getattr(config, name) >= bound:
            raise UserError(f"{where}: {name} = {getattr(config, name)} is below {bound}; give a larger value")
    for name in ("warmup_ratio", "floor", "beta1", "beta2"):
        if not 0.0 <= getattr(config, name) < 1.0:
            raise UserError(f"{where}: {name} = {getattr(config, name)} is outside [0, 1); give a value inside")
    if config.max_steps is not None and config.max_steps < 1:
        raise UserError(f"{where}: max_steps = {config.max_steps} trains nothing; give at least 1")
    if config.max_steps is None and config.epochs == 0.0:
        raise UserError(f"{where}: epochs = 0 trains nothing; give a larger value or set max_steps")
    if config.schedule not in ("linear", "cosine", "constant"):
        raise UserError(f"{where}: schedule = {config.schedule!r} is not one of linear, cosine, constant")
    if config.loss not in ("token_mean", "example_mean"):
        raise UserError(f"{where}: loss = {config.loss!r} is not one of token_mean, example_mean")


def learning_rates(config: TrainConfig, steps: int) -> np.ndarray:
    """Learning rate of steps 0 .. steps - 1, float32: a linear warm-up, then linear or cosine decay, or constant.

    No step has rate 0: the warm-up starts at peak / (W + 1) and the linear decay ends at peak / (steps - W),
    because a step without a rate is a batch of examples thrown away. W = ceil(warmup_ratio * steps). The decay leads
    to floor * peak instead of 0: what goes on from a trained model warms the rate up again and lets it fall to a tenth
    or so (Ibrahim et al., arXiv 2403.08763).
    """
    warmup = min(math.ceil(config.warmup_ratio * steps), steps - 1)
    step = np.arange(steps, dtype=np.float64)
    rising = (step + 1.0) / (warmup + 1.0)
    done = np.clip((step - warmup) / (steps - warmup), 0.0, 1.0)
    falling = {
        "linear": 1.0 - done,
        "cosine": 0.5 * (1.0 + np.cos(np.pi * done)),
        "constant": np.ones(steps),
    }[config.schedule]
    falling = config.floor + (1.0 - config.floor) * falling
    return (config.learning_rate * np.where(step < warmup, rising, falling)).astype(np.float32)


@dataclass(frozen=True)
class OptimizerSettings:
    """What of a `TrainConfig` the compiled update depends on; hashable, so equal settings share a compilation."""

    max_grad_norm: float
    beta1: float
    beta2: float
    weight_decay: float


def settings_of(config: TrainConfig) -> OptimizerSettings:
    return OptimizerSettings(config.max_grad_norm, config.beta1, config.beta2, config.weight_decay)


def make_optimizer(settings: OptimizerSettings, eps_root: float = 0.0) -> optax.GradientTransformation:
    """Clip by global norm, then AdamW (Loshchilov & Hutter, arXiv 1711.05101) at learning rate 1.

    The caller multiplies the updates by the step's rate. It comes in as an argument and not as an optax schedule,
    so that trainings of different length run the same compiled update. eps_root: added to v under the root, for who
    differentiates an update.
    """
    clip = _clip_by_global_norm(settings.max_grad_norm) if settings.max_grad_norm > 0 else optax.identity()
    adamw = optax.adamw(
        1.0,
        b1=settings.beta1,
        b2=settings.beta2,
        eps_root=eps_root,
        weight_decay=settings.weight_decay,
        mask=_decayed,
    )
    return optax.chain(clip, adamw)


def _clip_by_global_norm(limit: float) -> optax.GradientTransformation:
    """optax's of this name to the bit, with a derivative also where every gradient is 0: theirs is a root at 0."""

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        square = optax.tree.norm(updates, squared=True)
        norm = jnp.sqrt(jnp.where(square > 0, square, 1.0))
        small = (norm < limit) | (square == 0)
        return jax.tree.map(lambda leaf: jnp.where(small, leaf, (leaf / norm) * limit), updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


@jax.jit
def second_moment(optimizer_state: Any, beta2: float) -> Any:
    """Adam's v / (1 - beta2^t), float32, a pytree like the trained parameters, read from the optax state."""
    adam = _adam_state(optimizer_state)
    correction = 1.0 - jnp.asarray(beta2, jnp.float32) ** adam.count.astype(jnp.float32)
    # Before the first step v is 0 and so is the correction: keep 0 instead of 0 / 0.
    correction = jnp.where(adam.count > 0, correction, 1.0)
    return jax.tree.map(lambda v: v.astype(jnp.float32) / correction, adam.nu)


def adam_moments(optimizer_state: Any) -> dict[str, Any]:
    """{"m", "v"}: Adam's moments as the optax state holds them, without bias correction, each a pytree like the trained
    parameters."""
    adam = _adam_state(optimizer_state)
    return {"m": adam.mu, "v": adam.nu}


def _adam_state(optimizer_state: Any) -> optax.ScaleByAdamState:
    return next(
        state
        for state in jax.tree.leaves(optimizer_state, is_leaf=lambda node: isinstance(node, optax.ScaleByAdamState))
        if isinstance(state, optax.ScaleByAdamState)
    )


def _decayed(parameters: Any) -> Any:
    def is_matrix(path: Any, _: Any) -> bool:
        name = jax.tree_util.keystr(path)
        return "norm" not in name and "bias" not in name

    return jax.tree_util.tree_map_with_path(is_matrix, parameters)
