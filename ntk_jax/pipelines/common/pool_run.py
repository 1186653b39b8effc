"""What the runs that look at a domain and a pool have in common."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, TypeVar

from ntk_jax.data.packing import row_length_for
from ntk_jax.engine.stage import Job
from ntk_jax.kernels.rows import Layout, layout_for
from ntk_jax.pipelines.common.examples import Encoder, Examples, read_examples
from ntk_jax.pipelines.common.model import RunModel, run_model
from ntk_jax.pipelines.common.pool import Pool
from ntk_jax.pipelines.common.reading import reading_of, say_formats

R = TypeVar("R", bound="PoolRun")


@dataclass
class PoolRun:
    """The config, the job, the model, the domain and the pool of a run. What is dear is made once, when it is first
    asked for. config: with the sections model, lora, data, score, report and mesh, and a seed."""

    config: Any
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
        reading = reading_of(self.config, "data")
        say_formats(self.job.progress, "data.domain", data.domain, reading)
        return read_examples(
            self.encoder, "data.domain", data.domain, data.domain_limit, self.config.seed, reading=reading
        )

    @property
    def layout(self) -> Layout:
        """The shapes of every scoring step of this run."""
        return layout_for(self.config.model.max_length, self.config.score.batch_tokens, self.model.mesh)

    @property
    def row_length(self) -> int:
        """Positions of a packed row in training."""
        return row_length_for(self.config.model.max_length)


def pool_run(kind: type[R], config: Any, job: Job, model: RunModel | None = None) -> R:
    """The run of a config. model: instead of the config's."""
    data = config.data
    pool = Pool(
        data.pool, data.pool_limit, config.seed, config.report.group_by, job.progress, reading_of(config, "data")
    )
    return kind(config, job, model or run_model(config), pool)
