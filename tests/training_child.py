"""A small training in a process of its own, to be killed: `python training_child.py FOLDER [KILL_AT_STEP]`.

Prints a hash of everything that must not depend on having been killed.
"""

from __future__ import annotations

import hashlib
import os
import signal
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from kernel_reference import random_rows, tiny_model

from ntk_jax.training.optimizer import TrainConfig
from ntk_jax.training.train import Trained, train

CONFIG = TrainConfig(epochs=3.0, batch_size=4, learning_rate=1e-2, tokens_per_microbatch=64, checkpoint_every=4)
STEPS = 18


def run(folder: Path, progress: Any = None, **changes: Any) -> Trained:
    options: dict[str, Any] = dict(folder=folder, seed=3, row_length=32, progress=progress) | changes
    return train(tiny_model(), random_rows(24, seed=2), CONFIG, **options)


def fingerprint(trained: Trained, folder: Path) -> str:
    digest = hashlib.sha256((folder / "history.jsonl").read_bytes())
    for leaf in jax.tree.leaves((trained.lora, trained.second_moment)):
        digest.update(np.asarray(leaf).tobytes())
    numbers = (trained.steps, trained.examples, trained.tokens, trained.label_tokens, trained.flops, trained.history)
    digest.update(repr(numbers).encode())
    return digest.hexdigest()


def main() -> None:
    folder, kill_at = Path(sys.argv[1]), int(sys.argv[2])

    def progress(done: int, total: int, note: str) -> None:
        if done == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    print(fingerprint(run(folder, progress), folder))


if __name__ == "__main__":
    main()
