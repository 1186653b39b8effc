"""The device mesh: three named axes, of which most runs use only the first.

data: rows of a batch, parameters replicated. fsdp: rows too, with parameters split and gathered layer by layer.
tensor: one layer's matrices split over devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jax.sharding import AbstractMesh, AxisType, Mesh

from ntk_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (default: all); at most one axis is -1 and takes what is left.

    Axes are Auto: the compiler places collectives. (`jax.make_mesh` alone would make them Explicit.)
    Raises UserError where the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = mesh_sizes(data, fsdp, tensor, len(devices))
    return jax.make_mesh(sizes, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)


def abstract_mesh(data: int, fsdp: int, tensor: int, count: int) -> AbstractMesh:
    """The same over `count` devices that need not be there: for shapes and sizes only."""
    return AbstractMesh(mesh_sizes(data, fsdp, tensor, count), AXES, axis_types=(AxisType.Auto,) * len(AXES))


def mesh_sizes(data: int, fsdp: int, tensor: int, count: int) -> tuple[int, ...]:
    """The three sizes with -1 filled in, for `count` devices. Raises UserError as `make_mesh`."""
    sizes = [data, fsdp, tensor]
    named = f"mesh data={data}, fsdp={fsdp}, tensor={tensor}"
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"{named}: sizes are positive, and at most one is -1 (what is left)")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and count % known == 0:
        sizes[sizes.index(-1)] = count // known
    if math.prod(sizes) != count:
        raise UserError(f"{named} does not fit {count} devices; the sizes must multiply to their number")
    return tuple(sizes)
