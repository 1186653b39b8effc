"""The models on which we are compared with transformers' PyTorch, built from a numpy seed on both sides.

Sizes are chosen so that a wrong rotation, norm or bias cannot hide: weights of std 0.3, every norm and bias random,
head_dim of at least 32, 640 positions, and no setting at its default. Used by `scripts/make_golden.py` (PyTorch writes
the golden arrays) and by `test_models_parity.py` (we are compared with them).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from ntk_jax.models.lora import LoRAConfig

GOLDEN = Path(__file__).parent / "golden"
LENGTH = 640
LORA = LoRAConfig(rank=4, alpha=6.0)

_COMMON = {
    "hidden_size": 96,
    "intermediate_size": 160,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 320,
    "max_position_embeddings": 1024,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}
CASES: dict[str, dict[str, Any]] = {
    "llama": {
        **_COMMON,
        "model_type": "llama",
        "head_dim": 32,
        "rope_theta": 50000.0,
        "rope_scaling": _LLAMA3,
        "tie_word_embeddings": False,
    },
    "llama_bias": {  # the other two switches of Llama: biases on q, k, v and o, and transformers 5 spelling
        **_COMMON,
        "model_type": "llama",
        "head_dim": 32,
        "rope_parameters": {"rope_type": "default", "rope_theta": 3000.0},
        "attention_bias": True,
        "tie_word_embeddings": True,
    },
    "qwen2": {
        **_COMMON,
        "model_type": "qwen2",
        "hidden_size": 128,
        "rope_theta": 1000000.0,
        "tie_word_embeddings": True,
        "use_sliding_window": False,
        "sliding_window": 64,
        "max_window_layers": 1,
    },
    "qwen3": {
        **_COMMON,
        "model_type": "qwen3",
        "head_dim": 48,
        "rope_theta": 200000.0,
        "attention_bias": False,
        "tie_word_embeddings": False,
    },
    "mistral": {  # with a window that the tokens just fit into, and positions stretched eightfold
        **_COMMON,
        "model_type": "mistral",
        "head_dim": 40,
        "rope_theta": 20000.0,
        "rope_scaling": {"type": "linear", "factor": 8.0},
        "sliding_window": LENGTH,
        "tie_word_embeddings": False,
    },
    "qwen2_yarn": {  # YaRN as Qwen's files have it
        **_COMMON,
        "model_type": "qwen2",
        "hidden_size": 128,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 1000000.0,
            "factor": 8.0,
            "original_max_position_embeddings": 128,
        },
        "tie_word_embeddings": False,
    },
    "llama_yarn": {  # and with all of its other numbers but attention_factor, which comes instead of mscale
        **_COMMON,
        "model_type": "llama",
        "head_dim": 32,
        "rope_theta": 50000.0,
        "rope_scaling": {
            "rope_type": "yarn",
            "factor": 4.0,
            "original_max_position_embeddings": 256,
            "beta_fast": 12.5,
            "beta_slow": 1.5,
            "truncate": False,
            "mscale": 1.3,
            "mscale_all_dim": 0.4,
        },
        "tie_word_embeddings": True,
    },
}


def tensors(case: str) -> dict[str, np.ndarray]:
    """Every tensor of the case under its Hugging Face name: N(0, 0.3²), norms N(1, 0.3²)."""
    c = CASES[case]
    hidden, inner = c["hidden_size"], c["intermediate_size"]
    width = c.get("head_dim", hidden // c["num_attention_heads"])
    q, kv = c["num_attention_heads"] * width, c["num_key_value_heads"] * width
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (c["vocab_size"], hidden)}
    for i in range(c["num_hidden_layers"]):
        layer = f"model.layers.{i}"
        for name, rows in (("q", q), ("k", kv), ("v", kv)):
            shapes[f"{layer}.self_attn.{name}_proj.weight"] = (rows, hidden)
            if c["model_type"] == "qwen2" or c.get("attention_bias"):
                shapes[f"{layer}.self_attn.{name}_proj.bias"] = (rows,)
        shapes[f"{layer}.self_attn.o_proj.weight"] = (hidden, q)
        if c.get("attention_bias"):
            shapes[f"{layer}.self_attn.o_proj.bias"] = (hidden,)
        if c["model_type"] == "qwen3":
            shapes[f"{layer}.self_attn.q_norm.weight"] = (width,)
            shapes[f"{layer}.self_attn.k_norm.weight"] = (width,)
        shapes[f"{layer}.mlp.gate_proj.weight"] = (inner, hidden)
        shapes[f"{layer}.mlp.up_proj.weight"] = (inner, hidden)
        shapes[f"{layer}.mlp.down_proj.weight"] = (hidden, inner)
        shapes[f"{layer}.input_layernorm.weight"] = (hidden,)
        shapes[f"{layer}.post_attention_layernorm.weight"] = (hidden,)
    shapes["model.norm.weight"] = (hidden,)
    if not c["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (c["vocab_size"], hidden)
    random = np.random.default_rng(list(CASES).index(case))
    return {
        name: (0.3 * random.standard_normal(shape) + ("norm" in name)).astype(np.float32)
        for name, shape in shapes.items()
    }


def write_checkpoint(case: str, folder: Path) -> Path:
    """The case as a Hugging Face folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CASES[case]))
    save_file(tensors(case), folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def lora_leaves(case: str) -> dict[str, Any]:
    """A random adapter on all seven linears in our stacked layout, B not zero."""
    weights, random = tensors(case), np.random.default_rng(100)
    layers: dict[str, Any] = {}
    for name in LORA.targets:
        group = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
        d_out, d_in = weights[f"model.layers.0.{group}.{name}.weight"].shape
        depth = CASES[case]["num_hidden_layers"]
        layers[name] = {
            "a": (0.2 * random.standard_normal((depth, d_in, LORA.rank))).astype(np.float32),
            "b": (0.2 * random.standard_normal((depth, LORA.rank, d_out))).astype(np.float32),
        }
    return {"layers": layers}


def token_ids(case: str) -> np.ndarray:
    """[1, LENGTH] random tokens."""
    return np.random.default_rng(7).integers(0, CASES[case]["vocab_size"], (1, LENGTH))


def logit_sample(case: str) -> tuple[np.ndarray, np.ndarray]:
    """Positions and vocabulary entries of the logits that a golden file keeps."""
    random = np.random.default_rng(8)
    positions = np.sort(random.choice(LENGTH, 60, replace=False))
    positions[-1] = LENGTH - 1  # the last one has turned furthest
    return positions, np.sort(random.choice(CASES[case]["vocab_size"], 40, replace=False))


def gradient_sample(size: int) -> np.ndarray:
    """Flat indices of the gradient entries that a golden file keeps of a leaf of this size."""
    return np.sort(np.random.default_rng(9).choice(size, min(size, 200), replace=False))
