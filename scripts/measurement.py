"""What the benchmarks share: shapes and random models, examples, timing in turns, memory, device rates, the output.

A ratio of two programs is the median over repeats of quotients taken back to back, so that a machine whose speed drifts
moves both sides. Compilation and the first call of each program are never inside a timing.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import platform
import shlex
import statistics
import sys
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import ntk_jax  # noqa: F401 (sets XLA's flags before the first computation)
from ntk_jax.data.batch import TokenRow
from ntk_jax.errors import UserError
from ntk_jax.kernels.agreement import relative_error, spearman, top_overlap
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.decoder import abstract_decoder
from ntk_jax.models.lora import LoRAConfig
from ntk_jax.models.model import Model
from ntk_jax.training.flops import head_parameters, matrix_parameters

# vocabulary, width, inner width, layers, heads, key/value heads, head width.
SHAPES: dict[str, ModelConfig] = {
    "tiny": ModelConfig("llama", 512, 64, 128, 3, 4, 2, 16, tied=True),
    "57m": ModelConfig("llama", 32_000, 512, 1_408, 8, 8, 4, 64),  # 56.4M, its LoRA of rank 16 has 1.2M
    "1b": ModelConfig("llama", 128_256, 2_048, 8_192, 16, 32, 8, 64, rope_theta=5e5, tied=True, max_positions=8_192),
    "8b": ModelConfig("llama", 128_256, 4_096, 14_336, 32, 32, 8, 128, rope_theta=5e5, max_positions=8_192),
    "qwen3-8b": ModelConfig(
        "qwen3", 151_936, 4_096, 12_288, 36, 32, 8, 128, rope_theta=1e6, qk_norm=True, max_positions=40_960
    ),
}
SHORT = 0.05  # seconds: a program faster than this is called several times in one timing
TOPICS = 8  # kinds of random examples
MANY = 20  # calls in one timing at most, because the results of all of them may be alive at once


# ---------------------------------------------------------------------------------------------------------------
# Options


def parser(description: str | None) -> argparse.ArgumentParser:
    """The options that all benchmarks have; a script adds its own."""
    made = argparse.ArgumentParser(
        description=(description or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument("--shape", choices=SHAPES, default="57m", help="model shape; the weights are random")
    made.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="weights and computation")
    made.add_argument("--rank", type=int, default=16, help="rank of the LoRA adapter, on all seven linears")
    made.add_argument("--repeats", type=int, default=5, help="timings of each thing; medians are reported")
    made.add_argument("--tokens", type=int, default=4096, help="tokens of one batch")
    made.add_argument("--length", type=int, default=256, help="tokens of an example; the longest one, in a mix")
    made.add_argument("--seed", type=int, default=0, help="of weights, examples and projections")
    made.add_argument("--out", type=Path, help="file for the JSON")
    return made


def check(options: argparse.Namespace) -> None:
    """Raises UserError for sizes that nothing can be measured with."""
    most = SHAPES[options.shape].max_positions
    if options.repeats < 1 or options.rank < 1:
        raise UserError("--repeats and --rank must be at least 1")
    if not 8 <= options.length <= most:
        raise UserError(f"--length {options.length} is outside 8 .. {most}, the positions of shape {options.shape}")
    if options.tokens < options.length:
        raise UserError(f"--tokens {options.tokens} holds no example of --length {options.length}; raise it")


def command_line(main: Callable[[], None]) -> None:
    """Runs a script; a user's mistake is one line and exit status 2."""
    try:
        main()
    except UserError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        raise SystemExit(2) from None


# ---------------------------------------------------------------------------------------------------------------
# Models and examples


def device_model(config: ModelConfig, *, rank: int, dtype: str, seed: int) -> Model:
    """A model with random weights made on the device, layer by layer: 8B of them neither pass through the host nor
    exist in fp32. Matrices are N(0, 1/Din), so that activations keep their size through any depth; values are rounded
    to bf16 as those of checkpoints are, so a float32 model and a bfloat16 one have equal weights."""
    lora = LoRAConfig(rank=rank)
    graphdef, lora_shapes, base_shapes = abstract_decoder(config, lora, jnp.dtype(dtype))

    def draw(path: Any, leaf: Any) -> jax.Array:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        key = jax.random.fold_in(jax.random.key(seed), np.uint32(zlib.crc32(name.encode())))
        mean = 1.0 if name.endswith("norm") else 0.0
        if name.endswith("norm"):
            std = 0.1
        elif name.endswith(("bias", "/b")):
            std = 0.01  # B of an adapter: a small update, but not the zero at which gradients vanish
        else:
            std = leaf.shape[-1 if name in ("embed", "head") else -2] ** -0.5
        return _normal(key, leaf.shape, mean, std).astype(leaf.dtype)

    values, base = (jax.tree_util.tree_map_with_path(draw, tree) for tree in (lora_shapes, base_shapes))
    return Model(config, graphdef, values, base, lora, None, "random", jnp.dtype(dtype))


@functools.partial(jax.jit, static_argnums=1)
def _normal(key: jax.Array, shape: tuple[int, ...], mean: float, std: float) -> jax.Array:
    """bf16 normal numbers, a layer at a time where there are three axes."""

    def one(key: jax.Array) -> jax.Array:
        return mean + std * jax.random.normal(key, shape[1:] if len(shape) == 3 else shape, jnp.bfloat16)

    drawn = jax.lax.map(one, jax.random.split(key, shape[0])) if len(shape) == 3 else one(key)
    return drawn.astype(jnp.bfloat16)


def sizes(model: Model) -> dict[str, int]:
    """Parameters: of the layers' matrices (P of every FLOP count here), the head, the adapter, and all frozen ones."""
    return {
        "matrix_parameters": matrix_parameters(model.config),
        "head_parameters": head_parameters(model.config),
        "lora_parameters": sum(leaf.size for leaf in jax.tree.leaves(model.lora)),
        "base_parameters": sum(leaf.size for leaf in jax.tree.leaves(model.base)),
    }


def random_rows(lengths: Sequence[int], vocabulary: int, seed: int, topic: int | None = None) -> list[TokenRow]:
    """Examples of random tokens; the second half of each is its response. Three tokens of four are from the 16 words of
    the example's topic: `topic`, or one of TOPICS in turn; so kernels between examples are not all noise."""
    random, rows = np.random.default_rng([seed, TOPICS if topic is None else topic]), []
    words = [np.random.default_rng(number).integers(0, vocabulary, 16, np.int32) for number in range(TOPICS)]
    for number, length in enumerate(lengths):
        own = random.choice(words[number % TOPICS if topic is None else topic], length)
        ids = np.where(random.random(length) < 0.75, own, random.integers(0, vocabulary, length, np.int32))
        span = np.zeros(length, bool)
        span[length // 2 - 1 : length - 1] = True  # the positions that predict the response
        rows.append(TokenRow(ids.astype(np.int32), span, f"example {number}"))
    return rows


def lognormal_lengths(count: int, longest: int, seed: int) -> list[int]:
    """A mix of lengths as instruction data have it: log-normal with median longest / 6 and sigma 0.8, cut to
    8 .. longest; the last one is the longest, so that rows are as long as they may be."""
    drawn = np.random.default_rng(seed).lognormal(np.log(longest / 6), 0.8, count)
    lengths = np.clip(drawn.astype(int), 8, longest)
    lengths[-1] = longest
    return [int(length) for length in lengths]


# ---------------------------------------------------------------------------------------------------------------
# Time and memory


def compile_step(function: Any, *arguments: Any) -> tuple[Any, float]:
    """(the compiled program, the seconds that tracing and compiling took)."""
    begin = time.perf_counter()
    program = function.lower(*arguments).compile()
    return program, time.perf_counter() - begin


def in_turns(
    runs: Mapping[str, Callable[[], Any]], repeats: int, *, warm_up: int = 2
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """({name: seconds of one call, a repeat each}, {name: seconds of the very first call}).

    A repeat calls every one of `runs` in order and waits for the device after each. warm_up calls come before and are
    not counted; what a run compiles itself is in the first of them. None: the caller has seen to that.
    """
    first: dict[str, float] = {}
    calls: dict[str, int] = dict.fromkeys(runs, 1)
    for name, run in runs.items():
        for number in range(warm_up):
            seconds = _timed(run, 1)
            first.setdefault(name, seconds)
            calls[name] = 1 if number == 0 else max(1, min(MANY, math.ceil(SHORT / max(seconds, 1e-9))))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            times[name].append(_timed(run, calls[name]))
    return times, first


def _timed(run: Callable[[], Any], calls: int) -> float:
    begin = time.perf_counter()
    for _ in range(calls):
        result = run()
    jax.block_until_ready(result)
    return (time.perf_counter() - begin) / calls


def ratio(times: Mapping[str, Sequence[float]], above: str, below: str, factor: float = 1.0) -> float:
    """Median over repeats of times[above] / times[below], times `factor` (of the work below by the work above)."""
    return factor * statistics.median(a / b for a, b in zip(times[above], times[below], strict=True))


def program_memory(program: Any) -> dict[str, int]:
    """Bytes of a compiled program by the compiler's own account: arguments (weights, adapter and batch), results,
    temporaries, and their sum less what results share with arguments: the memory the program needs while it runs."""
    found = program.memory_analysis()
    parts = {
        "argument_bytes": int(found.argument_size_in_bytes),
        "output_bytes": int(found.output_size_in_bytes),
        "temporary_bytes": int(found.temp_size_in_bytes),
    }
    return {**parts, "peak_bytes": sum(parts.values()) - int(found.alias_size_in_bytes)}


def device_peak_bytes() -> int | None:
    """The most that was in use on the first device since the process started, where the backend counts it."""
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def gemm_rates(width: int, tokens: int, inner: int, dtype: str, repeats: int) -> dict[str, float]:
    """FLOP/s of plain matrix products in the dtype and at the precision setting that the model runs with: a square one,
    and that of a batch with a layer's widest matrix. `best` is the faster of the two."""
    side = min(8192, 4 * width)
    runs, flops = {}, {}
    for name, (m, k, n) in {"square": (side, side, side), "layer": (tokens, width, inner)}.items():
        keys = jax.random.split(jax.random.key(0))
        a = jax.random.normal(keys[0], (m, k), jnp.dtype(dtype))
        b = jax.random.normal(keys[1], (k, n), jnp.dtype(dtype))
        runs[name], flops[name] = functools.partial(jax.jit(jnp.matmul), a, b), 2.0 * m * k * n
    times, _ = in_turns(runs, repeats)
    rates = {name: flops[name] / statistics.median(times[name]) for name in runs}
    return {**{f"{name}_flops_per_second": rate for name, rate in rates.items()}, "best": max(rates.values())}


def stream_rate(repeats: int) -> float:
    """Bytes a second of reading one array and writing another, both far larger than any cache."""
    size = 2**25 if jax.default_backend() == "cpu" else 2**28  # fp32 entries: 128 MiB, or 1 GiB
    scale = jax.jit(lambda x: 2.0 * x)
    times, _ = in_turns({"scale": functools.partial(scale, jnp.ones(size, jnp.float32))}, repeats)
    return 2 * 4 * size / statistics.median(times["scale"])


# ---------------------------------------------------------------------------------------------------------------
# Agreement


def agreement(scores: np.ndarray, exact: np.ndarray) -> dict[str, float]:
    """How alike two lists of scores [N] are: as ranks, as a selection of the best tenth, and as numbers."""
    return {
        "spearman": spearman(scores, exact),
        "top_tenth_overlap": top_overlap(scores, exact, max(1, len(exact) // 10)),
        "relative_error": relative_error(scores, exact),
    }


# ---------------------------------------------------------------------------------------------------------------
# Output


def environment(extra: Sequence[str] = ()) -> dict[str, Any]:
    """Device, versions and command: what a figure needs beside it to mean anything."""
    device = jax.devices()[0]

    def installed(name: str) -> str | None:
        try:
            return version(name)
        except PackageNotFoundError:
            return None

    return {
        "command": shlex.join(["python", *sys.argv]),
        "device": device.device_kind,
        "platform": device.platform,
        "host_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in ("ntk_jax", "jax", "jaxlib", "flax", "numpy", *extra)},
        "xla_flags": os.environ.get("XLA_FLAGS", "").strip(),
    }


def print_environment(about: Mapping[str, Any]) -> None:
    """Two lines at the top of a benchmark's output."""
    packages = ", ".join(f"{name} {number}" for name, number in about["versions"].items() if number)
    print(about["command"])
    print(f"{about['device']} ({about['platform']}, {about['host_cores']} host cores); {packages}", flush=True)


def print_table(title: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A Markdown table of rows with equal keys; numbers to three digits, a missing one as a dash."""
    print(f"\n{title}\n")
    if not rows:
        return
    cells = [[*rows[0]], *[[show(value) for value in row.values()] for row in rows]]
    widths = [max(len(line[column]) for line in cells) for column in range(len(cells[0]))]
    for number, line in enumerate(cells):
        padded = [text.ljust(width) for text, width in zip(line, widths, strict=True)]
        print("| " + " | ".join(padded) + " |")
        if number == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    sys.stdout.flush()


def show(value: Any) -> str:
    """A value in a table."""
    if value is None or isinstance(value, float) and not math.isfinite(value):
        return "–"
    if not isinstance(value, float):
        return f"{value:,}" if isinstance(value, int) else str(value)
    if value != 0 and not 1e-3 <= abs(value) < 1e5:
        return f"{value:.3g}"
    return f"{value:.4f}" if abs(value) < 1 else f"{value:,.3f}" if abs(value) < 100 else f"{value:,.0f}"


def finish(figures: Mapping[str, Any], out: Path | None) -> None:
    """The JSON of all figures: the last line of the output, and the file if one was asked for."""
    line = json.dumps(_plain(figures), allow_nan=False)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(line + "\n", encoding="utf8")
    print(f"\n{line}", flush=True)


def _plain(value: Any) -> Any:
    """The value with what JSON has no word for (NaN, Inf) as null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return int(value) if isinstance(value, np.integer) else value
