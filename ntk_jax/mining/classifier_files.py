"""The two files of a trained classifier: its arrays as safetensors, all else as JSON, written last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from ntk_jax.errors import UserError
from ntk_jax.mining.calibration import Calibration
from ntk_jax.mining.metrics import Curve
from ntk_jax.storage.atomic import make_folder, write_bytes, write_json
from ntk_jax.storage.reading import read_json

ARRAYS, FACTS = "classifier.safetensors", "classifier.json"
Parts = tuple[tuple[str, ...], dict[str, np.ndarray], Calibration, dict[str, Any]]


def write_classifier(
    folder: str | Path,
    kind: str,
    names: Sequence[str],
    weights: Mapping[str, np.ndarray],
    calibration: Calibration,
    facts: Mapping[str, Any],
) -> None:
    """Writes both files. Raises UserError as storage.atomic does."""
    make_folder(folder)
    write_bytes(Path(folder) / ARRAYS, save_tensors({name: np.ascontiguousarray(w) for name, w in weights.items()}))
    write_json(Path(folder) / FACTS, {"kind": kind, **_stored(names, calibration, facts)})


def read_classifier(folder: str | Path, kind: str) -> Parts:
    """(names, weights, calibration, facts). Raises UserError: absent, damaged, or of another kind."""
    names, calibration, facts = _read_stored(Path(folder) / FACTS, kind)
    return names, _read_weights(Path(folder) / ARRAYS), calibration, facts


def _stored(names: Sequence[str], calibration: Calibration, facts: Mapping[str, Any]) -> dict[str, Any]:
    """The JSON of a classifier: all but its arrays. It reads back to the same fp32 numbers."""
    curves = {
        name: {
            "threshold": [float(value) for value in curve.threshold],
            "precision": [float(value) for value in curve.precision],
            "recall": [float(value) for value in curve.recall],
            "kept": [float(value) for value in curve.kept],
            "base_rate": curve.base_rate,
        }
        for name, curve in calibration.curves.items()
    }
    return {
        "names": list(names),
        "scale": [float(value) for value in calibration.scale],
        "offset": [float(value) for value in calibration.offset],
        "thresholds": [float(value) for value in calibration.thresholds],
        "figures": calibration.figures,
        "curves": curves,
        "facts": dict(facts),
    }


def _read_stored(path: Path, kind: str) -> tuple[tuple[str, ...], Calibration, dict[str, Any]]:
    """(names, calibration, facts) of `_stored`. Raises UserError: absent, damaged, or of another kind."""
    remedy = f"train the classifier again (delete {path.parent})"
    value = read_json(path, remedy, dict)
    if value.get("kind") != kind:
        raise UserError(f"{path} holds a classifier of the kind {value.get('kind')!r}, not {kind!r}; {remedy}")
    try:
        curves = {name: _curve(own) for name, own in value["curves"].items()}
        scale, offset, limits = (np.array(value[key], np.float32) for key in ("scale", "offset", "thresholds"))
        return tuple(value["names"]), Calibration(scale, offset, limits, curves, value["figures"]), value["facts"]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path} is no classifier's: {error}; {remedy}") from None


def _read_weights(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a classifier. Raises UserError: absent or damaged."""
    try:
        return load_tensors(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path} is not there; train the classifier again") from None
    except Exception as error:  # safetensors raises its own, of several kinds
        raise UserError(f"{path} is damaged ({error}); train the classifier again") from None


def _curve(own: Mapping[str, Any]) -> Curve:
    threshold, precision, recall, kept = (np.array(own[key]) for key in ("threshold", "precision", "recall", "kept"))
    return Curve(threshold, precision, recall, kept, own["base_rate"])
