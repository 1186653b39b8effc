"""What the diagnosis is handed: the config, the job, the model, the domain and the pool."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.packing import row_length_for
from ntk_jax.data.sources import source_hashes
from ntk_jax.engine.stage import Job
from ntk_jax.kernels.rows import Layout, layout_for
from ntk_jax.pipelines.common.examples import Encoder, Examples, read_examples
from ntk_jax.pipelines.common.inputs import folder_hashes, model_hashes
from ntk_jax.pipelines.common.model import RunModel, run_model
from ntk_jax.pipelines.common.pool import Pool
from ntk_jax.pipelines.diagnose.config import DiagnoseConfig


@dataclass
class DiagnoseRun:
    """A diagnosis. What is dear is made once, when it is first asked for."""

    config: DiagnoseConfig
    job: Job
    model: RunModel
    pool: Pool

    @functools.cached_property
    def encoder(self) -> Encoder:
        """Records to token rows."""
        return Encoder(self.model, self.config.model)

    @functools.cached_property
    def domain(self) -> Examples:
        """The domain set, sampled by the seed."""
        data = self.config.data
        return read_examples(self.encoder, "data.domain", data.domain, data.domain_limit, self.config.seed)

    @functools.cached_property
    def scored_domain(self) -> list[TokenRow]:
        """The domain's rows with the span of `score`."""
        return self.encoder.encode(self.domain.records, self.config.score.span).rows

    def pool_sample(self, count: int) -> list[TokenRow]:
        """A seeded sample of the pool's usable examples."""
        return self.pool.sample(self.encoder, count, self.config.score.span).rows

    @property
    def layout(self) -> Layout:
        """The shapes of every scoring step."""
        return layout_for(self.config.model.max_length, self.config.score.batch_tokens, self.model.mesh)

    @property
    def row_length(self) -> int:
        """Positions of a packed row in training."""
        return row_length_for(self.config.model.max_length)


def open_run(config: DiagnoseConfig, job: Job) -> DiagnoseRun:
    """The run of a config."""
    data = config.data
    pool = Pool(data.pool, data.pool_limit, config.seed, config.report.group_by, job.progress)
    return DiagnoseRun(config, job, run_model(config), pool)


def input_hashes(config: DiagnoseConfig) -> dict[str, Any]:
    """How the SHA-256 of each kind of input is found."""
    return {
        "model": lambda: model_hashes(config.model),
        "adapters": lambda: folder_hashes(config.diagnose.adapters),
        "domain": lambda: source_hashes(config.data.domain),
        "pool": lambda: source_hashes(config.data.pool),
        "evaluate": lambda: source_hashes(config.evaluate.files) if config.evaluate.files else {},
    }
