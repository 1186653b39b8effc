"""Looking around in a corpus that a run has embedded: the chunks nearest to any text, again and again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from ntk_jax.engine.finished import require_done
from ntk_jax.engine.stage import Job
from ntk_jax.errors import UserError
from ntk_jax.mining.nearest import faiss_index, nearest
from ntk_jax.pipelines.mine import chunks
from ntk_jax.pipelines.mine.config import MineConfig
from ntk_jax.pipelines.mine.embed import CHUNKS, facts
from ntk_jax.pipelines.mine.state import open_run
from ntk_jax.storage.arrays import open_store

Look = Callable[[str, int], Iterator[tuple[float, dict[str, Any]]]]


def search(config: MineConfig, folder: Path, index: str) -> Look:
    """look(text, k) -> (cosine, chunk) of the k chunks nearest to a text, best first; a text is embedded as seeds are,
    and a chunk's vector is the mean of its windows. index: `exact` reads all vectors for every text, `faiss` makes an
    index of them once.

    Raises UserError: the corpus is not embedded yet, its embeddings were not kept or are of another encoder, or faiss
    is not installed.
    """
    require_done(folder, "embed")
    run = open_run(config, Job(folder, lambda *_: lambda *_: None))
    store = open_store(folder / "embed" / CHUNKS, facts(run))
    if "vectors" not in store.arrays:
        raise UserError(f"{folder}: no embeddings are kept (embed.keep = false); run it again with embed.keep = true")
    made = faiss_index(store) if index == "faiss" else None

    def look(text: str, k: int) -> Iterator[tuple[float, dict[str, Any]]]:
        query = run.embedder.embed([text], kind="query", batch_tokens=config.embed.batch_tokens)
        score, at = nearest(store, query, k, backend=index, index=made)
        there = at[0][at[0] >= 0]
        found = dict(zip(sorted(there.tolist()), chunks.read_chosen(run, sorted(there.tolist())), strict=True))
        for value, ordinal in zip(score[0], there.tolist(), strict=False):
            yield float(value), found[ordinal]

    return look
