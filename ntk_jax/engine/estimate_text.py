"""The estimate for a terminal: one table, the cost of scoring the whole pool, and every ground on a line of its own."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from ntk_jax.report.amounts import metric
from ntk_jax.report.text import align

WIDTH = 116


def as_text(found: dict[str, Any]) -> str:
    """All of it, from the JSON values of `estimate.estimate_run`."""
    parts = ["\n".join(_table(found)), "\n".join(_notes(found)), "\n".join(_grounds(found["grounds"]))]
    return "\n\n".join(parts)


def _table(found: dict[str, Any]) -> list[str]:
    timed = found["rate"] is not None
    head = ["stage", "examples", "tokens", "FLOP", *(["device time"] if timed else []), "memory a device", "disk"]
    rows, empty = [], [""] * (len(head) - 2)
    for stage, disk in found["disk"].items():
        mine = [row for row in found["stages"] if row["stage"] == stage]
        written = metric(disk["kept"], "B")
        if not mine:  # it computes nothing to speak of
            rows.append([stage, *empty, written])
        for row in mine:
            rows.append(
                [
                    stage if row["part"] is None else f"{stage} {row['part']}",
                    f"{row['examples']:,}",
                    metric(row["tokens"]),
                    metric(row["flops"], "FLOP").removesuffix("FLOP"),
                    *([device_time(row["device_hours"])] if timed else []),
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
        *([device_time(total["device_hours"])] if timed else []),
        metric(total["memory"], "B"),
        metric(total["disk"], "B"),
    ]
    return align([head, *rows, last], rules_before={1, 1 + len(rows)})


def _notes(found: dict[str, Any]) -> list[str]:
    total = found["total"]
    explained = dict.fromkeys(f"{row['stage']}: {row['help']}" for row in found["stages"])
    lines = ["; ".join(explained) + "."] if explained else []
    if found["no_rate"]:
        lines.append(found["no_rate"] + ".")
    elif found["rate"] and found["devices"] > 1:
        wall = device_time(total["device_hours"] / found["devices"])
        lines.append(f"On {found['devices']} devices, if all are busy all the time: {wall}.")
    limit = found["device_memory"]
    short = [row["stage"] for row in found["stages"] if limit is not None and row["memory"] > limit]
    if short:
        lines.append(
            f"Too much for one device of {metric(limit, 'B')}: {', '.join(dict.fromkeys(short))}. Lower "
            "score.batch_tokens or tokens_per_microbatch, or split the weights over more devices (mesh.fsdp)."
        )
    lines.append(f"Disk at its fullest, with what lies there only for a time: {metric(total['disk_peak'], 'B')}.")
    if total["flops"] and total["flops_with_padding"] > 1.05 * total["flops"]:
        lines.append(
            f"FLOP counts real tokens; with the padding of the rows, devices compute "
            f"{metric(total['flops_with_padding'], 'FLOP')}, and times are of that."
        )
    lines += found["lines"]
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


def device_time(hours: float) -> str:
    """`12 s`, `4.5 min`, `3.2 h`, `1,200 h`: of one device."""
    seconds = 3600 * hours
    if seconds < 99.5:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5940:
        return f"{seconds / 60:.2g} min" if seconds < 594 else f"{seconds / 60:.0f} min"
    return f"{hours:,.0f} h" if hours >= 100 else f"{hours:.1f} h"
