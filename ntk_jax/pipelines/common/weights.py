"""What a training changes of a run's model, an adapter or all the weights: where it starts, where an arm keeps what
came out, and how it is loaded again."""

from __future__ import annotations

from pathlib import Path

from ntk_jax.errors import UserError
from ntk_jax.models.model import Model, load_model, without_adapter
from ntk_jax.pipelines.common.model import RunModel
from ntk_jax.pipelines.common.sections import ModelSection

FOLDERS = {"lora": "adapter", "all": "model"}  # parameters → the folder of an arm that holds them


def check_parameters(parameters: str, quantization: str | None, where: str) -> None:
    """Raises UserError: all the weights of a model whose weights are quantized. where: the section of `parameters`."""
    if parameters == "all" and quantization:
        raise UserError(
            f"{where}.parameters = all, but the weights are held in {quantization} (model.quantization); train lora, "
            "or load the model without it"
        )


def start_of(model: RunModel, parameters: str) -> Model:
    """The model that a training starts from: the base, without an adapter where all the weights are trained."""
    return model.base if parameters == "lora" else without_adapter(model.base)


def is_saved(place: Path, parameters: str) -> bool:
    """Whether the folder of an arm holds what was trained, whole: the configuration is written last."""
    name = "adapter_config.json" if parameters == "lora" else "config.json"
    return (place / FOLDERS[parameters] / name).exists()


def trained_model(model: RunModel, section: ModelSection, place: Path, parameters: str) -> Model:
    """The model of an arm: the base with the arm's adapter, or the arm's own weights. place: its folder."""
    folder = place / FOLDERS[parameters]
    if parameters == "lora":
        return model.adapted(folder)
    return load_model(str(folder), dtype=section.dtype, mesh=model.mesh)
