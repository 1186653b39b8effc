"""`ntk-jax diagnose` on a tiny run: what it writes, that it goes on after a kill, its report section, mistakes."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from tiny_run import run, tiny_tree, write_config, write_inputs

from ntk_jax import cli
from ntk_jax.engine.config import build
from ntk_jax.engine.run import report
from ntk_jax.models.lora import LoRAConfig
from ntk_jax.models.model import load_model
from ntk_jax.models.peft import save_adapter
from ntk_jax.pipelines import report_parts
from ntk_jax.pipelines.diagnose import diagnose
from ntk_jax.pipelines.diagnose.config import DiagnoseConfig
from ntk_jax.pipelines.diagnose.figures import figures
from ntk_jax.pipelines.diagnose.regression import regression
from ntk_jax.report.amounts import signed
from ntk_jax.report.page import write_report

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))
import diagnosis_table  # noqa: E402

SMALL = {
    "trajectories": 2, "epochs": 4.0, "checkpoints": 2, "examples": 4, "candidates": 12, "groups": 3, "group_size": 4,
    "group_steps": 2, "held_out": 4, "audit": False, "questions": 8, "objectives": ["sum_logits", "cross_entropy"],
    "worth_candidates": 0,
}  # fmt: skip


def config_of(inputs, out, **sections):
    """The config of a diagnosis of a tiny run; what other pipelines alone read is left out."""
    known = DiagnoseConfig.__dataclass_fields__
    tree = tiny_tree(inputs, out, **sections)
    return build(DiagnoseConfig, {key: value for key, value in tree.items() if key in known}, "test")


def diagnosed(inputs, out, **sections):
    """The run directory of a diagnosis."""
    return run(config_of(inputs, out, **sections), pipeline="diagnose")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("diagnose")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def finished(inputs):
    return diagnosed(inputs, "whole", diagnose=SMALL)


def load(folder, name):
    return json.loads((folder / "diagnose" / f"{name}.json").read_text())


def test_what_is_written(finished):
    stability = load(finished, "stability")
    assert [(p["trajectory"], p["step"]) for p in stability["points"]] == [
        ("seed 0", 0), ("seed 0", 3), ("seed 0", 8), ("seed 1", 0), ("seed 1", 3), ("seed 1", 8)
    ]  # fmt: skip
    assert np.shape(stability["kernel_cosine"]) == (6, 6) and stability["candidates"] <= 12
    assert set(stability["score_spearman"]) == {"sum_logits", "cross_entropy"}
    ranks, less = (np.array(stability[f"score_spearman{end}"]["sum_logits"], float) for end in ("", "_less_length"))
    assert less.shape == (6, 6) and np.allclose(less, less.T) and np.allclose(np.diag(less), 1)
    assert not np.allclose(ranks, less) and less.min() >= -1
    assert stability["points"][1]["linearization"]["gap"] > 0
    seeds = [finished / "diagnose" / "trajectories" / f"seed-{s}" for s in (0, 1)]
    starts = [(seed / "step-000000" / "adapter_model.safetensors").read_bytes() for seed in seeds]
    assert starts[0] != starts[1], "each LoRA seed starts elsewhere"
    assert not list(finished.rglob("checkpoints"))
    assert load(finished, "cross_output")["outputs"] > 100
    prediction = load(finished, "prediction")
    assert len(prediction["groups"]) == 3 and prediction["held_out"]["source"] == "evaluate.files"
    assert set(prediction["spearman"]) == {"response length", "sum_logits", "cross_entropy"}
    regression = load(finished, "regression")
    assert regression["classes"] == ["blue", "green", "red"] and len(regression["kernels"]) == 4
    assert len(regression["fine_tuned"]) == 2 and regression["test"] == 8
    assert load(finished, "audit") == {"skipped": "switched off in the config"}


def test_figures_are_files_that_stand_alone(finished):
    figures = sorted((finished / "diagnose" / "figures").glob("*.svg"))
    assert {"kernel_cosine", "score_rank", "score_map", "cross_output", "prediction"} <= {f.stem for f in figures}
    for file in figures:
        root = ElementTree.fromstring(file.read_text(encoding="utf8"))
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and root.attrib["aria-label"]
        shown = "".join(root.itertext()).replace(root[0].text or "", "")  # without the style
        assert "nan" not in shown and "inf" not in shown


def test_the_report_has_the_section(finished):
    page = finished / "report/index.html"  # written at the end
    text = page.read_text(encoding="utf8")
    page.unlink()
    report(config_of(finished.parent, "whole", diagnose=SMALL), report_parts())
    assert page.read_text(encoding="utf8") == text
    assert 'href="#diagnosis"' in text and "Does the kernel keep its direction?" in text
    section = text[text.index('id="diagnosis"') :]
    section = section[: section.index("</section>")]
    figures = section.count("<figure>")
    assert figures >= 8 and section.count("How to read:") >= figures and section.count("Found:") >= figures
    assert "Kernel regression against fine-tuning" in section and "Audit: not computed" in section


def test_a_killed_diagnosis_goes_on_to_the_same_bytes(inputs, finished, monkeypatch):
    calls, measure = [], diagnose.measure

    def dies(*args, **options):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return measure(*args, **options)

    monkeypatch.setattr(diagnose, "measure", dies)
    with pytest.raises(KeyboardInterrupt):
        diagnosed(inputs, "killed", diagnose=SMALL)
    assert len(list((inputs / "killed/diagnose/points").iterdir())) == 2
    diagnosed(inputs, "killed", diagnose=SMALL)
    assert len(calls) == 3 + 4  # the two that were done are not done again
    for file in sorted((finished / "diagnose").rglob("*")):
        if file.is_file() and file.name != "fingerprint.json":
            assert (inputs / "killed" / file.relative_to(finished)).read_bytes() == file.read_bytes(), file


def test_a_second_call_does_nothing_and_other_settings_are_refused(finished, capsys):
    before = {p: p.stat().st_mtime_ns for p in (finished / "diagnose").rglob("*")}
    diagnosed(finished.parent, "whole", diagnose=SMALL)
    assert before == {p: p.stat().st_mtime_ns for p in (finished / "diagnose").rglob("*")}
    config = config_of(finished.parent, "whole", diagnose=SMALL | {"examples": 5})
    path = write_config(finished.parent, config)
    assert cli.main(["diagnose", str(path)]) == 2
    assert "diagnose.examples" in capsys.readouterr().err


@pytest.mark.slow
def test_the_audit(inputs):
    """Every approximation on a tiny model: exact lines are exact, and more probes and wider projections are better."""
    options = SMALL | {"audit": True, "audit_dims": [32, 256], "groups": 0, "regression": False, "trajectories": 1}
    diagnosed(inputs, "audited", diagnose=options)
    lines = {line["name"]: line for line in load(inputs / "audited", "audit")["lines"]}
    assert lines["exact"]["error"] == 0 and lines["exact"]["spearman_pairs"] == 1
    assert lines["exact by products, corner"]["error"] < 1e-5
    assert lines["sum of logits, per example"]["spearman_pairs"] == pytest.approx(
        lines["sum of logits (pseudo-NTK)"]["spearman_pairs"], abs=1e-3
    )
    assert lines["16 probes"]["error"] < lines["1 probe"]["error"]
    for kind in ("rademacher", "countsketch", "kronecker"):
        assert lines[f"{kind}, K = 256"]["own_error"] < lines[f"{kind}, K = 32"]["own_error"]
    assert lines["exact in bfloat16"]["spearman_scores"] > 0.9
    assert all(line["flops"] > 0 and line["seconds"] >= 0 for line in lines.values())


LITTLE = SMALL | {"trajectories": 1, "epochs": 1.0, "groups": 0, "regression": False, "objectives": ["sum_logits"]}


def test_one_checkpoint_after_the_start_is_the_last(inputs):
    folder = diagnosed(inputs, "one", diagnose=LITTLE | {"epochs": 4.0, "checkpoints": 1})
    assert [point["step"] for point in load(folder, "stability")["points"]] == [0, 3, 8]


def test_no_cross_output_cosines(inputs, monkeypatch, capsys):
    """Switched off, and said so by the page and the table."""
    folder = diagnosed(inputs, "without", diagnose=LITTLE | {"cross_output": 0, "checkpoints": 1})
    assert load(folder, "cross_output") == {"skipped": "switched off in the config"}
    text = (folder / "report/index.html").read_text(encoding="utf8")
    assert "Cross output: not computed, switched off in the config." in text
    monkeypatch.setattr(sys, "argv", ["diagnosis_table.py", str(folder)])
    diagnosis_table.main()
    assert "cross_output: switched off in the config" in capsys.readouterr().out


def test_the_memory_of_kernels_and_cosines_is_the_configs(inputs, finished, monkeypatch):
    given = []
    for name in ("measure", "cross_output_cosines"):
        function = getattr(diagnose, name)
        monkeypatch.setattr(
            diagnose, name, lambda *a, function=function, **k: given.append(k["memory"]) or function(*a, **k)
        )
    adapters = [str(finished / "diagnose/trajectories/seed-0/step-000003")]
    options = LITTLE | {"adapters": adapters, "kernel": "pseudo", "cross_output": 1, "memory": 12345}
    folder = diagnosed(inputs, "memory", diagnose=options)
    assert given == [12345, 12345] and load(folder, "cross_output")["examples"] == 1


def test_given_adapters_in_place_of_trainings(inputs, finished):
    """Also a single one, where there is nothing to compare: no figure may need two."""
    steps = sorted((finished / "diagnose/trajectories/seed-0").glob("step-*"))
    for adapters in (steps[1:], steps[-1:]):
        options = SMALL | {"adapters": [str(path) for path in adapters], "kernel": "pseudo"}
        folder = diagnosed(inputs, f"given-{len(adapters)}", diagnose=options)
        stability = load(folder, "stability")
        assert [point["trajectory"] for point in stability["points"]] == ["given"] * len(adapters)
        assert stability["given"] and all(point["coherence"] is None for point in stability["points"])
        table = diagnosis_table.stability({"stability": stability})
        assert "1ᵀΘ1" not in table and "with the last" in table
        text = (folder / "report/index.html").read_text(encoding="utf8")
        assert "Adapters that were given" in text and "the warm-up would end" not in text
        assert len(load(folder, "regression")["kernels"]) == 2 * len(adapters)
    assert not (folder / "diagnose/trajectories").exists()


def test_correlations_that_are_not_defined(finished):
    """A constant has no rank correlation, and JSON no NaN: the page must live with null wherever one can stand."""
    parts = {name: load(finished, name) for name in ("stability", "cross_output", "prediction", "regression")}
    for matrix in parts["stability"]["score_spearman"].values():
        for row in matrix:
            row[:] = [None] * len(row)
    for matrix in parts["stability"]["score_spearman_less_length"].values():
        for row in matrix:
            row[:] = [None] * len(row)
    for row in parts["stability"]["rankings"].values():
        row.update(dict.fromkeys(row))
    for found in parts["prediction"]["spearman"].values():
        found.update(value=None, low=None, high=None)
    line = dict.fromkeys(
        ("error", "scaled_error", "spearman_pairs", "spearman_scores", "own_error", "own_scaled_error")
    )
    line |= {"own_spearman_scores": None, "name": "rademacher, K = 32", "group": "projection", "reference": "exact"}
    line |= {"flops": 1.0, "seconds": 1.0}
    parts["audit"] = {"lines": [line], "domain": 1, "pool": 1, "draws": 1}
    keys = {item.key for item in figures(parts)}
    assert "kernel_cosine" in keys and not {"prediction", "prediction_groups", "score_rank"} & keys
    other = finished.parent / "undefined"
    shutil.copytree(finished, other)
    for name, part in parts.items():
        (other / "diagnose" / f"{name}.json").write_text(json.dumps(part))
    text = write_report(other, report_parts()).read_text(encoding="utf8")
    assert (
        "The approximation audit" in text and "None" not in text[text.index('id="diagnosis"') :].split("</section>")[0]
    )


def test_rankings_with_the_length_taken_out(finished):
    """In the captions, and in the table of the documentation; not where a diagnosis of an earlier version has none."""
    part = load(finished, "stability")
    found = np.array(part["score_spearman_less_length"]["cross_entropy"], float)
    captions = {item.key: item.found for item in figures({"stability": part})}
    for key, value in (("score_rank", (found[1, 2] + found[4, 5]) / 2), ("score_map", found[1, 4])):
        assert f"with the length taken out {signed(value)}" in captions[key].partition("cross_entropy")[2]
    row = diagnosis_table.stability({"stability": part}).partition("length taken out")[2].split("| cross_entropy |")[1]
    lengths = part["score_spearman_length"]["cross_entropy"]
    first, last, seeds, *with_length = [float(cell) for cell in row.split("\n")[0].strip(" |").split("|")]
    expected = [(found[0, 1] + found[3, 4]) / 2, (found[1, 2] + found[4, 5]) / 2, found[1, 4]]
    assert [first, last, seeds] == pytest.approx(expected, abs=0.006)
    assert with_length == pytest.approx([(lengths[i] + lengths[i + 3]) / 2 for i in range(3)], abs=0.006)
    older = {key: value for key, value in part.items() if "length" not in key}
    captions = " ".join(item.found for item in figures({"stability": older}))
    assert "cross_entropy" in captions and "length taken out" not in captions
    assert "length taken out" not in diagnosis_table.stability({"stability": older})


class TestMistakes:
    def refused(self, inputs, capsys, **sections):
        path = write_config(inputs, config_of(inputs, "mistake", **sections))
        assert cli.main(["diagnose", str(path)]) == 2
        error = capsys.readouterr().err.strip().splitlines()[-1]
        assert error.startswith("ntk-jax: error: ")
        return error

    def test_objectives(self, inputs, capsys):
        error = self.refused(inputs, capsys, diagnose=SMALL | {"objectives": ["sum_logit"]})
        assert "diagnose.objectives = ['sum_logit']: choose from sum_logits" in error

    def test_top(self, inputs, capsys):
        error = self.refused(inputs, capsys, diagnose=SMALL | {"top": 13})
        assert "diagnose.top = 13 is larger than diagnose.candidates = 12" in error

    def test_span_last(self, inputs, capsys):
        error = self.refused(inputs, capsys, diagnose=SMALL, score={"span": "last"})
        assert "score.span = last" in error and "diagnose.objectives" in error

    def test_nothing_usable_in_the_pool(self, inputs, capsys):
        lines = [{"id": f"p-{i}", "source": "s", "prompt": "x" * 400, "response": "y"} for i in range(6)]
        (inputs / "long.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        error = self.refused(inputs, capsys, diagnose=SMALL, data={"pool": [str(inputs / "long.jsonl")]})
        assert "none of 6 sampled examples is usable" in error
        assert not (inputs / "mistake/diagnose/trajectories").exists(), "known before anything is trained"

    def test_what_is_not_examined(self, inputs, capsys):
        assert "score.parameters = 'all'" in self.refused(inputs, capsys, diagnose=SMALL, score={"parameters": "all"})
        adapter = {"path": str(inputs / "model"), "adapter": "somewhere"}
        assert "leave model.adapter out" in self.refused(inputs, capsys, diagnose=SMALL, model=adapter)

    def test_a_projection_that_cannot_be(self, inputs, capsys):
        error = self.refused(inputs, capsys, diagnose=SMALL | {"audit": True, "audit_dims": [100]})
        assert "dim = 100" in error and "multiple of 32" in error

    def test_one_domain_example(self, inputs, capsys):
        error = self.refused(inputs, capsys, diagnose=LITTLE, data={"domain_limit": 1})
        assert "data.domain: only one usable example" in error

    def test_an_adapter_of_another_rank(self, inputs, capsys):
        model = load_model(str(inputs / "model"), lora=LoRAConfig(rank=3, alpha=6.0))
        save_adapter(inputs / "rank3", model.lora, model.lora_config, model.config, "tiny")
        error = self.refused(inputs, capsys, diagnose=SMALL | {"adapters": [str(inputs / "rank3")]})
        assert "rank3: this adapter's rank is 3, the model's 2" in error

    def test_a_damaged_part(self, inputs, finished, capsys):
        shutil.copytree(finished, inputs / "damaged")
        (inputs / "damaged/diagnose/manifest.json").unlink()
        path = write_config(inputs, config_of(inputs, "damaged", diagnose=SMALL))
        (inputs / "damaged/diagnose/prediction.json").unlink()
        for name in ("groups/000000.npz", "points/seed-0-step-000003.npz"):  # in the order of the last reader first
            part = inputs / "damaged/diagnose" / name
            part.write_bytes(part.read_bytes()[:50])
            assert cli.main(["diagnose", str(path)]) == 2
            assert f"{part.name} is damaged" in capsys.readouterr().err


def test_files_without_choices_are_no_questions(inputs, tmp_path):
    """They are evaluated by their loss elsewhere, and may stand in the same config."""
    path = tmp_path / "notes.jsonl"
    path.write_text(json.dumps({"prompt": "Why?", "response": "Because."}) + "\n")
    config = config_of(inputs, "notes", evaluate={"files": [str(path)]})
    state = SimpleNamespace(config=config, domain=SimpleNamespace(records=[{"choices": ["a", "b"], "answer": 0}]))
    assert regression(state, None, None, None, ())["skipped"].endswith("holds no multiple-choice questions")
