"""Stores of sketches: the numbers of `nj.sketch`, the same bytes after an interruption, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorstore as ts
from kernel_reference import random_rows, reference_gradients, tiny_model
from tiny_run import run, tiny_run_config, write_inputs

import ntk_jax as nj
from ntk_jax import pipelines
from ntk_jax.engine import blocks, plan
from ntk_jax.errors import UserError
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.parameters import split_parameters
from ntk_jax.kernels.projections import Projection
from ntk_jax.kernels.rows import Layout
from ntk_jax.kernels.sketch import sketch_batches, within_budget
from ntk_jax.parallel.mesh import make_mesh
from ntk_jax.pipelines.common.arrays import load_arrays
from ntk_jax.report.page import write_report
from ntk_jax.selection import sketch_store
from ntk_jax.storage import arrays

OPTIONS = {"dim": 256, "batch_tokens": 256, "block_examples": 4}


def examples(count: int = 10, seed: int = 0) -> list:
    rows = random_rows(count, seed=seed)
    return [dataclasses.replace(row, id=f"ex-{number}-é") for number, row in enumerate(rows)]


def store_in(folder: Path, rows: list | None = None, model=None, **options):
    return nj.sketch(model or tiny_model(), rows or examples(), out=folder, **{**OPTIONS, **options})


def bytes_of(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A store that nobody interrupted; tests read it only."""
    folder = tmp_path_factory.mktemp("sketches") / "whole.zarr"
    store_in(folder)
    return folder


@pytest.mark.parametrize("kind", [pytest.param("sum_logits", marks=pytest.mark.slow), "probe"])
def test_a_store_holds_the_sketches_and_the_exact_norms(tmp_path, kind):
    model, rows = tiny_model(), examples(5)
    options = {"objective": nj.Objective(kind, probes=2)}
    z = nj.sketch(model, rows, dim=256, batch_tokens=256, **options)  # the shapes of the store's: compiled once
    store = store_in(tmp_path / "s", rows, out_dtype="float32", **options)
    assert store.read("sketch").dtype == np.float32
    rebuilt = store.read("sketch") * store.read("sketch_norm")[:, None]
    np.testing.assert_allclose(rebuilt, z, rtol=1e-4, atol=1e-5 * np.abs(z).max())
    features = np.array(reference_gradients(model, rows, Objective(kind, probes=2)))  # [N, C, P]
    norms = np.sqrt(np.square(features).sum(axis=2).mean(axis=1))
    np.testing.assert_allclose(store.read("norm"), norms, rtol=1e-4)
    assert sketch_store.ids_of(store, 1, 3) == ["ex-1-é", "ex-2-é"]
    assert store.read("ordinal").tolist() == [0, 1, 2, 3, 4]
    assert store.read("length").tolist() == [len(row.ids) for row in rows]
    half = store_in(tmp_path / "half", rows, **options)
    units = store.read("sketch").astype(float)
    stored = half.read("sketch")
    assert stored.dtype == np.float16 and half.read("sketch", 1, 3).shape == (2, 256)
    assert np.abs(stored.astype(float) @ stored.T.astype(float) - units @ units.T).max() < 1e-3


def test_a_norm_beyond_the_range_of_squares():
    row, model = examples(1), tiny_model()
    lora = jax.tree.map(lambda leaf: leaf * 1e-12, model.lora)  # the logits are linear in the head
    base = {**model.base, "head": model.base["head"] * 1e24}
    huge = dataclasses.replace(model, base=base, lora=lora)
    _, _, norms = next(
        sketch_batches(huge, row, Objective(), Layout(64, 1, packed=False), Projection("rademacher", 64))
    )
    assert np.isfinite(norms).all() and norms[0] > 0


@pytest.mark.parametrize("at", ["between blocks", "inside a block", "before the marker"])
def test_an_interrupted_store_ends_in_the_same_bytes(whole, tmp_path, monkeypatch, at):
    folder, write, write_mark = tmp_path / "s", blocks.write_block, arrays._write_mark

    def dying_block(store, block, values):
        if block == 1 and at == "inside a block":  # some of its arrays are written, others not
            store.arrays["sketch"][slice(*store.block_range(1))].write(values["sketch"]).result()
        if block == 1 and at != "before the marker":
            raise KeyboardInterrupt
        write(store, block, values)

    def dying_mark(store, block):
        if block == 1:
            raise KeyboardInterrupt
        write_mark(store, block)

    monkeypatch.setattr(blocks, "write_block", dying_block)
    monkeypatch.setattr(arrays, "_write_mark", dying_mark)
    with pytest.raises(KeyboardInterrupt):
        store_in(folder)
    monkeypatch.undo()
    assert bytes_of(folder) != bytes_of(whole)
    store_in(folder)
    assert bytes_of(folder) == bytes_of(whole)


def test_a_finished_store_is_only_opened(whole, monkeypatch):
    monkeypatch.setattr(sketch_store, "sketch_batches", None)
    assert store_in(whole).rows == 10


def test_one_and_eight_devices_agree(whole, tmp_path):
    eight = store_in(tmp_path / "s", mesh=make_mesh(), out_dtype="float32", batch_tokens=512)
    one = store_in(tmp_path / "one", out_dtype="float32")
    for name in ("sketch", "sketch_norm", "norm"):
        a, b = one.read(name), eight.read(name)
        assert np.abs(a - b).max() < 1e-5 * np.abs(a).max(), name


def test_fewer_rows_at_a_time_change_no_row():
    model, rows, objective = tiny_model(), examples(7), Objective()
    theta = split_parameters(model, "lora")[0]
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(theta))
    layout = Layout(64, 8, packed=False)
    assert within_budget(layout, theta, 1, 8 * size).rows_per_batch == 8
    assert within_budget(layout, theta, 2, 8 * size).rows_per_batch == 4
    assert within_budget(layout, theta, 1, 1).rows_per_batch == 1
    spread = Layout(64, 16, make_mesh(), packed=False)
    assert within_budget(spread, theta, 1, size).rows_per_batch == 8  # one row a device

    def all_of(budget):
        parts = list(sketch_batches(model, rows, objective, layout, Projection("rademacher", 256), budget=budget))
        assert sorted(np.concatenate([part[0] for part in parts]).tolist()) == list(range(7))
        return len(parts), *(np.concatenate([part[i] for part in parts]) for i in (1, 2))

    many, few = all_of(2**30), all_of(3 * size)
    assert (many[0], few[0]) == (1, 3)
    for a, b in zip(many[1:], few[1:], strict=True):
        assert np.abs(a - b).max() < 1e-5 * np.abs(a).max()


def test_tensorstore_alone_opens_a_store(whole):
    """By a specification written by hand, as someone without this package would."""
    for name, shape in (("sketch", (10, 256)), ("norm", (10,)), ("id", (10, 7))):
        path = f"{whole}/{name}/"
        array = ts.open({"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}, open=True).result()
        assert array.shape == shape
        np.testing.assert_array_equal(array[2:5].read().result(), arrays.open_store(whole).read(name, 2, 5))
    group = json.loads((whole / "zarr.json").read_text())
    assert group["node_type"] == "group" and group["attributes"]["facts"]["seed"] == 0


def test_zarr_python_opens_a_store(whole):
    zarr = pytest.importorskip("zarr")
    group = zarr.open_group(whole, mode="r")
    np.testing.assert_array_equal(group["sketch"][2:5], nj.open_sketches(whole).read("sketch", 2, 5))
    assert group.attrs["facts"]["projection"] == "rademacher"


def test_a_store_ranks_a_store(whole, tmp_path):
    targets = store_in(tmp_path / "t", examples(3, seed=5))
    found = nj.rank_sketches(nj.open_sketches(whole), targets, "cosine", 4)
    units = [nj.open_sketches(whole).read("sketch").astype(np.float32), targets.read("sketch").astype(np.float32)]
    cosines = (units[0] @ units[1].T).mean(axis=1)
    np.testing.assert_allclose(found.scores, cosines, rtol=1e-4, atol=1e-6)
    assert found.order.tolist() == np.argsort(-cosines, kind="stable")[:4].tolist()


class TestMistakes:
    def refused(self, message: str, *arguments, **options):
        with pytest.raises(UserError, match=message) as error:
            store_in(*arguments, **options)
        assert "\n" not in str(error.value)

    def test_a_store_made_by_something_else(self, whole):
        self.refused("whole.zarr was made with seed 0, not 1; give another folder, or delete this one", whole, seed=1)
        self.refused("made with model [0-9a-f]{12}..., not [0-9a-f]{12}...; ", whole, model=tiny_model(seed=3))
        adapter = jax.tree.map(lambda leaf: leaf * 2, tiny_model().lora)
        other = dataclasses.replace(tiny_model(), lora=adapter)
        self.refused("made with adapter [0-9a-f]{12}..., not [0-9a-f]{12}...; give", whole, model=other)
        self.refused("made with examples.tokens ", whole, rows=examples(seed=1))
        self.refused("made with dim 256, not 128", whole, dim=128)
        self.refused("made with projection rademacher, not kronecker", whole, projection="kronecker")
        self.refused("of another layout .block_rows is 4, not 5", whole, block_examples=5)

    def test_opening_with_an_expectation(self, whole):
        assert nj.open_sketches(whole, expect={"seed": 0, "objective": "sum_logits"}).rows == 10
        with pytest.raises(UserError, match="was made with seed 0, not 1; objective sum_logits, not probe; give"):
            nj.open_sketches(whole, expect={"seed": 1, "objective": "probe"})
        with pytest.raises(UserError, match="was made with sed absent, not 1"):
            nj.open_sketches(whole, expect={"sed": 1})

    def test_stores_that_do_not_compare(self, whole, tmp_path):
        targets = store_in(tmp_path / "t", examples(3, seed=5), seed=1)
        with pytest.raises(UserError, match="whole.zarr was made with seed 0, not 1 as .*/t; sketches compare only"):
            nj.rank_sketches(nj.open_sketches(whole), targets, "max", 2)

    def test_a_damaged_chunk(self, whole, tmp_path):
        shutil.copytree(whole, tmp_path / "s")
        chunk = tmp_path / "s" / "sketch" / "c" / "1" / "0"
        content = bytearray(chunk.read_bytes())
        content[100] ^= 1
        chunk.write_bytes(content)
        store = nj.open_sketches(tmp_path / "s")
        with pytest.raises(UserError, match="s/sketch/c/1/0: block 1 is damaged .*delete this file"):
            nj.rank_sketches(store, nj.open_sketches(whole), "mean", 2)
        chunk.unlink()  # as the message says
        store_in(tmp_path / "s")
        assert bytes_of(tmp_path / "s") == bytes_of(whole)

    def test_more_numbers_than_parameters(self, tmp_path):
        self.refused("dim = 1048576 is larger than the", tmp_path / "s", dim=2**20)
        assert not (tmp_path / "s").exists(), "said before anything is written"

    def test_no_examples(self, tmp_path):
        with pytest.raises(UserError, match="the list is empty"):
            nj.sketch(tiny_model(), [], out=tmp_path / "s", dim=256)

    def test_a_gradient_that_is_not_finite(self, tmp_path):
        model, rows = tiny_model(), examples(6)
        token = int(rows[5].ids[0])
        first = next(number for number, row in enumerate(rows) if token in row.ids)
        broken = dataclasses.replace(model, base={**model.base, "embed": model.base["embed"].at[token].set(jnp.nan)})
        self.refused(f"example ex-{first}-é: its gradient is not finite", tmp_path / "s", rows, broken)

    def test_ids_that_are_absurd(self, tmp_path):
        rows = [dataclasses.replace(examples(1)[0], id="x" * 1025)]
        self.refused("the longest id has 1025 bytes, a store of sketches takes 1024", tmp_path / "s", rows)

    def test_a_store_of_something_else(self, tmp_path):
        arrays.create(tmp_path / "s", {"score": ((), np.float32)}, 3, 2)
        with pytest.raises(UserError, match="s is a store of score, not of sketches"):
            nj.open_sketches(tmp_path / "s")
        with pytest.raises(UserError, match="holds no array store"):
            nj.open_sketches(tmp_path / "none")


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


def by_sketches(inputs: Path, name: str, by: str = "mean", **sections):
    """A run that selects by sketches, and by chance as the control."""
    select = {"methods": ["sketch", "random"], "sketch": {"by": by}}
    return tiny_run_config(inputs, name, select=select, **sections)


@pytest.fixture(scope="module")
def sketched(inputs) -> Path:
    return run(by_sketches(inputs, "sketched"), until="sketch")


class TestRuns:
    @pytest.mark.parametrize("by", ["mean", "cosine", "max", "round_robin"])
    def test_a_run_selects_by_sketches(self, inputs, sketched, by):
        out = inputs / f"by-{by}"
        shutil.copytree(sketched, out)
        config = by_sketches(inputs, out.name, by)
        assert run(config, until=None if by == "mean" else "select") == out
        assert not (out / "score").exists() and not (out / "gradient").exists()
        selection = [json.loads(line) for line in (out / "select" / "selection.jsonl").read_text().splitlines()]
        assert len({r["id"] for r in selection}) == 6 and {r["method"] for r in selection} == {f"sketch:{by}"}
        summary = json.loads((out / "select" / "summary.json").read_text())
        found = summary["by_method"]["sketch"]
        assert (summary["methods"], summary["scored"]) == (["sketch", "random"], 40)
        assert found["label"] == f"sketch:{by}" and sum(found["histogram"]["pool"]) == 40
        assert (found["threshold"] is None) == (by == "round_robin")
        assert (out / "select" / "sketch.jsonl").read_bytes() == (out / "select" / "selection.jsonl").read_bytes()
        if by != "round_robin":
            assert all(a["score"] >= b["score"] for a, b in zip(selection, selection[1:], strict=False))
        assert not {r["id"] for r in selection} & {f"long-{i}" for i in range(3)}, "dropped examples have no sketch"
        page = write_report(out, pipelines.report_parts()).read_text()
        assert f"sketch:{by}" in page and "Scoring” has not run" not in page
        if by == "mean":
            arms = json.loads((out / "evaluate" / "results.json").read_text())["arms"]
            assert [arm["name"] for arm in arms] == ["base", "domain", "random", "sketch"]
            assert len(json.loads((out / "align" / "examples.json").read_text())) == 2
        before = {path: path.stat().st_mtime_ns for path in (out / "select").iterdir()}
        run(config, until="select")  # done before
        assert before == {path: path.stat().st_mtime_ns for path in (out / "select").iterdir()}

    def test_the_stores_of_a_run(self, inputs, sketched):
        pool, targets = (nj.open_sketches(sketched / "sketch" / f"{name}.zarr") for name in ("pool", "domain"))
        assert (pool.rows, targets.rows) == (43, 8) and pool.facts["dim"] == 64
        model = nj.load_model(str(inputs / "model"), adapter=str(sketched / "warmup" / "adapter"))
        pool_examples = [json.loads(line) for line in (inputs / "pool.jsonl").read_text().splitlines()]
        options = {"dim": 64, "span": nj.Span(max_length=64), "batch_tokens": 512}
        z = nj.sketch(model, pool_examples[:40], **options)
        rebuilt = pool.read("sketch", 0, 40) * pool.read("sketch_norm", 0, 40)[:, None]
        np.testing.assert_allclose(rebuilt, z, atol=2e-3 * np.abs(z).max())
        assert pool.read("status").tolist() == [0] * 40 + [1] * 3
        assert not pool.read("sketch", 40).any() and sketch_store.ids_of(pool, 42) == ["long-2"]
        made = nj.sketch(model, str(inputs / "domain.jsonl"), out=inputs / "mine.zarr", **options)
        nj.rank_sketches(pool, made, "max", 3)  # a store of Python's fits one of the pipeline's
        summary = json.loads((sketched / "sketch" / "summary.json").read_text())
        assert (summary["rows"], summary["scored"], summary["targets"]) == (43, 40, 8) and summary["flops"] > 0

    def test_after_votes_and_resumed(self, inputs, monkeypatch):
        voted = {"method": "votes", "keep": 12, "neighbours": 5}
        projected = {"block_examples": 5, "projection": "countsketch"}
        config = by_sketches(inputs, "voted", "cosine", preselect=voted, sketch=projected)
        real = blocks.write_block

        def dying(store, block, values):
            if store.folder.endswith("pool.zarr") and block == 1:
                raise KeyboardInterrupt
            return real(store, block, values)

        monkeypatch.setattr(blocks, "write_block", dying)
        with pytest.raises(KeyboardInterrupt):
            run(config, until="select")
        monkeypatch.undo()
        folder = run(config, until="select")
        other = run(dataclasses.replace(config, out=str(inputs / "voted-whole")), until="select")
        assert bytes_of(folder / "sketch" / "pool.zarr") == bytes_of(other / "sketch" / "pool.zarr")
        candidates = load_arrays(folder / "preselect" / "votes.npz")["candidates"]
        pool = nj.open_sketches(folder / "sketch" / "pool.zarr")
        assert pool.read("ordinal").tolist() == candidates.tolist()
        assert (folder / "select" / "selection.jsonl").read_bytes() == (
            other / "select" / "selection.jsonl"
        ).read_bytes()

    def test_what_a_selection_depends_on(self, inputs):
        select = pipelines.pipeline("select")
        hashes = plan._input_hashes(select, tiny_run_config(inputs), ("warmup", "gradient", "score", "select"))

        def keys(method, **sections):
            made = tiny_run_config(inputs, select={"methods": [method]}, **sections)
            return plan._sign(select, made, "select", hashes).fingerprint

        assert not any(key.startswith("sketch.") for key in keys("kernel"))
        assert "score.direction" in keys("kernel") and "score.direction" not in keys("sketch")
        assert keys("sketch")["sketch.dim"] == 64 and keys("sketch", sketch={"dim": 32}) != keys("sketch")
        assert keys("kernel", sketch={"dim": 32}) == keys("kernel")

    def test_settings_that_cannot_work_together(self, inputs):
        for message, sections in (
            ("use a multiple of 32", {"sketch": {"dim": 100}}),
            ("dim = 8192 is larger than the", {"sketch": {"dim": 8192}}),
            ("score.direction = adam has no say in sketches.*leave sketch out", {"score": {"direction": "adam"}}),
        ):
            with pytest.raises(UserError, match=message):
                run(by_sketches(inputs, "together", "max", **sections))
        assert not (inputs / "together" / "warmup").exists(), "said before anything is computed"
        with pytest.raises(
            UserError, match="--until score: a run of this config has no such stage; its stages are war"
        ):
            run(by_sketches(inputs, "together", "max"), until="score")
