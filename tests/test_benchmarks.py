"""The benchmarks run at a tiny shape and give finite, positive figures; nothing here looks at how fast anything is."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

import benchmark_sketch  # noqa: E402
import measurement as ms  # noqa: E402
import results_table  # noqa: E402

from ntk_jax.models.config import ModelConfig  # noqa: E402

SMALL = ("--shape", "tiny", "--repeats", "1", "--tokens", "128", "--length", "32")
STEPS = {
    "forward",
    "score",
    "score, m = 2",
    "score, last quarter",
    "score, cross_entropy",
    "mean gradient",
    "per-example gradients",
}


def run(script: str, folder: Path, *options: str) -> dict[str, Any]:
    """The JSON of a script run as a user runs it; the file and the last line of the output are the same."""
    environment = {**os.environ, "JAX_DISABLE_MOST_OPTIMIZATIONS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "scripts" / script), *SMALL, *options, "--out", str(folder / "out.json")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    last = done.stdout.strip().splitlines()[-1]
    assert last == (folder / "out.json").read_text(encoding="utf8").strip()
    figures = json.loads(last)
    assert figures["command"].startswith("python ") and figures["device"] and figures["versions"]["jax"]
    return figures


def numbers(tree: Any) -> list[float]:
    if isinstance(tree, dict):
        return [number for value in tree.values() for number in numbers(value)]
    if isinstance(tree, list):
        return [number for value in tree for number in numbers(value)]
    return [tree] if isinstance(tree, (int, float)) and not isinstance(tree, bool) else []


def all_positive(tree: Any) -> bool:
    found = numbers(tree)
    return len(found) > 0 and all(np.isfinite(found)) and min(found) > 0


@pytest.mark.slow
def test_attention(tmp_path: Path) -> None:
    figures = run("benchmark_attention.py", tmp_path)
    programs = figures["programs"]
    assert programs.pop("kernel, with tangents") is None  # no GPU
    assert set(programs) == {"forward pass alone", "plain, with tangents", "rule, with tangents"}
    assert programs["plain, with tangents"].pop("error") == 0.0
    assert all_positive(programs) and figures["rule_over_plain"] > 0 and figures["error"] < 1e-5


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_score_steps(tmp_path: Path) -> None:
    figures = run("benchmark_score.py", tmp_path, "--parts", "time", "--directions", "2")
    steps, roofline = figures["time"]["steps"], figures["time"]["roofline"]
    assert set(steps) == STEPS and all_positive(steps) and all_positive(roofline)
    assert steps["forward"]["time_over_forward"] == steps["forward"]["memory_over_forward"] == 1.0
    for step in roofline["steps"].values():  # all layers are counted: what XLA adds are the elementwise operations
        assert 1.0 < step["xla_flops"] / step["formula_flops"] < 1.5
        assert 0.7 < step["xla_flops_optimized"] / step["xla_flops"] < 1.5
    assert figures["packing"] is figures["vocabulary"] is figures["precision"] is None


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_score_comparisons(tmp_path: Path) -> None:
    figures = run("benchmark_score.py", tmp_path, "--parts", "packing", "vocabulary", "precision", "--examples", "12")
    assert figures["time"] is None
    assert set(figures["packing"]["examples_per_second"]) == {"padded", "by length", "packed"}
    assert all_positive(figures["packing"]) and all_positive(figures["vocabulary"])
    for objective in ("sum_logits", "cross_entropy"):
        found = figures["precision"][objective]
        assert {"bfloat16", "int8, float32", "float8_e4m3fn, bfloat16"} < set(found) and len(found) == 5
        assert all(one["spearman"] > 0.9 and 0 < one["relative_error"] < 0.2 for one in found.values())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_train(tmp_path: Path) -> None:
    figures = run("benchmark_train.py", tmp_path, "--steps", "2")
    steps = figures["steps"]
    assert set(steps) == {"forward", "training step", "training step, remat"} and all_positive(steps)
    assert steps["training step, remat"]["temporary_bytes"] < steps["training step"]["temporary_bytes"]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_sketch(tmp_path: Path) -> None:
    figures = run("benchmark_sketch.py", tmp_path, "--dims", "64", "--examples", "12")
    sketches = figures["sketches"]
    assert set(sketches) == {"gradients", "rademacher 64", "countsketch 64", "kronecker 64"}
    for sketch in sketches.values():
        assert all_positive({key: sketch[key] for key in ("seconds", "examples_per_second", "time_over_gradients")})
    assert figures["lengths"]["examples"] == 12 and all_positive(figures["lengths"])


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("objective", ["cross_entropy", "sum_logits"])
def test_peers(tmp_path: Path, objective: str) -> None:
    pytest.importorskip("torch")
    pytest.importorskip("peft")
    options = ("--objective", objective, "--dim", "256", "--examples", "10", "--domain", "2")
    figures = run("benchmark_peers.py", tmp_path, *options)
    runs, agreement = figures["runs"], figures["agreement"]
    has_bergson = objective == "cross_entropy" and importlib.util.find_spec("bergson") is not None
    for name in ("bergson", "bergson, scores"):
        assert (runs[name] is not None) == has_bergson
    for name, package in (("loop, traker", "trak"), ("loop, dattri", "dattri")):
        assert (runs[name] is None) == (importlib.util.find_spec(package) is None)
    assert all_positive({name: value for name, value in runs.items() if value is not None})
    assert runs["loop, rademacher"]["speed_over_loop"] == 1.0
    # Both compute the same numbers, so the speeds are of the same thing.
    assert agreement["directional scores"]["spearman"] > 0.99
    assert agreement["directional scores"]["relative_error"] < 1e-3
    assert not has_bergson or agreement["bergson, scores"]["relative_error"] < 1e-3


def test_a_mistake_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmark_sketch.py", "--shape", "tiny", "--tokens", "16", "--length", "64"])
    with pytest.raises(SystemExit) as stopped:
        ms.command_line(benchmark_sketch.main)
    assert stopped.value.code == 2
    assert capsys.readouterr().err == "benchmark_sketch.py: --tokens 16 holds no example of --length 64; raise it\n"


def test_the_same_weights_in_both_dtypes() -> None:
    config = ModelConfig("llama", 64, 64, 64, 2, 4, 4, 16, tied=True)  # few shapes, so few programs to compile
    wide, narrow = (ms.device_model(config, rank=4, dtype=dtype, seed=0) for dtype in ("float32", "bfloat16"))
    for a, b in zip(jax.tree.leaves(wide.base), jax.tree.leaves(narrow.base), strict=True):
        assert a.dtype == "float32" and b.dtype == "bfloat16"
        np.testing.assert_array_equal(a, b.astype("float32"))
    kernel = np.asarray(wide.base["layers"]["up_proj"]["kernel"])
    assert abs(kernel.std() * kernel.shape[1] ** 0.5 - 1) < 0.05
    assert not np.array_equal(kernel[0], kernel[1])
    assert all(np.asarray(leaf["b"]).any() for leaf in wide.lora["layers"].values())


def tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["results_table.py", *words])
    results_table.main()
    return capsys.readouterr().out


def test_result_tables_of_earlier_runs_and_of_run_directories(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The files in docs/results, whose arm `selected` is now `kernel`, and the same numbers as a run writes them."""
    earlier = ROOT / "docs" / "results" / "quickstart-0"
    watch = ["--watch", "flavour_notes,recipes,taste_twins,captions"]
    shown = tables(monkeypatch, capsys, str(earlier), *watch)
    assert "| base | domain | random | kernel |" in shown and "**85.1**" in shown
    assert "| 0 | random | +37.2 [+31.5, +42.9] |" in shown and "45.8 (132)" in shown

    found = results_table.read(earlier)
    lengths = dict(zip(("spearman_span_length", "spearman_total_length"), found["lengths"], strict=True))
    select = {"methods": found["methods"], "families": found["families"], "by_method": {"kernel": lengths}}
    files = {"evaluate/results": found["results"], "select/summary": select, "score/summary": {"rho": found["rho"]}}
    for name, content in files.items():
        (tmp_path / name).parent.mkdir()
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "config.yaml").write_text("seed: 0\n")
    assert tables(monkeypatch, capsys, str(tmp_path), *watch) == shown


def test_ratios_are_of_neighbours_in_time() -> None:
    # A machine that slows down tenfold half-way: each quotient is 2 all the same.
    times = {"slow": [2.0, 2.0, 20.0], "fast": [1.0, 1.0, 10.0]}
    assert ms.ratio(times, "slow", "fast") == 2.0
    assert ms.ratio(times, "slow", "fast", 0.5) == 1.0


def test_runs_take_turns_and_warm_up_is_not_counted() -> None:
    called: list[str] = []
    runs = {name: lambda name=name: called.append(name) for name in ("a", "b")}
    times, first = ms.in_turns(runs, 2, warm_up=1)
    assert called == ["a", "b", "a", "b", "a", "b"]
    assert {name: len(seconds) for name, seconds in times.items()} == {"a": 2, "b": 2} and set(first) == {"a", "b"}


def test_length_mix() -> None:
    lengths = ms.lognormal_lengths(4000, 1024, seed=0)
    assert max(lengths) == 1024 and min(lengths) >= 8
    assert 0.9 < np.median(lengths) / (1024 / 6) < 1.1


def test_what_json_has_no_word_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = {"nan": float("nan"), "list": [np.float32(1.5), np.int64(2)], "none": None, "text": "a"}
    ms.finish(figures, tmp_path / "new" / "out.json")
    wanted = {"nan": None, "list": [1.5, 2], "none": None, "text": "a"}
    assert json.loads(capsys.readouterr().out.strip()) == wanted
    assert json.loads((tmp_path / "new" / "out.json").read_text(encoding="utf8")) == wanted
