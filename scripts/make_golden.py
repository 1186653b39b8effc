"""Writes tests/golden/parity_*.npz: logits and LoRA gradients of transformers' PyTorch models.

    python scripts/make_golden.py            # needs the `reference` extra (torch, peft)

Weights, adapters and tokens come from numpy seeds (tests/parity_cases.py) and are not stored; of the results a sample
is. The tests compare us with these files where torch is absent, and with torch itself where it is there.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

import parity_cases as cases  # noqa: E402
from parity_torch import reference, versions  # noqa: E402


def main() -> None:
    cases.GOLDEN.mkdir(exist_ok=True)
    for case in cases.CASES:
        with tempfile.TemporaryDirectory() as folder:
            logits, gradients = reference(case, Path(folder))
        positions, entries = cases.logit_sample(case)
        arrays = {"logits": logits[0][np.ix_(positions, entries)], "versions": np.array(versions())}
        for name, parts in gradients["layers"].items():
            for part, value in parts.items():
                arrays[f"{name}.{part}"] = value.ravel()[cases.gradient_sample(value.size)]
        file = cases.GOLDEN / f"parity_{case}.npz"
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        print(f"{file.relative_to(ROOT)}  {file.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
