"""`ntk-jax kernel`: the matrix of the API, the same bytes after an interruption, and mistakes."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from tiny_run import tiny_tree, write_config, write_inputs

import ntk_jax as nj
from ntk_jax import cli
from ntk_jax.engine import blocks
from ntk_jax.engine.config import build
from ntk_jax.models.lora import LoRAConfig
from ntk_jax.models.model import load_model
from ntk_jax.models.peft import save_adapter
from ntk_jax.pipelines.kernel.config import KernelConfig
from ntk_jax.storage import atomic
from ntk_jax.storage.arrays import done_blocks, open_store
from ntk_jax.storage.run import lock


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs of a tiny run, and an adapter that has been somewhere."""
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    shape = LoRAConfig(rank=2, alpha=4)
    model = load_model(str(folder / "model"), lora=shape)
    rng = np.random.default_rng(0)
    warm = {
        group: {
            name: {key: np.asarray(0.2 * rng.standard_normal(leaf.shape), np.float32) for key, leaf in layer.items()}
            for name, layer in layers.items()
        }
        for group, layers in model.lora.items()
    }
    save_adapter(folder / "adapter", warm, shape, model.config, str(folder / "model"))
    lines = (folder / "pool.jsonl").read_text().splitlines()
    (folder / "few.jsonl").write_text("\n".join(lines[15:25]))
    return folder


def tree_of(inputs: Path, out: Path, *, adapter: bool = True, **sections: Any) -> dict[str, Any]:
    """A tiny run with a section `kernel`, which says what differs from domain × few in two blocks of 4 rows."""
    kernel = {"a": str(inputs / "domain.jsonl"), "b": str(inputs / "few.jsonl"), "block_examples": 4}
    model = {"adapter": str(inputs / "adapter") if adapter else None}
    sections["kernel"] = {**kernel, **sections.get("kernel", {})}
    sections["model"] = {**model, **sections.get("model", {})}
    return {**tiny_tree(inputs, **sections), "out": str(out / "run")}


def config_of(inputs: Path, out: Path, **options: Any) -> str:
    """The file of a config without domain and pool."""
    tree = tree_of(inputs, out, **options)
    known = KernelConfig.__dataclass_fields__
    out.mkdir(exist_ok=True)
    config = build(KernelConfig, {key: value for key, value in tree.items() if key in known}, "test")
    return str(write_config(out, config))


def made(inputs: Path, out: Path, *overrides: str, **options: Any) -> dict[str, np.ndarray]:
    assert cli.main(["kernel", config_of(inputs, out, **options), *overrides]) == 0
    with np.load(out / "run" / "kernel" / "kernel.npz") as file:
        return dict(file)


def expected(inputs: Path, a: str = "domain.jsonl", b: str | None = "few.jsonl", **options: Any) -> np.ndarray:
    adapter = None if options.get("parameters") == "all" else str(inputs / "adapter")
    model = nj.load_model(str(inputs / "model"), adapter=adapter)
    return nj.ntk(model, str(inputs / a), b and str(inputs / b), **options)


def assert_close(actual: np.ndarray, expected: np.ndarray) -> None:
    assert actual.shape == expected.shape and actual.dtype == np.float32
    assert np.abs(actual - expected).max() <= 1e-5 * np.abs(expected).max()


@pytest.mark.parametrize(
    "section, options",
    [
        ({}, {}),
        ({"kind": "centered_trace", "method": "products"}, {"kind": "centered_trace"}),
        pytest.param({"kind": "pseudo"}, {"kind": "pseudo"}, marks=pytest.mark.slow),
        ({"kind": "probe", "probes": 3}, {"kind": "probe", "probes": 3}),
        ({"kind": "full", "limit": None}, {"kind": "full"}),
    ],
    ids=lambda value: value.get("kind", "trace"),
)
def test_the_matrix_is_that_of_the_api(inputs, tmp_path, section, options):
    found = made(inputs, tmp_path, kernel=section)
    assert_close(found["kernel"], expected(inputs, **options))
    assert list(found["ids_a"]) == [f"box-{i}" for i in range(8)]
    assert list(found["ids_b"]) == [f"ball-{i}" for i in range(15, 20)] + [f"sum-{i}" for i in range(5)]
    assert str(found["kind"]) == options.get("kind", "trace")


@pytest.mark.parametrize("kind", ["trace", pytest.param("full", marks=pytest.mark.slow)])
def test_a_set_with_itself(inputs, tmp_path, kind, capsys):
    found = made(inputs, tmp_path, kernel={"b": [], "kind": kind})
    matrix = found["kernel"]
    assert_close(matrix, expected(inputs, b=None, kind=kind))
    np.testing.assert_array_equal(matrix, matrix.transpose(1, 0, 3, 2) if kind == "full" else matrix.T)
    np.testing.assert_array_equal(found["ids_a"], found["ids_b"])
    summary = json.loads((tmp_path / "run" / "kernel" / "summary.json").read_text())
    square = matrix.swapaxes(1, 2).reshape(2 * [len(matrix) * matrix.shape[2]]) if kind == "full" else matrix
    values = np.linalg.eigvalsh(square.astype(float))
    found_values = [summary["smallest_eigenvalue"], summary["largest_eigenvalue"]]
    np.testing.assert_allclose(found_values, values[[0, -1]], atol=1e-9 * values[-1])
    assert (summary["shape"], summary["a_is_b"]) == (list(matrix.shape), True) and summary["seconds"] > 0
    assert "kernel.npz" in capsys.readouterr().out


def test_the_last_blocks_of_a_larger_set_with_itself(inputs, tmp_path):
    """Blocks of 8 of 20: the second begins left of its diagonal, for it has 16 columns, and the last has 4 rows."""
    (tmp_path / "many.jsonl").write_text("\n".join((inputs / "pool.jsonl").read_text().splitlines()[:20]))
    kernel = {"a": str(tmp_path / "many.jsonl"), "b": [], "kind": "pseudo", "block_examples": 8}
    found = made(inputs, tmp_path, kernel=kernel)
    assert_close(found["kernel"], expected(inputs, str(tmp_path / "many.jsonl"), None, kind="pseudo"))


@pytest.mark.slow
def test_all_parameters_of_a_model_without_adapter(inputs, tmp_path):
    """The fresh adapter that runs carry has no part in it."""
    score = {"parameters": "all", "span": "all"}
    found = made(inputs, tmp_path, adapter=False, score=score, kernel={"kind": "pseudo"})
    assert_close(found["kernel"], expected(inputs, kind="pseudo", **score))


def test_split_weights(inputs, tmp_path):
    found = made(inputs, tmp_path, mesh={"data": 1, "fsdp": 4}, kernel={"kind": "pseudo"})
    assert_close(found["kernel"], expected(inputs, kind="pseudo"))


def test_samples_and_losses_are_counted(inputs, tmp_path, capsys):
    (inputs / "some.jsonl").write_text("\n".join((inputs / "pool.jsonl").read_text().splitlines()[34:]))
    kernel = {"b": str(inputs / "some.jsonl"), "limit": 8, "kind": "pseudo", "block_examples": 16}
    found = made(inputs, tmp_path, kernel=kernel)
    data = json.loads((tmp_path / "run" / "kernel" / "data.json").read_text())
    assert data["a"]["records"] == data["a"]["kept"] == 8 and data["b"]["records"] == 8
    lost = data["b"]["dropped"]["too long"]
    assert lost > 0 and found["kernel"].shape == (8, 8 - lost) == (8, len(found["ids_b"]))
    assert f"kernel.b: {lost} examples are left out (too long)" in capsys.readouterr().out

    kernel = {"a": str(inputs / "some.jsonl"), "b": [], "kind": "pseudo", "block_examples": 16}
    made(inputs, tmp_path / "cut", kernel=kernel, model={"overflow": "truncate"})
    shown = capsys.readouterr().out
    assert (
        "left out" not in shown and "kernel.a: 3 examples lost the start of their prompt to model.max_length" in shown
    )


@pytest.mark.parametrize("b", ["few.jsonl", None])
def test_an_interrupted_kernel_ends_in_the_same_bytes(inputs, tmp_path, monkeypatch, capsys, b):
    """The process dies after its first block, and again while it writes the result."""
    kernel = {"b": str(inputs / b) if b else []}
    made(inputs, tmp_path / "whole", kernel=kernel)
    config = config_of(inputs, tmp_path / "killed", kernel=kernel)
    real, folder = blocks.write_block, tmp_path / "killed" / "run" / "kernel"

    def dying(store: Any, block: int, arrays: Any) -> None:
        if block == 1:
            raise KeyboardInterrupt
        real(store, block, arrays)

    monkeypatch.setattr(blocks, "write_block", dying)
    assert cli.main(["kernel", config]) == 130
    assert done_blocks(open_store(folder / "kernel.zarr")) == {0} and not (folder / "kernel.npz").exists()

    written: list[int] = []
    monkeypatch.setattr(
        blocks, "write_block", lambda store, block, arrays: (written.append(block), real(store, block, arrays))
    )
    replace = os.replace

    def dying_at_the_end(source: Any, target: Any) -> None:
        if Path(target).name == "kernel.npz":
            raise KeyboardInterrupt
        replace(source, target)

    monkeypatch.setattr(atomic.os, "replace", dying_at_the_end)
    assert cli.main(["kernel", config]) == 130
    assert written == [1] and not (folder / "manifest.json").exists()
    monkeypatch.setattr(atomic.os, "replace", replace)
    assert cli.main(["kernel", config]) == 0
    assert written == [1], "nothing is computed twice"
    whole = tmp_path / "whole" / "run" / "kernel" / "kernel.npz"
    assert (folder / "kernel.npz").read_bytes() == whole.read_bytes()
    assert json.loads((folder / "summary.json").read_text())["seconds"] > 0


def test_a_finished_kernel_is_skipped_and_a_changed_one_refused(inputs, tmp_path, capsys):
    made(inputs, tmp_path)
    path = tmp_path / "run" / "kernel" / "kernel.npz"
    before = path.stat().st_mtime_ns
    made(inputs, tmp_path)
    assert path.stat().st_mtime_ns == before and "done before" in capsys.readouterr().err
    config = config_of(inputs, tmp_path)
    refused(capsys, ["kernel", config, "--kernel.kind=pseudo"], 'kernel.kind was "trace", is now "pseudo"')
    few = inputs / "few.jsonl"
    whole = few.read_text()
    few.write_text(whole.replace("+ 1 =", "+ 2 ="))
    try:
        refused(capsys, ["kernel", config], "few.jsonl ")
    finally:
        few.write_text(whole)
    with lock(tmp_path / "run"):
        refused(capsys, ["kernel", config], "is in use by another process")
    path.write_bytes(b"edited")
    refused(capsys, ["kernel", config], "kernel.npz is not as its stage wrote it")


def test_a_kernel_beside_a_run(inputs, tmp_path, capsys):
    """One file with the sections of both, one run directory: neither makes the other stale; provenance and plan keep
    both."""
    path = tmp_path / "both.json"
    path.write_text(json.dumps(tree_of(inputs, tmp_path)))
    made(inputs, tmp_path)
    assert cli.main(["warmup", str(path), "--warmup.max_steps=1"]) == 0
    assert cli.main(["kernel", str(path)]) == 0
    assert "done before" in capsys.readouterr().err
    provenance = json.loads((tmp_path / "run" / "provenance.json").read_text())
    assert set(provenance["stages"]) == {"kernel", "warmup"}
    assert {"a", "b", "domain", "model"} == set(provenance["hashes"])
    plans = json.loads((tmp_path / "run" / "plan.json").read_text())["pipelines"]
    assert [stage["name"] for stage in plans["kernel"]["stages"]] == ["kernel"]
    assert "kernel" not in [stage["name"] for stage in plans["select"]["stages"]]


def refused(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    """Exit code 2, and one line that says it."""
    capsys.readouterr()
    assert cli.main(arguments) == 2
    shown = capsys.readouterr().err.splitlines()
    assert shown[-1].startswith("ntk-jax: error: ") and message in shown[-1], shown
    assert sum("error" in line or "Traceback" in line for line in shown) == 1


class TestMistakes:
    @pytest.mark.parametrize(
        "overrides, message",
        [
            (["--kernel.a=[]"], "kernel.a is not set; give the files of the examples"),
            (["--kernel.a=EMPTY"], "empty.jsonl: no records; give a source with at least one"),
            (["--kernel.b=EMPTY"], "empty.jsonl: no records; give a source with at least one"),
            (["--kernel.a=nowhere.jsonl"], "nowhere.jsonl does not exist; correct the path"),
            (["--model.adapter=null"], "the LoRA adapter is fresh"),
            (["--model.adapter=null", "--score.parameters=lora/.*/a$"], "the LoRA adapter is fresh"),
            (["--score.parameters=("], "is not a regular expression"),
            (["--score.parameters=zzz"], "matches no parameter"),
            (["--model.max_length=3"], "kernel.a: none of 8 examples"),
            (["--kernel.kind=full", "--kernel.method=products"], "kernel.kind = full needs kernel.method = jacobian"),
            (
                ["--kernel.kind=probe", "--kernel.orthogonal=true", "--kernel.probes=9999"],
                "orthogonal ones",
            ),
            (["--kernel.kind=ful"], "kernel.kind = 'ful' is not one of full, trace"),
            (["--kernel.block_examples=0"], "kernel.block_examples = 0 must be at least 1"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_one_line(self, inputs, tmp_path, capsys, overrides, message):
        (tmp_path / "empty.jsonl").write_text("")
        overrides = [override.replace("EMPTY", str(tmp_path / "empty.jsonl")) for override in overrides]
        refused(capsys, ["kernel", config_of(inputs, tmp_path), *overrides], message)
        assert not (tmp_path / "run" / "kernel").exists(), "said before anything is written"

    def test_full_over_too_many_outputs(self, inputs, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr("ntk_jax.pipelines.kernel.kernel.MOST_BYTES", 2**24)
        config = config_of(inputs, tmp_path, kernel={"kind": "full"})
        vocabulary = nj.load_model(str(inputs / "model")).config.vocab_size
        size = 4 * 8 * 10 * vocabulary**2 / 2**30
        outputs = f"{vocabulary:,} × {vocabulary:,} outputs"
        refused(capsys, ["kernel", config], f"full: 8 × 10 pairs of {outputs} are {size:,.1f} GiB, more than 0.0 GiB")
        assert not (tmp_path / "run" / "kernel").exists(), "so that the settings can still be changed"

    def test_a_kernel_that_is_not_finite_names_where(self, inputs, tmp_path, capsys):
        shutil.copytree(inputs / "adapter", tmp_path / "adapter")
        path = tmp_path / "adapter" / "adapter_model.safetensors"
        save_file({name: 1e30 * leaf for name, leaf in load_file(path).items()}, path, metadata={"format": "pt"})
        config = config_of(inputs, tmp_path, model={"adapter": str(tmp_path / "adapter")})
        refused(capsys, ["kernel", config], "is not finite")
        refused(capsys, ["kernel", config], "counted from box-0 in a and ball-15 in b")
