"""Every chunk's embedding and its nearest seeds, in one pass over the corpus: nothing of its size is ever in memory."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.engine.blocks import Progress, fill_blocks
from ntk_jax.engine.clock import Clock
from ntk_jax.mining.search import best_of_block, merge_top
from ntk_jax.mining.seed_layout import lay_out
from ntk_jax.mining.seeds.lexical import compare_lexical
from ntk_jax.mining.seeds.seed import Seed, domain_matrix
from ntk_jax.pipelines.mine import chunks
from ntk_jax.pipelines.mine.config import domain_names
from ntk_jax.pipelines.mine.seeds import seeds_of
from ntk_jax.pipelines.mine.state import MineRun
from ntk_jax.storage.arrays import create, open_store, read, write_block
from ntk_jax.storage.atomic import write_json

CHUNKS, NEAREST = "chunks.zarr", "nearest.zarr"
LEXICAL = 500  # chunks of the corpus whose words are looked at
HITS = 3  # chunks shown of a seed in the report
SHOWN = 400  # characters of a text in the report


def check_inputs(run: MineRun, closing: bool) -> None:
    """Raises UserError: a store of another encoder lies there."""
    place = run.job.folder / "embed" / CHUNKS
    if place.exists():
        open_store(place, facts(run))


def embed(run: MineRun, folder: Path) -> dict[str, Any] | None:
    """Writes chunks.zarr (best [N, M], best_seed [N, M] and, where embed.keep, vectors [N, D]) and
    nearest.zarr (a block's top_score and top_chunk [S, K]), and summary.json. None when only a shard of the blocks was
    computed."""
    clock, section, domains = Clock(run.job.folder, "embed"), run.config.embed, domain_names(run.config)
    seeds = seeds_of(run)
    vectors = _seed_vectors(run, seeds)
    total, size = chunks.count(run), section.block_chunks
    top = min(section.neighbours, total)
    options: dict[str, Any] = {"top": top, "combine": section.combine, "dtype": run.config.encoder.dtype}
    arrays: dict[str, Any] = {
        "best": ((len(domains),), np.float32),
        "best_seed": ((len(domains),), np.int32),
        "windows": ((), np.int32),
    }
    if section.keep:
        arrays["vectors"] = ((run.embedder.dim,), np.float16)
    store = create(folder / CHUNKS, arrays, total, size, facts(run))
    kept = {"top_score": ((len(seeds), top), np.float32), "top_chunk": ((len(seeds), top), np.int64)}
    nearest = create(folder / NEAREST, kept, store.blocks, 1)
    laid = lay_out(vectors, domain_matrix(seeds, domains))

    def compute(block: int, items: list[str], progress: Progress) -> dict[str, np.ndarray]:
        start, stop = store.block_range(block)
        windows, owner = run.embedder.embed_windows(
            items, kind="passage", batch_tokens=section.batch_tokens, progress=progress
        )
        found = best_of_block(windows, owner, stop - start, laid, first=start, **options)
        # Before the block is marked as done, so that a done block has both.
        write_block(nearest, block, {"top_score": found.top_score[None], "top_chunk": found.top_chunk[None]})
        arrays = {
            "best": found.best,
            "best_seed": found.best_seed,
            "windows": np.bincount(owner, minlength=stop - start),
        }
        return arrays | ({"vectors": mean_vectors(windows, owner, stop - start)} if section.keep else {})

    fill_blocks(
        store,
        functools.partial(chunks.texts_of_blocks, run, store),
        compute,
        shard=run.job.shard,
        progress=clock.ticking(run.job.progress("embed", total, "chunks")),
    )
    if run.job.shard is not None:
        return None
    summary = {
        "encoder": run.embedder.name,
        "dim": run.embedder.dim,
        "max_tokens": run.embedder.max_tokens,
        "note": run.embedder.note,
        "facts": dict(run.embedder.facts),
        "combine": section.combine,
        "chunks": total,
        "windows": int(read(store, "windows").sum()),
        "seeds": len(seeds),
        "neighbours": top,
        "lexical": _lexical(run, [seed.text for seed in seeds], total),
        "nearest": _nearest(run, seeds),
        "seconds": clock.seconds(),
    }
    write_json(folder / "summary.json", summary)
    return {"chunks": total}


def best_scores(run: MineRun) -> tuple[np.ndarray, np.ndarray]:
    """(best [N, M] fp32, best_seed [N, M] int32) of the whole corpus."""
    store = open_store(run.job.folder / "embed" / CHUNKS)
    return read(store, "best"), read(store, "best_seed")


def nearest_chunks(run: MineRun) -> tuple[np.ndarray, np.ndarray]:
    """(score [S, K], chunk [S, K]) of the nearest chunks of every seed, best first, merged block by block."""
    store = open_store(run.job.folder / "embed" / NEAREST)
    found: tuple[np.ndarray, np.ndarray] | None = None
    for block in range(store.blocks):
        part = (store.read("top_score", block, block + 1)[0], store.read("top_chunk", block, block + 1)[0])
        found = part if found is None else merge_top(found, part)
    assert found is not None  # a corpus without chunks was refused
    return found


def embeddings(run: MineRun, start: int, stop: int) -> np.ndarray:
    """[n, D] fp32 of the chunks [start, stop): from the store, or where none are kept embedded again."""
    store = open_store(run.job.folder / "embed" / CHUNKS)
    if "vectors" in store.arrays:
        return np.asarray(read(store, "vectors", start, stop), np.float32)
    texts = [chunk["text"] for chunk in chunks.read_range(run, start, stop)]
    windows, owner = run.embedder.embed_windows(texts, kind="passage", batch_tokens=run.config.embed.batch_tokens)
    # Rounded as the store would have rounded them: keeping them decides nothing but the time.
    return mean_vectors(windows, owner, stop - start).astype(np.float32)


def mean_vectors(windows: np.ndarray, owner: np.ndarray, count: int) -> np.ndarray:
    """[n, D] fp16: the mean of each chunk's windows [W, D], to unit length."""
    total = np.zeros((count, windows.shape[1]), np.float32)
    np.add.at(total, owner, windows)
    return (total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)).astype(np.float16)


def chosen_embeddings(run: MineRun, ordinals: Iterable[int]) -> np.ndarray:
    """[n, D] fp32 of these ascending chunks, block by block."""
    wanted = np.asarray(list(ordinals), np.int64)
    store = open_store(run.job.folder / "embed" / CHUNKS)
    parts = [np.zeros((0, run.embedder.dim), np.float32)]
    for block in range(store.blocks):
        start, stop = store.block_range(block)
        here = wanted[(wanted >= start) & (wanted < stop)] - start
        if len(here):
            parts.append(embeddings(run, start, stop)[here])
    return np.concatenate(parts)


def facts(run: MineRun) -> dict[str, Any]:
    """What made the embeddings: those of others are refused."""
    return {"encoder": dict(run.embedder.facts), "domains": list(domain_names(run.config))}


def _seed_vectors(run: MineRun, seeds: list[Seed]) -> np.ndarray:
    """[S, D] fp32."""
    return run.embedder.embed(
        [seed.text for seed in seeds],
        kind="query",
        batch_tokens=run.config.embed.batch_tokens,
        progress=run.job.progress("embed seeds", len(seeds), "seeds"),
    )


def _lexical(run: MineRun, seeds: list[str], total: int) -> dict[str, Any]:
    """The seeds' vocabulary and readability beside those of a sample of the corpus."""
    places = np.sort(np.random.default_rng([run.config.seed, 0xE3]).permutation(total)[:LEXICAL])
    corpus = [chunk["text"] for chunk in chunks.read_chosen(run, places)]
    return compare_lexical({"seeds": seeds, "corpus": corpus}, seed=run.config.seed)


def _nearest(run: MineRun, seeds: list[Seed]) -> list[dict[str, Any]]:
    """The first seeds of each domain with their nearest chunks, for the report."""
    domains, most = domain_names(run.config), run.config.report.examples
    shown = [place for name in domains for place, seed in enumerate(seeds) if name in seed.domains]
    of_each = {name: 0 for name in domains}
    places = []
    for place in dict.fromkeys(shown):
        name = seeds[place].domains[0]
        of_each[name] += 1
        if of_each[name] <= most:
            places.append(place)
    score, chunk = nearest_chunks(run)
    score, chunk = score[places][:, :HITS], chunk[places][:, :HITS]
    wanted = np.unique(chunk[chunk >= 0])
    texts = dict(zip(wanted.tolist(), chunks.read_chosen(run, wanted), strict=True))
    found = []
    for row, place in enumerate(places):
        hits = [
            {"score": float(value), **_shown(texts[int(ordinal)])}
            for value, ordinal in zip(score[row], chunk[row], strict=True)
            if ordinal >= 0
        ]
        seed = seeds[place]
        facts = {key: seed.facts[key] for key in ("type", "origin") if key in seed.facts}
        found.append({"id": seed.id, "domains": list(seed.domains), "text": seed.text[:SHOWN], **facts, "hits": hits})
    return found


def _shown(chunk: dict[str, Any]) -> dict[str, Any]:
    return {"source": chunk["source"], "title": chunk["title"], "text": chunk["text"][:SHOWN]}
