"""What the numbers say, in words: the headline sentence and the warnings, computed and never typed.

The wording follows the interval: a difference whose interval includes zero is never called a gain or a loss.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ntk_jax.report.amounts import count, finite, general, percent, points, signed, times
from ntk_jax.report.figures import KIND_NAMES
from ntk_jax.report.reading import Run, mapping, records

# An arm has collapsed on a task when this share of its predictions is one label, and the label's share of the true
# answers is lower by at least the margin.
COLLAPSED = 0.8
COLLAPSE_MARGIN = 0.25
# rho is 1 in the mean for head rows of independent sign; outside this range the head is called coherent.
RHO_RANGE = (0.5, 2.0)
STRONG_CORRELATION = 0.5
UNEQUAL_TOKENS = 0.15


@dataclass(frozen=True)
class Warning:
    """Something a reader must know before believing a number; `anchor` is the section that shows it."""

    anchor: str
    title: str
    text: str
    cases: tuple[str, ...] = ()  # where it was seen


@dataclass(frozen=True)
class Collapse:
    """One arm predicting almost only one label on one task."""

    arm: str
    task: str
    kind: str
    label: str
    predicted: float  # share of predictions
    true: float | None  # share of true answers, None when not known


def pairs(run: Run) -> list[dict[str, Any]]:
    """The paired differences of the averages that hold finite numbers, those of the selection first.

    A difference is antisymmetric, so one written as random − selected is turned round.
    """
    found = []
    for pair in records(run.results.get("paired")):
        difference, low, high = (finite(pair.get(key)) for key in ("difference", "low", "high"))
        if difference is None or low is None or high is None:
            continue
        if pair.get("b") == "selected":
            ends = {"a": "selected", "b": pair.get("a"), "difference": -difference, "low": -high, "high": -low}
            pair = {**pair, **ends}
        found.append(pair)
    order = ["random", "domain", "base"]  # the control that matters most first
    rank = {name: i for i, name in enumerate(order)}
    return sorted(found, key=lambda p: (p.get("a") != "selected", rank.get(str(p.get("b")), len(rank))))


def confidence(run: Run) -> str:
    """`95%`."""
    return percent(run.results.get("confidence", 0.95), 0)


def headline(run: Run) -> list[str]:
    """The finding in one sentence, then what qualifies it, one sentence each."""
    if not run.results:
        return [
            "Nothing has been evaluated yet, so this run supports no finding about accuracy.",
            *useful_sentence(run),
        ]
    found = pairs(run)
    if not found:
        return ["The arms were evaluated, but no paired difference was computed.", *useful_sentence(run)]
    first = (found[0].get("a"), found[0].get("b"))
    chosen = {str(p.get("kind")): p for p in found if (p.get("a"), p.get("b")) == first}
    # The kind of likelihood that leads is chosen by what was predicted, never by the accuracies.
    broken = collapses(run)
    hits = {k: [c for c in broken if c.kind == k and c.arm in first] for k in chosen}
    kind = min(sorted(chosen), key=lambda k: (len(hits[k]), k != "normalized"))
    sentences = [_verdict(run, chosen[kind], kind)]
    if len(hits[kind]) == 2 * len(records(run.results.get("tasks"))) > 0:
        sentences.insert(0, "This run cannot tell the arms apart: on every task both predict almost only one label.")
    for other in sorted(set(chosen) - {kind}):
        p = chosen[other]
        verdict = "" if _sign(p) == _sign(chosen[kind]) else ", which is a different verdict"
        sentences.append(f"By {_kind(other)} likelihood the difference is {_interval(p)}{verdict}.")
    rest = [p for p in found if p.get("a") == first[0] and p.get("b") != first[1] and p.get("kind") == kind]
    if rest:
        others = ", ".join(f"“{run.arm_title(str(p['b']))}” {_interval(p)}" for p in rest)
        sentences.append(f"Against the other arms, {_kind(kind)}: {others}.")
    sentences.append("The interval covers the choice of questions, not another training seed.")
    if broken:
        arms = ", ".join(dict.fromkeys(f"“{run.arm_title(c.arm)}”" for c in broken))
        sentences.append(f"Arms that collapsed onto one label somewhere: {arms}; see the warning before comparing.")
    return sentences + useful_sentence(run)


def _verdict(run: Run, pair: dict[str, Any], kind: str) -> str:
    a, b = run.arm_title(str(pair.get("a"))), run.arm_title(str(pair.get("b")))
    values = f"{_accuracy(run, pair.get('a'), kind)} against {_accuracy(run, pair.get('b'), kind)} average accuracy"
    end = f"({values}, {_kind(kind)}): {_interval(pair, f'{confidence(run)} interval ')}"
    sign = _sign(pair)
    if sign == 0:
        return f"No difference between “{a}” and “{b}” is shown {end}, which includes zero."
    return f"“{a}” {'beats' if sign > 0 else 'is worse than'} “{b}” {end}, which excludes zero."


def _sign(pair: dict[str, Any]) -> int:
    """+1 or −1 when the interval excludes zero, else 0."""
    return 1 if pair["low"] > 0 else -1 if pair["high"] < 0 else 0


def _interval(pair: dict[str, Any], name: str = "") -> str:
    difference, low, high = (points(pair[key]) for key in ("difference", "low", "high"))
    return f"{difference} points ({name}{low} to {high})"


def _kind(kind: str) -> str:
    return KIND_NAMES.get(kind, kind)


def _accuracy(run: Run, arm: Any, kind: str) -> str:
    return percent(mapping(mapping(mapping(run.results.get("average")).get(arm)).get(kind)).get("accuracy"))


def useful_shares(run: Run) -> tuple[float, float] | None:
    """Shares of useful families in the pool and in the selection, where known."""
    pool, selected = finite(run.select.get("useful_share_pool")), finite(run.select.get("useful_share_selected"))
    return None if pool is None or selected is None else (pool, selected)


def useful_sentence(run: Run) -> list[str]:
    """How far the selection prefers the useful families; nothing when they are not known."""
    shares = useful_shares(run)
    if shares is None:
        return []
    pool, selected = shares
    lift = f" ({times(selected / pool)})" if pool > 0 else ""
    random = finite(run.select.get("useful_share_random"))
    control = f" and {percent(random)} of the random control" if random is not None else ""
    return [
        f"Useful families make up {percent(selected)} of the selection, {percent(pool)} of the pool{lift}{control}."
    ]


def collapses(run: Run) -> list[Collapse]:
    """Every arm, task and kind whose predictions are nearly one label although the true answers are not."""
    found = []
    for task in records(run.results.get("tasks")):
        truth = {str(k): finite(v) or 0.0 for k, v in mapping(task.get("truth")).items()}
        for arm, kinds in mapping(task.get("results")).items():
            for kind in KIND_NAMES:
                predicted = mapping(mapping(mapping(kinds).get(kind)).get("predicted"))
                counts = {str(k): finite(v) or 0.0 for k, v in predicted.items()}
                total, true_total = sum(counts.values()), sum(truth.values())
                if total <= 0 or len(truth) == 1:
                    continue
                name = max(sorted(counts), key=lambda k: counts[k])
                share = counts[name] / total
                true = truth.get(name, 0.0) / true_total if true_total > 0 else None
                if share > COLLAPSED and (true is None or share - true >= COLLAPSE_MARGIN):
                    found.append(Collapse(str(arm), str(task.get("name")), kind, name, share, true))
    return found


def warnings(run: Run) -> list[Warning]:
    """Everything that limits what the page may be read to say."""
    found = []
    broken = collapses(run)
    if broken:
        text = "These accuracies say how common one label is, not what the model knows."
        found.append(Warning("evaluation", "Predictions collapsed onto one label", text, _cases(run, broken)))
    found += _rho_warning(run)
    found += _length_warning(run)
    found += _budget_warning(run)
    for name, data in (("domain", run.domain_data), ("pool", run.pool_data)):
        seen, kept = finite(data.get("records")), finite(data.get("kept"))
        if seen and kept is not None and kept < 0.9 * seen:
            text = f"Only {count(kept)} of {count(seen)} records of the {name} were used ({percent(kept / seen)})."
            found.append(Warning("data", f"Much of the {name} was dropped", text))
    if run.problems:
        found.append(Warning("provenance", "Files that could not be read", "; ".join(run.problems) + "."))
    return found


def _cases(run: Run, broken: list[Collapse]) -> tuple[str, ...]:
    """One line for each task, kind and label, with the arms that chose it."""
    cases: dict[tuple[str, str, str], list[Collapse]] = {}
    for c in broken:
        cases.setdefault((c.task, c.kind, c.label), []).append(c)
    lines = []
    for (task, kind, label), group in cases.items():
        true = group[0].true
        truly = "" if true is None else f", true for {percent(true, 0)}"
        arms = ", ".join(f"“{run.arm_title(c.arm)}” ({percent(c.predicted, 0)})" for c in group)
        lines.append(f"{task}, {_kind(kind)}: “{label}”{truly}, is what {arms} predict{'s' * (len(group) == 1)}.")
    return tuple(lines)


def head_rho(run: Run) -> float | None:
    """ρ = ‖Wᵀ1‖² / ‖W‖²_F of the model's head."""
    return next((r for r in (finite(part.get("rho")) for part in (run.score, run.gradient)) if r is not None), None)


def objective(run: Run) -> str:
    """The scalar that was differentiated."""
    return str(run.gradient.get("objective") or run.setting("score", "objective", "not recorded"))


def _rho_warning(run: Run) -> list[Warning]:
    rho = head_rho(run)
    if rho is None or objective(run) != "sum_logits" or RHO_RANGE[0] <= rho <= RHO_RANGE[1]:
        return []
    if rho > 1:
        text = (
            "The sum-of-logits kernel leans on one direction, common to all rows of the head, that softmax predictions "
            "cannot see. That alone does not make its ranking bad; compare score.objective=probe or cross_entropy."
        )
    else:
        text = (
            "The head is nearly centred, so sum-of-logits scores are small differences and may be rounding noise; "
            "use score.objective=probe or cross_entropy."
        )
    return [Warning("kernel", f"ρ of the head is {general(rho)}, far from 1", text)]


def strength(correlation: float) -> str:
    """A word for the size of a rank correlation."""
    size = abs(correlation)
    return "weak" if size < 0.3 else "moderate" if size < STRONG_CORRELATION else "strong"


def _length_warning(run: Run) -> list[Warning]:
    value = finite(run.selection.get("spearman_span_length"))
    if value is None or abs(value) < STRONG_CORRELATION:
        return []
    way = "long responses score high" if value > 0 else "short responses score high"
    text = f"Spearman correlation of score and response length is {signed(value)}: {way}, whatever they say."
    return [Warning("length", "The ranking follows length", text)]


def _budget_warning(run: Run) -> list[Warning]:
    """Equal numbers of examples are not equal numbers of tokens."""
    tokens = {arm: finite(s.get("tokens")) for arm, s in run.arms.items()}
    selected, random = tokens.get("selected"), tokens.get("random")
    if not selected or not random or abs(selected / random - 1) < UNEQUAL_TOKENS:
        return []
    word = "more" if selected > random else "fewer"
    text = (
        f"“{run.arm_title('selected')}” trained on {count(selected)} tokens and “{run.arm_title('random')}” on "
        f"{count(random)}: {percent(abs(selected / random - 1), 0)} {word}, for as many examples."
    )
    return [Warning("cost", "The arms saw unequal amounts of text", text)]
