"""A folder of an encoder: which kinds are read, what the files of sentence-transformers decide, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_encoder import TEXTS, write_encoder

from files_found.case import Case
from ntk_jax.errors import UserError
from ntk_jax.models.embedder import Embedder, load_embedder

TITLE = "Encoders"
Check = Callable[[Path], None]


def _load(folder: Path, config: dict[str, Any] | None = None, **files: Any) -> Embedder:
    """files: name without .json -> its value; `pooling` is the pooling module's."""
    write_encoder(folder, **(config or {}))
    for name, value in files.items():
        file = folder / ("1_Pooling/config.json" if name == "pooling" else f"{name}.json")
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(value))
    return load_embedder(str(folder))


def _modules(*kinds: str) -> list[dict[str, str]]:
    return [{"type": f"sentence_transformers.models.{kind}", "path": "1_Pooling"} for kind in kinds]


def _is_read(*configs: dict[str, Any]) -> Check:
    def check(folder: Path) -> None:
        for config in configs:
            vectors = _load(folder, config).embed(TEXTS[:2])
            assert vectors.shape == (2, 32) and np.isfinite(vectors).all()

    return check


def _is_refused(message: str, config: dict[str, Any] | None = None, **files: Any) -> Check:
    def check(folder: Path) -> None:
        with pytest.raises(UserError) as caught:
            _load(folder, config, **files)
        assert message in str(caught.value) and "\n" not in str(caught.value), str(caught.value)

    return check


def _modules_decide(folder: Path) -> None:
    bare = _load(folder)
    assert (bare.pooling, bare.normalize) == ("mean", True) and "does not name its pooling" in str(bare.note)
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    said = _load(folder, modules=_modules("Transformer", "Pooling"), pooling=pooling)
    assert (said.pooling, said.normalize, said.note) == ("cls", False, None)
    new = _load(folder, modules=_modules("Transformer", "Pooling", "Normalize"), pooling={"pooling_mode": "lasttoken"})
    assert (new.pooling, new.normalize) == ("last", True)


def _limits(folder: Path) -> None:
    assert _load(folder).max_tokens == 40
    assert _load(folder, sentence_bert_config={"max_seq_length": 500}).max_tokens == 64
    (folder / "sentence_bert_config.json").unlink()
    assert load_embedder(str(folder)).max_tokens == 64


def _prompts(folder: Path) -> None:
    prompts = {"prompts": {"query": "query: ", "document": "passage: "}}
    assert _load(folder, config_sentence_transformers=prompts).prefixes == {"query": "query: ", "passage": "passage: "}


def _padding_of_the_file(folder: Path) -> None:
    embedder = _load(folder)
    spec = json.loads((folder / "tokenizer.json").read_text())
    assert spec["truncation"]["max_length"] == 8 and spec["padding"]
    assert [len(own[0]) for own in embedder.tokens.windows(["the heart", TEXTS[3]], first_only=True)] == [4, 40]


def _without_encoder(folder: Path) -> None:
    assert load_embedder("builtin:model").note == "no encoder: mean hidden state of builtin:model"


CASES: list[Case] = [
    Case("BERT (bge, e5, gte, MiniLM), gelu in either form or relu", "read", _is_read({}, {"hidden_act": "gelu_new"})),
    Case(
        "RoBERTa and XLM-RoBERTa (multilingual-e5, bge-m3's dense vectors)",
        "read",
        _is_read(*({"model_type": kind, "pad_token_id": 1} for kind in ("roberta", "xlm-roberta"))),
    ),
    Case(
        "`modules.json` and the pooling's `config.json`, old and new keys",
        "decide pooling and norm; without them the mean, of length 1, and a note says so",
        _modules_decide,
    ),
    Case("`max_seq_length` of `sentence_bert_config.json`", "the longest window, at most all positions", _limits),
    Case("`prompts` of `config_sentence_transformers.json`", "prefixes of queries and passages", _prompts),
    Case(
        "a truncation and padding in `tokenizer.json`",
        "left aside: windows have their own length",
        _padding_of_the_file,
    ),
    Case("a Llama or Qwen model, or `builtin:model`", "the mean hidden state, and a note says so", _without_encoder),
    Case(
        "a Dense module, two poolings at once, weighted means",
        "refused by name",
        _is_refused("type Dense is not supported", modules=_modules("Transformer", "Pooling", "Dense"), pooling={}),
    ),
    Case(
        "relative positions, cross attention, a decoder's mask",
        "refused by name",
        _is_refused("position_embedding_type = 'relative_key'", {"position_embedding_type": "relative_key"}),
    ),
    Case(
        "a key of `config.json` that nobody here knows",
        "refused, unless you list it in `ignore_config_keys`",
        _is_refused("unknown key new_norm = True", {"new_norm": True}),
    ),
    Case(
        "a vocabulary larger than the embedding",
        "refused: another model's tokenizer",
        _is_refused("the tokenizer does not match the model", {"vocab_size": 10}),
    ),
]
