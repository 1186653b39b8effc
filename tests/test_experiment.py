"""The queue of an experiment's runs, and what its report makes of them."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from tiny_run import tiny_run_config, tiny_tree, write_inputs

from ntk_jax import cli
from ntk_jax.errors import UserError
from ntk_jax.evaluation.hierarchical import Runs, hierarchical_interval, resampled_runs
from ntk_jax.evaluation.tasks import comparison
from ntk_jax.pipelines.common.rankings import save_rankings
from ntk_jax.pipelines.select import finetune
from ntk_jax.pipelines.select.stages import PIPELINE
from ntk_jax.selection.ranker import Ranking
from ntk_jax.storage.atomic import make_folder, write_json
from ntk_jax.storage.run import commit

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

import experiment as queue  # noqa: E402
from experiment_figures import frontier  # noqa: E402
from experiment_pairs import differences, pair_of, read_losses  # noqa: E402
from experiment_plan import Experiment, Run, merged, read_experiment, shared_stages  # noqa: E402
from experiment_report import over_runs, write_results  # noqa: E402
from experiment_results import Means, done_runs, estimates, parts_of, rows_of, selection_flops  # noqa: E402
from shuffle_labels import shuffled  # noqa: E402

EFFECT = {"base": 0.2, "domain": 0.4, "length_matched": 0.5, "random": 0.5, "kernel": 0.8}
QUESTIONS = 60


def written(folder: Path, **keys: Any) -> Path:
    """An experiment's file: two domains and seeds, a kernel and its controls, one variant of the training's loss."""
    base = {key: value for key, value in tiny_tree(folder).items() if key != "out"}
    tree: dict[str, Any] = {
        "base": base,
        "out": str(folder / "out"),
        "models": {"tiny": str(folder / "model")},
        "domains": {"one": {}, "two": {"report.useful": ["sums"]}},
        "seeds": [0, 1],
        "methods": ["kernel", "length_matched", "random"],
        "overrides": {"evaluate.metrics": ["accuracy", "loss"]},
        "variants": {"by_example": {"finetune.loss": "example_mean"}, "other": {"score.objective": "cross_entropy"}},
    }
    path = folder / "experiment.yaml"
    path.write_text(json.dumps(tree | keys))
    return path


def made_up(run: Run, effect: dict[str, float] = EFFECT) -> None:
    """The files of a finished run, as far as the report reads them."""
    random = np.random.default_rng([run.seed, len(run.name)])
    hard = np.random.default_rng(5).normal(0, 0.3, QUESTIONS)
    arms = ["base", "domain", *[m for m in run.config.select.methods if m != "kernel"], "kernel"]
    predictions: dict[str, Any] = {}
    losses: dict[str, Any] = {}
    for arm in arms:
        right = random.random(QUESTIONS) < effect[arm] + hard * 0.3
        found = [
            {"id": f"q{n}", "answer": 0, "choices": ["a", "b"], "log_likelihoods": [-1.0, -2.0]}
            for n in range(QUESTIONS)
        ]
        found = [
            one | {"raw": int(not ok), "normalized": int(not ok), "lengths": [1, 1]}
            for one, ok in zip(found, right, strict=True)
        ]
        predictions[arm] = {"test": found}
        values = 2.0 - effect[arm] + hard + random.normal(0, 0.1, QUESTIONS)
        losses[arm] = {"test": [{"id": f"q{n}", "loss": float(v), "tokens": 1 + n % 3} for n, v in enumerate(values)]}
        for name, lines in (("predictions", predictions), ("losses", losses)):
            place = make_folder(run.folder / "evaluate" / name / arm)
            (place / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines[arm]["test"]))
    results = comparison(predictions, losses, bootstrap=20, confidence=0.95, seed=0)
    budget = {"examples": 14, "steps": 3, "tokens": 100, "label_tokens": 40, "domain_label_tokens": 10, "flops": 1e6}
    results["arms"] = [{"name": arm, **(dict.fromkeys(budget, 0) if arm == "base" else budget)} for arm in arms]
    write_json(run.folder / "evaluate" / "results.json", results)
    write_json(run.folder / "evaluate" / "manifest.json", {})
    make_folder(run.folder / "select")
    by_method = {m: {"count": 6, "useful_share": 0.75 if m == "kernel" else 0.5} for m in run.config.select.methods}
    write_json(run.folder / "select" / "summary.json", {"by_method": by_method})
    for stage, flops in (("warmup", 1e9), ("gradient", 2e9), ("score", 4e9)):
        write_json(make_folder(run.folder / stage) / "summary.json", {"flops": flops})
        write_json(run.folder / stage / "manifest.json", {})
    scores = np.random.default_rng(len(run.domain)).normal(size=30) + random.normal(0, 0.01, 30)
    ids, order = [f"p{n}" for n in range(30)], np.argsort(-scores)[:6]
    save_rankings(run.folder / "select" / "scores.npz", ids, np.arange(30), {"kernel": Ranking(scores, order)})
    commit(run.folder / "select", {}, {})


@pytest.fixture
def inputs_of_runs(tmp_path: Path) -> None:
    write_inputs(tmp_path)


@pytest.fixture
def experiment(tmp_path: Path) -> Experiment:
    return read_experiment(written(tmp_path))


def test_runs_are_multiplied_out_and_variants_come_after_what_they_start_from(experiment: Experiment) -> None:
    names = [run.name for run in experiment.runs]
    assert len(names) == len(set(names)) == 2 * 2 * 3
    assert names[:3] == ["tiny/one/seed-0", "tiny/one/seed-0+by_example", "tiny/one/seed-0+other"]
    base, variant, other = experiment.runs[:3]
    assert base.config.seed == 0 and base.config.finetune.loss == "token_mean" and base.after is None
    assert variant.config.finetune.loss == "example_mean" and variant.after == base.name
    assert shared_stages(experiment, variant) == ("warmup", "gradient", "score", "select", "align")
    assert shared_stages(experiment, other) == ("warmup",)  # the gradient is of another objective
    assert experiment.run("tiny/two/seed-1").config.report.useful == ("sums",)
    assert merged({"a.b": 1, "c": {"d": [1]}}, {"a": {"e": 2}}, {"c.d": [2]}) == {
        "a": {"b": 1, "e": 2},
        "c": {"d": [2]},
    }
    smaller = read_experiment(experiment.out.parent / "experiment.yaml", ["--data.pool_limit=7"])
    assert {run.config.data.pool_limit for run in smaller.runs} == {7}


def test_repeats_share_scores_and_draw_and_train_anew(tmp_path: Path, inputs_of_runs: None) -> None:
    experiment = read_experiment(written(tmp_path, seeds=[3, 4, 5], seeds_of="repeats", worth={}))
    first, variant, other, second, again, scored = experiment.runs[:6]
    assert [run.name for run in (first, second)] == ["tiny/one/seed-3", "tiny/one/seed-4"]
    assert [(run.config.seed, run.config.repeat_seed) for run in (first, variant, second, again)] == [
        *[(3, None)] * 2,
        *[(3, 4)] * 2,
    ]
    assert [run.after for run in (first, variant, second, again)] == [None, first.name, first.name, second.name]
    assert shared_stages(experiment, second) == ("warmup", "gradient", "score")
    assert shared_stages(experiment, again) == ("warmup", "gradient", "score", "select", "align")
    # What a variant scores is scored once: its repeats start from its first run, and are compared with their own base.
    assert scored.after == other.name and shared_stages(experiment, scored) == ("warmup", "gradient", "score")
    for own, keys in ((None, 0), (3, 0), (4, 1)):  # a run directory of before, or of its own seed, stays what it is
        config = replace(first.config, repeat_seed=own)
        assert [PIPELINE.stage(name).keys(config).count("repeat_seed") for name in ("select", "finetune")] == [keys] * 2
    asked = queue.jobs_of(experiment, experiment.runs, None)
    assert [job.name for job in asked if job.name.startswith("worth/")] == [
        f"worth/tiny/{d}/seed-3" for d in ("one", "two")
    ]
    lines = list(queue.dry_run(experiment, experiment.runs, None))
    assert "warmup, gradient, score" in lines[0] and "  select, align, finetune, evaluate (the others from" in lines[3]
    for run in experiment.runs:
        made_up(run)
    write_results(experiment, tmp_path / "report")
    text = (tmp_path / "report" / "results.md").read_text()
    assert "the scores of a domain are the first seed's in all" in text and "What base changes" not in text
    assert re.search(r"\| kernel \|.*\(3\)", text)
    found = json.loads((tmp_path / "report" / "results.json").read_text())
    assert {row["seed"] for row in found["variants"] if row["variant"] == "other"} == {3, 4, 5}
    assert "| kernel | 75.0 | 75.0 |" in text, "three copies of one selection have no interval"


@pytest.mark.slow
def test_a_repeat_is_trained_from_another_adapter_on_other_draws(tmp_path: Path) -> None:
    """The kernel's selection is the same, since its scores are; a run whose repeat is its own seed is the run."""
    write_inputs(tmp_path)
    path = written(tmp_path, domains={"one": {}}, seeds_of="repeats", variants={}, overrides={"report.examples": 0})
    experiment = read_experiment(path)
    assert queue.work_here(experiment.out, queue.jobs_of(experiment, experiment.runs, None)) == {}
    first, again = (run.folder for run in experiment.runs)

    def ids(folder: Path, method: str) -> list[str]:
        return [json.loads(line)["id"] for line in (folder / "select" / f"{method}.jsonl").read_text().splitlines()]

    assert ids(first, "kernel") == ids(again, "kernel") and ids(first, "random") != ids(again, "random")
    starts = [json.loads((folder / "plan.json").read_text()) for folder in (first, again)]
    assert [one["pipelines"]["select"]["config"]["repeat_seed"] for one in starts] == [None, 1]
    adapters = [
        load_file(folder / "finetune" / "domain" / "adapter" / "adapter_model.safetensors") for folder in (first, again)
    ]
    # At this rate the entries of A hardly move from where they start.
    key = next(name for name in adapters[0] if "lora_A" in name)
    assert np.corrcoef(adapters[0][key].ravel(), adapters[1][key].ravel())[0, 1] < 0.9
    # The first step's loss is that of its batch: a fresh adapter does nothing yet.
    losses = [
        json.loads((folder / "finetune" / "domain" / "history.jsonl").read_text().splitlines()[0])["loss"]
        for folder in (first, again)
    ]
    assert losses[0] != pytest.approx(losses[1], rel=1e-4)
    manifest = first / "finetune" / "manifest.json"
    made = manifest.stat().st_mtime_ns
    assert cli.main(["run", str(queue.config_path(experiment, experiment.runs[0].name)), "--repeat_seed=0"]) == 0
    assert manifest.stat().st_mtime_ns == made


@pytest.mark.parametrize(
    ("repeat", "adapter", "start"),
    [(None, None, "loaded"), (0, None, "loaded"), (7, None, "fresh 7"), (7, "runs/mine/adapter", "loaded")],
)
def test_what_a_repeat_starts_from(tmp_path: Path, repeat: int | None, adapter: str | None, start: str) -> None:
    """Where an adapter is named all arms start from it, whatever the repeat."""
    config = tiny_run_config(tmp_path)
    config = replace(config, repeat_seed=repeat, model=replace(config.model, adapter=adapter))
    model = SimpleNamespace(base="loaded", fresh=lambda seed: f"fresh {seed}")
    run: Any = SimpleNamespace(config=config, model=model)
    found: Any = finetune._start(run)
    assert config.seed == 0 and found == start


def test_what_cannot_be_an_experiment_is_said_in_a_line(tmp_path: Path) -> None:
    for keys, words in (
        ({"sead": [1]}, "has no key sead"),
        ({"seeds": []}, "give a list of seeds"),
        ({"seeds": [1, 1]}, "each once"),
        ({"seeds_of": "orders"}, "seeds_of = orders; choose from everything, repeats"),
        ({"domains": {}}, "domains is missing"),
        ({"domains": {"a/b": {}}}, "cannot be a name"),
        ({"variants": {"base": {}}}, "a variant: not base"),
        ({"domains": {"a": 3}}, "is a mapping of settings"),
        ({"overrides": {"score.objectiv": "probe"}}, "score.objective"),
        ({"overrides": {"repeat_seed": 5}}, "repeat_seed is the experiment's to set"),
        ({"worth": 3}, "worth is a mapping"),
        ({"out": ""}, "out is missing"),
    ):
        with pytest.raises(UserError, match=words):
            read_experiment(written(tmp_path, **keys))
    with pytest.raises(UserError, match="behind --"):
        read_experiment(written(tmp_path), ["data.pool_limit"])


def test_a_variant_starts_from_finished_stages_that_it_shares(experiment: Experiment) -> None:
    base, variant, other = experiment.runs[:3]
    made_up(base)
    write_json(make_folder(base.folder / ".clock" / "score" / "starts") / "x.json", {"seconds": 1})
    (base.folder / "select" / "manifest.json").unlink()  # not finished: it is not taken over
    queue.take_over(experiment, variant)
    found = sorted(path.name for path in variant.folder.iterdir())
    assert found == [".clock", "gradient", "score", "warmup"]
    assert (variant.folder / ".clock" / "score" / "starts" / "x.json").exists()
    (variant.folder / "warmup" / "summary.json").write_text("changed")
    assert "flops" in (base.folder / "warmup" / "summary.json").read_text()  # a copy
    queue.take_over(experiment, variant)  # what is there is not replaced
    assert (variant.folder / "warmup" / "summary.json").read_text() == "changed"
    queue.take_over(experiment, other)
    assert sorted(path.name for path in other.folder.iterdir()) == ["warmup"]


def test_a_variant_takes_no_trainings_over_whose_arms_are_of_other_files(tmp_path: Path) -> None:
    """Arms that the other has not are added; one of the same name and another file was trained on what it never saw."""
    arms = [{"evaluate.arms": ["kernel", f"file:{folder}/elsewhere.jsonl"]} for folder in ("made", "again")]
    variants = {"made": arms[0], "again": arms[1], "alike": {**arms[1], "evaluate.bootstrap": 30}}
    experiment = read_experiment(written(tmp_path, variants=variants, seeds_of="repeats"))
    runs = {run.name: run for run in experiment.runs if run.domain == "one"}
    trained = {"finetune", "evaluate"}
    made, again = (runs[f"tiny/one/seed-0+{name}"] for name in ("made", "again"))
    assert trained | {"select"} <= set(shared_stages(experiment, made)) & set(shared_stages(experiment, again))
    other = set(shared_stages(experiment, replace(again, after=made.name)))
    assert "select" in other and not trained & other
    assert trained <= set(shared_stages(experiment, replace(runs["tiny/one/seed-0+alike"], after=again.name)))


def test_tables_and_figures_of_known_effects(experiment: Experiment, tmp_path: Path) -> None:
    for run in experiment.runs:
        if run.variant != "other" and run.name != "tiny/two/seed-1":
            made_up(run)
    line = write_results(experiment, tmp_path / "report")
    assert "7 of 12 runs" in line
    found = json.loads((tmp_path / "report" / "results.json").read_text())
    assert "tiny/two/seed-1" in found["missing"] and len(found["rows"]) == 7 * 5

    def of(arm: str, against: str | None, domain: str | None, measure: str, variant: str = "base") -> dict[str, Any]:
        key = {"arm": arm, "against": against, "domain": domain, "measure": measure, "variant": variant}
        (one,) = [e for e in found["estimates"] if all(e[k] == v for k, v in key.items())]
        return one

    assert {one["arm"] for one in found["estimates"]} == {row["arm"] for row in found["rows"]}
    gain = of("kernel", "random", None, "accuracy")
    assert gain["low"] < 0.3 < gain["high"] and gain["low"] > 0 and gain["runs"] == 1
    less = of("kernel", "length_matched", "one", "loss")
    assert less["low"] < -0.3 < less["high"] < 0 and less["runs"] == 2
    same = of("random", "length_matched", "one", "loss")
    assert same["low"] < 0 < same["high"]
    assert of("kernel", "kernel of base", "one", "loss", "by_example")["runs"] == 2
    means = Means(read_losses([tmp_path / "report" / "losses.json"]))
    pairs = [pair_of("kernel:length_matched"), pair_of("what the loss does=by_example/kernel:kernel")]
    again = {(p.name, domain): one for p, domain, _, one in differences(means, pairs)}
    expected = {
        ("kernel − length_matched", "one"): less,
        ("kernel − length_matched", "mean of 2"): of("kernel", "length_matched", None, "loss"),
        ("what the loss does", "one"): of("kernel", "kernel of base", "one", "loss", "by_example"),
    }
    for key, one in expected.items():
        assert again[key] == pytest.approx({name: one[name] for name in again[key]}, abs=1e-5)
    # By hand: the two seeds' losses, of the same examples.
    parts = [part for part in parts_of(experiment.runs[:6:3], "loss") if part.domain == "one"]
    arms = [("base", "kernel"), ("base", "random")]
    both = [np.stack([parts[0].by_seed[seed].values[arm] for arm in arms], axis=1) for seed in (0, 1)]
    by_hand = resampled_runs(Runs(both), resamples=2000, seed=(0, 0), seed_of_runs=(0, 0, 1))
    expected = hierarchical_interval([by_hand.of(0).minus(by_hand.of(1))], 0.95)
    assert {key: of("kernel", "random", "one", "loss")[key] for key in expected} == pytest.approx(expected)
    write_results(experiment, tmp_path / "against", against=["kernel"])
    more = json.loads((tmp_path / "against" / "results.json").read_text())["estimates"]
    assert [one for one in more if one not in found["estimates"]] and all(one in more for one in found["estimates"])
    (other,) = [
        e
        for e in more
        if (e["arm"], e["against"], e["variant"]) == ("random", "kernel", "base")
        and e["domain"] is None
        and e["measure"] == "accuracy"
    ]
    assert other["value"] == pytest.approx(-gain["value"])
    with pytest.raises(UserError, match="--against: no finished run has the arm bm25; there are base, domain"):
        write_results(experiment, tmp_path / "none", against=["bm25"])
    drawn = (tmp_path / "report" / "tiny-loss-kernel-by-domain.svg").read_text()
    assert "kernel minus length_matched" in drawn and all(f">{name}<" in drawn for name in ("mean", "one", "two"))
    text = (tmp_path / "report" / "results.md").read_text()
    assert "of one seed they are over examples alone" in text
    assert "length_matched has the response lengths of what kernel selected" in text
    assert (
        "### Accuracy by raw likelihood, minus random (paired)" in text
        and "| kernel | 14 | 3 | 100 | 40 | 25% |" in text
    )
    line = "Accuracy by likelihood per token: the same numbers as accuracy by raw likelihood."
    assert text.count(line) == 2 and "### Accuracy by likelihood per token" not in text
    assert "### Held-out loss, nats a token, mean over tokens" in text, "examples of 1, 2 and 3 tokens have two means"
    assert "75.0% | 7 GFLOP" in text.replace("7.00 GFLOP", "7 GFLOP") and "## tiny, by_example" in text
    for name in ("tiny-accuracy-minus-random", "tiny-loss-by-flops", "tiny-by_example-loss-minus-length_matched"):
        assert (tmp_path / "report" / f"{name}.svg").read_text().startswith("<svg") and f"({name}.svg)" in text


def test_what_a_seed_does_in_all_domains_is_not_averaged_away(tmp_path: Path) -> None:
    """An effect of seeds that two domains share leaves their mean as uncertain as one of them. With other seeds in each
    domain it would not be."""
    experiment = read_experiment(written(tmp_path, seeds=[0, 1, 2, 3, 4, 5], variants={}))
    for run in experiment.runs:
        made_up(run, EFFECT | {"kernel": 0.8 + 0.1 * (-1) ** run.seed})

    def widths(runs: Sequence[Run]) -> tuple[float, float]:
        found = [
            one
            for one in estimates(experiment, runs, "loss")
            if (one["arm"], one["against"]) == ("kernel", "length_matched")
        ]
        each = {one["domain"]: one["high"] - one["low"] for one in found}
        return each[None], (each["one"] + each["two"]) / 2

    mean, alone = widths(experiment.runs)
    assert mean > 0.9 * alone
    mean, alone = widths([run for run in experiment.runs if (run.domain == "one") == (run.seed < 3)])
    assert mean < 0.9 * alone


def test_costs_are_those_of_the_stages_that_a_method_needs(experiment: Experiment) -> None:
    run = experiment.runs[0]
    made_up(run)
    assert selection_flops(run, "kernel") == 7e9 == selection_flops(run, "length_matched")
    assert selection_flops(run, "random") == 0.0
    rows = {row["arm"]: row for row in rows_of(run)}
    assert rows["kernel"]["useful_share"] == 0.75 and rows["kernel"]["domain_share"] == 0.25
    assert rows["base"]["domain_share"] is None and rows["domain"]["selected"] is None


def test_an_arm_that_misses_records_is_named(experiment: Experiment, tmp_path: Path) -> None:
    run = experiment.runs[0]
    made_up(run)
    path = run.folder / "evaluate" / "losses" / "random" / "test.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="arm random has 59 examples of test, others have 60") as error:
        write_results(experiment, tmp_path / "report")
    assert str(run.folder / "evaluate") in str(error.value)


ALL = sorted(path.stem for path in (SCRIPTS.parent / "configs" / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("name", [name for name in ALL if name != "transfer"])  # which trains nothing but warm-ups
def test_the_experiments_that_come_with_the_package_can_be(name: str) -> None:
    found = read_experiment(SCRIPTS.parent / "configs" / "experiments" / f"{name}.yaml")
    assert len(found.runs) == len(found.models) * len(found.domains) * len(found.seeds) * len(found.variants)
    for run in found.runs[: 2 * len(found.variants)]:
        controls = {"random", "length_matched"} if "kernel" in run.config.select.methods else {"random"}
        assert controls <= set(run.config.select.methods)
        assert run.config.evaluate.files and "loss" in run.config.evaluate.metrics
        if run.after is not None and run.config.select.methods == found.run(run.after).config.select.methods:
            pair = (run.config, found.run(run.after).config)
            same = len({(c.data.domain, c.data.domain_limit, c.warmup.max_steps) for c in pair}) == 1
            same = same and "warmup" in PIPELINE.of(run.config)
            assert ("warmup" in shared_stages(found, run)) == same
            assert "{domain}" not in json.dumps(run.tree)
    for part in queue.jobs_of(found, found.runs[:1], None)[1:]:
        assert part.name.startswith("worth/")


def test_results_of_other_settings_are_missing(experiment: Experiment, tmp_path: Path) -> None:
    """A run that fails because its settings were changed leaves the results of the old ones in its folder."""
    for run in experiment.runs:
        made_up(run)
        mark = queue.mark_path(experiment.out, run.name)
        write_json(make_folder(mark.parent) / mark.name, {"config": run.fingerprint, "until": None})
    assert done_runs(experiment) == list(experiment.runs)
    changed = read_experiment(written(tmp_path, overrides={"finetune.max_steps": 5}))
    assert changed.out == experiment.out and done_runs(changed) == []


def test_the_dry_run_names_what_each_variant_starts_from(experiment: Experiment, inputs_of_runs: None) -> None:
    lines = list(queue.dry_run(experiment, experiment.runs, None))
    for run, line in zip(experiment.runs, lines, strict=False):
        assert line.startswith(f"{run.name}  ")
        assert (f"(the others from {run.after})" in line) == (run.after is not None)


@pytest.mark.parametrize("options", [["--transfer"], ["--transfer", "--report", "report"]])
def test_a_comparison_that_cannot_be_is_said_before_the_queue_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["experiment.py", str(written(tmp_path)), *options])
    with pytest.raises(UserError, match="--transfer compares the scores of different models"):
        queue.main()
    assert not (tmp_path / "out").exists()


def test_nothing_finished_is_said(experiment: Experiment, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has selected yet"):
        write_results(experiment, tmp_path / "report")


def test_worth_and_transfer_are_tabulated(tmp_path: Path) -> None:
    model = str(tmp_path / "model")
    path = written(tmp_path, models={"a": model, "b": model}, variants={}, worth={"diagnose.worth_candidates": 16})
    experiment = read_experiment(path)
    for place, run in enumerate(experiment.runs):
        made_up(run)
        value = {"value": 0.5 + 0.1 * place, "low": 0.0, "high": 1.0}
        one = {"spearman": value, "lds": None, "precision": {"value": 0.25, "chance": 0.1, "top": 4}, "scored": 16}
        folder = make_folder(experiment.out / "worth" / run.name / "diagnose")
        write_json(folder / "worth.json", {"scores": {"kernel": one}})
    write_results(experiment, tmp_path / "report", transfer=True)
    assert json.loads((tmp_path / "report" / "results.json").read_text())["worth"] == []  # none has ended
    for run in experiment.runs:
        jobs = queue.jobs_of(experiment, [run], None)
        mark = queue.mark_path(experiment.out, jobs[-1].name)
        write_json(make_folder(mark.parent) / mark.name, jobs[-1].mark | ({"run": "another"} if run.seed else {}))
    write_results(experiment, tmp_path / "report", transfer=True)
    found = json.loads((tmp_path / "report" / "results.json").read_text())
    assert len(found["worth"]) == 4 and len(found["transfer"]) == 4
    assert all(row["spearman"] > 0.98 and row["examples"] == 30 for row in found["transfer"])
    text = (tmp_path / "report" / "results.md").read_text()
    assert "## What scores are worth, a" in text and "## Scores by a and by b, Spearman over the pool" in text
    assert (tmp_path / "report" / "a-worth-spearman.svg").exists()
    assert not (tmp_path / "report" / "a-worth-lds.svg").exists()  # no run has one
    (job,) = [j for j in queue.jobs_of(experiment, experiment.runs[:1], None) if j.name.startswith("worth/")]
    job.prepare()
    tree = json.loads(Path(job.command[1]).read_text())
    assert tree["diagnose"]["rankings"] == [str(experiment.runs[0].folder)] and job.after == ("a/one/seed-0",)
    from ntk_jax.engine.config import build
    from ntk_jax.pipelines.diagnose.config import DiagnoseConfig

    assert build(DiagnoseConfig, tree, "test").diagnose.worth_candidates == 16
    one_model = read_experiment(written(tmp_path))
    made_up(one_model.runs[0])
    with pytest.raises(UserError, match="the experiment has one"):
        write_results(one_model, tmp_path / "report", transfer=True)


def test_selections_alone_are_compared_before_anything_is_evaluated(tmp_path: Path) -> None:
    model = str(tmp_path / "model")
    experiment = read_experiment(written(tmp_path, models={"a": model, "b": model}, variants={}))
    for run in experiment.runs:
        made_up(run)
        (run.folder / "evaluate" / "manifest.json").unlink()  # as `--until select` leaves it
    write_results(experiment, tmp_path / "report", transfer=True)
    found = json.loads((tmp_path / "report" / "results.json").read_text())
    assert len(found["transfer"]) == 4 and found["runs"] == [] and found["estimates"] == []
    text = (tmp_path / "report" / "results.md").read_text()
    assert text.startswith("0 finished runs; 8 have selected; 8 are not finished: a/one/seed-0, ")
    assert text.partition("\n")[0].endswith("b/one/seed-1 and 2 more")
    assert "Spearman over the pool" in text and "## Useful among the selected, %, a" in text
    assert "| kernel | 75.0 | 75.0 | 75.0 |" in text, "values that are all the same have no interval"
    assert {(row["method"], row["useful_share"]) for row in found["picks"]} >= {("kernel", 0.75), ("random", 0.5)}


def test_a_variant_that_ranks_otherwise_is_compared_with_what_it_starts_from(tmp_path: Path) -> None:
    experiment = read_experiment(written(tmp_path))
    for run in experiment.runs:
        made_up(run)
    write_results(experiment, tmp_path / "report")
    found = json.loads((tmp_path / "report" / "results.json").read_text())["variants"]
    assert {row["variant"] for row in found} == {"other"}, "by_example selects nothing anew"
    scored = [row for row in found if row["spearman"] is not None]
    assert scored and all(row["spearman"] > 0.98 and row["shared"] == 1.0 for row in scored)
    assert all(row["useful_gain"] == 0.0 for row in scored)
    text = (tmp_path / "report" / "results.md").read_text()
    assert "## What other changes in the rankings, tiny" in text and "that the run without it selects too" in text
    assert "| kernel | 0.0 | 0.0 |" in text
    (experiment.runs[2].folder / "select" / "scores.npz").unlink()  # a run of methods that have none
    write_results(experiment, tmp_path / "report")
    assert len(json.loads((tmp_path / "report" / "results.json").read_text())["variants"]) == len(found) - 1


def test_a_variant_of_fewer_methods_has_their_arms(tmp_path: Path) -> None:
    variants = {"few": {"select.methods": ["random"]}, "own": {"select.methods": ["random"], "evaluate.arms": ["base"]}}
    arms = ["base", "domain", "kernel", "random", "file:more.jsonl"]
    found = read_experiment(written(tmp_path, variants=variants), [f"--evaluate.arms={arms}"])
    base, few, own = found.runs[:3]
    assert base.config.evaluate.arms == tuple(arms) and own.config.evaluate.arms == ("base",)
    assert few.config.evaluate.arms == ("base", "domain", "random", "file:more.jsonl")


def test_a_whole_name_a_pattern_or_a_part_of_names_says_which_runs(
    experiment: Experiment, tmp_path: Path, inputs_of_runs: None, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    for only, count in (
        ("tiny/one/seed-0", 1),
        ("one/seed-0", 3),
        ("tiny/one/seed-0+other", 1),
        ("one/seed-[01]", 2),
        ("one/seed-[01]*", 6),
        ("one/*", 6),
        ("+other", 4),
    ):
        monkeypatch.setattr(sys, "argv", ["experiment.py", str(written(tmp_path)), "--only", only, "--dry-run"])
        queue.main()
        assert f"\n{count} runs, " in capsys.readouterr().out


def test_answers_change_places_and_nothing_else_does() -> None:
    records = [{"id": f"r{n}", "prompt": f"p{n}", "response": f"a{n}", "choices": [f"a{n}", "b"], "answer": 0}
               for n in range(20)]  # fmt: skip
    records[3] = {"id": "r3", "prompt": "p3", "response": "a3"}
    found = shuffled(records, 0)
    assert [(r["id"], r["prompt"]) for r in found] == [(r["id"], r["prompt"]) for r in records]
    assert sorted(r["response"] for r in found) == sorted(r["response"] for r in records) and found != records
    assert all(r["choices"][0] == r["response"] for r in found if "choices" in r)
    assert sum("choices" in r for r in found) == 19 and shuffled(records, 0) == found != shuffled(records, 1)
    few = [{"id": f"f{n}", "prompt": "p", "response": "ab"[n % 2]} for n in range(30)]
    assert not any(a["response"] == b["response"] for a, b in zip(few, shuffled(few, 0), strict=True))
    assert not any(a["response"] == b["response"] for a, b in zip(records, found, strict=True))
    with pytest.raises(UserError, match="all answers are the same"):
        shuffled(few[:1], 0)
    with pytest.raises(UserError, match="a record is a conversation"):
        shuffled([{"id": "m", "messages": []}], 0)


def test_means_over_runs_have_t_intervals() -> None:
    rows = [{"name": "a", "value": float(n)} for n in range(11)] + [
        {"name": "b", "value": 9.0},
        {"name": "c", "value": None},
    ]
    found = over_runs(rows, "name", "value")
    assert list(found) == ["b", "a"] and found["b"]["low"] is None
    assert found["a"]["high"] - found["a"]["value"] == pytest.approx(2.228, abs=1e-3)


def test_the_frontier_is_what_nothing_cheaper_reaches() -> None:
    points = [("random", 0.0, 0.0), ("text", 0.0, 1.0), ("dear", 5.0, 0.5), ("good", 4.0, 2.0), ("same", 6.0, 2.0)]
    assert frontier(points) == {"text", "good"}


# ---------------------------------------------------------------------------------------------------------------
# The queue


def job(tmp_path: Path, name: str, code: str, *after: str) -> queue.Job:
    return queue.Job(name, (code,), after, lambda: None, {"config": code, "until": None})


def test_failures_are_reported_and_the_queue_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(out: Path, one: queue.Job) -> subprocess.Popen[bytes]:
        make_folder(queue.log_path(out, one.name).parent)
        with queue.log_path(out, one.name).open("ab") as log:
            log.write(queue.START.encode() + b"x\n")
            log.flush()
            return subprocess.Popen(["bash", "-c", one.command[0]], stdout=log, stderr=subprocess.STDOUT)

    monkeypatch.setattr(queue, "_start", start)
    bad = "echo; echo 'ntk-jax: error: no such file'; echo more; exit 2"
    jobs = [
        job(tmp_path, "m/bad", bad),
        job(tmp_path, "m/bad+variant", "echo no", "m/bad"),
        job(tmp_path, "m/good", "true"),
        job(tmp_path, "m/good+variant", f"test -e {tmp_path}/done/m/good.json", "m/good"),
    ]
    failed = queue.work(tmp_path, jobs, 3)
    assert failed["m/bad"].startswith("no such file (exit 2") and set(failed) == {"m/bad", "m/bad+variant"}
    assert failed["m/bad+variant"] == "not started, because m/bad failed"
    assert [queue.finished(tmp_path, one) for one in jobs] == [False, False, True, True]
    changed = job(tmp_path, "m/good", "true ")
    assert not queue.finished(tmp_path, changed)
    silent = queue.work(tmp_path, [job(tmp_path, "m/bad", "kill -9 $$")], 1)  # not the line of the start before
    assert silent["m/bad"].startswith("it said nothing (exit -9")


def test_together_in_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a command prints is in its log and not on the screen of the queue; Ctrl-C ends the queue."""

    def main(command: tuple[str, ...]) -> int:
        print("said", command[0])
        if command[0] == "bad":
            print("ntk-jax: error: no such file", file=sys.stderr)
        return {"bad": 2, "stopped": queue.INTERRUPTED}.get(command[0], 0)

    monkeypatch.setattr(queue.cli, "main", main)
    names = (
        ("m/bad", "bad", ()),
        ("m/bad+v", "no", ("m/bad",)),
        ("m/good", "good", ()),
        ("m/good+v", "good", ("m/good",)),
    )
    jobs = [job(tmp_path, name, text, *after) for name, text, after in names]
    failed = queue.work_here(tmp_path, jobs)
    assert failed["m/bad"].startswith("no such file (exit 2") and set(failed) == {"m/bad", "m/bad+v"}
    assert [queue.finished(tmp_path, one) for one in jobs] == [False, False, True, True]
    assert queue.log_path(tmp_path, "m/good").read_text() == f"{queue.START}good\nsaid good\n"
    with pytest.raises(KeyboardInterrupt):
        queue.work_here(tmp_path, [job(tmp_path, "m/stopped", "stopped")])


def test_finished_until_a_stage_is_not_finished(tmp_path: Path) -> None:
    short = queue.Job("r", ("x",), (), lambda: None, {"config": "c", "until": "select"})
    long = queue.Job("r", ("x",), (), lambda: None, {"config": "c", "until": None})
    for there, asked, expected in ((short, short, True), (short, long, False), (long, short, True), (long, long, True)):
        make_folder(queue.mark_path(tmp_path, "r").parent)
        write_json(queue.mark_path(tmp_path, "r"), there.mark)
        assert queue.finished(tmp_path, asked) is expected


def test_changed_data_files_are_not_finished(tmp_path: Path) -> None:
    """By size and time of change, of files, folders and patterns; nothing else is looked at."""
    write_inputs(tmp_path)
    more = tmp_path / "more"
    (more / "deep").mkdir(parents=True)
    for name in ("a.jsonl", "deep/b.jsonl"):
        (more / name).write_text((tmp_path / "pool.jsonl").read_text())
    data = {"data.pool": [str(tmp_path / "po*.jsonl"), str(more), "builtin:pool"]}
    experiment = read_experiment(written(tmp_path, overrides=data))
    (one,) = queue.jobs_of(experiment, experiment.runs[:1], None)
    names = {str(Path(path).relative_to(tmp_path)) for path in one.mark["data"]}
    assert names == {"domain.jsonl", "pool.jsonl", "test.jsonl", "more/a.jsonl", "more/deep/b.jsonl"}
    mark = queue.mark_path(experiment.out, one.name)
    write_json(make_folder(mark.parent) / mark.name, one.mark)

    def is_finished() -> bool:
        return queue.finished(experiment.out, queue.jobs_of(experiment, experiment.runs[:1], None)[0])

    assert is_finished()
    made_up(experiment.runs[0])
    assert experiment.runs[0] in done_runs(experiment)
    for path in (tmp_path / "test.jsonl", more / "deep/b.jsonl"):
        text = path.read_text()
        path.write_text(text + "\n")
        assert not is_finished() and experiment.runs[0] not in done_runs(experiment)
        write_json(mark, queue.jobs_of(experiment, experiment.runs[:1], None)[0].mark)
        assert is_finished()


def script(path: Path, *options: str) -> list[str]:
    return [sys.executable, str(SCRIPTS / "experiment.py"), str(path), *options]


@pytest.mark.slow
def test_a_queue_that_is_killed_goes_on(tmp_path: Path) -> None:
    """Two seeds × two arms and a variant on a tiny model; the first start is killed, what fails is reported."""
    write_inputs(tmp_path)
    path = written(
        tmp_path,
        domains={"one": {}, "lost": {"evaluate.arms": ["domain", f"file:{tmp_path}/absent.jsonl"]}},
        methods=["random"],
        arms=["domain", "random"],
        overrides={"evaluate.metrics": ["accuracy", "loss"], "report.examples": 0},
        variants={"by_example": {"finetune.loss": "example_mean"}},
    )
    dry = subprocess.run(script(path, "--dry-run"), capture_output=True, text=True, timeout=300)
    assert "tiny/one/seed-0+by_example" in dry.stdout and "finetune, evaluate (the others from tiny/one/" in dry.stdout
    assert not (tmp_path / "out").exists() and dry.returncode == 0
    with (tmp_path / "first.log").open("w") as log:
        process = subprocess.Popen(script(path, "--only", "one/*"), stdout=log)
    while "start tiny/one/seed-0+" not in (tmp_path / "first.log").read_text():
        assert process.poll() is None, (tmp_path / "first.log").read_text()
        time.sleep(0.2)
    time.sleep(2)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    again = subprocess.run(
        script(path, "--only", "seed-[01]*", "--jobs", "2", "--report", str(tmp_path / "report")),
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert "8 in all, 1 of them finished" in again.stdout and "start tiny/one/seed-0\n" not in again.stdout
    assert again.returncode == 1 and again.stderr.count("FAILED tiny/lost/") == 4, again.stderr
    assert "absent.jsonl" in again.stderr
    found = json.loads((tmp_path / "report" / "results.json").read_text())
    assert len(found["runs"]) == 4 and {row["arm"] for row in found["rows"]} == {"domain", "random"}
    assert {one["runs"] for one in found["estimates"]} == {2}
    assert all(row["accuracy"] and row["loss"] for row in found["rows"])  # both of a file whose records have choices
    variant = tmp_path / "out" / "runs" / "tiny" / "one" / "seed-0+by_example"
    same = [folder / "select" / "random.jsonl" for folder in (variant, variant.with_name("seed-0"))]
    assert same[0].read_bytes() == same[1].read_bytes()
