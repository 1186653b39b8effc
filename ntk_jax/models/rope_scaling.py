"""The ways of stretching rotary frequencies over a longer context, read from `config.json` and written to it.

Static ones only: `dynamic` and `longrope` change with the length of the sequence, so that a token's hidden state would
depend on what follows it, and `mrope` has positions of more than one dimension. What the numbers do is in `rope.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

from ntk_jax.errors import UserError

DEFAULT_THETA = 10000.0  # of all families, where the file is silent


@dataclass(frozen=True)
class LinearScaling:
    """All frequencies divided by `factor` (position interpolation; Chen et al., arXiv 2306.15595)."""

    factor: float


@dataclass(frozen=True)
class Llama3Scaling:
    """Llama 3.1's stretching of the slow rotary frequencies; see `rope.inverse_frequencies`."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclass(frozen=True)
class YarnScaling:
    """YaRN (Peng et al., arXiv 2309.00071), with the optional numbers as the file has them; None: it is silent."""

    factor: float
    original_max_positions: int
    beta_fast: float = 32.0  # frequencies that turn at least so often over the original positions stay
    beta_slow: float = 1.0  # those that turn at most so often are divided by `factor`
    truncate: bool = True  # round the range between the two outwards to whole frequencies
    attention_factor: float | None = None
    mscale: float | None = None
    mscale_all_dim: float | None = None

    @property
    def attention_scale(self) -> float:
        """What cosines and sines are multiplied by: 0.1 ln(factor) + 1 unless the file says otherwise."""
        if self.attention_factor is not None:
            return self.attention_factor

        def scale(weight: float) -> float:
            return 1.0 if self.factor <= 1 else 0.1 * weight * math.log(self.factor) + 1.0

        if self.mscale and self.mscale_all_dim:
            return scale(self.mscale) / scale(self.mscale_all_dim)
        return scale(1.0)


Scaling = LinearScaling | Llama3Scaling | YarnScaling

# rope_type → its keys
_KEYS = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "truncate")
    + ("attention_factor", "mscale", "mscale_all_dim"),
}


def take_rope(rest: dict[str, Any], where: str, max_positions: int) -> tuple[float, Scaling | None]:
    """(theta, scaling) of a config.json, whose rope keys are taken out of `rest`. max_positions: the original ones
    where the file names none. Raises UserError as `parse_config`."""
    joined = _join(rest, where)
    if joined.pop("partial_rotary_factor", 1.0) != 1.0:
        raise UserError(f"{where}: partial_rotary_factor below 1 is not supported")
    theta = _number(joined.pop("rope_theta", DEFAULT_THETA), "rope_theta", where)
    kind = joined.pop("rope_type", "default")
    for key in joined:
        if key not in _KEYS[kind]:
            known = any(key in keys for keys in _KEYS.values())
            raise UserError(
                f"{where}: rope_type {kind} takes no {key}; remove it"
                if known
                else f"{where}: unknown key {key} of rope_type {kind}; this rope variant is not supported"
            )

    def take(key: str, default: float | None = None) -> float:
        if key not in joined and default is None:
            raise UserError(f"{where}: rope_type {kind} needs {key}")
        return _number(joined.get(key, default), key, where)

    if kind == "default":
        return theta, None
    factor = take("factor")
    if kind == "linear":
        return theta, LinearScaling(factor)
    original = take("original_max_position_embeddings", max_positions)
    if not original.is_integer():
        raise UserError(f"{where}: original_max_position_embeddings must be a whole number, got {original!r}")
    if kind == "llama3":
        scaling = Llama3Scaling(factor, take("low_freq_factor"), take("high_freq_factor"), int(original))
        if scaling.high_freq_factor <= scaling.low_freq_factor:
            raise UserError(f"{where}: high_freq_factor must exceed low_freq_factor")
        return theta, scaling
    optional = {key: take(key) for key in ("attention_factor", "mscale", "mscale_all_dim") if key in joined}
    yarn = YarnScaling(
        factor, int(original), take("beta_fast", 32.0), take("beta_slow", 1.0), joined.get("truncate", True), **optional
    )
    if not isinstance(yarn.truncate, bool):
        raise UserError(f"{where}: truncate must be true or false, got {yarn.truncate!r}")
    if yarn.beta_fast < yarn.beta_slow:
        raise UserError(f"{where}: beta_fast must not be less than beta_slow")
    if theta <= 1:
        raise UserError(f"{where}: rope_type yarn needs a rope_theta above 1, got {theta!r}")
    return theta, yarn


def rope_to_hf(scaling: Scaling | None) -> dict[str, Any]:
    """The key `rope_scaling` that `take_rope` reads back; {} without scaling."""
    if scaling is None:
        return {}
    if isinstance(scaling, LinearScaling):
        return {"rope_scaling": {"rope_type": "linear", "factor": scaling.factor}}
    kind = "llama3" if isinstance(scaling, Llama3Scaling) else "yarn"
    numbers = {key: value for key, value in vars(scaling).items() if value is not None}
    original = numbers.pop("original_max_positions")
    return {"rope_scaling": {"rope_type": kind, **numbers, "original_max_position_embeddings": original}}


def _join(rest: dict[str, Any], where: str) -> dict[str, Any]:
    """Joins `rope_theta`, `rope_scaling` and `rope_parameters`, which must not contradict one another; rope_type is one
    that is supported."""
    joined: dict[str, Any] = {}
    top = {"rope_theta": rest.pop("rope_theta")} if "rope_theta" in rest else {}
    for name, source in [("rope_theta", top), *((k, rest.pop(k, {})) for k in ("rope_scaling", "rope_parameters"))]:
        if not isinstance(source, Mapping):
            raise UserError(f"{where}: {name} must be a mapping, got {source!r}")
        for key, value in source.items():
            key = "rope_type" if key == "type" else key  # the older name
            # A null stands for the default, but for `truncate`, where transformers takes it for false.
            if (value is not None or key == "truncate") and joined.setdefault(key, value) != value:
                raise UserError(f"{where}: {key} is given twice, as {joined[key]!r} and {value!r}; keep one")
    kind = joined.get("rope_type", "default")
    if not isinstance(kind, str) or kind not in _KEYS:
        *others, last = _KEYS
        raise UserError(f"{where}: rope_type {kind!r} is not supported; only {', '.join(others)} and {last} are")
    return joined


def _number(value: Any, key: str, where: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 2**63:
        raise UserError(f"{where}: {key} must be a positive number, got {value!r}")
    return float(cast(float, value))
