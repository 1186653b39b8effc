"""Cost of the directional score against a plain forward pass: time, memory, packing, vocabulary, precision, roofline.

    python scripts/benchmark_score.py --shape 57m
    python scripts/benchmark_score.py --shape 8b --dtype bfloat16 --tokens 16384 --length 1024 --out score.json

docs/performance.md says what each figure means.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import measurement as ms
import numpy as np

from ntk_jax.data.batch import Batch
from ntk_jax.data.packing import SHORTEST_ROW
from ntk_jax.errors import UserError
from ntk_jax.kernels.direction import mean_gradient
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.parameters import Tree, split_parameters
from ntk_jax.kernels.per_example import example_gradient_step
from ntk_jax.kernels.rows import Layout, batches_of, frozen_readout, make_step
from ntk_jax.kernels.score import directional_scores
from ntk_jax.kernels.sketch import GRADIENT_BYTES, within_budget
from ntk_jax.kernels.step import Step, directional_step, gradient_step
from ntk_jax.models.attention_kernel import Attention
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.decoder import abstract_decoder, hidden_states
from ntk_jax.models.model import Model, computing_in, quantized
from ntk_jax.models.quantization import LARGEST
from ntk_jax.training.flops import forward_flops, score_flops

PARTS = ("time", "packing", "vocabulary", "precision")
SUM, LOSS = Objective("sum_logits"), Objective("cross_entropy")
PRECISIONS: dict[str, tuple[str, str | None]] = {  # what is compared: compute dtype, kind of quantization
    "float32": ("float32", None),
    "bfloat16": ("bfloat16", None),
    **{f"{kind}, {dtype}": (dtype, kind) for kind in LARGEST for dtype in ("float32", "bfloat16")},
}
DOMAIN = 16  # examples whose mean gradient is the direction, where scores are compared and not only timed


@dataclass(frozen=True)
class Program:
    """A compiled step with its arguments; tokens and examples of one call; seconds of compiling."""

    run: Any
    arguments: tuple[Any, ...]
    tokens: int
    examples: int
    compile_seconds: float

    def __call__(self) -> Any:
        return self.run(*self.arguments)


def main() -> None:
    parser = ms.parser(__doc__)
    parser.add_argument("--directions", type=int, default=4, help="m of the score along several directions at once")
    parser.add_argument("--examples", type=int, default=128, help="examples of the length mix (packing, precision)")
    parser.add_argument("--steps", nargs="+", metavar="STEP", help="of part time: rows besides `forward` and `score`")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure; the rest is null")
    options = parser.parse_args()
    ms.check(options)
    about = ms.environment()
    ms.print_environment(about)
    model = ms.device_model(ms.SHAPES[options.shape], rank=options.rank, dtype=options.dtype, seed=options.seed)
    sizes = ms.sizes(model)
    print(f"shape {options.shape}, {options.dtype}: " + ", ".join(f"{k} {v:,}" for k, v in sizes.items()), flush=True)

    figures: dict[str, Any] = {"benchmark": "score", **about, "shape": options.shape, "dtype": options.dtype, **sizes}
    figures |= {name: getattr(options, name) for name in ("tokens", "length", "rank", "repeats", "seed")}
    for part, measure in (("time", of_steps), ("packing", of_packing), ("vocabulary", of_vocabulary)):
        figures[part] = measure(model, options) if part in options.parts else None
    figures["device_peak_bytes"] = ms.device_peak_bytes()  # before the second copy of the weights in another dtype
    figures["precision"] = of_precision(model, options) if "precision" in options.parts else None
    ms.finish(figures, options.out)


# ---------------------------------------------------------------------------------------------------------------
# The steps, one batch of one length: time, memory, roofline


def of_steps(model: Model, options: argparse.Namespace) -> dict[str, Any]:
    """Forward pass, scores, gradients, each compiled alone and called in turn on the same examples."""
    many = f"score, m = {options.directions}"
    quarter = f"lora[-{max(1, model.config.num_layers // 4)}:]"
    made: dict[str, Callable[[], Program]] = {
        "forward": lambda: forward_program(model, options),
        "score": lambda: score_program(model, options, SUM, 1),
        "score, attention kernel": lambda: score_program(model, options, SUM, 1, attention="pallas"),
        many: lambda: score_program(model, options, SUM, options.directions),
        "score, last quarter": lambda: score_program(model, options, SUM, 1, quarter),
        "score, cross_entropy": lambda: score_program(model, options, LOSS, 1),
        "mean gradient": lambda: gradient_program(model, options),
        "per-example gradients": lambda: per_example_program(model, options),
    }
    if unknown := set(options.steps or ()) - set(made):
        raise UserError(f"--steps {', '.join(sorted(unknown))}: choose from {', '.join(made)}")
    if jax.default_backend() != "gpu":
        del made["score, attention kernel"]
    programs = {name: make() for name, make in made.items() if name in {"forward", "score", *(options.steps or made)}}
    times, _ = ms.in_turns(programs, options.repeats)
    forward = programs["forward"]
    rows, steps = [], {}
    for name, program in programs.items():
        seconds = statistics.median(times[name])
        memory = ms.program_memory(program.run)
        base = ms.program_memory(forward.run)
        own, plain = (m["peak_bytes"] - m["argument_bytes"] for m in (memory, base))
        steps[name] = {
            "seconds": seconds,
            "seconds_of_repeats": times[name],
            "compile_seconds": program.compile_seconds,
            "tokens": program.tokens,
            "tokens_per_second": program.tokens / seconds,
            "examples_per_second": program.examples / seconds,
            # Per token, because per-example gradients of large adapters take smaller batches.
            "time_over_forward": ms.ratio(times, name, "forward", forward.tokens / program.tokens),
            "memory_over_forward": memory["peak_bytes"] / base["peak_bytes"],
            "memory_beyond_arguments_over_forward": own / plain,
            **memory,
        }
        rows.append(
            {
                "step": name,
                "seconds": seconds,
                "tokens/s": steps[name]["tokens_per_second"],
                "time / forward": steps[name]["time_over_forward"],
                "arguments MiB": memory["argument_bytes"] / 2**20,
                "temporaries MiB": memory["temporary_bytes"] / 2**20,
                "results MiB": memory["output_bytes"] / 2**20,
                "memory / forward": steps[name]["memory_over_forward"],
                "without arguments": steps[name]["memory_beyond_arguments_over_forward"],
                "compile s": program.compile_seconds,
            }
        )
    ms.print_table(f"Steps over {forward.tokens} tokens in examples of {options.length}", rows)
    chosen = {"forward": 0, "score": 1, "score, attention kernel": 1, many: options.directions}
    chosen = {name: directions for name, directions in chosen.items() if name in programs}
    return {"steps": steps, "roofline": roofline(model, options, programs, times, chosen)}


def roofline(
    model: Model,
    options: argparse.Namespace,
    programs: dict[str, Program],
    times: dict[str, list[float]],
    chosen: dict[str, int],
) -> dict[str, Any]:
    """FLOPs and bytes of the steps against what this device was just seen to do. chosen: {program: directions}."""
    config = model.config
    gemm = ms.gemm_rates(config.hidden_size, options.tokens, config.intermediate_size, options.dtype, options.repeats)
    stream = ms.stream_rate(options.repeats)
    adapter = ms.sizes(model)["lora_parameters"]
    lower = functools.partial(_lower, model, options)
    rows, found = [], {}
    for name, directions in chosen.items():
        program, seconds = programs[name], statistics.median(times[name])
        counted = xla_cost(lower, config.num_layers, directions, program.run)
        flops, moved, optimized = counted or (None, None, None)
        nominal = 2.0 * (1 + directions) * ms.sizes(model)["matrix_parameters"] * program.tokens
        context = (options.length + 1) / 2  # mean number of keys that a query may see
        if directions:
            formula = score_flops(
                config, program.tokens, directions=directions, lora_parameters=adapter, context=context
            )
        else:
            formula = forward_flops(config, program.tokens, lora_parameters=adapter, context=context)
        found[name] = {
            "nominal_flops": nominal,
            "formula_flops": formula,
            "xla_flops": flops,
            "xla_flops_optimized": optimized,
            "xla_flops_over_nominal": flops and flops / nominal,
            "xla_bytes": moved,
            "flops_per_byte": flops and moved and flops / moved,
            "flops_per_second": nominal / seconds,
            "share_of_gemm": nominal / seconds / gemm["best"],
            "least_seconds_by_gemm": (flops or formula) / gemm["best"],
            "least_seconds_by_stream": moved and moved / stream,
        }
        rows.append(
            {
                "step": name,
                "nominal GFLOP": nominal / 1e9,
                "formula / nominal": formula / nominal,
                "XLA / nominal": flops and flops / nominal,
                "XLA GB": moved and moved / 1e9,
                "FLOP/byte": flops and moved and flops / moved,
                "s": seconds,
                "s by GEMM": (flops or formula) / gemm["best"],
                "s by stream": moved and moved / stream,
                "nominal GFLOP/s": nominal / seconds / 1e9,
                "share of GEMM": nominal / seconds / gemm["best"],
            }
        )
    title = f"Roofline: GEMM {gemm['best'] / 1e9:,.1f} GFLOP/s ({options.dtype}), stream {stream / 1e9:,.1f} GB/s"
    ms.print_table(f"{title}, ridge {gemm['best'] / stream:,.1f} FLOP/byte", rows)
    return {
        "gemm": gemm,
        "stream_bytes_per_second": stream,
        "ridge_flops_per_byte": gemm["best"] / stream,
        "steps": found,
    }


def xla_cost(lower: Any, layers: int, directions: int, whole: Any) -> tuple[float, float, float] | None:
    """(FLOPs as traced, bytes as compiled, FLOPs as compiled) of all layers, by XLA's cost analysis; None where that
    knows no cost before it compiles, as on a GPU, whose products go to a library that it does not count.

    The analysis counts the body of the loop over layers once, whatever their number. So the program is compiled for two
    layers, what lies outside the loop is taken away, and the rest is multiplied. Outside lie the embedding, the last
    norm and the sums: a forward pass of no layer, and as much again for each tangent. FLOPs as compiled may lack
    products that were handed to a library, hence those as traced.
    """
    two, all_layers = (lower(layers=number, directions=directions) for number in (2, layers))
    traced = [program.cost_analysis() for program in (two, all_layers)]
    if not all(traced):
        return None

    def costs(program: Any) -> tuple[float, float]:
        found = program.cost_analysis()
        return float(found["flops"]), float(found["bytes accessed"])

    outside = costs(lower(layers=0, directions=0).compile())
    once, compiled = costs(two.compile()), costs(whole)

    def total(around: float, once: float, counted: float) -> float:
        around *= 1 + directions
        is_once = layers > 2 and abs(counted - once) < 0.1 * once
        return around + layers * (once - around) if is_once else counted

    flops, moved = (total(*numbers) for numbers in zip(outside, once, compiled, strict=True))
    return total(outside[0], *(float(found["flops"]) for found in traced)), moved, flops


def _lower(model: Model, options: argparse.Namespace, *, layers: int, directions: int) -> Any:
    """The forward pass (directions = 0) or the score of a model with other layers, traced; nothing is allocated."""
    config = dataclasses.replace(model.config, num_layers=layers)
    graphdef, lora, base = abstract_decoder(config, model.lora_config, model.dtype)
    batch, layout = uniform_batch(model.config, options, SUM)
    if not directions:
        return _forward(graphdef, model.dtype).lower(lora, base, batch.tokens, batch.positions, batch.segments)
    step = dataclasses.replace(make_step(model, SUM, layout, "lora"), graphdef=graphdef)
    tangents = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((directions, 1, *leaf.shape), jnp.float32), lora)
    read = jax.ShapeDtypeStruct((1, config.hidden_size), jnp.float32)
    return directional_step.lower(step, lora, {"base": base}, read, tangents, batch)


def uniform_batch(
    config: ModelConfig, options: argparse.Namespace, objective: Objective, packed: bool = True, rows: int | None = None
) -> tuple[Batch, Layout]:
    """One batch of examples of one length, a row each and no padding: every step sees the same tokens."""
    count = rows or options.tokens // options.length
    layout = Layout(options.length, count, packed=packed)
    examples = ms.random_rows([options.length] * count, config.vocab_size, options.seed)
    return jax.device_put(next(iter(batches_of(examples, layout, objective))).batch), layout


def _program(options: argparse.Namespace, rows: int, function: Any, *arguments: Any) -> Program:
    run, seconds = ms.compile_step(function, *arguments)
    passed = tuple(a for a in arguments if not isinstance(a, Step))  # what is static is part of the program
    return Program(run, passed, rows * options.length, rows, seconds)


def _forward(graphdef: Any, dtype: Any) -> Any:
    """The pass of a plain user: tokens in, final hidden states out, no head."""
    return jax.jit(
        lambda lora, base, tokens, positions, segments: hidden_states(
            graphdef, lora, base, tokens, positions, segments, dtype=dtype
        )
    )


def forward_program(model: Model, options: argparse.Namespace) -> Program:
    batch, layout = uniform_batch(model.config, options, SUM)
    arrays = (batch.tokens, batch.positions, batch.segments)
    return _program(
        options, layout.rows_per_batch, _forward(model.graphdef, model.dtype), model.lora, model.base, *arrays
    )


def score_program(
    model: Model,
    options: argparse.Namespace,
    objective: Objective,
    directions: int,
    parameters: str = "lora",
    attention: Attention = "xla",
) -> Program:
    batch, layout = uniform_batch(model.config, options, objective)
    step = make_step(model, objective, layout, parameters, attention=attention)
    read = frozen_readout(model, objective, parameters)
    theta, rest = split_parameters(model, parameters)
    tangents = unit_directions(theta, directions)
    return _program(options, layout.rows_per_batch, directional_step, step, theta, rest, read, tangents, batch)


def gradient_program(model: Model, options: argparse.Namespace) -> Program:
    batch, layout = uniform_batch(model.config, options, SUM)
    step, read = make_step(model, SUM, layout, "lora"), frozen_readout(model, SUM, "lora")
    return _program(options, layout.rows_per_batch, gradient_step, step, model.lora, {"base": model.base}, read, batch)


def per_example_program(model: Model, options: argparse.Namespace) -> Program:
    """Per-example gradients; where they would not fit, of fewer rows at once, as a sketch takes them."""
    whole = Layout(options.length, options.tokens // options.length, packed=False)
    rows = within_budget(whole, model.lora, 1, GRADIENT_BYTES).rows_per_batch
    batch, layout = uniform_batch(model.config, options, SUM, packed=False, rows=rows)
    step, read = make_step(model, SUM, layout, "lora"), frozen_readout(model, SUM, "lora")
    return _program(options, rows, example_gradient_step, step, model.lora, {"base": model.base}, read, batch)


def unit_directions(theta: Tree, count: int) -> Tree:
    """Random directions of norm 1: leaves [m, 1, ...], as the compiled score takes them."""
    leaves, structure = jax.tree.flatten(theta)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    norm = sum(leaf.size for leaf in leaves) ** 0.5
    drawn = [jax.random.normal(key, (count, 1, *leaf.shape)) / norm for key, leaf in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


# ---------------------------------------------------------------------------------------------------------------
# Packing, vocabulary, precision


def of_packing(model: Model, options: argparse.Namespace) -> dict[str, Any]:
    """Scores of a log-normal length mix, packed, and one example a row: in rows of the longest, and in shorter rows for
    the shorter ones. Host work included."""
    lengths = ms.lognormal_lengths(options.examples, options.length, options.seed)
    rows = ms.random_rows(lengths, model.config.vocab_size, options.seed)
    direction = jax.tree.map(lambda leaf: leaf[0, 0], unit_directions(model.lora, 1))
    count = options.tokens // options.length

    def run(layout: Layout) -> np.ndarray:
        return directional_scores(model, rows, direction, SUM, layout).values

    layouts = {
        "padded": Layout(options.length, count, max_segments=1),
        "by length": Layout(options.length, count, packed=False, most_rows=options.tokens // SHORTEST_ROW),
        "packed": Layout(options.length, count),
    }
    runs = {name: functools.partial(run, layout) for name, layout in layouts.items()}
    times, first = ms.in_turns(runs, options.repeats)
    rates = {name: len(rows) / statistics.median(times[name]) for name in runs}
    found = {
        "examples": len(rows),
        "mean_length": statistics.fmean(lengths),
        "longest_over_mean_length": options.length / statistics.fmean(lengths),
        "examples_per_second": rates,
        "packed_over_padded": ms.ratio(times, "padded", "packed"),
        "by_length_over_padded": ms.ratio(times, "padded", "by length"),
        "first_call_seconds": first,
    }
    table = [{"layout": name, "examples/s": rate, "first call s": first[name]} for name, rate in rates.items()]
    bound = f"mean length {found['mean_length']:.0f} of {options.length}"
    ms.print_table(f"Packed / padded: {found['packed_over_padded']:.2f} ({bound})", table)
    return found


def of_vocabulary(model: Model, options: argparse.Namespace) -> dict[str, Any]:
    """The score with a vocabulary of 1k and of 128k on the same trunk and tokens; the read-out Wᵀ1 apart."""
    programs, readouts = {}, {}
    for name, size in (("1k", 1_024), ("128k", 131_072)):
        other = with_vocabulary(model, size, options.seed)
        batch, layout = uniform_batch(dataclasses.replace(model.config, vocab_size=1_024), options, SUM)
        step = make_step(other, SUM, layout, "lora")
        readouts[name] = functools.partial(frozen_readout, other, SUM, "lora")
        programs[name] = _program(
            options,
            layout.rows_per_batch,
            directional_step,
            step,
            other.lora,
            {"base": other.base},
            readouts[name](),
            unit_directions(other.lora, 1),
            batch,
        )
    times, _ = ms.in_turns(programs, options.repeats)
    once, _ = ms.in_turns(readouts, options.repeats)
    found: dict[str, Any] = {
        "score_time_128k_over_1k": ms.ratio(times, "128k", "1k"),
        "seconds": {name: statistics.median(times[name]) for name in programs},
        "readout_seconds_once_a_run": {name: statistics.median(once[name]) for name in programs},
    }
    table = [
        {"V": name, "score s": found["seconds"][name], "read-out s, once a run": value}
        for name, value in found["readout_seconds_once_a_run"].items()
    ]
    ms.print_table(f"Score time, V = 128k / V = 1k: {found['score_time_128k_over_1k']:.3f}", table)
    return found


def with_vocabulary(model: Model, size: int, seed: int) -> Model:
    """The same layers under an embedding and a head of another size."""
    config = dataclasses.replace(model.config, vocab_size=size)
    graphdef = abstract_decoder(config, model.lora_config, model.dtype)[0]
    names = [name for name in ("embed", "head") if name in model.base]
    drawn: dict[str, jax.Array] = {
        name: jax.random.normal(jax.random.key(seed + number), (size, config.hidden_size), model.dtype)
        / config.hidden_size**0.5
        for number, name in enumerate(names)
    }
    base = {**model.base, **{name: matrix.astype(model.dtype) for name, matrix in drawn.items()}}
    return dataclasses.replace(model, config=config, graphdef=graphdef, base=base)


def of_precision(model: Model, options: argparse.Namespace) -> dict[str, Any]:
    """Scores in bfloat16, and with quantized weights, against float32 with full products: direction and scores both
    computed so, from the same weights."""
    lengths = ms.lognormal_lengths(options.examples + DOMAIN, options.length, options.seed)
    domain = ms.random_rows(lengths[:DOMAIN], model.config.vocab_size, options.seed, topic=0)
    pool = ms.random_rows(lengths[DOMAIN:], model.config.vocab_size, options.seed)
    layout = Layout(options.length, options.tokens // options.length)
    found, table = {}, []
    for objective in (SUM, LOSS):
        scores = {}
        for name, (dtype, kind) in PRECISIONS.items():
            with jax.default_matmul_precision("highest" if dtype == "float32" else "default"):
                held = computing_in(model, dtype) if kind is None else quantized(computing_in(model, dtype), kind)
                direction = mean_gradient(held, domain, objective, layout)
                scores[name] = directional_scores(held, pool, direction, objective, layout).values
        exact = scores.pop("float32")
        found[str(objective.kind)] = {name: ms.agreement(values, exact) for name, values in scores.items()}
        table += [
            {"objective": objective.kind, "computed in": name, **figures}
            for name, figures in found[str(objective.kind)].items()
        ]
    ms.print_table(f"Scores against those in float32, {options.examples} examples", table)
    return {"examples": options.examples, **found}


if __name__ == "__main__":
    ms.command_line(main)
