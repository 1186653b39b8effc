"""What scores are worth, in a diagnosis: what it writes, runs that are compared, resume, the report, mistakes."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.stats import spearmanr
from test_diagnose import SMALL, config_of, diagnosed, load
from tiny_run import quiet, run, tiny_run_config, write_inputs

from ntk_jax.errors import UserError
from ntk_jax.pipelines.common.arrays import load_arrays
from ntk_jax.pipelines.common.rankings import read_rankings
from ntk_jax.pipelines.diagnose import worth as module
from ntk_jax.pipelines.diagnose.config import DiagnoseSection
from ntk_jax.pipelines.diagnose.figures_worth import worth_figures, worth_lines, worth_table
from ntk_jax.pipelines.diagnose.report import terminal
from ntk_jax.pipelines.diagnose.worth import check_worth
from ntk_jax.training import metagradient as metagradients

WORTH = {
    **SMALL, "trajectories": 1, "checkpoints": 1, "groups": 0, "regression": False,
    "worth_candidates": 12, "worth_domain": 3, "worth_batch": 4, "worth_subsets": 6, "worth_top": 4,
}  # fmt: skip


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worth")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def ranked(inputs):
    """A run whose methods have scores, but for random."""
    return run(tiny_run_config(inputs, "ranked", select={"methods": ["kernel", "bm25", "random"]}), until="select")


@pytest.fixture(scope="module")
def settings(ranked):
    return {**WORTH, "rankings": [str(ranked)]}


@pytest.fixture(scope="module")
def finished(inputs, settings):
    return diagnosed(inputs, "whole", diagnose=settings)


def test_a_run_keeps_the_scores_of_all(ranked):
    stored = load_arrays(ranked / "select/scores.npz")
    lines = (ranked.parent / "pool.jsonl").read_text().splitlines()
    assert [name.decode() for name in stored["id"]] == [json.loads(line)["id"] for line in lines]
    assert "scores.npz" in (ranked / "select/SHA256SUMS").read_text()
    rankings = read_rankings(str(ranked))
    assert set(rankings.scores) == {"kernel", "bm25"} and set(rankings.selected) == {"kernel", "bm25", "random"}
    for method in ("kernel", "bm25"):
        chosen = [json.loads(line) for line in (ranked / f"select/{method}.jsonl").read_text().splitlines()]
        assert rankings.selected[method] == [record["id"] for record in chosen]
        found = rankings.of([record["id"] for record in chosen])[method]
        np.testing.assert_allclose(found, [record["score"] for record in chosen], rtol=1e-6)
    assert np.isnan(rankings.of(["nobody"])["kernel"]).all()


def test_what_is_written(finished, ranked):
    worth = load(finished, "worth")
    assert set(worth["scores"]) == {*("kernel", "bm25", "sum_logits, here", "cross_entropy, here", "response length")}
    assert len(worth["candidates"]) == worth["scores"]["kernel"]["scored"] <= 12
    assert worth["held_out"]["source"] == "evaluate.files" and worth["fixed"] == 3
    assert worth["scores"]["kernel"]["run"] == str(ranked) and worth["scores"]["response length"]["run"] is None
    values = np.array([one["metagradient"] for one in worth["candidates"]])
    assert worth["metagradient"]["helpful"] == np.mean(values < 0) and (values != 0).any()
    ids = [one["id"] for one in worth["candidates"]]
    expected = spearmanr(read_rankings(str(ranked)).of(ids)["kernel"], -values).statistic
    assert worth["scores"]["kernel"]["spearman"]["value"] == pytest.approx(expected)
    assert worth["scores"]["kernel"]["lds"]["value"] is not None and worth["metagradient"]["lds"]["value"] is not None
    assert worth["subsets"] == 6 and worth["subset_size"] == len(ids) // 2
    assert len(list((finished / "diagnose/worth").glob("subsets-*.npz"))) == 2


def test_a_killed_diagnosis_goes_on_to_the_same_numbers(inputs, settings, finished, monkeypatch):
    measure = module.subset_losses

    def dies(*args, progress, **options):
        def said(done, total):
            if done == 5 and stop:
                raise KeyboardInterrupt
            trained.append(done)

        return measure(*args, progress=said, **options)

    stop, trained = True, []
    monkeypatch.setattr(module, "subset_losses", dies)
    with pytest.raises(KeyboardInterrupt):
        diagnosed(inputs, "killed", diagnose=settings)
    home = inputs / "killed/diagnose/worth"
    kept = {path: path.read_bytes() for path in home.iterdir()}
    assert {path.name for path in kept} == {"metagradient.npz", "subsets-000000-000004.npz"}
    monkeypatch.setattr(module, "metagradient", None)  # not computed again
    stop = False
    diagnosed(inputs, "killed", diagnose=settings)
    assert trained == [1, 2, 3, 4, 4, 5, 6] and all(path.read_bytes() == old for path, old in kept.items())
    assert load(inputs / "killed", "worth") == load(finished, "worth")


def test_a_metagradient_killed_on_its_way_goes_on(inputs, settings, finished, monkeypatch):
    """What is left of it is less than all, ends in the same numbers, and leaves nothing behind."""
    compute, calls, left = module.metagradient, [], []

    def dies(*args, progress, **options):
        def said(done, total, note):
            calls.append(total - done)
            if len(calls) == stop:
                raise KeyboardInterrupt

        return compute(*args, progress=said, **options)

    options = {**settings, "worth_subsets": 0}
    stop = 7  # steps there and back are 8
    monkeypatch.setattr(module, "metagradient", dies)
    with pytest.raises(KeyboardInterrupt):
        diagnosed(inputs, "way", diagnose=options)
    home = inputs / "way/diagnose/worth"
    assert {path.name for path in (home / "metagradient").iterdir()} >= {"first-000000.npz", "back.npz"}
    stop, before = -1, len(calls)
    diagnosed(inputs, "way", diagnose=options)
    left = len(calls) - before
    assert 0 < left < before, "of what was done little is done again"
    assert not (home / "metagradient").exists()
    found, whole = (load_arrays(place / "metagradient.npz") for place in (home, finished / "diagnose/worth"))
    assert all((found[name] == whole[name]).all() for name in whole)


def test_what_it_costs_is_said_before_anything_is_trained(inputs, ranked, settings, finished):
    """And what a run knows nothing of; too little memory is refused there."""
    said = []

    def listening(stage, total, unit):
        return lambda done, total=None, note="": said.append((stage, note))

    data = {"domain": [str(inputs / "domain.jsonl")], "pool": [str(inputs / "pool.jsonl")], "pool_limit": 20}
    few = run(tiny_run_config(inputs, "few-said", select={"methods": ["bm25"]}, data=data, seed=9), until="select")
    config = config_of(inputs, "costs", diagnose={**settings, "rankings": [str(ranked), str(few)]})
    with pytest.MonkeyPatch.context() as patch, pytest.raises(UserError, match="GB a device.*worth_candidates=0"):
        patch.setattr(metagradients, "memory_limit", lambda count: 1000)
        run(config, pipeline="diagnose", progress=listening)
    assert not (inputs / "costs/diagnose").exists(), "before any fine-tuning"
    said.clear()
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("ntk_jax.pipelines.diagnose.diagnose._trained", interrupt)
        run(config, pipeline="diagnose", progress=listening)
    lines = [note for stage, note in said if stage == "worth of scores"]
    assert (
        len(lines) == 2
        and f"{few} has no score of " in lines[0]
        and " candidates (another data.pool_limit?)" in lines[0]
    )
    match = re.match(
        r"about ([\d.]+) MFLOP for the metagradient of (\d+) steps and (.*) for 6 subsets; .* a device", lines[1]
    )
    assert match, lines[1]
    stored = load_arrays(finished / "diagnose/worth/metagradient.npz")
    assert float(match[1]) * 1e6 == pytest.approx(float(stored["flops"]), rel=0.01)
    assert int(match[2]) == len(stored["losses"])


def interrupt(*_):
    raise KeyboardInterrupt


def test_the_report_and_the_terminal_say_it(finished):
    text = (finished / "report/index.html").read_text(encoding="utf8")
    assert "What scores are worth" in text and "Which score ranks examples by their worth?" in text
    assert {"worth_metagradient", "worth_lds"} <= {path.stem for path in (finished / "diagnose/figures").iterdir()}
    said = terminal(finished)
    assert "Spearman, metagradient" in said and "bm25" in said and "nan" not in said


def test_candidates_out_of_what_runs_selected(inputs, settings, ranked):
    options = {**settings, "worth_from": "selected", "worth_candidates": 9, "worth_subsets": 0, "worth_top": None}
    found = diagnosed(inputs, "selected", diagnose={**options, "worth_domain": 0})
    worth = load(found, "worth")
    union = {name for ids in read_rankings(str(ranked)).selected.values() for name in ids}
    assert {one["id"] for one in worth["candidates"]} <= union
    assert worth["subsets"] == 0 and worth["scores"]["kernel"]["lds"] is None and worth["fixed"] == 0
    assert "LDS" in "\n".join(worth_lines({"worth": worth})) and len(worth_figures({"worth": worth})) == 1


def test_a_fine_tuning_from_a_fresh_adapter(inputs, settings, finished):
    """The same candidates with the same scores, which are the warm adapter's; another worth."""
    options = {**settings, "worth_start": "fresh", "worth_subsets": 0}
    fresh, warm = load(diagnosed(inputs, "fresh", diagnose=options), "worth"), load(finished, "worth")
    assert fresh["start"] == "fresh" and warm["start"] == "warm"
    assert fresh["metagradient"]["loss_before"] > warm["metagradient"]["loss_before"]  # B = 0: the base model
    assert [one["id"] for one in fresh["candidates"]] == [one["id"] for one in warm["candidates"]]
    assert fresh["scores"].keys() == warm["scores"].keys()
    values = [[one["metagradient"] for one in worth["candidates"]] for worth in (fresh, warm)]
    assert np.isfinite(values).all() and (np.abs(np.subtract(*values)) > 0).all()


def test_without_runs_and_without_evaluation_files(inputs):
    """Held out are domain examples; none of them is trained on."""
    options = {**WORTH, "held_out": 4, "worth_domain": 100, "worth_subsets": 0}
    worth = load(diagnosed(inputs, "alone", diagnose=options, evaluate={"files": []}), "worth")
    assert set(worth["scores"]) == {"sum_logits", "cross_entropy", "response length"}
    assert worth["held_out"] == {"source": "the domain", "examples": 4} and worth["fixed"] == 4


def test_two_runs_with_one_method(ranked, inputs):
    twin = inputs / "other/ranked"
    shutil.copytree(ranked, twin)
    third = inputs / "third"
    shutil.copytree(ranked, third)
    rankings = [read_rankings(str(place)) for place in (ranked, twin, third)]
    records = [{"id": name} for name in list(rankings[0].place)[:8]]
    row = SimpleNamespace(span=np.ones(3, bool))
    encoder = SimpleNamespace(encode=lambda records, span: SimpleNamespace(rows=[]))
    fake = SimpleNamespace(
        encoder=encoder, config=SimpleNamespace(score=SimpleNamespace(span="all"), diagnose=DiagnoseSection())
    )
    objectives, module.objectives_of = module.objectives_of, lambda run: []
    try:
        places, scores = module._scores(fake, None, records, [row] * 8, rankings)
    finally:
        module.objectives_of = objectives
    assert places["kernel, ranked"] == str(ranked) and places["kernel, third"] == str(third)
    assert places[f"kernel, {twin}"] == str(twin) and len(scores) == 7


def test_scores_that_a_run_lacks_are_left_out_and_counted(inputs):
    """A run over a part of the pool: compared on what it has."""
    data = {"domain": [str(inputs / "domain.jsonl")], "pool": [str(inputs / "pool.jsonl")], "pool_limit": 20}
    few = run(tiny_run_config(inputs, "few", select={"methods": ["bm25"]}, data=data, seed=9), until="select")
    options = {**WORTH, "rankings": [str(few)], "worth_subsets": 4}
    worth = load(diagnosed(inputs, "lacking", diagnose=options), "worth")
    have = set(read_rankings(str(few)).place)
    known = [one for one in worth["candidates"] if one["id"] in have]
    found = worth["scores"]["bm25"]
    assert 0 < found["scored"] == len(known) < len(worth["candidates"])
    assert found["precision"]["chance"] is None or found["precision"]["chance"] == min(4, len(known)) / len(known)
    table = worth_table({"worth": worth})
    assert next(row for row in table.rows if row[0] == "bm25")[1] == str(len(known))


def test_a_score_of_which_nothing_is_known_has_no_figure():
    nothing = {"value": None, "low": None, "high": None}
    found = {"run": "x", "scored": 3, "spearman": nothing, "precision": {**nothing, "chance": None}, "lds": None}
    worth = {"scores": {"a": found}, "metagradient": {"lds": None}, "candidates": [], "subsets": 0, "top": 4}
    assert worth_table({"worth": worth}).rows == [["a", "3", "–", "–", "–", "–"]]
    assert worth_figures({"worth": worth}) == []


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.1, 0.5, "is above zero"), (-0.1, 0.5, "holds zero"), (-0.5, -0.1, "is below zero")]
)
def test_the_verdict_on_the_best_score(finished, low, high, said):
    worth = load(finished, "worth")
    worth["scores"] = {"kernel": {**worth["scores"]["kernel"], "spearman": {"value": low, "low": low, "high": high}}}
    shown = next(one for one in worth_figures({"worth": worth}) if one.key == "worth_metagradient")
    assert f"its interval {said};" in shown.found
    few = {**worth["scores"]["kernel"], "spearman": {"value": 1.0, "low": None, "high": None}}
    both = {"few": few, **worth["scores"]}
    shown = next(one for one in worth_figures({"worth": {**worth, "scores": both}}) if one.key == "worth_metagradient")
    assert "The largest is kernel at" in shown.found
    shown = next(
        one for one in worth_figures({"worth": {**worth, "scores": {"few": few}}}) if one.key == "worth_metagradient"
    )
    assert "few at +1.00, of too few candidates for an interval" in shown.found


def test_runs_that_cannot_be_compared(inputs, ranked, tmp_path):
    with pytest.raises(UserError, match="is no folder; give the run directory"):
        read_rankings(str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="holds no selection"):
        read_rankings(str(tmp_path))
    old = tmp_path / "old"
    shutil.copytree(ranked, old)
    (old / "select/scores.npz").unlink()
    with pytest.raises(UserError, match="scores"):
        read_rankings(str(old))
    shutil.rmtree(old / "select")
    (old / "select").mkdir()
    with pytest.raises(UserError, match="stage select is not done"):
        read_rankings(str(old))
    chance = run(tiny_run_config(inputs, "chance", select={"methods": ["random"]}), until="select")
    with pytest.raises(UserError, match=r"none of its methods \(random\) has scores"):
        read_rankings(str(chance))
    with pytest.raises(UserError, match="is no folder"):
        diagnosed(inputs, "wrong", diagnose={**WORTH, "rankings": [str(tmp_path / "nothing")]})


def test_a_run_over_another_pool(inputs, ranked, tmp_path):
    lines = [json.loads(line) for line in (inputs / "pool.jsonl").read_text().splitlines()]
    other = tmp_path / "pool.jsonl"
    other.write_text("".join(json.dumps({**line, "id": f"other {line['id']}"}) + "\n" for line in lines))
    config = config_of(
        inputs, "another", diagnose={**WORTH, "rankings": [str(ranked)]},
        data={"domain": [str(inputs / "domain.jsonl")], "pool": [str(other)]},
    )  # fmt: skip
    with pytest.raises(UserError, match="knows none of the .* candidates by their ids"):
        run(config, pipeline="diagnose", progress=quiet)
    assert not (inputs / "another/diagnose").exists(), "said before any fine-tuning"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rankings": ("a",), "worth_candidates": 0}, "worth_candidates, which is 0"),
        ({"worth_from": "selected"}, "name the runs"),
        ({"worth_candidates": 5}, "give at least 8"),
        ({"worth_candidates": 20, "worth_top": 21}, "worth_top = 21 is larger"),
        ({"worth_candidates": 20, "worth_subset_size": 20}, "worth_subset_size = 20 is not below"),
        ({"rankings": ("a", "a")}, "names a run twice"),
    ],
)
def test_settings_that_cannot_be(inputs, changes, message):
    config = config_of(inputs, "settings", diagnose=SMALL)
    section = dataclasses.replace(config.diagnose, **{"worth_candidates": 12, **changes})
    with pytest.raises(UserError, match=message):
        check_worth(dataclasses.replace(config, diagnose=section))
