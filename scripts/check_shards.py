"""Fills the stages that have blocks, such as preselect and score, with several processes, one of them killed with
SIGKILL in the middle and started again, and compares all bytes of the stores and of the selections with those of one
process.

    python scripts/check_shards.py configs/quickstart.yaml --examples 100000 --shards 4

The pool is the config's, repeated as often as --examples needs, under ids of its own. preselect.method is votes unless
the command line says otherwise; with `none` there is no stage preselect. Warm-up and gradient run once, and both ways
start from them. Prints the wall time and the peak resident memory (VmHWM) of every process. Exit 1 if any byte differs.
"""

from __future__ import annotations

import argparse
import hashlib
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from check_sketch_resume import command, config_of, write_pool

from ntk_jax.pipelines import pipeline

POLL = 0.02  # seconds
COMPARED = ("preselect/votes.npz", "*/*.zarr", "select/*.jsonl")


@dataclass
class Child:
    """A running command, and what is seen of it from outside."""

    name: str
    process: subprocess.Popen[bytes]
    begun: float
    peak: int = 0  # KiB
    ended: float | None = None

    def look(self) -> bool:
        """Reads its peak memory; True while it runs."""
        try:
            lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
            self.peak = max([self.peak, *(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))])
        except OSError:
            pass
        if self.process.poll() is None:
            return True
        self.ended = self.ended or time.monotonic()
        return False

    def line(self) -> str:
        end = "killed" if self.process.returncode == -9 else f"exit {self.process.returncode}"
        return f"{self.name:<24} {(self.ended or 0) - self.begun:8.1f} s {self.peak / 2**20:8.2f} GiB  {end}"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("config")
    arguments.add_argument("--examples", type=int, default=100_000)
    arguments.add_argument("--shards", type=int, default=4)
    arguments.add_argument("--out", default="runs/check_shards", help="made anew: whatever is there is deleted")
    options, overrides = arguments.parse_known_args()

    place = Path(options.out)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    write_pool(config_of(options.config, overrides), options.examples, place / "pool.jsonl")
    given = [f"--data.pool=[{place / 'pool.jsonl'}]", "--data.pool_limit=null", "--preselect.method=votes"]
    overrides = [*given, *overrides]
    config, select = config_of(options.config, overrides), pipeline("select")
    before = select.before(config, "select")
    sharded = [stage for stage in before if select.stage(stage).stores(config)]
    whole, shared = place / "whole", place / "shared"

    def start(stage: str, out: Path, *more: str) -> Child:
        log = open(place / "log.txt", "ab")  # noqa: SIM115 (the child's; ours is closed by its end)
        line = command(stage, options.config, out, [*more, *overrides])
        process = subprocess.Popen(line, stdout=log, stderr=subprocess.STDOUT)
        log.close()
        return Child(" ".join([stage, *more]), process, time.monotonic())

    print(f"{'process':<24} {'wall':>10} {'peak resident':>12}", flush=True)
    whole.mkdir()
    for stage in before:
        if stage not in sharded:
            finish(start(stage, whole))
    shutil.copytree(whole, shared)
    durations = {}
    for stage in sharded:
        child = finish(start(stage, whole))
        durations[stage] = (child.ended or 0) - child.begun
    finish(start("select", whole))

    for stage in sharded:
        begun = time.monotonic()
        if not fill(start, stage, shared, options.shards):
            return 1
        finish(start(stage, shared, "--merge"))
        print(f"{stage}: {durations[stage]:.1f} s by one process, {time.monotonic() - begun:.1f} s by {options.shards}")
    finish(start("select", shared))

    first, second = hashes(whole), hashes(shared)
    differing = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    for name in differing:
        print(f"DIFFERENT {name}")
    print(f"{len(first)} files compared, {'identical' if first and not differing else 'DIFFERENT'}")
    return 0 if first and not differing else 1


def fill(start: Callable[..., Child], stage: str, out: Path, shards: int) -> bool:
    """All shards of a stage, the last killed once it has written something and started again."""
    children = [start(stage, out, "--shard", f"{index}/{shards}") for index in range(shards)]
    victim, last, struck = children[-1], shards - 1, False
    while any([child.look() for child in children]):
        blocks = [int(done.name) for done in out.glob(f"{stage}/*.zarr/done/c/*") if done.name.isdigit()]  # no locks
        if not struck and any(block % shards == last for block in blocks):
            victim.process.kill()
            victim.process.wait()
            struck = True
            children.append(start(stage, out, "--shard", f"{last}/{shards}"))
        time.sleep(POLL)
    for child in children:
        print(child.line(), flush=True)
    if not struck:
        print(f"{stage}: shard {last}/{shards} had no block to be killed after; take more --examples or fewer --shards")
        return False
    codes = [child.process.returncode for child in children if child is not victim]
    if any(codes) or victim.process.returncode != -9:
        print(f"{stage}: a shard failed, or the kill came too late (exit codes {codes}); see log.txt beside the pool")
        return False
    return True


def finish(child: Child) -> Child:
    while child.look():
        time.sleep(POLL)
    print(child.line(), flush=True)
    if child.process.returncode:
        raise SystemExit(f"{child.name} failed by itself; see log.txt beside the pool")
    return child


def hashes(out: Path) -> dict[str, str]:
    """SHA-256 of every compared file; locks that a killed writer left are not part of a store."""
    found = [path for pattern in COMPARED for path in out.glob(pattern)]
    files = [path for place in found for path in ([place] if place.is_file() else place.rglob("*"))]
    return {
        str(path.relative_to(out)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in files
        if path.is_file() and not path.name.endswith(".__lock")
    }


if __name__ == "__main__":
    sys.exit(main())
