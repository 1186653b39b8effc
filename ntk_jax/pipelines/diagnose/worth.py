"""What scores are worth: each against the derivative of the held-out loss through a whole fine-tuning, and against the
losses after fine-tuning on random subsets.

Candidates are a seeded sample of the pool, or of what the compared runs selected. From the warm adapter, or a fresh
one, the model is fine-tuned on them beside domain examples, with the settings of warmup;
`training/metagradient.py` says what each candidate's weight does to the held-out loss, `training/datamodels.py` what
scores foresee of subsets. Scores are those of the runs in diagnose.rankings, by the examples' ids, and the objectives
of diagnose.objectives at the warm adapter.
"""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.records import Record
from ntk_jax.data.sources import sample_indices
from ntk_jax.errors import UserError
from ntk_jax.kernels.direction import mean_gradient
from ntk_jax.kernels.score import directional_scores
from ntk_jax.models.lora import initial_lora
from ntk_jax.models.model import Model, computing_in, with_lora
from ntk_jax.pipelines.common.arrays import load_arrays, save_arrays
from ntk_jax.pipelines.common.examples import none_usable
from ntk_jax.pipelines.common.rankings import Rankings, read_rankings
from ntk_jax.pipelines.common.training import train_config
from ntk_jax.pipelines.diagnose.config import DiagnoseConfig
from ntk_jax.pipelines.diagnose.prediction import held_out_of, objectives_of, shifted
from ntk_jax.pipelines.diagnose.state import DiagnoseRun
from ntk_jax.report.amounts import metric
from ntk_jax.storage.atomic import make_folder
from ntk_jax.training.datamodels import lds, random_subsets, ranker_worth, subset_losses
from ntk_jax.training.flops import forward_flops, training_flops
from ntk_jax.training.metagradient import (
    Metagradients,
    check_memory,
    metagradient,
    metagradient_memory,
    training_work,
)
from ntk_jax.training.optimizer import TrainConfig, check_config
from ntk_jax.training.unrolled import course, held_out_rows, sizes_of, times_read

LEAST = 8  # candidates
LENGTH = "response length"


def check_worth(config: DiagnoseConfig) -> None:
    """Raises UserError for settings that cannot work together."""
    section = config.diagnose
    if not section.worth_candidates:
        if section.rankings:
            raise UserError("diagnose.rankings are compared on diagnose.worth_candidates, which is 0; give some")
        return
    if section.worth_from == "selected" and not section.rankings:
        raise UserError("diagnose.worth_from = selected: name the runs whose selections are meant in diagnose.rankings")
    if section.worth_candidates < LEAST:
        raise UserError(f"diagnose.worth_candidates = {section.worth_candidates}: give at least {LEAST}, or 0 for none")
    if section.worth_top is not None and section.worth_top > section.worth_candidates:
        raise UserError(
            f"diagnose.worth_top = {section.worth_top} is larger than diagnose.worth_candidates = "
            f"{section.worth_candidates}; lower it"
        )
    if section.worth_subset_size is not None and section.worth_subset_size >= section.worth_candidates:
        raise UserError(
            f"diagnose.worth_subset_size = {section.worth_subset_size} is not below diagnose.worth_candidates = "
            f"{section.worth_candidates}; lower it"
        )
    if len(set(section.rankings)) < len(section.rankings):
        raise UserError("diagnose.rankings names a run twice; leave one out")
    check_config(settings_of(config), "diagnose.worth")


def check_worth_inputs(run: DiagnoseRun) -> None:
    """Says what this part costs and which candidates a run knows, before anything is trained.

    Raises UserError: a run of diagnose.rankings that cannot be read, or knows none of the candidates; a metagradient
    that takes more memory than there is.
    """
    section = run.config.diagnose
    rankings = [read_rankings(place) for place in section.rankings]
    folder = run.job.folder / "diagnose"
    if not section.worth_candidates or (folder / "worth.json").exists():
        return
    records, rows = _candidates(run, rankings)
    lines = [
        f"{one.run} has no score of {lacking} of {len(records)} candidates (another data.pool_limit?); it is compared "
        "on the others"
        for one in rankings
        if (lacking := sum(record["id"] not in one.place for record in records))
    ]
    if len(rows) >= LEAST:
        done = (folder / "worth" / "metagradient.npz").exists()
        lines.append(_cost(run, rows, check=not done))
    for line in lines:
        run.job.progress("worth of scores", None, "")(1, 1, line)


def _cost(run: DiagnoseRun, rows: list[TokenRow], *, check: bool) -> str:
    """FLOPs and memory in a line. check: raises UserError where there is less memory than the metagradient takes."""
    held_out, _ = held_out_of(run)
    fixed, section = _fixed(run, held_out), run.config.diagnose
    model, options = computing_in(run.model.base, "float32"), _options(run, fixed)  # as it is computed later
    training = course(model, [*options.pop("fixed"), *rows], **options)
    memory = metagradient_memory(
        training, held_out_rows(held_out, options["config"], run.row_length, run.model.mesh), model
    )
    if check:
        try:
            check_memory(memory, training)
        except UserError as error:
            raise UserError(
                f"{error} (of warmup, whose settings diagnose.worth_* change), or leave this part out: "
                "diagnose.worth_candidates=0"
            ) from None
    meta = training_work(training, model, again=memory.segments > 1)
    subsets = _subsets(section.worth_subsets, section.worth_subset_size, len(rows), run.config.seed)
    share = subsets.shape[1] / len(rows) if len(subsets) else 0.0
    weights = times_read(training) * np.repeat([1.0, share], [len(fixed), len(rows)])
    tokens, labels = (round(float(weights @ counts)) for counts in sizes_of(training.feed.rows))
    measured, answered = (int(counts.sum()) for counts in sizes_of(held_out))
    size, remat = run.model.adapter_size, training.static.remat
    once = training_flops(model.config, tokens, labels, remat, lora_parameters=size)
    once += forward_flops(model.config, measured, answered, lora_parameters=size)
    return (
        f"about {metric(meta, 'FLOP')} for the metagradient of {training.steps} steps and "
        f"{metric(len(subsets) * once, 'FLOP')} for {len(subsets)} subsets; {metric(memory.device, 'B')} a device and "
        f"{metric(memory.host, 'B')} of states in the machine's memory"
    )


def settings_of(config: DiagnoseConfig) -> TrainConfig:
    """The fine-tuning whose derivative is taken."""
    section = config.diagnose
    return train_config(
        config.warmup,
        epochs=section.worth_epochs,
        max_steps=None,
        batch_size=section.worth_batch,
        learning_rate=section.worth_learning_rate or config.warmup.learning_rate,
    )


def worth(run: DiagnoseRun, folder: Path, warm: Model) -> dict[str, Any]:
    """{scores: {name: {run, spearman, precision, lds, scored}}, metagradient: {lds, helpful, ...}, ...}."""
    section, seed = run.config.diagnose, run.config.seed
    rankings = [read_rankings(place) for place in section.rankings]
    records, rows = _candidates(run, rankings)
    ids = [record["id"] for record in records]
    if len(rows) < LEAST:
        return {"skipped": f"only {len(rows)} usable candidates, of which {LEAST} are the least"}
    held_out, source = held_out_of(run)
    fixed = _fixed(run, held_out)
    home = make_folder(folder / "worth")
    start = warm
    if section.worth_start == "fresh":
        start = with_lora(warm, initial_lora(run.model.base.lora, seed))
    found = _metagradient(run, home, start, ids, rows, held_out, fixed)
    subsets = _subsets(section.worth_subsets, section.worth_subset_size, len(rows), seed)
    losses, labels = _losses(run, home, start, rows, held_out, fixed, subsets)

    places, scores = _scores(run, warm, records, rows, rankings)
    top = section.worth_top or max(1, len(rows) // 10)
    by_candidate = ranker_worth(scores, found.values, top=top, seed=seed)
    everything = {**scores, "metagradient": -found.values}
    by_subset = lds(everything, subsets, losses, labels, control=scores[LENGTH], seed=seed) if len(subsets) else {}
    lds_of = {name: {k: v for k, v in by_subset[name].items() if k != "scored"} for name in by_subset}
    steps = len(found.losses)
    return {
        "scores": {
            name: {"run": places.get(name), **by_candidate[name], "lds": lds_of.get(name)} for name in by_candidate
        },
        "metagradient": {
            "lds": lds_of.get("metagradient"),
            "helpful": float(np.mean(found.values < 0)),
            "seen": int((found.seen > 0).sum()),
            "loss_before": found.before,
            "loss_after": found.after,
            "flops": found.flops,
        },
        "candidates": [
            {"id": name, "metagradient": float(value), "seen": int(times)}
            for name, value, times in zip(ids, found.values, found.seen, strict=True)
        ],
        "from": section.worth_from,
        "start": section.worth_start,
        "fixed": len(fixed),
        "held_out": {"source": source, "examples": len(held_out)},
        "steps": steps,
        "learning_rate": settings_of(run.config).learning_rate,
        "subsets": len(subsets),
        "subset_size": int(subsets.shape[1]) if len(subsets) else 0,
        "top": min(top, len(rows)),
    }


def _candidates(run: DiagnoseRun, rankings: list[Rankings]) -> tuple[list[Record], list[TokenRow]]:
    """A seeded sample of the pool, or of the union of the selections; with the rows that training looks at."""
    section, seed = run.config.diagnose, run.config.seed
    if section.worth_from == "pool":
        found = run.pool.sample(run.encoder, section.worth_candidates, "response")
    else:
        union = sorted({name for one in rankings for ids in one.selected.values() for name in ids})
        chosen = sample_indices(len(union), section.worth_candidates, seed)
        wanted = set(union if chosen is None else [union[i] for i in chosen])
        found = run.encoder.encode([r for r in run.pool.records(run.pool.ordinals) if r["id"] in wanted])
        if not found.rows:
            raise none_usable("data.pool", "examples that the runs of diagnose.rankings selected", found.statistics)
    for one in rankings:
        known = sum(record["id"] in one.place for record in found.records)
        if not known:
            raise UserError(
                f"diagnose.rankings: {one.run} knows none of the {len(found.records)} candidates by their ids; give a "
                "run over the same data.pool"
            )
    return found.records, found.rows


def _fixed(run: DiagnoseRun, held_out: list[TokenRow]) -> list[TokenRow]:
    """Domain examples that are trained on beside the candidates: none whose loss is measured."""
    count = run.config.diagnose.worth_domain
    measured = {id(row) for row in held_out}
    rows = [row for row in run.domain.rows if id(row) not in measured]
    chosen = sample_indices(len(rows), count, run.config.seed) if count else np.zeros(0, int)
    return rows if chosen is None else [rows[i] for i in chosen]


def _options(run: DiagnoseRun, fixed: list[TokenRow]) -> dict[str, Any]:
    return {
        "fixed": fixed,
        "config": settings_of(run.config),
        "seed": run.config.seed,
        "row_length": run.row_length,
        "mesh": run.model.mesh,
    }


def _metagradient(
    run: DiagnoseRun,
    home: Path,
    start: Model,
    ids: list[str],
    rows: list[TokenRow],
    held_out: list[TokenRow],
    fixed: list[TokenRow],
) -> Metagradients:
    """Computed once and kept."""
    path = home / "metagradient.npz"
    if not path.exists():
        options = _options(run, fixed)
        progress = run.job.progress("metagradient", None, "steps")
        way = home / "metagradient"  # a killed one goes on there
        found = metagradient(start, rows, held_out, progress=progress, keep=way, **options)
        kept = {name: getattr(found, name) for name in ("values", "seen", "before", "after", "losses", "flops")}
        save_arrays(path, id=np.array([name.encode() for name in ids]), **kept)
        shutil.rmtree(way, ignore_errors=True)
    stored = load_arrays(path)
    before, after, flops = (float(stored[name]) for name in ("before", "after", "flops"))
    return Metagradients(stored["values"], stored["seen"], before, after, stored["losses"], flops)


def _subsets(count: int, size: int | None, candidates: int, seed: int) -> np.ndarray:
    """As many as are asked for, none included; where the pool had fewer candidates than that, of half of these."""
    size = None if size is not None and size >= candidates else size
    return random_subsets(candidates, count, size, seed) if count else np.zeros((0, 0), int)


def _losses(
    run: DiagnoseRun,
    home: Path,
    model: Model,
    rows: list[TokenRow],
    held_out: list[TokenRow],
    fixed: list[TokenRow],
    subsets: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The losses after training on each subset, a few subsets a file, so that a killed run loses only the last few."""
    if not len(subsets):
        return np.zeros((0, len(held_out))), np.ones(len(held_out))
    progress = run.job.progress("train on subsets", len(subsets), "subsets")
    return subset_losses(model, rows, held_out, subsets, keep=home, progress=progress, **_options(run, fixed))


def _scores(
    run: DiagnoseRun, warm: Model, records: list[Record], rows: list[TokenRow], rankings: list[Rankings]
) -> tuple[dict[str, str], dict[str, np.ndarray]]:
    """({name: its run}, {name: [M] scores}): the runs' methods, the objectives here, and the response's length."""
    methods = Counter(method for one in rankings for method in one.scores)
    places, scores = {}, {}
    for one in rankings:
        for method, values in one.of([record["id"] for record in records]).items():
            name = method if methods[method] == 1 else f"{method}, {Path(one.run).name}"
            name = name if name not in scores else f"{method}, {one.run}"
            places[name], scores[name] = one.run, values
    scored = run.encoder.encode(records, run.config.score.span).rows
    for objective in objectives_of(run):
        total = len(run.scored_domain) + len(scored)
        progress = run.job.progress(f"{objective.kind}", total, "examples")
        before, after = (functools.partial(shifted, progress, n, total) for n in (0, len(run.scored_domain)))
        direction = mean_gradient(warm, run.scored_domain, objective, run.layout, progress=before)
        found = directional_scores(warm, scored, direction, objective, run.layout, progress=after).values
        scores[f"{objective.kind}, here" if rankings else str(objective.kind)] = found.astype(np.float64)
    scores[LENGTH] = np.array([float(row.span.sum()) for row in rows])
    return places, scores
