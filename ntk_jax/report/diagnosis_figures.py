"""The figures of the diagnosis, each with how to read it and what was found.

The report shows them, and the stage `diagnose` writes each as a file of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ntk_jax.report.amounts import count, general, percent, signed
from ntk_jax.report.figures import Curve, Mark, WhiskerRow, curves, whiskers
from ntk_jax.report.figures_matrix import heat_map, scatter, signed_histogram
from ntk_jax.report.markup import Html
from ntk_jax.report.reading import records

Parts = dict[str, dict[str, Any]]
COLORS = ("c-selected", "c-random", "c-domain", "c-other", "c-base")
PAPER_COSINE = 0.99  # what arXiv 2511.07380, figure 2a, reports


@dataclass(frozen=True)
class Shown:
    """A figure of the diagnosis: `key` names its file."""

    key: str
    title: str
    drawing: Html
    how: str
    found: str


def figures(parts: Parts) -> list[Shown]:
    """All figures that the files allow. parts: the JSON files of diagnose/ by name."""
    made = [maker(parts) for maker in (_kernel_curves, _score_curves, _score_map, _linearization, _spectrum, _pseudo)]
    made += [maker(parts) for maker in (_cross_output, _prediction, _prediction_scatter, _projections)]
    return [item for item in made if item is not None]


def there(parts: Parts, name: str) -> dict[str, Any] | None:
    part = parts.get(name)
    return part if part and "skipped" not in part else None


# -- stability -----------------------------------------------------------------------------------------------------


def trajectories(part: dict[str, Any]) -> dict[str, list[int]]:
    """Indices of the points of each trajectory, in order of the steps."""
    found: dict[str, list[int]] = {}
    for number, point in enumerate(part["points"]):
        found.setdefault(point["trajectory"], []).append(number)
    return found


def _means(part: dict[str, Any], matrix: Any, reference: int) -> tuple[list[int], list[float]]:
    """(steps, mean over trajectories of the entry with the reference-th checkpoint of the same trajectory)."""
    values, paths = np.array(matrix), list(trajectories(part).values())
    length = min(len(path) for path in paths)
    reference = min(reference, length - 1)
    steps = [part["points"][paths[0][i]]["step"] for i in range(length)]
    return steps, [float(np.mean([values[path[reference], path[i]] for path in paths])) for i in range(length)]


def _lowest(part: dict[str, Any], matrix: Any, reference: int) -> float:
    values, paths = np.array(matrix), trajectories(part).values()
    return float(min(values[path[min(reference, len(path) - 1)], i] for path in paths for i in path))


def _kernel_curves(parts: Parts) -> Shown | None:
    part = there(parts, "stability")
    if part is None or len(part["points"]) < 2:
        return None
    series = []
    for (name, key, reference), color in zip(
        (
            ("from the start", "kernel_cosine", 0),
            ("centred", "kernel_alignment", 0),
            ("from warm-up", "kernel_cosine", 1),
            ("centred, warm", "kernel_alignment", 1),
        ),
        COLORS,
        strict=False,
    ):
        steps, values = _means(part, part[key], reference)
        series.append(Curve(name, color, steps[reference:], values[reference:]))
    least, centred = _lowest(part, part["kernel_cosine"], 0), _lowest(part, part["kernel_alignment"], 0)
    after = _lowest_after(part, "kernel_cosine")
    return Shown(
        "kernel_cosine",
        "Does the kernel keep its direction?",
        curves(series, y_title="cos_F", description="Kernel cosine over optimiser steps"),
        f"Each line is the cosine between the {_kind(part)} kernel of {count(part['examples'])} domain examples at a "
        "step "
        "and at the start (or the end of the warm-up), as whole matrices or after centring their features, averaged "
        "over "
        "LoRA seeds; 1 means that only the size changed.",
        f"From the start it falls to {least:.3f} at its lowest ({centred:.3f} centred), from the warm-up on to "
        f"{after:.3f}; the paper reports at least {PAPER_COSINE} over 20 epochs.",
    )


def _kind(part: dict[str, Any]) -> str:
    return str(part.get("kind", "")).replace("_", " ").replace("centered", "centred")


def _lowest_after(part: dict[str, Any], key: str) -> float:
    """The lowest entry between the warm-up and any later checkpoint of a trajectory."""
    values = np.array(part[key])
    return float(
        min(values[path[min(1, len(path) - 1)], i] for path in trajectories(part).values() for i in path[1:] or path)
    )


def _score_curves(parts: Parts) -> Shown | None:
    part = there(parts, "stability")
    if part is None or not part["score_spearman"] or len(part["points"]) < 2:
        return None
    series, found = [], []
    for (name, matrix), color in zip(part["score_spearman"].items(), COLORS, strict=False):
        steps, values = _means(part, matrix, 1)
        series.append(Curve(name, color, steps, values))
        _, overlap = _means(part, part["score_overlap"][name], 1)
        found.append(f"{name} {signed(values[-1])} (top-{count(part['top'])} overlap {percent(overlap[-1], 0)})")
    return Shown(
        "score_rank",
        "Does the ranking of the pool stay?",
        curves(series, y_title="Spearman", description="Rank correlation of scores with the warm-up's over steps"),
        f"Rank correlation of the scores of {count(part['candidates'])} pool examples at a step with those at the "
        "end of "
        "the warm-up, where a run would select, averaged over LoRA seeds: 1 means that selection would not notice.",
        "At the last checkpoint: " + "; ".join(found) + ".",
    )


def _score_map(parts: Parts) -> Shown | None:
    part = there(parts, "stability")
    if part is None or not part["score_spearman"] or len(part["points"]) < 2:
        return None
    name, matrix = next(iter(part["score_spearman"].items()))
    values, points = np.array(matrix), part["points"]
    names = [f"{p['trajectory']}, {p['step']}" for p in points]
    sentence = []
    for objective, found in part["score_spearman"].items():
        between = _between_seeds(part, np.array(found))
        if between is not None:
            sentence.append(f"{objective} {signed(between)}")
    found_text = (
        "At the end of the warm-up, two LoRA seeds agree on the ranking at (mean over pairs): "
        + ", ".join(sentence)
        + "."
        if sentence
        else f"The lowest agreement is {signed(values.min())}."
    )
    return Shown(
        "score_map",
        f"Steps and LoRA seeds: {name}",
        heat_map(
            values.tolist(),
            names,
            low=float(min(0.0, values.min())),
            high=1.0,
            description="Rank correlations of scores",
        ),
        "Rank correlation between the scores at any two checkpoints (trajectory, step); blocks on the diagonal are one "
        "LoRA seed, the others compare seeds.",
        found_text,
    )


def _between_seeds(part: dict[str, Any], values: np.ndarray) -> float | None:
    """The mean entry between the warm-up checkpoints of two trajectories."""
    warm = [path[min(1, len(path) - 1)] for path in trajectories(part).values()]
    pairs = [values[i, j] for n, i in enumerate(warm) for j in warm[n + 1 :]]
    return float(np.mean(pairs)) if pairs else None


def _linearization(parts: Parts) -> Shown | None:
    part = there(parts, "stability")
    if part is None or len(part["points"]) < 2 or not part["points"][0]["linearization"]:
        return None
    series = []
    for key, name, color in (
        ("gap", "gap", "c-random"),
        ("cosine", "cosine", "c-selected"),
        ("moved", "moved", "c-base"),
    ):
        values = np.diag([float(point["linearization"][key]) for point in part["points"]])
        paths = list(trajectories(part).values())
        length = min(map(len, paths))
        steps = [part["points"][paths[0][i]]["step"] for i in range(length)]
        means = [float(np.mean([values[path[i], path[i]] for path in paths])) for i in range(length)]
        series.append(Curve(name, color, steps, means))
    gap, cosine, moved = (curve.values[-1] for curve in series)
    verdict = "the linearisation explains most of it" if gap < 0.5 else "the linearisation explains little of it"
    return Shown(
        "linearization",
        "Is the function near its linearisation?",
        curves(series, y_title="ratio", description="Distance from the linearised function over optimiser steps"),
        "Moved: how far the logits are from the start, as a share of their size; gap: the part of that way which the "
        "linearisation at the start does not explain (0 in the NTK regime, 1 and more when it fails); cosine: "
        "between the "
        "way gone and the way predicted.",
        f"At the last checkpoint the logits moved by {percent(moved, 0)}, with a gap of {general(gap)} and a cosine of "
        f"{general(cosine)}: {verdict}.",
    )


def _spectrum(parts: Parts) -> Shown | None:
    part = there(parts, "stability")
    if part is None:
        return None
    path = next(iter(trajectories(part).values()))
    chosen = dict.fromkeys([path[0], path[min(1, len(path) - 1)], path[-1]])
    series, ranks = [], []
    for index, color in zip(chosen, COLORS, strict=False):
        point = part["points"][index]
        values = np.array(point["spectrum"])
        share = np.cumsum(values) / max(values.sum(), 1e-300)
        series.append(Curve(f"step {point['step']}", color, list(range(1, len(share) + 1)), share.tolist()))
        ranks.append(f"{general(point['effective_rank'])} at step {count(point['step'])}")
    return Shown(
        "spectrum",
        "How many directions has the kernel?",
        curves(
            series, y_title="share of trace", x_title="eigenvalues, largest first", description="Cumulative spectrum"
        ),
        "The share of the kernel's trace in its first eigenvalues: a line that jumps up at once belongs to a kernel "
        "for "
        "which all probe examples look alike.",
        f"Effective rank (of at most {count(part['examples'])}): " + ", ".join(ranks) + ".",
    )


def _pseudo(parts: Parts) -> Shown | None:
    part = there(parts, "stability")
    if part is None or len(part["points"]) < 2:
        return None
    points, paths = part["points"], list(trajectories(part).values())
    length = min(map(len, paths))
    steps = [points[paths[0][i]]["step"] for i in range(length)]
    series = [
        Curve(name, color, steps, [float(np.mean([points[path[i]][key] for path in paths])) for i in range(length)])
        for name, key, color in (("cosine", "pseudo_cosine", "c-selected"), ("error", "pseudo_error", "c-random"))
    ]
    warm = points[part.get("warm", 0)]
    return Shown(
        "pseudo",
        "Does the sum of logits stand for the trace?",
        curves(series, y_title="ratio", description="Sum-of-logits kernel against the exact trace over steps"),
        f"The kernel of the summed logits (the paper's) against the exact {_kind(part)}: their cosine as matrices, and "
        "the relative error that is left after the best rescaling.",
        f"At the warm-up the cosine is {warm['pseudo_cosine']:.3f} and the error {warm['pseudo_error']:.3f}; 1ᵀΘ1 is "
        f"{general(warm['coherence'])} times the trace, where the paper's assumption implies 1.",
    )


# -- the other parts -----------------------------------------------------------------------------------------------


def _cross_output(parts: Parts) -> Shown | None:
    part = there(parts, "cross_output")
    if part is None:
        return None
    plain, centered, expected = part["plain"], part["centered"], part["isotropic"]
    drawing = signed_histogram(
        plain["histogram"]["edges"],
        [
            ("logits", "c-random", plain["histogram"]["counts"]),
            ("centred logits", "c-selected", centered["histogram"]["counts"]),
        ],
        x_title="cosine between the gradients of two outputs",
        marks=((-expected, "−1/√D"), (expected, "1/√D")),
        description="Signed cross-output cosines",
    )
    inside = plain["coherence"] < 3 and abs(plain["mean"]) < expected
    verdict = "cross terms nearly cancel, as the paper assumes" if inside else "cross terms do not cancel"
    return Shown(
        "cross_output",
        "Do the outputs' gradients point anyhow?",
        drawing,
        f"Cosines between the gradients of two different logits of the same example ({count(part['pairs_sampled'])} "
        "pairs "
        "sampled); the paper needs them of size 1/√D with independent signs, so that the histogram is centred at 0.",
        f"Mean {signed(plain['mean'])}, mean magnitude {general(plain['mean_magnitude'])} (1/√D is "
        f"{general(expected)}), "
        f"{percent(plain['positive_share'], 0)} positive; ρ of the head {general(part['rho'])}, and 1ᵀΘ1 is "
        f"{general(plain['coherence'])} times the trace: {verdict}. Centred: mean {general(centered['mean'])}.",
    )


def _prediction(parts: Parts) -> Shown | None:
    part = there(parts, "prediction")
    if part is None:
        return None
    rows = [
        WhiskerRow(
            name,
            "c-base" if name == "response length" else "c-selected",
            (Mark("normalized", found["value"], found["low"], found["high"], signed(found["value"])),),
        )
        for name, found in sorted(part["spearman"].items(), key=lambda item: -item[1]["value"])
    ]
    best = rows[0].name
    clear = [name for name, found in part["spearman"].items() if found["low"] > 0]
    return Shown(
        "prediction",
        "Which score predicts what training does?",
        whiskers(rows, title="Spearman with the measured loss drop", reference=(0.0, "no relation"),
                 description="Rank correlation of scores with the measured loss drop"),
        f"{count(len(part['groups']))} groups of {count(part['group_size'])} pool examples of one family: the rank "
        f"correlation between a group's mean score and the drop of the loss on {part['held_out']['source']} after "
        f"{count(part['steps'])} Adam steps on it, with a 95% bootstrap interval over groups.",
        f"The best is {best} at {signed(part['spearman'][best]['value'])}; above zero beyond doubt: "
        f"{', '.join(clear) if clear else 'none'}.",
    )  # fmt: skip


def _prediction_scatter(parts: Parts) -> Shown | None:
    part = there(parts, "prediction")
    if part is None:
        return None
    scores = {name: found for name, found in part["spearman"].items() if name != "response length"}
    best = max(scores, key=lambda name: scores[name]["value"])
    groups = records(part["groups"])
    top = max(groups, key=lambda group: group["drop"])
    return Shown(
        "prediction_groups",
        f"Groups: {best} against the loss drop",
        scatter([(group[best], group["drop"], str(group["family"])) for group in groups], x_title=f"mean {best} score",
                y_title="loss drop, nats", description="Loss drop by score of groups"),
        "Each dot is a group of pool examples (its family in the tooltip); above the dashed line training on it "
        "lowered "
        "the held-out loss.",
        f"{percent(part['improved'], 0)} of the groups lowered the loss ({general(part['loss_before'])} nats "
        "before), most "
        f"{top['family']}, by {general(top['drop'])}.",
    )  # fmt: skip


def _projections(parts: Parts) -> Shown | None:
    part = there(parts, "audit")
    if part is None:
        return None
    found: dict[str, list[tuple[int, float]]] = {}
    for item in part["lines"]:
        if item["group"] == "projection":
            kind, _, dim = item["name"].partition(", K = ")
            found.setdefault(kind, []).append((int(dim), item["own_error"]))
    series = [
        Curve(kind, color, [float(dim) for dim, _ in values], [error for _, error in values])
        for (kind, values), color in zip(found.items(), COLORS, strict=False)
        if len(values) > 1
    ]
    if not series:
        return None
    largest = max(dim for values in found.values() for dim, _ in values)
    ends = [f"{kind} {general(dict(values)[largest])}" for kind, values in found.items() if largest in dict(values)]
    return Shown(
        "projections",
        "What do projections cost in accuracy?",
        curves(series, y_title="relative error", x_title="K", log=True, description="Error of projections by K"),
        f"Relative error of the projected kernel of summed logits against the same kernel without projection, mean of "
        f"{count(part['draws'])} seeds; doubling K should divide it by √2.",
        f"At K = {count(largest)}: " + ", ".join(ends) + ".",
    )
