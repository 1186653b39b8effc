"""The stages embed and losses in runs: their numbers, going on after an interruption, and what selects by them."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_reference import random_rows, tiny_model
from model_calls import hidden_of
from tiny_run import run, tiny_run_config, write_inputs

import ntk_jax as nj
from ntk_jax import pipelines
from ntk_jax.data.span import Span
from ntk_jax.engine import blocks, plan
from ntk_jax.engine.config import load_config
from ntk_jax.engine.estimate import estimate_run
from ntk_jax.engine.shards import Shard
from ntk_jax.errors import UserError
from ntk_jax.kernels.rows import Layout
from ntk_jax.pipelines.select import hidden
from ntk_jax.pipelines.select.config import SelectConfig
from ntk_jax.report.page import write_report
from ntk_jax.storage.arrays import open_store, read

ROOT = Path(__file__).resolve().parent.parent
METHODS = ["embedding", "tsds", "perplexity", "perplexity_lowest", "paths", "kernel_residual", "random"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


def config_of(inputs: Path, out: str, methods: list[str] = METHODS, **sections: Any) -> SelectConfig:
    return tiny_run_config(inputs, out, select={"methods": methods}, **sections)


@pytest.fixture(scope="module")
def selected(inputs: Path) -> Path:
    """A run that selects by all of them; tests read it only."""
    return run(config_of(inputs, "selected", report={"examples": 0, "useful": ["ball"]}), until="select")


def records_of(inputs: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (inputs / f"{name}.jsonl").read_text().splitlines()]


def rows_of(model: nj.Model, inputs: Path, name: str) -> list[Any]:
    return nj.token_rows(model, records_of(inputs, name), span=Span(max_length=64, overflow="drop"))


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def states_of(model: nj.Model, row: Any) -> np.ndarray:
    """[T, D] float64 of one example alone: what fills it up to one length, for one program, is behind it."""
    ids = np.zeros((1, 64), np.int32)
    ids[0, : len(row.ids)] = row.ids
    return np.asarray(hidden_of(model, ids), np.float64)[0, : len(row.ids)]


def test_every_method_selects(inputs: Path, selected: Path) -> None:
    labels = [
        "embedding:round_robin",
        "tsds",
        "perplexity:middle",
        "perplexity:lowest",
        "paths",
        "residual:sum_logits",
        "random",
    ]
    summary = json.loads((selected / "select" / "summary.json").read_text())
    for method, label in zip(METHODS, labels, strict=True):
        found = records_of(selected / "select", method)
        assert len({record["id"] for record in found}) == 6 and {record["method"] for record in found} == {label}
        assert not {record["id"] for record in found} & {f"long-{i}" for i in range(3)}, "they were dropped"
        assert all((record["score"] is None) == (method == "random") for record in found)
        assert summary["by_method"][method]["label"] == label
    assert (summary["pool"], summary["pool_records"]) == (40, 43)
    page = write_report(selected, pipelines.report_parts()).read_text()
    for label in labels:
        assert label in page


def test_the_embeddings_of_a_run(inputs: Path, selected: Path) -> None:
    """RDS+ of the base model: state i of all tokens weighs i, each example alone."""
    model = nj.load_model(str(inputs / "model"))
    for name, size in (("pool", 43), ("domain", 8)):
        store = open_store(selected / "embed" / f"{name}.zarr")
        found, kept = read(store, "embedding"), read(store, "status") == 0
        assert store.rows == size and found.dtype == np.float16 and read(store, "ordinal").tolist() == list(range(size))
        for row, unit, keep in zip(rows_of(model, inputs, name), found, kept, strict=True):
            assert keep == (row is not None)
            if row is None:
                assert not unit.any()
                continue
            states = states_of(model, row)
            pooled = (np.arange(1, len(states) + 1)[:, None] * states).sum(axis=0)
            np.testing.assert_allclose(unit, pooled / np.linalg.norm(pooled), atol=2e-3)
    summary = json.loads((selected / "embed" / "summary.json").read_text())
    assert (summary["embedded"], summary["targets"], summary["model"]) == (40, 8, "base") and summary["flops"] > 0


def test_the_losses_of_a_run(inputs: Path, selected: Path) -> None:
    """By the logits of the whole vocabulary, each example alone."""
    store = open_store(selected / "losses" / "losses.zarr")
    kept = read(store, "status") == 0
    adapter = str(selected / "warmup" / "adapter")
    models = {
        "base": nj.load_model(str(inputs / "model")),
        "warm": nj.load_model(str(inputs / "model"), adapter=adapter),
    }
    assert int(kept.sum()) == 40
    for name, model in models.items():
        found = read(store, name)
        assert not found[~kept].any()
        head = np.asarray(model.base["head"] if "head" in model.base else model.base["embed"], np.float64)
        for row, loss in list(zip(rows_of(model, inputs, "pool"), found, strict=True))[::7]:
            if row is None:
                continue
            log_probs = np.asarray(jax.nn.log_softmax(states_of(model, row) @ head.T))
            places = np.flatnonzero(row.span[:-1])
            expected = -np.mean([log_probs[place, row.ids[place + 1]] for place in places])
            assert loss == pytest.approx(expected, rel=1e-4)
    assert (read(store, "base") != read(store, "warm")).any()
    chosen = records_of(selected / "select", "paths")
    base, warm = read(store, "base"), read(store, "warm")
    share = {
        f"{record['id']}": (b - w) / b for record, b, w in zip(records_of(inputs, "pool"), base, warm, strict=True) if b
    }
    assert [record["id"] for record in chosen] == sorted(share, key=lambda id: -share[id])[:6]


def test_only_what_a_method_needs_is_computed(inputs: Path) -> None:
    folder = run(config_of(inputs, "plain", ["embedding", "tsds", "random"]), until="select")
    assert not (folder / "warmup").exists() and (folder / "embed").exists() and not (folder / "pool").exists()
    warm = {"model": "warm", "pooling": "mean", "span": "response"}
    folder = run(config_of(inputs, "warm", ["embedding"], embedding=warm), until="select")
    assert (folder / "warmup").exists()
    model = nj.load_model(str(inputs / "model"), adapter=str(folder / "warmup" / "adapter"))
    row = rows_of(model, inputs, "pool")[3]
    pooled = states_of(model, row)[row.span].mean(axis=0)
    unit = read(open_store(folder / "embed" / "pool.zarr"), "embedding", 3, 4)[0]
    np.testing.assert_allclose(unit, pooled / np.linalg.norm(pooled), atol=2e-3)


def test_after_votes_only_candidates_are_looked_at(inputs: Path) -> None:
    voted = {"method": "votes", "keep": 12, "neighbours": 5}
    folder = run(config_of(inputs, "voted", preselect=voted), until="select")
    candidates = np.load(folder / "preselect" / "votes.npz")["candidates"]
    for place in ("embed/pool.zarr", "losses/losses.zarr"):
        assert read(open_store(folder / place), "ordinal").tolist() == candidates.tolist()
    allowed = {records_of(inputs, "pool")[i]["id"] for i in candidates}
    for method in METHODS[:-1]:
        assert {record["id"] for record in records_of(folder / "select", method)} <= allowed, method


@pytest.mark.parametrize("stage", ["embed", "losses"])
def test_an_interrupted_stage_ends_in_the_same_bytes(inputs: Path, selected: Path, monkeypatch, stage: str) -> None:
    config = config_of(inputs, f"cut-{stage}", report={"examples": 0, "useful": ["ball"]})
    name, real, last = {"embed": "pool.zarr", "losses": "losses.zarr"}[stage], blocks.write_block, []

    def dying(store: Any, block: int, values: Any) -> None:
        if store.folder.endswith(f"{stage}/{name}"):
            last.append(block)
            if block == 1:
                raise KeyboardInterrupt
        real(store, block, values)

    monkeypatch.setattr(blocks, "write_block", dying)
    with pytest.raises(KeyboardInterrupt):
        run(config, until="select")
    monkeypatch.undo()
    computed: list[int] = []
    monkeypatch.setattr(
        blocks, "write_block", lambda store, block, values: (computed.append(block), real(store, block, values))[1]
    )
    folder = run(config, until=stage)
    assert last == [0, 1] and computed[:2] == [1, 2], "the first block is not computed again"
    run(config, until="select")
    assert bytes_of(folder / stage / name) == bytes_of(selected / stage / name)
    for method in METHODS:
        assert bytes_of(folder / "select")[f"{method}.jsonl"] == bytes_of(selected / "select")[f"{method}.jsonl"]


def test_shards_make_the_same_stores(inputs: Path, selected: Path) -> None:
    config = config_of(inputs, "shards", report={"examples": 0, "useful": ["ball"]})
    shutil.copytree(selected, inputs / "shards")
    for stage in ("select", "losses", "embed"):
        shutil.rmtree(inputs / "shards" / stage)
    for stage in ("embed", "losses"):
        for index in (1, 0):
            run(config, only=stage, shard=Shard(index, 2))
        run(config, only=stage, merge=True)
        for name in ("pool.zarr", "domain.zarr") if stage == "embed" else ("losses.zarr",):
            assert bytes_of(inputs / "shards" / stage / name) == bytes_of(selected / stage / name)


def test_one_device_and_split_weights_give_the_same(inputs: Path, selected: Path) -> None:
    """The default mesh is all 8 simulated devices on the axis data; here: one, and weights split over four."""
    for name, mesh in (("one", {"data": 1}), ("split", {"data": 2, "fsdp": 4})):
        folder = run(config_of(inputs, f"mesh-{name}", METHODS[:4], mesh=mesh), until="losses")
        for place, array, close in (
            ("embed/pool.zarr", "embedding", 2e-3),
            ("losses/losses.zarr", "base", 1e-4),
            ("losses/losses.zarr", "warm", 1e-3),
        ):
            here, there = (read(open_store(each / place), array).astype(float) for each in (folder, selected))
            np.testing.assert_allclose(here, there, atol=close, err_msg=f"{name} {place} {array}")


def test_on_data_whose_useful_families_are_known(tmp_path: Path) -> None:
    """The embedded model and a sample of the embedded pool: who looks at the domain finds more of them than chance."""
    overrides = [
        *(
            f"--out={tmp_path / 'run'}",
            "--data.pool_limit=600",
            "--select.count=30",
            "--score.block_examples=256",
            "--mesh.data=1",
        ),
        "--select.methods=[embedding, tsds, perplexity, paths, random]",
    ]
    run(load_config(str(ROOT / "configs" / "quickstart.yaml"), SelectConfig, overrides), until="select")
    found = json.loads((tmp_path / "run" / "select" / "summary.json").read_text())
    share = {name: method["useful_share"] for name, method in found["by_method"].items()}
    assert 0.1 < found["useful_share_pool"] < 0.2
    for method, times in (("embedding", 2.5), ("paths", 2.5), ("tsds", 1.5)):  # tsds spreads what it draws
        assert share[method] > times * found["useful_share_pool"], share
    warmed = json.loads((tmp_path / "run" / "losses" / "summary.json").read_text())["mean"]
    assert warmed["warm"] != warmed["base"]


def test_what_the_selections_depend_on(inputs: Path) -> None:
    select = pipelines.pipeline("select")
    made = tiny_run_config(inputs)
    hashes = plan._input_hashes(select, made, ("warmup", "embed", "losses", "select"))

    def keys(method: str, **sections: Any) -> dict[str, Any]:
        config = config_of(inputs, "run", [method], **sections)
        return plan._sign(select, config, "select", hashes).fingerprint

    assert not any(key.startswith("embedding.") for key in keys("paths"))
    assert keys("embedding")["embedding.pooling"] == "position" and not any(
        key.startswith(("warmup", "lora")) for key in keys("embedding")
    )
    assert "warmup.max_steps" in keys("embedding", embedding={"model": "warm"})
    assert keys("tsds", embedding={"pooling": "mean"}) != keys("tsds")
    assert keys("paths", embedding={"pooling": "mean"}) == keys("paths")
    assert keys("tsds")["select.tsds.alpha"] == 0.5 and "select.tsds.alpha" not in keys("embedding")


@pytest.mark.parametrize("span", ["last", "all"])
def test_lengths_are_those_of_responses_whatever_is_scored(inputs: Path, span: str) -> None:
    sections = {"methods": ["bm25", "length_matched"], "length_matched": {"to": "bm25"}}
    found = []
    for out, score in (("by-response", {}), (f"by-{span}", {"score": {"span": span}})):
        place = run(tiny_run_config(inputs, out, select=sections, **score), until="select") / "select"
        summary = json.loads((place / "summary.json").read_text())
        found.append(((place / "length_matched.jsonl").read_bytes(), summary["median_span_pool"]))
    assert found[0] == found[1] and found[0][1] > 1


def test_mistakes(inputs: Path) -> None:
    with pytest.raises(
        UserError, match="paths ranks by what the warm-up takes away.*set it higher, or leave paths out"
    ):
        run(config_of(inputs, "mistake", ["paths"], warmup={"max_steps": 0}))
    assert not (inputs / "mistake" / "warmup").exists(), "said before anything is computed"


def test_a_zero_embedding_names_its_example() -> None:
    model = tiny_model()
    zero = dataclasses.replace(model, base={**model.base, "norm": jnp.zeros_like(model.base["norm"])})
    rows = [({}, dataclasses.replace(random_rows(1)[0], id="still"))]
    with pytest.raises(UserError, match="^example still: its hidden states are zero on average"):
        hidden.unit_hidden(zero, rows, Layout(64, 8), lambda done, total: None)


def test_an_estimate_counts_what_the_run_counted(inputs: Path, selected: Path) -> None:
    found = estimate_run(
        pipelines.pipeline("select"), config_of(inputs, "selected", report={"examples": 0, "useful": ["ball"]})
    )
    for stage in ("embed", "losses"):
        summary = json.loads((selected / stage / "summary.json").read_text())
        row = next(row for row in found["stages"] if row["stage"] == stage)
        assert row["flops"] == pytest.approx(summary["flops"], rel=0.02)
        assert row["tokens"] == pytest.approx(summary["tokens"], rel=0.02)
