"""The encoder of a run, as its section describes it."""

from __future__ import annotations

import jax

from ntk_jax.models.embedder import Embedder, load_embedder
from ntk_jax.pipelines.common.sections import EncoderSection


def load_encoder(section: EncoderSection, mesh: jax.sharding.Mesh | None = None) -> Embedder:
    """Raises UserError as `load_embedder`."""
    return load_embedder(
        section.path,
        pooling=section.pooling,
        normalize=section.normalize,
        query_prefix=section.query_prefix,
        passage_prefix=section.passage_prefix,
        max_tokens=section.max_tokens,
        dtype=section.dtype,
        mesh=mesh,
    )
