"""What the stages of NTK-Selector are handed: the config, the job, the model, the domain and the pool."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from ntk_jax.data.formats import AUTO, Reading
from ntk_jax.data.sources import source_hashes
from ntk_jax.engine.stage import Job
from ntk_jax.errors import UserError
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.parameters import late_share, split_parameters
from ntk_jax.kernels.projections import Projection
from ntk_jax.models.model import Model
from ntk_jax.pipelines.common.checks import check_model_and_data
from ntk_jax.pipelines.common.inputs import evaluation_files, model_hashes
from ntk_jax.pipelines.common.model import RunModel, run_model
from ntk_jax.pipelines.common.pool_run import PoolRun, pool_run
from ntk_jax.pipelines.common.reading import reading_of
from ntk_jax.pipelines.select import proxy
from ntk_jax.pipelines.select.arms import arms
from ntk_jax.pipelines.select.config import SelectConfig
from ntk_jax.pipelines.select.proxy import has_proxy, in_words, selecting_config, selecting_model, sentence
from ntk_jax.selection.clean import AUTO as AUTO_FILES
from ntk_jax.storage.hashing import hash_tree, sha256_file


@dataclass
class SelectRun(PoolRun):
    """A run of NTK-Selector. config, model: those that select."""

    config: SelectConfig
    asked: SelectConfig | None = None  # where a proxy selects: the config as it was given, with the model to be trained

    @functools.cached_property
    def target(self) -> SelectRun:
        """The run with the model that is trained and evaluated: this one, unless its model is a proxy, whose weights
        are then let go of."""
        if self.asked is None:
            return self
        for holder, names in ((self.model, ("base",)), (self, ("warm", "theta", "differentiated"))):
            for name in names:
                holder.__dict__.pop(name, None)
        return pool_run(SelectRun, self.asked, self.job)

    @functools.cached_property
    def warm(self) -> Model:
        """The base model with the warm-up's adapter."""
        return self.model.adapted(self.job.folder / "warmup" / "adapter")

    @property
    def objective(self) -> Objective:
        """What is differentiated."""
        score = self.config.score
        return Objective(score.objective, score.normalize, score.probes, self.config.seed)

    @property
    def projection(self) -> Projection:
        """How gradients are projected to sketches."""
        section = self.config.sketch
        return Projection(section.projection, section.dim, self.config.seed, section.sparsity)

    @functools.cached_property
    def theta(self) -> Any:
        """The parameters differentiated: what a direction is shaped like."""
        return split_parameters(self.model.base, self.config.score.parameters)[0]

    @functools.cached_property
    def differentiated(self) -> dict[str, Any]:
        """What the FLOP formulas ask of the parameters differentiated."""
        leaves = jax.tree_util.tree_flatten_with_path(self.theta.get("base", {}))[0]
        kernels = [leaf.size for path, leaf in leaves if path[-1] == jax.tree_util.DictKey("kernel")]
        late = late_share(self.config.score.parameters, self.model.base.config.num_layers)
        return {"lora_parameters": self.model.adapter_size, "dense_parameters": sum(kernels), "late": late}


def open_run(config: SelectConfig, job: Job) -> SelectRun:
    """The run of a config."""
    if not has_proxy(config):
        return pool_run(SelectRun, config, job)
    job.progress("proxy", None, "")(1, 1, sentence(config))
    selecting = selecting_config(config)
    model = run_model(selecting)
    run = pool_run(SelectRun, selecting, job, RunModel(model.make_mesh, functools.partial(_proxy, model)))
    run.asked = config
    return run


def _proxy(model: RunModel, mesh: jax.sharding.Mesh | None) -> Model:
    try:
        return model.load(mesh)
    except UserError as error:
        raise in_words(error) from None


def check_settings(config: SelectConfig) -> None:
    """Raises UserError as `check_model_and_data`, or for a proxy without a path."""
    check_model_and_data(config)
    proxy.check(config)


def input_hashes(config: SelectConfig) -> dict[str, Any]:
    """How the SHA-256 of each kind of input is found."""
    return {
        "model": lambda: model_hashes(config.model),
        "proxy": lambda: _proxy_hashes(config),
        "direction": lambda: _direction_hash(config.score.direction),
        "domain": lambda: source_hashes(config.data.domain, reading_of(config, "data")),
        "pool": lambda: source_hashes(config.data.pool, reading_of(config, "data")),
        "evaluate": lambda: source_hashes(evaluation_files(config), reading_of(config, "evaluate")),
        "arms": lambda: _arm_hashes(config),
        "decontaminate": lambda: _item_hashes(config),
    }


def _proxy_hashes(config: SelectConfig) -> dict[str, str]:
    try:
        return model_hashes(selecting_model(config))
    except UserError as error:
        raise in_words(error) from None


def _direction_hash(direction: str) -> dict[str, str]:
    if direction in ("mean_gradient", "adam"):
        return {}
    if not Path(direction).is_file():
        raise UserError(f"score.direction = {direction!r} is neither mean_gradient, adam nor an existing file")
    return {direction: sha256_file(Path(direction))}


def evaluation_items_of(config: SelectConfig) -> list[tuple[str, Reading]]:
    """(file, how it is read) of all whose items may not be selected."""
    named = config.select.clean.decontaminate
    own = reading_of(config, "evaluate")
    found = dict.fromkeys(config.evaluate.files, own) if AUTO_FILES in named else {}
    return [
        *found.items(),
        *((file, AUTO) for file in dict.fromkeys(named) if file != AUTO_FILES and file not in found),
    ]


def _item_hashes(config: SelectConfig) -> dict[str, str]:
    found: dict[str, str] = {}
    for file, reading in evaluation_items_of(config):
        found |= source_hashes((file,), reading)
    return found


def _arm_hashes(config: SelectConfig) -> dict[str, str]:
    """{arm: SHA-256} of the file that it is trained on, or of the hashes of several. By the arm and not by the path: a
    training lies under its arm's name, and another file for that name must not be taken for it."""
    reading = reading_of(config, "data").for_patterns
    found = {arm.name: list(source_hashes((arm.file,), reading).values()) for arm in arms(config) if arm.file}
    return {name: hashes[0] if len(hashes) == 1 else hash_tree(hashes) for name, hashes in found.items()}
