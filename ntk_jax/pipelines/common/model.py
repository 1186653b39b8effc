"""The model of a run: loaded when a stage first asks for it, on the mesh that the config describes."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from ntk_jax.errors import UserError
from ntk_jax.models.checkpoint import base_of_adapter
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.lora import LoRAConfig, initial_lora
from ntk_jax.models.model import Model, load_model, with_lora
from ntk_jax.models.peft import load_adapter
from ntk_jax.parallel import hosts
from ntk_jax.parallel.mesh import make_mesh
from ntk_jax.parallel.rules import param_shardings
from ntk_jax.pipelines.common.sections import MeshSection, ModelSection


@dataclass
class RunModel:
    """make_mesh, load(mesh): how the mesh and the base model are come by; `estimate` gives ones without weights."""

    make_mesh: Callable[[], jax.sharding.Mesh | None]
    load: Callable[[jax.sharding.Mesh | None], Model]

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh | None:
        """The devices' mesh, None for a single device."""
        return self.make_mesh()

    @functools.cached_property
    def base(self) -> Model:
        """The model the run starts from: fresh LoRA, or the adapter that the config names."""
        return self.load(self.mesh)

    def adapted(self, adapter: Path) -> Model:
        """The base model with the adapter in a folder."""
        lora, _ = load_adapter(adapter, self.base.config)
        if hosts.is_distributed() and self.mesh is not None:
            lora = hosts.place(lora, param_shardings(lora, self.mesh))
        return with_lora(self.base, lora)

    def fresh(self, seed: int) -> Model:
        """The base model with the fresh adapter of another seed, leaves [L, Din, R] and [L, R, Dout] as before."""
        lora = initial_lora(self.base.lora, seed)
        return with_lora(self.base, lora if self.mesh is None else hosts.place(lora, param_shardings(lora, self.mesh)))

    @property
    def adapter_size(self) -> int:
        """Parameters of the adapter."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.base.lora))


def run_model(config: Any, mesh: MeshSection | None = None) -> RunModel:
    """The model of a config with the sections `model`, `lora`, `mesh` and a seed. mesh: instead of the config's."""
    return RunModel(lambda: mesh_of(mesh or config.mesh), functools.partial(_load, config))


def refuse_adapter_as_model(path: str) -> None:
    """Raises UserError where model.path is the folder of an adapter."""
    base = base_of_adapter(Path(path).expanduser()) if path else None
    if base is not None:
        raise UserError(f"model.path = {path} is a PEFT adapter: set model.adapter to it, and model.path to {base}")


def _load(config: Any, mesh: jax.sharding.Mesh | None) -> Model:
    section, lora = config.model, config.lora
    refuse_adapter_as_model(section.path)
    model = load_model(
        section.path,
        lora=None if section.adapter else LoRAConfig(lora.rank, lora.alpha, lora.targets),
        adapter=section.adapter,
        dtype=section.dtype,
        quantization=section.quantization,
        mesh=mesh,
        seed=config.seed,
        ignore_config_keys=section.ignore_config_keys,
    )
    check_length(section, model.config)
    return model


def check_length(section: ModelSection, shape: ModelConfig) -> None:
    """Raises UserError: examples may be longer than the model can take."""
    if section.max_length > shape.max_positions:
        raise UserError(
            f"model.max_length = {section.max_length} is more than the {shape.limit} of {section.path}; lower it"
        )


def mesh_of(section: MeshSection) -> jax.sharding.Mesh | None:
    """The devices' mesh, or None for a single device, where a mesh would only add dispatch time. Sizes that multiply
    to fewer devices than there are use the first of them. Raises UserError: they do not fit the devices."""
    sizes, devices = (section.data, section.fsdp, section.tensor), jax.devices()
    if -1 not in sizes:
        if hosts.is_distributed() and math.prod(sizes) != len(devices):
            raise UserError(
                f"mesh.data x mesh.fsdp x mesh.tensor = {math.prod(sizes)}, but the processes have {len(devices)} "
                "devices together; over several processes the mesh takes all of them"
            )
        devices = devices[: math.prod(sizes)]
    if len(devices) == 1 and set(sizes) <= {1, -1}:
        return None
    mesh = make_mesh(*sizes, devices=devices)
    hosts.connect_devices(mesh)
    return mesh
