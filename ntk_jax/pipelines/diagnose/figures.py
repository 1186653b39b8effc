"""The figures of the diagnosis, each with how to read it and what was found.

The report shows them, and the stage `diagnose` writes each as a file of its own.
"""

from __future__ import annotations

from ntk_jax.pipelines.diagnose.figures_stability import stability_figures
from ntk_jax.pipelines.diagnose.figures_worth import worth_figures
from ntk_jax.pipelines.diagnose.shown import COLORS, DIAGNOSES, Parts, Shown, there
from ntk_jax.report.amounts import count, general, percent, signed
from ntk_jax.report.figures import Curve, Mark, WhiskerRow, curves, whiskers
from ntk_jax.report.figures_matrix import scatter, signed_histogram
from ntk_jax.report.reading import records

__all__ = ["DIAGNOSES", "Parts", "Shown", "figures", "there"]

NEARLY_ONE = (1 / 3, 3.0)  # 1ᵀΘ1 / tr Θ that we call about 1


def figures(parts: Parts) -> list[Shown]:
    """All figures that the files allow. parts: the JSON files of diagnose/ by name."""
    made = [maker(parts) for maker in (_cross_output, _prediction, _prediction_scatter, _projections)]
    return stability_figures(parts) + [item for item in made if item is not None] + worth_figures(parts)


def _cross_output(parts: Parts) -> Shown | None:
    part = there(parts, "cross_output")
    if part is None:
        return None
    plain, centered, expected = part["plain"], part["centered"], part["isotropic"]
    drawing = signed_histogram(
        plain["histogram"]["edges"],
        [
            ("logits", "c-orange", plain["histogram"]["counts"]),
            ("centred logits", "c-blue", centered["histogram"]["counts"]),
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
            "c-grey" if name == "response length" else "c-blue",
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
