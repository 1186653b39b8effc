"""A model without its weights: its shape from a config.json or from the config, and what follows from it."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from ntk_jax.engine.costs import Grounds
from ntk_jax.errors import UserError
from ntk_jax.models.config import ModelConfig, parse_config
from ntk_jax.models.decoder import abstract_decoder
from ntk_jax.models.hub import load_tokenizer, read_config, resolve
from ntk_jax.models.lora import LoRAConfig
from ntk_jax.models.model import Model
from ntk_jax.models.peft import load_adapter
from ntk_jax.parallel.mesh import abstract_mesh
from ntk_jax.pipelines.common.model import RunModel, check_length, refuse_adapter_as_model
from ntk_jax.report.amounts import metric


def model_folder(path: str) -> Path | None:
    """The folder of the model's files if it is on this machine, in the hub's cache perhaps; nothing is downloaded.
    Raises UserError: a `builtin:` model that does not exist."""
    if path.startswith("builtin:"):
        return resolve(path)
    if not path:
        return None
    folder = Path(path).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    name, _, revision = path.partition("@")
    try:
        found = try_to_load_from_cache(name, "config.json", revision=revision or None)
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None


def model_shape(config: Any, folder: Path | None, grounds: Grounds) -> ModelConfig:
    """The model's numbers: from config.json if it is here, else from estimate.shape.

    Raises UserError: neither is there, or one of them is wrong.
    """
    given = {key: value for key, value in dataclasses.asdict(config.estimate.shape).items() if value is not None}
    if folder is not None and (folder / "config.json").is_file():
        shape, source = read_config(folder, config.model.ignore_config_keys), str(folder / "config.json")
        note = grounds.known
    elif given:
        given["sliding_window"] = None  # silence here is not the silence of a file
        shape, source, note = parse_config(given, "estimate.shape"), "estimate.shape of the config", grounds.assume
    else:
        raise UserError(
            f"model.path = {config.model.path!r}: no config.json on this machine (nothing is downloaded for an "
            "estimate); give a folder that has one, or the numbers in it as estimate.shape"
        )
    text = (
        f"{shape.model_type}, {shape.num_layers} layers, width {shape.hidden_size:,}, inner "
        f"{shape.intermediate_size:,}, {shape.num_heads} heads over {shape.num_kv_heads}, vocabulary "
        f"{shape.vocab_size:,}"
    )
    note("model shape", dataclasses.asdict(shape), text, source)
    return shape


def abstract_model(config: Any, grounds: Grounds) -> RunModel:
    """The model of a config as its stages know it, but for the weights, whose leaves are shapes: every size that a
    stage derives from the model, the adapter and the mesh is derived by the same code. Its tokenizer is None where
    there is none here.

    Raises UserError: no shape to be had, a mesh that does not fit the devices, an adapter that does not fit.
    """
    refuse_adapter_as_model(config.model.path)
    folder = model_folder(config.model.path)
    shape = model_shape(config, folder, grounds)
    check_length(config.model, shape)
    lora = LoRAConfig(config.lora.rank, config.lora.alpha, config.lora.targets)
    if config.model.adapter:
        _, lora = load_adapter(config.model.adapter, shape)
    dtype: Any = jnp.dtype(config.model.dtype)
    graphdef, adapter, base = abstract_decoder(shape, lora, dtype, config.model.quantization)
    tokenizer = None
    if folder is not None and any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        tokenizer = load_tokenizer(folder, shape.vocab_size, shape.special_tokens)
    mesh = device_mesh(config, grounds)
    model = Model(shape, graphdef, adapter, base, lora, tokenizer, config.model.path, dtype)
    whole, low = (sum(leaf.size for leaf in jax.tree.leaves(tree)) for tree in (base, adapter))
    grounds.known(
        "parameters",
        {"base": whole, "lora": low},
        f"{metric(whole)} with embedding and head, LoRA {metric(low)} ({100 * low / whole:.2f}%)",
        f"the shapes of the decoder, lora.rank {lora.rank}",
    )
    return RunModel(lambda: mesh, lambda _: model)


def device_mesh(config: Any, grounds: Grounds) -> Any:
    """An abstract mesh over the devices of the run, None for a single one. Raises UserError: they do not fit it."""
    sizes, given = (config.mesh.data, config.mesh.fsdp, config.mesh.tensor), config.estimate.devices
    count = given or jax.device_count()
    if -1 not in sizes and given is None:
        count = math.prod(sizes)  # a mesh that is given in full says how many
    if given:
        grounds.assume("devices", count, f"{count}", "estimate.devices")
    elif -1 not in sizes:
        grounds.known("devices", count, f"{count}", "mesh of the config")
    else:
        grounds.known("devices", count, f"{count} × {jax.devices()[0].device_kind}", "those of this machine")
    mesh = abstract_mesh(*sizes, count)
    return None if count == 1 else mesh
