"""Figures of the stability of kernels and scores over the checkpoints of a fine-tuning."""

from __future__ import annotations

from typing import Any

import numpy as np

from ntk_jax.pipelines.diagnose.shown import COLORS, Parts, Shown, there
from ntk_jax.report.amounts import count, general, percent, signed
from ntk_jax.report.figures import Curve, curves
from ntk_jax.report.figures_matrix import heat_map

PAPER_COSINE = 0.99  # what arXiv 2511.07380, figure 2a, reports


def stability_figures(parts: Parts) -> list[Shown]:
    """Those that stability.json allows."""
    made = [maker(parts) for maker in (_kernel_curves, _score_curves, _score_map, _rankings, _linearization, _spectrum)]
    return [item for item in [*made, _pseudo(parts)] if item is not None]


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
        ("from first", "kernel_cosine", 0, "c-blue"),
        ("centred", "kernel_alignment", 0, "c-orange"),
        ("from second", "kernel_cosine", 1, "c-green"),
        ("centred, 2nd", "kernel_alignment", 1, "c-purple"),
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
        _, less = _means(part, _less_length(part, name), 1)
        found.append(
            f"{name} {signed(values[-1])}{_beyond(less[-1])} (top-{count(part['top'])} overlap "
            f"{percent(overlap[-1], 0)})"
        )
    if not series:
        return None
    return Shown(
        "score_rank",
        "Does the ranking of the pool stay?",
        curves(series, y_title="Spearman", x_title=called["axis"], description="Rank correlation of scores"),
        f"Rank correlation of the scores of {count(part['candidates'])} pool examples at a checkpoint with those at "
        f"the second, {called['second']}, averaged over {called['over']}: 1 means that selection would not notice. A "
        "score that follows the response's length is as stable as lengths are; what else is in it shows with the "
        "length taken out (partial correlation).",
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
    less = {objective: _between_seeds(part, _less_length(part, objective)) for objective in between}
    found = ", ".join(
        f"{objective} {signed(value)}{_beyond(less[objective])}"
        for objective, value in between.items()
        if value is not None
    )
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


def _beyond(value: float | None) -> str:
    return f", with the length taken out {signed(value)}" if value is not None and np.isfinite(value) else ""


def _less_length(part: dict[str, Any], objective: str) -> np.ndarray:
    """[m, m] rank correlations between checkpoints given the length of the response; NaN where there is none, or where
    the diagnosis is of an earlier version."""
    size = len(part["points"])
    return np.array(part.get("score_spearman_less_length", {}).get(objective, [[None] * size] * size), float)


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
    for key, color in (("gap", "c-orange"), ("cosine", "c-blue"), ("moved", "c-grey")):
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
    for name, key, color in (("cosine", "pseudo_cosine", "c-blue"), ("error", "pseudo_error", "c-orange")):
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
