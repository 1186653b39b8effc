"""Whole runs on a tiny model: what is written, going on after an interruption, options, and mistakes."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_run import run, tiny_run_config, write_config, write_inputs

from ntk_jax import cli
from ntk_jax.engine import plan
from ntk_jax.engine.estimate import estimate_run
from ntk_jax.engine.shards import Shard
from ntk_jax.errors import UserError
from ntk_jax.kernels import rows
from ntk_jax.models.attention_kernel import Kernel
from ntk_jax.pipelines.select import score
from ntk_jax.pipelines.select.stages import PIPELINE
from ntk_jax.storage import atomic
from ntk_jax.storage.arrays import open_store, read
from ntk_jax.storage.run import lock


def fingerprint(config, stage):
    """What decides a stage's results, what only decides how they are shown, and what is kept beside them."""
    hashes = plan._input_hashes(PIPELINE, config, tuple(stage.name for stage in PIPELINE.stages))
    return plan._sign(PIPELINE, config, stage, hashes)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def finished(inputs) -> Path:
    return run(tiny_run_config(inputs, "finished"))


def results(folder: Path) -> dict[str, str]:
    """Hashes of what must be the same however often a run was stopped."""
    names = ["select/selection.jsonl", "warmup/adapter/adapter_model.safetensors"]
    names += [f"finetune/{arm}/adapter/adapter_model.safetensors" for arm in ("domain", "random", "kernel")]
    names += ["evaluate/results.json", "gradient/direction.safetensors"]
    return {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in names}


def test_a_run_writes_everything(finished, inputs):
    selection = [json.loads(line) for line in (finished / "select" / "selection.jsonl").read_text().splitlines()]
    assert [r["rank"] for r in selection] == [1, 2, 3, 4, 5, 6]
    assert all(a["score"] >= b["score"] for a, b in zip(selection, selection[1:], strict=False))
    assert {r["method"] for r in selection} == {"ntk:sum_logits"}

    data = json.loads((finished / "score" / "data.json").read_text())
    assert (data["records"], data["kept"], data["dropped"]) == (43, 40, {"too long": 3})
    summary = json.loads((finished / "select" / "summary.json").read_text())
    assert sum(f["pool"] for f in summary["families"]) == 40
    kernel = summary["by_method"]["kernel"]
    assert sum(f["selected"]["kernel"] for f in summary["families"]) == 6 == sum(kernel["histogram"]["selected"])
    assert summary["useful_share_pool"] == 0.5 and (summary["pool_records"], summary["pool_total"]) == (43, 43)
    ball = next(f for f in summary["families"] if f["name"] == "ball")
    assert kernel["useful_share"] == ball["selected"]["kernel"] / 6
    first = (finished / "select" / "selection.jsonl").read_bytes()
    assert first == (finished / "select" / "kernel.jsonl").read_bytes()

    table = json.loads((finished / "evaluate" / "results.json").read_text())
    assert [arm["name"] for arm in table["arms"]] == ["base", "domain", "random", "kernel"]
    steps = {arm["name"]: arm["steps"] for arm in table["arms"]}
    assert steps["domain"] == steps["random"] == steps["kernel"] == 3 and steps["base"] == 0
    assert table["tasks"][0]["questions"] == 12
    examples = json.loads((finished / "align" / "examples.json").read_text())
    assert len(examples) == 2 and examples[0]["aligned"]["id"].startswith("box-")
    assert "<html" in (finished / "report" / "index.html").read_text()
    provenance = json.loads((finished / "provenance.json").read_text())
    assert set(provenance["hashes"]) == {"model", "domain", "pool", "evaluate"}
    used = PIPELINE.of(tiny_run_config(inputs))
    for stage in PIPELINE.stages:  # other ways to a selection leave nothing behind
        assert (finished / stage.name / "manifest.json").exists() == (stage.name in used)
    assert used == ("warmup", "gradient", "score", "select", "align", "finetune", "evaluate")
    written = json.loads((finished / "plan.json").read_text())["pipelines"]["select"]
    assert tuple(stage["name"] for stage in written["stages"]) == used
    for stage in used:  # all but the sorting say how long they took
        seconds = json.loads((finished / stage / "summary.json").read_text()).get("seconds", 1) if stage not in (
            "align", "finetune") else 1  # fmt: skip
        assert seconds > 0


def test_scores_in_the_store_are_those_of_the_api(finished, inputs):
    """The pipeline's blocks, sampling and store add nothing to what the Python API computes."""
    import ntk_jax as nj

    model = nj.load_model(str(inputs / "model"), adapter=str(finished / "warmup" / "adapter"))
    direction = nj.mean_gradient(model, str(inputs / "domain.jsonl"))
    pool = [json.loads(line) for line in (inputs / "pool.jsonl").read_text().splitlines()][:40]
    expected = nj.directional_scores(model, pool, direction)
    stored = read(open_store(finished / "score" / "scores.zarr"), "score")[:40]
    np.testing.assert_allclose(stored, expected, rtol=1e-4, atol=1e-5 * np.abs(expected).max())


def test_the_aligned_example_has_the_largest_kernel(finished, inputs):
    import ntk_jax as nj

    model = nj.load_model(str(inputs / "model"), adapter=str(finished / "warmup" / "adapter"))
    shown = json.loads((finished / "align" / "examples.json").read_text())[1]
    record = next(
        r for r in map(json.loads, (inputs / "pool.jsonl").read_text().splitlines()) if r["id"] == shown["id"]
    )
    domain = [json.loads(line) for line in (inputs / "domain.jsonl").read_text().splitlines()]
    kernel = nj.directional_scores(model, domain, nj.mean_gradient(model, [record]))
    assert domain[int(kernel.argmax())]["id"] == shown["aligned"]["id"]
    np.testing.assert_allclose(kernel.max(), shown["aligned"]["kernel"], rtol=1e-4)


def test_a_finished_run_is_not_done_again(finished, inputs):
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}
    run(tiny_run_config(inputs, "finished"))
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("*.safetensors")}


@pytest.mark.parametrize("fatal", [3, 34, 57])
def test_an_interrupted_run_ends_in_the_same_bytes(finished, inputs, monkeypatch, fatal):
    """The process dies at its n-th write; the same command goes on. (Real kills: test_kill.py, marked slow.)"""
    config = tiny_run_config(inputs, f"interrupted-{fatal}")
    real, count = os.replace, 0

    def dying(*args, **kwargs):
        nonlocal count
        count += 1
        if count == fatal:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(atomic.os, "replace", dying)
    with pytest.raises(KeyboardInterrupt):
        run(config)
    monkeypatch.setattr(atomic.os, "replace", real)
    assert results(run(config)) == results(finished)


def test_single_stages_make_the_same_run(finished, inputs):
    config = tiny_run_config(inputs, "stages")
    with pytest.raises(UserError, match="stage score needs stage warmup, which is not done in .*stages; run it first"):
        run(config, only="score")
    for stage in PIPELINE.of(config):
        run(config, only=stage)
    assert results(Path(config.out)) == results(finished)


def test_changed_settings_stop_with_the_key_named(finished, inputs):
    config = tiny_run_config(inputs, "finished", warmup={"learning_rate": 0.5})
    with pytest.raises(UserError, match=r"warmup\.learning_rate was 0\.01, is now 0\.5"):
        run(config)
    config = tiny_run_config(inputs, "finished", select={"count": 7})
    with pytest.raises(UserError, match=r"select\.count was 6, is now 7"):
        run(config)


def test_what_is_only_shown_is_shown_anew_and_makes_nothing_stale(finished, inputs):
    """report.* and the resamples decide what is shown: the stages that show it run again over what is there."""
    folder = Path(shutil.copytree(finished, inputs / "shown"))
    kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    kept |= {path: path.stat().st_mtime_ns for path in (folder / "evaluate" / "predictions").rglob("*")}
    sections = {"report": {"examples": 1, "useful": ["sums"]}, "evaluate": {"bootstrap": 7, "confidence": 0.5}}
    run(tiny_run_config(inputs, "shown", **sections))
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    assert len(json.loads((folder / "align" / "examples.json").read_text())) == 1
    assert json.loads((folder / "evaluate" / "results.json").read_text())["bootstrap"] == 7
    assert json.loads((folder / "select" / "summary.json").read_text())["useful"] == ["sums"]
    for stage in ("align", "evaluate", "select"):
        assert (folder / stage / "manifest.json").exists()


def test_a_part_of_a_run_is_refused_where_later_stages_were_made_otherwise(finished, inputs):
    """What is written of the plan must say how all results were made."""
    before = (finished / "plan.json").read_bytes()
    with pytest.raises(UserError, match=r"finetune was made from something else: finetune.max_steps was 3, is now 9"):
        run(tiny_run_config(inputs, "finished", finetune={"max_steps": 9}), until="warmup")
    assert (finished / "plan.json").read_bytes() == before


def test_what_is_corrected_goes_on_where_nothing_was_computed(inputs):
    """A stage that was refused after it had been opened leaves nothing that the corrected command could differ from."""
    fresh = {"warmup": {"max_steps": 0}}
    with pytest.raises(UserError, match="the LoRA adapter is fresh"):
        run(tiny_run_config(inputs, "corrected", **fresh), until="gradient")
    assert not (inputs / "corrected" / "gradient").exists()
    many = {"select": {"count": 42, "methods": ["random"]}}
    with pytest.raises(UserError, match=r"select.count = 42 is larger than the pool \(40 usable examples\)"):
        run(tiny_run_config(inputs, "many", **many), until="select")
    run(tiny_run_config(inputs, "many", select={"methods": ["random"]}), until="select")


def test_arms_are_added_without_training_the_others_again(inputs):
    folder = run(tiny_run_config(inputs, "arms", evaluate={"arms": ["base", "kernel"]}))
    kept = folder / "finetune" / "kernel" / "adapter" / "adapter_model.safetensors"
    before = kept.stat().st_mtime_ns
    run(tiny_run_config(inputs, "arms", evaluate={"arms": ["base", "domain", "random", "kernel"]}))
    names = [arm["name"] for arm in json.loads((folder / "evaluate" / "results.json").read_text())["arms"]]
    assert names == ["base", "domain", "random", "kernel"] and kept.stat().st_mtime_ns == before


def test_scores_do_not_depend_on_how_many_are_selected(inputs):
    """Votes as a ranker look at 4 N, scores at the whole pool."""
    sections = {"select": {"methods": ["votes", "kernel"]}}
    one = tiny_run_config(inputs, "n", **sections)
    other = tiny_run_config(inputs, "n", select={**sections["select"], "count": 7})
    assert fingerprint(one, "score") == fingerprint(other, "score")
    assert fingerprint(one, "preselect") != fingerprint(other, "preselect")


def test_options_of_methods_that_are_not_asked_for_make_nothing_stale(finished, inputs):
    run(tiny_run_config(inputs, "finished", select={"bm25": {"b": 0.5}}))
    config = tiny_run_config(inputs, "asked", select={"methods": ["bm25"]})
    run(config, until="select")
    with pytest.raises(UserError, match=r"select.bm25.b was 0.75, is now 0.5"):
        run(tiny_run_config(inputs, "asked", select={"methods": ["bm25"], "bm25": {"b": 0.5}}), until="select")


def test_another_key_for_families_needs_no_scores(inputs):
    """The codes in the store are of the old key, so the records are read once more."""
    folder = run(tiny_run_config(inputs, "families"), until="select")
    before = (folder / "score" / "manifest.json").stat().st_mtime_ns
    run(tiny_run_config(inputs, "families", report={"group_by": "response", "useful": []}), until="select")
    names = {f["name"] for f in json.loads((folder / "select" / "summary.json").read_text())["families"]}
    assert {"red", "green", "blue", "7"} <= names
    assert (folder / "score" / "manifest.json").stat().st_mtime_ns == before


def test_the_pool_is_parsed_three_times(inputs, monkeypatch):
    """Once whole, to check it, once to be scored, and once for the ids beside the scores; what is selected is found by
    its place."""
    from ntk_jax.data import files

    parsed, real = [], files._parse_line
    monkeypatch.setattr(files, "_parse_line", lambda path, *rest: (parsed.append(path.name), real(path, *rest))[1])
    run(tiny_run_config(inputs, "parsed"), until="select")
    # and the records of two selections of six, one to show, and the first one to recognise the format
    assert parsed.count("pool.jsonl") <= 3 * 43 + 12 + 1 + 8


def test_how_attention_is_computed_makes_scores_stale_and_no_gradient(inputs):
    """Scores of two kinds of attention differ by rounding, so one store holds only one kind."""
    configs = [tiny_run_config(inputs, "attention", score={"attention": name}) for name in ("xla", "pallas")]
    for stage, same in (("gradient", True), ("preselect", True), ("score", False), ("finetune", False)):
        one, other = (fingerprint(config, stage) for config in configs)
        assert (one == other) == same
    with pytest.raises(UserError, match="attention = pallas: its kernel is written for GPUs, and this is a cpu"):
        run(configs[1])
    assert not (Path(configs[1].out) / "warmup").exists()


def test_blocks_of_another_machine_are_merged_without_its_gpu(inputs, monkeypatch):
    config = tiny_run_config(inputs, "merged", score={"attention": "pallas"})
    for stage in ("warmup", "gradient"):
        run(config, only=stage)
    with monkeypatch.context() as gpu:
        for module in (rows, score):
            gpu.setattr(module, "forward_mode_of", lambda *_: Kernel(16, 16, interpret=True))
        run(config, only="score", shard=Shard(0, 1))
    run(config, only="score", merge=True)
    assert (Path(config.out) / "score" / "manifest.json").exists()


def test_a_run_directory_of_an_earlier_version_is_refused_in_one_line(inputs, capsys):
    folder = inputs / "old"
    (folder / "warmup").mkdir(parents=True)
    (folder / "config.yaml").write_text("seed: 0\n")
    old = {"schema": 2, "fingerprint": {}, "facts": {}}
    (folder / "warmup" / "manifest.json").write_text(json.dumps(old))
    with pytest.raises(UserError, match="was written in format 2, this version writes 3; give another folder"):
        run(tiny_run_config(inputs, "old"))
    config = write_config(inputs / "old", tiny_run_config(inputs, "old"))
    assert cli.main(["report", str(config)]) == 2
    assert re.fullmatch(r"ntk-jax: error: .*plan\.json.*\n", capsys.readouterr().err)


def test_votes_depend_on_the_number_to_select(inputs):
    """By default M = 4 N: another N must not find the candidates of the old one."""
    votes = {"preselect": {"method": "votes"}}
    folder = run(tiny_run_config(inputs, "default-votes", **votes), until="preselect")
    assert len(np.load(folder / "preselect" / "votes.npz")["candidates"]) == 24
    with pytest.raises(UserError, match=r"preselect\.keep was 24, is now 28"):
        run(tiny_run_config(inputs, "default-votes", select={"count": 7}, **votes), until="preselect")
    folder = run(tiny_run_config(inputs, "all-votes", select={"count": 15}, **votes), until="preselect")
    assert len(np.load(folder / "preselect" / "votes.npz")["candidates"]) == 40  # 4 N is more than there is


def test_a_refused_command_leaves_the_run_as_it_was(finished, inputs):
    def about() -> list[bytes]:
        return [(finished / name).read_bytes() for name in ("config.yaml", "provenance.json")]

    before = about()
    with pytest.raises(UserError, match="select.count"):
        run(tiny_run_config(inputs, "finished", select={"count": 7}))
    with pytest.raises(UserError, match="seed was 0, is now 5"):
        run(tiny_run_config(inputs, "finished", seed=5), until="warmup")
    assert about() == before


def test_provenance_says_what_computed_each_stage(finished, inputs):
    provenance = json.loads((finished / "provenance.json").read_text())
    assert list(provenance["stages"]) == list(PIPELINE.of(tiny_run_config(inputs)))
    assert all(len(environments) == 1 for environments in provenance["stages"].values())
    assert provenance["stages"]["score"][0]["versions"]["jax"] == jax.__version__


def test_a_second_process_is_refused(inputs, finished):
    with lock(finished), pytest.raises(UserError, match="process"):
        run(tiny_run_config(inputs, "finished"))


@pytest.mark.parametrize(
    "name, sections",
    [
        ("votes", {"preselect": {"method": "votes", "keep": 12, "neighbours": 5}}),
        ("probe", {"score": {"objective": "probe"}}),
        ("adam", {"score": {"objective": "cross_entropy", "direction": "adam"}}),
        ("sample", {"data": {"pool_limit": 25, "domain_limit": 5}, "score": {"span": "all"}}),
        ("pattern", {"score": {"parameters": "base/layers/o_proj/kernel"}}),
        ("no model", {"select": {"methods": ["bm25", "random"]}}),
        ("matched", {"select": {"methods": ["kernel", "length_matched"]}}),
        ("by votes", {"select": {"methods": ["votes", "kernel"]}}),
    ],
)
def test_options_run_to_a_selection(inputs, name, sections):
    folder = run(tiny_run_config(inputs, name, **sections), until="select")
    selection = [json.loads(line) for line in (folder / "select" / "selection.jsonl").read_text().splitlines()]
    assert len(selection) == 6
    if name == "votes":
        candidates = np.load(folder / "preselect" / "votes.npz")["candidates"]
        pool = [json.loads(line)["id"] for line in (inputs / "pool.jsonl").read_text().splitlines()]
        voted = {pool[i] for i in candidates}
        assert len(candidates) == 12 and {r["id"] for r in selection} <= voted
        control = [json.loads(line) for line in (folder / "select" / "random.jsonl").read_text().splitlines()]
        assert not {r["id"] for r in control} <= voted, "the control is drawn from the pool, not from the candidates"
        assert all(r["score"] is None for r in control), "a random draw has no score"
        summary = json.loads((folder / "select" / "summary.json").read_text())
        assert (summary["pool"], summary["scored"], sum(f["pool"] for f in summary["families"])) == (40, 12, 40)
        data = json.loads((folder / "preselect" / "data.json").read_text())
        assert (data["records"], data["kept"], data["dropped"]) == (43, 40, {"too long": 3})
    if name == "no model":
        assert not (folder / "warmup").exists() and selection[0]["method"] == "bm25"
        assert [r["source"] for r in selection] == ["ball"] * 6, "the domain asks for colours"
    if name == "matched":
        texts = [(folder / "select" / f"{m}.jsonl").read_text() for m in ("kernel", "length_matched")]
        one, other = (sorted(len(json.loads(line)["response"]) for line in text.splitlines()) for text in texts)
        assert sum(abs(a - b) for a, b in zip(one, other, strict=True)) <= 2, "as near as the pool allows"
    if name == "by votes":
        assert json.loads((folder / "preselect" / "summary.json").read_text())["cuts"] is False
        assert json.loads((folder / "score" / "summary.json").read_text())["scored"] == 40, "votes cut nothing here"
    if name == "sample":
        assert json.loads((folder / "score" / "data.json").read_text())["records"] == 25
        assert json.loads((folder / "gradient" / "summary.json").read_text())["examples"] == 5


def test_a_given_direction_is_used(inputs, finished):
    path = finished / "gradient" / "direction.safetensors"
    folder = run(tiny_run_config(inputs, "given", score={"direction": str(path)}), until="select")
    assert (folder / "select" / "selection.jsonl").read_bytes() == (
        finished / "select" / "selection.jsonl"
    ).read_bytes()


def test_one_and_eight_devices_select_the_same(inputs, finished):
    """The default mesh is all 8 simulated devices; here: one."""
    folder = run(tiny_run_config(inputs, "one-device", mesh={"data": 1}), until="select")
    ids = [
        [json.loads(line)["id"] for line in (place / "select" / "selection.jsonl").read_text().splitlines()]
        for place in (folder, finished)
    ]
    assert ids[0] == ids[1]
    one, eight = (read(open_store(place / "score" / "scores.zarr"), "score") for place in (folder, finished))
    np.testing.assert_allclose(one, eight, rtol=1e-4, atol=1e-5 * np.abs(one).max())


class TestMistakes:
    def refused(self, inputs, message, out="mistake", until="select", **sections):
        """As a user sees it: exit code 2 and one clear line."""
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()) as shown:
            config = write_config(Path(folder), tiny_run_config(inputs, out, **sections))
            assert cli.main(["run", str(config), "--until", until]) == 2
        last = shown.getvalue().splitlines()[-1]
        assert last.startswith("ntk-jax: error: ") and re.search(message, last), last
        assert "Traceback" not in shown.getvalue()

    def test_fresh_lora(self, inputs):
        self.refused(inputs, "the LoRA adapter is fresh", "fresh", warmup={"max_steps": 0})

    def test_selection_larger_than_the_pool(self, inputs, tmp_path):
        data = tmp_path / "few.jsonl"
        data.write_text("\n".join((inputs / "pool.jsonl").read_text().splitlines()[:4]))
        self.refused(
            inputs, r"select.count = 6 is larger than the pool \(4 examples\)", "few", data={"pool": [str(data)]}
        )
        assert not (inputs / "few" / "warmup").exists(), "said before anything is computed"

    def test_a_bad_line_at_the_end_of_the_pool(self, inputs, tmp_path):
        data = tmp_path / "bad.jsonl"
        data.write_text((inputs / "pool.jsonl").read_text() + "{not json\n")
        self.refused(inputs, r"bad.jsonl:44: not JSON", "bad-line", data={"pool": [str(data)]})
        assert not (inputs / "bad-line" / "warmup").exists(), "said before anything is computed"

    def test_a_bad_line_of_the_domain(self, inputs, tmp_path):
        data = tmp_path / "bad.jsonl"
        data.write_text((inputs / "domain.jsonl").read_text() + "{not json\n")
        self.refused(inputs, r"bad.jsonl:9: not JSON", "bad-domain", data={"domain": [str(data)]})
        assert not (inputs / "bad-domain" / "warmup").exists(), "the corrected file is then not another one"

    def test_methods_that_cannot_be(self, inputs):
        self.refused(inputs, r"select.methods = \['kernal'\]: choose from kernel", select={"methods": ["kernal"]})
        message = "length_matched looks at the selection of kernel; add kernel"
        self.refused(inputs, message, select={"methods": ["random", "length_matched"]})
        self.refused(inputs, "names a method twice", select={"methods": ["random", "random"]})

    def test_evaluation_file_without_choices(self, inputs):
        files = [str(inputs / "test.jsonl"), str(inputs / "pool.jsonl")]
        self.refused(
            inputs,
            "record 'sum-0' has no choices",
            "no-choices",
            "evaluate",
            evaluate={"files": files, "metrics": ["accuracy"]},
        )
        self.refused(
            inputs,
            "evaluate.metrics: 'f1' is not one of accuracy, loss",
            "no-choices",
            "evaluate",
            evaluate={"metrics": ["f1"]},
        )
        assert not (inputs / "no-choices" / "warmup").exists(), "said before anything is computed"

    def test_finetuning_that_trains_nothing(self, inputs):
        self.refused(inputs, "finetune: max_steps = 0 trains nothing", "idle", "finetune", finetune={"max_steps": 0})
        assert not (inputs / "idle").exists(), "said before anything is computed"

    def test_votes_that_keep_fewer_than_are_selected(self, inputs):
        votes = {"method": "votes", "keep": 3}
        self.refused(inputs, "preselect.keep = 3 is below select.count = 6", "few-votes", preselect=votes)

    @pytest.mark.parametrize(
        "message, sections",
        [
            ("direction = adam needs a warm-up of this run", {"score": {"direction": "adam", "parameters": "all"}}),
            (r"score.parameters = '\(' is not lora, lora", {"score": {"parameters": "("}}),
            ("the last position has no next token", {"score": {"span": "last", "objective": "cross_entropy"}}),
        ],
    )
    def test_settings_that_cannot_work_together(self, inputs, message, sections):
        self.refused(inputs, message, "together", **sections)
        assert not (inputs / "together").exists(), "said before anything is computed"

    def test_families_that_do_not_exist(self, inputs):
        self.refused(inputs, "no record of data.pool is of family bal; families", "bal", report={"useful": ["bal"]})
        self.refused(inputs, "group_by = topic: no record", "topic", report={"group_by": "topic"})

    def test_odd_values_in_other_keys_are_carried_through(self, inputs, tmp_path):
        """Half a surrogate pair and NaN: neither may stop a run whose scores are done."""
        lines = (inputs / "pool.jsonl").read_text().splitlines()
        odd = [json.dumps(json.loads(line) | {"note": "\ud800", "weight": float("nan")}) for line in lines]
        (tmp_path / "odd.jsonl").write_text("\n".join(odd))
        folder = run(tiny_run_config(inputs, "odd", data={"pool": [str(tmp_path / "odd.jsonl")]}), until="select")
        for line in (folder / "select" / "selection.jsonl").read_text().splitlines():
            assert "NaN" not in line and json.loads(line)["weight"] is None and json.loads(line)["note"] == "\ud800"

    def test_examples_without_a_response_are_never_selected(self, inputs, tmp_path):
        records = [json.loads(line) for line in (inputs / "pool.jsonl").read_text().splitlines()]
        for record in records[::2]:
            record.pop("choices", None), record.pop("answer", None)
            record["response"] = ""
        (tmp_path / "mute.jsonl").write_text("\n".join(map(json.dumps, records)))
        config = tiny_run_config(inputs, "mute", data={"pool": [str(tmp_path / "mute.jsonl")]}, score={"span": "all"})
        folder = run(config, until="select")
        selection = [json.loads(line) for line in (folder / "select" / "selection.jsonl").read_text().splitlines()]
        assert len(selection) == 6 and all(record["response"] for record in selection)
        assert json.loads((folder / "score" / "data.json").read_text())["dropped"]["no response tokens"] == 22

    def test_rows_longer_than_the_model(self, inputs):
        model = {"path": str(inputs / "model"), "max_length": 100_000}
        self.refused(inputs, r"max_length = 100000 is more than the \d+ positions of .*; lower it", "long", model=model)

    def test_fresh_lora_by_a_pattern(self, inputs):
        message, warmup = "the LoRA adapter is fresh", {"max_steps": 0}
        self.refused(inputs, message, "fresh-a", warmup=warmup, score={"parameters": "lora/.*/a$"})
        allowed = {"parameters": "lora/.*/a$", "allow_fresh_lora": True}
        self.refused(inputs, "the direction is zero, so every score would be 0", "zero", warmup=warmup, score=allowed)

    @pytest.mark.parametrize("name", ["direction.npz", "rubbish", "stacked", "probes"])
    def test_given_directions_that_do_not_fit(self, inputs, finished, tmp_path, name):
        from safetensors.numpy import load_file, save_file

        path = tmp_path / name
        tree = load_file(finished / "gradient" / "direction.safetensors")
        message, score = "it must be a safetensors file", {"direction": str(path)}
        if name == "direction.npz":
            np.savez(path, **tree)
        elif name == "rubbish":
            path.write_bytes(b"junk")
        elif name == "stacked":
            save_file({key: np.stack([leaf, leaf]) for key, leaf in tree.items()}, path)
            message = "a run takes one direction"
        else:
            made = {"objective": "probe", "probes": "2", "seed": "7"}
            save_file({key: np.stack([leaf, leaf]) for key, leaf in tree.items()}, path, made)
            message, score = r"other probes \(seed 7, now 0\)", {**score, "objective": "probe", "probes": 2}
        self.refused(inputs, message, f"given-{name}", score=score)

    @pytest.mark.parametrize(
        "name",
        [
            "warmup/adapter/adapter_model.safetensors",
            "gradient/direction.safetensors",
            "select/selection.jsonl",
            "evaluate/predictions/base/test.jsonl",
        ],
    )
    def test_a_damaged_result_is_not_built_upon(self, inputs, finished, name):
        path = finished / name
        whole = path.read_bytes()
        for damaged in (whole[:-9] + bytes([whole[-9] ^ 0x40]) + whole[-8:], whole[:-20]):
            path.write_bytes(damaged)
            try:
                self.refused(inputs, f"{name} is not as its stage wrote it .*delete the folder", "finished", "evaluate")
            finally:
                path.write_bytes(whole)
        path.rename(path.with_suffix(".away"))
        try:
            self.refused(inputs, f"{name} is gone", "finished", "evaluate")
        finally:
            path.with_suffix(".away").rename(path)

    def test_half_a_line_of_predictions(self, inputs, finished):
        """Of an evaluation that was not finished, so that no checksum covers it yet."""
        manifest = finished / "evaluate" / "manifest.json"
        path = finished / "evaluate" / "predictions" / "base" / "test.jsonl"
        kept = {place: place.read_bytes() for place in (manifest, path)}
        manifest.unlink()
        path.write_text('{"id"')
        try:
            self.refused(inputs, "test.jsonl, line 1, is damaged.*; delete the folder", "finished", "evaluate")
        finally:
            for place, content in kept.items():
                place.write_bytes(content)

    def test_all_too_long(self, inputs):
        self.refused(inputs, "none of 8 examples .* is usable .*too long.*max_length", model={
            "path": str(inputs / "model"), "max_length": 3})  # fmt: skip

    def test_missing_pool_file(self, inputs):
        self.refused(inputs, "nowhere.jsonl", data={"pool": [str(inputs / "nowhere.jsonl")]})

    def test_unset_pool(self, inputs):
        self.refused(inputs, "data.pool is not set; give the files of the general pool", data={"pool": []})

    def test_unknown_arm(self, inputs):
        self.refused(inputs, "choose from base, domain", evaluate={"arms": ["bse"]}, until="evaluate")
        self.refused(
            inputs, "has the name of its method, such as kernel", evaluate={"arms": ["selected"]}, until="evaluate"
        )
        self.refused(inputs, "add bm25 to select.methods", evaluate={"arms": ["bm25"]}, until="evaluate")

    def test_direction_that_is_no_file(self, inputs):
        self.refused(inputs, "score.direction = 'adm' is neither", score={"direction": "adm"})

    def test_lora_target_that_matches_nothing(self, inputs):
        self.refused(inputs, "q_prj", lora={"targets": ["q_prj"]})

    def test_poisoned_weights(self, inputs, tmp_path):
        import shutil

        from safetensors.numpy import load_file, save_file

        shutil.copytree(inputs / "model", tmp_path / "model")
        weights = load_file(tmp_path / "model" / "model.safetensors")
        name = sorted(weights)[0]
        weights[name] = weights[name].copy()
        weights[name].flat[0] = np.nan
        save_file(weights, tmp_path / "model" / "model.safetensors", metadata={"format": "pt"})
        self.refused(inputs, f"{name}.*(NaN|finite)", "nan", model={"path": str(tmp_path / "model")})

    def test_evaluation_without_files(self, inputs):
        self.refused(inputs, "evaluate.files is empty", "noeval", "evaluate", evaluate={"files": []})
        assert not (inputs / "noeval").exists(), "said before anything is computed"

    def test_read_only_output(self, inputs, monkeypatch):
        def refuse(*_args, **_options):
            raise OSError(30, "Read-only file system")

        monkeypatch.setattr(atomic.os, "replace", refuse)
        self.refused(inputs, "ead-only", "readonly")


def test_an_estimate_counts_what_the_run_counted(inputs, finished):
    """The sample holds the whole pool here, so what the run read is known exactly, but for who is selected."""
    found = estimate_run(PIPELINE, tiny_run_config(inputs))
    stages = {(row["stage"], row["part"]): row for row in found["stages"]}
    for name in ("gradient", "score"):
        summary = atomic.read_json(finished / name / "summary.json")
        assert all(stages[name, None][key] == summary[key] for key in ("tokens", "flops"))
    assert stages["score", None]["examples"] == atomic.read_json(finished / "score" / "summary.json")["scored"]
    arms = {arm["name"]: arm for arm in atomic.read_json(finished / "evaluate" / "results.json")["arms"]}
    for arm in ("domain", "random", "kernel"):
        for key in ("tokens", "flops"):
            assert stages["finetune", arm][key] == pytest.approx(arms[arm][key], rel=0.2), (arm, key)
    asked = [atomic.read_json(path)["test"] for path in (finished / "evaluate" / "predictions").glob("*/tasks.json")]
    assert len(asked) == 4 and stages["evaluate", None]["tokens"] == sum(task["tokens"] for task in asked)


def test_an_estimate_of_disk_is_near_what_the_run_wrote(inputs, finished):
    """Within a factor of 2 for a stage that writes more than the few files about itself, and of 1.5 in all."""
    found = estimate_run(PIPELINE, tiny_run_config(inputs))
    sizes = {
        name: sum(path.stat().st_size for path in (finished / name).rglob("*") if path.is_file())
        for name in found["disk"]
    }
    assert sizes["finetune"] > 10_000 and sizes["score"] > 5_000
    for name, size in sizes.items():
        if size > 10_000:
            assert 0.5 < found["disk"][name]["kept"] / size < 2, (name, found["disk"][name], size)
    assert 1 / 1.5 < found["total"]["disk"] / sum(sizes.values()) < 1.5


def test_the_domain_keeps_its_share_of_every_step(inputs):
    """A mixture and the mean over examples, through the run: the same steps for every arm, and an exact account."""
    changes = {"mixture": "domain_share", "domain_share": 0.5, "loss": "example_mean"}
    config = tiny_run_config(inputs, "mixed", select={"methods": ["random"]}, finetune=changes)
    found = json.loads((run(config) / "evaluate" / "results.json").read_text())["arms"]
    trained = {arm["name"]: arm for arm in found if arm["steps"]}
    assert len({arm["steps"] for arm in trained.values()}) == 1
    assert 0 < trained["random"]["domain_label_tokens"] < trained["random"]["label_tokens"]
    assert trained["domain"]["domain_label_tokens"] == trained["domain"]["label_tokens"]
    estimated = {(row["stage"], row["part"]): row for row in estimate_run(PIPELINE, config)["stages"]}
    for arm in ("domain", "random"):
        assert estimated["finetune", arm]["tokens"] == pytest.approx(trained[arm]["tokens"], rel=0.2)
    summary = atomic.read_json(Path(config.out) / "finetune" / "random" / "summary.json")
    assert (summary["mixture"], summary["loss"]) == ("domain_share", "example_mean")


@pytest.mark.parametrize("mixture", ["selected_then_domain", "replay"])
def test_turns_in_a_single_step_are_refused_before_anything_is_computed(inputs, mixture):
    changes = {"mixture": mixture, "max_steps": 1}
    config = tiny_run_config(inputs, f"one-step-{mixture}", select={"methods": ["random"]}, finetune=changes)
    with pytest.raises(UserError, match=rf"^finetune\.mixture = {mixture} has two phases.* a single step"):
        run(config)
    assert not (Path(config.out) / "select").exists()


def test_an_arm_of_a_file_is_trained_with_the_same_budget(inputs):
    """Any JSONL selected elsewhere."""
    path = inputs / "elsewhere.jsonl"
    path.write_text("\n".join((inputs / "pool.jsonl").read_text().splitlines()[20:26]))
    arms = {"arms": ["domain", f"file:{path}"]}
    folder = run(tiny_run_config(inputs, "of-a-file", evaluate=arms, select={"methods": ["random"]}))
    found = json.loads((folder / "evaluate" / "results.json").read_text())["arms"]
    assert [(arm["name"], arm["steps"], arm["examples"]) for arm in found] == [
        ("domain", 3, 8),
        ("file-elsewhere", 3, 14),
    ]
    assert 0 < found[1]["domain_label_tokens"] < found[1]["label_tokens"] and found[0]["label_tokens"]
    assert found[0]["domain_label_tokens"] == found[0]["label_tokens"]


def test_arms_of_files_are_added_to_a_finished_run_and_each_stays_as_it_was(finished, inputs):
    folder = Path(shutil.copytree(finished, inputs / "more-arms"))
    lines = (inputs / "pool.jsonl").read_text().splitlines()
    first, second = inputs / "first.jsonl", inputs / "second.jsonl"
    first.write_text("\n".join(lines[20:26]))
    second.write_text("\n".join(lines[26:30]))

    def arms_with(*files):
        config = tiny_run_config(
            inputs, "more-arms", evaluate={"arms": ["base", "domain", *map("file:{}".format, files)]}
        )
        found = json.loads((run(config) / "evaluate" / "results.json").read_text())["arms"]
        return [(arm["name"], arm["examples"]) for arm in found if arm["name"].startswith("file-")]

    kept = {path: path.stat().st_mtime_ns for path in folder.glob("finetune/*/adapter/*.safetensors")}
    assert kept
    assert arms_with(first) == [("file-first", 14)]
    kept |= {path: path.stat().st_mtime_ns for path in folder.glob("finetune/file-*/adapter/*.safetensors")}
    assert arms_with(first, second) == [("file-first", 14), ("file-second", 12)]
    assert arms_with(second) == [("file-second", 12)]
    assert kept == {path: path.stat().st_mtime_ns for path in kept}
    elsewhere = inputs / "elsewhere" / "first.jsonl"
    elsewhere.parent.mkdir()
    elsewhere.write_text("\n".join(lines[30:36]))
    for other in (elsewhere, first):  # the name of an arm that is trained, or its path, with other records
        first.write_text("\n".join(lines[1:7]))
        with pytest.raises(
            UserError, match=r"finetune was made from something else: input.arms.file-first is another;"
        ):
            arms_with(second, other)
