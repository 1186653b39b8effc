"""An encoder of the BERT type: tokens in, hidden states of the last layer out (Devlin et al., arXiv 1810.04805).

As `decoder.py`: nnx modules say what parameters there are, transforms are plain jax over split state, and all layers
share one module whose leaves are stacked [L, ...] and scanned. Rows hold several texts; a token sees all of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from ntk_jax.models.encoder_config import EncoderConfig

Pure = Mapping[str, Any]  # nested dicts of arrays
_MASKED = -1e30  # finite, so that no mask whatever can make NaN of a row
_SAFE = 70.0  # exp(±70), and sums of 10^4 of it times values, are ordinary fp32 numbers


class Affine(nnx.Module):
    """y = xW + c, L of them stacked; called on one layer's slice."""

    def __init__(self, layers: int, d_in: int, d_out: int, dtype: Any):
        self.kernel = nnx.Param(jnp.zeros((layers, d_in, d_out), dtype))
        self.bias = nnx.Param(jnp.zeros((layers, d_out), dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        # One tall matrix: batched products of few rows each are slower on a CPU.
        flat = x.reshape(-1, x.shape[-1]) @ self.kernel[...].astype(x.dtype)
        return (flat + self.bias[...].astype(x.dtype)).reshape(*x.shape[:-1], -1)


class LayerNorm(nnx.Module):
    """(x − mean) / std · scale + bias over the last axis, in fp32; `shape` begins with the layers, if it is stacked."""

    def __init__(self, shape: tuple[int, ...], eps: float, dtype: Any):
        self.scale = nnx.Param(jnp.ones(shape, dtype))
        self.bias = nnx.Param(jnp.zeros(shape, dtype))
        self.eps = eps

    def __call__(self, x: jax.Array) -> jax.Array:
        wide = x.astype(jnp.float32)
        wide = wide - wide.mean(axis=-1, keepdims=True)
        wide = wide * jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + self.eps)
        return (wide * self.scale[...].astype(jnp.float32) + self.bias[...].astype(jnp.float32)).astype(x.dtype)


class EncoderLayer(nnx.Module):
    """Attention and MLP, each added to its input and normed behind. `qkv` is three linears in one: one pass over x."""

    def __init__(self, config: EncoderConfig, dtype: Any):
        c, layers, d = config, config.num_layers, config.hidden_size
        self.qkv = Affine(layers, d, 3 * d, dtype)
        self.attention_out = Affine(layers, d, d, dtype)
        self.attention_norm = LayerNorm((layers, d), c.norm_eps, dtype)
        self.up = Affine(layers, d, c.intermediate_size, dtype)
        self.down = Affine(layers, c.intermediate_size, d, dtype)
        self.mlp_norm = LayerNorm((layers, d), c.norm_eps, dtype)
        self.config = config

    def __call__(self, x: jax.Array, seen: jax.Array) -> jax.Array:
        """x [B, T, D] in the compute dtype; seen [B, T, T] bool, query by key."""
        c = self.config
        q, k, v = (
            part.reshape(*x.shape[:2], c.num_heads, c.head_dim).transpose(0, 2, 1, 3)
            for part in jnp.split(self.qkv(x), 3, axis=-1)
        )
        heads = attend_within((q * c.head_dim**-0.5).astype(x.dtype), k, v, seen)
        x = self.attention_norm(x + self.attention_out(heads.transpose(0, 2, 1, 3).reshape(x.shape)))
        return self.mlp_norm(x + self.down(activate(self.up(x), c.activation)))


class Encoder(nnx.Module):
    """The whole parameter tree."""

    def __init__(self, config: EncoderConfig, dtype: Any = jnp.float32):
        d = config.hidden_size
        self.words = nnx.Param(jnp.zeros((config.vocab_size, d), dtype))
        self.positions = nnx.Param(jnp.zeros((config.position_rows, d), dtype))
        self.types = nnx.Param(jnp.zeros((config.type_rows, d), dtype))
        self.norm = LayerNorm((d,), config.norm_eps, dtype)
        self.layers = EncoderLayer(config, dtype)
        self.config = config


def abstract_encoder(config: EncoderConfig, dtype: Any) -> tuple[Any, dict]:
    """(graphdef, shapes): the tree without allocating anything."""
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Encoder(config, dtype)))
    return graphdef, nnx.to_pure_dict(state)


def encoder_states(
    graphdef: Any,
    weights: Pure,
    tokens: ArrayLike,
    positions: ArrayLike,
    segments: ArrayLike,
    *,
    dtype: Any = jnp.float32,
    remat: bool = False,
) -> jax.Array:
    """Hidden states [B, T, D] of the last layer, in the compute dtype.

    tokens, positions, segments: [B, T] int32; positions are rows of the table of learned ones
    (`EncoderConfig.first_position` is that of a text's first token). A token sees the tokens of its own segment, before
    and behind it. Padding is a segment like any other (number 0). Token types are all 0: one text, no pair.
    remat: keep only each layer's input for the backward pass and compute the rest again.
    """
    model = nnx.merge(graphdef, nnx.State(weights))
    segments = jnp.asarray(segments)
    seen = segments[:, :, None] == segments[:, None, :]
    layer_def, stack = nnx.split(model.layers)

    def step(x: jax.Array, own: Any) -> tuple[jax.Array, None]:
        return nnx.merge(layer_def, own)(x, seen), None

    x = model.words[...][jnp.asarray(tokens)] + model.positions[...][jnp.asarray(positions)] + model.types[...][0]
    x, _ = jax.lax.scan(jax.checkpoint(step, prevent_cse=False) if remat else step, model.norm(x.astype(dtype)), stack)
    return x


def attend_within(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array) -> jax.Array:
    """Attention [B, heads, T, H] of q (already scaled), k, v [B, heads, T, H]; seen [B, T, T]. Softmax in fp32, whose
    sum is divided by after the values: one pass less over the squares of scores.

    Softmax takes the largest score of a query away, so that no exponential overflows. On a CPU that maximum takes a
    third of attention's time, and is left out where the lengths of all q and k already say that nothing can overflow.
    """
    scores = jnp.einsum("bhtd,bhsd->bhts", q, k, preferred_element_type=jnp.float32)
    scores = jnp.where(seen[:, None], scores, _MASKED)

    def by(weights: jax.Array) -> jax.Array:
        weights = weights.astype(v.dtype)
        total = weights.sum(axis=-1, dtype=jnp.float32)[..., None]
        values = jnp.einsum("bhts,bhsd->bhtd", weights, v, preferred_element_type=jnp.float32)
        return (values / total).astype(v.dtype)

    def shifted() -> jax.Array:
        return by(jnp.exp(scores - scores.max(axis=-1, keepdims=True)))

    if jax.default_backend() != "cpu":
        return shifted()
    longest = [jnp.square(x.astype(jnp.float32)).sum(axis=-1).max(axis=2) for x in (q, k)]  # [B, heads], squared
    is_safe = (longest[0] * longest[1]).max() < _SAFE**2
    return jax.lax.cond(is_safe, lambda: by(jnp.exp(scores)), shifted)


def activate(x: jax.Array, kind: str) -> jax.Array:
    """The MLP's activation, as `EncoderConfig.activation` names it."""
    if kind == "relu":
        return jax.nn.relu(x)
    return jax.nn.gelu(x, approximate=kind == "tanh")
