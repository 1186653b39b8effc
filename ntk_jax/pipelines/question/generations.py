"""The target of a further generation: the base model trained on all questions that were kept before, so that it is
asked anew about what it still does not understand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ntk_jax.data.records import check_record
from ntk_jax.engine.clock import Clock
from ntk_jax.models.model import Model
from ntk_jax.models.peft import save_adapter
from ntk_jax.pipelines.common.examples import Encoder, none_usable
from ntk_jax.pipelines.question.arms import as_trained
from ntk_jax.pipelines.question.state import QuestionRun
from ntk_jax.pipelines.question.train import row_length, settings_of
from ntk_jax.storage.atomic import make_folder
from ntk_jax.training.checkpoints import discard_checkpoints
from ntk_jax.training.train import train


def next_target(run: QuestionRun, folder: Path, kept: Sequence[dict[str, Any]], generation: int) -> tuple[Model, str]:
    """(the target of a generation, what tells its weights from others'). Its adapter is written once."""
    text = json.dumps([[one["prompt"], one["response"]] for one in kept])
    label = f"generation {generation} {hashlib.sha256(text.encode()).hexdigest()[:16]}"
    place = make_folder(folder / f"generation-{generation}" / "target")
    if not (place / "adapter" / "adapter_config.json").exists():
        base = run.model.base
        assert base.lora_config is not None
        records = [check_record(one, "kept") for one in as_trained(run, kept)]
        found = Encoder(run.model, run.config.model).encode(records)
        if not found.rows:
            raise none_usable("ask.generations", "the kept questions", found.statistics)
        settings = settings_of(run.config)
        clock = Clock(run.job.folder, f"ask/target-{generation}")
        progress = clock.ticking(run.job.progress(f"train the target of generation {generation}", None, "steps"))
        trained = train(
            base,
            found.rows,
            settings,
            folder=place,
            seed=run.config.seed,
            row_length=row_length(found.rows),
            mesh=run.model.mesh,
            progress=progress,
        )
        save_adapter(place / "adapter", trained.lora, base.lora_config, base.config, run.config.model.path)
        discard_checkpoints(place)
    return run.model.adapted(place / "adapter"), label
