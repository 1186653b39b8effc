"""Writes the controlled data set that ntk_jax carries: `python scripts/make_builtin_data.py`.

The files come from a fixed seed, so that running this again changes nothing (a test compares the bytes).
"""

from __future__ import annotations

from ntk_jax.builtin.datasets import files, to_jsonl
from ntk_jax.builtin.paths import DATA


def main() -> None:
    """One JSONL file for the pool and two for each domain."""
    DATA.mkdir(parents=True, exist_ok=True)
    for name, records in files().items():
        (DATA / name).write_text(to_jsonl(records), encoding="utf8", newline="\n")
        print(f"{name}: {len(records)} records")


if __name__ == "__main__":
    main()
