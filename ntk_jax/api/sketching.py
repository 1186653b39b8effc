"""Projected gradients of examples, in memory or in a store on disk."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np

from ntk_jax.api.inputs import Encoded, ObjectiveLike, SpanLike, encoded, objective_of
from ntk_jax.data.account import account_of
from ntk_jax.data.batch import TokenRow
from ntk_jax.data.span import Span
from ntk_jax.data.tokens import Dropped
from ntk_jax.engine.blocks import Progress, fill_blocks
from ntk_jax.kernels.parameters import refuse_fresh_lora, split_parameters
from ntk_jax.kernels.projections import Projection, ProjectionKind, check_width
from ntk_jax.kernels.rows import layout_for
from ntk_jax.kernels.sketch import sketches
from ntk_jax.models.model import Model, computing_in
from ntk_jax.selection.sketch_store import create_sketches, longest_id, sketch_block, sketch_facts
from ntk_jax.storage.arrays import Store
from ntk_jax.storage.hashing import hash_tree


def sketch(
    model: Model,
    examples: Any,
    *,
    dim: int = 8192,
    projection: ProjectionKind | Projection = "rademacher",
    objective: ObjectiveLike = "sum_logits",
    span: SpanLike = "response",
    parameters: str = "lora",
    normalize: str | None = None,
    seed: int | None = None,
    dtype: str | None = None,
    batch_tokens: int = 8192,
    mesh: jax.sharding.Mesh | None = None,
    allow_fresh_lora: bool = False,
    out: str | Path | None = None,
    out_dtype: Literal["float16", "float32"] = "float16",
    block_examples: int = 2048,
) -> np.ndarray | Store:
    """Gradients of examples projected to `dim` numbers, whose inner products are unbiased estimates of the kernel
    ⟨g(x), g(x')⟩ (arXiv 2511.07380 takes `rademacher`, K = 8192).

    For what a mean over a domain can answer, `directional_scores` is exact and cheaper; sketches serve cosines, pairs
    and diversity. In memory the whole result is held: 4 N K bytes.

    Args:
        dim: K. projection: `rademacher` (dense signs), `countsketch` (one nonzero a parameter), `kronecker` (both sides
            of every matrix), or a `Projection` with its own dim, seed and sparsity;
            `ntk_jax/kernels/projections.py` states their variances.
        seed: of the projection and of the probes. None: their own, 0.
        out: a folder, such as "pool.zarr". Then one block of `block_examples` rows is in memory at a time (and the
            tokens of all examples), rows are stored scaled to norm 1 in `out_dtype`, and the same call goes on after an
            interruption.
        model, examples, objective, span, parameters, normalize, dtype, batch_tokens, mesh, allow_fresh_lora: as in
            `mean_gradient`.

    Returns:
        [N, K] fp32, NaN for an example that the span leaves out. With `out` the open store: `store.read("sketch",
        start, stop)` gives unit rows, and times "sketch_norm" they are the rows above; "status" is not 0 where an
        example was left out (`ntk_jax/selection/sketch_store.py` lists the arrays).

    Raises:
        UserError: as `mean_gradient`; dim is larger than the number of parameters differentiated; `out` was made by
            another model, from other examples or with other options (the differing one is named).

    Example:
        >>> import ntk_jax as nj
        >>> model = nj.load_model("builtin:model", lora=nj.LoRAConfig(rank=2))
        >>> nj.sketch(model, [{"prompt": "A cat", "response": "purrs"}], dim=64, allow_fresh_lora=True).shape
        (1, 64)
    """
    model = computing_in(model, dtype)
    if not allow_fresh_lora:
        refuse_fresh_lora(model, parameters)
    given = encoded(model, examples, span)
    layout = layout_for(given.longest, batch_tokens, mesh, packed=False)
    chosen = objective_of(objective, normalize, seed)
    projected = projection if isinstance(projection, Projection) else Projection(projection, dim)
    if seed is not None:
        projected = dataclasses.replace(projected, seed=seed)
    if out is None:
        return given.spread(sketches(model, given.kept, chosen, layout, projected, parameters=parameters))
    check_width(projected, split_parameters(model, parameters)[0])  # before anything is written
    which = span.which if isinstance(span, Span) else span
    facts = sketch_facts(model, chosen, projected, span=which, parameters=parameters, examples={"tokens": _hash(given)})
    rows = given.examples
    longest = longest_id(row.id for row in rows)
    store = create_sketches(
        out, len(rows), block_examples, dim=projected.dim, dtype=out_dtype, longest_id=longest, facts=facts
    )

    def compute(block: int, part: list[TokenRow | Dropped], progress: Progress) -> dict[str, np.ndarray]:
        encoded = [(row.id, row) for row in part]
        found = sketch_block(store, encoded, model, chosen, layout, projected, parameters=parameters, progress=progress)
        return {**found, "ordinal": np.arange(*store.block_range(block)), **account_of(part)}

    fill_blocks(store, lambda blocks: ((b, rows[slice(*store.block_range(b))]) for b in sorted(blocks)), compute)
    return store


def _hash(given: Encoded) -> str:
    """Of the tokens that are sketched, and of what is left out."""
    return hash_tree(
        [(row.id, row.ids, row.span) if isinstance(row, TokenRow) else (row.id, row.reason) for row in given.examples]
    )
