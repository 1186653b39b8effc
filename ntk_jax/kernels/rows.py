"""How rows of tokens meet the compiled steps: packing layout, batches, and the frozen read-out."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from ntk_jax.data.batch import Batch, PackedBatch, TokenRow
from ntk_jax.data.packing import pack, pad_by_length
from ntk_jax.errors import UserError
from ntk_jax.kernels.objectives import Objective, readout
from ntk_jax.kernels.parameters import only_adapters
from ntk_jax.kernels.step import Step
from ntk_jax.models.attention_kernel import Attention, Kernel, forward_mode_of
from ntk_jax.models.head import head_matrix
from ntk_jax.models.model import Model
from ntk_jax.parallel.rules import replicate, shard_batch


@dataclass(frozen=True)
class Layout:
    """Shapes of a compiled step: rows_per_batch × row_length tokens, over the mesh's devices if there is one; where
    each row is one example, shorter rows for the shorter ones (`data.packing.pad_by_length`)."""

    row_length: int
    rows_per_batch: int
    mesh: jax.sharding.Mesh | None = None
    packed: bool = True  # False: one example a row, where each one's gradient is taken
    max_segments: int = 16
    most_rows: int = 0  # not packed: in a batch of shorter rows; 0: rows_per_batch


def layout_for(
    longest: int, batch_tokens: int, mesh: jax.sharding.Mesh | None = None, *, packed: bool = True
) -> Layout:
    """Rows as long as the longest example (to a multiple of 64); as many as fit `batch_tokens`."""
    row_length = max(64, -(-longest // 64) * 64)
    shards = 1 if mesh is None else mesh.shape["data"] * mesh.shape["fsdp"]
    rows = max(1, batch_tokens // row_length)
    return Layout(row_length, -(-rows // shards) * shards, mesh, packed)


def batches_of(rows: Sequence[TokenRow], layout: Layout, objective: Objective) -> Iterator[PackedBatch]:
    """Packs rows into constant shapes, or puts one example in a row, in a few shapes. Linear objectives read no labels,
    so their label arrays shrink to one slot: otherwise the longest response of a block would decide the shape and force
    a recompile."""
    if not objective.is_linear:
        for row in rows:
            if not row.span[:-1].any():
                raise UserError(
                    f"example {row.id or '?'}: its span has no position with a next token, and this objective needs "
                    "labels; use span: response or all, or a linear objective"
                )
    if layout.packed:
        packed = pack(
            rows,
            row_length=layout.row_length,
            rows_per_batch=layout.rows_per_batch,
            max_segments=layout.max_segments,
        )
    else:
        packed = pad_by_length(
            rows, row_length=layout.row_length, rows_per_batch=layout.rows_per_batch, most_rows=layout.most_rows
        )
    for item in packed:
        if objective.is_linear:
            empty = np.zeros((len(item.index), 1), np.int32)
            batch = dataclasses.replace(item.batch, label_position=empty, label_target=empty, label_segment=empty)
            item = PackedBatch(batch, item.index)
        yield item


def make_step(
    model: Model,
    objective: Objective,
    layout: Layout,
    parameters: str,
    *,
    pooled: bool = False,
    attention: Attention | Kernel = "xla",
) -> Step:
    """The static half of a compiled step for this model and layout. Raises UserError as `forward_mode_of`."""
    segments = layout.max_segments if layout.packed else 1
    forward_mode = forward_mode_of(attention, layout.mesh, model.config.head_dim, model.dtype)
    return Step(model.graphdef, model.dtype, objective, parameters, segments, pooled, forward_mode)


def frozen_readout(model: Model, objective: Objective, parameters: str) -> jax.Array | None:
    """The read-out computed once, or None when parameters outside the adapter (perhaps the head) are differentiated.
    Its few vectors are copied to every device here, so that no step gathers them."""
    if not only_adapters(parameters):
        return None
    read = readout(objective, head_matrix(model.base))
    mesh = getattr(read.sharding, "mesh", None)  # of weights that lie on one
    return replicate(read, mesh) if objective.is_linear and isinstance(mesh, jax.sharding.Mesh) else read


def on_devices(batch: Batch, layout: Layout) -> Batch:
    """The batch's rows spread over the mesh; as it is without one."""
    return batch if layout.mesh is None else shard_batch(batch, layout.mesh)
