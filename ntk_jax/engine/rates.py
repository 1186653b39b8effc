"""How fast a device computes: what its maker states, times the share of it that is taken to be reached."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import jax

from ntk_jax.engine.costs import Grounds
from ntk_jax.errors import UserError

# Peak dense bf16 FLOP/s of one device. Where a sheet gives the rate with sparsity, half of it.
PEAKS = {
    "A100": 312e12,  # NVIDIA A100 Tensor Core GPU datasheet: BFLOAT16 Tensor Core, without sparsity
    "H100": 989e12,  # NVIDIA H100 Tensor Core GPU datasheet, SXM: 1,979 TFLOPS with sparsity
    "H200": 989e12,  # NVIDIA H200 Tensor Core GPU datasheet, SXM: 1,979 TFLOPS with sparsity
    "v4": 275e12,  # Google Cloud documentation, TPU v4: peak compute per chip
    "v5e": 197e12,  # Google Cloud documentation, TPU v5e: peak compute per chip
    "v5p": 459e12,  # Google Cloud documentation, TPU v5p: peak compute per chip
    "v6e": 918e12,  # Google Cloud documentation, TPU v6e: peak compute per chip
}
# Bytes of one device, by the same sheets; of the A100 the larger of its two forms.
MEMORY = {
    **{"A100": 80e9, "H100": 80e9, "H200": 141e9},
    **{"v4": 32 * 2.0**30, "v5e": 16e9, "v5p": 95e9, "v6e": 32e9},
}
SHEETS = {
    **dict.fromkeys(("A100", "H100", "H200"), "NVIDIA's datasheet, dense bf16"),
    **dict.fromkeys(("v4", "v5e", "v5p", "v6e"), "Google Cloud's documentation, bf16"),
}
# What jax calls them; a card with another bus or form has another rate, and is none of these.
_KINDS = {
    r"NVIDIA A100.*": "A100",
    r"NVIDIA H100 80GB HBM3": "H100",
    r"NVIDIA H200": "H200",
    r"TPU v4": "v4",
    r"TPU v5 ?(lite|e)": "v5e",
    r"TPU v5p?": "v5p",
    r"TPU v6 ?(lite|e)": "v6e",
}


@dataclass(frozen=True)
class Rate:
    """FLOP/s that one device reaches in a forward and in a backward pass; device: its name. peak: None if measured."""

    forward: float
    backward: float
    device: str
    peak: float | None = None


def kind_of(device_kind: str) -> str | None:
    """The name in `PEAKS` of what jax calls a device, None for any other."""
    return next((name for pattern, name in _KINDS.items() if re.fullmatch(pattern, device_kind)), None)


def stated_rate(section: Any, dtype: str, grounds: Grounds) -> Rate | None:
    """The rate by estimate.rate, estimate.device or this machine's devices; None where no rate is known. section: the
    config's section `estimate`. dtype: of the computation.

    Raises UserError: a device that is not in the list.
    """
    name = section.device or kind_of(jax.devices()[0].device_kind)
    if section.rate is not None:
        peak, source = section.rate, "estimate.rate"
    elif section.device is not None and section.device not in PEAKS:
        raise UserError(
            f"estimate.device = {section.device!r} is not one of {', '.join(PEAKS)}; give its peak as estimate.rate"
        )
    elif name is None or dtype != "bfloat16":
        # The peaks are of bf16: in float32 the same devices reach a fraction that depends on how jax multiplies.
        return None
    else:
        peak, source = PEAKS[name], SHEETS[name]
    name = name or "device"
    grounds.assume("peak rate", peak, f"{peak / 1e12:g} TFLOP/s for one {name}", source)
    grounds.assume(
        "utilization",
        section.utilization,
        f"{100 * section.utilization:g}% of the peak rate is reached, in every stage",
        "estimate.utilization; not measured: --measure on such a device makes it a measurement",
    )
    reached = peak * section.utilization
    return Rate(reached, reached, name, peak)


def device_memory(section: Any) -> float | None:
    """Bytes of the device that is meant: estimate.device, or this machine's; None where they are not known."""
    name = getattr(section, "device", None) or kind_of(jax.devices()[0].device_kind)
    return MEMORY.get(name) if name else None


def why_no_rate(section: Any, dtype: str) -> str:
    """The line that stands where hours would."""
    kind = jax.devices()[0].device_kind
    if dtype != "bfloat16" and (section.device or kind_of(kind)):
        reason = "the rates known here are of bfloat16, and model.dtype is float32; give estimate.rate"
    else:
        reason = f"none is known for {kind!r}; give estimate.device or estimate.rate"
    return f"Device-hours need a rate: {reason}, or measure with --measure on the device"
