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
NEARLY_ONE = (1 / 3, 3.0)  # 1ᵀΘ1 / tr Θ that we call about 1
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
    made = [maker(parts) for maker in (_kernel_curves, _score_curves, _score_map, _rankings, _linearization, _spectrum)]
    made += [maker(parts) for maker in (_pseudo, _cross_output, _prediction, _prediction_scatter, _projections)]
    return [item for item in made if item is not None]


def there(parts: Parts, name: str) -> dict[str, Any] | None:
    """A part that was computed; None where it is not there or was skipped."""
    part = parts.get(name)
    return part if part and "skipped" not in part else None


# -- stability -----------------------------------------------------------------------------------------------------


def trajectories(part: dict[str, Any]) -> dict[str, list[int]]:
    """Indices of the points of each trajectory, in order of the steps."""
    found: dict[str, list[int]] = {}
    for number, point in enumerate(part["points"]):
        found.setdefault(point["trajectory"], []).append(number)
    return found


def words(part: dict[str, Any]) -> dict[str, str]:
    """What the first and second checkpoint of a trajectory are called: steps of a training, or adapters that were given
    in a list."""
    if part.get("given"):
        return {"first": "the first adapter", "second": "the second", "axis": "place in the list", "over": "lists"}
    second = "the step at which the warm-up would end"
    return {"first": "the start", "second": second, "axis": "optimiser step", "over": "LoRA seeds"}


def _paths(part: dict[str, Any]) -> tuple[list[list[int]], list[int]]:
    """(indices of each trajectory, cut to the shortest; the steps)."""
    paths = list(trajectories(part).values())
    length = min(map(len, paths))
    return [path[:length] for path in paths], [part["points"][i]["step"] for i in paths[0][:length]]


def _curve(name: str, color: str, steps: list[int], values: list[float]) -> list[Curve]:
    """The curve of the values that are numbers (a rank correlation with a constant is none); nothing without any."""
    kept = [(step, value) for step, value in zip(steps, values, strict=True) if np.isfinite(value)]
    return [Curve(name, color, [step for step, _ in kept], [value for _, value in kept])] if kept else []


def _means(part: dict[str, Any], matrix: Any, reference: int) -> tuple[list[int], list[float]]:
    """(steps, mean over trajectories of the entry with the reference-th checkpoint of the same trajectory)."""
    values, (paths, steps) = np.array(matrix, float), _paths(part)
    at = min(reference, len(steps) - 1)
    return steps, [float(np.mean([values[path[at], path[i]] for path in paths])) for i in range(len(steps))]


def _lowest(part: dict[str, Any], matrix: Any, reference: int) -> float:
    """The lowest entry between the reference-th checkpoint of a trajectory and a later one."""
    values, paths = np.array(matrix, float), trajectories(part).values()
    return float(
        min(values[path[min(reference, len(path) - 1)], i] for path in paths for i in path[reference:] or path)
    )


def _kernel_curves(parts: Parts) -> Shown | None:
    part = there(parts, "stability")
    if part is None or len(part["points"]) < 2:
        return None
    series, called = [], words(part)
    for name, key, reference, color in (
        ("from first", "kernel_cosine", 0, "c-selected"),
        ("centred", "kernel_alignment", 0, "c-random"),
        ("from second", "kernel_cosine", 1, "c-domain"),
        ("centred, 2nd", "kernel_alignment", 1, "c-other"),
    ):
        steps, values = _means(part, part[key], reference)
        series += _curve(name, color, steps[reference:], values[reference:])
    least, centred = (_lowest(part, part[key], 0) for key in ("kernel_cosine", "kernel_alignment"))
    after = _lowest(part, part["kernel_cosine"], 1)
    fresh = "" if part.get("given") else " (a fresh adapter, where all gradients of A are 0)"
    return Shown(
        "kernel_cosine",
        "Does the kernel keep its direction?",
        curves(series, y_title="cos_F", x_title=called["axis"], description="Kernel cosine over checkpoints"),
        f"Each line is the cosine between the {_kind(part)} kernel of {count(part['examples'])} domain examples at a "
        f"checkpoint and at the first, {called['first']}{fresh}, or at the second, {called['second']}; as whole "
        f"matrices, or after centring their features; averaged over {called['over']}. At 1 only the size changed.",
        f"From the first it falls to {least:.3f} at its lowest ({centred:.3f} centred), from the second on to "
        f"{after:.3f}; the paper reports at least {PAPER_COSINE} over 20 epochs.",
    )


def _kind(part: dict[str, Any]) -> str:
    return str(part.get("kind", "")).replace("_", " ").replace("centered", "centred")


def _score_curves(parts: Parts) -> Shown | None:
    part = there(parts, "stability")
    if part is None or not part["score_spearman"] or len(part["points"]) < 2:
        return None
    series, found, called = [], [], words(part)
    for (name, matrix), color in zip(part["score_spearman"].items(), COLORS, strict=False):
        steps, values = _means(part, matrix, 1)
        series += _curve(name, color, steps, values)
        _, overlap = _means(part, part["score_overlap"][name], 1)
        found.append(f"{name} {signed(values[-1])} (top-{count(part['top'])} overlap {percent(overlap[-1], 0)})")
    if not series:
        return None
    return Shown(
        "score_rank",
        "Does the ranking of the pool stay?",
        curves(series, y_title="Spearman", x_title=called["axis"], description="Rank correlation of scores"),
        f"Rank correlation of the scores of {count(part['candidates'])} pool examples at a checkpoint with those at "
        f"the second, {called['second']}, averaged over {called['over']}: 1 means that selection would not notice.",
        "At the last checkpoint: " + "; ".join(found) + ".",
    )


def _score_map(parts: Parts) -> Shown | None:
    part = there(parts, "stability")
    if part is None or not part["score_spearman"] or len(part["points"]) < 2:
        return None
    name, matrix = next(iter(part["score_spearman"].items()))
    values = np.array(matrix, float)
    names = [f"{point['trajectory']}, {point['step']}" for point in part["points"]]
    between = {objective: _between_seeds(part, np.array(m, float)) for objective, m in part["score_spearman"].items()}
    found = ", ".join(f"{objective} {signed(value)}" for objective, value in between.items() if value is not None)
    return Shown(
        "score_map",
        f"Steps and LoRA seeds: {name}",
        heat_map(
            values.tolist(),
            names,
            low=float(min(0.0, np.nanmin(values, initial=0.0))),
            high=1.0,
            description="Rank correlations of scores",
        ),
        "Rank correlation between the scores at any two checkpoints (trajectory, step); blocks on the diagonal are "
        "one trajectory, the others compare two.",
        f"At the second checkpoint, two LoRA seeds agree on the ranking at (mean over pairs): {found}."
        if found
        else f"The lowest agreement is {signed(float(np.nanmin(values, initial=1.0)))}.",
    )


def _rankings(parts: Parts) -> Shown | None:
    part = there(parts, "stability")
    if part is None or len(part.get("rankings") or {}) < 2:
        return None
    names = list(part["rankings"])
    values = np.array([[part["rankings"][a][b] for b in names] for a in names], float)
    pairs = [
        (values[i, j], names[i], names[j]) for i in range(len(names)) for j in range(i) if np.isfinite(values[i, j])
    ]
    length = [f"{name} {signed(float(values[i, -1]))}" for i, name in enumerate(names[:-1])]
    least = min(pairs, key=lambda pair: pair[0], default=None)
    apart = f"{least[1]} and {least[2]} agree least ({signed(float(least[0]))}); " if least else ""
    return Shown(
        "rankings",
        "Do the objectives rank the pool alike?",
        heat_map(values.tolist(), names, low=float(min(0.0, np.nanmin(values, initial=0.0))), high=1.0,
                 description="Rank correlations between objectives", width=420),
        f"Rank correlation between the scores of {count(part['candidates'])} pool examples by two objectives at the "
        "second checkpoint of the first trajectory, and with the length of the response.",
        f"{apart}with the response's length: {', '.join(length)}.",
    )  # fmt: skip


def _between_seeds(part: dict[str, Any], values: np.ndarray) -> float | None:
    """The mean entry between the warm-up checkpoints of two trajectories."""
    warm = [path[min(1, len(path) - 1)] for path in trajectories(part).values()]
    pairs = [values[i, j] for n, i in enumerate(warm) for j in warm[n + 1 :]]
    return float(np.mean(pairs)) if pairs else None


def _linearization(parts: Parts) -> Shown | None:
    part = there(parts, "stability")
    if part is None or len(part["points"]) < 2 or not part["points"][0]["linearization"]:
        return None
    paths, steps = _paths(part)
    series, called = [], words(part)
    for key, color in (("gap", "c-random"), ("cosine", "c-selected"), ("moved", "c-base")):
        values = [[part["points"][path[i]]["linearization"][key] for path in paths] for i in range(len(steps))]
        series += _curve(key, color, steps, [float(np.mean(value)) for value in values])
    gap, cosine, moved = (curve.values[-1] for curve in series)
    verdict = "the linearisation explains most of it" if gap < 0.5 else "the linearisation explains little of it"
    return Shown(
        "linearization",
        "Is the function near its linearisation?",
        curves(series, y_title="ratio", x_title=called["axis"], description="Distance from the linearised function"),
        f"Moved: how far the logits are from {called['first']}, as a share of their size; gap: the part of that way "
        "which the linearisation there does not explain (0 in the NTK regime, 1 and more when it fails); cosine: "
        "between the way gone and the way predicted.",
        f"At the last checkpoint the logits moved by {percent(moved, 0)}, with a gap of {general(gap)} and a cosine "
        f"of {general(cosine)}: {verdict}.",
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
        "for which all probe examples look alike.",
        f"Effective rank (of at most {count(part['examples'])}): " + ", ".join(ranks) + ".",
    )


def _pseudo(parts: Parts) -> Shown | None:
    part = there(parts, "stability")
    if part is None or len(part["points"]) < 2:
        return None
    if part.get("kind") == "pseudo":  # it would be held against itself
        return None
    (paths, steps), points, called = _paths(part), part["points"], words(part)
    series = []
    for name, key, color in (("cosine", "pseudo_cosine", "c-selected"), ("error", "pseudo_error", "c-random")):
        values = [float(np.mean([points[path[i]][key] for path in paths])) for i in range(len(steps))]
        series += _curve(name, color, steps, values)
    warm = points[part.get("warm", 0)]
    return Shown(
        "pseudo",
        "Does the sum of logits stand for the trace?",
        curves(series, y_title="ratio", x_title=called["axis"], description="Sum-of-logits kernel against the trace"),
        f"The kernel of the summed logits (the paper's) against the {_kind(part)}: their cosine as matrices, and the "
        "relative error that is left after the best rescaling.",
        f"At the second checkpoint the cosine is {warm['pseudo_cosine']:.3f} and the error "
        f"{warm['pseudo_error']:.3f}; 1ᵀΘ1 is {general(warm['coherence'])} times the trace, where the paper's "
        "assumption implies 1.",
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
    low, high = NEARLY_ONE
    if plain["coherence"] < low:
        verdict = "cross terms cancel the trace itself, as on a centred head"
    elif plain["coherence"] > high:
        verdict = "cross terms do not cancel"
    else:
        verdict = "cross terms nearly cancel, as the paper assumes"
    return Shown(
        "cross_output",
        "Do the outputs' gradients point at random?",
        drawing,
        f"Cosines between the gradients of two different logits of the same example ({count(part['pairs_sampled'])} "
        "pairs sampled); the paper needs them of size 1/√D with independent signs, so that the histogram is centred "
        "at 0.",
        f"Mean {signed(plain['mean'])}, mean magnitude {general(plain['mean_magnitude'])} (1/√D is "
        f"{general(expected)}), {percent(plain['positive_share'], 0)} positive; ρ of the head {general(part['rho'])}, "
        f"and 1ᵀΘ1 is {general(plain['coherence'])} times the trace: {verdict}. Centred: mean "
        f"{general(centered['mean'])}.",
    )


def _prediction(parts: Parts) -> Shown | None:
    part = there(parts, "prediction")
    if part is None:
        return None
    known = {name: found for name, found in part["spearman"].items() if found["value"] is not None}
    if not known:
        return None
    rows = [
        WhiskerRow(
            name,
            "c-base" if name == "response length" else "c-selected",
            (Mark("normalized", found["value"], found["low"], found["high"], signed(found["value"])),),
        )
        for name, found in sorted(known.items(), key=lambda item: -item[1]["value"])
    ]
    best = rows[0].name
    clear = [name for name, found in known.items() if found["low"] is not None and found["low"] > 0]
    has_intervals = any(found["low"] is not None for found in known.values())
    intervals = f"with a 95% interval from a bootstrap over {count(part['families'])} families"
    few = f"without intervals, for {count(part['families'])} families are too few"
    verdict = f"intervals above zero: {', '.join(clear) or 'none'}" if has_intervals else "no interval can be given"
    return Shown(
        "prediction",
        "Which score predicts what training does?",
        whiskers(rows, title="Spearman with the measured loss drop", reference=(0.0, "no relation"),
                 description="Rank correlation of scores with the measured loss drop"),
        f"{count(len(part['groups']))} groups of {count(part['group_size'])} pool examples of one family: the rank "
        f"correlation between a group's mean score and the drop of the loss on {part['held_out']['source']} after "
        f"{count(part['steps'])} Adam steps on it, {intervals if has_intervals else few}.",
        f"The largest is {best} at {signed(known[best]['value'])}; {verdict}.",
    )  # fmt: skip


def _prediction_scatter(parts: Parts) -> Shown | None:
    part = there(parts, "prediction")
    if part is None:
        return None
    scores = {name: f["value"] for name, f in part["spearman"].items() if name != "response length" and f["value"]}
    if not scores:
        return None
    best = max(scores, key=lambda name: scores[name])
    groups = records(part["groups"])
    top = max(groups, key=lambda group: group["drop"])
    return Shown(
        "prediction_groups",
        f"Groups: {best} against the loss drop",
        scatter([(group[best], group["drop"], str(group["family"])) for group in groups], x_title=f"mean {best} score",
                y_title="loss drop, nats", description="Loss drop by score of groups"),
        "Each dot is a group of pool examples (its family in the tooltip); above the dashed line training on it "
        "lowered the held-out loss.",
        f"{percent(part['improved'], 0)} of the groups lowered the loss ({general(part['loss_before'])} nats before), "
        f"most {top['family']}, by {general(top['drop'])}.",
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
        "Relative error of the projected kernel of summed logits against the same kernel without projection, mean of "
        f"{count(part['draws'])} seeds; doubling K should divide it by √2.",
        f"At K = {count(largest)}: " + ", ".join(ends) + ".",
    )
