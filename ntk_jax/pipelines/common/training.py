"""Settings of a training as the trainer takes them."""

from __future__ import annotations

import dataclasses
from typing import Any

from ntk_jax.pipelines.common.sections import TrainSection
from ntk_jax.training.optimizer import TrainConfig, check_config


def train_config(section: TrainSection, **changes: Any) -> TrainConfig:
    """The trainer's settings of a section, which may have more than these; changes: instead of the section's own."""
    names = [field.name for field in dataclasses.fields(TrainSection)]
    return TrainConfig(**{**{name: getattr(section, name) for name in names}, **changes})


def check_training(section: TrainSection, where: str, **changes: Any) -> None:
    """Raises UserError for settings that cannot be trained with. where: the section's name."""
    check_config(train_config(section, **changes), where)
