"""Where the committed files lie, for paths of the form `builtin:NAME`."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parent
DATA = ROOT / "data"
MODEL = ROOT / "model"
