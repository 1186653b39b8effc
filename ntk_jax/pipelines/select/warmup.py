"""The warm-up: LoRA fine-tuning on the domain, so that B is no longer 0 and gradients of A exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ntk_jax.engine.clock import Clock
from ntk_jax.errors import UserError
from ntk_jax.models.peft import save_adapter
from ntk_jax.parallel import hosts
from ntk_jax.pipelines.common.arrays import save_tree
from ntk_jax.pipelines.common.tensorboard import followed
from ntk_jax.pipelines.common.training import check_training, train_config
from ntk_jax.pipelines.select.config import SelectConfig, checkpoints_kept, keeps_checkpoints
from ntk_jax.pipelines.select.state import SelectRun
from ntk_jax.storage.atomic import make_folder, read_json, write_json
from ntk_jax.training.checkpoints import discard_checkpoints
from ntk_jax.training.order import count_steps
from ntk_jax.training.train import train

TRAJECTORY = "trajectory"  # the folder of what is kept on the way, for rankers that look at it


def kept_steps(config: SelectConfig, examples: int) -> tuple[int, ...]:
    """The steps of the warm-up, counted from 1, after which a checkpoint is kept: evenly spaced, the last one among
    them, which is the end of every epoch where there are as many. Raises UserError: fewer steps than checkpoints."""
    steps, kept = count_steps(examples, train_config(config.warmup)), checkpoints_kept(config)
    if kept > steps:
        raise UserError(
            f"select.less.checkpoints: {kept} checkpoints of a warm-up of {steps} steps; lower it, or warm up for more"
        )
    return tuple(-(-number * steps // kept) for number in range(1, kept + 1))


def trajectory_file(folder: Path, number: int) -> Path:
    """Checkpoint `number` (from 1) of a warm-up: its adapter and Adam's moments."""
    return folder / TRAJECTORY / f"{number}.safetensors"


def _keep(folder: Path, number: int, step: int, kept: Any) -> None:
    make_folder(folder / TRAJECTORY)
    save_tree(trajectory_file(folder, number), kept, {"step": str(step)})


def check(config: SelectConfig) -> None:
    """Raises UserError for settings that cannot be trained with."""
    if config.warmup.max_steps != 0:
        check_training(config.warmup, "warmup")


def check_inputs(run: SelectRun, closing: bool) -> None:
    """Raises UserError: the domain cannot be read, no example of it can be used, or more checkpoints are to be kept
    than there are steps."""
    rows = run.domain.rows
    if keeps_checkpoints(run.config) and run.config.warmup.max_steps != 0:
        kept_steps(run.config, len(rows))


def warmup(run: SelectRun, folder: Path) -> dict[str, Any]:
    """Writes adapter/, second_moment.safetensors, history.jsonl, data.json and summary.json, and
    trajectory/<number>.safetensors where a method looks at checkpoints. With warmup.max_steps = 0
    the starting adapter is taken as it is."""
    clock, base, section = Clock(run.job.folder, "warmup"), run.model.base, run.config.warmup
    facts = {"steps": 0, "flops": 0.0, "tokens": 0}
    if hosts.broadcast((folder / "summary.json").exists):  # only the manifest is missing
        summary = hosts.broadcast(lambda: read_json(folder / "summary.json", dict))
        return {key: summary[key] for key in facts}
    write_json(folder / "data.json", run.domain.account(base.tokenizer))
    lora = base.lora
    if section.max_steps != 0:
        steps = kept_steps(run.config, len(run.domain.rows)) if keeps_checkpoints(run.config) else ()
        trained = train(
            base,
            run.domain.rows,
            train_config(section),
            folder=folder,
            seed=run.config.seed,
            row_length=run.row_length,
            mesh=run.model.mesh,
            progress=followed(
                run.config, run.job.folder, "warmup", clock.ticking(run.job.progress("warmup", None, "steps"))
            ),
            keep_steps=steps,
            keep=lambda step, kept: _keep(folder, steps.index(step) + 1, step, kept) if steps else None,
            keep_moments=bool(steps),
        )
        lora = trained.lora
        save_tree(folder / "second_moment.safetensors", trained.second_moment)
        facts = {"steps": trained.steps, "flops": trained.flops, "tokens": trained.tokens}
    assert base.lora_config is not None  # a run always has an adapter
    save_adapter(folder / "adapter", lora, base.lora_config, base.config, run.config.model.path)
    write_json(folder / "summary.json", {**facts, "seconds": clock.seconds()})
    discard_checkpoints(folder)  # they were there to go on from
    return facts
