"""The estimate for a terminal: one table, the cost of scoring the whole pool, and every ground on a line of its own."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from ntk_jax.report.amounts import metric
from ntk_jax.summary import align

WIDTH = 116


def as_text(found: dict[str, Any]) -> str:
    """All of it, from the JSON values of `command.estimate_run`."""
    parts = ["\n".join(_table(found)), "\n".join(_notes(found)), "\n".join(_grounds(found["grounds"]))]
    return "\n\n".join(parts)


def _table(found: dict[str, Any]) -> list[str]:
    hours = found["rate"] is not None
    head = ["stage", "examples", "tokens", "FLOP", *(["device-hours"] if hours else []), "memory a device", "disk"]
    rows, empty = [], [""] * (len(head) - 2)
    for stage, disk in found["disk"].items():
        mine = [row for row in found["stages"] if row["stage"] == stage]
        written = metric(disk["kept"], "B")
        if not mine:  # it computes nothing to speak of
            rows.append([stage, *empty, written])
        for row in mine:
            rows.append(
                [
                    stage if row["arm"] is None else f"{stage} {row['arm']}",
                    f"{row['examples']:,}",
                    metric(row["tokens"]),
                    metric(row["flops"], "FLOP").removesuffix("FLOP"),
                    *([_hours(row["device_hours"])] if hours else []),
                    metric(row["memory"], "B"),
                    written if row is mine[-1] else "",
                ]
            )
    total = found["total"]
    last = [
        "total",
        "",
        metric(total["tokens"]),
        metric(total["flops"], "FLOP").removesuffix("FLOP"),
        *([_hours(total["device_hours"])] if hours else []),
        metric(total["memory"], "B"),
        metric(total["disk"], "B"),
    ]
    return align([head, *rows, last], rules_before={1, 1 + len(rows)})


def _notes(found: dict[str, Any]) -> list[str]:
    total, whole = found["total"], found["whole_pool"]
    lines = []
    if found["no_rate"]:
        lines.append(found["no_rate"] + ".")
    elif found["devices"] > 1:
        wall = total["device_hours"] / found["devices"]
        lines.append(f"On {found['devices']} devices, if all are busy all the time: {_hours(wall)} hours.")
    room = found["device_memory"]
    short = [row["stage"] for row in found["stages"] if room is not None and row["memory"] > room]
    if short:
        lines.append(
            f"Too much for one device of {metric(room, 'B')}: {', '.join(dict.fromkeys(short))}. Lower "
            "score.batch_tokens or tokens_per_microbatch, or split the weights over more devices (mesh.fsdp)."
        )
    lines.append(f"Disk at its fullest, with the checkpoints of a training: {metric(total['disk_peak'], 'B')}.")
    if total["flops"] and total["flops_with_padding"] > 1.05 * total["flops"]:
        lines.append(
            f"FLOP counts real tokens; with the padding of the rows, devices compute "
            f"{metric(total['flops_with_padding'], 'FLOP')}, and hours are of that."
        )
    text = (
        f"Exact scores of the whole pool ({whole['examples']:,} examples, {metric(whole['tokens'])} tokens, objective "
        f"{whole['objective']}): {metric(whole['flops'], 'FLOP')}, where 4 × P × tokens is "
        f"{metric(whole['flops_of_4_p'], 'FLOP')}"
    )
    if whole["device_hours"] is not None:
        rate = found["rate"]
        text += f"; {_hours(whole['device_hours'])} hours of one {rate['device']}"
        if whole["device_hours_at_peak"] is not None:
            reached = 100 * rate["forward"] / rate["peak"]
            bound = _hours(whole["device_hours_at_peak"])
            text += f" at {reached:.0f}% of {rate['peak'] / 1e12:g} TFLOP/s, {bound} at 100%"
    lines.append(text + "." + (f" {whole['reported'].rstrip('.')}." if whole["reported"] else ""))
    return [line for text in lines for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ")]


def _grounds(grounds: Sequence[dict[str, Any]]) -> list[str]:
    lines = []
    for assumed, title in ((False, "Counted, read or measured"), (True, "Assumed")):
        chosen = [fact for fact in grounds if fact["assumed"] == assumed]
        if chosen:
            lines.append(f"{title}:")
        for fact in chosen:
            text = f"{fact['name']}: {fact['text']} ({fact['source']})"
            lines += textwrap.wrap(text, WIDTH, initial_indent="  - ", subsequent_indent="    ")
    return lines


def _hours(hours: float) -> str:
    return f"{hours:,.0f}" if hours >= 100 else f"{hours:.1f}" if hours >= 10 else f"{hours:.2g}"
