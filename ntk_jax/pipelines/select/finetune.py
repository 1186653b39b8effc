"""One LoRA fine-tuning an arm, each from the same fresh adapter and with the same number of optimiser steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.formats import Reading
from ntk_jax.data.sources import read
from ntk_jax.engine.clock import Clock
from ntk_jax.engine.stage import Facts
from ntk_jax.errors import UserError
from ntk_jax.models.model import Model
from ntk_jax.models.peft import save_adapter
from ntk_jax.parallel import hosts
from ntk_jax.pipelines.common.examples import none_usable
from ntk_jax.pipelines.common.reading import reading_of
from ntk_jax.pipelines.common.tensorboard import followed
from ntk_jax.pipelines.common.training import check_training, train_config
from ntk_jax.pipelines.select import arms as arms_module
from ntk_jax.pipelines.select.arms import Arm, arms
from ntk_jax.pipelines.select.config import FinetuneSection, SelectConfig, repeat_seed
from ntk_jax.pipelines.select.state import SelectRun
from ntk_jax.storage.atomic import make_folder, write_json
from ntk_jax.training.blend import blend, domain_labels, phases_of
from ntk_jax.training.checkpoints import discard_checkpoints
from ntk_jax.training.order import count_steps
from ntk_jax.training.train import train


def check(config: SelectConfig) -> None:
    """Raises UserError for arms that do not exist, or settings that cannot be trained with."""
    arms_module.check(config)
    section = config.finetune
    check_training(section, "finetune")
    # The sets' sizes are not known here; with these, only the section itself can be refused.
    _check_mixture(section, (section.batch_size, section.batch_size), 2)


def check_inputs(run: SelectRun, closing: bool) -> None:
    """Raises UserError: the domain or the file of an arm cannot be read, or has no usable example; a training too short
    for the mixture. Where a proxy selects, by its tokens: the other model is not loaded before its turn."""
    section, sizes = run.config.finetune, (len(run.domain.rows), run.config.select.count)
    _check_mixture(section, sizes, count_steps(sum(sizes), train_config(section)))
    for arm in arms(run.config):
        if arm.file:
            _rows(run, arm)


def _check_mixture(section: FinetuneSection, sizes: tuple[int, int], steps: int) -> None:
    """Raises UserError as `phases_of`. sizes: of the domain and a selection."""
    try:
        phases_of(section.mixture, *sizes, section.batch_size, steps, section.domain_share, section.replay_share)
    except UserError as error:
        raise UserError(f"finetune.{error}") from None


def finetune(run: SelectRun, folder: Path) -> Facts:
    """Writes <arm>/adapter, <arm>/history.jsonl and <arm>/summary.json for every arm but `base`; an arm whose
    summary is there is not trained again."""
    run = run.target
    section, domain = run.config.finetune, run.domain.rows
    steps = count_steps(len(domain) + run.config.select.count, train_config(section))
    trained = [arm for arm in arms(run.config) if arm.trained]
    base = _start(run)
    for arm in trained:
        if not hosts.broadcast((folder / arm.name / "summary.json").exists):
            _train(run, arm, base, make_folder(folder / arm.name), steps)
    return {"arms": [arm.name for arm in trained]}


def _start(run: SelectRun) -> Model:
    """What every arm starts from: the model as it was loaded, in a repeat with another fresh adapter."""
    another = repeat_seed(run.config) != run.config.seed and not run.config.model.adapter
    return run.model.fresh(repeat_seed(run.config)) if another else run.model.base


def _train(run: SelectRun, arm: Arm, base: Model, place: Path, steps: int) -> None:
    name, seed = f"finetune/{arm.name}", repeat_seed(run.config)
    clock, domain = Clock(run.job.folder, name), run.domain.rows
    progress = clock.ticking(run.job.progress(f"finetune {arm.name}", steps, "steps"))
    (extra, dropped), section = _rows(run, arm), run.config.finetune
    settings = train_config(section, max_steps=steps)
    feed = blend(
        domain,
        extra,
        section.mixture,
        settings,
        steps=steps,
        seed=seed,
        row_length=run.row_length,
        domain_share=section.domain_share,
        replay_share=section.replay_share,
    )
    trained = train(
        base,
        feed,
        settings,
        folder=place,
        seed=seed,
        row_length=run.row_length,
        mesh=run.model.mesh,
        progress=followed(run.config, run.job.folder, name, progress),
    )
    assert base.lora_config is not None  # a run always has an adapter
    save_adapter(place / "adapter", trained.lora, base.lora_config, base.config, run.config.model.path)
    summary: dict[str, Any] = {
        "title": arm.title,
        "examples": len(domain) + len(extra),
        "dropped": dropped,
        "examples_seen": trained.examples,
        "steps": trained.steps,
        "tokens": trained.tokens,
        "label_tokens": trained.label_tokens,
        # Where the loss is a mean over label tokens, this is the domain's part of what is learnt.
        "domain_label_tokens": domain_labels(feed, domain),
        "mixture": section.mixture if extra else "domain alone",
        "loss": section.loss,
        "flops": trained.flops,
        "seconds": clock.seconds(),
        "final_loss": trained.history[-1]["loss"],
    }
    write_json(place / "summary.json", summary)
    discard_checkpoints(place)


def _rows(run: SelectRun, arm: Arm) -> tuple[list[TokenRow], dict[str, int]]:
    """(the pool examples an arm is trained on, in rank order, {reason: how many of those given cannot be used})."""
    if arm.file:
        path, reading = arm.file, reading_of(run.config, "data").for_patterns
    elif arm.method:
        path, reading = str(run.job.folder / "select" / f"{arm.method}.jsonl"), Reading("records")
    else:
        return [], {}
    found = run.encoder.encode(list(read(path, reading)))
    if not found.rows:
        raise none_usable("evaluate.arms", f"the examples of {path}", found.statistics)
    return found.rows, found.statistics.to_dict()["dropped"]
