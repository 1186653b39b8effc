"""What the diagnosis is handed: the config, the job, the model, the domain and the pool."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.sources import source_hashes
from ntk_jax.engine.stage import Job
from ntk_jax.pipelines.common.inputs import folder_hashes, model_hashes
from ntk_jax.pipelines.common.pool_run import PoolRun, pool_run
from ntk_jax.pipelines.common.rankings import rankings_file
from ntk_jax.pipelines.common.reading import reading_of
from ntk_jax.pipelines.diagnose.config import DiagnoseConfig
from ntk_jax.storage.hashing import sha256_file


@dataclass
class DiagnoseRun(PoolRun):
    """A diagnosis."""

    config: DiagnoseConfig

    @functools.cached_property
    def scored_domain(self) -> list[TokenRow]:
        """The domain's rows with the span of `score`."""
        return self.encoder.encode(self.domain.records, self.config.score.span).rows

    def pool_sample(self, count: int) -> list[TokenRow]:
        """A seeded sample of the pool's usable examples."""
        return self.pool.sample(self.encoder, count, self.config.score.span).rows


def open_run(config: DiagnoseConfig, job: Job) -> DiagnoseRun:
    """The run of a config."""
    return pool_run(DiagnoseRun, config, job)


def input_hashes(config: DiagnoseConfig) -> dict[str, Any]:
    """How the SHA-256 of each kind of input is found."""
    return {
        "model": lambda: model_hashes(config.model),
        "adapters": lambda: folder_hashes(config.diagnose.adapters),
        "rankings": lambda: {place: sha256_file(rankings_file(place)) for place in config.diagnose.rankings},
        "domain": lambda: source_hashes(config.data.domain, reading_of(config, "data")),
        "pool": lambda: source_hashes(config.data.pool, reading_of(config, "data")),
        "evaluate": lambda: source_hashes(config.evaluate.files, reading_of(config, "evaluate")),
    }
