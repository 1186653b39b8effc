"""`ntk-jax diagnose`: fine-tunes on the domain from several LoRA seeds, keeps adapters on the way, and examines them.

Everything is written part by part, and a part that is there is not computed again:

| file                                | what                                                                |
|-------------------------------------|---------------------------------------------------------------------|
| trajectories/seed-S/step-T/         | the adapters, in PEFT format                                         |
| points/seed-S-step-T.npz            | one checkpoint's kernel and scores                                   |
| stability.json                      | all checkpoints against each other (`kernels/stability.py`)              |
| cross_output.json                   | signed cross-output cosines (`kernels/cross_output.py`)                  |
| prediction.json                     | which score predicts the measured loss drop (`prediction.py`) |
| worth/*.npz                         | the metagradient, and the losses after training on each subset       |
| worth/metagradient/                 | how far the metagradient is, until it is done                        |
| worth.json                          | what scores are worth (`worth.py`)                                  |
| audit.json                          | approximations against the exact kernel (`audit.py`)          |
| regression.json                     | kernel ridge regression against fine-tuning (`regression.py`) |
| figures/*.svg                       | what the report shows, to be used elsewhere                          |
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.sources import sample_indices
from ntk_jax.errors import UserError
from ntk_jax.evaluation.tasks import read_tasks
from ntk_jax.kernels.agreement import spearman
from ntk_jax.kernels.cross_output import cross_output_cosines
from ntk_jax.kernels.objectives import LABEL_AWARE, LINEAR, head_coherence
from ntk_jax.kernels.projections import Projection
from ntk_jax.kernels.stability import Checkpoint, Measured, compare, measure
from ntk_jax.models.head import head_matrix
from ntk_jax.models.lora import initial_lora
from ntk_jax.models.model import Model, computing_in, with_lora
from ntk_jax.models.peft import load_adapter_like, save_adapter
from ntk_jax.pipelines.common.arrays import load_arrays, save_arrays
from ntk_jax.pipelines.common.reading import reading_of
from ntk_jax.pipelines.common.training import check_training, train_config
from ntk_jax.pipelines.diagnose.audit import audit
from ntk_jax.pipelines.diagnose.config import DiagnoseConfig
from ntk_jax.pipelines.diagnose.figures import DIAGNOSES, figures
from ntk_jax.pipelines.diagnose.prediction import objectives_of, prediction
from ntk_jax.pipelines.diagnose.regression import regression
from ntk_jax.pipelines.diagnose.state import DiagnoseRun
from ntk_jax.pipelines.diagnose.worth import check_worth, check_worth_inputs, worth
from ntk_jax.report.figures_matrix import standalone
from ntk_jax.storage.atomic import make_folder, read_json, write_json, write_text
from ntk_jax.storage.reading import parse_json
from ntk_jax.training.checkpoints import discard_checkpoints
from ntk_jax.training.order import count_steps
from ntk_jax.training.train import train


def check(config: DiagnoseConfig) -> None:
    """Raises UserError for settings that cannot work together."""
    section, score = config.diagnose, config.score
    known = LINEAR + LABEL_AWARE
    if set(section.objectives) - set(known) or not section.objectives:
        raise UserError(f"diagnose.objectives = {list(section.objectives)}: choose from {', '.join(known)}")
    if section.top is not None and section.top > section.candidates:
        raise UserError(
            f"diagnose.top = {section.top} is larger than diagnose.candidates = {section.candidates}; lower it"
        )
    if score.span == "last" and set(section.objectives) & set(LABEL_AWARE):
        raise UserError(
            "score.span = last: the last position has no next token, which an objective of diagnose.objectives needs; "
            "use span response or all, or linear objectives"
        )
    if score.parameters != "lora" or score.direction != "mean_gradient":
        raise UserError(
            "diagnose looks at LoRA leaves along the domain's mean gradient; leave out score.parameters = "
            f"{score.parameters!r} and score.direction = {score.direction!r}"
        )
    if config.model.adapter and not section.adapters:
        raise UserError(
            "diagnose fine-tunes fresh adapters; leave model.adapter out and give their shape as lora.*, or name saved "
            "adapters in diagnose.adapters"
        )
    check_worth(config)
    if not section.adapters:
        check_training(config.warmup, "warmup", epochs=section.epochs, max_steps=None)
    if section.audit and config.model.quantization:
        raise UserError(
            f"diagnose.audit differentiates the frozen weights too, which model.quantization = "
            f"{config.model.quantization} makes 8-bit numbers; set diagnose.audit=false or leave model.quantization out"
        )
    if section.audit:
        for dim in section.audit_dims:
            Projection("rademacher", dim)


def check_inputs(run: DiagnoseRun, closing: bool) -> None:
    """Reads what would otherwise be found wrong after the fine-tunings. Raises UserError."""
    if len(run.domain.rows) < 2:
        raise UserError("data.domain: only one usable example; kernels are compared on at least two")
    run.pool_sample(run.config.diagnose.candidates)
    if run.config.evaluate.files:
        read_tasks(run.config.evaluate.files, reading=reading_of(run.config, "evaluate"))
    if run.config.diagnose.adapters:
        _given(run)
    check_worth_inputs(run)


def diagnose(run: DiagnoseRun, folder: Path) -> dict[str, Any]:
    """See the table above. The facts are the number of checkpoints and what was left out."""
    section = run.config.diagnose
    checkpoints = _given(run) if section.adapters else _trained(run, folder)
    # In fp32 whatever the run computes in: differences of nearby functions drown in the rounding of bf16.
    base = computing_in(run.model.base, "float32")
    report = _stability(run, folder, base, checkpoints)
    warm = with_lora(base, _warm(checkpoints).lora)
    ends = {checkpoint.trajectory: checkpoint for checkpoint in checkpoints}
    parts: dict[str, tuple[Any, Callable[[], dict[str, Any]]]] = {
        "cross_output": (section.cross_output, lambda: _cross_output(run, warm)),
        "prediction": (section.groups, lambda: prediction(run, folder, warm)),
        "regression": (
            section.regression,
            lambda: regression(run, base, checkpoints[0], warm, list(ends.values())),
        ),
        "worth": (section.worth_candidates, lambda: worth(run, folder, warm)),
        "audit": (section.audit, lambda: audit(run, folder, warm)),  # the dearest comes last
    }
    for name, (wanted, compute) in parts.items():
        _part(folder / f"{name}.json", compute if wanted else lambda: {"skipped": "switched off in the config"})
    found = {path.stem: read_json(path, dict) for path in sorted(folder.glob("*.json")) if path.stem in DIAGNOSES}
    for item in figures(found):
        write_text(make_folder(folder / "figures") / f"{item.key}.svg", standalone(item.drawing))
    return {"checkpoints": len(report["points"])}


def _part(path: Path, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """A result that is computed once."""
    if not path.exists():
        write_json(path, compute())
    found: dict[str, Any] = read_json(path, dict)
    return found


# -- checkpoints ---------------------------------------------------------------------------------------------------


def _given(run: DiagnoseRun) -> list[Checkpoint]:
    """The adapters that the config names, one trajectory in the given order."""
    assert run.model.base.lora_config is not None  # a run always has an adapter
    return [
        Checkpoint("given", number, load_adapter_like(path, run.model.base.config, run.model.base.lora_config))
        for number, path in enumerate(run.config.diagnose.adapters)
    ]


def _trained(run: DiagnoseRun, folder: Path) -> list[Checkpoint]:
    """Fine-tunings on the domain from fresh adapters of several seeds, of which the first is the run's own."""
    section, config = run.config.diagnose, run.model.base.lora_config
    assert config is not None  # a run always has an adapter
    rows = run.domain.rows
    settings = train_config(run.config.warmup, epochs=section.epochs, max_steps=None)
    total = count_steps(len(rows), settings)
    first = min(total, _warmup_steps(run, len(rows)))
    spread = np.round(np.geomspace(first, total, section.checkpoints)).astype(int)
    steps = sorted({*spread.tolist(), total})
    found = []
    for number in range(section.trajectories):
        seed = run.config.seed + number
        name, home = f"seed {seed}", folder / "trajectories" / f"seed-{seed}"
        fresh = initial_lora(run.model.base.lora, seed)
        places = {step: home / f"step-{step:06d}" for step in (0, *steps)}

        def keep(step: int, lora: Any, places: dict[int, Path] = places) -> None:
            save_adapter(places[step], lora, config, run.model.base.config, run.config.model.path)

        if not (places[total] / "adapter_config.json").exists():  # the last file of the last adapter
            keep(0, fresh)
            trained = train(
                with_lora(run.model.base, fresh),
                rows,
                settings,
                folder=make_folder(home),
                seed=seed,
                row_length=run.row_length,
                mesh=run.model.mesh,
                progress=run.job.progress(f"fine-tune {name}", total, "steps"),
                keep_steps=steps[:-1],
                keep=keep,
            )
            keep(total, trained.lora)
        discard_checkpoints(home)
        found += [
            Checkpoint(name, step, load_adapter_like(place, run.model.base.config, config))
            for step, place in places.items()
        ]
    return found


def _warmup_steps(run: DiagnoseRun, examples: int) -> int:
    """After how many steps the run itself would take its scores."""
    section = run.config.warmup
    return 1 if section.max_steps == 0 else count_steps(examples, train_config(section))


def _warm(checkpoints: list[Checkpoint]) -> Checkpoint:
    """The first one after the start: as many steps as a run's warm-up has, or the second of the given adapters."""
    return checkpoints[min(1, len(checkpoints) - 1)]


# -- stability -----------------------------------------------------------------------------------------------------


def _stability(run: DiagnoseRun, folder: Path, base: Model, checkpoints: list[Checkpoint]) -> dict[str, Any]:
    section = run.config.diagnose
    domain = run.scored_domain
    chosen = sample_indices(len(domain), section.examples, run.config.seed)
    rows = domain if chosen is None else [domain[i] for i in chosen]
    candidates = run.pool_sample(section.candidates)
    progress = run.job.progress("checkpoints", len(checkpoints), "checkpoints")
    measured: list[Measured] = []
    starts: dict[str, Model] = {}
    make_folder(folder / "points")
    for number, checkpoint in enumerate(checkpoints):
        here = with_lora(base, checkpoint.lora)
        start = starts.setdefault(checkpoint.trajectory, here)
        path = folder / "points" / f"{checkpoint.trajectory.replace(' ', '-')}-step-{checkpoint.step:06d}.npz"
        if not path.exists():
            one = measure(
                here,
                rows,
                kind=section.kernel,
                seed=run.config.seed,
                candidates=candidates,
                domain=domain,
                objectives=objectives_of(run),
                layout=run.layout,
                start=start,
                memory=section.memory,
            )
            _save_point(path, one)
        measured.append(_load_point(path))
        progress(number + 1, len(checkpoints))
    places = [(checkpoint.trajectory, checkpoint.step) for checkpoint in checkpoints]
    lengths = np.array([row.span.sum() for row in candidates])
    report = compare(places, measured, lengths, section.kernel, section.top or max(1, len(candidates) // 10))
    warm = min(1, len(checkpoints) - 1)
    found = report.to_dict() | {"warm": warm, "given": bool(section.adapters)}
    # Every objective's ranking against every other's, and against the length of the response.
    rankings = {name: scores[warm] for name, scores in report.scores.items()} | {"response length": lengths}
    found["rankings"] = {a: {b: spearman(x, y) for b, y in rankings.items()} for a, x in rankings.items()}
    write_json(folder / "stability.json", found)
    return found


def _save_point(path: Path, one: Measured) -> None:
    scores: dict[str, Any] = {f"scores/{name}": values for name, values in one.scores.items()}
    facts = json.dumps({"linearization": one.linearization, "outputs": one.outputs})
    save_arrays(path, kernel=one.kernel, pseudo=one.pseudo, facts=np.array(facts), **scores)


def _load_point(path: Path) -> Measured:
    arrays, remedy = load_arrays(path), "delete it and run again: only it is computed anew"
    scores = {name.partition("/")[2]: values for name, values in arrays.items() if name.startswith("scores/")}
    facts = parse_json(str(arrays["facts"]), str(path), remedy, dict)
    return Measured(
        arrays["kernel"], arrays["pseudo"], scores=scores, **{key: facts[key] for key in ("linearization", "outputs")}
    )


def _cross_output(run: DiagnoseRun, warm: Model) -> dict[str, Any]:
    section, rows = run.config.diagnose, run.scored_domain
    chosen = sample_indices(len(rows), section.cross_output, run.config.seed)
    rows = rows if chosen is None else [rows[i] for i in chosen]
    progress = run.job.progress("cross output", len(rows), "examples")
    found = cross_output_cosines(warm, rows, seed=run.config.seed, memory=section.memory, progress=progress)
    return {"rho": head_coherence(head_matrix(warm.base))} | found
