"""How the run went: the head of the page, training curves, data statistics, the kernel's inputs, configuration."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

from ntk_jax.report.amounts import NOTHING, count, finite, general, percent
from ntk_jax.report.blocks import color, figure, grid, missing, numbers, section
from ntk_jax.report.figures import Curve, curves
from ntk_jax.report.findings import RHO_RANGE, Warning, head_rho, headline, objective, warnings
from ntk_jax.report.markup import Html, fold, join, pre, table, tag
from ntk_jax.report.reading import STAGES, Run, mapping

_STATES = {"done": "✓ done", "unfinished": "… unfinished", "missing": "✗ not run", "unused": "– not used"}
PERCENTILES = ("5", "25", "50", "75", "95", "max")


def head(run: Run) -> Html:
    """Title, facts of the run, the finding, the warnings and how far the run got."""
    domain, model = _names(run.setting("data", "domain", [])), _name(run.setting("model", "path", "not recorded"))
    wanted = run.select.get("count", run.setting("select", "count"))
    how = (
        f"{objective(run)}, {run.setting('score', 'normalize', 'mean')} over {run.setting('score', 'span', 'response')}"
    )
    method = run.setting("preselect", "method", "none")
    scored = "examples" if method == "none" else f"examples, {count(run.score.get('scored'))} of them scored"
    facts = [
        ("Model", model),
        ("Domain", join([domain, _size(run.domain_data.get("kept"))])),
        ("Pool", join([_names(run.setting("data", "pool", [])), _size(run.pool_data.get("kept"), scored)])),
        ("Selected (N)", count(wanted)),
        ("Objective", how),
        ("Direction", run.setting("score", "direction", "mean_gradient"))
        if run.scoring == "score"
        else ("Ranked by", f"{run.setting('select', 'by')} of sketches (K = {count(run.setting('sketch', 'dim'))})"),
        ("Pre-selection", "none: the whole pool is scored" if method == "none" else method),
        ("Seed", run.config.get("seed", NOTHING)),
    ]
    first, *rest = headline(run)
    found = tag("div", tag("p", first, class_="finding"), tag("p", " ".join(rest)) if rest else None, class_="verdict")
    notes = [_note(w) for w in warnings(run)]
    warned = tag("div", tag("h2", "Read this first"), tag("ul", *notes), class_="warnings") if notes else None
    stages = [
        tag("li", tag("b", STAGES[stage]), " ", tag("span", _STATES[state]), class_=state)
        for stage, state in run.state.items()
    ]
    return tag(
        "header",
        tag("p", "NTK-Selector run", class_="kicker"),
        tag("h1", title(run)),
        tag("dl", *(tag("div", tag("dt", name), tag("dd", value)) for name, value in facts), class_="facts"),
        found,
        warned,
        tag("ol", *stages, class_="stages", aria_label="Stages of the run"),
    )


def _note(w: Warning) -> Html:
    link = tag("a", "See there", href=f"#{w.anchor}", aria_label=f"See there: {w.title}")
    cases = tag("ul", *(tag("li", case) for case in w.cases)) if w.cases else None
    return tag("li", tag("b", "⚠ ", w.title, ". "), w.text, " ", link, ".", cases)


def title(run: Run) -> str:
    """What this run was, in a few words."""
    return (
        f"{_names(run.setting('data', 'domain', []))} with {_name(run.setting('model', 'path', 'model not recorded'))}"
    )


def _size(kept: Any, what: str = "examples") -> Html | None:
    return tag("small", f"{count(kept)} {what}") if finite(kept) is not None else None


def _name(path: Any) -> str:
    text = str(path).rstrip("/")
    return PurePosixPath(text).name or text


def _names(paths: Any, most: int = 3) -> str:
    """Short names of the files: stems without the split and the compression."""
    listed = [paths] if isinstance(paths, str) else list(paths) if isinstance(paths, list) else []
    names = []
    for path in listed:
        name = _name(path)
        for ending in (".gz", ".xz", ".jsonl", ".parquet", ".arrow", ".train"):
            name = name.removesuffix(ending)
        if "*" in name:  # a glob says little without the folder it is in
            parent = PurePosixPath(str(path)).parent.name
            name = f"{parent}/{name}" if parent else name
        names.append(name)
    if not names:
        return "not recorded"
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def training(run: Run) -> Html:
    """Loss and gradient norm of the warm-up and of every arm."""
    title = "Training curves"
    warmup = {"warm-up": run.warmup_history}
    parts: list[Html] = []
    text = "The faint line is each step's value, the bold one its moving mean; "
    for key, name, after in (
        (
            "loss",
            "Loss",
            "loss is the mean −log p of a response token in nats; arms with different data are not comparable by it.",
        ),
        ("grad_norm", "Gradient norm", "spikes or growth point to an unstable learning rate."),
    ):
        for histories, what in ((warmup, "warm-up"), (run.histories, "final training")):
            drawn = _curves(histories, key)
            if drawn:
                picture = curves(drawn, y_title=name.lower(), description=f"{name} of the {what} over steps.")
                parts.append(figure(picture, f"{name}, {what}", text + after))
    if not run.warmup_history:
        parts.append(missing(run, "warmup", "warm-up curve"))
    if not any(run.histories.values()):
        parts.append(missing(run, "finetune", "fine-tuning curve"))
    return section("training", title, grid(*parts))


def _curves(histories: dict[str, list[dict[str, Any]]], key: str) -> list[Curve]:
    found = []
    for name, history in histories.items():
        points = [(finite(row.get("step")), finite(row.get(key))) for row in history]
        known = sorted((s, v) for s, v in points if s is not None and v is not None)
        if known:
            paint = "c-domain" if name == "warm-up" else color(name)
            found.append(Curve(name, paint, [s for s, _ in known], [v for _, v in known]))
    return found


def data(run: Run) -> Html:
    """Records read, kept, truncated and dropped, and how long they are."""
    title = "Data"
    sets = [(name, d) for name, d in (("Domain", run.domain_data), ("Pool", run.pool_data)) if d]
    parts: list[object] = []
    if sets:
        rows = []
        for name, d in sets:
            seen = finite(d.get("records"))
            dropped = mapping(d.get("dropped"))
            reasons = ", ".join(f"{count(n)} {reason}" for reason, n in sorted(dropped.items()) if finite(n))
            kept = finite(d.get("kept"))
            share = tag("small", percent(kept / seen)) if kept is not None and seen else None
            rows.append(
                [name, count(seen), join([count(kept), share], " "), count(d.get("truncated")), reasons or "none"]
                + [count(d.get("tokens")), count(d.get("span_tokens"))]
            )
        header = ["Set", "Records", "Kept", "Truncated", "Dropped", "Tokens", "Tokens in spans"]
        parts.append(table(header, rows, caption="What was read and what became of it"))
        longest = run.setting("model", "max_length")
        lengths = [
            [f"{name}, {what}", *(count(values.get(p)) for p in PERCENTILES)]
            for name, d in sets
            for what, values in _percentiles(d)
        ]
        if lengths:
            caption = f"Lengths in tokens (limit {count(longest)}; longer: {run.setting('model', 'overflow', 'drop')})"
            parts.append(table(["Set", "5%", "25%", "Median", "75%", "95%", "Longest"], lengths, caption=caption))
    if not run.domain_data:
        parts.append(missing(run, "warmup", "domain statistics"))
    if not run.pool_data:
        parts.append(missing(run, run.scoring, "pool statistics"))
    return section("data", title, *parts)


def _percentiles(d: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The tables of length percentiles inside data statistics, named; keys are "5" ... "95", "max"."""
    found = []
    for key, value in d.items():
        table_ = {str(k).removeprefix("p"): v for k, v in mapping(value).items()}
        if "50" in table_ and "max" in table_:
            found.append(("response" if "span" in key else "whole example", table_))
    return found


def kernel(run: Run) -> Html:
    """The direction the pool was scored along: the head's rho, norms by leaf, and the pre-selection's votes."""
    title = "The kernel's direction"
    rho = head_rho(run)
    parts: list[object] = []
    if rho is not None:
        far = not RHO_RANGE[0] <= rho <= RHO_RANGE[1]
        text = f"ρ = ‖Wᵀ1‖² / ‖W‖² of the head is {general(rho)}; head rows of independent sign give about 1. "
        if objective(run) != "sum_logits":
            text += f"The objective {objective(run)} does not sum the rows, so ρ does not touch these scores."
        elif far and rho > 1:
            text += "That is far from 1: sum-of-logits scores lean on one direction which softmax predictions cannot "
            text += "see. That alone does not make the ranking bad; check it against probe or cross_entropy."
        elif far:
            text += "That is far from 1: the head is nearly centred and sum-of-logits scores may be rounding noise."
        else:
            text += "That is close to 1, as the paper's error analysis assumes."
        parts.append(tag("p", text, class_="lead warn" if far and objective(run) == "sum_logits" else "lead"))
    if run.scoring == "sketch":
        text = (
            f"There is no one direction: sketches compare each example with {count(run.score.get('targets'))} of the "
        )
        return section("kernel", title, *parts, tag("p", text + "domain, one by one."), _votes(run))
    if not run.gradient:
        return section("kernel", title, *parts, missing(run, "gradient", "direction"))
    norm = finite(run.gradient.get("norm"))
    made = (
        f"The direction comes from {count(run.gradient.get('examples'))} domain examples and has norm {general(norm)}."
    )
    parts.append(tag("p", made))
    leaves = {str(k): finite(v) for k, v in mapping(run.gradient.get("leaf_norms")).items()}
    squares = {k: v * v for k, v in leaves.items() if v is not None}
    total = sum(squares.values())
    if squares:
        widest = max(squares.values()) or 1.0
        rows = [
            [
                name,
                general(leaves[name]),
                percent(squares[name] / total if total else None),
                _bar(squares[name] / widest),
            ]
            for name in sorted(squares, key=lambda k: (-squares[k], k))
        ]
        header = ["Parameter", "Norm", "Share of the squared norm", ""]
        parts.append(
            table(
                header,
                rows,
                caption="Where the direction lives: a parameter with a large share tends to weigh most in the score",
            )
        )
    parts.append(_votes(run))
    return section("kernel", title, *parts)


def _bar(share: float) -> Html:
    inner = tag(
        "div", tag("span", class_="fill-selected", style=f"width:{share * 100:.2f}%"), class_="bars", aria_hidden="true"
    )
    return tag("td", inner, class_="wide")


def _votes(run: Run) -> Html:
    if run.state.get("preselect") == "unused":
        return tag("p", "No pre-selection: every usable example of the pool is scored.")
    if not run.preselect:
        return missing(run, "preselect", "pre-selection")
    p = run.preselect
    text = (
        f"Pre-selection by {p.get('method', 'votes')}: each domain example voted for its {count(p.get('neighbours'))} "
        f"nearest examples of the pool, and the {count(p.get('candidates'))} with most votes were kept."
    )
    histogram = mapping(p.get("votes_histogram"))
    edges, counts = numbers(histogram.get("edges")), numbers(histogram.get("counts"))
    if not edges or not counts or len(edges) != len(counts) + 1:
        return tag("p", text)
    rows = [[f"{general(edges[i])} to {general(edges[i + 1])}", count(n)] for i, n in enumerate(counts)]
    votes = table(["Votes", "Examples"], rows, caption="How many examples of the pool got how many votes")
    return join([tag("p", text), fold("Votes per example", votes)])


def provenance(run: Run) -> Html:
    """Versions, devices, hashes and the whole configuration, folded."""
    parts: list[object] = []
    for key in ("command", "versions", "devices", "seeds", "hashes"):
        if key in run.provenance:
            parts.append(_facts(key.capitalize(), run.provenance[key]))
    rest = {k: v for k, v in run.provenance.items() if k not in ("command", "versions", "devices", "seeds", "hashes")}
    if rest:
        parts.append(_facts("Other facts", rest))
    if not run.provenance:
        parts.append(tag("p", "No provenance.json: versions and input hashes are not known.", class_="missing"))
    parts.append(fold("Configuration (config.yaml)", pre(run.config_text)))
    if run.problems:
        parts.append(tag("ul", *(tag("li", problem) for problem in run.problems), class_="problems"))
    return section("provenance", "Configuration and provenance", *parts)


def _facts(title: str, value: Any) -> Html:
    if isinstance(value, dict) and value:
        rows = [[name, tag("td", _plain(v), class_="hash")] for name, v in _flat(value)]
        return fold(title, table(["Name", "Value"], rows, caption=title))
    return fold(title, pre(_plain(value)))


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
