"""Rotary position embedding in the "rotate half" layout of Hugging Face checkpoints, always in fp32.

A bf16 angle is wrong by whole radians beyond a few hundred positions, so angles and rotation stay in fp32 and
only the rotated vectors are cast. Source: Su et al., arXiv 2104.09864; the Llama 3 stretching of frequencies as
in Meta's Llama 3.1 release.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.models.config import ModelConfig


def inverse_frequencies(config: ModelConfig) -> np.ndarray:
    """[head_dim / 2] fp32 angular speeds, radians per position.

    llama3 scaling by wavelength, relative to the length seen in pre-training: waves shorter than
    length / high_freq_factor stay, those longer than length / low_freq_factor slow down by `factor`, and those
    between blend linearly in length / wavelength. All in fp32, rounding where torch rounds: these models were
    trained with such speeds, and one rounding more or less is worth 1e-3 radians at position 8,192.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    speeds = np.float32(1) / np.float32(config.rope_theta) ** exponents
    if (scaling := config.rope_scaling) is not None:
        wavelength = np.float32(2 * math.pi) / speeds
        low, high = scaling.low_freq_factor, scaling.high_freq_factor
        keep = np.clip((scaling.original_max_positions / wavelength - low) / (high - low), 0, 1)
        speeds = (1 - keep) * speeds / scaling.factor + keep * speeds
    return speeds


def rotation(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, each [B, T, 1, head_dim / 2] fp32, of positions [B, T]; the 1 broadcasts over heads."""
    angles = positions.astype(jnp.float32)[..., None, None] * inverse_frequencies(config)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(x: jax.Array, turn: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates x [B, T, heads, head_dim] fp32: value i is paired with value i + head_dim / 2."""
    cos, sin = turn
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
