"""`ntk-jax` with the pipelines of this folder beside the package's own: python tests/more_pipelines toy CONFIG."""

from __future__ import annotations

import sys
from pathlib import Path

from ntk_jax import cli, pipelines

HERE = Path(__file__).resolve().parent


def main(argv: list[str] | None = None) -> int:
    """Runs a command line."""
    if str(HERE) not in pipelines.__path__:
        pipelines.__path__.append(str(HERE))
    before = pipelines.NAMES
    pipelines.NAMES = (*before, "toy")
    try:
        return cli.main(argv)
    finally:
        pipelines.NAMES = before


if __name__ == "__main__":
    sys.exit(main())
