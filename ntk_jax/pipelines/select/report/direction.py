"""What the pool was ranked along: the head's ρ, the direction's norms by parameter, and the pre-selection's votes."""

from __future__ import annotations

from ntk_jax.pipelines.select.report.layout import section
from ntk_jax.pipelines.select.report.run import SelectRun
from ntk_jax.pipelines.select.report.warnings import RHO_RANGE
from ntk_jax.report.amounts import count, finite, general, percent
from ntk_jax.report.layout import Cell, Section, Table
from ntk_jax.report.reading import mapping, numbers


def direction(run: SelectRun) -> Section | None:
    """The section; None where no method ranks by gradients."""
    stages = [stage for stage in ("gradient", "sketch", "subspace", "less", "preselect") if run.plan.has(stage)]
    if not stages:
        return None
    rho, warn = _rho(run)
    words, missing, votes = [], [], None
    if run.plan.has("gradient"):
        found = run.directory.json("gradient/summary.json")
        if found:
            made = count(found.get("examples")), general(found.get("norm"))
            words.append(f"The direction comes from {made[0]} domain examples and has norm {made[1]}.")
        else:
            missing.append(run.directory.missing("gradient", "direction"))
    if run.plan.has("sketch"):
        targets = run.directory.json("sketch/summary.json").get("targets")
        words.append(f"Sketches compare each example with {count(targets)} of the domain, one by one.")
    if run.plan.has("subspace"):
        found = run.directory.json("subspace/summary.json")
        words.append(
            f"The {count(found.get('components'))} main directions of the gradients of {count(found.get('examples'))} "
            f"domain examples hold {percent(finite(found.get('energy_share')))} of their squared norm and "
            f"{percent(finite(found.get('mean_share')))} of their mean's."
        )
    if run.plan.has("less"):
        found = run.directory.json("less/summary.json")
        words.append(
            f"LESS compares Adam updates with {count(found.get('targets'))} loss gradients of the domain at "
            f"{count(found.get('checkpoints'))} checkpoints of the warm-up, weighted "
            f"{', '.join(percent(weight) for weight in numbers(found.get('weights')) or [])}."
        )
    if run.plan.has("preselect"):
        found = run.directory.json("preselect/summary.json")
        if found:
            words.append(
                f"Pre-selection by {found.get('method', 'votes')}: each domain example voted for its "
                f"{count(found.get('neighbours'))} nearest examples of the pool, and the "
                f"{count(found.get('candidates'))} with most votes were kept."
            )
            votes = _votes(found)
        else:
            missing.append(run.directory.missing("preselect", "pre-selection"))
    return section(
        "direction",
        "Direction",
        rho=rho,
        warn=warn,
        words=words,
        missing=missing,
        leaves=_leaves(run),
        votes=votes,
    )


def _rho(run: SelectRun) -> tuple[str, bool]:
    """(what ρ says, whether that is a warning)."""
    rho, objective = run.rho(), run.objective()
    if rho is None:
        return "", False
    far = not RHO_RANGE[0] <= rho <= RHO_RANGE[1]
    text = f"ρ = ‖Wᵀ1‖² / ‖W‖² of the head is {general(rho)}; head rows of independent sign give about 1. "
    if objective != "sum_logits":
        text += f"The objective {objective} does not sum the rows, so ρ does not touch these scores."
    elif far and rho > 1:
        text += "That is far from 1: sum-of-logits scores lean on one direction which softmax predictions cannot "
        text += "see. That alone does not make the ranking bad; check it against probe or cross_entropy."
    elif far:
        text += "That is far from 1: the head is nearly centred and sum-of-logits scores may be rounding noise."
    else:
        text += "That is close to 1, as the paper's error analysis assumes."
    return text, far and objective == "sum_logits"


def _leaves(run: SelectRun) -> Table | None:
    found = mapping(run.directory.json("gradient/summary.json").get("leaf_norms"))
    leaves = {str(k): n for k, v in found.items() if (n := finite(v)) is not None}
    squares = {k: v * v for k, v in leaves.items()}
    if not squares:
        return None
    total, widest = sum(squares.values()), max(squares.values()) or 1.0
    rows = [
        [
            name,
            general(leaves[name]),
            percent(squares[name] / total if total else None),
            Cell(bars=[("fill-selected", f"width:{squares[name] / widest * 100:.2f}%")], class_="wide"),
        ]
        for name in sorted(squares, key=lambda k: (-squares[k], k))
    ]
    caption = "Where the direction lives: a parameter with a large share tends to weigh most in the score"
    return Table(["Parameter", "Norm", "Share of the squared norm", ""], rows, caption)


def _votes(found: dict[str, object]) -> Table | None:
    histogram = mapping(found.get("votes_histogram"))
    edges, counts = numbers(histogram.get("edges")), numbers(histogram.get("counts"))
    if not edges or not counts or len(edges) != len(counts) + 1:
        return None
    rows = [[f"{general(edges[i])} to {general(edges[i + 1])}", count(n)] for i, n in enumerate(counts)]
    return Table(["Votes", "Examples"], rows, "How many examples of the pool got how many votes")
