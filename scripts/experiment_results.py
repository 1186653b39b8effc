"""What the finished runs of an experiment found: a row a run and arm, and their means with intervals over seeds ×
examples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from experiment_plan import BASE, Experiment, Run, data_files, mark_path

from ntk_jax.errors import UserError
from ntk_jax.evaluation.bootstrap import groups_of
from ntk_jax.evaluation.hierarchical import Resampled, Runs, hierarchical_interval, resampled_runs
from ntk_jax.pipelines.select.arms import arms
from ntk_jax.pipelines.select.stages import PIPELINE
from ntk_jax.selection.rankers import RANKERS
from ntk_jax.storage.atomic import read_json
from ntk_jax.storage.reading import read_json_lines

MEASURES = {
    "accuracy": "accuracy by raw likelihood",
    "normalized": "accuracy by likelihood per token",
    "loss": "held-out loss, nats a token, mean over examples",
    "loss_by_token": "held-out loss, nats a token, mean over tokens",
}
LOSSES = ("loss", "loss_by_token")
CONTROLS = ("length_matched", "random")
RESAMPLES, CONFIDENCE = 2000, 0.95

Column = tuple[str, str]  # (variant, arm)


@dataclass
class Lines:
    """Of one task and measure in one run, all variants: ids and documents of the examples, weights of the mean (tokens
    or none), and [N] values by column."""

    ids: list[str]
    groups: list[str] | None
    weights: np.ndarray | None
    values: dict[Column, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Part:
    """One task of a model and domain, by seed."""

    model: str
    domain: str
    task: str
    by_seed: dict[int, Lines]


def done_runs(experiment: Experiment) -> list[Run]:
    """The runs whose evaluation is finished, and was not made for other settings than the experiment now has."""
    found = [run for run in experiment.runs if (run.folder / "evaluate" / "manifest.json").exists()]
    return [run for run in found if not _of_other_settings(experiment, run)]


def selected_runs(experiment: Experiment) -> list[Run]:
    """The runs whose selections are finished, whether anything was trained on them or not."""
    found = [run for run in experiment.runs if (run.folder / "select" / "manifest.json").exists()]
    return [run for run in found if not _of_other_settings(experiment, run)]


def _of_other_settings(experiment: Experiment, run: Run) -> bool:
    """A run that was made by hand has no mark, and is taken for what its folder is named."""
    mark = mark_path(experiment.out, run.name)
    if not mark.exists():
        return False
    found, data = read_json(mark, dict), data_files(run.config)
    return found.get("config") != run.fingerprint or _sizes(found.get("data", data)) != _sizes(data)


def _sizes(files: Mapping[str, Any]) -> list[int]:
    """Files that were only touched, or lie elsewhere, hold what they held; a run looks at their contents."""
    return [size for size, _ in files.values()]


def rows_of(run: Run) -> list[dict[str, Any]]:
    """A row an arm: what it was trained on, what it cost to find that, how much of it is useful, and its results."""
    results = read_json(run.folder / "evaluate" / "results.json", dict)
    summary = read_json(run.folder / "select" / "summary.json", dict)
    found = []
    for arm in results["arms"]:
        name, labels = arm["name"], arm.get("label_tokens") or 0
        of_method = summary["by_method"].get(name, {})
        row = {"model": run.model, "domain": run.domain, "seed": run.seed, "variant": run.variant, "arm": name}
        row["matched"] = run.config.select.length_matched.to
        row |= {key: arm.get(key) for key in ("examples", "steps", "tokens", "label_tokens")}
        row |= {
            "domain_share": arm.get("domain_label_tokens", 0) / labels if labels else None,
            "training_flops": arm.get("flops"),
            "selected": of_method.get("count"),
            "useful_share": of_method.get("useful_share"),
            "selection_flops": selection_flops(run, name) if name in RANKERS else 0.0,
        }
        row |= {
            kind: {task["name"]: task["results"][name][likelihood]["accuracy"] for task in results["tasks"]}
            for kind, likelihood in (("accuracy", "raw"), ("normalized", "normalized"))
        }
        losses = results.get("loss", {}).get("tasks", ())
        row |= {
            kind: {task["name"]: task["results"][name][mean]["loss"] for task in losses}
            for kind, mean in (("loss", "by_example"), ("loss_by_token", "by_token"))
        }
        found.append(row)
    return found


def selection_flops(run: Run, method: str) -> float:
    """The FLOPs of the stages that this method alone would need: the warm-up, and what it scores by."""
    config = run.config
    others = RANKERS[method].after(getattr(config.select, method))
    part = replace(config.select, methods=(method, *others))
    alone = replace(
        config, select=part, report=replace(config.report, examples=0), evaluate=replace(config.evaluate, arms=None)
    )
    needed = PIPELINE.before(alone, "select")
    total = 0.0
    for stage in needed:
        path = run.folder / stage / "summary.json"
        total += float(read_json(path, dict).get("flops") or 0.0) if path.exists() else 0.0
    return total


# ---------------------------------------------------------------------------------------------------------------
# The lines of the evaluations


def parts_of(runs: Iterable[Run], measure: str) -> list[Part]:
    """What a measure found of every task, all seeds and variants together. Raises UserError: an arm misses examples."""
    found: dict[tuple[str, str, str], dict[int, Lines]] = defaultdict(dict)
    for run in runs:
        for arm in arms(run.config):
            for task, lines in _lines(run, arm.name, measure).items():
                own = found[run.model, run.domain, task].setdefault(run.seed, replace(lines, values={}))
                if own.ids != lines.ids:
                    raise UserError(
                        f"{run.folder}: arm {arm.name} has {len(lines.ids)} examples of {task}, others have "
                        f"{len(own.ids)} or other ones; delete {run.folder / 'evaluate'} and run again"
                    )
                own.values[run.variant, arm.name] = lines.values[run.variant, arm.name]
    return [Part(*key, by_seed) for key, by_seed in sorted(found.items())]


def _lines(run: Run, arm: str, measure: str) -> dict[str, Lines]:
    """{task: lines} of one arm."""
    place = run.folder / "evaluate" / ("losses" if measure in LOSSES else "predictions") / arm
    found = {}
    for path in sorted(place.glob("*.jsonl")):
        kept = [
            one for one in read_json_lines(path, f"delete the folder {place} and run again") if "dropped" not in one
        ]
        weights = None
        if measure in LOSSES:
            values = np.array([one["loss"] for one in kept], float)
            weights = np.array([one["tokens"] for one in kept], float) if measure == "loss_by_token" else None
        else:
            kind = "raw" if measure == "accuracy" else measure
            values = np.array([one[kind] == one["answer"] for one in kept], float)
        found[path.stem] = Lines(
            [str(one["id"]) for one in kept], groups_of(kept), weights, {(run.variant, arm): values}
        )
    return found


# ---------------------------------------------------------------------------------------------------------------
# Means and differences


class Means:
    """The resampled means of a measure's parts; computed once for each set of seeds."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self.parts = parts
        self._known: dict[tuple[int, tuple[int, ...]], dict[Column, Resampled]] = {}

    def seeds(self, number: int, columns: Sequence[Column]) -> list[int]:
        """The seeds of part `number` that have all of the columns."""
        by_seed = self.parts[number].by_seed
        return [seed for seed, lines in sorted(by_seed.items()) if all(column in lines.values for column in columns)]

    def of(self, number: int, columns: Sequence[Column], seeds: Sequence[int]) -> list[Resampled]:
        """Of part `number` each column's means over seeds that have all of them."""
        key = number, tuple(seeds)
        if key not in self._known:
            self._known[key] = _resampled(self.parts[number], number, seeds)
        return [self._known[key][column] for column in columns]


def _resampled(part: Part, number: int, seeds: Sequence[int]) -> dict[Column, Resampled]:
    """Parts with the same seeds draw the same runs."""
    lines = [part.by_seed[seed] for seed in seeds]
    columns = [c for c in lines[0].values if all(c in one.values for one in lines)]
    weights = [one.weights for one in lines if one.weights is not None]
    groups = [one.groups for one in lines if one.groups is not None]
    runs = Runs(
        [np.stack([one.values[c] for c in columns], axis=1) for one in lines],
        weights or None,
        shared=all(one.ids == lines[0].ids for one in lines),
        groups=groups if len(groups) == len(lines) else None,
    )
    found = resampled_runs(runs, resamples=RESAMPLES, seed=(0, number), seed_of_runs=(0, *seeds))
    return {column: found.of(place) for place, column in enumerate(columns)}


def estimates(
    experiment: Experiment, runs: Sequence[Run], measure: str, against: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """{model, variant, arm, measure, domain (None: the mean over all domains that the model was run on), against (None:
    the arm's mean itself; else the control it is paired with), value, low, high, runs}, for every arm.

    against: arms that are controls beside random and length_matched; of a variant that has none of these, the base's.
    """
    means = Means(parts_of(runs, measure))
    found = []
    for model in experiment.models:
        places = [n for n, part in enumerate(means.parts) if part.model == model]
        columns = dict.fromkeys(c for n in places for lines in means.parts[n].by_seed.values() for c in lines.values)
        scopes = {part.domain: None for part in (means.parts[n] for n in places)}
        for variant, arm in columns:
            controls: list[tuple[str | None, Column | None]] = [(None, None)]
            controls += [(c, (variant, c)) for c in CONTROLS if c != arm and (variant, c) in columns]
            for other in dict.fromkeys(against):
                own_arm = (variant, other) in columns
                column = (variant if own_arm else BASE, other)
                if column in columns and other != arm and not (own_arm and other in CONTROLS):
                    controls.append((other if own_arm else f"{other} of {BASE}", column))
            if variant != BASE and (BASE, arm) in columns and arm != "base":
                controls.append((f"{arm} of {BASE}", (BASE, arm)))
            for name, control in controls:
                head = {"model": model, "variant": variant, "arm": arm, "measure": measure, "against": name}
                for domain in (*scopes, *([None] if len(scopes) > 1 else [])):
                    own = [n for n in places if domain in (None, means.parts[n].domain)]
                    one = estimate(means, own, (variant, arm), control)
                    found += [head | {"domain": domain} | one] if one else []
    return found


def estimate(means: Means, places: Sequence[int], column: Column, control: Column | None) -> dict[str, Any] | None:
    """None where some of the parts have no seed with both. A seed's runs vary together, since they have an adapter and
    a sample of the pool in common: over the seeds that all parts have. Where there is none parts are taken apart."""
    columns = [column] if control is None else [column, control]
    own = [means.seeds(number, columns) for number in places]
    if not all(own):
        return None
    common = sorted(set.intersection(*map(set, own)))
    parts = []
    for number, seeds in zip(places, own, strict=True):
        first, *second = means.of(number, columns, common or seeds)
        parts.append(first.minus(*second) if second else first)
    return dict(hierarchical_interval(parts, CONFIDENCE, together=bool(common)))


def worth_of(experiment: Experiment, run: Run) -> dict[str, Any]:
    """What the finished diagnosis of a run says of scores; nothing where there is none, or it is of scores that the run
    no longer has."""
    name = f"worth/{run.name}"
    path, mark = experiment.out / name / "diagnose" / "worth.json", mark_path(experiment.out, name)
    if not path.exists() or not mark.exists() or read_json(mark, dict).get("run", run.fingerprint) != run.fingerprint:
        return {}
    found: dict[str, Any] = read_json(path, dict)
    return found
