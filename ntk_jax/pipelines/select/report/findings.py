"""What the numbers say, in words that the page and the terminal share: the verdict by accuracy against every control.

The wording follows the interval: a difference whose interval includes zero is never called a gain or a loss, and one
in which an arm has collapsed onto one label is never called a gain.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ntk_jax.pipelines.select.report.run import KINDS, Arm, SelectRun
from ntk_jax.report.amounts import count, finite, nats, percent, points, times
from ntk_jax.report.reading import mapping, records
from ntk_jax.report.text import label as short_label

# An arm has collapsed on a task when this share of its predictions is one label, and the label's share of the true
# answers is lower by at least the margin; where nearly every prediction is that label, a smaller margin says it too.
COLLAPSED, COLLAPSE_MARGIN = 0.8, 0.25
ALWAYS, ALWAYS_MARGIN = 0.98, 0.05


@dataclass(frozen=True)
class Collapse:
    """One arm predicting almost only one label on one task."""

    arm: str
    task: str
    kind: str
    label: str
    predicted: float  # share of predictions
    true: float | None  # share of true answers, None when not known


@dataclass(frozen=True)
class Difference:
    """The paired difference of two arms' averages, a − b, with its interval: of accuracies, or where `unit` says so of
    losses, of which the lower is the better."""

    a: str
    b: str
    kind: str
    value: float
    low: float
    high: float
    unit: str = "points"

    @property
    def sign(self) -> int:
        """+1 (a is better) or −1 (worse) when the interval excludes zero, else 0."""
        above = 1 if self.low > 0 else -1 if self.high < 0 else 0
        return above if self.unit == "points" else -above

    def turned(self) -> Difference:
        """The same as b − a."""
        return Difference(self.b, self.a, self.kind, -self.value, -self.high, -self.low, self.unit)


def leading_arm(run: SelectRun) -> Arm | None:
    """The arm that the run is about: the first method's, or the first one that is no control by its name."""
    evaluated = {arm.name: arm for arm in run.evaluated}
    methods = [m.name for m in run.methods if m.name in evaluated]
    others = [name for name in evaluated if name not in ("base", "domain")]
    names = [*methods, *others, *(["domain"] if "domain" in evaluated else [])]
    return evaluated[names[0]] if names else None


def controls(run: SelectRun) -> list[Arm]:
    """What the leading arm is held against: the domain alone first, then each other arm, the base model last."""
    leading = leading_arm(run)
    rest = [arm for arm in run.evaluated if arm != leading]
    return sorted(rest, key=lambda arm: (arm.name != "domain", arm.name == "base"))


def accuracy_differences(run: SelectRun) -> list[Difference]:
    """The differences of average accuracies."""
    return differences(run, run.results.get("paired"), KINDS, "points")


def differences(run: SelectRun, pairs: Any, kinds: Sequence[str], unit: str) -> list[Difference]:
    """The differences that hold finite numbers; those of the leading arm first, in the order of its controls. pairs: as
    results.json has them. kinds: the one that leads first."""
    leading, order = leading_arm(run), {arm.name: i for i, arm in enumerate(controls(run))}
    found = []
    for pair in records(pairs):
        value, low, high = (finite(pair.get(key)) for key in ("difference", "low", "high"))
        if value is None or low is None or high is None:
            continue
        if pair.get("kind") not in kinds:
            continue
        item = Difference(str(pair.get("a")), str(pair.get("b")), str(pair.get("kind")), value, low, high, unit)
        found.append(item.turned() if leading and item.b == leading.name else item)

    def place(d: Difference) -> tuple[bool, int, str, bool]:
        return not leading or d.a != leading.name, order.get(d.b, len(order)), d.a, d.kind != kinds[0]

    return sorted(found, key=place)


def confidence(run: SelectRun) -> str:
    """`95%`."""
    return percent(run.results.get("confidence"), 0)


def accuracy_verdict(run: SelectRun) -> list[str]:
    """The finding by accuracy, then one sentence for every control; nothing where no accuracies are compared."""
    leading, broken = leading_arm(run), collapses(run)
    compared = against_controls(run, accuracy_differences(run))
    lines = [_against(run, by_kind, broken) for by_kind in compared]
    if len(lines) > 1 and leading is not None:
        lines.insert(0, _in_short(run, leading, compared, broken))
    return lines


def against_controls(run: SelectRun, found: Sequence[Difference]) -> list[dict[str, Difference]]:
    """For each control that the leading arm is compared with, the differences by their kind, in the order found."""
    leading = leading_arm(run)
    pairs = ([d for d in found if leading and (d.a, d.b) == (leading.name, c.name)] for c in controls(run))
    return [{d.kind: d for d in pair} for pair in pairs if pair]


def _in_short(run: SelectRun, leading: Arm, compared: list[dict[str, Difference]], broken: list[Collapse]) -> str:
    """All verdicts in one sentence, so that the first is not taken for the only one."""
    words = []
    for by_kind in compared:
        d = next(iter(by_kind.values()))
        hit = collapsed_in(d, broken)
        start = (
            ("no gain is shown over" if hit else "better than")
            if d.sign > 0
            else "worse than"
            if d.sign < 0
            else "cannot tell it from"
        )
        words.append(f"{start} “{run.title(d.b)}”" + (" (an arm collapsed)" if hit else ""))
    kinds = " and ".join(dict.fromkeys(next(iter(by_kind)) for by_kind in compared))
    return f"“{leading.title}” by {kinds} likelihood: {'; '.join(words)}."


def _against(run: SelectRun, by_kind: dict[str, Difference], broken: list[Collapse]) -> str:
    kind, d = next(iter(by_kind.items()))
    hit = collapsed_in(d, broken)
    a, b = run.title(d.a), run.title(d.b)
    if d.sign > 0 and hit:
        text = f"No gain of “{a}” over “{b}” is shown, though the numbers differ by {bracket(d)}, {kind}"
    elif d.sign:
        text = f"“{a}” is {_better(d)} than “{b}” by {size(d)}, {kind}"
    else:
        text = f"Cannot tell “{a}” from “{b}”: {bracket(d)}, {kind}"
    text += f"; {_collapsed_words(run, hit)}." if hit else "."
    other = by_kind.get("raw") if kind != "raw" else None
    return text if other is None else f"{text} {_raw(run, d, other, broken)}"


def _raw(run: SelectRun, d: Difference, other: Difference, broken: list[Collapse]) -> str:
    """How the difference by raw likelihood stands to the one that leads."""
    spoilt, hit = collapsed_in(d, broken), collapsed_in(other, broken)
    if spoilt and d.sign > 0 and not hit:  # there is no verdict that raw could agree with
        text = "By raw likelihood neither has collapsed: "
        text += f"{_better(other)} by {size(other)}" if other.sign else f"cannot tell, {bracket(other)}"
    elif other.sign == d.sign:
        text = f"Raw {'shows none either' if spoilt and d.sign > 0 else 'agrees'} ({bracket(other)})"
    elif other.sign > 0 and hit:
        text = f"Raw disagrees, but shows no gain either: {bracket(other)}"
    else:
        text = "Raw disagrees: "
        text += f"{_better(other)} by {size(other)}" if other.sign else f"cannot tell, {bracket(other)}"
    if hit and {c.arm for c in hit} <= {c.arm for c in spoilt}:
        return f"{text}; COLLAPSED too."
    return text + (f"; {_collapsed_words(run, hit)}." if hit else ".")


def _better(d: Difference) -> str:
    return "better" if d.sign > 0 else "worse"


def size(d: Difference) -> str:
    """Magnitudes, because the word before says which way: 19.2 points [13.7, 24.5]."""
    d = d if d.low > 0 else d.turned()
    value, low, high = (_signed(d, x).removeprefix("+") for x in (d.value, d.low, d.high))
    return f"{value} {d.unit} [{low}, {high}]"


def bracket(d: Difference) -> str:
    """+12.2 points [+7.2, +17.5]."""
    value, low, high = (_signed(d, x) for x in (d.value, d.low, d.high))
    return f"{value} {d.unit} [{low}, {high}]"


def _signed(d: Difference, value: float) -> str:
    return points(value) if d.unit == "points" else nats(value)


def collapsed_in(d: Difference, broken: list[Collapse]) -> list[Collapse]:
    """The collapses that a difference rests on, those of its first arm first."""
    return [c for arm in (d.a, d.b) for c in broken if c.kind == d.kind and c.arm == arm]


def _collapsed_words(run: SelectRun, hit: list[Collapse]) -> str:
    """Who collapsed, with one case each."""
    words = []
    for arm in dict.fromkeys(c.arm for c in hit):
        mine = [c for c in hit if c.arm == arm]
        more = f", and on {len(mine) - 1} more" if len(mine) > 1 else ""
        words.append(f"“{run.title(arm)}” answers {_case(mine[0])}{more}")
    return "COLLAPSED: " + " and ".join(words)


def _case(c: Collapse) -> str:
    true = "" if c.true is None else f", true for {percent(c.true, 0)}"
    return f"“{short_label(c.label)}” to {percent(c.predicted, 0)} of {c.task}{true}"


def useful_sentence(run: SelectRun) -> list[str]:
    """How far each selection prefers the useful families; nothing when they are not known."""
    pool = finite(run.summary.get("useful_share_pool"))
    shares = [(m.title, finite(m.found.get("useful_share"))) for m in run.methods]
    known = [(title, share) for title, share in shares if share is not None]
    if pool is None or not known:
        return []
    words = [
        f"{percent(share)} of “{title}”" + (f" ({times(share / pool)})" if pool > 0 else "") for title, share in known
    ]
    return [f"Useful families make up {percent(pool)} of the pool, {', '.join(words)}."]


def collapses(run: SelectRun) -> list[Collapse]:
    """Every arm, task and kind whose predictions are nearly one label although the true answers are not."""
    found = []
    for task in run.tasks:
        truth = counts(task.get("truth"))
        total_true = sum(truth.values())
        for arm, kinds in mapping(task.get("results")).items():
            for kind in KINDS:
                most = most_common(mapping(mapping(kinds).get(kind)).get("predicted"))
                if most is None or len(truth) == 1:
                    continue
                name, share = most
                true = truth.get(name, 0.0) / total_true if total_true > 0 else None
                margin = 1.0 if true is None else share - true
                if (share > COLLAPSED and margin >= COLLAPSE_MARGIN) or (share >= ALWAYS and margin >= ALWAYS_MARGIN):
                    found.append(Collapse(str(arm), str(task.get("name")), kind, name, share, true))
    return found


def counts(value: Any) -> dict[str, float]:
    """Labels with how often each occurred."""
    return {str(k): finite(v) or 0.0 for k, v in mapping(value).items()}


def most_common(value: Any) -> tuple[str, float] | None:
    """(the most common label, its share); the first by name among equals, None where nothing was counted."""
    found = counts(value)
    total = sum(found.values())
    if total <= 0:
        return None
    name = max(sorted(found), key=lambda key: found[key])
    return name, found[name] / total


def pool_sentence(run: SelectRun) -> str | None:
    """What of the pool's files was looked at; None where it is not recorded."""
    looked, total = (finite(run.summary.get(key)) for key in ("pool_records", "pool_total"))
    if looked is None:
        return None
    if total is not None and total > looked:
        return f"a seeded sample of {count(looked)} of {count(total)} records"
    return f"all {count(looked)} records"
