"""Memory of a compiled step on a device: a model of what XLA keeps, fitted to its own account on small shapes.

With b rows of T positions on a device, n = b T, c bytes of the compute dtype, and for one layer
  X = n c (2 D + 3 F)             the MLP's activations
  A = 4 b heads Σ (queries × keys) the attention scores of all blocks of queries, in fp32
  H = 4 labels min(V, 16384)      one chunk of logits, in fp32
the temporaries are
  forward                          1.3 A + X, or 1.5 H if that is more
  score, m tangents                (1.3 + 2.2 m) A + (1 + m) X, or 1.5 (1 + m) H if that is more
  backward, layers recomputed      L n c D + the larger of 1.9 A + 4 X and 3 H
  backward, layers kept            L (2.45 A + 2.8 X) + 3 H
The factors were fitted to `compiled.memory_analysis()` of the CPU compiler (jax 0.10.2, fp32) on five shapes of width
128 and 256, where they are within 20%. A scheduler that finishes one block of queries before the next needs less of A.
Not in it: XLA's workspace, the runtime's own memory, fragmentation.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

import jax

from ntk_jax.models.attention import query_blocks
from ntk_jax.models.config import ModelConfig

CHUNK = 16384  # vocabulary rows of a chunk of logits, as `models.head` has it


def keys_per_query(length: int) -> float:
    """Keys that a query of a row meets on average, in attention as it is computed: block by block, masked after."""
    return sum((stop - start) * stop for start, stop in query_blocks(length)) / length


@dataclass(frozen=True)
class Shape:
    """What a compiled step works on, on one device: rows × length positions, and label slots that meet the head."""

    rows: int
    length: int
    labels: int = 0


def memory_limit(count: int) -> int | None:
    """Bytes that jax may use on a device; of the CPU, one of `count` equal parts of the machine's; None: unknown."""
    device = jax.devices()[0]
    if device.platform == "cpu":
        return host_memory() // count
    return (device.memory_stats() or {}).get("bytes_limit")


def host_memory() -> int:
    """Bytes of the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def forward_bytes(model: ModelConfig, shape: Shape, size: int) -> float:
    """A forward pass."""
    return max(1.3 * _scores(model, shape) + _mlp(model, shape, size), 1.5 * _head(model, shape))


def score_bytes(model: ModelConfig, shape: Shape, size: int, tangents: int, kernel: bool = False) -> float:
    """A forward pass with `tangents` beside it; kernel: attention keeps no scores in memory."""
    scores = 0.0 if kernel else (1.3 + 2.2 * tangents) * _scores(model, shape)
    trunk = scores + (1 + tangents) * _mlp(model, shape, size)
    return max(trunk, 1.5 * (1 + tangents) * _head(model, shape))


def backward_bytes(model: ModelConfig, shape: Shape, size: int, remat: bool, late: float = 1.0) -> float:
    """A forward and a backward pass; remat: each layer's input is kept and the rest computed again. late: the share of
    the layers that the backward pass goes through."""
    scores, mlp, head = _scores(model, shape), _mlp(model, shape, size), 3.0 * _head(model, shape)
    if not remat:
        return model.num_layers * (2.45 * scores + 2.8 * mlp) + head
    carried = late * float(model.num_layers * shape.rows * shape.length * size * model.hidden_size)
    return carried + max(1.9 * scores + 4.0 * mlp, head)


def second_order_bytes(model: ModelConfig, shape: Shape, size: int, remat: bool) -> float:
    """A forward and a backward pass and the tangents of both along one direction: everything twice."""
    return 2.0 * backward_bytes(model, shape, size, remat)


def _mlp(model: ModelConfig, shape: Shape, size: int) -> float:
    return float(shape.rows * shape.length * size * (2 * model.hidden_size + 3 * model.intermediate_size))


def _scores(model: ModelConfig, shape: Shape) -> float:
    return 4.0 * shape.rows * model.num_heads * shape.length * keys_per_query(shape.length)


def _head(model: ModelConfig, shape: Shape) -> float:
    return 4.0 * shape.labels * min(model.vocab_size, CHUNK)
