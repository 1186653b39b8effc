"""What `ntk-jax doctor` checks of the config of a selection, beside its files."""

from __future__ import annotations

from ntk_jax.data.sources import count_records
from ntk_jax.engine.doctor import Check
from ntk_jax.errors import UserError
from ntk_jax.pipelines.common import doctor
from ntk_jax.pipelines.select.config import SelectConfig


def checks(config: SelectConfig) -> list[Check]:
    """The model's and the data's, and whether so many can be selected."""
    return [*doctor.checks(config), ("select.count", lambda: _count(config))]


def _count(config: SelectConfig) -> str:
    pool = count_records(config.data.pool)
    pool = min(pool, config.data.pool_limit or pool)
    if config.select.count > pool:
        raise UserError(f"select.count = {config.select.count:,} of a pool of {pool:,}; lower it or add pool files")
    return f"{config.select.count:,} of {pool:,} ({100 * config.select.count / pool:.1f}%)"
