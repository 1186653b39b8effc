"""A small pre-training in a process of its own, to be killed: `python pretraining_child.py FOLDER [KILL_AT_STEP]`.

Prints a hash of everything that must not depend on having been killed.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
from small_texts import random_texts, reading_model, store_of

from ntk_jax.training.mixture import Mixture, mix
from ntk_jax.training.pretrain import PRETRAINING, pretrain
from ntk_jax.training.train import Trained

CONFIG = replace(PRETRAINING, learning_rate=1e-2, tokens_per_microbatch=64, checkpoint_every=3)
STEPS = 10


def mixture(folder: Path, **changes: Any) -> Mixture:
    sources = {
        "mined": store_of(folder / "mined", random_texts(12, seed=1)),
        "general": store_of(folder / "general", random_texts(30, seed=2, letters="ijklmnop ")),
    }
    options: dict[str, Any] = dict(tokens=1250, row_length=32, batch_size=4, seed=7) | changes
    return mix(sources, {"mined": 0.25, "general": 0.75}, **options)


def run(folder: Path, progress: Any = None, **changes: Any) -> Trained:
    parameters = changes.get("parameters", "lora")
    model = reading_model(adapter=parameters == "lora")
    return pretrain(model, mixture(folder), CONFIG, folder=folder / "training", progress=progress, **changes)


def fingerprint(trained: Trained, folder: Path) -> str:
    digest = hashlib.sha256((folder / "training" / "history.jsonl").read_bytes())
    for leaf in jax.tree.leaves((trained.lora, trained.second_moment)):
        digest.update(np.asarray(leaf).tobytes())
    digest.update(repr((trained.steps, trained.examples, trained.tokens, trained.label_tokens)).encode())
    return digest.hexdigest()


def main() -> None:
    folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])

    def progress(done: int, total: int, note: str) -> None:
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    print(fingerprint(run(folder, progress), folder))


if __name__ == "__main__":
    main()
