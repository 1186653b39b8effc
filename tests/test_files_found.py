"""The tables of docs/own-data.md: each row happens as it says, and the page has all rows.

`python tests/test_files_found.py` prints the tables to paste into the page."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path

import files_found
import pytest
from files_found.case import table

ROOT = Path(__file__).resolve().parent.parent
NAMES = sorted(module.name for module in pkgutil.iter_modules(files_found.__path__) if module.name != "case")
MODULES = [importlib.import_module(f"files_found.{name}") for name in NAMES]


@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=f"{module.TITLE}: {case.found}") for module in MODULES for case in module.CASES],
)
def test_it_happens(case, tmp_path):
    case.check(tmp_path)


def test_the_page_has_the_tables():
    page = (ROOT / "docs/own-data.md").read_text()
    missing = [module.TITLE for module in MODULES if table(module.TITLE, module.CASES) not in page]
    assert not missing, f"docs/own-data.md: paste what `python tests/test_files_found.py` prints for {missing}"


if __name__ == "__main__":
    print("\n".join(table(module.TITLE, module.CASES) for module in MODULES))
