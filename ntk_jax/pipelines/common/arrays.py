"""Small results of stages in files: arrays as .npz, pytrees as safetensors, whole or absent and always the same
bytes."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from ntk_jax.errors import UserError
from ntk_jax.parallel import hosts
from ntk_jax.storage.atomic import write_bytes
from ntk_jax.storage.reading import described


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file that a stage wrote. Raises UserError: it is damaged, or has not the one asked for."""
    remedy = "delete it and run again: only it is computed anew"
    try:
        with np.load(io.BytesIO(path.read_bytes())) as arrays:
            return described({name: arrays[name] for name in arrays.files}, str(path), remedy)
    except Exception as error:  # of zip, of its compression and of NumPy's headers: many types
        raise UserError(f"{path} is damaged ({error}); {remedy}") from None


def save_arrays(path: Path, **arrays: Any) -> None:
    """Writes them as one .npz file, whole or not at all."""
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    write_bytes(path, buffer.getvalue())


def save_tree(path: Path, tree: Any, facts: dict[str, str] | None = None) -> None:
    """A pytree of nested dicts as one safetensors file with names like "layers/q_proj/a"; the same bytes every time.
    facts: how it was made, kept in the file's metadata."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    arrays = {
        jax.tree_util.keystr(p, simple=True, separator="/"): np.ascontiguousarray(hosts.on_host(leaf))
        for p, leaf in leaves
    }
    write_bytes(path, save(arrays, facts))


def load_tree(path: Path, like: Any) -> Any:
    """The tree that `save_tree` wrote, in the structure of `like`; raises UserError if names or shapes differ (leading
    axes may come on top: the probes of a direction)."""
    try:
        arrays = load_file(path)
    except Exception as error:  # of the operating system, of the format, of a dtype that NumPy lacks
        raise UserError(f"cannot read {path}: {error}; it must be a safetensors file written by this package") from None
    leaves, structure = jax.tree_util.tree_flatten_with_path(like)
    names = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in leaves]
    if set(names) != set(arrays):
        odd = sorted(set(names) ^ set(arrays))[0]
        raise UserError(f"{path} does not fit this model's parameters: {odd} is in one and not the other")
    for name, (_, leaf) in zip(names, leaves, strict=True):
        if arrays[name].shape[arrays[name].ndim - leaf.ndim :] != leaf.shape:
            raise UserError(
                f"{path} does not fit this model's parameters: {name} has shape {list(arrays[name].shape)}, "
                f"not {list(leaf.shape)}"
            )
    return jax.tree.unflatten(structure, [arrays[name] for name in names])


def tree_facts(path: Path) -> dict[str, str]:
    """The facts that `save_tree` kept."""
    try:
        with safe_open(path, "np") as file:
            return file.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise UserError(f"cannot read {path}: {error}; it must be a safetensors file written by this package") from None
