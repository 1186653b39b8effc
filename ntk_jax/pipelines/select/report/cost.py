"""What every arm, and finding the selection itself, consumed."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ntk_jax.pipelines.select.report.layout import section
from ntk_jax.pipelines.select.report.run import SelectRun
from ntk_jax.pipelines.select.report.warnings import domain_share
from ntk_jax.report.amounts import NOTHING, count, duration, finite, general, metric, percent
from ntk_jax.report.layout import Section, Table

TRAINING = ("finetune", "evaluate", "select")  # stages that the second table does not list


def cost(run: SelectRun) -> Section:
    """The section with the tables of cost."""
    arms, stages = _arms(run), _stages(run)
    return section(
        "cost",
        "Cost",
        arms=arms,
        no_arms=None if arms else run.directory.missing("finetune", "training cost"),
        stages=stages,
        no_stages=None if stages else run.directory.missing("warmup", "selection cost"),
        total=_grand_total(run),
    )


def stage_costs(run: SelectRun) -> list[tuple[str, dict[str, Any]]]:
    """(title, summary) of every stage before the training of the arms that recorded a cost."""
    found = []
    for stage in run.plan.stages:
        summary = run.directory.json(f"{stage.name}/summary.json") if stage.name not in TRAINING else {}
        if any(finite(summary.get(key)) is not None for key in ("tokens", "flops", "seconds")):
            found.append((stage.title, summary))
    return found


def total(items: Iterable[dict[str, Any]], key: str) -> tuple[float | None, bool]:
    """(sum of what is known, whether something is not known)."""
    values = [finite(item.get(key)) for item in items]
    known = [value for value in values if value is not None]
    return (sum(known) if known else None), len(known) < len(values)


def total_time(items: Iterable[dict[str, Any]]) -> str:
    """The time of all together; where one is not recorded, what it is at least."""
    seconds, lacking = total(items, "seconds")
    if seconds is None:
        return NOTHING
    return f"at least {duration(seconds)}" if lacking else duration(seconds)


def _arms(run: SelectRun) -> Table | None:
    arms = [(arm, run.trained[arm.name]) for arm in run.arms if run.trained.get(arm.name)]
    if not arms:
        return None
    rows = [
        [
            arm.title + ("" if known.get("steps") is not None else ", unfinished"),
            *(count(known.get(key)) for key in ("examples", "steps", "tokens", "label_tokens")),
            percent(domain_share(known), 0),
            metric(known.get("flops"), "FLOP"),
            duration(known.get("seconds")),
            general(known.get("final_loss")),
        ]
        for arm, known in arms
    ]
    trained = [known for _, known in arms if known.get("steps") != 0]  # the base model has nothing to add
    steps, tokens, labels, flops = (total(trained, key)[0] for key in ("steps", "tokens", "label_tokens", "flops"))
    rows.append(
        ["Total", "", count(steps), count(tokens), count(labels), "", metric(flops, "FLOP"), total_time(trained), ""]
    )
    header = ["Arm", "Examples", "Steps", "Tokens", "Label tokens", "Domain's share", "Compute", "Time, all starts"]
    return Table([*header, "Final loss"], rows, "Training of each arm", total=True)


def _stages(run: SelectRun) -> Table | None:
    stages = stage_costs(run)
    if not stages:
        return None
    rows = [
        [
            title,
            *(count(s.get(key)) for key in ("scored", "steps", "tokens")),
            metric(s.get("flops"), "FLOP"),
            duration(s.get("seconds")),
        ]
        for title, s in stages
    ]
    all_of = [s for _, s in stages]
    tokens, flops = total(all_of, "tokens")[0], total(all_of, "flops")[0]
    rows.append(["Total", "", "", count(tokens), metric(flops, "FLOP"), total_time(all_of)])
    header = ["Stage", "Examples scored", "Steps", "Tokens", "Compute", "Time, all starts"]
    return Table(header, rows, "Finding the selection", total=True)


def _grand_total(run: SelectRun) -> str:
    """Both tables together, in a sentence."""
    items = [s for _, s in stage_costs(run)]
    items += [known for known in run.trained.values() if known and known.get("steps") != 0]
    flops, _ = total(items, "flops")
    if not items or flops is None:
        return ""
    return f"Together {metric(flops, 'FLOP')} and {total_time(items)}, without the evaluation."
