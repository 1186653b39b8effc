"""Kills a run with SIGKILL at random moments until it has died often enough, lets it finish, and compares its results
byte for byte with those of a run that nobody touched. A run that finishes earlier is compared too, and the next begins.

    python scripts/check_resume.py configs/quickstart.yaml --kills 10

Prints when and in which stage each kill struck, then the SHA-256 of every compared file. Exit 1 if any differs.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path

from ntk_jax.pipelines import pipeline

COMPARED = (
    "warmup/adapter/*.safetensors",
    "select/*.jsonl",
    "align/examples.json",
    "finetune/*/adapter/*.safetensors",
    "evaluate/predictions/*/*.jsonl",
)
STAGES = (*(stage.name for stage in pipeline("select").stages), "report")


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("config")
    arguments.add_argument("--kills", type=int, default=10)
    arguments.add_argument("--seed", type=int, default=0, help="of the moments")
    arguments.add_argument("--out", default="runs/check_resume", help="made anew: whatever is there is deleted")
    options, overrides = arguments.parse_known_args()

    whole, broken = Path(options.out) / "whole", Path(options.out) / "broken"
    shutil.rmtree(options.out, ignore_errors=True)
    begun = time.monotonic()
    subprocess.run(command(options.config, whole, overrides), check=True, stdout=subprocess.DEVNULL)
    duration = time.monotonic() - begun
    print(f"untouched run: {duration:.0f} s", flush=True)

    rng, struck, runs = random.Random(options.seed), 0, 1
    while struck < options.kills:
        # Lives are drawn so that the kills spread over the whole run: each is a part of what a life must cover.
        life = rng.uniform(0.3, 1.7) * (startup(duration) + duration / options.kills)
        if one_life(command(options.config, broken, overrides), life):
            print(
                f"run {runs} finished before it could be killed again; comparing it and starting the next", flush=True
            )
            if not compare(whole, broken):
                return 1
            shutil.rmtree(broken)
            runs += 1
            continue
        struck += 1
        print(f"kill {struck} after {life:.1f} s, stage {stage_of(broken)}", flush=True)
    subprocess.run(command(options.config, broken, overrides), check=True, stdout=subprocess.DEVNULL)

    same = compare(whole, broken)
    print(f"{struck} kills over {runs} run(s), results {'identical' if same else 'DIFFERENT'}")
    return 0 if same else 1


def compare(whole: Path, broken: Path) -> bool:
    """Prints a line for each compared file; True if all have the same bytes."""
    same = True
    for pattern in COMPARED:
        for path in sorted(whole.glob(pattern)):
            name = path.relative_to(whole)
            first, second = (hashlib.sha256((place / name).read_bytes()).hexdigest() for place in (whole, broken))
            same &= first == second
            print(f"{'same     ' if first == second else 'DIFFERENT'} {first[:16]} {second[:16]} {name}")
    return same


def command(config: str, out: Path, overrides: list[str]) -> list[str]:
    return [sys.executable, "-m", "ntk_jax", "run", config, "--out", str(out), *overrides]


def one_life(arguments: list[str], seconds: float) -> bool:
    """Starts the command and kills it after `seconds`; True if it had finished by itself."""
    process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        code = process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return False
    if code:
        raise SystemExit(f"the run failed by itself with exit code {code}: {' '.join(arguments)}")
    return True


def startup(duration: float) -> float:
    """Importing jax and loading the model, before a life gets to anything new."""
    return min(10.0, 0.2 * duration)


def stage_of(folder: Path) -> str:
    """The stage under way: the last one begun that has no manifest."""
    begun = [stage for stage in STAGES if (folder / stage).exists()]
    if begun and not (folder / begun[-1] / "manifest.json").exists():
        return begun[-1]
    return f"after {begun[-1]}" if begun else "before the first"


if __name__ == "__main__":
    sys.exit(main())
