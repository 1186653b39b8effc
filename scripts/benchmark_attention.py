"""The attention of a score step: plain XLA differentiated by JAX against the forward-mode rule of
`models/attention.py` and, on a GPU, the kernel of `models/attention_kernel.py`, all with their tangents, beside the
plain forward pass of the same attention; one layer's, at the heads of a shape.

    python scripts/benchmark_attention.py --shape 57m
    python scripts/benchmark_attention.py --shape 8b --dtype bfloat16 --tokens 16384 --length 1024 --kernel sweep

Prints a table and one JSON line. `error` is the largest difference of a tangent from that of plain XLA, by the largest
tangent: of the kernel it is the first thing to look at.
"""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import measurement as ms

from ntk_jax.errors import UserError
from ntk_jax.models.attention import attend, visibility
from ntk_jax.models.attention_kernel import Kernel

SWEEP = tuple(
    Kernel(queries, keys, directions, warps, stages)
    for queries, keys, directions, warps, stages in itertools.product((32, 64, 128), (32, 64), (1, 2), (4, 8), (2, 3))
)


def main() -> None:
    parser = ms.parser(__doc__)
    parser.add_argument(
        "--directions", type=int, default=1, help="tangents along which the derivative is taken at once"
    )
    parser.add_argument(
        "--kernel",
        nargs="+",
        default=["default"],
        metavar="QUERIES,KEYS,DIRECTIONS,WARPS,STAGES",
        help=f"how to cut the kernel up, several in turn; or `sweep`, {len(SWEEP)} ways",
    )
    options = parser.parse_args()
    ms.check(options)
    if options.directions < 1:
        raise UserError("--directions must be at least 1")
    kernels = kernels_of(options.kernel, options.directions)
    about = ms.environment()
    ms.print_environment(about)
    config, rows = ms.SHAPES[options.shape], options.tokens // options.length
    keys = iter(jax.random.split(jax.random.key(options.seed), 6))

    def drawn(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), (*shape, config.head_dim), jnp.dtype(options.dtype))

    heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    q, k, v = (drawn(rows, options.length, number) for number in heads)
    primals = (q * config.head_dim**-0.5, k, v)
    tangents = tuple(drawn(options.directions, rows, options.length, number) for number in heads)
    segments = jnp.ones((rows, options.length), jnp.int32)

    @functools.partial(jax.jit, static_argnums=0)
    def with_tangents(mode: bool | Kernel, seen: jax.Array, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        def attention(q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return attend(q, k, v, seen, mode)

        if options.directions == 1:  # without an axis of one, for which XLA would need more memory
            return jax.jvp(attention, primals, tuple(x[0] for x in tangents))
        return jax.vmap(lambda *moved: jax.jvp(attention, primals, moved), out_axes=(None, 0))(*tangents)

    forward = jax.jit(lambda seen, primals: attend(primals[0], primals[1], primals[2], seen))
    mask = visibility(segments, None, False)
    alone = ms.compile_step(forward, mask, primals)[0]
    programs: dict[str, Any] = {"forward pass alone": alone}
    runs: dict[str, Callable[[], Any]] = {"forward pass alone": functools.partial(alone, mask, primals)}
    modes: dict[str, bool | Kernel] = {"plain": False, "rule": True}
    if about["platform"] == "gpu":
        modes |= {kernel_name(kernel): kernel for kernel in kernels}
    for name, mode in modes.items():
        seen = visibility(segments, None, mode)
        try:
            program = ms.compile_step(with_tangents, mode, seen, primals, tangents)[0]
        except Exception as error:  # a cut that needs more registers or shared memory than there are
            if not isinstance(mode, Kernel):
                raise
            print(f"{name}: does not compile here ({str(error).splitlines()[0][:160]})", flush=True)
            continue
        programs[f"{name}, with tangents"] = program
        runs[f"{name}, with tangents"] = functools.partial(program, seen, primals, tangents)
    changes = {name: run()[1].astype(jnp.float32) for name, run in runs.items() if name != "forward pass alone"}
    plain = changes["plain, with tangents"]
    errors = {name: float(jnp.abs(change - plain).max() / jnp.abs(plain).max()) for name, change in changes.items()}
    del changes, plain
    times, _ = ms.in_turns(runs, options.repeats)
    found: dict[str, Any] = {
        name: {
            "seconds": statistics.median(times[name]),
            "time_over_forward": ms.ratio(times, name, "forward pass alone"),
            "temporary_bytes": ms.program_memory(program)["temporary_bytes"],
            "error": errors.get(name),
        }
        for name, program in programs.items()
    }
    if about["platform"] != "gpu":
        found["kernel, with tangents"] = None
    table = [
        {
            "attention": name if values else f"{name}: not available on a {about['platform']}",
            "seconds": values and values["seconds"],
            "time / forward": values and values["time_over_forward"],
            "temporaries MiB": values and values["temporary_bytes"] / 2**20,
            "error": values and values["error"],
        }
        for name, values in found.items()
    ]
    ms.print_table(f"One layer's attention over {options.tokens} tokens in rows of {options.length}", table)
    figures = {"benchmark": "attention", **about, "shape": options.shape, "dtype": options.dtype}
    figures |= {name: getattr(options, name) for name in ("tokens", "length", "directions", "repeats", "seed")}
    figures["error"] = errors["rule, with tangents"]
    figures["rule_over_plain"] = ms.ratio(times, "rule, with tangents", "plain, with tangents")
    ms.finish({**figures, "programs": found}, options.out)


def kernels_of(texts: list[str], directions: int) -> list[Kernel]:
    """The kernels that --kernel asks for; of a sweep those that carry no more tangents than there are."""
    found: list[Kernel] = []
    for text in texts:
        numbers = text.split(",")
        if text == "sweep":
            found += [kernel for kernel in SWEEP if kernel.directions <= directions]
        elif text == "default":
            found.append(Kernel())
        elif len(numbers) == 5 and all(number.isdigit() and int(number) > 0 for number in numbers):
            queries, keys, together, warps, stages = map(int, numbers)
            found.append(Kernel(queries, keys, together, warps, stages))
        else:
            raise UserError(f"--kernel {text} is not default, sweep or five numbers, such as 64,32,1,4,2")
    return list(dict.fromkeys(found))


def kernel_name(kernel: Kernel) -> str:
    return f"kernel {kernel.queries},{kernel.keys},{kernel.directions},{kernel.warps},{kernel.stages}"


if __name__ == "__main__":
    ms.command_line(main)
