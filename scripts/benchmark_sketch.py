"""Speed of gradient sketches: each projection at several K, against the per-example gradients alone; and these of
examples of mixed lengths, in rows that fit their lengths against rows of the longest.

    python scripts/benchmark_sketch.py --shape 57m --repeats 3 --examples 128
    python scripts/benchmark_sketch.py --shape 8b --dtype bfloat16 --tokens 32768 --length 1024 --out sketch.json

docs/performance.md says what each figure means.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
from typing import Any

import jax
import measurement as ms
import numpy as np

from ntk_jax.data.packing import pad
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.per_example import example_gradient_step, example_gradients
from ntk_jax.kernels.projections import KINDS, Projection, check_width, projection_flops
from ntk_jax.kernels.rows import Layout, frozen_readout, make_step
from ntk_jax.kernels.sketch import GRADIENT_BYTES, sketches, within_budget
from ntk_jax.models.model import Model


def main() -> None:
    parser = ms.parser(__doc__)
    parser.add_argument("--dims", type=int, nargs="+", default=(1024, 2048, 4096, 8192), help="K, the sketch sizes")
    parser.add_argument("--projections", nargs="+", choices=KINDS, default=KINDS, help="kinds of random map")
    parser.add_argument("--examples", type=int, default=0, help="of a mix of lengths; 0: without this part")
    options = parser.parse_args()
    ms.check(options)
    about = ms.environment()
    ms.print_environment(about)
    model = ms.device_model(ms.SHAPES[options.shape], rank=options.rank, dtype=options.dtype, seed=options.seed)
    sizes = ms.sizes(model)
    wanted = [Projection(kind, dim, options.seed) for kind in options.projections for dim in options.dims]
    for each in wanted:
        check_width(each, model.lora)

    # All examples are of one length, a row each, so that gradients cost the same in every run.
    count = options.tokens // options.length
    rows = ms.random_rows([options.length] * count, model.config.vocab_size, options.seed)
    objective = Objective("sum_logits")
    layout = within_budget(Layout(options.length, count, packed=False), model.lora, 1, GRADIENT_BYTES)
    print(f"shape {options.shape}, {options.dtype}: {count} examples of {options.length} tokens, ", end="")
    print(f"{layout.rows_per_batch} a batch, {sizes['lora_parameters']:,} parameters differentiated", flush=True)

    def gradients() -> None:
        for _, tree in example_gradients(model, rows, objective, layout):
            jax.block_until_ready(tree)  # one batch of them in memory at a time

    def sketch(projection: Projection) -> np.ndarray:
        return sketches(model, rows, objective, layout, projection)

    runs: dict[str, Any] = {"gradients": gradients}
    runs |= {f"{p.kind} {p.dim}": functools.partial(sketch, p) for p in wanted}
    times, first = ms.in_turns(runs, options.repeats, warm_up=1)

    alone = statistics.median(times["gradients"])
    table, found = [], {}
    projections: list[Projection | None] = [None, *wanted]
    for name, projection in zip(runs, projections, strict=True):
        seconds = statistics.median(times[name])
        found[name] = {
            "projection": projection.kind if projection else None,
            "dim": projection.dim if projection else None,
            "seconds": seconds,
            "seconds_of_repeats": times[name],
            "first_call_seconds": first[name],
            "examples_per_second": count / seconds,
            "time_over_gradients": ms.ratio(times, name, "gradients"),
            # What the table of kernels/projections.py counts; making the signs is not in it.
            "projection_gflop_per_example": projection_flops(projection, model.lora) / 1e9 if projection else None,
            "projection_seconds_per_example": (seconds - alone) / count if projection else None,
        }
        table.append(
            {
                "sketch": name,
                "examples/s": count / seconds,
                "time / gradients": found[name]["time_over_gradients"],
                "GFLOP an example": found[name]["projection_gflop_per_example"],
                "seconds beyond gradients, an example": found[name]["projection_seconds_per_example"],
                "first call s": first[name],
            }
        )
    ms.print_table("Sketches, host work included", table)
    figures: dict[str, Any] = {"benchmark": "sketch", **about, "shape": options.shape, "dtype": options.dtype, **sizes}
    figures |= {name: getattr(options, name) for name in ("tokens", "length", "rank", "repeats", "seed")}
    figures |= {"examples": count, "rows_per_batch": layout.rows_per_batch, "sketches": found}
    if options.examples:
        figures["lengths"] = of_lengths(model, options, objective, layout)
    ms.finish({**figures, "device_peak_bytes": ms.device_peak_bytes()}, options.out)


def of_lengths(model: Model, options: argparse.Namespace, objective: Objective, layout: Layout) -> dict[str, Any]:
    """Per-example gradients of a log-normal length mix, in rows that fit and in rows of the longest, with host work."""
    lengths = ms.lognormal_lengths(options.examples, options.length, options.seed)
    rows = ms.random_rows(lengths, model.config.vocab_size, options.seed)
    step, empty = make_step(model, objective, layout, "lora"), np.zeros((layout.rows_per_batch, 1), np.int32)
    read = frozen_readout(model, objective, "lora")

    def by_length() -> None:
        for _, tree in example_gradients(model, rows, objective, layout):
            jax.block_until_ready(tree)

    def of_the_longest() -> None:
        for packed in pad(rows, row_length=layout.row_length, rows_per_batch=layout.rows_per_batch):
            labels = {name: empty for name in ("label_position", "label_target", "label_segment")}
            batch = dataclasses.replace(packed.batch, **labels)
            jax.block_until_ready(example_gradient_step(step, model.lora, {"base": model.base}, read, batch))

    runs = {"rows of the longest": of_the_longest, "rows that fit": by_length}
    times, first = ms.in_turns(runs, options.repeats, warm_up=1)
    mean = statistics.fmean(lengths)
    faster = ms.ratio(times, "rows of the longest", "rows that fit")
    table = [
        {"rows": name, "examples/s": len(rows) / statistics.median(times[name]), "first call s": first[name]}
        for name in runs
    ]
    ms.print_table(f"Rows that fit: {faster:.2f} times as fast (mean length {mean:.0f} of {options.length})", table)
    return {
        "examples": len(rows),
        "mean_length": mean,
        "speed_over_rows_of_the_longest": faster,
        "seconds_of_repeats": times,
        "first_call_seconds": first,
    }


if __name__ == "__main__":
    ms.command_line(main)
