"""Which parameters are differentiated: the LoRA leaves, those of the last layers, all parameters, or those whose name
matches a pattern.

theta is what a gradient or a direction is shaped like; rest is what stays frozen. Under `lora` theta is the
adapter tree itself, under `lora[-k:]` that tree with leaves [k, ...], of the last k layers; otherwise it is the part of
{"lora": ..., "base": ...} that was chosen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util

from ntk_jax.errors import UserError
from ntk_jax.models.lora import is_fresh
from ntk_jax.models.model import Model
from ntk_jax.models.quantization import is_quantized

Tree = dict[str, Any]

_LAST = re.compile(r"lora\[-(\d+):\]")  # as Python slices a list of layers


def split_parameters(model: Model, parameters: str) -> tuple[Tree, Tree]:
    """(theta, rest) for `parameters` = "lora", "lora[-4:]" (the adapters of the last four layers), "all", or a regular
    expression over names like "lora/layers/q_proj/a" and "base/layers/q_proj/kernel" (searched, not anchored).

    Raises UserError when nothing matches, for "lora" when the model has no adapter, for more layers than there are, and
    when quantized weights are among the chosen: 8-bit numbers have no derivative.
    """
    if only_adapters(parameters):
        if not model.lora:
            raise UserError(
                f"{model.name} has no LoRA adapter; pass lora= or adapter= to load_model, or parameters='all'"
            )
        count, layers = _last_layers(parameters), model.config.num_layers
        if count is None or count == layers:
            return model.lora, {"base": model.base}
        if not 1 <= count < layers:
            raise UserError(
                f"parameters = {parameters!r}: {model.name} has {layers} layers; take 1 to {layers} of them"
            )
        early = _layers(model.lora, slice(None, layers - count))
        return _layers(model.lora, slice(layers - count, None)), {"base": model.base, "early": early["layers"]}
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
        if is_quantized(path[-1], leaf):
            raise UserError(
                f"parameters = {parameters!r} would differentiate {'/'.join(path)} of weights held in "
                f"{model.quantization}; take parameters = 'lora', or load the model without quantization"
            )
    others = {path: leaf for path, leaf in flat.items() if path not in chosen}
    return traverse_util.unflatten_dict(chosen), traverse_util.unflatten_dict(others)


def join_parameters(theta: Tree, rest: Tree, parameters: str) -> tuple[Tree, Tree]:
    """(lora, base) back from the two parts, as `hidden_states` takes them; usable under every transform."""
    if only_adapters(parameters):
        return ({**theta, "early": rest["early"]} if "early" in rest else theta), rest["base"]
    whole = _merge(theta, rest)
    return whole.get("lora", {}), whole["base"]


def only_adapters(parameters: str) -> bool:
    """Whether theta is a tree of adapter leaves alone, all of them or those of the last layers."""
    return parameters == "lora" or _LAST.fullmatch(parameters) is not None


def late_share(parameters: str, layers: int) -> float:
    """The share of the layers at and behind the first that is differentiated: tangents and backward passes go there
    only."""
    return (_last_layers(parameters) or layers) / layers


def _last_layers(parameters: str) -> int | None:
    found = _LAST.fullmatch(parameters)
    return int(found[1]) if found else None


def _layers(lora: Tree, taken: slice) -> Tree:
    def cut(leaf: Any) -> Any:
        return jax.eval_shape(lambda x: x[taken], leaf) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf[taken]

    return jax.tree.map(cut, lora)


def refuse_fresh_lora(model: Model, parameters: str) -> None:
    """Raises UserError when only adapter leaves are differentiated and every B of them is 0: all A-gradients would
    vanish."""
    if not model.lora:
        return
    if not is_fresh(split_parameters(model, parameters)[0] if only_adapters(parameters) else model.lora):
        return
    if only_adapters(parameters) or "base" not in split_parameters(model, parameters)[0]:
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
