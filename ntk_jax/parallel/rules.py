"""Sharding rules as data: which mesh axis splits which dimension of which parameter.

A rule is (pattern over a leaf's path, PartitionSpec). The first that matches wins; a leaf that matches none, as
the norms and the small fp32 adapters, is replicated. A mesh axis that does not divide a dimension is dropped
for that dimension, so that odd little models load on any mesh.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from ntk_jax.errors import UserError
from ntk_jax.parallel.hosts import place

ROWS = ("data", "fsdp")  # a batch's rows go over both

RULES: tuple[tuple[str, PartitionSpec], ...] = (
    # Stacked kernels [L, Din, Dout]. Column-parallel in, row-parallel out: one reduction a block.
    (r"layers/(q|k|v|gate|up)_proj/kernel", PartitionSpec(None, "fsdp", "tensor")),
    (r"layers/(o|down)_proj/kernel", PartitionSpec(None, "tensor", "fsdp")),
    (r"layers/(q|k|v)_proj/bias", PartitionSpec(None, "tensor")),
    # Scales of quantized kernels [L, Dout] go with their outputs over `tensor`; over fsdp they are not split: a gather
    # of some KB would cost a layer more time than it saves memory.
    (r"layers/(q|k|v|gate|up)_proj/kernel_scale", PartitionSpec(None, "tensor")),
    # [V, D] is split over D: the vocabulary axis is looked up by token and walked in chunks, both of which
    # would turn into gathers of the whole matrix if that axis were the split one.
    (r"embed|head", PartitionSpec(None, ("fsdp", "tensor"))),
)


def param_shardings(tree: Any, mesh: Mesh | AbstractMesh, rules: tuple[tuple[str, PartitionSpec], ...] = RULES) -> Any:
    """A NamedSharding for every leaf of `tree` (arrays or ShapeDtypeStructs in nested dicts)."""

    def place(path: Any, leaf: Any) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        for pattern, spec in rules:
            if re.fullmatch(pattern, name):
                return NamedSharding(mesh, _fitting(spec, leaf.shape, mesh))
        return NamedSharding(mesh, PartitionSpec())

    return jax.tree_util.tree_map_with_path(place, tree)


def _fitting(spec: PartitionSpec, shape: tuple[int, ...], mesh: Mesh | AbstractMesh) -> PartitionSpec:
    axes: list[Any] = []
    for size, entry in zip(shape, tuple(spec), strict=False):
        kept: list[str] = []
        for axis in () if entry is None else (entry,) if isinstance(entry, str) else entry:
            if size % mesh.shape[axis] == 0:
                kept.append(axis)
                size //= mesh.shape[axis]
        axes.append(tuple(kept) if len(kept) > 1 else kept[0] if kept else None)
    return PartitionSpec(*axes)


def shard_batch(batch: Any, mesh: Mesh) -> Any:
    """Puts every array of a batch on the mesh, rows (the first axis) over data and fsdp.

    Raises UserError when the rows do not divide evenly.
    """
    parts = mesh.shape["data"] * mesh.shape["fsdp"]
    for leaf in jax.tree.leaves(batch):
        if leaf.shape[0] % parts:
            raise UserError(
                f"a batch of {leaf.shape[0]} rows does not divide over {parts} devices; "
                "make batch_tokens a multiple of row length times devices"
            )
    return place(batch, NamedSharding(mesh, PartitionSpec(ROWS)))


def replicate(tree: Any, mesh: Mesh) -> Any:
    """A full copy of every leaf on every device of the mesh."""
    return place(tree, NamedSharding(mesh, PartitionSpec()))


def split_rows(x: jax.Array) -> jax.Array:
    """Pins an activation [B, ...] to rows over data and fsdp, where x lives on a mesh; elsewhere it is x itself.

    Without the hint the compiler may follow the split of the weights instead of that of the rows, and moves
    activations (an all-reduce a matmul) where gathering weights is meant.
    """
    return _pin(x, PartitionSpec(ROWS))


def whole(x: jax.Array) -> jax.Array:
    """Pins x to a full copy on every device: one all-gather where it is split."""
    return _pin(x, PartitionSpec())


def on_own_rows(
    function: Callable[..., Any], arrays: Sequence[jax.Array], rows_in: Sequence[int], rows_out: Sequence[int]
) -> Any:
    """function(*arrays), which returns a tuple, on every device with its own rows alone, where the first array lives on
    a mesh: for a program that the compiler cannot split, and would run with all rows on every device.

    rows_in, rows_out: the axis of rows of each argument and result. Heads and widths are whole on every device.
    """
    mesh = jax.typeof(arrays[0]).sharding.mesh
    if mesh.empty or mesh.size == 1 or set(mesh.axis_types) == {AxisType.Manual}:
        return function(*arrays)
    if set(ROWS) - set(mesh.axis_names) or set(mesh.axis_types) != {AxisType.Auto}:
        raise ValueError(f"a mesh of axes {mesh.axis_names}, {mesh.axis_types} says not which of them split the rows")
    specs = [tuple(PartitionSpec(*[None] * axis, ROWS) for axis in axes) for axes in (rows_in, rows_out)]
    return jax.shard_map(function, mesh=mesh, in_specs=specs[0], out_specs=specs[1], check_vma=False)(*arrays)


def gathered(x: jax.Array, name: str) -> jax.Array:
    """Pins one layer's slice of the stacked parameter `name` to the split it has over `tensor` alone: one all-gather
    over fsdp, here and in x's own dtype. Without it the compiler gathers where x is used, after it was widened. (The
    CPU's compiler has no fp8 of its own, and sends it as f16.)"""
    spec = next(spec for pattern, spec in RULES if re.fullmatch(pattern, name))
    return _pin(x, PartitionSpec(*(None if axis == "fsdp" else axis for axis in tuple(spec)[1:])))


def _pin(x: jax.Array, spec: PartitionSpec) -> jax.Array:
    # The type of an array carries its mesh, so neither the caller's jit nor a context has to name it.
    mesh = jax.typeof(x).sharding.mesh
    if mesh.empty or set(ROWS) - set(mesh.axis_names) or set(mesh.axis_types) != {AxisType.Auto}:
        return x  # one device, someone else's mesh, or manual axes inside a shard_map
    if _fitting(spec, x.shape, mesh) != spec:
        return x  # rows that do not divide, as the single row of a vmap over examples
    return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, spec))
