"""The order of the packages and the form of their files, read from the source, and what the README promises."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import config_docs  # noqa: E402
import house  # noqa: E402

from ntk_jax.engine.config import keys  # noqa: E402
from ntk_jax.pipelines import all_pipelines  # noqa: E402

README = (ROOT / "README.md").read_text(encoding="utf8")
FILES = house.sources()
PAGES = sorted([ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")])
GONE = re.compile(r"\b(t[o]ld|m[e]nd|acqu[a]int|D[E]SIGN)\b", re.IGNORECASE)


def test_the_package_is_found() -> None:
    assert len(FILES) > 100
    assert {source.package for source in FILES} == set(house.PLACE), "ORDER names what is there, and all of it"


def test_no_rule_is_broken() -> None:
    assert house.violations(FILES) == []


def test_the_script_prints_the_packages_in_order() -> None:
    result = subprocess.run([sys.executable, ROOT / "scripts" / "house.py"], capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout
    names = [line.split()[0] for line in result.stdout.split("\n\n")[0].splitlines()]
    assert names == [name for line in house.ORDER for name in line]
    assert "none imports upward" in result.stdout


@pytest.mark.parametrize(
    ("path", "source", "message"),
    [
        ("kernels/a.py", "from ..cli import main", "kernels imports ntk_jax.cli.main, which stands above it"),
        ("data/b.py", "from ntk_jax import UserError", "data imports ntk_jax.UserError, which stands above it"),
        ("data/b.py", "from ntk_jax import api", "data imports ntk_jax.api, which stands above it"),
        ("data/b.py", "def f():\n    from ntk_jax.models import lora", "b.py:2: data imports ntk_jax.models.lora"),
        ("kernels/a.py", "import ntk_jax.engine.config", "nothing below engine knows configs, engine or pipelines"),
        ("report/a.py", "from ntk_jax.pipelines import all_pipelines", "nothing below engine knows"),
        (
            "engine/a.py",
            "f = Address('ntk_jax.pipelines.select.score:score')",
            "engine imports ntk_jax.pipelines.select",
        ),
        ("pipelines/kernel/a.py", "from ntk_jax.pipelines.select import load", "of another pipeline"),
        ("pipelines/kernel/a.py", "f = 'ntk_jax.pipelines.select.load:load'", "of another pipeline"),
        ("pipelines/common/a.py", "from ntk_jax.pipelines.kernel import kernel", "of another pipeline"),
        ("pipelines/kernel/a.py", "from ntk_jax.pipelines import all_pipelines", "or of their list"),
        ("attic/a.py", "", "attic has no place; give it one in ORDER"),
        ("models/a.py", "import torch.nn", "imports torch.nn; jax is the only framework here"),
        ("data/utils.py", "", "name the concept"),
        ("data/a.py", "x = 1", "does not say what it is for"),
        ("data/a.py", "\n" * 401, "data/a.py has 401 lines, more than 400"),
        ("data/a.py", "def long():\n" + "    x = 1\n" * 60, "long has 61 lines, more than 60"),
        ("data/__init__.py", '"""Data."""', "say what lives there and what it may import"),
    ],
)
def test_every_rule_can_fail(path: str, source: str, message: str, tmp_path: Path) -> None:
    for name in ("kernels", "pipelines/select", "cli"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / path).write_text(source)
    assert any(message in found for found in house.violations(house.sources(tmp_path)))


def test_an_exception_that_nobody_needs_fails(tmp_path: Path) -> None:
    (tmp_path / "errors.py").write_text('"""Errors."""')
    found = house.violations(house.sources(tmp_path))
    assert found == [f"{name} needs no place in LONG_FUNCTIONS" for name in house.LONG_FUNCTIONS]


def test_what_may_be_imported_passes(tmp_path: Path) -> None:
    for path, source in {
        "pipelines/kernel/a.py": "from ntk_jax.pipelines.common import pool\nfrom ntk_jax.errors import UserError",
        "api/a.py": "from ntk_jax.engine import blocks",
        "kernels/a.py": "from .b import c\nimport numpy\nfrom ntk_jax.errors import UserError",
    }.items():
        (tmp_path / path).parent.mkdir(parents=True)
        (tmp_path / path).write_text(f'"""Something."""\n{source}')
    assert [*house.upward(house.sources(tmp_path)), *house.crossed(house.sources(tmp_path))] == []


def test_nothing_below_the_engine_names_keys_of_a_config() -> None:
    """A function names its own parameters in messages: who calls it may have no config."""
    names = {key.name for pipeline in all_pipelines() for key in keys(pipeline.config.resolve()) if "." in key.name}
    pattern = re.compile(r"(?<![\w.])(" + "|".join(map(re.escape, names)) + r")(?![\w.])")
    for source in FILES:
        if source.package in house.BELOW_ENGINE:
            for node in ast.walk(source.tree):
                if isinstance(node, ast.Constant) and isinstance(node.value, str):
                    assert not pattern.search(node.value), f"{source.path}:{node.lineno}: {node.value}"


def test_the_page_of_keys_is_up_to_date() -> None:
    there = (ROOT / "docs" / "config.md").read_text(encoding="utf8")
    assert there == config_docs.page(), "run python scripts/config_docs.py > docs/config.md"
    for pipeline in all_pipelines():
        for key in keys(pipeline.config.resolve()):
            assert there.count(f"| `{key.name}` | `{key.default}` |") == 1


def sh_blocks() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_readme_begins_with_its_two_commands() -> None:
    assert sh_blocks()[:2] == [
        "pip install -e . && ntk-jax run configs/quickstart.yaml\n",
        "pip install -e '.[test]' && pytest\n",
    ]


def test_readme_is_short() -> None:
    assert len(README.split()) <= 1200


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf8")):
        if not link.startswith(("http", "#")):
            assert (page.parent / link.partition("#")[0]).exists(), f"{page.name} links to {link}, which is not there"


def test_no_text_uses_words_that_have_gone() -> None:
    texts = [path for folder in ("ntk_jax", "scripts", "tests") for path in (ROOT / folder).rglob("*")]
    for path in [*texts, *PAGES]:
        if path.suffix in (".py", ".md", ".sh") and path != Path(__file__).resolve():
            for number, line in enumerate(path.read_text(encoding="utf8").splitlines(), 1):
                assert not GONE.search(line), f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
