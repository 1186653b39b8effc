"""What all stages of a run share: the resolved config, the run directory, the model and the examples."""

from __future__ import annotations

import dataclasses
import functools
import io
import itertools
import math
import zipfile
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from ntk_jax.config import Config, TrainSection
from ntk_jax.data.batch import TokenRow
from ntk_jax.data.packing import row_length_for
from ntk_jax.data.records import response_text
from ntk_jax.data.sources import read_records, sample_indices
from ntk_jax.data.statistics import DataStatistics
from ntk_jax.data.tokens import NO_RESPONSE, Dropped, as_rows
from ntk_jax.errors import UserError
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.parameters import late_share, split_parameters
from ntk_jax.kernels.projections import Projection
from ntk_jax.kernels.rows import Layout, layout_for
from ntk_jax.models.lora import LoRAConfig
from ntk_jax.models.model import Model, load_model, with_lora
from ntk_jax.models.peft import load_adapter
from ntk_jax.parallel import hosts
from ntk_jax.parallel.mesh import make_mesh
from ntk_jax.parallel.rules import param_shardings
from ntk_jax.selection.sketch_store import longest_id
from ntk_jax.stages.share import Share
from ntk_jax.storage.atomic import write_bytes
from ntk_jax.training.train import TrainConfig

Record = dict[str, Any]
MakeProgress = Callable[[str, int | None, str], Callable[..., None]]


@dataclass
class Run:
    """A run in progress. Everything costly is made once, when a stage first asks for it."""

    config: Config
    folder: Path
    make_progress: MakeProgress
    share: Share | None = None  # None: all blocks, and the stage is closed

    @functools.cached_property
    def mesh(self) -> jax.sharding.Mesh | None:
        return mesh_of(self.config)

    @functools.cached_property
    def base(self) -> Model:
        """The model the run starts from: fresh LoRA, or the adapter the config names."""
        section, lora = self.config.model, self.config.lora
        model = load_model(
            section.path,
            lora=None if section.adapter else LoRAConfig(lora.rank, lora.alpha, lora.targets),
            adapter=section.adapter,
            dtype=section.dtype,
            quantization=section.quantization,
            mesh=self.mesh,
            seed=self.config.seed,
        )
        if section.max_length > model.config.max_positions:
            raise UserError(
                f"model.max_length = {section.max_length} is more than the {model.config.max_positions} positions of "
                f"{section.path}; lower it"
            )
        return model

    @functools.cached_property
    def warm(self) -> Model:
        """The base model with the warm-up's adapter."""
        return self.adapted(self.folder / "warmup" / "adapter")

    def adapted(self, adapter: Path) -> Model:
        """The base model with the adapter of a stage of this run."""
        lora, _ = load_adapter(adapter, self.base.config)
        if hosts.is_distributed() and self.mesh is not None:
            lora = hosts.place(lora, param_shardings(lora, self.mesh))
        return with_lora(self.base, lora)

    @property
    def objective(self) -> Objective:
        score = self.config.score
        return Objective(score.objective, score.normalize, score.probes, self.config.seed)

    @functools.cached_property
    def adapter_size(self) -> int:
        return sum(leaf.size for leaf in jax.tree.leaves(self.base.lora))

    @functools.cached_property
    def differentiated(self) -> dict[str, Any]:
        """What the FLOP formulas ask of the parameters differentiated."""
        theta, _ = split_parameters(self.base, self.config.score.parameters)
        leaves = jax.tree_util.tree_flatten_with_path(theta.get("base", {}))[0]
        kernels = [leaf.size for path, leaf in leaves if path[-1] == jax.tree_util.DictKey("kernel")]
        late = late_share(self.config.score.parameters, self.base.config.num_layers)
        return {"lora_parameters": self.adapter_size, "dense_parameters": sum(kernels), "late": late}

    @property
    def projection(self) -> Projection:
        section = self.config.sketch
        return Projection(section.projection, section.dim, self.config.seed, section.sparsity)

    @property
    def layout(self) -> Layout:
        """The shapes of every scoring step of this run."""
        return layout_for(self.config.model.max_length, self.config.score.batch_tokens, self.mesh)

    @property
    def row_length(self) -> int:
        return row_length_for(self.config.model.max_length)

    # -- examples ----------------------------------------------------------------------------------------------

    @functools.cached_property
    def domain(self) -> list[tuple[Record, TokenRow]]:
        """The domain set, sampled by the seed, with what was dropped left out (see `domain_statistics`)."""
        data = self.config.data
        records = list(read_records(data.domain))
        chosen = sample_indices(len(records), data.domain_limit, self.config.seed)
        if chosen is not None:
            records = [records[i] for i in chosen]
        kept, statistics = self.encode(records)
        if not kept:
            raise UserError(
                f"data.domain: none of {len(records)} examples of {', '.join(data.domain)} is usable "
                f"(dropped: {statistics.to_dict()['dropped']}); check model.max_length and the responses"
            )
        self.domain_statistics = statistics
        return kept

    def encode(
        self, records: list[Record], span: str | None = None
    ) -> tuple[list[tuple[Record, TokenRow]], DataStatistics]:
        """The records that survive encoding, and the account of all. Training always looks at responses only."""
        statistics = DataStatistics()
        kept = []
        for record, row in self.rows(records, span or "response"):
            statistics.add(record, row)
            if isinstance(row, TokenRow):
                kept.append((record, row))
        return kept, statistics

    def rows(self, records: list[Record], span: str) -> Iterator[tuple[Record, TokenRow | Dropped]]:
        """Each record with its tokens, in order, by this run's template and length rules. Whatever the span, an example
        without a response is dropped: it could be scored, but neither trained on nor compared."""
        section = self.config.model
        for record, row in as_rows(
            records,
            self.base.tokenizer,
            max_length=section.max_length,
            span=span,
            overflow=section.overflow,
            template=section.template,
            add_eos=section.add_eos,
            vocab_size=self.base.config.vocab_size,
        ):
            assert record is not None
            yield record, row if response_text(record).strip() else Dropped(NO_RESPONSE, record["id"])

    @functools.cached_property
    def pool_ordinals(self) -> np.ndarray:
        """Ascending positions in the pool of what this run looks at: all of it, or a seeded sample."""
        total, _ = self._pool_size
        chosen = sample_indices(total, self.config.data.pool_limit, self.config.seed)
        return np.arange(total) if chosen is None else chosen

    @property
    def longest_pool_id(self) -> int:
        """Bytes of the longest id in the pool."""
        return self._pool_size[1]

    @functools.cached_property
    def _pool_size(self) -> tuple[int, int]:
        """(examples, bytes of the longest id) of the whole pool. Reads and checks every record: a bad line must be
        found now, for mending it changes the pool, and with it every result."""
        progress = self.make_progress("check pool", None, "examples")
        total = longest = 0
        for total, record in enumerate(read_records(self.config.data.pool), 1):
            longest = max(longest, longest_id([record["id"]]))
            if total % 1000 == 0:
                progress(total, None)
        progress(total, total)
        return total, longest

    def pool_records(self, ordinals: np.ndarray) -> Iterator[tuple[int, Record]]:
        """(place in `ordinals`, record), streamed: the pool is never in memory."""
        wanted = iter(enumerate(ordinals.tolist()))
        place, target = next(wanted, (None, None))
        for number, record in enumerate(read_records(self.config.data.pool)):
            if target is None:
                return
            if number == target:
                assert place is not None
                yield place, record
                place, target = next(wanted, (None, None))
        if target is not None:
            raise UserError(f"data.pool: record {target} is no longer there; did a file change during the run?")

    def pool_blocks(
        self, ordinals: np.ndarray, wanted: Collection[int], size: int | None = None
    ) -> Iterator[tuple[int, list[Record]]]:
        """(block number, records) of the wanted blocks, ascending; of score.block_examples each, unless a size is
        given."""
        size = size or self.config.score.block_examples
        records = (record for _, record in self.pool_records(ordinals))
        for number in range(max(wanted, default=-1) + 1):
            block = list(itertools.islice(records, size))
            if number in wanted:
                yield number, block

    def pool_sample(self, count: int) -> list[TokenRow]:
        """A seeded sample of the pool as rows; what cannot be used is left out. Raises UserError when nothing can."""
        ordinals = self.pool_ordinals
        chosen = sample_indices(len(ordinals), count, self.config.seed)
        records = [record for _, record in self.pool_records(ordinals if chosen is None else ordinals[chosen])]
        kept, statistics = self.encode(records, self.config.score.span)
        if not kept:
            raise UserError(
                f"data.pool: none of {len(records)} sampled examples is usable (dropped: "
                f"{statistics.to_dict()['dropped']}); check model.max_length and the responses"
            )
        return [row for _, row in kept]

    # -- training ----------------------------------------------------------------------------------------------

    @staticmethod
    def train_config(section: TrainSection, **changes: Any) -> TrainConfig:
        return TrainConfig(**{**dataclasses.asdict(section), **changes})


def mesh_of(config: Config) -> jax.sharding.Mesh | None:
    """The devices' mesh, or None for a single device, where a mesh would only add dispatch time. Sizes that multiply
    to fewer devices than there are use the first of them. Raises UserError: they do not fit the devices."""
    sizes, devices = (config.mesh.data, config.mesh.fsdp, config.mesh.tensor), jax.devices()
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


def shifted(progress: Callable[..., None], start: int, total: int) -> Callable[[int, int], None]:
    """Progress within a block, reported as progress of the whole."""
    return lambda done, _: progress(start + done, total)


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file that a stage wrote. Raises UserError: it is damaged."""
    try:
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is damaged ({error}); delete it and run again: only it is computed anew") from None


def save_arrays(path: Path, **arrays: Any) -> None:
    """Writes them as one .npz file, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def save_tree(path: Path, tree: Any, facts: dict[str, str] | None = None) -> None:
    """A pytree of nested dicts as one safetensors file with names like "layers/q_proj/a"; the same bytes every time.
    facts: how it was made, kept in the file's metadata."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    arrays = {
        jax.tree_util.keystr(p, simple=True, separator="/"): np.ascontiguousarray(hosts.on_host(leaf))
        for p, leaf in leaves
    }
    write_bytes(path, save(arrays, facts))


def load_tree(path: Path, like: Any) -> Any:
    """The tree that `save_tree` wrote, in the structure of `like`; raises UserError if names or shapes differ (leading
    axes may come on top: the probes of a direction)."""
    try:
        arrays = load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}; it must be a safetensors file written by this package") from None
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves]
    if set(names) != set(arrays):
        odd = sorted(set(names) ^ set(arrays))[0]
        raise UserError(f"{path} does not fit this model's parameters: {odd} is in one and not the other")
    for name, (_, leaf) in zip(names, leaves, strict=True):
        if arrays[name].shape[arrays[name].ndim - leaf.ndim :] != leaf.shape:
            raise UserError(
                f"{path} does not fit this model's parameters: {name} has shape {list(arrays[name].shape)}, "
                f"not {list(leaf.shape)}"
            )
    return jax.tree.unflatten(structure, [arrays[name] for name in names])


def tree_facts(path: Path) -> dict[str, str]:
    """The facts that `save_tree` kept."""
    with safe_open(path, "np") as file:
        return file.metadata() or {}
