"""Adapters in PEFT's format: variants, spellings, files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import save_file

from files_found.case import Case
from ntk_jax.errors import UserError
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.lora import fold
from ntk_jax.models.model import random_model
from ntk_jax.models.names import MODULES
from ntk_jax.models.peft import load_adapter

TITLE = "Adapters"
CONFIG = ModelConfig("llama", 20, 12, 16, 3, 2, 2, 6)
BASE = random_model(CONFIG).base
NAMES = ("q_proj", "up_proj")
Change = Callable[[dict[str, np.ndarray]], Any]


def write(
    folder: Path,
    ranks: Mapping[tuple[int, str], int] | None = None,
    *,
    change: Change = lambda _: None,
    spelling: str = "base_model.model.model.layers.{layer}.{module}.{part}.weight",
    dtype: Any = np.float32,
    **settings: Any,
) -> dict[tuple[int, str], np.ndarray]:
    """An adapter as PEFT writes it, changed: ranks of (layer, linear), by default 2 for q_proj and up_proj of all
    layers; change edits the tensors. Returns BA of each linear, [Dout, Din]."""
    ranks = ranks or {(layer, name): 2 for layer in range(CONFIG.num_layers) for name in NAMES}
    rng, tensors, products = np.random.default_rng(0), {}, {}
    for (layer, name), rank in ranks.items():
        d_in, d_out = BASE["layers"][name]["kernel"].shape[1:]
        a, b = (rng.standard_normal(shape).astype(dtype) for shape in ((rank, d_in), (d_out, rank)))
        for part, value in (("lora_A", a), ("lora_B", b)):
            tensors[spelling.format(layer=layer, module=MODULES[name], part=part)] = value
        products[layer, name] = b.astype(np.float64) @ a.astype(np.float64)
    change(tensors)
    save_file(tensors, folder / "adapter_model.safetensors")
    plain = {"peft_type": "LORA", "r": 2, "lora_alpha": 6, "target_modules": list(NAMES)}
    (folder / "adapter_config.json").write_text(json.dumps({**plain, **settings}))
    return products


def computed(
    scale: Callable[[int, str], float] = lambda layer, name: 3.0,
    ranks: Mapping[tuple[int, str], int] | None = None,
    **how: Any,
) -> Callable[[Path], None]:
    """A check: what `write` wrote adds scale(layer, linear) BA to W, and nothing anywhere else."""

    def check(folder: Path) -> None:
        products = write(folder, ranks, **how)
        lora, config = load_adapter(folder, CONFIG)
        found = fold(lora, BASE, config.scales)["layers"]
        for name in MODULES:
            for layer in range(CONFIG.num_layers):
                added = found[name]["kernel"][layer] - BASE["layers"][name]["kernel"][layer]
                wanted = products.get((layer, name))
                wanted = 0.0 * added if wanted is None else scale(layer, name) * wanted.T
                assert np.abs(added - wanted).max() < 1e-5, (layer, name)

    return check


def refused(*parts: str, files: Callable[[Path], Any] = lambda _: None, **how: Any) -> Callable[[Path], None]:
    """A check: what `write` wrote, with other files changed afterwards, is refused in one line with these parts."""

    def check(folder: Path) -> None:
        write(folder, **how)
        files(folder)
        with pytest.raises(UserError) as caught:
            load_adapter(folder, CONFIG)
        message = str(caught.value)
        assert all(part in message for part in parts) and "\n" not in message, message

    return check


def each(*checks: Callable[[Path], None]) -> Callable[[Path], None]:
    """All of these checks, one after the other."""

    def check(folder: Path) -> None:
        for one in checks:
            one(folder)

    return check


def keys(**settings: Any) -> Callable[[Path], None]:
    """A check: each of these keys of adapter_config.json is refused by its name."""
    return each(*(refused(f"{key} = {value!r} is not supported", **{key: value}) for key, value in settings.items()))


def emptied(tensors: dict[str, np.ndarray]) -> None:
    for name in tensors:
        tensors[name] = np.zeros(0, np.float32)


def with_tensor(name: str) -> Change:
    return lambda tensors: tensors.update({name: np.ones((2, 2), np.float32)})


def as_binary(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


def as_pointer(folder: Path) -> None:
    (folder / "adapter_model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\nsize 4096\n")


def in_a_folder(folder: Path) -> None:
    (folder / "default").mkdir()
    for file in list(folder.glob("adapter_*")):
        file.rename(folder / "default" / file.name)


def as_model(folder: Path) -> None:
    (folder / "adapter_config.json").rename(folder / "config.json")


def _ranks(**of: int) -> dict[tuple[int, str], int]:
    return {(layer, name): rank for layer in range(CONFIG.num_layers) for name, rank in of.items()}


CASES = [
    Case("plain LoRA on any of the seven linears", "read", computed()),
    Case("float16 and bfloat16", "read as float32", computed(dtype=ml_dtypes.bfloat16)),
    Case("rsLoRA (`use_rslora`)", "scaled by α/√R", computed(lambda *_: 6 / 2**0.5, use_rslora=True)),
    Case(
        "`rank_pattern`",
        "each linear with its rank; smaller ones are filled up with zeros, which have no gradient",
        computed(
            lambda layer, name: 6 / (5 if name == "q_proj" else 2),
            _ranks(q_proj=5, up_proj=2),
            rank_pattern={"q_proj": 5},
        ),
    ),
    Case(
        "`alpha_pattern`",
        "each linear with its scale",
        computed(lambda layer, name: 1.0 if name == "up_proj" else 3.0, alpha_pattern={"mlp.up_proj": 2}),
    ),
    Case(
        "ranks that differ by layer, α with them (EVA)",
        "the same",
        computed(
            ranks={(0, "q_proj"): 4, (1, "q_proj"): 2, (2, "q_proj"): 2},
            target_modules=["q_proj"],
            rank_pattern={"layers.0.self_attn.q_proj": 4},
            alpha_pattern={"layers.0.self_attn.q_proj": 12},
        ),
    ),
    Case(
        "a linear whose scale differs by layer",
        "refused: which layers",
        refused("q_proj has the scale 1 in layer 0 and 3 in layer 1", alpha_pattern={"layers.0.*q_proj": 2}),
    ),
    Case(
        "`layers_to_transform`, `layers_pattern`, `exclude_modules`, a pattern as `target_modules`",
        "as in PEFT; the other layers get zeros, which have no gradient",
        each(
            computed(ranks={(1, "q_proj"): 2, (1, "up_proj"): 2}, layers_to_transform=[1], layers_pattern="layers"),
            computed(ranks={(2, "q_proj"): 2, (2, "up_proj"): 2}, exclude_modules=r".*s\.[01]\..*"),
            computed(ranks={(0, "v_proj"): 2}, target_modules=r".*layers\.0.*v_proj"),
        ),
    ),
    Case(
        "names with `.default.`, `_orig_mod.`, without `base_model.model.`",
        "read",
        each(
            computed(spelling="base_model.model.model.layers.{layer}.{module}.{part}.default.weight"),
            computed(spelling="_orig_mod.base_model.model.model.layers.{layer}.{module}.{part}.weight"),
            computed(spelling="model.layers.{layer}.{module}.{part}.weight"),
        ),
    ),
    Case(
        "an adapter of a backbone without its head (`base_model.model.layers.`)",
        "read",
        computed(spelling="base_model.model.layers.{layer}.{module}.{part}.weight"),
    ),
    Case(
        "tensors of shape [0]",
        "refused: saved from ZeRO-3?",
        refused("is empty (shape [0]): saved from ZeRO-3", change=emptied),
    ),
    Case(
        "activated LoRA (`alora_invocation_tokens`)",
        "refused: it adapts the tokens behind its invocation alone",
        keys(alora_invocation_tokens=[5, 6]),
    ),
    Case("DoRA, QALoRA, `lora_bias`", "refused", keys(use_dora=True, use_qalora=True, lora_bias=True)),
    Case(
        "PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA, MiCA",
        "refused: most of them change the model, too",
        each(*(keys(init_lora_weights=k) for k in ("pissa_niter_4", "olora", "corda", "loftq", "lora_ga", "mica"))),
    ),
    Case(
        "EVA, orthogonal or Gaussian initialisation",
        "read",
        each(*(computed(init_lora_weights=k) for k in ("eva", "orthogonal", "gaussian", False))),
    ),
    Case("`bias: all`, `modules_to_save`", "refused", keys(bias="all", modules_to_save=["lm_head"])),
    Case(
        "`target_parameters`, `layer_replication`, `trainable_token_indices`",
        "refused",
        keys(target_parameters=["w"], layer_replication=[[0, 2]], trainable_token_indices=[3]),
    ),
    Case(
        "`kasa_config`, `monteclora_config`, `velora_config`, `arrow_config`, `use_bdlora`, `megatron_config`",
        "refused",
        keys(
            kasa_config={}, monteclora_config={}, velora_config={}, arrow_config={}, use_bdlora={}, megatron_config={}
        ),
    ),
    Case("`fan_in_fan_out`", "ignored, as PEFT does for a linear", computed(fan_in_fan_out=True)),
    Case(
        "another key, null, false or empty",
        "ignored: a later variant that is switched off",
        each(*(computed(use_next=off) for off in (None, False, [], {}, ""))),
    ),
    Case("another key at any other value", "refused", each(keys(use_next=1), keys(use_next=0), keys(use_next="x"))),
    Case("`peft_type` other than LORA", "refused", refused("peft_type 'IA3' is not supported", peft_type="IA3")),
    Case(
        "an adapter of embedding or head, or their weights in the file",
        "refused",
        each(
            refused("embed_tokens.weight has no place", "merge", change=with_tensor("model.embed_tokens.weight")),
            refused("lm_head.lora_A.weight has no place", change=with_tensor("base_model.model.lm_head.lora_A.weight")),
        ),
    ),
    Case(
        "an adapter of more or fewer layers than the model has",
        "refused",
        each(
            refused("has no place in this model", change=with_tensor("model.layers.3.mlp.up_proj.lora_A.weight")),
            refused(
                "layers.2.mlp.up_proj.lora_A.weight is missing",
                ranks={(0, "up_proj"): 2, (1, "up_proj"): 2},
                target_modules=["up_proj"],
            ),
        ),
    ),
    Case(
        "`adapter_model.bin`",
        "refused, with the command that converts it",
        refused("is not read; with torch", "save_file(", files=as_binary),
    ),
    Case("a Git LFS pointer", "refused: `git lfs pull`", refused("Git LFS pointer", files=as_pointer)),
    Case(
        "an adapter in a folder of its name", "refused: which folder to give", refused("default has", files=in_a_folder)
    ),
    Case("a model's folder as `model.adapter`", "refused: it is a model", refused("it is a model", files=as_model)),
]
