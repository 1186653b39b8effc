"""Selected examples for people: each beside the domain example it aligns with most, by the kernel."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.records import family_of, prompt_text, response_text
from ntk_jax.data.sources import read_records
from ntk_jax.engine.clock import Clock
from ntk_jax.engine.stage import Facts
from ntk_jax.kernels.direction import mean_gradient, stack_directions
from ntk_jax.kernels.parameters import only_adapters
from ntk_jax.kernels.rows import Layout, layout_for
from ntk_jax.kernels.score import directional_scores
from ntk_jax.pipelines.select.state import SelectRun
from ntk_jax.storage.atomic import write_json

DIRECTIONS_AT_ONCE = 4  # LoRA gradients of displayed examples pushed forward together; bounds memory


def align(run: SelectRun, folder: Path) -> Facts:
    """Writes examples.json: for the best report.examples of the first selection the domain example x_i with the largest
    kernel ⟨g(x_i), g(x)⟩. The selected example's gradient is the direction, the domain set is what is scored."""
    clock, score = Clock(run.job.folder, "align"), run.config.score
    progress = clock.ticking(run.job.progress("align", None, "pairs"))
    selection = run.job.folder / "select" / "selection.jsonl"
    selected: list[Any] = list(itertools.islice(read_records(selection), run.config.report.examples))
    rows = [row for _, row in run.encoder.rows(selected, score.span) if isinstance(row, TokenRow)]
    domain = run.encoder.encode(run.domain.records, score.span)
    kernel = _kernel(run, rows, domain.rows, progress)  # [Nd, shown]
    examples = [
        {
            "rank": record["rank"],
            "id": record["id"],
            "family": family_of(record, run.config.report.group_by),
            "score": record["score"],
            "prompt": prompt_text(record),
            "response": response_text(record),
            "tokens": len(row.ids),
            "aligned": {
                "id": domain.records[best]["id"],
                "prompt": prompt_text(domain.records[best]),
                "response": response_text(domain.records[best]),
                "kernel": float(column[best]),
            },
        }
        for record, row, column in zip(selected, rows, kernel.T, strict=True)
        for best in [int(np.argmax(column))]
    ]
    write_json(folder / "examples.json", examples)
    return {"examples": len(examples)}


def directions_at_once(run: SelectRun) -> int:
    """Shown examples whose gradients are one batch of directions."""
    return DIRECTIONS_AT_ONCE if only_adapters(run.config.score.parameters) else 1


def alignment_layout(run: SelectRun) -> Layout:
    """The shapes of a scoring step with so many tangents: fewer rows, so that it needs no more memory than the score's
    step (but for one row at least)."""
    return layout_for(
        run.config.model.max_length, run.config.score.batch_tokens // directions_at_once(run), run.model.mesh
    )


def _kernel(run: SelectRun, rows: list[TokenRow], domain: list[TokenRow], progress: Callable[..., None]) -> np.ndarray:
    """[Nd, shown] kernels of the domain with the examples shown. progress: in pairs."""
    parameters, objective = run.config.score.parameters, run.objective
    one = layout_for(run.config.model.max_length, 1)
    together, layout = directions_at_once(run), alignment_layout(run)
    columns = []
    for start in range(0, len(rows), together):
        part = rows[start : start + together]
        gradients = [mean_gradient(run.warm, [row], objective, one, parameters=parameters) for row in part]
        # Repeat the last one so that the number of directions, a compiled shape, stays the same.
        gradients += [gradients[-1]] * (min(together, len(rows)) - len(part))
        values = directional_scores(
            run.warm,
            domain,
            stack_directions(gradients),
            objective,
            layout,
            parameters=parameters,
            attention=run.config.score.attention,
            progress=functools.partial(_of_all, progress, start, len(part), len(rows)),
        ).values
        columns.append(values[:, : len(part)])
    return np.concatenate(columns, axis=1)


def _of_all(progress: Callable[..., None], start: int, together: int, shown: int, done: int, domain: int) -> None:
    """So much of the domain is done for some of the examples shown, as pairs of all."""
    progress(start * domain + together * done, shown * domain)
