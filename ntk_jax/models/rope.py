"""Rotary position embedding in the "rotate half" layout of Hugging Face checkpoints, always in fp32.

A bf16 angle is wrong by whole radians beyond a few hundred positions, so angles and rotation stay in fp32 and
only the rotated vectors are cast. Source: Su et al., arXiv 2104.09864; the stretching of frequencies as in Chen et al.,
arXiv 2306.15595 (linear), Meta's Llama 3.1 release (llama3) and Peng et al., arXiv 2309.00071 (yarn).
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np

from ntk_jax.models.config import ModelConfig
from ntk_jax.models.rope_scaling import LinearScaling, Llama3Scaling, YarnScaling


def inverse_frequencies(config: ModelConfig) -> np.ndarray:
    """[head_dim / 2] fp32 angular speeds, radians per position.

    All in fp32, rounding where torch rounds: these models were trained with such speeds, and one rounding more or less
    is worth 1e-3 radians at position 8,192.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    wavelengths = np.float32(config.rope_theta) ** exponents  # over 2π
    scaling = config.rope_scaling
    if isinstance(scaling, LinearScaling):
        return np.float32(1) / wavelengths / scaling.factor
    if isinstance(scaling, Llama3Scaling):
        return _llama3(scaling, np.float32(1) / wavelengths)
    if isinstance(scaling, YarnScaling):
        return _yarn(scaling, wavelengths, config.rope_theta)
    return np.float32(1) / wavelengths


def _llama3(scaling: Llama3Scaling, speeds: np.ndarray) -> np.ndarray:
    """By wavelength, relative to the length seen in pre-training: waves shorter than length / high_freq_factor stay,
    those longer than length / low_freq_factor slow down by `factor`, and those between blend linearly in length /
    wavelength."""
    wavelength = np.float32(2 * math.pi) / speeds
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = np.clip((scaling.original_max_positions / wavelength - low) / (high - low), 0, 1)
    return (1 - keep) * speeds / scaling.factor + keep * speeds


def _yarn(scaling: YarnScaling, wavelengths: np.ndarray, theta: float) -> np.ndarray:
    """By the place of a frequency among them: those before the one that turns beta_fast times over the original
    positions stay, those after the one that turns beta_slow times slow down by `factor`, and those between blend
    linearly in their place."""
    width = 2 * len(wavelengths)

    def place(turns: float) -> float:
        return width * math.log(scaling.original_max_positions / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low, high = place(scaling.beta_fast), place(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, width - 1)
    if low == high:
        high += 0.001
    slow = np.clip((np.arange(len(wavelengths), dtype=np.float32) - low) / (high - low), 0, 1)
    keep = 1 - slow
    return 1 / (scaling.factor * wavelengths) * (1 - keep) + 1 / wavelengths * keep


def rotation(config: ModelConfig, positions: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Cosines and sines, each [B, T, 1, head_dim / 2] fp32, of positions [B, T]; the 1 broadcasts over heads. YaRN
    lengthens both, so that queries and keys come out of `rotate` longer than they went in."""
    angles = positions.astype(jnp.float32)[..., None, None] * inverse_frequencies(config)
    length = config.rope_scaling.attention_scale if isinstance(config.rope_scaling, YarnScaling) else 1.0
    return jnp.cos(angles) * length, jnp.sin(angles) * length


def rotate(x: jax.Array, turn: tuple[jax.Array, jax.Array]) -> jax.Array:
    """Rotates x [B, T, heads, head_dim] fp32: value i is paired with value i + head_dim / 2."""
    cos, sin = turn
    first, second = jnp.split(x, 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
