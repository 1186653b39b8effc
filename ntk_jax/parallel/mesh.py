"""The device mesh: three named axes, of which most runs use only the first.

data: rows of a batch, parameters replicated. fsdp: rows too, with parameters split and gathered layer by layer.
tensor: one layer's matrices split over devices.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
from jax.sharding import AxisType, Mesh

from ntk_jax.errors import UserError

AXES = ("data", "fsdp", "tensor")


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """A mesh over `devices` (default: all); at most one axis is -1 and takes what is left.

    Axes are Auto: the compiler places collectives. (`jax.make_mesh` alone would make them Explicit.)
    Raises UserError where the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    sizes = [data, fsdp, tensor]
    named = f"mesh data={data}, fsdp={fsdp}, tensor={tensor}"
    if sizes.count(-1) > 1 or any(size < 1 and size != -1 for size in sizes):
        raise UserError(f"{named}: sizes are positive, and at most one is -1 (what is left)")
    known = math.prod(size for size in sizes if size != -1)
    if -1 in sizes and len(devices) % known == 0:
        sizes[sizes.index(-1)] = len(devices) // known
    if math.prod(sizes) != len(devices):
        raise UserError(f"{named} does not fit {len(devices)} devices; the sizes must multiply to their number")
    return jax.make_mesh(tuple(sizes), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=devices)
