"""One decoder for Llama 2/3.x, Mistral, Qwen2.5 and Qwen3: tokens in, hidden states after the final norm out.

nnx modules say what parameters there are; every transform (scan, checkpoint, and the caller's jit, grad, jvp)
is plain jax over split state, because nnx transforms do not nest inside jax's. All layers share one module
whose leaves are stacked [L, ...] and scanned: a 28-layer model compiles as fast as a one-layer model.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike

from ntk_jax.models import rope
from ntk_jax.models.attention import attend, visibility
from ntk_jax.models.attention_kernel import Kernel
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.lora import LoRAConfig, target_names
from ntk_jax.models.quantization import times_quantized
from ntk_jax.parallel.rules import gathered, split_rows, whole

Pure = Mapping[str, Any]  # nested dicts of arrays


class Linear(nnx.Module):
    """y = xW (+ c) (+ (α/R)(xA)B), L of them stacked; called on one layer's slice. W may be quantized: see
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
        self.scale = lora.scales[name] if lora else 0.0

    def __call__(self, x: jax.Array) -> jax.Array:
        if self.kernel_scale is None:
            y = x @ self.kernel[...].astype(x.dtype)
        else:
            # Devices exchange the bytes that are stored, not what these become beside x.
            values = gathered(self.kernel[...], f"layers/{self.name}/kernel")
            y = times_quantized(x, values, self.kernel_scale[...])
        if self.bias is not None:
            y = y + self.bias[...].astype(x.dtype)
        if self.a is not None and self.b is not None:
            a, b = self.a[...].astype(x.dtype), self.b[...].astype(x.dtype)
            # Over [BT, Din] the gradients of A and B are plain products over BT, for which XLA on a CPU moves nothing;
            # over [B, T, Din] it transposes x and the gradient of y first. Where every row has its own A or B
            # ([B, Din, R], [B, R, Dout]), they are row by row anyway.
            shared = x.reshape(-1, x.shape[-1]) if a.ndim == b.ndim == 2 else x
            # The scale sits on the narrow [.., R] side, where it costs nothing.
            y = y + ((self.scale * (shared @ a)) @ b).reshape(y.shape)
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
        self, x: jax.Array, turn: tuple[jax.Array, jax.Array], seen: jax.Array, forward_mode: bool | Kernel = False
    ) -> jax.Array:
        """x [B, T, D] in the compute dtype; turn as `rope.rotation`; seen as `attention.visibility`."""
        q, k, v = self.queries_keys_values(x, turn)
        return self.after_attention(x, attend(q, k, v, seen, forward_mode))

    def queries_keys_values(
        self, x: jax.Array, turn: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """q [B, T, heads, H], turned and scaled, and k (turned), v [B, T, kv, H] of x [B, T, D], all in x's dtype."""
        c = self.config
        h = rms_norm(x, self.input_norm[...], c.norm_eps)
        q = self._heads(self.q_proj(h), self.q_norm)
        k = self._heads(self.k_proj(h), self.k_norm)
        v = self.v_proj(h).reshape(*h.shape[:2], c.num_kv_heads, c.head_dim)
        q = (rope.rotate(q, turn) * c.head_dim**-0.5).astype(x.dtype)
        return q, rope.rotate(k, turn).astype(x.dtype), v

    def after_attention(self, x: jax.Array, attended: jax.Array) -> jax.Array:
        """The layer's output [B, T, D] of its input x and what attention gave, [B, T, heads·H]."""
        x = split_rows(x + self.o_proj(attended))
        h = rms_norm(x, self.post_attention_norm[...], self.config.norm_eps)
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
    forward_mode: bool | Kernel = False,
) -> jax.Array:
    """Hidden states [B, T, D] after the final norm, in the compute dtype `dtype`.

    lora: the adapters of all layers; with "early" in it, {"early": of the first layers, "layers": of the others}, of
    which only the others may be differentiated: then no tangent and no gradient passes the early layers.
    tokens, positions, segments, branches: [B, T] int32 as in `data.batch.Batch`. A token sees the earlier
    tokens of its own segment; with branches, only those of branch 0 and of its own branch. Padding is a segment
    like any other (number 0): it sees itself, so no softmax is empty and nothing is NaN, nor in a gradient.
    remat: keep only each layer's input for the backward pass and compute the rest again.
    forward_mode: for `jax.jvp`, with attention's own forward-mode rule (`attend`) or a kernel; neither has a
    backward pass, and a kernel takes no branches.
    """
    early = lora.get("early")
    model = nnx.merge(
        graphdef, nnx.State({name: leaf for name, leaf in lora.items() if name != "early"}), nnx.State(base)
    )
    turn = rope.rotation(model.config, jnp.asarray(positions))
    seen = visibility(jnp.asarray(segments), None if branches is None else jnp.asarray(branches), forward_mode)
    layer_def, adapters, weights = nnx.split(model.layers, nnx.LoRAParam, ...)  # type: ignore[misc]

    def step(x: jax.Array, own: Any) -> tuple[jax.Array, None]:
        return nnx.merge(layer_def, *own)(x, turn, seen, forward_mode), None

    def step_from_stack(x: jax.Array, own: Any) -> tuple[jax.Array, None]:
        """A layer given by its adapters and its number: a scan over a part of the frozen stack would copy that part."""
        adapter, number = own
        return step(x, (adapter, jax.tree.map(lambda leaf: leaf[number], weights)))

    x = split_rows(whole(model.embed[...])[jnp.asarray(tokens)].astype(dtype))
    if early is None:
        stretches = [(step, (adapters, weights))]
    else:
        first = nnx.merge(graphdef, nnx.State({"layers": early}), nnx.State(base))
        _, before, _ = nnx.split(first.layers, nnx.LoRAParam, ...)  # type: ignore[misc]
        begin, layers = jax.tree.leaves(before)[0].shape[0], model.config.num_layers
        stretches = [
            (step_from_stack, (before, jnp.arange(begin))),
            (step_from_stack, (adapters, jnp.arange(begin, layers))),
        ]
    for one, stack in stretches:
        # Inside a scan there is nothing for CSE to undo.
        x, _ = jax.lax.scan(jax.checkpoint(one, prevent_cse=False) if remat else one, x, stack)
    return rms_norm(x, model.norm[...], model.config.norm_eps)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """x / rms(x) · weight over the last axis: computed in fp32, returned in x's dtype."""
    wide = x.astype(jnp.float32)
    scale = jax.lax.rsqrt(jnp.mean(wide * wide, axis=-1, keepdims=True) + eps)
    return (wide * scale * weight.astype(jnp.float32)).astype(x.dtype)
