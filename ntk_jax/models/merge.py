"""An adapter melted into the checkpoint it was trained on, tensor by tensor: no model is ever held in memory.

W + (α/R)·(AB)ᵀ is computed in fp32 and rounded to the dtype that the checkpoint keeps W in; every other tensor is
copied. The files are written as they are computed, header first (the safetensors format: 8 bytes of length, JSON with
dtype, shape and place of every tensor, then their bytes), so that one tensor at a time is in memory, whatever the size
of the files. Names are those of the name table; several files get an index, as `transformers` reads them.
"""

from __future__ import annotations

import json
import shutil
import struct
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import jax.numpy as jnp
import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.models.checkpoint import INDEX
from ntk_jax.models.decoder import abstract_decoder
from ntk_jax.models.hub import open_checkpoint, read_config, resolve
from ntk_jax.models.lora import LoRAConfig
from ntk_jax.models.names import name_table
from ntk_jax.models.peft import CONFIG, load_adapter
from ntk_jax.storage.atomic import new_folder, write_json

SHARD_BYTES = 2_000_000_000  # of a file, at most that much of the checkpoint is mapped at once
# Configuration, tokenizer with its named templates, licence.
_KEPT = ("*.json", "*.jinja", "*.model", "*.txt", "additional_chat_templates/*.jinja")
_WIDTHS = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Merged:
    """What was written. tensors: how many; adapted: how many of them the adapter changed; size: bytes of weights;
    files: names of the weight files."""

    tensors: int
    adapted: int
    size: int
    files: tuple[str, ...]


def merge_adapter(
    model: str,
    adapter: str | Path,
    out: str | Path,
    *,
    shard_bytes: int = SHARD_BYTES,
    progress: Progress | None = None,
    ignore_config_keys: Collection[str] = (),
) -> Merged:
    """Writes a checkpoint with an adapter's update added to its weights: a Hugging Face folder that needs no PEFT.

    Configuration and tokenizer files are copied as they are, weights keep the dtype that the checkpoint has them in,
    and a head that is tied to the embedding stays tied. In memory are one or two tensors, and mapped as much of the
    checkpoint as goes into one file. The folder appears whole or not at all.

    Args:
        model: the checkpoint that the adapter was trained on: a folder, a hub id, or `builtin:model`.
        adapter: a PEFT folder, as `finetune(out=...)` and a run write it.
        out: the folder to make; one that is there and not empty is refused.
        shard_bytes: no weight file is larger, unless by one tensor.
        progress: called with (tensors written, of how many).
        ignore_config_keys: as `load_model` takes them.

    Returns:
        What was written: `tensors`, `adapted` (those that the adapter changed), `size` in bytes, and `files`.

    Raises:
        UserError: a checkpoint or an adapter that cannot be read or do not fit each other, a sum that the checkpoint's
            dtype cannot hold, `out` is there already, or the disk is full.

    Example:
        >>> import ntk_jax as nj
        >>> model = nj.load_model("builtin:model", lora=nj.LoRAConfig(rank=2))
        >>> domain = [{"prompt": "A cat", "response": "purrs"}]
        >>> tuned = nj.finetune(model, domain, training=nj.TrainConfig(max_steps=1), out="tuned")
        >>> nj.merge_adapter("builtin:model", "tuned/adapter", "merged").files
        ('model.safetensors',)
        >>> nj.load_model("merged").config == model.config
        True
    """
    folder = resolve(model)
    config = read_config(folder, ignore_config_keys)
    lora, lora_config = load_adapter(adapter, config)
    shapes = abstract_decoder(config, None, jnp.float32)[2]
    wanted = [name for source in name_table(config).values() for name in source.names]
    updates = _updates(config, lora, lora_config)
    done = 0
    with new_folder(out) as place:
        with open_checkpoint(folder, config, shapes) as tensors:
            sizes = {name: _size(tensors[name]) for name in wanted}
            files = _split({name: tensors[name] for name in wanted}, shard_bytes)
        for file, names in files.items():
            # Opened for each file anew: what has been read stays mapped, and counts as memory, until it is closed.
            with open_checkpoint(folder, config, shapes) as tensors, open(place / file, "wb") as stream:
                _write_header(stream, {name: tensors[name] for name in names})
                for name in names:
                    stream.write(_bytes(_sum(name, tensors[name][:], updates.get(name), folder)))
                    done += 1
                    if progress is not None:
                        progress(done, len(wanted))
        if len(files) > 1:
            places = {name: file for file, names in files.items() for name in names}
            write_json(place / INDEX, {"metadata": {"total_size": sum(sizes.values())}, "weight_map": places})
        _copy_others(folder, place)
    return Merged(len(wanted), len(updates), sum(sizes.values()), tuple(files))


def _updates(config: Any, lora: Mapping[str, Any], lora_config: LoRAConfig) -> dict[str, Callable[[], np.ndarray]]:
    """Tensor name → what computes its update [out, in], fp32, when it is asked for."""
    table, found = name_table(config), {}

    def update(scale: float, a: np.ndarray, b: np.ndarray) -> Callable[[], np.ndarray]:
        return lambda: np.float32(scale) * (b.T @ a.T)

    for linear, leaf in lora["layers"].items():
        a, b = (np.asarray(leaf[part], np.float32) for part in ("a", "b"))
        for layer, name in enumerate(table[f"layers/{linear}/kernel"].names):
            found[name] = update(lora_config.scales[linear], a[layer], b[layer])
    return found


def _sum(name: str, value: np.ndarray, update: Callable[[], np.ndarray] | None, folder: Path) -> np.ndarray:
    """W + its update in W's dtype; W itself where there is none."""
    if update is None:
        merged = value
    else:
        exact = update().astype(np.float64 if value.dtype == np.float64 else np.float32, copy=False)
        np.add(exact, value, out=exact)
        with np.errstate(over="ignore"):  # an infinity is refused below
            merged = exact.astype(value.dtype)
    if not np.isfinite(merged).all():
        raise UserError(
            f"{folder}: tensor {name} holds NaN or Inf"
            + (
                "; the checkpoint is damaged"
                if update is None
                else f" with the adapter's update, as {value.dtype}; look at the adapter and the checkpoint"
            )
        )
    return merged


def _split(tensors: Mapping[str, Any], shard_bytes: int) -> dict[str, list[str]]:
    """File name → its tensors, filled in order. Wider numbers come first: all lie at multiples of their width."""
    contents: list[list[str]] = [[]]
    room = shard_bytes
    for name, tensor in tensors.items():
        if _size(tensor) > room and contents[-1]:
            contents.append([])
            room = shard_bytes
        contents[-1].append(name)
        room -= _size(tensor)
    for names in contents:
        names.sort(key=lambda name: -_WIDTHS[tensors[name].get_dtype()])
    if len(contents) == 1:
        return {"model.safetensors": contents[0]}
    return {f"model-{i:05}-of-{len(contents):05}.safetensors": names for i, names in enumerate(contents, 1)}


def _write_header(stream: IO[bytes], tensors: Mapping[str, Any]) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in tensors.items():
        end = start + _size(tensor)
        header[name] = {"dtype": tensor.get_dtype(), "shape": tensor.get_shape(), "data_offsets": [start, end]}
        start = end
    text = json.dumps(header, separators=(",", ":")).encode("utf8")
    text += b" " * (-len(text) % 8)
    stream.write(struct.pack("<Q", len(text)) + text)


def _size(tensor: Any) -> int:
    return int(np.prod(tensor.get_shape(), dtype=np.int64)) * _WIDTHS[tensor.get_dtype()]


def _bytes(value: np.ndarray) -> memoryview:
    return memoryview(np.ascontiguousarray(value).reshape(-1).view(np.uint8))


def _copy_others(folder: Path, place: Path) -> None:
    """Configuration and tokenizer, as they are. An adapter that lies beside the checkpoint stays behind."""
    files: Iterable[Path] = (path for pattern in _KEPT for path in folder.glob(pattern) if path.is_file())
    for path in files:
        if path.name not in (INDEX, CONFIG):
            (place / path.relative_to(folder)).parent.mkdir(exist_ok=True)
            shutil.copyfile(path, place / path.relative_to(folder))
