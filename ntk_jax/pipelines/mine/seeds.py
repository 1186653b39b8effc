"""The texts that stand for each domain: written by a language model, the user's own, or both, without duplicates."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ntk_jax.engine.clock import Clock
from ntk_jax.engine.stage import Facts
from ntk_jax.errors import UserError
from ntk_jax.mining.seeds.coverage import coverage
from ntk_jax.mining.seeds.dimensions import dimensions_of
from ntk_jax.mining.seeds.duplicates import drop_duplicates
from ntk_jax.mining.seeds.lexical import lexical
from ntk_jax.mining.seeds.own import seed_files, seeds_of_documents, seeds_of_keywords
from ntk_jax.mining.seeds.seed import Seed, read_file, write_file
from ntk_jax.mining.seeds.write import Seeds, write_seeds, write_topics
from ntk_jax.pipelines.mine.config import MineConfig, domain_names, writes_seeds
from ntk_jax.pipelines.mine.state import MineRun
from ntk_jax.storage.atomic import write_json, write_lines

FILE = "seeds.jsonl"
EVERY = "*"  # in seeds.files: records that name their domains themselves


def check(config: MineConfig) -> None:
    """Raises UserError: no seeds from anywhere, or own ones of a domain that there is not."""
    section, names = config.seeds, domain_names(config)
    dimensions_of(section.dimensions)
    files, words = seed_files(section.files or {}), section.keywords or {}
    for key, given in (("files", files), ("keywords", words)):
        for name in given:
            if name not in names and not (key == "files" and name == EVERY):
                raise UserError(f"seeds.{key}: there is no domain {name}; there are {', '.join(names)}")
    if not writes_seeds(config) and EVERY not in files:
        bare = [name for name in names if name not in files and name not in words]
        if bare:
            raise UserError(f"{bare[0]} has no seeds; set seeds.per_domain, or give seeds.files or seeds.keywords")


def seeds(run: MineRun, folder: Path) -> Facts:
    """Writes seeds.jsonl, rejected.jsonl (replies that were not usable and near-duplicates) and summary.json."""
    clock, section, config = Clock(run.job.folder, "seeds"), run.config.seeds, run.config
    own = own_seeds(config)
    written = _written(run, clock) if writes_seeds(config) else None
    found = [*own, *(written.seeds if written else [])]
    progress = clock.ticking(run.job.progress("embed seeds", len(found), "seeds"))
    vectors = run.embedder.embed(
        [seed.text for seed in found], kind="query", batch_tokens=config.embed.batch_tokens, progress=progress
    )
    _, kept, dropped = drop_duplicates(found, similarity=section.similarity, vectors=vectors, cosine=section.cosine)
    write_file(folder / FILE, kept)
    rejected = [*(written.rejected if written else []), *dropped]
    write_lines(folder / "rejected.jsonl", (json.dumps(one, ensure_ascii=False) for one in rejected))
    counts = {name: sum(name in seed.domains for seed in kept) for name in domain_names(config)}
    bare = [name for name, count in counts.items() if not count]
    if bare:
        raise UserError(f"{bare[0]}: no seed is left; see {folder / 'rejected.jsonl'}, or give seeds.files")
    summary = {
        "seeds": len(kept),
        "domains": counts,
        "origins": dict(Counter(str(seed.facts.get("origin")) for seed in kept)),
        "written": written.summary() if written else None,
        "writer": run.client.name if written else None,
        "duplicates": dict(Counter(one["reason"] for one in dropped)),
        "coverage": coverage(kept, domain_names(config), dimensions_of(section.dimensions), section.topics),
        "lexical": lexical([seed.text for seed in kept], seed=config.seed),
        "llm": run.spend() if written else None,
        "seconds": clock.seconds(),
    }
    write_json(folder / "summary.json", summary)
    return {"seeds": len(kept)}


def seeds_of(run: MineRun) -> list[Seed]:
    """The seeds that the stage wrote. Raises UserError: the file is damaged."""
    return read_file(run.job.folder / "seeds" / FILE, domain_names(run.config))


def own_seeds(config: MineConfig) -> list[Seed]:
    """The user's own. Raises UserError: a file or a list of words that cannot be read."""
    section, names = config.seeds, domain_names(config)
    found = []
    for name, files in seed_files(section.files or {}).items():
        domain = None if name == EVERY else name
        found += seeds_of_documents(files, domain, names, limit=section.own_limit, seed=config.seed)
    descriptions = {name: str(text) for name, text in (config.domains or {}).items()}
    return found + (seeds_of_keywords(section.keywords, descriptions) if section.keywords else [])


def _written(run: MineRun, clock: Clock) -> Seeds:
    section, config = run.config.seeds, run.config
    topics: Mapping[str, Any] | None = section.topics
    if topics is None and section.topics_per_domain:
        topics = write_topics(run.client, run.domains, per_domain=section.topics_per_domain, seed=config.seed)
    return write_seeds(
        run.client,
        run.domains,
        per_domain=section.per_domain,
        two_domain_share=section.two_domains if len(run.domains) > 1 else 0.0,
        dimensions=dimensions_of(section.dimensions),
        topics=topics,
        format=section.format,
        seed=config.seed,
        temperature=section.temperature,
        top_p=section.top_p,
        max_tokens=section.max_tokens,
        min_words=section.min_words,
        similarity=section.similarity,
        progress=clock.ticking(run.job.progress("seeds", None, "replies")),
    )
