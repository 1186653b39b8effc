"""Makes a section from one of this folder's templates."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ntk_jax.report.layout import Section, render

_TEMPLATES = Path(__file__).with_name("templates")


def section(anchor: str, name: str, **values: Any) -> Section:
    """The section `anchor` from `templates/<anchor>.html`; `name` is what the list of contents calls it."""
    return Section(anchor, name, render(f"{anchor}.html", _TEMPLATES, **values))
