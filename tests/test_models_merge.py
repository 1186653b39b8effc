"""An adapter merged into a checkpoint: the sums, the files, the memory it takes, and what transformers makes of it."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import tracemalloc
from pathlib import Path
from typing import Any

import jax
import ml_dtypes
import numpy as np
import parity_cases as cases
import pytest
from model_calls import logits_of
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from ntk_jax.errors import Note, UserError
from ntk_jax.models.config import ModelConfig, parse_config
from ntk_jax.models.hub import save_weights
from ntk_jax.models.lora import LoRAConfig, fold
from ntk_jax.models.merge import merge_adapter
from ntk_jax.models.model import load_model, random_model
from ntk_jax.models.peft import save_adapter

LORA = LoRAConfig(rank=2, alpha=3.0, targets=("q_proj", "down_proj"))


def checkpoint(folder: Path, *, dtype: str = "float32", lora: LoRAConfig = LORA) -> Any:
    """model/ and adapter/ of a random model, which is returned with its adapter."""
    config = ModelConfig("qwen2", 40, 32, 48, 3, 4, 2, 8, qkv_bias=True, rope_theta=5e5, norm_eps=1e-5, tied=True)
    model = random_model(config, lora=lora, dtype=dtype, seed=3)
    save_weights(folder / "model", _bare(model))
    save_adapter(folder / "adapter", model.lora, lora, config, "model")
    return model


def _bare(model: Any) -> Any:
    return dataclasses.replace(model, lora={}, lora_config=None)


@pytest.mark.parametrize("dtype", ("float32", "bfloat16"))
@pytest.mark.parametrize("shard_bytes", (1 << 30, 9000))
def test_it_is_what_folding_the_loaded_model_gives(tmp_path: Path, dtype: str, shard_bytes: int) -> None:
    model = checkpoint(tmp_path, dtype=dtype)
    seen: list[tuple[int, int]] = []
    found = merge_adapter(
        str(tmp_path / "model"), tmp_path / "adapter", tmp_path / "out", shard_bytes=shard_bytes,
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    back = load_model(str(tmp_path / "out"), dtype=dtype, tokenizer=False)
    expected = fold(model.lora, model.base, model.scales)
    tolerance = 1e-6 if dtype == "float32" else 2**-8  # two ways to add up fp32 may round to neighbouring numbers
    for got, wanted in zip(jax.tree.leaves(back.base), jax.tree.leaves(expected), strict=True):
        assert got.dtype == wanted.dtype
        got, wanted = np.asarray(got, np.float32), np.asarray(wanted, np.float32)
        assert np.abs(got - wanted).max() <= tolerance * np.abs(wanted).max()
    changed = [n for n in ("q_proj", "k_proj") if not np.array_equal(back.base["layers"][n]["kernel"],
                                                                     model.base["layers"][n]["kernel"])]  # fmt: skip
    assert changed == ["q_proj"] and found.adapted == 6
    assert seen == [(i, found.tensors) for i in range(1, found.tensors + 1)]
    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == sorted(found.files) and (len(files) > 1) == (shard_bytes == 9000)
    assert (tmp_path / "out" / "model.safetensors.index.json").exists() == (len(files) > 1)
    assert found.size == sum(leaf.nbytes for leaf in jax.tree.leaves(back.base))


def test_every_number_is_rounded_once_to_the_dtype_of_its_own_tensor(tmp_path: Path) -> None:
    """A checkpoint of mixed dtypes keeps them; the update is added in fp32."""
    checkpoint(tmp_path, lora=LoRAConfig(rank=2, alpha=3.0, targets=("q_proj",)))
    path = tmp_path / "model" / "model.safetensors"
    kinds = {"q_proj.weight": ml_dtypes.bfloat16, "k_proj.weight": np.float16, "model.norm.weight": np.float64}
    tensors = load_file(path)
    for name in tensors:
        kind = next((kind for end, kind in kinds.items() if name.endswith(end)), np.float32)
        tensors[name] = tensors[name].astype(kind)
    save_file(tensors, path)
    merge_adapter(str(tmp_path / "model"), tmp_path / "adapter", tmp_path / "out")
    merged = load_file(tmp_path / "out" / "model.safetensors")
    adapter = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    for layer in range(3):
        module = f"model.layers.{layer}.self_attn.q_proj"
        a, b = (adapter[f"base_model.model.{module}.lora_{part}.weight"] for part in "AB")
        expected = tensors[f"{module}.weight"].astype(np.float32) + np.float32(1.5) * (b @ a)
        assert np.array_equal(merged.pop(f"{module}.weight"), expected.astype(ml_dtypes.bfloat16))
    for other, value in merged.items():
        assert value.dtype == tensors[other].dtype and np.array_equal(value, tensors[other])
    with safe_open(tmp_path / "out" / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}


def test_the_other_files_come_along_as_they_are(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    model = tmp_path / "model"
    texts = {"generation_config.json": '{"eos_token_id": 3}', "tokenizer_config.json": "{}", "merges.txt": "a b",
             "chat_template.jinja": "{{ 1 }}", "additional_chat_templates/rag.jinja": "{{ 2 }}",
             "config.json": (model / "config.json").read_text() + "\n"}  # fmt: skip
    left = {"adapter_config.json": "{}", "README.md": "of somebody else's numbers", "pytorch_model.bin": "x"}
    (model / "additional_chat_templates").mkdir()
    for name, text in (texts | left).items():
        (model / name).write_text(text)
    with pytest.warns(Note, match="the adapter beside the weights"):
        merge_adapter(str(model), tmp_path / "adapter", tmp_path / "out")
    files = (path for path in (tmp_path / "out").rglob("*") if path.is_file())
    out = {path.relative_to(tmp_path / "out").as_posix(): path for path in files}
    assert sorted(out) == sorted([*texts, "model.safetensors"])
    assert all(out[name].read_text() == text for name, text in texts.items())


def test_a_head_that_is_written_twice_becomes_one_and_stays_tied(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].copy()}, path)
    merge_adapter(str(tmp_path / "model"), tmp_path / "adapter", tmp_path / "out")
    assert set(load_file(tmp_path / "out" / "model.safetensors")) == set(tensors)
    assert load_model(str(tmp_path / "out"), tokenizer=False).config.tied


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda folder: (folder / "out").mkdir() or (folder / "out" / "x").write_text("mine"), "is there already"),
        (lambda folder: (folder / "out").write_text("mine"), "is there already"),
        (lambda folder: _scale(folder, 1e6, np.float16), "with the adapter's update, as float16; look at the adapter"),
        (lambda folder: _scale(folder, np.inf, np.float32), "lora_B.weight holds NaN or Inf"),
        (lambda folder: (folder / "model" / "model.safetensors").unlink(), "model.safetensors is missing"),
    ],
)
def test_mistakes_leave_nothing_behind(tmp_path: Path, spoil: Any, message: str) -> None:
    checkpoint(tmp_path)
    spoil(tmp_path)
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(UserError, match=message.replace(".", r"\.")):
        merge_adapter(str(tmp_path / "model"), tmp_path / "adapter", tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert not (tmp_path / "out" / "x").exists() or (tmp_path / "out" / "x").read_text() == "mine"


def _scale(folder: Path, factor: float, dtype: Any) -> None:
    path = folder / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    save_file(
        {name: value * np.float32(factor) if "lora_B" in name else value for name, value in tensors.items()}, path
    )
    path = folder / "model" / "model.safetensors"
    save_file({name: value.astype(dtype) for name, value in load_file(path).items()}, path)


def test_a_kill_leaves_nothing_under_the_name_and_the_same_call_then_succeeds(tmp_path: Path) -> None:
    checkpoint(tmp_path)
    code = (
        "import os, sys, ntk_jax as nj\n"
        "stop = lambda done, total: done == 5 and os.kill(os.getpid(), 9)\n"
        "nj.merge_adapter('model', 'adapter', 'out', progress=stop)"
    )
    killed = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=120)
    assert killed.returncode == -9 and not (tmp_path / "out").exists() and (tmp_path / ".out.tmp").exists()
    merge_adapter(str(tmp_path / "model"), tmp_path / "adapter", tmp_path / "out")
    assert not (tmp_path / ".out.tmp").exists()
    load_model(str(tmp_path / "out"), tokenizer=False)


def test_memory_is_that_of_a_few_tensors_whatever_the_size_of_the_checkpoint(tmp_path: Path) -> None:
    """Of the memory that numpy and Python ask for: what is mapped from the file the system may drop at any time."""
    lora = LoRAConfig(rank=2, targets=("gate_proj",))
    model = random_model(ModelConfig("llama", 64, 256, 1024, 24, 4, 4, 64), lora=lora, std=0.02)
    save_weights(tmp_path / "model", _bare(model))
    save_adapter(tmp_path / "adapter", model.lora, lora, model.config, "model")
    size, largest = sum(leaf.nbytes for leaf in jax.tree.leaves(model.base)), 4 * 256 * 1024
    merge_adapter(str(tmp_path / "model"), tmp_path / "adapter", tmp_path / "warm")  # imports and compilation
    del model
    tracemalloc.start()
    try:
        merge_adapter(str(tmp_path / "model"), tmp_path / "adapter", tmp_path / "out", shard_bytes=1 << 24)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    adapter = (tmp_path / "adapter" / "adapter_model.safetensors").stat().st_size
    assert size > 90 * largest and largest < peak < 6 * largest + 4 * adapter


@pytest.mark.reference
@pytest.mark.parametrize("case", sorted(cases.CASES))
def test_transformers_gives_the_logits_of_our_model_with_the_adapter(case: str, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from parity_torch import torch_model

    folder = cases.write_checkpoint(case, tmp_path / "model")
    config = parse_config(cases.CASES[case], case)
    save_adapter(tmp_path / "adapter", cases.lora_leaves(case), cases.LORA, config, str(folder))
    merge_adapter(str(folder), tmp_path / "adapter", tmp_path / "out", shard_bytes=200_000)
    ours = load_model(str(folder), adapter=str(tmp_path / "adapter"), tokenizer=False)
    ids = cases.token_ids(case)[:, :64]
    with torch.no_grad():
        merged, bare = (torch_model(path)(torch.tensor(ids)).logits.numpy() for path in (tmp_path / "out", folder))
    expected = logits_of(ours, ids)
    assert np.abs(merged - expected).max() < 2e-4 * np.abs(expected).max()
    assert np.abs(bare - expected).max() > 0.05 * np.abs(expected).max()
