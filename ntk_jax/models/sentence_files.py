"""What the files of sentence-transformers beside a checkpoint say of its use: pooling, norm, prefixes, longest text.

Read are `modules.json`, the pooling module's `config.json`, `sentence_bert_config.json` and the prompts in
`config_sentence_transformers.json`, as versions 2 to 6 write them. A folder without them says nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ntk_jax.errors import UserError, shown
from ntk_jax.models.checkpoint import read_object
from ntk_jax.storage.reading import read_json

POOLINGS = ("mean", "cls", "max", "last")
_REMEDY = "download the folder again"
_MODES = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "lasttoken": "last",
    "mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "weightedmean": "weightedmean",
}
_PASSAGE = ("document", "passage", "corpus")  # names in use for the prefix of what is searched


@dataclass(frozen=True)
class SentenceFiles:
    """What a folder says; None: nothing."""

    pooling: str | None = None  # of POOLINGS
    normalize: bool | None = None
    query_prefix: str | None = None
    passage_prefix: str | None = None
    max_tokens: int | None = None
    lowercase: bool = False


def read_sentence_files(folder: Path) -> SentenceFiles:
    """Raises UserError: a file is damaged, or asks for what is not here (a dense layer behind the pooling, two poolings
    at once, a prompt that pooling leaves out)."""
    limits = _object(folder / "sentence_bert_config.json")
    longest = limits.get("max_seq_length")
    if longest is not None and (type(longest) is not int or longest < 3):
        raise UserError(f"{folder}/sentence_bert_config.json: max_seq_length {longest!r} is no length; {_REMEDY}")
    prompts = _prompts(folder / "config_sentence_transformers.json")
    pooling, normalize = _modules(folder, any(prompts.values()))
    return SentenceFiles(
        pooling,
        normalize,
        prompts.get("query"),
        next((prompts[name] for name in _PASSAGE if name in prompts), prompts.get("")),
        longest,
        bool(limits.get("do_lower_case", False)),
    )


def _modules(folder: Path, has_prompts: bool) -> tuple[str | None, bool | None]:
    """(pooling, normalize) by modules.json."""
    file = folder / "modules.json"
    if not file.is_file():
        return None, None
    modules = read_json(file, _REMEDY, list)
    pooling, normalize = None, False
    for module in modules:
        if not isinstance(module, dict) or not isinstance(module.get("type"), str):
            raise UserError(f"{file}: {shown(module)} is no module; {_REMEDY}")
        kind = module["type"].rpartition(".")[2]
        if kind == "Pooling":
            pooling = _pooling(folder / str(module.get("path", "1_Pooling")) / "config.json", has_prompts)
        elif kind == "Normalize":
            normalize = True
        elif kind != "Transformer":
            raise UserError(
                f"{file}: a module of type {kind} is not supported; only Transformer, Pooling and Normalize are"
            )
    return pooling, normalize


def _pooling(file: Path, has_prompts: bool) -> str:
    found = _object(file)
    modes = found.get("pooling_mode")
    if modes is None:
        names = [key for key, value in found.items() if key.startswith("pooling_mode_") and value is True]
        modes = [key.removeprefix("pooling_mode_").removesuffix("_tokens").removesuffix("_token") for key in names]
        modes = ["mean_sqrt_len_tokens" if mode == "mean_sqrt_len" else mode for mode in modes] or ["mean"]
    modes = [modes] if isinstance(modes, str) else modes
    if not isinstance(modes, list) or len(modes) != 1 or _MODES.get(str(modes[0])) not in POOLINGS:
        raise UserError(f"{file}: pooling {shown(modes)} is not supported; one of {', '.join(POOLINGS)} is")
    if found.get("include_prompt", True) is not True and has_prompts:
        raise UserError(f"{file}: include_prompt = false is not supported: tokens of a prefix are pooled here")
    return _MODES[str(modes[0])]


def _prompts(file: Path) -> dict[str, str]:
    """The prompts by name; the default one, which texts of any kind have that have none of their own, by ""."""
    found = _object(file)
    prompts = found.get("prompts") or {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise UserError(f"{file}: prompts {shown(prompts)} must map names to texts; {_REMEDY}")
    default = found.get("default_prompt_name")
    if default is None:
        return dict(prompts)
    if default not in prompts:
        raise UserError(f"{file}: default_prompt_name {default!r} is not among the prompts; {_REMEDY}")
    return {"": prompts[default], "query": prompts[default], **prompts}


def _object(file: Path) -> Mapping[str, Any]:
    return read_object(file) if file.is_file() else {}
