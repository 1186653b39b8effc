"""Which parameters are differentiated: the LoRA leaves, all parameters, or those whose name matches a pattern.

theta is what a gradient or a direction is shaped like; rest is what stays frozen. Under `lora` theta is the
adapter tree itself; otherwise it is the part of {"lora": ..., "base": ...} that was chosen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flax import traverse_util

from ntk_jax.errors import UserError
from ntk_jax.models.lora import is_fresh
from ntk_jax.models.model import Model
from ntk_jax.models.quantization import is_quantised

Tree = dict[str, Any]


def split_parameters(model: Model, parameters: str) -> tuple[Tree, Tree]:
    """(theta, rest) for `parameters` = "lora", "all", or a regular expression over names like
    "lora/layers/q_proj/a" and "base/layers/q_proj/kernel" (searched, not anchored).

    Raises UserError when nothing matches, for "lora" when the model has no adapter, and when quantised weights are
    among the chosen: 8-bit numbers have no derivative.
    """
    if parameters == "lora":
        if not model.lora:
            raise UserError(
                f"{model.name} has no LoRA adapter; pass lora= or adapter= to load_model, or parameters='all'"
            )
        return model.lora, {"base": model.base}
    flat = traverse_util.flatten_dict({"lora": model.lora or {}, "base": model.base})
    try:
        pattern = re.compile("" if parameters == "all" else parameters)
    except re.error as error:
        raise UserError(f"parameters = {parameters!r} is not a regular expression: {error}") from None
    chosen = {path: leaf for path, leaf in flat.items() if pattern.search("/".join(path))}
    if not chosen:
        names = ", ".join(sorted("/".join(path) for path in flat)[:4])
        raise UserError(f"parameters = {parameters!r} matches no parameter; names look like {names}")
    for path, leaf in chosen.items():
        if is_quantised(path[-1], leaf):
            raise UserError(
                f"parameters = {parameters!r} would differentiate {'/'.join(path)} of weights held in "
                f"{model.quantization}; take parameters = 'lora', or load the model without quantization"
            )
    others = {path: leaf for path, leaf in flat.items() if path not in chosen}
    return traverse_util.unflatten_dict(chosen), traverse_util.unflatten_dict(others)


def join_parameters(theta: Tree, rest: Tree, parameters: str) -> tuple[Tree, Tree]:
    """(lora, base) back from the two parts; usable under every transform."""
    if parameters == "lora":
        return theta, rest["base"]
    whole = _merge(theta, rest)
    return whole.get("lora", {}), whole["base"]


def refuse_fresh_lora(model: Model, parameters: str) -> None:
    """Raises UserError when only adapter leaves are differentiated and every B is 0: all A-gradients would vanish
    (DESIGN §3)."""
    if not model.lora or not is_fresh(model.lora):
        return
    if parameters == "lora" or "base" not in split_parameters(model, parameters)[0]:
        raise UserError(
            "the LoRA adapter is fresh (every B is 0), so every A-gradient vanishes; warm it up on the domain first, "
            "load an adapter, or allow it with allow_fresh_lora"
        )


def _merge(a: Mapping[str, Any], b: Mapping[str, Any]) -> Tree:
    return {
        key: _merge(a.get(key, {}), b.get(key, {}))
        if isinstance(a.get(key, b.get(key)), Mapping)
        else a[key]
        if key in a
        else b[key]
        for key in [*a, *(k for k in b if k not in a)]
    }
