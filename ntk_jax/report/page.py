"""One page of a whole run directory: every pipeline's part, then how the run was configured and where it ran."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from ntk_jax.report.layout import Notice, Part, Section, Table, render
from ntk_jax.report.markup import Html
from ntk_jax.report.reading import Pipeline, RunDirectory, read_run
from ntk_jax.storage.atomic import make_folder, write_text

Parts = Mapping[str, Callable[[RunDirectory], Part]]
CONFIGURATION = "provenance"
# The page needs nothing from anywhere; with this line a browser would also refuse to fetch or to run anything.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"
_STATES = {"done": "✓ done", "unfinished": "… unfinished", "missing": "✗ not run"}
_FACTS = ("command", "versions", "devices", "seeds", "hashes")  # of the provenance, in this order; the rest follows


def write_report(run_folder: Path, parts: Parts) -> Path:
    """Writes `report/index.html` into a run directory and returns its path.

    The page holds everything it shows (no scripts, no network) and has the same bytes for the same inputs. It can be
    written at any moment of a run: what is not there yet is said in words.

    Args:
        parts: what makes each pipeline's part of the page, by the pipeline's name; the page follows their order.

    Raises:
        UserError: the folder is not a run directory, another version made it, or the page cannot be written.
    """
    target = Path(run_folder) / "report" / "index.html"
    text = render_page(read_run(Path(run_folder)), parts)
    make_folder(target.parent)
    write_text(target, text)
    return target


def render_page(run: RunDirectory, parts: Parts) -> str:
    """The whole page as text."""
    shown = [(run.pipelines[name], make(run)) for name, make in parts.items() if name in run.pipelines]
    unknown = [pipeline for name, pipeline in run.pipelines.items() if name not in parts]
    heads = [{"part": part, "stages": _stages(pipeline), "anchor": f"part-{pipeline.name}"} for pipeline, part in shown]
    last = _configuration(run)  # after the parts: reading them may have met further problems
    sections = [section for _, part in shown for section in part.sections]
    return render(
        "page.html",
        title=f"Report: {shown[0][1].title if shown else run.folder.name}",
        policy=_POLICY,
        style=Html(Path(__file__).with_name("style.css").read_text(encoding="utf8")),
        heads=heads,
        unknown=[pipeline.title for pipeline in unknown],
        notices=[*_problems(run), *_ignored_keys(run)],
        contents=[*sections, last],
        last=last,
    )


def _stages(pipeline: Pipeline) -> list[tuple[str, str, str]]:
    """(title, CSS class, words) of every stage that the plan names."""
    return [(stage.title, stage.state, _STATES[stage.state]) for stage in pipeline.stages]


def _problems(run: RunDirectory) -> list[Notice]:
    if not run.problems:
        return []
    text = "What they hold is missing here."
    return [Notice(CONFIGURATION, "Files that could not be read", text, tuple(run.problems))]


def _ignored_keys(run: RunDirectory) -> list[Notice]:
    """What no pipeline can answer for: the numbers are of the model as it was read, not as its file may mean it."""
    found = [pipeline.facts.get("ignored_config_keys") for pipeline in run.pipelines.values()]
    keys = dict.fromkeys(str(key) for names in found if isinstance(names, list) for key in names)
    if not keys:
        return []
    text = f"config.json keys that this run ignored at the user's word: {', '.join(keys)}."
    return [Notice(CONFIGURATION, "The model's config.json was not read whole", text)]


def _configuration(run: RunDirectory) -> Section:
    """Versions, devices, hashes and the whole configuration, folded."""
    known = [(key.capitalize(), run.provenance[key]) for key in _FACTS if key in run.provenance]
    rest = {k: v for k, v in run.provenance.items() if k not in _FACTS}
    facts = [(title, _facts(title, value)) for title, value in [*known, *([("Other facts", rest)] if rest else [])]]
    configs = {
        pipeline.title: yaml.safe_dump(pipeline.config, sort_keys=False, allow_unicode=True)
        for pipeline in run.pipelines.values()
    }
    html = render("configuration.html", anchor=CONFIGURATION, facts=facts, run=run, configs=configs)
    return Section(CONFIGURATION, "Configuration", html)


def _facts(title: str, value: Any) -> Table | str:
    if isinstance(value, dict) and value:
        return Table(["Name", "Value"], [[name, _plain(v)] for name, v in _flat(value)], title, text_columns=2)
    return _plain(value)


def _flat(tree: dict[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested facts as (path of names, value), in their order."""
    found = []
    for key, value in tree.items():
        found += _flat(value, f"{prefix}{key}: ") if isinstance(value, dict) and value else [(f"{prefix}{key}", value)]
    return found


def _plain(value: Any) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "\n".join(value) if any(len(item) > 40 for item in value) else " ".join(value)
    return value if isinstance(value, str) else json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True)
