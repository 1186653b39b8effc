"""Writes the page of all keys of a config from the settings themselves.

python scripts/config_docs.py > docs/config.md
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence

from ntk_jax.engine.config import Key, keys, sections
from ntk_jax.pipelines import all_pipelines

HEAD = """\
<!-- Generated from the settings in ntk_jax by `python scripts/config_docs.py > docs/config.md`; edit those. -->

# The keys of a config

A config is a YAML file of sections. What is left out has the default that stands here; a key that does not exist, a
wrong type or a value outside its range ends the command with one line that names the key. On the command line
`--section.key=value` sets any of them and wins over the file; `ntk-jax help KEY` prints what stands here.

A file may hold the sections of several pipelines: a command reads its own and checks the others. The key `pipeline`
says which pipeline a file is for where a command serves all of them (`estimate`, `doctor`); without it, that is
`{first}`.
"""


def page() -> str:
    """The whole page."""
    pipelines = all_pipelines()
    merged: dict[str, list[Key]] = {}
    meanings: dict[str, str] = {}
    users: dict[str, list[str]] = {}
    for pipeline in pipelines:
        config = pipeline.config.resolve()
        for section, meaning in sections(config):
            meanings.setdefault(section, meaning)
            users.setdefault(section, []).append(pipeline.name)
        for key in keys(config):
            section = key.name.rpartition(".")[0]
            if key not in merged.setdefault(section, []):
                merged[section].append(key)
    parts = [HEAD.format(first=pipelines[0].name), *_configs()]
    for section, found in merged.items():
        names = ", ".join(f"`{name}`" for name in users[section])
        title, meaning = (f"`{section}`", meanings[section]) if section else ("Beside the sections", "")
        said = f"{meaning} " * bool(meaning) + f"Read by {names}."
        parts += [f"## {title}\n", textwrap.fill(said, 120, break_on_hyphens=False) + "\n", *_table(found)]
    return "\n".join(parts)


def _configs() -> Iterator[str]:
    """A line for each pipeline."""
    yield "| pipeline | command | what its config describes |\n|---|---|---|"
    for pipeline in all_pipelines():
        _, meaning = next(iter(sections(pipeline.config.resolve())))
        yield f"| `{pipeline.name}` | `ntk-jax {pipeline.command}` | {_cell(meaning)} |"
    yield ""


def _table(found: Sequence[Key]) -> Iterator[str]:
    yield "| key | default | values | meaning |\n|---|---|---|---|"
    for key in found:
        yield f"| `{key.name}` | `{key.default}` | {_cell(key.values)} | {_cell(key.help)} |"
    yield ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*")


if __name__ == "__main__":
    print(page(), end="")
