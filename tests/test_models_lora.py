"""Adapters: targets, start, folding, and PEFT's format out and in."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import parity_cases as cases
import pytest
from model_calls import hidden_of, logits_of
from safetensors.numpy import load_file, save_file

from ntk_jax.errors import UserError
from ntk_jax.models.config import ModelConfig
from ntk_jax.models.decoder import abstract_decoder
from ntk_jax.models.lora import LINEARS, LoRAConfig, fold, initial_lora, is_fresh, target_names
from ntk_jax.models.model import Model, load_model, random_model, with_lora
from ntk_jax.models.peft import load_adapter, save_adapter

CONFIG = ModelConfig("qwen3", 50, 32, 48, 3, 4, 2, 16, qk_norm=True)
LORA = LoRAConfig(rank=4, alpha=6.0)
TOKENS = np.random.default_rng(0).integers(0, 50, (2, 24)).astype(np.int32)


def hidden(model: Model) -> jax.Array:
    return hidden_of(model, TOKENS)


def same(a: Any, b: Any) -> bool:
    equal = jax.tree.map(lambda x, y: x.dtype == y.dtype and np.array_equal(x, y), a, b)
    return all(jax.tree.leaves(equal))


@pytest.mark.parametrize(
    "patterns, names",
    [
        (("q_proj",), ("q_proj",)),
        (("down_proj", "q_proj"), ("q_proj", "down_proj")),
        (("(q|v)_proj",), ("q_proj", "v_proj")),
        ((".*_proj",), LINEARS),
        (("[qkvo]_proj", "up.*"), ("q_proj", "k_proj", "v_proj", "o_proj", "up_proj")),
    ],
)
def test_targets_are_patterns_over_whole_names(patterns: tuple[str, ...], names: tuple[str, ...]) -> None:
    assert target_names(LoRAConfig(targets=patterns)) == names
    model = random_model(CONFIG, lora=LoRAConfig(rank=2, targets=patterns))
    assert set(model.lora["layers"]) == set(names)


@pytest.mark.parametrize(
    "lora, message",
    [
        (LoRAConfig(targets=("q_proj", "query")), "targets: 'query' matches no layer; the names are q_proj"),
        (LoRAConfig(targets=("q_pro",)), "'q_pro' matches no layer"),
        (LoRAConfig(targets=("(",)), "'(' is not a regular expression"),
        (LoRAConfig(targets=()), "targets is empty"),
        (LoRAConfig(rank=0), "rank must be a whole number of at least 1, got 0"),
        (LoRAConfig(rank="a"), "rank must be a whole number of at least 1, got 'a'"),  # type: ignore[arg-type]
        (LoRAConfig(alpha=float("nan")), "alpha must be a number above 0, got nan"),
    ],
)
def test_a_target_that_matches_nothing_is_a_mistake(lora: LoRAConfig, message: str) -> None:
    with pytest.raises(UserError) as caught:
        random_model(CONFIG, lora=lora)
    assert message in str(caught.value)


def test_a_fresh_adapter_starts_as_pefts_and_changes_nothing() -> None:
    plain, model = random_model(CONFIG), random_model(CONFIG, lora=LORA)
    shapes = abstract_decoder(CONFIG, LORA, jnp.float32)[1]
    fresh = initial_lora(shapes, seed=0)
    assert same(fresh, initial_lora(shapes, seed=0)) and not same(fresh, initial_lora(shapes, seed=1))
    a = np.asarray(fresh["layers"]["down_proj"]["a"])  # [L, 48, R], uniform within 1/√48
    assert np.abs(a).max() <= 48**-0.5 and np.abs(a).max() > 0.95 * 48**-0.5
    assert a.std() == pytest.approx((3 * 48) ** -0.5, rel=0.1)
    assert is_fresh(fresh) and not is_fresh(model.lora) and is_fresh({})
    assert np.array_equal(hidden(with_lora(model, fresh)), hidden(plain))
    gradient = jax.grad(lambda lora: hidden(with_lora(model, lora)).sum())(fresh)
    assert all(not leaf["a"].any() and leaf["b"].any() for leaf in gradient["layers"].values())


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
def test_folding_gives_the_same_function(dtype: str) -> None:
    model = random_model(CONFIG, lora=LoRAConfig(rank=4, alpha=6.0, targets=("q_proj", "down_proj")), dtype=dtype)
    folded = fold(model.lora, model.base, model.scale)
    assert model.scale == 1.5 and random_model(CONFIG).scale == 0.0
    for name in LINEARS:
        changed = not same(folded["layers"][name], model.base["layers"][name])
        assert changed == (name in model.lora["layers"]) and folded["layers"][name]["kernel"].dtype == model.dtype
    if dtype == "float32":
        plain = dataclasses.replace(random_model(CONFIG), base=folded)
        assert np.abs(hidden(plain) - hidden(model)).max() < 1e-5 * np.abs(hidden(model)).max()


def test_an_adapter_of_another_shape_is_refused() -> None:
    model, other = random_model(CONFIG, lora=LORA), random_model(CONFIG, lora=LoRAConfig(rank=2))
    with pytest.raises(UserError, match="does not have the leaves and shapes"):
        with_lora(model, other.lora)
    with pytest.raises(UserError, match="does not have the leaves and shapes"):
        with_lora(model, {})


def test_an_adapter_comes_back_from_its_files(tmp_path: Path) -> None:
    model = random_model(CONFIG, lora=LoRAConfig(rank=4, alpha=2.5, targets=("v_proj", "up_proj")))
    for folder in ("one", "two"):
        save_adapter(tmp_path / folder, model.lora, model.lora_config or LORA, CONFIG, "a/model")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    lora, config = load_adapter(tmp_path / "one", CONFIG)
    assert same(lora, model.lora) and config == model.lora_config


def adapter(tmp_path: Path) -> Path:
    save_adapter(tmp_path, random_model(CONFIG, lora=LORA).lora, LORA, CONFIG, "a/model")
    return tmp_path


@pytest.mark.parametrize(
    "key, value, message",
    [
        ("peft_type", "IA3", "peft_type 'IA3' is not supported; only LORA is"),
        ("use_dora", True, "use_dora = True is not supported"),
        ("use_rslora", True, "use_rslora = True is not supported"),
        ("modules_to_save", ["lm_head"], "modules_to_save = ['lm_head'] is not supported"),
        ("rank_pattern", {"q_proj": 8}, "rank_pattern"),
        ("layers_to_transform", [0], "layers_to_transform = [0] is not supported"),
        ("bias", "all", "bias = 'all' is not supported"),
        ("init_lora_weights", "pissa", "init_lora_weights 'pissa' is not supported"),
        ("r", "4", "r must be a positive number, got '4'"),
        ("r", 8, "lora_A.weight has shape [4, 32], this model asks for [8, 32]"),
        ("lora_alpha", None, "lora_alpha must be a positive number, got None"),
        ("lora_alpha", float("nan"), "lora_alpha must be a positive number, got nan"),
    ],
)
def test_other_kinds_of_adapter_are_refused(tmp_path: Path, key: str, value: Any, message: str) -> None:
    file = adapter(tmp_path) / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))
    with pytest.raises(UserError) as caught:
        load_adapter(tmp_path, CONFIG)
    assert message in str(caught.value)


def _spoil(tensors: dict[str, np.ndarray], name: str) -> None:
    tensors[name] = np.full_like(tensors[name], np.nan)


_LAST = "base_model.model.model.layers.2.mlp.up_proj.lora_B.weight"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(_LAST), f"tensor {_LAST} is missing; an adapter must cover all layers"),
        (lambda t: _spoil(t, _LAST), f"tensor {_LAST} holds NaN or Inf"),
        (lambda t: t.update({"base_model.model.lm_head.lora_A.weight": t[_LAST]}), "has no place in this model"),
        (lambda t: t.clear(), "no adapter for any of q_proj"),
    ],
)
def test_spoilt_adapter_tensors_are_named(
    tmp_path: Path, change: Callable[[dict[str, np.ndarray]], Any], message: str
) -> None:
    file = adapter(tmp_path) / "adapter_model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file)
    with pytest.raises(UserError) as caught:
        load_adapter(tmp_path, CONFIG)
    assert message in str(caught.value)


def test_missing_and_broken_adapter_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no .* folder at"):
        load_adapter(tmp_path / "absent", CONFIG)
    (adapter(tmp_path) / "adapter_model.safetensors").write_bytes(b"\x00" * 20)
    with pytest.raises(UserError, match="not a whole safetensors file"):
        load_adapter(tmp_path, CONFIG)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match="adapter_model.safetensors is missing"):
        load_adapter(tmp_path, CONFIG)
    (tmp_path / "adapter_config.json").write_text("{")
    with pytest.raises(UserError, match="adapter_config.json is damaged, it is not JSON"):
        load_adapter(tmp_path, CONFIG)


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of peft calling transformers
def test_our_adapter_gives_the_same_logits_in_peft_and_pefts_in_ours(tmp_path: Path) -> None:
    torch, _ = pytest.importorskip("torch"), pytest.importorskip("peft")
    from parity_torch import torch_model, with_adapter

    folder = str(cases.write_checkpoint("qwen2", tmp_path / "model"))
    ours = with_lora(load_model(folder, lora=cases.LORA, tokenizer=False), cases.lora_leaves("qwen2"))
    ids = cases.token_ids("qwen2")[:, :64]
    save_adapter(tmp_path / "adapter", ours.lora, cases.LORA, ours.config, folder)
    theirs = with_adapter(torch_model(Path(folder)), tmp_path / "adapter")
    with torch.no_grad():
        expected = theirs(torch.tensor(ids)).logits.numpy()
    assert np.abs(logits_of(ours, ids) - expected).max() < 2e-4 * np.abs(expected).max()
    bare = load_model(folder, tokenizer=False)
    assert np.abs(logits_of(bare, ids) - expected).max() > 0.05 * np.abs(expected).max()

    theirs.save_pretrained(str(tmp_path / "saved_by_peft"))
    back = load_model(folder, adapter=str(tmp_path / "saved_by_peft"), tokenizer=False)
    assert same(back.lora, jax.tree.map(np.asarray, ours.lora)) and back.lora_config == cases.LORA
