"""Cost of a LoRA training step against a plain forward pass, with and without recomputing layers (remat).

    python scripts/benchmark_train.py --shape 57m
    python scripts/benchmark_train.py --shape 8b --dtype bfloat16 --tokens 16384 --length 1024 --remat on

docs/performance.md says what each figure means.
"""

from __future__ import annotations

import argparse
import functools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import measurement as ms

from ntk_jax.data.batch import Batch, TokenRow
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.rows import Layout, batches_of
from ntk_jax.models.decoder import hidden_states
from ntk_jax.models.model import Model
from ntk_jax.training.flops import training_flops
from ntk_jax.training.loss import loss_sum
from ntk_jax.training.optimizer import TrainConfig
from ntk_jax.training.train import train

NAMES = {"off": "training step", "on": "training step, remat"}


def main() -> None:
    parser = ms.parser(__doc__)
    parser.add_argument("--remat", nargs="+", choices=NAMES, default=tuple(NAMES), help="recompute layers backwards")
    parser.add_argument("--steps", type=int, default=4, help="optimiser steps of one timing, at least 2")
    options = parser.parse_args()
    ms.check(options)
    if options.steps < 2:
        parser.error("--steps must be at least 2: a step's time is the time between two of them")
    about = ms.environment()
    ms.print_environment(about)
    model = ms.device_model(ms.SHAPES[options.shape], rank=options.rank, dtype=options.dtype, seed=options.seed)
    sizes, count = ms.sizes(model), options.tokens // options.length
    rows = ms.random_rows([options.length] * count, model.config.vocab_size, options.seed)
    batch = one_batch(rows, options)
    forward, forward_compile = ms.compile_step(
        jax.jit(
            lambda lora, base, batch: hidden_states(
                model.graphdef, lora, base, batch.tokens, batch.positions, batch.segments, dtype=model.dtype
            )
        ),
        model.lora,
        model.base,
        batch,
    )
    run_forward = functools.partial(forward, model.lora, model.base, batch)

    # Forward passes and trainings in turn; the first round of each, which compiles, is thrown away.
    times: dict[str, list[float]] = {"forward": [], **{NAMES[remat]: [] for remat in options.remat}}
    first: dict[str, float] = {}
    for repeat in range(options.repeats + 1):
        forward_times, _ = ms.in_turns({"forward": run_forward}, 1)
        seconds = {"forward": forward_times["forward"][0]}
        for remat in options.remat:
            begin = time.perf_counter()
            seconds[NAMES[remat]] = step_seconds(model, rows, options, remat == "on")
            first.setdefault(NAMES[remat], time.perf_counter() - begin)
        for name, value in seconds.items() if repeat else ():
            times[name].append(value)

    programs = {"forward": (forward, forward_compile)}
    for remat in options.remat:
        programs[NAMES[remat]] = ms.compile_step(loss_and_gradient(model, remat == "on"), model.lora, model.base, batch)
    found, table = {}, []
    tokens, labels = count * options.length, sum(int(row.span.sum()) for row in rows)
    plain = ms.program_memory(forward)
    for name, (program, compile_seconds) in programs.items():
        memory, seconds_each = ms.program_memory(program), statistics.median(times[name])
        flops = None
        if name != "forward":
            remat_on = name == NAMES["on"]
            flops = training_flops(model.config, tokens, labels, remat_on, lora_parameters=sizes["lora_parameters"])
        found[name] = {
            "seconds": seconds_each,
            "seconds_of_repeats": times[name],
            "compile_seconds": compile_seconds,
            "first_training_seconds": first.get(name),
            "tokens_per_second": tokens / seconds_each,
            "time_over_forward": ms.ratio(times, name, "forward"),
            "memory_over_forward": memory["peak_bytes"] / plain["peak_bytes"],
            "formula_flops": flops,
            "flops_per_second": flops / seconds_each if flops else None,
            **memory,
        }
        table.append(
            {
                "step": name,
                "seconds": seconds_each,
                "tokens/s": tokens / seconds_each,
                "time / forward": found[name]["time_over_forward"],
                "arguments MiB": memory["argument_bytes"] / 2**20,
                "temporaries MiB": memory["temporary_bytes"] / 2**20,
                "memory / forward": found[name]["memory_over_forward"],
                "compile s": compile_seconds,
            }
        )
    ms.print_table(f"LoRA training, {tokens} tokens a step, {labels} of them labels", table)
    print("\nTime is of whole optimiser steps; memory is of loss and gradient, without the optimiser's moments.")
    figures: dict[str, Any] = {"benchmark": "train", **about, "shape": options.shape, "dtype": options.dtype, **sizes}
    figures |= {name: getattr(options, name) for name in ("tokens", "length", "rank", "repeats", "seed")}
    ms.finish({**figures, "steps": found, "device_peak_bytes": ms.device_peak_bytes()}, options.out)


def one_batch(rows: list[TokenRow], options: argparse.Namespace) -> Batch:
    """All examples, a row each: what one optimiser step of the training below sees."""
    layout = Layout(options.length, len(rows))
    return jax.device_put(next(iter(batches_of(rows, layout, Objective("cross_entropy")))).batch)


def loss_and_gradient(model: Model, remat: bool) -> Any:
    """The part of a training step that decides its memory, compiled alone so that its memory can be asked for."""

    def loss(lora: Any, base: Any, batch: Batch) -> jax.Array:
        return loss_sum(model.graphdef, lora, base, batch, dtype=model.dtype, remat=remat)[0]

    return jax.jit(jax.value_and_grad(loss))


def step_seconds(model: Model, rows: list[TokenRow], options: argparse.Namespace, remat: bool) -> float:
    """Seconds between the ends of optimiser steps of a real training: its own loop, host work and read-out of the loss
    included; start, checkpoint and, where `train` has compiled before, compilation not."""
    config = TrainConfig(
        max_steps=options.steps,
        batch_size=len(rows),
        tokens_per_microbatch=options.tokens,
        learning_rate=1e-6,
        checkpoint_every=10**6,
    )
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        train(
            model,
            rows,
            config,
            folder=Path(folder),
            seed=options.seed,
            row_length=options.length,
            remat=remat,
            progress=lambda done, total, note: ends.append(time.perf_counter()),
        )
    return (ends[-1] - ends[0]) / (len(ends) - 1)


if __name__ == "__main__":
    ms.command_line(main)
