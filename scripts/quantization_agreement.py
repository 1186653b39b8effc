"""Do 8-bit weights rank a real pool as the weights themselves do? Scores a run's pool with and without quantization.

    python scripts/quantization_agreement.py configs/diagnose_llama7m.yaml data.domain_limit=100 --candidates 500
    python scripts/quantization_agreement.py configs/quickstart.yaml --adapter runs/quickstart/warmup/adapter

The config names model, domain and pool, and the warm-up that makes the adapter, once and on plain weights: all rankings
are along the same adapter, by its own mean gradient of the domain. With `--warm-up each` every kind of weights has an
adapter trained on it instead, as in a run of its own. Nothing here says anything about speed.
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
from pathlib import Path
from typing import Any

import jax
import measurement as ms
import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.engine.config import load_config
from ntk_jax.engine.stage import Job
from ntk_jax.errors import UserError
from ntk_jax.kernels.direction import mean_gradient
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.score import directional_scores
from ntk_jax.models.model import Model, computing_in, load_model, with_lora
from ntk_jax.models.peft import load_adapter
from ntk_jax.models.quantization import LARGEST
from ntk_jax.pipelines import all_pipelines
from ntk_jax.pipelines.common.training import train_config
from ntk_jax.pipelines.diagnose.config import DiagnoseConfig
from ntk_jax.pipelines.diagnose.state import DiagnoseRun, open_run
from ntk_jax.training.train import train

OBJECTIVES = ("sum_logits", "cross_entropy")
# What is compared with float32: kind of quantization, compute dtype.
HELD: dict[str, tuple[str | None, str]] = {
    "bfloat16": (None, "bfloat16"),
    **{f"{kind}, {dtype}": (kind, dtype) for kind in LARGEST for dtype in ("float32", "bfloat16")},
}


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    arguments.add_argument("config", type=Path)
    arguments.add_argument("overrides", nargs="*", help="section.key=value, as of ntk-jax")
    arguments.add_argument("--candidates", type=int, default=2000, help="examples of the pool that are scored")
    arguments.add_argument("--adapter", help="a PEFT folder to take instead of a warm-up")
    arguments.add_argument("--warm-up", choices=("shared", "each"), default="shared", help="on which weights")
    arguments.add_argument("--out", type=Path, help="file for the JSON")
    options = arguments.parse_args()
    if options.adapter and options.warm_up == "each":
        raise UserError("--adapter is one adapter for all; leave out --warm-up each")
    about = ms.environment()
    ms.print_environment(about)
    config = config_of(options.config, options.overrides)
    if config.model.quantization:
        raise UserError("model.quantization is what is compared here; leave it out of the config")
    run = open_run(config, Job(Path(config.out), lambda *_: lambda *_: None))
    exact = computing_in(run.model.base, "float32")
    rows = run.pool_sample(options.candidates)
    domain = run.domain.rows
    print(f"{config.model.path}: {len(domain)} domain examples, {len(rows)} of the pool", flush=True)

    plain = adapted(run, exact, domain, options)
    print("the adapter is there", flush=True)
    reference = {name: scores_of(run, plain, domain, rows, name) for name in OBJECTIVES}
    print("scored with float32", flush=True)
    figures: dict[str, Any] = {"benchmark": "quantization", **about, "model": config.model.path, "seed": config.seed}
    figures |= {"domain": len(domain), "candidates": len(rows), "warm_up": options.adapter or options.warm_up}
    figures |= {"bytes": weight_bytes(plain), "held": {}}
    table: list[dict[str, Any]] = []
    for name, (kind, dtype) in HELD.items():
        own = load_model(
            config.model.path, lora=plain.lora_config, dtype=dtype, quantization=kind, seed=config.seed, tokenizer=False
        )
        each = options.warm_up == "each"
        model = adapted(run, own, domain, options) if each else with_lora(own, plain.lora)
        found = {
            objective: ms.agreement(scores_of(run, model, domain, rows, objective), reference[objective])
            for objective in OBJECTIVES
        }
        print(f"scored with {name}", flush=True)
        figures["held"][name] = {"bytes": weight_bytes(model), **found}
        table.append({"weights": name, "bytes": weight_bytes(model)})
        for objective, values in found.items():
            short = {"spearman": "Spearman", "top_tenth_overlap": "top tenth", "relative_error": "relative error"}
            table[-1] |= {f"{objective}: {short[key]}": value for key, value in values.items()}
    print(f"float32 weights: {weight_bytes(plain):,} bytes")
    ms.print_table("Scores with other weights, and computed in another dtype, against those in float32", table)
    ms.finish(figures, options.out)


def config_of(path: Path, overrides: list[str]) -> DiagnoseConfig:
    """Model, domain, pool and warm-up as a diagnosis has them; sections of other pipelines may stand in the file."""
    others = [each.config.resolve() for each in all_pipelines() if each.name != "diagnose"]
    config: DiagnoseConfig = load_config(path, DiagnoseConfig, overrides, others)
    return config


def adapted(run: DiagnoseRun, model: Model, domain: list[TokenRow], options: argparse.Namespace) -> Model:
    """The model with the adapter given, or with one from the config's warm-up, trained on this model's own weights."""
    if options.adapter:
        lora, config = load_adapter(options.adapter, model.config)
        if config != model.lora_config:
            raise UserError(f"--adapter {options.adapter} is {config}, the config's lora section says otherwise")
        return with_lora(model, lora)
    with tempfile.TemporaryDirectory() as folder:
        settings = train_config(run.config.warmup)
        trained = train(model, domain, settings, folder=Path(folder), seed=run.config.seed, row_length=run.row_length)
        return with_lora(model, trained.lora)


def scores_of(
    run: DiagnoseRun, model: Model, domain: list[TokenRow], rows: list[TokenRow], objective: str
) -> np.ndarray:
    """[N] fp32: each row's mean kernel with the domain, direction and scores with this model's weights."""
    goal = Objective(objective)
    layout = dataclasses.replace(run.layout, mesh=None)
    with jax.default_matmul_precision("highest" if str(model.dtype) == "float32" else "default"):
        return directional_scores(model, rows, mean_gradient(model, domain, goal, layout), goal, layout).values


def weight_bytes(model: Model) -> int:
    """Bytes of the frozen weights, embedding and head included."""
    return sum(leaf.nbytes for leaf in jax.tree.leaves(model.base))


if __name__ == "__main__":
    ms.command_line(main)
