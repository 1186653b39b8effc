"""One decoder for Llama 2/3.x, Qwen2.5 and Qwen3: tokens in, hidden states after the final norm out.

nnx modules say what parameters there are; every transform (scan, checkpoint, and the caller's jit, grad, jvp)
is plain jax over split state, because nnx transforms do not nest inside jax's. All layers share one module
whose leaves are stacked [L, ...] and scanned: a 28-layer model compiles as fast as a one-layer model.

Attention is plain XLA on purpose, with a forward-mode rule of its own: fused kernels are custom_vjp and have none,
on which the directional score stands.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from ntk_jax.models import rope
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.lora import LoRAConfig, target_names
from ntk_jax.models.quantization import times_quantised
from ntk_jax.parallel.rules import gathered, split_rows, whole

Pure = Mapping[str, Any]  # nested dicts of arrays


class Linear(nnx.Module):
    """y = xW (+ c) (+ (α/R)(xA)B), L of them stacked; called on one layer's slice. W may be quantised: see
    `models/quantization.py`."""

    def __init__(
        self,
        name: str,
        shape: tuple[int, int, int],
        bias: bool,
        lora: LoRAConfig | None,
        dtype: Any,
        quantization: str | None = None,
    ):
        layers, d_in, d_out = shape
        self.name = name
        self.kernel = nnx.Param(jnp.zeros(shape, quantization or dtype))
        self.kernel_scale = nnx.Param(jnp.zeros((layers, d_out), jnp.float32)) if quantization else None
        self.bias = nnx.Param(jnp.zeros((layers, d_out), dtype)) if bias else None
        self.a = nnx.LoRAParam(jnp.zeros((layers, d_in, lora.rank), jnp.float32)) if lora else None
        self.b = nnx.LoRAParam(jnp.zeros((layers, lora.rank, d_out), jnp.float32)) if lora else None
        self.scale = lora.scale if lora else 0.0

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.kernel_scale is None:
            y = x @ self.kernel[...].astype(x.dtype)
        else:
            # Devices exchange the bytes that are stored, not what these become beside x.
            values = gathered(self.kernel[...], f"layers/{self.name}/kernel")
            y = times_quantised(x, values, self.kernel_scale[...])
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        if self.a is not None and self.b is not None:
            # The scale sits on the narrow [.., R] side, where it costs nothing.
            y = y + (self.scale * (x @ self.a[...].astype(x.dtype))) @ self.b[...].astype(x.dtype)
        return y


class Layer(nnx.Module):
    """Attention and gated MLP, each on a normed input and added back."""

    def __init__(self, config: ModelConfig, lora: LoRAConfig | None, dtype: Any, quantization: str | None = None):
        c, layers, d = config, config.num_layers, config.hidden_size
        targets = target_names(lora)

        def linear(name: str, d_in: int, d_out: int, bias: bool = False) -> Linear:
            return Linear(name, (layers, d_in, d_out), bias, lora if name in targets else None, dtype, quantization)

        self.q_proj = linear("q_proj", d, c.num_heads * c.head_dim, c.qkv_bias)
        self.k_proj = linear("k_proj", d, c.num_kv_heads * c.head_dim, c.qkv_bias)
        self.v_proj = linear("v_proj", d, c.num_kv_heads * c.head_dim, c.qkv_bias)
        self.o_proj = linear("o_proj", c.num_heads * c.head_dim, d, c.o_bias)
        self.gate_proj = linear("gate_proj", d, c.intermediate_size)
        self.up_proj = linear("up_proj", d, c.intermediate_size)
        self.down_proj = linear("down_proj", c.intermediate_size, d)
        self.q_norm = nnx.Param(jnp.ones((layers, c.head_dim), dtype)) if c.qk_norm else None
        self.k_norm = nnx.Param(jnp.ones((layers, c.head_dim), dtype)) if c.qk_norm else None
        self.input_norm = nnx.Param(jnp.ones((layers, d), dtype))
        self.post_attention_norm = nnx.Param(jnp.ones((layers, d), dtype))
        self.config = config

    def __call__(
        self, x: jax.Array, turn: tuple[jax.Array, jax.Array], mask: jax.Array, forward_mode: bool = False
    ) -> jax.Array:
        """x [B, T, D] in the compute dtype; turn as `rope.rotation`; mask [B, T, T], query by key."""
        c = self.config
        h = rms_norm(x, self.input_norm[...], c.norm_eps)
        q = self._heads(self.q_proj(h), self.q_norm)
        k = self._heads(self.k_proj(h), self.k_norm)
        v = self.v_proj(h).reshape(*h.shape[:2], c.num_kv_heads, c.head_dim)
        q = (rope.rotate(q, turn) * c.head_dim**-0.5).astype(x.dtype)
        k = rope.rotate(k, turn).astype(x.dtype)
        x = split_rows(x + self.o_proj(attend(q, k, v, mask, forward_mode)))
        h = rms_norm(x, self.post_attention_norm[...], c.norm_eps)
        return split_rows(x + self.down_proj(jax.nn.silu(self.gate_proj(h)) * self.up_proj(h)))

    def _heads(self, y: jax.Array, norm: Any) -> jax.Array:
        """[B, T, heads·H] → [B, T, heads, H] in fp32, normed per head where the model does so."""
        y = y.reshape(*y.shape[:2], -1, self.config.head_dim)
        if norm is not None:
            y = rms_norm(y, norm[...], self.config.norm_eps)
        return y.astype(jnp.float32)


class Decoder(nnx.Module):
    """The whole parameter tree. `head` is absent when the embedding serves as the head."""

    def __init__(
        self,
        config: ModelConfig,
        lora: LoRAConfig | None = None,
        dtype: Any = jnp.float32,
        quantization: str | None = None,
    ):
        shape = (config.vocab_size, config.hidden_size)
        self.embed = nnx.Param(jnp.zeros(shape, dtype))
        self.layers = Layer(config, lora, dtype, quantization)
        self.norm = nnx.Param(jnp.ones(config.hidden_size, dtype))
        self.head = None if config.tied else nnx.Param(jnp.zeros(shape, dtype))
        self.config = config


def abstract_decoder(
    config: ModelConfig, lora: LoRAConfig | None, dtype: Any, quantization: str | None = None
) -> tuple[Any, dict, dict]:
    """(graphdef, lora shapes, base shapes): the tree without allocating anything; {} without adapters."""
    module = nnx.eval_shape(lambda: Decoder(config, lora, dtype, quantization))
    # LoRAParam is a Param: the narrower type must be split off first.
    graphdef, lora_state, base_state = nnx.split(module, nnx.LoRAParam, ...)  # type: ignore[misc]
    return graphdef, nnx.to_pure_dict(lora_state), nnx.to_pure_dict(base_state)


def hidden_states(
    graphdef: Any,
    lora: Pure,
    base: Pure,
    tokens: ArrayLike,
    positions: ArrayLike,
    segments: ArrayLike,
    branches: ArrayLike | None = None,
    *,
    dtype: Any = jnp.float32,
    remat: bool = False,
    forward_mode: bool = False,
) -> jax.Array:
    """Hidden states [B, T, D] after the final norm, in the compute dtype `dtype`.

    tokens, positions, segments, branches: [B, T] int32 as in `data.batch.Batch`. A token sees the earlier
    tokens of its own segment; with branches, only those of branch 0 and of its own branch. Padding is a segment
    like any other (number 0): it sees itself, so no softmax is empty and nothing is NaN, nor in a gradient.
    remat: keep only each layer's input for the backward pass and compute the rest again.
    forward_mode: for `jax.jvp`, with attention's own forward-mode rule (`attend`); it has no backward pass.
    """
    model = nnx.merge(graphdef, nnx.State(lora), nnx.State(base))
    turn = rope.rotation(model.config, jnp.asarray(positions))
    mask = attention_mask(jnp.asarray(segments), None if branches is None else jnp.asarray(branches))
    layer_def, stacked = nnx.split(model.layers)

    def step(x: jax.Array, slices: nnx.State) -> tuple[jax.Array, None]:
        return nnx.merge(layer_def, slices)(x, turn, mask, forward_mode), None

    if remat:
        step = jax.checkpoint(step, prevent_cse=False)  # inside a scan there is nothing for CSE to undo
    x = split_rows(whole(model.embed[...])[jnp.asarray(tokens)].astype(dtype))
    x, _ = jax.lax.scan(step, x, stacked)
    return rms_norm(x, model.norm[...], model.config.norm_eps)


def attention_mask(segments: jax.Array, branches: jax.Array | None) -> jax.Array:
    """[B, T, T] bool, query by key: causal by place in the row, same segment, compatible branch."""
    seen = (segments[:, :, None] == segments[:, None, :]) & jnp.tri(segments.shape[1], dtype=bool)
    if branches is not None:
        seen &= (branches[:, None, :] == 0) | (branches[:, None, :] == branches[:, :, None])
    return seen


def attend(q: jax.Array, k: jax.Array, v: jax.Array, mask: jax.Array, forward_mode: bool = False) -> jax.Array:
    """Grouped-query attention [B, T, heads·H] of q [B, T, heads, H] (already scaled) and k, v [B, T, kv, H].

    Queries are grouped by the key/value head they share, which is never repeated. Rows are cut into blocks of
    queries, and a block meets only the keys before its end: about half the work of the full square, and scores
    of one block at a time in memory. Softmax in fp32. forward_mode: the same function with `_block_with_tangent`.
    """
    attend_block = _block_with_tangent if forward_mode else _block
    rows, length, heads, width = q.shape
    kv = k.shape[2]
    q = q.reshape(rows, length, kv, heads // kv, width)
    outputs = []
    for start, stop in query_blocks(length):
        seen = mask[:, None, start:stop, None, :stop]
        outputs.append(attend_block(q[:, start:stop], k[:, :stop], v[:, :stop], seen))
    out = outputs[0] if len(outputs) == 1 else jnp.concatenate(outputs, axis=1)
    return out.reshape(rows, length, heads * width)


def _block(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array) -> jax.Array:
    """[B, t, kv, g, H] of a block of queries q [B, t, kv, g, H] and the keys and values [B, s, kv, H] before its end;
    seen [B, 1, t, 1, s]."""
    scores = jnp.where(seen, _products(q, k), _MASKED)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum("bktgs,bskh->btkgh", weights, v)


@jax.custom_jvp
def _block_with_tangent(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array) -> jax.Array:
    """`_block`, whose derivative passes the square of scores as seldom as it can: what a score spends on attention is
    memory traffic. q̇k + qk̇ is one product over twice the width, and softmax's sum is divided by after the values."""
    return _weigh(q, k, v, seen)[0]


@_block_with_tangent.defjvp
def _(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    (q, k, v, seen), (dq, dk, dv, _) = primals, tangents
    out, weights, total = _weigh(q, k, v, seen)
    change = _products(jnp.concatenate([dq, q], axis=-1), jnp.concatenate([k, dk], axis=-1))
    moved = weights * jnp.where(seen, change, 0.0)
    by_weight = _values_of(moved, v) + _values_of(weights, dv)
    mean_change = _per_query(moved.sum(axis=-1))
    tangent = (by_weight - out.astype(jnp.float32) * mean_change) / total
    return out, tangent.astype(out.dtype)


def _weigh(q: jax.Array, k: jax.Array, v: jax.Array, seen: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(output, unnormalised weights [B, kv, t, g, s] fp32, their sums [B, t, kv, g, 1] fp32)."""
    scores = jnp.where(seen, _products(q, k), _MASKED)
    weights = jnp.exp(scores - scores.max(axis=-1, keepdims=True))
    total = _per_query(weights.sum(axis=-1))
    return (_values_of(weights, v) / total).astype(v.dtype), weights, total


def _products(q: jax.Array, k: jax.Array) -> jax.Array:
    return jnp.einsum("btkgh,bskh->bktgs", q, k, preferred_element_type=jnp.float32)


def _values_of(weights: jax.Array, v: jax.Array) -> jax.Array:
    return jnp.einsum("bktgs,bskh->btkgh", weights.astype(v.dtype), v, preferred_element_type=jnp.float32)


def _per_query(x: jax.Array) -> jax.Array:
    """[B, kv, t, g] → [B, t, kv, g, 1]."""
    return x.transpose(0, 2, 1, 3)[..., None]


def query_blocks(length: int) -> list[tuple[int, int]]:
    """(start, stop) of the blocks of queries of a row; those of one block meet the keys [0, stop)."""
    block = max(_MIN_BLOCK, -(-length // _MAX_BLOCKS))
    return [(start, min(start + block, length)) for start in range(0, length, block)]


_MIN_BLOCK = 256  # queries; smaller blocks leave matmul units idle
_MAX_BLOCKS = 8  # the loop is unrolled, so this bounds compile time
_MASKED = -1e30  # finite, so that no mask whatever can make NaN of a row or its derivative


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) · weight over the last axis: computed in fp32, returned in x's dtype."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale * weight.astype(jnp.float32)).astype(x.dtype)
