"""What the toy computes: the letters of each line, then their sum."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.engine.blocks import fill_blocks
from ntk_jax.engine.clock import Clock
from ntk_jax.engine.costs import Cost, Disk, Work
from ntk_jax.engine.stage import Job
from ntk_jax.errors import UserError
from ntk_jax.report.layout import Fact, Html, Part, Section
from ntk_jax.storage.arrays import create, open_store, read
from ntk_jax.storage.atomic import read_json, write_json
from ntk_jax.storage.hashing import sha256_file


@dataclass(frozen=True)
class Toy:
    """What its stages are handed."""

    config: Any
    job: Job

    @property
    def lines(self) -> list[str]:
        return Path(self.config.toy.file).read_text().splitlines()


def open_toy(config: Any, job: Job) -> Toy:
    return Toy(config, job)


def inputs(config: Any) -> dict[str, Any]:
    return {"text": lambda: {config.toy.file: sha256_file(config.toy.file)}}


def check(config: Any) -> None:
    if not config.toy.file:
        raise UserError("toy.file is not set; give a text file")


def check_inputs(toy: Toy, closing: bool) -> None:
    if not toy.lines:
        raise UserError(f"{toy.config.toy.file} is empty; give a text with lines")


def count(toy: Toy, folder: Path) -> dict[str, Any] | None:
    lines, clock = toy.lines, Clock(toy.job.folder, "count")
    store = create(folder / "letters.zarr", {"letters": ((), np.int64)}, len(lines), toy.config.toy.block_lines)

    def compute(block: int, part: list[str], progress: Any) -> dict[str, np.ndarray]:
        time.sleep(toy.config.toy.pause)
        return {"letters": np.array([sum(map(str.isalpha, line)) for line in part])}

    fill_blocks(
        store,
        lambda blocks: ((block, lines[slice(*store.block_range(block))]) for block in sorted(blocks)),
        compute,
        shard=toy.job.shard,
        progress=clock.ticking(toy.job.progress("count", len(lines), "lines")),
    )
    return None if toy.job.shard else {"lines": len(lines)}


def add(toy: Toy, folder: Path) -> dict[str, Any]:
    letters = int(read(open_store(toy.job.folder / "count" / "letters.zarr"), "letters").sum())
    write_json(folder / "summary.json", {"letters": letters})
    return {"letters": letters}


def cost_of_count(toy: Toy) -> Cost:
    lines = toy.lines
    return Cost((Work(len(lines), len(lines), 1e3 * len(lines), 1e3 * len(lines)),), Disk(8.0 * len(lines)))


def cost_of_add(toy: Toy) -> Cost:
    return Cost((), Disk(100.0))


def part(run: Any) -> Part:
    letters = run.json("add/summary.json").get("letters", "unknown")
    return Part("Toy", "Letters", [Fact("Letters", letters)], sections=[Section("letters", "Letters", Html("<p>"))])


def terminal(folder: Path) -> str:
    return f"{read_json(Path(folder) / 'add' / 'summary.json')['letters']} letters"


def doctor(config: Any) -> list[Any]:
    return [("toy.file", lambda: f"{len(Path(config.toy.file).read_text().splitlines())} lines")]
