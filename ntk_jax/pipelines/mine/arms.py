"""The arms of continual pre-training: the same number of tokens, taken from the corpus in different orders.

| arm                | its chunks, first to last                                     | why                             |
|--------------------|---------------------------------------------------------------|---------------------------------|
| `general`          | none: general text only                                       | what more training alone does   |
| `random`           | a seeded draw of the corpus                                   | what the corpus alone does      |
| `retrieval`        | by the cosine of the best seed                                | neighbours without a classifier |
| `dsir`             | importance resampling of n-grams towards the seeds            | arXiv 2302.03169                |
| `seeds_classifier` | by a classifier of the seeds themselves against random chunks | the paper proposes to try it    |
| `autods`           | by the model's own yes or no about each chunk                 | arXiv 2402.07625                |
| `dopamine`         | what the classifier took, most probable first                 | arXiv 2410.00260                |

Of several domains the best of each come in turn, for their scores have no common scale; DSIR has one target, all seeds.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.engine.blocks import Progress, fill_blocks
from ntk_jax.engine.stage import Facts
from ntk_jax.errors import UserError
from ntk_jax.mining.autods import QUESTION, yes_log_odds
from ntk_jax.mining.classifier import train_head
from ntk_jax.mining.labels import background, labels_of
from ntk_jax.mining.turns import in_turn
from ntk_jax.pipelines.common.checks import check_model
from ntk_jax.pipelines.common.examples import rendering_of
from ntk_jax.pipelines.mine import chunks
from ntk_jax.pipelines.mine.classify import taken
from ntk_jax.pipelines.mine.config import MineConfig, domain_names, mined_names
from ntk_jax.pipelines.mine.embed import best_scores, chosen_embeddings, embeddings
from ntk_jax.pipelines.mine.pretrain import GENERAL, ArmTexts, check_files, check_pretraining, check_row, pretrain_arms
from ntk_jax.pipelines.mine.seeds import seeds_of
from ntk_jax.pipelines.mine.state import MineRun
from ntk_jax.selection.dsir import gumbel, importance
from ntk_jax.storage.arrays import create, read

BLOCK = 4096  # chunks read at once
NEGATIVES = 10  # random chunks for each seed of the classifier of seeds
ODDS = "autods.zarr"  # [N, M] log odds of yes
ODDS_BLOCK = 512  # chunks that a kill loses at most
OWN = "dopamine"  # the arm of what was mined
TITLES = {
    "general": "general text only",
    "random": "random documents",
    "retrieval": "nearest to the seeds",
    "dsir": "DSIR",
    "seeds_classifier": "classifier of the seeds",
    "autods": "AutoDS",
    "dopamine": "DoPAMine",
}


def check(config: MineConfig) -> None:
    """Raises UserError: an arm that there is not, or that is there twice, or settings that cannot be trained with."""
    check_model(config.model)
    names = config.pretrain.arms
    for name in names:
        if name not in TITLES:
            raise UserError(f"pretrain.arms: there is no arm {name}; choose from {', '.join(TITLES)}")
    if not names or len(set(names)) < len(names):
        raise UserError(f"pretrain.arms = {list(names)}: give at least one arm, each once")
    check_pretraining(config.pretrain, config.model.quantization)


def check_inputs(run: MineRun, closing: bool) -> None:
    """Raises UserError: a file of replayed or held-out text cannot be read, or a row is longer than the model takes."""
    check_files(run.config.pretrain)
    check_row(run)


def pretrain(run: MineRun, folder: Path) -> Facts:
    """Trains and measures every arm; see `pretrain_arms`."""
    return pretrain_arms(run, folder, arms_of(run), functools.partial(replayed, run))


def arms_of(run: MineRun) -> list[ArmTexts]:
    """The arms of a run, in the config's order."""
    return [
        ArmTexts(name, TITLES[name], None if name == GENERAL else functools.partial(texts_of, run, name))
        for name in run.config.pretrain.arms
    ]


def chunks_of(run: MineRun, arm: str) -> np.ndarray:
    """[n] int64 ordinals of the arm's chunks in the order in which they are taken; none for `general`."""
    return _ORDERS[arm](run)


def texts_of(run: MineRun, arm: str) -> Iterator[tuple[str, str]]:
    """(id, text) of the arm's chunks in their order, read a block at a time."""
    return _texts(run, chunks_of(run, arm))


def replayed(run: MineRun) -> Iterator[tuple[str, str]]:
    """The same of a random draw of the corpus from its other end: what the arm `random` takes is not in it, unless both
    together read the whole corpus."""
    return _texts(run, _random(run)[::-1])


def _texts(run: MineRun, places: np.ndarray) -> Iterator[tuple[str, str]]:
    for start in range(0, len(places), BLOCK):
        part = places[start : start + BLOCK]
        order = np.argsort(part, kind="stable")
        found: list[tuple[str, str]] = [("", "")] * len(part)
        for place, chunk in zip(order, chunks.read_chosen(run, part[order]), strict=True):
            found[place] = (chunk["id"], chunk["text"])
        yield from found


def _random(run: MineRun) -> np.ndarray:
    return np.random.default_rng([run.config.seed, 0xA2]).permutation(chunks.count(run))


def _retrieval(run: MineRun) -> np.ndarray:
    return in_turn(best_scores(run)[0][:, : len(mined_names(run.config))])


def _dsir(run: MineRun) -> np.ndarray:
    total, mined = chunks.count(run), set(mined_names(run.config))
    weights = importance((seed.text for seed in seeds_of(run) if mined & set(seed.domains)), chunks.texts(run))
    return _descending(weights.scores(chunks.texts(run)) + gumbel(total, run.config.seed))


def _seeds_classifier(run: MineRun) -> np.ndarray:
    seeds, domains, total = seeds_of(run), domain_names(run.config), chunks.count(run)
    mine = run.embedder.embed([s.text for s in seeds], kind="passage", batch_tokens=run.config.embed.batch_tokens)
    others, zeros = background(total, len(domains), np.zeros(0, np.int64), NEGATIVES * len(seeds), run.config.seed)
    vectors = np.concatenate([mine, chosen_embeddings(run, others)])
    labels = np.concatenate([labels_of([seed.domains for seed in seeds], domains), zeros])
    mined = len(mined_names(run.config))
    head = train_head(vectors, labels, domains, seed=run.config.seed)
    parts = [
        head.probabilities(embeddings(run, start, min(start + BLOCK, total)))[:, :mined]
        for start in range(0, total, BLOCK)
    ]
    return in_turn(np.concatenate(parts))


def _autods(run: MineRun) -> np.ndarray:
    """By the odds, domains in turn. A block that is scored is kept: the model reads the corpus once."""
    config, model, total = run.config, run.model.base, chunks.count(run)
    asked = {name: run.domains[name] for name in mined_names(config)}
    facts = {"question": QUESTION, "domains": asked, "max_length": config.model.max_length}
    arrays = {"odds": ((len(asked),), np.float32)}
    store = create(run.job.folder / "pretrain" / ODDS, arrays, total, ODDS_BLOCK, facts)
    options: dict[str, Any] = {
        "max_length": config.model.max_length,
        "rendering": rendering_of(config.model),
        "batch_tokens": config.pretrain.tokens_per_microbatch,
        "mesh": run.model.mesh,
    }

    def compute(block: int, items: list[str], progress: Progress) -> dict[str, np.ndarray]:
        odds = [yes_log_odds(model, items, name, text, **options) for name, text in asked.items()]
        return {"odds": np.stack(odds, axis=1)}

    texts = functools.partial(chunks.texts_of_blocks, run, store)
    fill_blocks(store, texts, compute, progress=run.job.progress("ask about chunks", total, "chunks"))
    return in_turn(read(store, "odds"))


def _descending(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores, kind="stable")


_ORDERS: dict[str, Callable[[MineRun], np.ndarray]] = {
    "general": lambda run: np.zeros(0, np.int64),
    "random": _random,
    "retrieval": _retrieval,
    "dsir": _dsir,
    "seeds_classifier": _seeds_classifier,
    "autods": _autods,
    "dopamine": lambda run: taken(run)[0],
}
