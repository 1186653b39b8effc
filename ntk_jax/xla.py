"""The flag that XLA must have before it starts, with a check that it has it, and where compiled programs are kept.

From jaxlib 0.10.2 on, XLA for the CPU hands groups of operations that end in a sum to another library (YNNPACK), and
some come back wrong: jax-ml/jax#39103 (0.10.2), and with 0.12.0.1 the forward-mode derivative of RMS norm from 4,096
rows on, by a third, which is the heart of the directional score. The same code can crash (jax-ml/jax#39257). So it is
switched off, which costs about 6% of the score's speed (measured with 0.10.2, two cores).
"""

from __future__ import annotations

import functools
import os
from importlib.metadata import version
from pathlib import Path

from ntk_jax.errors import UserError

_FLAG = "--xla_cpu_experimental_ynn_fusion_type"  # empty: nothing is handed over
CACHE_BYTES = 16 * 2**30  # of compiled programs; the least recently used go first
_CONCERNED = ((0, 10, 2), (0, 13))  # an unknown flag would end the process, so no jaxlib that was not tried


def keep_sums_exact() -> None:
    """Adds the flag to XLA_FLAGS, unless the user has set it. XLA reads them at the first computation."""
    flags = os.environ.get("XLA_FLAGS", "")
    jaxlib = tuple(int(part) for part in version("jaxlib").split(".")[:3] if part.isdigit())
    if _FLAG not in flags and _CONCERNED[0] <= jaxlib < _CONCERNED[1]:
        os.environ["XLA_FLAGS"] = f"{flags} {_FLAG}=".strip()


@functools.cache
def refuse_wrong_sums() -> None:
    """Raises UserError where the CPU computes a known victim, the tangent of RMS norm, wrong: XLA had started before
    the flag was set, or the user has set it otherwise."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    if jax.default_backend() != "cpu":
        return
    rng = np.random.default_rng(0)
    x, dx = rng.standard_normal((2, 64, 64, 32)).astype(np.float32)
    norm = lambda x: x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-5)  # noqa: E731
    got = np.asarray(jax.jit(lambda x, dx: jax.jvp(norm, (x,), (dx,))[1])(x, dx))
    mean = (x * x).mean(axis=-1, keepdims=True) + 1e-5
    right = dx / np.sqrt(mean) - x * (x * dx).mean(axis=-1, keepdims=True) / mean**1.5
    if np.abs(got - right).max() > 1e-3 * np.abs(right).max():
        raise UserError(
            f"this jax computes wrong sums on the CPU (see ntk_jax/xla.py); import ntk_jax before the first jax "
            f"computation, or set XLA_FLAGS={_FLAG}="
        )


def keep_compiled() -> None:
    """On an accelerator, keeps compiled programs from one start to the next, in jax's own cache: in the folder
    `JAX_COMPILATION_CACHE_DIR` if that is set, else in `$XDG_CACHE_HOME/ntk_jax/compiled`. A preempted job, and
    every shard behind the first, then begins without compiling. `JAX_ENABLE_COMPILATION_CACHE=false` switches it off.

    Bounded, because only then jax writes it under a lock: several processes may share the folder. Not on a CPU, whose
    programs are made for one model of processor, and a home directory is seen by machines of several.
    """
    import jax

    if jax.default_backend() == "cpu" or jax.config.jax_compilation_cache_dir:  # type: ignore[attr-defined]
        return
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    jax.config.update("jax_compilation_cache_max_size", CACHE_BYTES)
    jax.config.update("jax_compilation_cache_dir", str(home / "ntk_jax" / "compiled"))
