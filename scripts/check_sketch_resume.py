"""Sketches a pool twice, once untouched and once killed with SIGKILL at random moments, and compares all bytes of the
stores; prints the rate and the peak resident memory of the processes.

    python scripts/check_sketch_resume.py configs/quickstart.yaml --examples 5000 --kills 5 --sketch.dim=8192

Every example is one pool record, repeated as often as --examples needs, under an id of its own. select.methods is
sketch unless the command line says otherwise. What the sketches build on runs once, and both runs start from it. Exit 1
if any byte differs.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ntk_jax.data.sources import read_records
from ntk_jax.engine.config import load_config
from ntk_jax.pipelines import all_pipelines, pipeline
from ntk_jax.pipelines.select.config import SelectConfig


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("config")
    arguments.add_argument("--examples", type=int, default=5000)
    arguments.add_argument("--kills", type=int, default=5)
    arguments.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments.add_argument("--out", default="runs/check_sketch_resume", help="made anew: whatever is there is deleted")
    options, overrides = arguments.parse_known_args()

    place = Path(options.out)
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    overrides = ["--select.methods=[sketch]", *overrides]
    write_pool(config_of(options.config, overrides), options.examples, place / "pool.jsonl")
    overrides += [f"--data.pool=[{place / 'pool.jsonl'}]", "--data.pool_limit=null"]
    whole, broken = place / "whole", place / "broken"
    for stage in pipeline("select").before(config_of(options.config, overrides), "sketch"):
        subprocess.run(command(stage, options.config, whole, overrides), check=True, stdout=subprocess.DEVNULL)
    shutil.copytree(whole, broken)
    before = peak()

    begun = time.monotonic()
    subprocess.run(command("sketch", options.config, whole, overrides), check=True, stdout=subprocess.DEVNULL)
    duration = time.monotonic() - begun
    summary = json.loads((whole / "sketch" / "summary.json").read_text())
    print(
        f"untouched: {summary['rows']:,} examples at K = {summary['dim']:,} in {duration:.0f} s with start-up, "
        f"{(summary['rows'] + summary['targets']) / summary['seconds']:.1f} examples/s without; "
        f"stores of {summary['bytes'] / 2**30:.2f} GiB; peak resident {peak() / 2**20:.2f} GiB "
        f"(warm-up: {before / 2**20:.2f})",
        flush=True,
    )

    # Each kill strikes in its own part of the blocks, at a random moment of a random block.
    rng, struck, blocks = random.Random(options.seed), 0, done(whole)
    for part in range(options.kills):
        after = int((part + rng.random()) * blocks / options.kills)
        process = subprocess.Popen(command("sketch", options.config, broken, overrides), stdout=subprocess.DEVNULL)
        seen, since, block_seconds = done(broken), time.monotonic(), 0.0
        while process.poll() is None and seen < after:
            time.sleep(0.002)
            if done(broken) > seen:
                seen, block_seconds, since = done(broken), time.monotonic() - since, time.monotonic()
        time.sleep(rng.random() * block_seconds)
        if process.poll() is None:
            process.kill()
            process.wait()
            struck += 1
            print(f"kill {struck}: {done(broken)} of {blocks} blocks done", flush=True)
        elif process.returncode:
            raise SystemExit(f"the sketch failed by itself with exit code {process.returncode}")
        else:
            print("finished before it could be killed again", flush=True)
            break
    subprocess.run(command("sketch", options.config, broken, overrides), check=True, stdout=subprocess.DEVNULL)

    first, second = hashes(whole / "sketch"), hashes(broken / "sketch")
    differing = sorted(name for name in first.keys() | second.keys() if first.get(name) != second.get(name))
    for name in differing:
        print(f"DIFFERENT {name}")
    print(f"{struck} kills, {len(first)} files, {'identical' if not differing else 'DIFFERENT'}; ", end="")
    print(f"peak resident of all processes {peak() / 2**20:.2f} GiB")
    return 1 if differing or not first else 0


def config_of(path: str, overrides: list[str]) -> SelectConfig:
    """The config of a run; sections of other pipelines may stand in the same file."""
    others = [each.config.resolve() for each in all_pipelines() if each.name != "select"]
    config: SelectConfig = load_config(path, SelectConfig, overrides, others)
    return config


def write_pool(config: SelectConfig, examples: int, path: Path) -> None:
    """The records of the config's pool, over and over, each with an id of its own."""
    with path.open("w", encoding="utf8") as file:
        pools = (read_records(config.data.pool) for _ in itertools.count())
        for number, record in enumerate(itertools.islice(itertools.chain.from_iterable(pools), examples)):
            file.write(json.dumps({**record, "id": f"{number}-{record['id']}"}) + "\n")


def done(run: Path) -> int:
    """Blocks of the pool's sketches that are committed."""
    return len(list((run / "sketch" / "pool.zarr" / "done").glob("*")))


def command(stage: str, config: str, out: Path, overrides: list[str]) -> list[str]:
    return [sys.executable, "-m", "ntk_jax", stage, config, "--out", str(out), *overrides]


def peak() -> int:
    """KiB: the largest resident memory of any child so far (on Linux)."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of the stores; locks that a killed writer left are not part of them."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for store in ("pool.zarr", "domain.zarr")
        for path in sorted((folder / store).rglob("*"))
        if path.is_file() and not path.name.endswith(".__lock")
    }


if __name__ == "__main__":
    sys.exit(main())
