"""The target of a further generation: the base model trained on all questions that were kept before, so that it is
asked anew about what it still does not understand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ntk_jax.data.records import check_record
from ntk_jax.engine.clock import Clock
from ntk_jax.models.model import Model
from ntk_jax.pipelines.common.examples import Encoder, none_usable
from ntk_jax.pipelines.common.weights import FOLDERS, is_saved, start_of, trained_model
from ntk_jax.pipelines.question.arms import as_trained
from ntk_jax.pipelines.question.state import QuestionRun
from ntk_jax.pipelines.question.train import row_length, settings_of
from ntk_jax.storage.atomic import make_folder
from ntk_jax.storage.hashing import hash_model
from ntk_jax.training.checkpoints import discard_checkpoints
from ntk_jax.training.pretrain import save_pretrained
from ntk_jax.training.train import train


def next_target(run: QuestionRun, folder: Path, kept: Sequence[dict[str, Any]], generation: int) -> tuple[Model, str]:
    """(the target of a generation, what tells its weights from others'). What was trained is written once."""
    parameters, section = run.config.train.parameters, run.config.model
    place = make_folder(folder / f"generation-{generation}" / "target")
    if not is_saved(place, parameters):
        model = start_of(run.model, parameters)
        records = [check_record(one, "kept") for one in as_trained(run, kept)]
        found = Encoder(run.model, section).encode(records)
        if not found.rows:
            raise none_usable("ask.generations", "the kept questions", found.statistics)
        settings = settings_of(run.config)
        clock = Clock(run.job.folder, f"ask/target-{generation}")
        progress = clock.ticking(run.job.progress(f"train the target of generation {generation}", None, "steps"))
        trained = train(
            model,
            found.rows,
            settings,
            folder=place,
            seed=run.config.seed,
            row_length=row_length(found.rows),
            mesh=run.model.mesh,
            progress=progress,
            parameters=parameters,
        )
        save_pretrained(place, model, trained, parameters, section.path)
        discard_checkpoints(place)
    # By the weights themselves: other settings of the training make others of the same questions.
    label = f"generation {generation} {hash_model(place / FOLDERS[parameters])[:16]}"
    return trained_model(run.model, section, place, parameters), label
