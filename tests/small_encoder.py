"""A small encoder folder with random weights, as sentence-transformers writes one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

_WORDS = "a the heart blood court law of fever and dog star sea query passage : in to river stone"
WORDS = _WORDS.split()
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")
TEXTS = [
    "the heart and the blood",
    "court",
    "a star in the sea of stone " * 3,
    "law of the court and fever of a dog " * 20,
    "",
    "the river in the sea and a dog",
]
_SMALL: dict[str, Any] = {
    "model_type": "bert",
    "hidden_act": "gelu",
    "vocab_size": len(WORDS) + len(SPECIAL),
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "type_vocab_size": 2,
    "pad_token_id": 0,
    "layer_norm_eps": 1e-12,
}


def write_encoder(folder: Path, std: float = 0.3, prefix: str = "", **config: Any) -> Path:
    """config.json, weights N(0, std²) (norms N(1, std²)), a tokenizer of whole words, and 40 tokens a window."""
    config = _SMALL | config
    if config["model_type"] != "bert":
        config["max_position_embeddings"] = 64 + 2
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 40}))
    random = np.random.default_rng(0)
    tensors = {
        prefix + name: (std * random.standard_normal(shape) + (name.endswith("LayerNorm.weight"))).astype(np.float32)
        for name, shape in tensor_shapes(config).items()
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    write_tokenizer(folder)
    return folder


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The tensors of a BERT checkpoint."""
    d, inner = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], d),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], d),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], d),
        "embeddings.LayerNorm.weight": (d,),
        "embeddings.LayerNorm.bias": (d,),
    }
    for number in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{number}."
        linears = {f"attention.self.{name}": (d, d) for name in ("query", "key", "value")}
        linears |= {"attention.output.dense": (d, d), "intermediate.dense": (inner, d), "output.dense": (d, inner)}
        for name, (out, d_in) in linears.items():
            shapes |= {f"{layer}{name}.weight": (out, d_in), f"{layer}{name}.bias": (out,)}
        for name in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes |= {f"{layer}{name}.weight": (d,), f"{layer}{name}.bias": (d,)}
    return shapes


def write_tokenizer(folder: Path) -> None:
    """Words at spaces, [CLS] before and [SEP] behind; with a truncation and padding that nobody asked for, as MiniLM's
    file has them."""
    vocabulary = {word: number for number, word in enumerate([*SPECIAL, *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    ends = [(name, vocabulary[name]) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=8)
    tokenizer.save(str(folder / "tokenizer.json"))
    names = {"unk_token": "[UNK]", "pad_token": "[PAD]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**names, "model_max_length": 64}))
