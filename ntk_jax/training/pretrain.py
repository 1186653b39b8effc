"""Continual pre-training: a model goes on learning from text, by an adapter or in all its parameters.

It is `train` on a `Mixture`: full rows of documents, every next token a label, the rate warmed up again and let fall.
What is new here is that the model can be looked at on the way, and what is kept at the end.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection
from pathlib import Path

import jax
from jax.sharding import Mesh

from ntk_jax.data.token_store import tokenizer_digest
from ntk_jax.errors import UserError
from ntk_jax.kernels.parameters import Tree, join_parameters, split_parameters
from ntk_jax.models.hub import save_weights
from ntk_jax.models.model import Model
from ntk_jax.models.peft import save_adapter
from ntk_jax.models.quantization import cast
from ntk_jax.parallel import hosts
from ntk_jax.training.mixture import Mixture
from ntk_jax.training.optimizer import TrainConfig
from ntk_jax.training.train import Progress, Trained, train

# Rates of the order that continual pre-training of small models is reported with; the rest as pre-training has it.
PRETRAINING = TrainConfig(
    learning_rate=1e-4, schedule="cosine", warmup_ratio=0.03, floor=0.1, weight_decay=0.01, beta2=0.95
)

Measure = Callable[[int, Model], None]


def pretrain(
    model: Model,
    mixture: Mixture,
    config: TrainConfig = PRETRAINING,
    *,
    folder: Path,
    parameters: str = "lora",
    mesh: Mesh | None = None,
    progress: Progress | None = None,
    remat: bool | None = None,
    measure_at: Collection[int] = (),
    measure: Measure | None = None,
) -> Trained:
    """Trains on the mixture's tokens and returns the trained parameters; called again after a kill, it goes on to the
    same bits.

    Steps, rows and seed are the mixture's; of the config `epochs`, `max_steps` and `batch_size` are not asked.
    parameters: "lora", or "all" of a model without an adapter (`models.model.without_adapter`). measure(step, model):
    called after these steps (from 1) with the model as it then is, before the step's checkpoint is written; that model
    is gone after the call. The other arguments, and what is raised: as `train`; and the texts were written with another
    tokenizer than the model's.
    """
    if model.tokenizer is not None:
        refuse_other_tokenizer(model, mixture)
    frozen = split_parameters(model, parameters)[1]

    def keep(step: int, trained: Tree) -> None:
        assert measure is not None
        lora, base = join_parameters(trained, frozen, parameters)
        measure(step, dataclasses.replace(model, lora=lora, base=base))

    return train(
        model,
        mixture,
        config,
        folder=folder,
        seed=mixture.seed,
        row_length=mixture.row_length,
        mesh=mesh,
        progress=progress,
        parameters=parameters,
        remat=remat,
        keep_steps=measure_at if measure is not None else (),
        keep=keep if measure is not None else None,
    )


def refuse_other_tokenizer(model: Model, mixture: Mixture) -> None:
    """Raises UserError where the texts of a mixture are not written with the model's tokenizer."""
    own = tokenizer_digest(model.tokenizer)
    for name, store in mixture.sources.items():
        if store.facts.get("tokenizer") != own:
            raise UserError(
                f"the tokens of {name} in {store.folder} were written with another tokenizer than that of "
                f"{model.name}; delete that folder and write them again"
            )


def measured_steps(steps: int, count: int) -> list[int]:
    """So many steps spread evenly from 1 to the last one, which is among them; fewer where there are fewer."""
    return sorted({max(1, round(steps * number / count)) for number in range(1, count + 1)})


def save_pretrained(folder: Path, model: Model, trained: Trained | Model, parameters: str, base_name: str) -> Path:
    """Writes what was trained and returns where: adapter/ in PEFT's format, or model/, a Hugging Face folder with the
    tokenizer, in the model's dtype. trained: what a training gave back, or the model as it is on the way. base_name: of
    the model that an adapter belongs to. Raises UserError: a full disk.
    """
    if parameters == "lora":
        assert model.lora_config is not None  # `train` refuses a model without an adapter
        save_adapter(folder / "adapter", trained.lora, model.lora_config, model.config, base_name)
        return folder / "adapter"
    base = jax.tree.map(hosts.on_host, cast(trained.base, model.dtype))
    if hosts.is_primary():
        save_weights(folder / "model", dataclasses.replace(model, lora=trained.lora, base=base))
    hosts.barrier(f"saved {folder}")
    return folder / "model"
