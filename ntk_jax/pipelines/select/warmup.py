"""The warm-up: LoRA fine-tuning on the domain, so that B is no longer 0 and gradients of A exist."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ntk_jax.engine.clock import Clock
from ntk_jax.models.peft import save_adapter
from ntk_jax.parallel import hosts
from ntk_jax.pipelines.common.arrays import save_tree
from ntk_jax.pipelines.common.tensorboard import followed
from ntk_jax.pipelines.common.training import check_training, train_config
from ntk_jax.pipelines.select.config import SelectConfig
from ntk_jax.pipelines.select.state import SelectRun
from ntk_jax.storage.atomic import read_json, write_json
from ntk_jax.training.checkpoints import discard_checkpoints
from ntk_jax.training.train import train


def check(config: SelectConfig) -> None:
    """Raises UserError for settings that cannot be trained with."""
    if config.warmup.max_steps != 0:
        check_training(config.warmup, "warmup")


def check_inputs(run: SelectRun, closing: bool) -> None:
    """Raises UserError: the domain cannot be read, or no example of it can be used."""
    _ = run.domain


def warmup(run: SelectRun, folder: Path) -> dict[str, Any]:
    """Writes adapter/, second_moment.safetensors, history.jsonl, data.json and summary.json. With warmup.max_steps = 0
    the starting adapter is taken as it is."""
    clock, base, section = Clock(run.job.folder, "warmup"), run.model.base, run.config.warmup
    facts = {"steps": 0, "flops": 0.0, "tokens": 0}
    if hosts.broadcast((folder / "summary.json").exists):  # only the manifest is missing
        summary = hosts.broadcast(lambda: read_json(folder / "summary.json", dict))
        return {key: summary[key] for key in facts}
    write_json(folder / "data.json", run.domain.account(base.tokenizer))
    lora = base.lora
    if section.max_steps != 0:
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
        )
        lora = trained.lora
        save_tree(folder / "second_moment.safetensors", trained.second_moment)
        facts = {"steps": trained.steps, "flops": trained.flops, "tokens": trained.tokens}
    assert base.lora_config is not None  # a run always has an adapter
    save_adapter(folder / "adapter", lora, base.lora_config, base.config, run.config.model.path)
    write_json(folder / "summary.json", {**facts, "seconds": clock.seconds()})
    discard_checkpoints(folder)  # they were there to go on from
    return facts
