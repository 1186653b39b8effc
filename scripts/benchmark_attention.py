"""The attention of a score step: plain XLA differentiated by JAX against the forward-mode rule of
`models/attention.py`, both with their tangents, beside the plain forward pass of the same attention; one layer's, at
the heads of a shape.

    python scripts/benchmark_attention.py --shape 57m
    python scripts/benchmark_attention.py --shape 8b --dtype bfloat16 --tokens 16384 --length 1024

Prints a table and one JSON line. `error` is the largest difference of the two tangents by the largest tangent.
"""

from __future__ import annotations

import functools
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import measurement as ms

from ntk_jax.models.attention import attend, attention_mask


def main() -> None:
    options = ms.parser(__doc__).parse_args()
    ms.check(options)
    about = ms.environment()
    ms.print_environment(about)
    config, rows = ms.SHAPES[options.shape], options.tokens // options.length
    keys = iter(jax.random.split(jax.random.key(options.seed), 6))

    def drawn(heads: int) -> jax.Array:
        return jax.random.normal(next(keys), (rows, options.length, heads, config.head_dim), jnp.dtype(options.dtype))

    heads = (config.num_heads, config.num_kv_heads, config.num_kv_heads)
    q, k, v = (drawn(number) for number in heads)
    primals = (q * config.head_dim**-0.5, k, v)
    tangents = tuple(drawn(number) for number in heads)
    mask = attention_mask(jnp.ones((rows, options.length), jnp.int32), None)

    @functools.partial(jax.jit, static_argnums=0)
    def with_tangents(forward_mode: bool, mask: jax.Array, primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
        return jax.jvp(lambda q, k, v: attend(q, k, v, mask, forward_mode), primals, tangents)

    forward = jax.jit(lambda mask, primals: attend(primals[0], primals[1], primals[2], mask))
    programs = {
        "forward pass alone": (ms.compile_step(forward, mask, primals)[0], (mask, primals)),
        "plain, with tangents": (
            ms.compile_step(with_tangents, False, mask, primals, tangents)[0],
            (mask, primals, tangents),
        ),
        "rule, with tangents": (
            ms.compile_step(with_tangents, True, mask, primals, tangents)[0],
            (mask, primals, tangents),
        ),
    }
    runs = {name: functools.partial(program, *arguments) for name, (program, arguments) in programs.items()}
    plain, rule = (runs[f"{name}, with tangents"]()[1].astype(jnp.float32) for name in ("plain", "rule"))
    times, _ = ms.in_turns(runs, options.repeats)
    found = {
        name: {
            "seconds": statistics.median(times[name]),
            "time_over_forward": ms.ratio(times, name, "forward pass alone"),
            "temporary_bytes": ms.program_memory(program)["temporary_bytes"],
        }
        for name, (program, _) in programs.items()
    }
    table = [
        {
            "attention": name,
            "seconds": values["seconds"],
            "time / forward": values["time_over_forward"],
            "temporaries MiB": values["temporary_bytes"] / 2**20,
        }
        for name, values in found.items()
    ]
    ms.print_table(f"One layer's attention over {options.tokens} tokens in rows of {options.length}", table)
    figures = {"benchmark": "attention", **about, "shape": options.shape, "dtype": options.dtype}
    figures |= {name: getattr(options, name) for name in ("tokens", "length", "repeats", "seed")}
    figures["error"] = float(jnp.abs(rule - plain).max() / jnp.abs(plain).max())
    figures["rule_over_plain"] = ms.ratio(times, "rule, with tangents", "plain, with tangents")
    ms.finish({**figures, "programs": found}, options.out)


if __name__ == "__main__":
    ms.command_line(main)
