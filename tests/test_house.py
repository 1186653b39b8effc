"""The house rules of the package, read from its source, and what the README promises about it."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from ntk_jax.config import Config

PACKAGE = Path(__file__).resolve().parent.parent / "ntk_jax"
README = (PACKAGE.parent / "README.md").read_text(encoding="utf8")

# Top to bottom. A file may import its own room and what stands below it. The files of one line share a floor: they
# may import each other, as `api` and `pipeline` both stand on the rooms and `cli` on both.
FLOORS = (
    ("__main__", "__init__"),
    ("cli",),
    ("doctor", "estimate", "pipeline", "api", "summary", "progress"),
    ("stages", "selftest"),
    ("config",),
    ("report",),
    ("mining",),
    ("questions",),
    ("evaluation",),
    ("selection",),
    ("training",),
    ("kernels",),
    ("llm",),
    ("models",),
    ("data",),
    ("storage",),
    ("parallel",),
    ("builtin",),
    ("settings",),
    ("xla",),
    ("errors", "version"),
)
FLOOR_OF = {name: number for number, names in enumerate(FLOORS) for name in names}
ABOVE_ROOMS = {
    "__main__",
    "__init__",
    "cli",
    "doctor",
    "estimate",
    "pipeline",
    "api",
    "summary",
    "progress",
    "selftest",
    "stages",
    "config",
}
MAX_LINES = 450

FILES = sorted(PACKAGE.rglob("*.py"))
ROOMS = sorted(folder for folder in PACKAGE.iterdir() if folder.is_dir() and folder.name != "__pycache__")


def room(path: Path) -> str:
    """`ntk_jax/kernels/score.py` is in the room `ntk`, `ntk_jax/cli.py` stands for itself."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imported(path: Path) -> list[tuple[int, str]]:
    """(line, absolute module name) of every import in the file, also of those inside functions."""
    package = ["ntk_jax", *path.relative_to(PACKAGE).parts[:-1]]
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf8"))):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parent = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*parent, *([node.module] if node.module else [])])
            # `from ntk_jax import data` names the room in what is imported, not in the module
            names = [f"{module}.{alias.name}" for alias in node.names] if module == "ntk_jax" else [module]
            found += [(node.lineno, name) for name in names]
    return found


def test_the_package_is_found() -> None:
    assert len(FILES) > 10


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_only_point_down(path: Path) -> None:
    here = room(path)
    assert here in FLOOR_OF, f"{here} has no floor: give it one in FLOORS"
    for line, module in imported(path):
        if not module.startswith("ntk_jax."):
            continue
        there = module.split(".")[1]
        assert there in FLOOR_OF, f"{path}:{line} imports {module}, which has no floor"
        assert FLOOR_OF[there] >= FLOOR_OF[here], f"{path}:{line}: {here} imports {module}, which stands above it"
        assert here in ABOVE_ROOMS or there != "config", f"{path}:{line}: rooms take explicit arguments, not config"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_framework_but_jax(path: Path) -> None:
    for line, module in imported(path):
        assert module.split(".")[0] not in {"torch", "tensorflow", "peft"}, f"{path}:{line} imports {module}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_file_is_one_concept(path: Path) -> None:
    assert path.name != "utils.py", f"{path}: name the concept"
    lines = len(path.read_text(encoding="utf8").splitlines())
    assert lines <= MAX_LINES, f"{path} has {lines} lines: it is two rooms"
    assert ast.get_docstring(ast.parse(path.read_text(encoding="utf8"))), f"{path} does not say what it is for"


@pytest.mark.parametrize("folder", ROOMS, ids=lambda folder: folder.name)
def test_room_says_what_lives_there(folder: Path) -> None:
    entrance = folder / "__init__.py"
    assert entrance.exists(), f"{folder} has no __init__.py"
    text = ast.get_docstring(ast.parse(entrance.read_text(encoding="utf8"))) or ""
    assert len(text) > 80 and "import" in text.lower(), f"{entrance}: say what lives there and what it may import"


def test_the_rules_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, source in {"kernels/a.py": "from ..cli import main", "data/b.py": "from ntk_jax import config"}.items():
        path = tmp_path / name
        path.parent.mkdir()
        path.write_text(source)
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    with pytest.raises(AssertionError, match="stands above"):
        test_imports_only_point_down(tmp_path / "kernels/a.py")
    with pytest.raises(AssertionError, match="stands above"):
        test_imports_only_point_down(tmp_path / "data/b.py")


def sh_blocks() -> list[str]:
    return re.findall(r"^```sh\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)


def test_readme_begins_with_its_two_commands() -> None:
    assert sh_blocks()[:2] == [
        "pip install -e . && ntk-jax run configs/quickstart.yaml\n",
        "pip install -e '.[test]' && pytest\n",
    ]


def test_readme_options_are_those_of_the_config() -> None:
    rows = re.findall(r"^\| `([a-z_.]+)` \| (?:`(.*?)`)? ?\|", README, flags=re.MULTILINE)
    assert len(rows) > 15
    for key, default in rows:
        value: Any = Config()
        for name in key.split("."):
            value = getattr(value, name)
        stated = yaml.safe_load(default) if default else ""
        assert type(value)(stated) == value if value is not None else stated is None, f"{key}: the default is {value!r}"


def test_readme_links_lead_somewhere() -> None:
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    assert len(links) > 3
    for link in links:
        assert (PACKAGE.parent / link).exists(), f"README.md links to {link}, which is not there"
