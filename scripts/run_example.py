"""Runs the Python blocks of a Markdown page in order, in one namespace, as a reader would paste them into a notebook.

    python scripts/run_example.py docs/kernels.md            # runs them, says where an output differs
    python scripts/run_example.py docs/kernels.md --write    # writes outputs and figures anew

What a block prints stands in a `text` block right after it. Numbers may differ by 10% or 0.02 between machines and
versions; words may not.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import re
import sys
from pathlib import Path

# A code block, and the output block behind it if there is one.
BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?", re.DOTALL)
NUMBER = re.compile(r"-?\d[\d,]*\.?\d*(?:e-?\d+)?")


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    arguments.add_argument("page", type=Path)
    arguments.add_argument("--write", action="store_true")
    options = arguments.parse_args()
    os.environ.setdefault("MPLBACKEND", "Agg")
    text = options.page.read_text(encoding="utf8")
    made, differing = run(text)
    for before, after in differing:
        print(f"--- the page says\n{before}+++ it prints\n{after}")
    if options.write:
        options.page.write_text(made, encoding="utf8")
        return 0
    return 1 if differing else 0


def run(text: str) -> tuple[str, list[tuple[str, str]]]:
    """(the page with the outputs as they are now, [(output on the page, output now)] where they differ)."""
    import matplotlib

    matplotlib.rcParams["svg.hashsalt"] = "ntk_jax"  # the same bytes every time
    matplotlib.rcParams["svg.fonttype"] = "none"
    namespace: dict[str, object] = {"__name__": "__example__"}
    differing: list[tuple[str, str]] = []

    def one(match: re.Match[str]) -> str:
        code, before = match["code"], match["output"] or ""
        line = text[: match.start()].count("\n") + 1
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + code, "the page", "exec"), namespace)  # so that errors name the page's line
        now = "".join(f"{row.rstrip()}\n" for row in printed.getvalue().splitlines())
        if not alike(before, now):
            differing.append((before, now))
        return f"```python\n{code}```\n" + (f"\n```text\n{now}```\n" if now else "")

    return BLOCK.sub(one, text), differing


def alike(a: str, b: str) -> bool:
    """Equal words, and numbers within 10% or 0.02."""
    if NUMBER.sub("#", a).split() != NUMBER.sub("#", b).split():
        return False
    pairs = zip(NUMBER.findall(a), NUMBER.findall(b), strict=True)
    values = ((float(x.replace(",", "")), float(y.replace(",", ""))) for x, y in pairs)
    return all(abs(x - y) <= max(0.1 * abs(x), 0.02) for x, y in values)


if __name__ == "__main__":
    sys.exit(main())
