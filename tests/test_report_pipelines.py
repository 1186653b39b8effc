"""The parts of `diagnose` and `kernel`, alone and beside a select run, on one page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import synthetic_run
from report_page import page_of

from ntk_jax import pipelines
from ntk_jax.engine.config import build
from ntk_jax.models.hub import resolve
from ntk_jax.pipelines.diagnose import report as diagnose_report
from ntk_jax.pipelines.diagnose.figures import DIAGNOSES, figures
from ntk_jax.pipelines.kernel import report as kernel_report
from ntk_jax.report.figures_matrix import standalone

SUMMARY: dict[str, Any] = {
    "kind": "centered_trace",
    "method": "jacobian",
    "parameters": "lora",
    "parameter_count": 155_648,
    "span": "response",
    "shape": [80, 1_200],
    "a_is_b": True,
    "left_out": {"a": {"too long": 12}, "b": {}},
    "truncated": {"a": 0, "b": 1_001},
    "smallest_eigenvalue": 1.5e-3,
    "largest_eigenvalue": 2_480_000.0,
    "seconds": None,
}
CROSS_OUTPUT: dict[str, Any] = {
    "outputs": 128,
    "pairs_sampled": 1000,
    "isotropic": 0.088,
    "rho": 761.0,
    "plain": {
        "mean": 0.36,
        "mean_magnitude": 0.48,
        "positive_share": 0.76,
        "coherence": 698.0,
        "histogram": {"edges": [-1.0, 0.0, 1.0], "counts": [240, 760]},
    },
    "centered": {"mean": 0.05, "histogram": {"edges": [-1.0, 0.0, 1.0], "counts": [450, 550]}},
}
STAGES = {"diagnose": "Diagnosis", "kernel": "Kernel matrix"}


def write(path: Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value))


def plan(folder: Path, *names: str) -> None:
    """Adds pipelines to the plan, which another command may have begun."""
    path = folder / "plan.json"
    value = json.loads(path.read_text()) if path.exists() else {"schema": 1, "pipelines": {}}
    for name in names:
        stages = [{"name": name, "title": STAGES[name], "after": []}]
        value["pipelines"][name] = {"title": STAGES[name], "config": {"seed": 0}, "stages": stages, "facts": {}}
    write(path, value)


def diagnosis(folder: Path) -> None:
    write(folder / "diagnose/cross_output.json", CROSS_OUTPUT)
    write(folder / "diagnose/audit.json", {"skipped": "switched off in the config"})
    write(folder / "diagnose/manifest.json", {})


def kernel(folder: Path) -> None:
    write(folder / "kernel/summary.json", SUMMARY)
    write(folder / "kernel/data.json", {"a": {"records": 92, "kept": 80}, "b": {"records": 1_200, "kept": 1_200}})
    write(folder / "kernel/manifest.json", {})


def test_a_diagnosis_alone(tmp_path: Path) -> None:
    plan(tmp_path, "diagnose")
    _, page = page_of(tmp_path)
    assert "No diagnosis yet: the stage “Diagnosis” has not run." in page.text and "Did it help?" not in page.text
    diagnosis(tmp_path)
    _, page = page_of(tmp_path)
    for said in (
        "Does fine-tuning stay near its linearisation?",
        "Do the outputs' gradients point at random?",
        "cross terms do not cancel",
        "Audit: not computed, switched off in the config.",
        "✓ done",
    ):
        assert said in page.text, said
    assert "Configuration, Diagnosis" in page.text


def test_the_figures_of_a_diagnosis_stand_alone(tmp_path: Path) -> None:
    assert set(DIAGNOSES) == {"stability", "cross_output", "prediction", "audit", "regression", "worth"}
    (shown,) = figures({"cross_output": CROSS_OUTPUT, "audit": {"skipped": "x"}})
    assert shown.key == "cross_output" and standalone(shown.drawing).startswith("<svg")
    diagnosis(tmp_path)
    text = diagnose_report.terminal(tmp_path)
    assert text.startswith("Do the outputs' gradients point at random? Mean +0.36") and "rho of the head 761" in text
    assert text.endswith(f"Figures: {tmp_path / 'diagnose' / 'figures'}; `ntk-jax report` puts them on the page")


@pytest.mark.parametrize("value", [{"plain": 3}, {"plain": {}, "centered": {}, "isotropic": 1}, {"unexpected": []}])
def test_a_damaged_diagnosis_is_said_in_words(tmp_path: Path, value: Any) -> None:
    plan(tmp_path, "diagnose")
    write(tmp_path / "diagnose/cross_output.json", value)
    _, page = page_of(tmp_path)
    assert "diagnose/ holds numbers that cannot be shown" in page.text


def test_a_kernel_alone(tmp_path: Path) -> None:
    plan(tmp_path, "kernel")
    _, page = page_of(tmp_path)
    assert "No kernel yet: the stage “Kernel matrix” has not run." in page.text
    kernel(tmp_path)
    _, page = page_of(tmp_path)
    for said in (
        "centered_trace, 80 × 1,200, over 155,648 parameters.",
        "Eigenvalues from 0.00150 to 2.48 × 10⁶.",
        "a12 too long92800",
        "bnone1,2001,2001,001",
    ):
        assert said in page.text, said
    assert kernel_report.terminal(tmp_path).splitlines() == [
        f"Kernel: {tmp_path / 'kernel' / 'kernel.npz'}, centered_trace, 80 x 1,200, over 155,648 parameters",
        "Eigenvalues: from 0.0015 to 2.48e+06",
        "kernel.a: 12 examples are left out (too long)",
        "kernel.b: 1,001 examples lost the start of their prompt to model.max_length",
    ]
    write(tmp_path / "kernel/summary.json", {**SUMMARY, "smallest_eigenvalue": None, "largest_eigenvalue": None})
    assert "too large for its eigenvalues" in page_of(tmp_path)[1].text
    assert "Eigenvalues" not in kernel_report.terminal(tmp_path)


def test_keys_of_config_json_that_were_ignored_are_named_once(tmp_path: Path) -> None:
    plan(tmp_path, "kernel", "diagnose")
    _, page = page_of(tmp_path)
    assert "at the user's word" not in page.text
    value = json.loads((tmp_path / "plan.json").read_text())
    for entry in value["pipelines"].values():
        entry["facts"] = {"ignored_config_keys": ["brand_new_norm", "<odd>"]}
    write(tmp_path / "plan.json", value)
    _, page = page_of(tmp_path)
    said = "config.json keys that this run ignored at the user's word: brand_new_norm, <odd>."
    assert page.text.count(said) == 1 and page.text.index(said) < page.text.index("Configuration and provenance")


@pytest.mark.parametrize("pipeline", pipelines.all_pipelines(), ids=lambda pipeline: pipeline.name)
def test_every_plan_says_which_keys_its_run_ignores(pipeline: Any, tmp_path: Path) -> None:
    shutil.copytree(resolve("builtin:model"), tmp_path / "model")
    known = json.loads((tmp_path / "model/config.json").read_text())
    write(tmp_path / "model/config.json", {**known, "brand_new_norm": True})
    model = {"path": str(tmp_path / "model"), "ignore_config_keys": ["brand_new_norm", "not_there"]}
    config = build(pipeline.config.resolve(), {"model": model}, "test")
    assert pipeline.facts(config)["ignored_config_keys"] == ["brand_new_norm"]


def test_one_page_shows_every_pipeline(tmp_path: Path) -> None:
    synthetic_run.make(tmp_path)
    plan(tmp_path, "kernel", "diagnose")
    kernel(tmp_path)
    diagnosis(tmp_path)
    _, page = page_of(tmp_path)
    ids = [a["id"] for _, a in page.elements if "id" in a]
    assert len(ids) == len(set(ids)) and {"evaluation", "diagnosis", "kernel", "provenance"} <= set(ids)
    headings = [page.text.index(said) for said in ("Did it help?", "near its linearisation?", "Kernel matrix, 80")]
    assert headings == sorted(headings)
    assert [name for name, _ in page.elements].count("h1") == 1
    assert set(page.all("a", "href")) <= {f"#{i}" for i in ids}
