"""How the config says that its files are to be read, and what was recognised in them, for people and for the report."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

from ntk_jax.data.formats import Reading
from ntk_jax.data.mapping import RECORDS
from ntk_jax.data.sources import formats_of, source_names
from ntk_jax.engine.stage import MakeProgress
from ntk_jax.errors import UserError


def reading_of(config: Any, section: str) -> Reading:
    """Of the section `data`, `evaluate` or `kernel`. Raises UserError: settings that mean nothing together."""
    found = getattr(config, section)
    return Reading(found.format, found.columns, f"{section}.")


def check_patterns(reading: Reading, *files: tuple[str, ...]) -> None:
    """Raises UserError: columns are given for files that none of these is. What is not here is not looked at."""
    if reading.by_pattern:
        names: list[tuple[str, ...]] = []
        for item in (item for items in files for item in items):
            try:
                names += source_names(item)
            except UserError:  # the stage that reads it says so
                names.append((item,))
        reading.check_patterns(names)


def say_formats(make_progress: MakeProgress, key: str, files: tuple[str, ...], reading: Reading) -> None:
    """Prints how the files of a set are read, a line for each way; nothing where all are records as they are."""
    for how, names in _by_format(files, reading).items():
        what = names[0] if len(names) == 1 else f"{len(names):,} files, {names[0]} first,"
        make_progress(key, None, "")(1, 1, f"{what} read as {how}")


def how_read(files: str | tuple[str, ...], reading: Reading) -> str:
    """The same behind a comma, for a line about the files."""
    return "".join(f", read as {how}" for how in _by_format(files, reading))


def formats(config: Any) -> list[dict[str, str]]:
    """What was recognised in the files of a config's sets, for the report: [{set, files, format}]. A set whose files
    cannot be looked at is left out."""
    found = []
    for key, section, files in _sets(config):
        try:
            by_format = _by_format(files, reading_of(config, section))
        except UserError:
            continue
        found += [{"set": key, "files": ", ".join(names), "format": how} for how, names in by_format.items()]
    return found


def _sets(config: Any) -> list[tuple[str, str, tuple[str, ...]]]:
    return [
        ("data.domain", "data", config.data.domain),
        ("data.pool", "data", config.data.pool),
        ("evaluate.files", "evaluate", config.evaluate.files),
    ]


def _by_format(files: str | tuple[str, ...], reading: Reading) -> dict[str, list[str]]:
    """{format: names of the files that are read so}, without records as they are."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, columns in formats_of(files, reading).items() if files else ():
        if columns != RECORDS:
            found[str(columns)].append(name)
    return found
