"""A proxy: a smaller model that selects in place of the one that is then trained and evaluated.

All that finds the selection (warm-up, gradients, hidden states, scores, sketches) sees a config whose model is the
proxy. Selections are records, so the two may have different tokenizers and templates; lengths before the fine-tuning
are in the proxy's tokens.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from ntk_jax.errors import UserError
from ntk_jax.pipelines.common.sections import ModelSection
from ntk_jax.pipelines.select.config import SelectConfig

# How texts become tokens, whichever model reads them.
_SHARED = ("overflow", "control_tokens", "add_eos")


def has_proxy(config: SelectConfig) -> bool:
    """Whether another model selects."""
    return config.proxy.path is not None


def selecting_model(config: SelectConfig) -> ModelSection:
    """The section of the model that selects: config.model itself without a proxy."""
    proxy = config.proxy
    if proxy.path is None:
        return config.model
    return dataclasses.replace(
        config.model,
        path=proxy.path,
        adapter=proxy.adapter,
        dtype=proxy.dtype,
        quantization=proxy.quantization,
        max_length=proxy.max_length or config.model.max_length,
        template=proxy.template,
        template_options=proxy.template_options,
        ignore_config_keys=proxy.ignore_config_keys,
    )


def selecting_config(config: SelectConfig) -> SelectConfig:
    """The config as the selecting stages see it: its model is the one that selects."""
    if not has_proxy(config):
        return config
    shape = dataclasses.replace(config.estimate, shape=config.estimate.proxy_shape)
    return dataclasses.replace(config, model=selecting_model(config), estimate=shape)


def selecting_reads(config: SelectConfig) -> tuple[str, ...]:
    """The keys of the model that selects, for a fingerprint."""
    if not has_proxy(config):
        return ("model",)
    length = () if config.proxy.max_length else ("model.max_length",)
    return ("proxy", *(f"model.{key}" for key in _SHARED), *length)


def selecting_inputs(*others: str) -> Any:
    """The files of the model that selects, and these kinds."""
    return lambda config: ("proxy" if has_proxy(config) else "model", *others)


def check(config: SelectConfig) -> None:
    """Raises UserError: the section proxy says something, but names no model."""
    if config.proxy.path == "":
        raise UserError("proxy.path is empty; give a Hugging Face directory, a hub id or builtin:model, or null")
    default = type(config.proxy)()
    if not has_proxy(config) and config.proxy != default:
        fields = dataclasses.fields(default)
        key = next(f.name for f in fields if getattr(config.proxy, f.name) != getattr(default, f.name))
        raise UserError(f"proxy.{key} is set but proxy.path is not; name the proxy, or leave proxy.{key} out")


def in_words(error: UserError) -> UserError:
    """An error about the proxy, in the names that its settings have."""
    text = str(error)
    for ours, its in (("model.", "proxy."), ("estimate.shape", "estimate.proxy_shape")):
        text = text.replace(ours, its)
    return UserError(text if "proxy" in text else f"proxy: {text}")


def sentence(config: SelectConfig) -> str:
    """Which model selects, for people; empty without a proxy."""
    if not has_proxy(config):
        return ""
    if config.proxy.path == config.model.path:
        return f"{config.proxy.path} selects as its own proxy, and is fine-tuned and evaluated"
    return f"{config.proxy.path} selects, {config.model.path} is fine-tuned and evaluated"
