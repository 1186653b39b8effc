"""What `ntk-jax doctor` checks of the config of a selection, beside its files."""

from __future__ import annotations

from collections.abc import Callable

from ntk_jax.data.sources import count_records
from ntk_jax.engine.doctor import Check, Doubt
from ntk_jax.errors import UserError
from ntk_jax.pipelines.common import doctor
from ntk_jax.pipelines.select.config import SelectConfig
from ntk_jax.pipelines.select.proxy import has_proxy, in_words, selecting_config, sentence


def checks(config: SelectConfig) -> list[Check]:
    """The model's and the data's, and whether so many can be selected."""
    return [*doctor.checks(config), *_proxy(config), ("select.count", lambda: _count(config))]


def _proxy(config: SelectConfig) -> list[Check]:
    """The same of the model that selects, and of what it reads."""
    if not has_proxy(config):
        return []
    found = [(name, check) for name, check in doctor.checks(selecting_config(config)) if name != "evaluate.files"]
    return [("proxy", lambda: sentence(config)), *((f"proxy, {name}", _in_words(check)) for name, check in found)]


def _in_words(check: Callable[[], str | Doubt]) -> Callable[[], str | Doubt]:
    def checked() -> str | Doubt:
        try:
            return check()
        except UserError as error:
            raise in_words(error) from None

    return checked


def _count(config: SelectConfig) -> str:
    pool = count_records(config.data.pool)
    pool = min(pool, config.data.pool_limit or pool)
    if config.select.count > pool:
        raise UserError(f"select.count = {config.select.count:,} of a pool of {pool:,}; lower it or add pool files")
    return f"{config.select.count:,} of {pool:,} ({100 * config.select.count / pool:.1f}%)"
