"""The order of the packages of ntk_jax, read from its source: their lines of code, what each imports below it, and that
none imports upward.

    python scripts/house.py

Exits 1 and names every violation. tests/test_house.py takes the order and the rules from here.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent / "ntk_jax"

# Top to bottom; a file may import its own package and what stands below it. Those of one line may import each other.
ORDER: tuple[tuple[str, ...], ...] = (
    ("__main__", "__init__"),  # what `import ntk_jax` loads when it is asked for
    ("cli",),
    ("lm_eval",),
    ("api",),
    ("pipelines",),
    ("engine",),
    ("report",),
    ("selection",),
    ("mining",),
    ("questions",),
    ("evaluation",),
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
PLACE = {name: number for number, names in enumerate(ORDER) for name in names}
BELOW_ENGINE = tuple(name for names in ORDER for name in names if PLACE[name] > PLACE["engine"])
COMMON = "common"  # the folder of `pipelines` that all of them may import

FILE_LINES = 400
FUNCTION_LINES = 60  # without its docstring
LONG_FILES: dict[str, str] = {}  # path: reason
LONG_FUNCTIONS = {  # path:name: reason
    "evaluation/accuracy.py:compare": "one result, put together from every task, kind of likelihood and arm",
    "kernels/exact.py:tangent_kernel": "five kinds of kernel by two ways, chosen at one place",
    "pipelines/diagnose/audit.py:_lines": "a table: one line for each approximation that is audited",
    "pipelines/diagnose/regression.py:regression": "one comparison, whose steps are in order and used once",
    "pipelines/kernel/kernel.py:kernel": "one stage, whose steps are in order and used once",
    "training/train.py:train": "the training loop and what it resumes, which share all their state",
}
FOREIGN = {"torch", "tensorflow", "peft"}  # frameworks that nothing here imports
_ADDRESS = re.compile(r"(ntk_jax(?:\.\w+)+):\w+")  # a function named in a table of stages


@dataclass(frozen=True)
class Source:
    """A file. path: below the package's root."""

    path: Path
    text: str
    tree: ast.Module

    @property
    def package(self) -> str:
        """`kernels/score.py` is in `kernels`; `cli.py` stands for itself."""
        return self.path.parts[0] if len(self.path.parts) > 1 else self.path.stem

    @property
    def code(self) -> int:
        """Lines that are neither empty nor comment nor docstring."""
        docs = {line for node in ast.walk(self.tree) for line in _docstring_lines(node)}
        lines = enumerate(self.text.splitlines(), 1)
        return sum(1 for number, line in lines if number not in docs and line.strip() and line.strip()[0] != "#")

    def imports(self) -> Iterator[tuple[int, str]]:
        """(line, absolute module) of every import, also inside functions, and of every function named by address."""
        home = ["ntk_jax", *self.path.parts[:-1]]
        for node in ast.walk(self.tree):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                parent = home[: len(home) - node.level + 1] if node.level else []
                module = ".".join([*parent, *([node.module] if node.module else [])])
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
            elif isinstance(node, ast.Constant) and (found := _ADDRESS.fullmatch(str(node.value))):
                yield node.lineno, found[1]


def sources(root: Path = ROOT) -> list[Source]:
    """All files below a root."""
    found = []
    for path in sorted(root.rglob("*.py")):
        text = path.read_text(encoding="utf8")
        found.append(Source(path.relative_to(root), text, ast.parse(text)))
    return found


def upward(files: list[Source]) -> Iterator[str]:
    """Imports of something that does not stand below."""
    packages = {source.package for source in files}
    for source in files:
        if source.package not in PLACE:
            yield f"{source.path}: {source.package} has no place; give it one in ORDER of scripts/house.py"
            continue
        for line, module in source.imports():
            names = module.split(".")
            if names[0] in FOREIGN:
                yield f"{source.path}:{line} imports {module}; jax is the only framework here"
            if names[0] != "ntk_jax" or len(names) < 2 or names[1] == source.package:
                continue
            there = (
                names[1] if names[1] in PLACE or names[1] in packages else "__init__"
            )  # `from ntk_jax import select`
            if there not in PLACE:
                yield f"{source.path}:{line} imports {module}, which has no place in ORDER of scripts/house.py"
            elif source.package in BELOW_ENGINE and there in ("engine", "pipelines"):
                yield f"{source.path}:{line} imports {module}: nothing below engine knows configs, engine or pipelines"
            elif PLACE[there] < PLACE[source.package]:
                yield f"{source.path}:{line}: {source.package} imports {module}, which stands above it"


def crossed(files: list[Source]) -> Iterator[str]:
    """Pipelines that import another one; `engine` and `common` import none."""
    for source in files:
        if source.package != "pipelines" or len(source.path.parts) < 3:
            continue
        own = source.path.parts[1]
        for line, module in source.imports():
            names = module.split(".")
            if names[:2] != ["ntk_jax", "pipelines"] or len(names) < 3 or names[2] in (own, COMMON):
                continue
            yield f"{source.path}:{line}: {own} imports {module}, which is of another pipeline or of their list"


def formless(files: list[Source]) -> Iterator[str]:
    """Files and functions that are too long, or do not say what they are."""
    for source in files:
        name, lines = source.path.as_posix(), len(source.text.splitlines())
        if source.path.name == "utils.py":
            yield f"{name}: name the concept"
        if lines > FILE_LINES and name not in LONG_FILES:
            yield f"{name} has {lines} lines, more than {FILE_LINES}: it is two concepts"
        said = ast.get_docstring(source.tree) or ""
        if not said:
            yield f"{name} does not say what it is for"
        entrance = source.path.name == "__init__.py" and len(source.path.parts) > 1
        if entrance and (len(said) < 80 or "import" not in said.lower()):
            yield f"{name}: say what lives there and what it may import"
        for node in ast.walk(source.tree):
            if isinstance(node, ast.FunctionDef):
                length = _length(node)
                if length > FUNCTION_LINES and f"{name}:{node.name}" not in LONG_FUNCTIONS:
                    yield f"{name}:{node.lineno}: {node.name} has {length} lines, more than {FUNCTION_LINES}"


def needless(files: list[Source]) -> Iterator[str]:
    """Exceptions for what is gone or no longer long."""
    names = {source.path.as_posix(): source for source in files}
    for name in LONG_FILES:
        if name not in names or len(names[name].text.splitlines()) <= FILE_LINES:
            yield f"{name} needs no place in LONG_FILES"
    long = {
        f"{name}:{node.name}"
        for name, source in names.items()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.FunctionDef) and _length(node) > FUNCTION_LINES
    }
    yield from (f"{name} needs no place in LONG_FUNCTIONS" for name in LONG_FUNCTIONS if name not in long)


def violations(files: list[Source]) -> list[str]:
    """All of them."""
    return [*upward(files), *crossed(files), *formless(files), *needless(files)]


def table(files: list[Source]) -> Iterator[str]:
    """A line a package, in order."""
    for name in (name for names in ORDER for name in names):
        own = [source for source in files if source.package == name]
        below = {
            module.split(".")[1] for source in own for _, module in source.imports() if module.startswith("ntk_jax.")
        }
        named = sorted((below & set(PLACE)) - {name}, key=lambda other: PLACE[other])
        code = sum(source.code for source in own)
        count = f"{len(own)} file{'s' if len(own) > 1 else ''}"
        yield f"{name:<11} {code:>6,} lines  {count:>9}  imports {', '.join(named) or 'nothing of these'}"


def _length(node: ast.FunctionDef) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1 - len(_docstring_lines(node))


def _docstring_lines(node: ast.AST) -> range:
    """Line numbers of a docstring, none where there is none."""
    body = getattr(node, "body", None)
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and body and isinstance(body[0], ast.Expr):
        first = body[0].value
        if isinstance(first, ast.Constant) and isinstance(first.value, str):
            return range(first.lineno, (first.end_lineno or first.lineno) + 1)
    return range(0)


def main() -> int:
    """Prints the table, and the violations."""
    files = sources()
    print("\n".join(table(files)))
    found = violations(files)
    print("\n".join(["", *found]) if found else "\nnone imports upward")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
