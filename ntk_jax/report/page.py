"""Puts the sections on one page and writes it: `write_report(run_folder)`."""

from __future__ import annotations

from pathlib import Path

from ntk_jax.report import section_diagnose, section_evaluation, section_examples, section_run, section_selection
from ntk_jax.report.markup import Html, join, tag
from ntk_jax.report.reading import Run, read_run
from ntk_jax.storage.atomic import make_folder, write_text

# Anchor and short name of every section, in the order of the page: the answer first, then why, then how.
CONTENTS = (
    ("evaluation", "Evaluation"),
    ("families", "Selection"),
    ("scores", "Scores"),
    ("length", "Length"),
    ("examples", "Examples"),
    ("cost", "Cost"),
    ("training", "Training"),
    ("data", "Data"),
    ("kernel", "Kernel"),
    ("diagnosis", "Diagnosis"),
    ("provenance", "Configuration"),
)
# The page needs nothing from anywhere; with this line a browser would also refuse to fetch or to run anything.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def write_report(run_folder: Path) -> Path:
    """Writes `report/index.html` into a run directory and returns its path.

    The page holds everything it shows (no scripts, no network) and has the same bytes for the same inputs. It can be
    written at any moment of a run: what is not there yet is said in words.

    Raises:
        UserError: the folder is not a run directory, or the page cannot be written.
    """
    target = Path(run_folder) / "report" / "index.html"
    text = render(read_run(Path(run_folder)))
    make_folder(target.parent)
    write_text(target, text)
    return target


def render(run: Run) -> str:
    """The whole page as text."""
    head = section_run.head(run)
    sections = [
        section_evaluation.evaluation(run),
        section_selection.families(run),
        section_selection.scores(run),
        section_selection.lengths(run),
        section_examples.examples(run),
        section_evaluation.cost(run),
        section_run.training(run),
        section_run.data(run),
        section_run.kernel(run),
        section_diagnose.diagnosis(run),
        section_run.provenance(run),
    ]
    contents = [(anchor, name) for anchor, name in CONTENTS if anchor != "diagnosis" or run.diagnose]
    title = f"Selection report: {section_run.title(run)}"
    entries = [tag("li", tag("a", name, href=f"#{anchor}")) for anchor, name in contents]
    page = tag(
        "html",
        tag(
            "head",
            tag("meta", charset="utf-8"),
            tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
            tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
            tag("title", title),
            tag("style", Html(Path(__file__).with_name("style.css").read_text(encoding="utf8"))),
        ),
        tag(
            "body",
            head,
            tag("nav", tag("ul", *entries), aria_label="Sections"),
            tag("main", join(sections, "\n")),
            tag("footer", "Made by ntk_jax from the files of the run directory; write it again with `ntk-jax report`."),
        ),
        lang="en",
    )
    return f"<!doctype html>\n{page}\n"
