"""What must be set before a run can begin."""

from __future__ import annotations

from typing import Any

from ntk_jax.errors import UserError
from ntk_jax.pipelines.common.reading import check_patterns, reading_of
from ntk_jax.pipelines.common.sections import ModelSection
from ntk_jax.pipelines.common.tensorboard import check_tensorboard


def check_model(section: ModelSection) -> None:
    """Raises UserError: no model is named."""
    if not section.path:
        raise UserError("model.path is not set; give a Hugging Face directory, a hub id, or builtin:model")


def check_model_and_data(config: Any) -> None:
    """Raises UserError: no model is named, or no files of the domain or of the pool are; formats and columns that mean
    nothing; or a package that the config asks for is not installed."""
    check_model(config.model)
    check_tensorboard(config)
    for key, files, remedy in (
        ("data.domain", config.data.domain, "give the file of the domain's examples"),
        ("data.pool", config.data.pool, "give the files of the general pool"),
    ):
        if not files:
            raise UserError(f"{key} is not set; {remedy}")
    check_patterns(reading_of(config, "data"), config.data.domain, config.data.pool)
    check_patterns(reading_of(config, "evaluate"), config.evaluate.files)
