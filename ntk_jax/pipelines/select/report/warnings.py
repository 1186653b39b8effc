"""What limits how a run may be read, for page and terminal: collapse, unequal controls, cut texts, ρ and length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ntk_jax.data.templates import REWRITTEN, SPELLS_CONTROL
from ntk_jax.pipelines.select.report.findings import (
    Collapse,
    accuracy_differences,
    bracket,
    collapsed_in,
    collapses,
    leading_arm,
)
from ntk_jax.pipelines.select.report.generated import generated_differences
from ntk_jax.pipelines.select.report.losses import loss_differences
from ntk_jax.pipelines.select.report.run import SelectRun
from ntk_jax.report.amounts import count, finite, general, percent, signed, times
from ntk_jax.report.layout import Notice
from ntk_jax.report.reading import mapping
from ntk_jax.report.text import label

# rho is 1 in the mean for head rows of independent sign; outside this range the head is called coherent.
RHO_RANGE = (0.5, 2.0)
STRONG_CORRELATION = 0.5
UNEQUAL_TOKENS = 0.15  # relative difference of label tokens
UNEQUAL_SHARE = 0.1  # difference of the domain's shares
WORTH_SAYING = 0.01  # share of texts that were cut or left out
MUCH_DROPPED = 0.1
EQUAL_CONTROL = "length_matched"  # the method that draws at random among examples of the selection's lengths


def warnings(run: SelectRun) -> list[Notice]:
    """Everything that limits what the page and the terminal may be read to say."""
    found = []
    broken = collapses(run)
    if broken:
        text = "These accuracies say how common one label is, not what the model knows."
        found.append(Notice("evaluation", "Predictions collapsed onto one label", text, tuple(_cases(run, broken))))
    found += _domain_alone(run, broken)
    found += _budget(run)
    found += _cut_questions(run)
    found += _cut_examples(run)
    found += _left_out(run)
    found += _changed_words(run)
    found += _rho(run)
    found += _lengths(run)
    return found


def _cases(run: SelectRun, broken: list[Collapse]) -> Iterator[str]:
    """One line for each task, arm and label, with the kinds of likelihood by which it was chosen."""
    cases: dict[tuple[str, str, str], list[Collapse]] = {}
    for c in broken:
        cases.setdefault((c.task, c.arm, c.label), []).append(c)
    for (task, arm, name), group in cases.items():
        true = "" if group[0].true is None else f", true for {percent(group[0].true, 0)}"
        shares = " and ".join(f"{percent(c.predicted, 0)} ({c.kind})" for c in group)
        yield f"{task}: “{label(name)}”{true}, is what “{run.title(arm)}” answers to {shares} of the questions."


def domain_share(trained: dict[str, Any]) -> float | None:
    """The domain's share of the label tokens that an arm was trained on."""
    own, total = finite(trained.get("domain_label_tokens")), finite(trained.get("label_tokens"))
    return None if own is None or not total else own / total


def _domain_alone(run: SelectRun, broken: list[Collapse]) -> list[Notice]:
    """The arms that were trained on more than the domain, and did worse than the domain alone for as many steps. A
    domain that collapsed onto one label has won nothing."""
    cases: dict[str, list[str]] = {}
    measures = {
        "accuracy": [d for d in accuracy_differences(run) if "domain" not in {c.arm for c in collapsed_in(d, broken)}],
        "held-out loss": loss_differences(run),
        "generated answers": generated_differences(run),
    }
    for what, found in measures.items():
        for d in found:
            pair = d if d.b == "domain" else d.turned()
            if pair.b == "domain" and pair.a != "base" and pair.sign < 0:
                kind = "" if what == "generated answers" else f"{d.kind.replace('_', ' ')}, "
                cases.setdefault(run.title(pair.a), []).append(f"{what}, {kind}{bracket(pair)}")
    if not cases:
        return []
    text = (
        "For as many steps, the domain alone did better: what was added cost more than it brought. Fewer examples "
        "(select.count), or a training that keeps the domain's weight (finetune.mixture: domain_share, "
        "selected_then_domain), may change that."
    )
    lines = tuple(f"“{title}” minus “{run.title('domain')}”: {'; '.join(found)}." for title, found in cases.items())
    return [Notice("evaluation", "The domain alone wins", text, lines)]


def _budget(run: SelectRun) -> list[Notice]:
    """Equal numbers of examples are not equal lessons: the training loss is a mean over label tokens."""
    if run.setting("finetune", "loss") == "example_mean":
        return []
    leading = leading_arm(run) or next((a for a in run.arms if a.name not in ("base", "domain")), None)
    if leading is None or leading.name in ("base", "domain"):
        return []
    arms = [arm for arm in run.arms if arm.name not in ("base", "domain") and run.trained.get(arm.name)]
    own = run.trained.get(leading.name, {})
    tokens, share = finite(own.get("label_tokens")), domain_share(own)
    cases = []
    for arm in arms:
        other = run.trained[arm.name]
        others_tokens, others_share = finite(other.get("label_tokens")), domain_share(other)
        uneven = tokens and others_tokens and abs(others_tokens / tokens - 1) >= UNEQUAL_TOKENS
        shifted = share is not None and others_share is not None and abs(others_share - share) >= UNEQUAL_SHARE
        if arm != leading and (uneven or shifted):
            cases.append(_lesson(arm.title, others_tokens, tokens, others_share))
    if not cases:
        return []
    text = (
        "The training loss is a mean over label tokens, so the domain's share of these is its weight in what an arm "
        "learns; a random arm of other lengths is no equal control. "
    )
    matched = mapping(run.plan.setting("select", EQUAL_CONTROL)).get("to", leading.name) == leading.name
    equal = next((arm for arm in run.arms if arm.name == EQUAL_CONTROL and matched), None)
    untested = "" if equal is None or equal in run.evaluated else ", which has not been evaluated"
    text += (
        f"The equal control is “{equal.title}”{untested}."
        if equal
        else f"The equal control, random examples of equal lengths (`{EQUAL_CONTROL}`), is not among the arms."
    )
    cases.insert(0, _lesson(leading.title, tokens, None, share))
    return [Notice("cost", "The arms learnt from unequal numbers of label tokens", text, tuple(cases))]


def _lesson(title: str, tokens: float | None, against: float | None, share: float | None) -> str:
    text = f"“{title}”: {count(tokens)} label tokens"
    text += f" ({times(tokens / against)})" if tokens and against else ""
    return text + (f", {percent(share, 0)} of them the domain's." if share is not None else ".")


def _cut_questions(run: SelectRun) -> list[Notice]:
    found = []
    cut, out = [], []
    accuracies = {str(task.get("name")): (task, "questions") for task in run.tasks}
    losses = {str(task.get("name")): (task, "examples") for task in run.loss_tasks}
    for name, (task, what) in (losses | accuracies).items():
        asked = finite(task.get(what)) or 0.0
        truncated = finite(task.get("truncated")) or 0.0
        left_out = sum(finite(n) or 0.0 for n in mapping(task.get("dropped")).values())
        if asked and truncated > WORTH_SAYING * asked:
            cut.append(f"{name}: {count(truncated)} of its {count(asked)} {what} ({percent(truncated / asked)}).")
        if left_out > WORTH_SAYING * (asked + left_out):
            reasons = ", ".join(f"{count(n)} {why}" for why, n in sorted(mapping(task.get("dropped")).items()))
            out.append(f"{name}: {count(left_out)} of {count(asked + left_out)} {what} ({reasons}).")
    if cut:
        text = "The start of their prompt was cut to model.max_length."
        found.append(Notice("evaluation", f"{_what(cut)} were truncated", text, tuple(cut)))
    if out:
        which = {"Questions": "The accuracies do", "Examples": "The losses do"}.get(
            _what(out), "Accuracies and losses do"
        )
        found.append(Notice("evaluation", f"{_what(out)} were left out", f"{which} not count them.", tuple(out)))
    return found


def _what(cases: list[str]) -> str:
    """What the cases are about: questions, examples, or both."""
    found = [word for word in ("questions", "examples") if any(f" {word} (" in case for case in cases)]
    return " and ".join(found).capitalize()


def _cut_examples(run: SelectRun) -> Iterator[Notice]:
    cut = []
    for name, data in (("domain", run.domain_data), ("pool", run.pool_data)):
        seen, kept, truncated = (finite(data.get(key)) for key in ("records", "kept", "truncated"))
        if kept and truncated and truncated > WORTH_SAYING * kept:
            cut.append(f"{count(truncated)} of {count(kept)} {name} examples ({percent(truncated / kept)}).")
        if seen and kept is not None and kept < (1 - MUCH_DROPPED) * seen:
            text = f"Only {count(kept)} of {count(seen)} records of the {name} were used ({percent(kept / seen)})."
            yield Notice("data", f"Much of the {name} was dropped", text)
    if cut:
        yield Notice("data", "Examples were truncated", "They are longer than model.max_length.", tuple(cut))


def _left_out(run: SelectRun) -> list[Notice]:
    """Arms that were given more than could be trained on, as where a proxy selects what is too long for the model."""
    cases = []
    for arm in run.arms:
        trained = run.trained.get(arm.name, {})
        dropped = {why: n for why, n in sorted(mapping(trained.get("dropped")).items()) if finite(n)}
        if dropped:
            reasons = ", ".join(f"{count(n)} {why}" for why, n in dropped.items())
            cases.append(f"“{arm.title}”: without {reasons}; {count(trained.get('examples'))} with the domain's.")
    if not cases:
        return []
    text = "As the model that is trained reads them they cannot be used (model.max_length, model.overflow)."
    return [Notice("data", "Arms were not trained on all that they were given", text, tuple(cases))]


def _changed_words(run: SelectRun) -> list[Notice]:
    """Texts in which control tokens were taken for real, and responses of which the template kept only a part."""
    kept = run.setting("model", "control_tokens") == "keep"
    spelled, rewritten = [], []
    for name, data in (("domain", run.domain_data), ("pool", run.pool_data)):
        notes = mapping(data.get("notes"))
        if kept and finite(notes.get(SPELLS_CONTROL)):
            spelled.append(f"{count(notes[SPELLS_CONTROL])} of the {name}.")
        if finite(notes.get(REWRITTEN)):
            rewritten.append(f"{count(notes[REWRITTEN])} of the {name}.")
    found = []
    if spelled:
        text = "model.control_tokens = keep, so that a record could open turns of its own."
        found.append(Notice("data", "Texts spell control tokens, which were kept", text, tuple(spelled)))
    if rewritten:
        text = "It writes a turn that is over otherwise than it came, as by cutting a thought out of it."
        found.append(Notice("data", "The chat template changed responses", text, tuple(rewritten)))
    return found


def _quoted(titles: list[str]) -> str:
    return ", ".join(f"“{title}”" for title in titles)


def _rho(run: SelectRun) -> list[Notice]:
    rho, methods = run.rho(), run.differentiating()
    if rho is None or not methods or run.objective() != "sum_logits" or RHO_RANGE[0] <= rho <= RHO_RANGE[1]:
        return []
    names = _quoted([m.title for m in methods])
    if rho > 1:
        text = (
            f"{names}: the sum-of-logits kernel leans on one direction, common to all rows of the head, that softmax "
            "predictions cannot see. That alone does not make its ranking bad; compare score.objective=probe or "
            "cross_entropy."
        )
    else:
        text = (
            f"{names}: the head is nearly centred, so sum-of-logits scores are small differences and may be rounding "
            "noise; use score.objective=probe or cross_entropy."
        )
    return [Notice("direction", f"ρ of the head is {general(rho)}, far from 1", text)]


def strength(correlation: float) -> str:
    """A word for the size of a rank correlation."""
    size = abs(correlation)
    return "weak" if size < 0.3 else "moderate" if size < STRONG_CORRELATION else "strong"


def _lengths(run: SelectRun) -> Iterator[Notice]:
    for method in run.methods:
        value = finite(method.found.get("spearman_span_length"))
        if value is not None and abs(value) >= STRONG_CORRELATION:
            way = "long responses score high" if value > 0 else "short responses score high"
            text = f"Spearman correlation of score and response length is {signed(value)}: {way}, whatever they say."
            yield Notice("length", f"The ranking of “{method.title}” follows length", text)
