"""What a run found, in sentences: by accuracy, by held-out loss, and what qualifies them."""

from __future__ import annotations

from ntk_jax.pipelines.select.report.findings import accuracy_verdict, confidence, useful_sentence
from ntk_jax.pipelines.select.report.generated import generated_verdict
from ntk_jax.pipelines.select.report.losses import loss_verdict
from ntk_jax.pipelines.select.report.run import SelectRun


def verdict(run: SelectRun) -> list[str]:
    """The finding, then one sentence for every control, likewise of losses, then what qualifies them."""
    if not run.results:
        return [
            "Nothing has been evaluated yet, so this run supports no finding about accuracy.",
            *useful_sentence(run),
        ]
    accuracy, loss, written = accuracy_verdict(run), loss_verdict(run), generated_verdict(run)
    if not (accuracy or loss or written):
        return ["The arms were evaluated, but no paired difference was computed.", *useful_sentence(run)]
    lines = [*accuracy, *loss, *written]
    left = [f"“{arm.title}”" for arm in run.arms if arm not in run.evaluated]
    if left:
        lines.append(f"Not evaluated, so not compared: {', '.join(left)}.")
    drawn = " and ".join([*(["questions"] if accuracy or written else []), *(["examples"] if loss else [])])
    last = f"Brackets are {confidence(run)} intervals over the choice of {drawn}, not over training seeds."
    return [*lines, last, *useful_sentence(run)]
