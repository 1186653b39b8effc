"""Learning rates, clipping, AdamW and its second moments against formulas written out; FLOPs against hand counts."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from kernel_reference import tiny_config

from ntk_jax.errors import UserError
from ntk_jax.training import flops
from ntk_jax.training.optimizer import (
    TrainConfig,
    check_config,
    learning_rates,
    make_optimizer,
    second_moment,
    settings_of,
)


def test_learning_rates() -> None:
    config = TrainConfig(learning_rate=1.0, warmup_ratio=0.2)
    np.testing.assert_allclose(
        learning_rates(config, 10), [1 / 3, 2 / 3, 1, 7 / 8, 6 / 8, 5 / 8, 4 / 8, 3 / 8, 2 / 8, 1 / 8], rtol=1e-6
    )
    np.testing.assert_allclose(learning_rates(replace(config, schedule="constant"), 10)[2:], 1.0)
    cosine = learning_rates(replace(config, schedule="cosine"), 10)
    np.testing.assert_allclose(cosine[2:], 0.5 * (1 + np.cos(np.pi * np.arange(8) / 8)), rtol=1e-6)
    floored = learning_rates(replace(config, schedule="cosine", floor=0.1), 10)
    np.testing.assert_allclose(floored[:2], cosine[:2])
    np.testing.assert_allclose(floored[2:], 0.1 + 0.9 * cosine[2:], rtol=1e-6)
    assert learning_rates(TrainConfig(learning_rate=3e-4), 1) == np.float32(3e-4)  # one step is not all warm-up
    for schedule in ("linear", "cosine", "constant"):
        assert (learning_rates(TrainConfig(schedule=schedule), 137) > 0).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("max_norm", [0.0, 0.5])
def test_adamw_with_clipping_is_the_formula(max_norm: float) -> None:
    config = TrainConfig(max_grad_norm=max_norm, weight_decay=0.1, beta1=0.8, beta2=0.95)
    optimizer = make_optimizer(settings_of(config))
    rng = np.random.default_rng(0)
    parameters: Any = {"kernel": rng.normal(size=(3, 4)), "q_norm": rng.normal(size=4), "bias": rng.normal(size=4)}
    parameters = jax.tree.map(lambda leaf: leaf.astype(np.float32), parameters)
    state = optimizer.init(parameters)
    m = {name: 0.0 for name in parameters}
    v = {name: 0.0 for name in parameters}
    for step in range(1, 5):
        gradient = {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in parameters.items()}
        norm = np.sqrt(sum((leaf**2).sum() for leaf in gradient.values()))
        assert norm > 0.5
        factor = min(1.0, max_norm / norm) if max_norm else 1.0
        updates, state = optimizer.update(gradient, state, parameters)
        for name, leaf in gradient.items():
            m[name] = 0.8 * m[name] + 0.2 * factor * leaf
            v[name] = 0.95 * v[name] + 0.05 * (factor * leaf) ** 2
            adam = (m[name] / (1 - 0.8**step)) / (np.sqrt(v[name] / (1 - 0.95**step)) + 1e-8)
            decay = 0.1 * parameters[name] if name == "kernel" else 0.0  # never norms and biases
            np.testing.assert_allclose(updates[name], -(adam + decay), rtol=2e-4, atol=1e-6)
    moments = second_moment(state, config.beta2)
    for name in parameters:
        np.testing.assert_allclose(moments[name], v[name] / (1 - 0.95**4), rtol=1e-4)


def test_second_moment_before_the_first_step_is_zero() -> None:
    state = make_optimizer(settings_of(TrainConfig())).init({"a": np.ones(3, np.float32)})
    np.testing.assert_array_equal(second_moment(state, 0.999)["a"], 0.0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 0}, "batch_size = 0"),
        ({"learning_rate": -1.0}, "learning_rate = -1.0"),
        ({"beta2": 1.0}, "beta2 = 1.0"),
        ({"warmup_ratio": 1.0}, "warmup_ratio = 1.0"),
        ({"floor": 1.0}, "floor = 1.0"),
        ({"max_steps": 0}, "max_steps = 0"),
        ({"epochs": 0.0}, "epochs = 0"),
        ({"epochs": float("nan")}, "epochs = nan"),
        ({"checkpoint_every": 0}, "checkpoint_every = 0"),
        ({"schedule": "sawtooth"}, "schedule = 'sawtooth'"),
    ],
)
def test_bad_config(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_config(replace(TrainConfig(), **change))
    check_config(TrainConfig())


def test_flops() -> None:
    config = tiny_config("llama", vocab_size=97, hidden_size=32, intermediate_size=48, num_layers=2, num_kv_heads=2)
    matrices = 2 * (32 * 32 + 2 * 32 * 16 + 32 * 32 + 3 * 32 * 48)
    assert flops.matrix_parameters(config) == matrices
    assert flops.head_parameters(config) == 97 * 32
    assert flops.forward_flops(config, 10, 3) == 20 * matrices + 6 * 97 * 32
    assert flops.training_flops(config, 10, 3) == 40 * matrices + 12 * 97 * 32
    assert flops.training_flops(config, 10, 3, parameters="all") == 60 * matrices + 18 * 97 * 32
    assert flops.training_flops(config, 10, 0, True) == 60 * matrices
    assert flops.training_flops(config, 10, 0, lora_parameters=7) == 40 * matrices + 60 * 7
    assert flops.score_flops(config, 10) == 40 * matrices  # 4 P a token
    assert flops.score_flops(config, 10, directions=4) == 100 * matrices
    assert flops.score_flops(config, 10, dense_parameters=matrices) == 60 * matrices
    assert flops.score_flops(config, 10, directions=4, lora_parameters=7) == 100 * matrices + 180 * 7
    # forward 2 P; again forward and backward, 4 P, for each direction
    assert flops.gradient_flops(config, 10) == 60 * matrices
    assert flops.gradient_flops(config, 10, directions=4) == 180 * matrices
    assert flops.gradient_flops(config, 10, lora_parameters=7) == 60 * matrices + 80 * 7
    assert flops.gradient_flops(config, 10, dense_parameters=matrices) == 80 * matrices
    assert flops.forward_flops(config, 10, context=5.0) == 20 * matrices + 10 * 4 * 2 * 32 * 5


def test_flops_agree_with_the_compiler() -> None:
    """XLA's own count of a forward pass at a length where attention is small: the formula within 10%."""
    from ntk_jax.models.decoder import hidden_states
    from ntk_jax.models.model import random_model

    config = tiny_config("llama", hidden_size=128, intermediate_size=384, head_dim=32, num_layers=1)
    model = random_model(config)
    tokens = np.zeros((1, 32), np.int32)
    lowered = jax.jit(lambda base, tokens: hidden_states(model.graphdef, {}, base, tokens, tokens, tokens + 1)).lower(
        model.base, tokens
    )
    analysis = lowered.compile().cost_analysis()
    assert analysis is not None
    counted = analysis["flops"]
    # Dense attention multiplies every pair of the 32, visible or not.
    assert counted == pytest.approx(flops.forward_flops(config, 32, context=32.0), rel=0.1)
