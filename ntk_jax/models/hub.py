"""Hugging Face folders and hub ids: config, weights and tokenizer, in and out.

Weights are read with safetensors slices straight into the target shardings: each device's part of each leaf
asks for just the bytes it needs, whatever the number of files. Reading is strict: every tensor of the
checkpoint is used exactly once, every parameter is set exactly once, shapes agree and all values are finite.

Quantized weights are made on the way, one leaf at a time, so that no device ever holds them in full precision. A
channel's scale needs all of its numbers, so each process reads those tensors whole, though only once.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import ml_dtypes  # noqa: F401  (registers bfloat16 with numpy, which safetensors needs)
import numpy as np
from safetensors.numpy import save

from ntk_jax.builtin.paths import ROOT as BUILTIN
from ntk_jax.errors import UserError, note
from ntk_jax.models.checkpoint import INDEX, open_tensors, read_object, refuse_other_folder, refuse_placeholder, some
from ntk_jax.models.config import ModelConfig, config_to_hf, parse_config
from ntk_jax.models.lora import fold
from ntk_jax.models.names import DERIVED, EMBED, HEAD, VALUE_HEAD, WRAPPERS, Source, foreign, name_table, plain_names
from ntk_jax.models.pad_token import is_only_beyond, without_pad
from ntk_jax.models.quantization import SCALE, is_quantized, quantize, refuse_quantized
from ntk_jax.storage.atomic import make_folder, write_bytes, write_json

if TYPE_CHECKING:
    from ntk_jax.models.model import Model

_FILES = ["*.json", "*.safetensors", "*.jinja", "*.model", "*.txt"]  # what a snapshot needs; no .bin, no .pth
_LEFT = ["consolidated*"]  # the same weights under Mistral's own names
_FLOATS = ("F32", "BF16", "F16", "F64")
Index = tuple[slice, ...]
Part = Callable[[str, Index], np.ndarray]  # (tensor's name, what of it) → its numbers


def resolve(path: str) -> Path:
    """The folder behind `builtin:NAME`, a local path, or a hub id `owner/name[@revision]` (downloaded once).

    Raises UserError when there is no such folder, and when the hub cannot be reached or refuses.
    """
    if path.startswith("builtin:"):
        folder = BUILTIN / path.removeprefix("builtin:")
        if not folder.is_dir():
            raise UserError(f"{path}: no such builtin model; builtin:model is the one there is")
        return folder
    if path and Path(path).expanduser().is_dir():
        return Path(path).expanduser()
    if Path(path).expanduser().is_file():
        if path.endswith(".gguf"):
            raise UserError(f"{path}: GGUF is not read; give the Hugging Face folder or hub id that it was made from")
        raise UserError(f"{path} is a file; give the folder it is in")
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", path) or path.startswith("."):
        raise UserError(f"no model folder at {path!r}; give a Hugging Face folder or a hub id such as owner/name")
    from huggingface_hub import snapshot_download

    name, _, revision = path.partition("@")
    try:
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=_FILES, ignore_patterns=_LEFT))
    except Exception as error:  # offline, gated, misspelt, timed out: many types, and all the user's to put right
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{path}: neither a folder here nor to be had from the hub ({type(error).__name__}: {reason}); "
            "check the spelling, the connection and HF_TOKEN, or download it and give the folder"
        ) from None


def read_config(folder: Path, ignore: Collection[str] = ()) -> ModelConfig:
    """The strict reading of `config.json`, but for unknown keys to ignore; UserError where it is missing or not JSON,
    or the folder is an adapter."""
    refuse_other_folder(folder)
    return parse_config(read_object(folder / "config.json"), str(folder / "config.json"), ignore)


def load_weights(folder: Path, config: ModelConfig, shapes: Mapping[str, Any], shardings: Any = None) -> dict[str, Any]:
    """The base tree of the checkpoint in `folder`, each leaf in the dtype of `shapes` and on its sharding.

    shapes: base tree of ShapeDtypeStructs (`decoder.abstract_decoder`); where it says so, linears are quantized.
    shardings: the same tree of Shardings, or None for the first device. Raises UserError for missing, extra, misshapen,
    non-float or non-finite tensors, and for a head that contradicts `tie_word_embeddings`.
    """
    table = name_table(config)
    leaves, treedef = jax.tree_util.tree_flatten_with_path(shapes)
    places = jax.tree.leaves(shardings)  # same tree, so same order
    first = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    expected = {_path(path): leaf.shape for path, leaf in leaves if path[-1].key != SCALE}
    with open_tensors(folder) as found:
        tensors = _by_plain_name(folder, found)
        _check_names(folder, config, table, tensors, expected)
        values, parts = [], dict[str, Part]()
        for i, (path, leaf) in enumerate(leaves):
            name = _path(path)
            source = table[name.removesuffix("_scale")]
            if name not in parts and is_quantized(path[-1].key, leaf):
                # The scale's leaf comes next, and is read with the kernel's.
                parts[name], parts[f"{name}_scale"] = _quantized(folder, source, tensors, str(leaf.dtype))
            part = parts.pop(name) if name in parts else _plain(folder, source, tensors, leaf.dtype)
            read = _reader(source, leaf, part)
            values.append(jax.make_array_from_callback(leaf.shape, places[i] if places else first, read))
            # Reading runs ahead of copying to the device: without this, all of the model piles up on the host.
            values[-1].block_until_ready()
        return jax.tree_util.tree_unflatten(treedef, values)


@contextmanager
def open_checkpoint(folder: Path, config: ModelConfig, shapes: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Tensor name of the name table → lazy slice (`[:]`, `get_shape`, `get_dtype`) of the checkpoint in `folder`. All
    but its numbers is checked. shapes, and what is raised: as `load_weights`."""
    leaves = jax.tree_util.tree_flatten_with_path(shapes)[0]
    with open_tensors(folder) as found:
        tensors = _by_plain_name(folder, found)
        _check_names(folder, config, name_table(config), tensors, {_path(path): leaf.shape for path, leaf in leaves})
        yield tensors


def has_wrapped_names(folder: Path) -> bool:
    """Whether names of the checkpoint's tensors come from what was around the model when it was saved, which is read
    here and not by transformers."""
    with open_tensors(folder) as tensors:
        return any(part in WRAPPERS for name in tensors for part in name.split("."))


def save_weights(folder: str | Path, model: Model, *, shard_bytes: int = 4 << 30) -> None:
    """Writes a Hugging Face folder of what the model computes: an adapter is folded into the weights. Quantized weights
    are refused: what was rounded away belongs in the file, and loading without quantization has it.

    Weights keep their dtype; beyond `shard_bytes` they go into several files with an index. The tokenizer comes
    along. Raises UserError when the disk is full or not writable.
    """
    refuse_quantized(model.base, "weights cannot be written from")
    folder = make_folder(folder)
    base = fold(model.lora, model.base, model.scales) if model.lora else model.base
    leaves = {_path(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(base)[0]}
    table = name_table(model.config)
    files = _split(table, {leaf: value.nbytes for leaf, value in leaves.items()}, shard_bytes)
    for old in {*folder.glob("model*.safetensors"), folder / INDEX} - {folder / name for name in files}:
        old.unlink(missing_ok=True)  # a reader would mix them with the new ones
    for file, content in files.items():
        tensors = {}
        for tensor, (leaf, layer) in content.items():
            value = np.asarray(leaves[leaf])
            value = value[layer] if table[leaf].stacked else value
            tensors[tensor] = np.ascontiguousarray(value.T if table[leaf].transposed else value)
        write_bytes(folder / file, save(tensors, metadata={"format": "pt"}))
    if len(files) > 1:
        total = sum(value.nbytes for value in leaves.values())
        places = {tensor: file for file, content in files.items() for tensor in content}
        write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": places})
    if model.tokenizer is not None:
        model.tokenizer.save_pretrained(str(folder))
    write_json(folder / "config.json", {**config_to_hf(model.config), "dtype": str(model.dtype)})


def _split(
    table: Mapping[str, Source], sizes: Mapping[str, int], shard_bytes: int
) -> dict[str, dict[str, tuple[str, int]]]:
    """File name → {tensor: (leaf, layer)}: files filled in table order up to `shard_bytes` each."""
    contents: list[dict[str, tuple[str, int]]] = [{}]
    room = shard_bytes
    for leaf, source in table.items():
        size = sizes[leaf] // len(source.names)
        for layer, tensor in enumerate(source.names):
            if size > room and contents[-1]:
                contents.append({})
                room = shard_bytes
            contents[-1][tensor] = (leaf, layer)
            room -= size
    if len(contents) == 1:
        return {"model.safetensors": contents[0]}
    return {f"model-{i:05}-of-{len(contents):05}.safetensors": content for i, content in enumerate(contents, 1)}


def load_tokenizer(folder: Path, vocab_size: int, special: Mapping[str, tuple[int, ...]] = {}) -> Any:
    """The folder's transformers tokenizer, without touching the network.

    special: the model's own ids of `bos` and `eos`. Raises UserError when there is no tokenizer, it cannot be read, it
    has ids that the embedding lacks, or its BOS and EOS are both other than the model's.
    """
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise UserError(f"{folder}: no tokenizer.json; copy the model's tokenizer there, or load with tokenizer=False")
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    # AutoTokenizer goes by model_type before it looks at the files: beside a qwen2 config.json it puts Qwen's own
    # splitting and special tokens onto any tokenizer.json, and gives other ids. The file says what the model saw.
    reader = PreTrainedTokenizerFast if (folder / "tokenizer.json").is_file() else AutoTokenizer
    try:
        tokenizer = reader.from_pretrained(str(folder), local_files_only=True)
        tokenizer("a text", add_special_tokens=False)  # some bad settings show only here
    except Exception as error:  # transformers raises what its many readers raise
        for file in sorted(folder.glob("tokenizer*")):
            refuse_placeholder(file)
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{folder}: the tokenizer cannot be read ({reason}); copy the model's own files") from None
    if is_only_beyond(tokenizer, vocab_size):
        note(
            f"{folder}: the pad token {tokenizer.pad_token!r} has no row in the embedding ({vocab_size} rows) and is "
            "left aside; padding here needs none"
        )
        tokenizer = without_pad(tokenizer)
    _refuse_without_row(folder, tokenizer, vocab_size)
    for name, ours in special.items():
        theirs = getattr(tokenizer, f"{name}_token_id")
        if theirs is None or not ours or theirs in ours:
            return tokenizer  # either agrees or says nothing; files in use often differ in one of the two
    if special:
        raise UserError(
            f"{folder}: the tokenizer does not match the model: its BOS and EOS are {tokenizer.bos_token_id} and "
            f"{tokenizer.eos_token_id}, config.json says otherwise; use the model's own tokenizer"
        )
    return tokenizer


def _refuse_without_row(folder: Path, tokenizer: Any, rows: int) -> None:
    beyond = sorted((number, name) for name, number in tokenizer.get_vocab().items() if number >= rows)
    if not beyond:
        return
    advice = "use the model's own tokenizer"
    added = tokenizer.get_added_vocab()
    if all(name in added for _, name in beyond):
        advice = (
            f"{some([repr(name) for _, name in beyond])} was added to it: use the checkpoint whose embedding was "
            "resized for that, or the tokenizer from before"
        )
    raise UserError(
        f"{folder}: the tokenizer does not match the model: it has token id {beyond[-1][0]}, "
        f"the embedding {rows} rows; {advice}"
    )


def _path(path: Any) -> str:
    return jax.tree_util.keystr(path, simple=True, separator="/")


def _by_plain_name(folder: Path, found: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors under the names of the table, as far as they have one, without those that are not needed."""
    tensors: dict[str, Any] = {}
    aside = []
    for name, plain in plain_names(found).items():
        if VALUE_HEAD.fullmatch(plain):
            aside.append(name)
        elif not DERIVED.fullmatch(plain):
            if plain in tensors:
                raise UserError(f"{folder}: {name} and another tensor both stand for {plain}; keep one of them")
            tensors[plain] = found[name]
    if aside:
        note(f"{folder}: the value head, {some(aside)}, is left aside: it changes neither hidden states nor logits")
    return tensors


def _check_names(
    folder: Path,
    config: ModelConfig,
    table: Mapping[str, Source],
    tensors: dict[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
) -> None:
    """Names, shapes and dtypes agree with the table, before anything is read."""
    assert set(table) == set(shapes), "the name table and the decoder disagree"
    wanted = {name: leaf for leaf, source in table.items() for name in source.names}
    for name in tensors:
        reason = foreign(name) if name not in wanted else None
        if reason:
            raise UserError(f"{folder}: tensor {name}: {reason}")
    if config.tied and HEAD in tensors:
        # Some exporters write the shared matrix twice, some under the head's name alone.
        if EMBED not in tensors:
            tensors[EMBED] = tensors[HEAD]
        # transformers 4 takes the embedding here and 5 the head, so that no answer is right for everyone.
        elif not np.array_equal(tensors[HEAD][:], tensors[EMBED][:]):
            raise UserError(
                f"{folder}: config.json ties the head to the embedding, but {HEAD} differs; untie it there "
                "(tie_word_embeddings: false), or remove that tensor if the model was trained with them tied"
            )
        del tensors[HEAD]
    missing = [name for name in wanted if name not in tensors]
    if missing == [HEAD]:
        raise UserError(
            f"{folder}: no {HEAD}, and config.json does not tie it: a model without its head; use the checkpoint that "
            "has it, or, if the head is the embedding, set tie_word_embeddings to true"
        )
    if missing:
        raise UserError(f"{folder}: tensor {some(missing)} is missing; the checkpoint is not complete")
    extra = [name for name in tensors if name not in wanted]
    if extra:
        raise UserError(f"{folder}: tensor {some(extra)} has no place in the model of its config.json")
    for name, leaf in wanted.items():
        source, shape = table[leaf], list(shapes[leaf])
        expected = shape[1:] if source.stacked else shape
        expected = expected[::-1] if source.transposed else expected
        found = tensors[name].get_shape()
        if found != expected:
            raise UserError(f"{folder}: tensor {name} has shape {found}, config.json asks for {expected}")
        kind = tensors[name].get_dtype()
        if kind not in _FLOATS:
            more = "; use the unquantized checkpoint" if kind in ("F8_E4M3", "F8_E5M2", "I8", "U8", "I32") else ""
            raise UserError(f"{folder}: tensor {name} is {kind}; only float weights are supported{more}")


def _copy(value: np.ndarray, out: np.ndarray) -> None:
    """out[...] = value, in strips: copying a transposed matrix whole misses the cache at every element (7 x slower)."""
    for start in range(0, out.shape[-1], 16):
        out[..., start : start + 16] = value[..., start : start + 16]


def _plain(folder: Path, source: Source, tensors: Mapping[str, Any], dtype: Any) -> Part:
    """Parts of a leaf's tensors in our order of axes, in `dtype`."""

    def part(name: str, index: Index) -> np.ndarray:
        value = tensors[name][index[::-1] if source.transposed else index]
        value = (value.T if source.transposed else value).astype(dtype)
        if not np.isfinite(value).all():
            raise UserError(f"{folder}: tensor {name} holds NaN or Inf (as {dtype}); the checkpoint is damaged")
        return value

    return part


def _quantized(folder: Path, source: Source, tensors: Mapping[str, Any], kind: str) -> tuple[Part, Part]:
    """(parts of the quantized values, parts of their scales), each tensor read once."""
    plain = _plain(folder, source, tensors, np.dtype(np.float32))

    @functools.cache
    def whole(name: str) -> tuple[np.ndarray, np.ndarray]:
        return quantize(plain(name, (slice(None), slice(None))), kind)

    return lambda name, index: whole(name)[0][index], lambda name, index: whole(name)[1][index]


def _reader(source: Source, leaf: Any, part: Part) -> Callable[[Any], np.ndarray]:
    """What jax calls for each device's part: reads that part of the leaf, once however many devices share it."""
    done: dict[tuple[tuple[int, int], ...], np.ndarray] = {}

    def read(index: Index) -> np.ndarray:
        ranges = tuple(s.indices(n)[:2] for s, n in zip(index, leaf.shape, strict=True))
        if ranges not in done:
            exact = tuple(slice(*r) for r in ranges)
            if source.stacked:
                value = np.empty([stop - start for start, stop in ranges], leaf.dtype)
                for row, layer in enumerate(range(*ranges[0])):
                    _copy(part(source.names[layer], exact[1:]), value[row])
            else:
                value = part(source.names[0], exact)
            done[ranges] = value
        return done[ranges]

    return read
