"""The rankers less and low_rank through the whole pipeline, against plain references over the run's own files."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from kernel_reference import flatten, random_rows, reference_gradients, tiny_model
from tiny_run import run, tiny_run_config, write_inputs

from ntk_jax.data.sources import read_records
from ntk_jax.engine.plan import same_results
from ntk_jax.engine.shards import Shard
from ntk_jax.engine.stage import Job
from ntk_jax.errors import UserError
from ntk_jax.kernels.adam import Moments, adam_updates
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.per_example import example_gradients
from ntk_jax.kernels.projections import Projection, project_with_key
from ntk_jax.kernels.rows import Layout
from ntk_jax.kernels.sketch import sketch_batches
from ntk_jax.models.model import with_lora
from ntk_jax.parallel.mesh import make_mesh
from ntk_jax.pipelines.common.arrays import load_tree, tree_facts
from ntk_jax.pipelines.select import less, low_rank
from ntk_jax.pipelines.select.stages import PIPELINE
from ntk_jax.pipelines.select.state import open_run
from ntk_jax.selection.ranker import Candidates
from ntk_jax.selection.rankers import RANKERS
from ntk_jax.storage.arrays import open_store, read
from ntk_jax.training.optimizer import TrainConfig
from ntk_jax.training.train import train

ALONE = Layout(64, 4, packed=False)
METHODS = {"methods": ["less", "low_rank", "random"], "count": 6}
LESS = {"select": {**METHODS, "less": {"checkpoints": 2, "momentum": True}, "low_rank": {"components": 3}}}
SETTINGS = {**LESS, "score": {"objective": "cross_entropy"}, "lora": {"rank": 2, "alpha": 4}}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gradients")
    write_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def finished(inputs):
    config = tiny_run_config(inputs, "run", **SETTINGS)
    run(config, until="select")
    return config, inputs / "run"


def projected(projection, gradients):
    """[B, K] of leaves [B, 1, ...], by the key that the first channel of a sketch has."""
    key = jax.random.fold_in(jax.random.key(projection.seed, impl="threefry2x32"), 0)
    return np.asarray(project_with_key(projection.kind, projection.dim, projection.sparsity, key, gradients))[:, 0]


# ---------------------------------------------------------------------------------------------------------------
# Adam's updates


def test_an_update_is_the_next_step_of_the_optimiser_on_the_example_alone():
    """Against optax, which is handed the state after some steps."""
    rng = np.random.default_rng(0)
    theta = {"a": jnp.zeros((2, 3)), "b": jnp.zeros((4,))}
    draw = lambda like: jax.tree.map(lambda leaf: jnp.asarray(rng.standard_normal(leaf.shape), jnp.float32), like)  # noqa: E731
    adam = optax.scale_by_adam(b1=0.8, b2=0.95)
    state = adam.init(theta)
    for _ in range(3):
        _, state = adam.update(draw(theta), state)
    gradients = [draw(theta) for _ in range(5)]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves)[:, None], *gradients)  # [B, C, ...]
    found = adam_updates(stacked, Moments(state.mu, state.nu, 3, 0.8, 0.95))
    for number, gradient in enumerate(gradients):
        expected, _ = adam.update(gradient, state)
        jax.tree.map(lambda a, b, n=number: np.testing.assert_allclose(a[n, 0], b, rtol=1e-5), found, expected)


def test_sketches_of_a_feature_on_a_mesh_or_off():
    model, objective, projection = tiny_model(), Objective("cross_entropy"), Projection(dim=64, seed=2)
    rows = random_rows(11, seed=3)
    zeros = jax.tree.map(jnp.ones_like, model.lora)
    moments = Moments(zeros, zeros, 4, 0.9, 0.999)
    feature = lambda gradients: adam_updates(gradients, moments)  # noqa: E731
    expected = np.zeros((11, 64), np.float32)
    for ordinals, gradients in example_gradients(model, rows, objective, ALONE):
        used = ordinals >= 0
        expected[ordinals[used]] = projected(projection, feature(gradients))[used]
    for layout in (ALONE, dataclasses.replace(ALONE, rows_per_batch=8, mesh=make_mesh())):
        found = np.zeros_like(expected)
        for ordinals, part, _ in sketch_batches(model, rows, objective, layout, projection, feature=feature):
            found[ordinals] = part
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())


def test_the_trainer_keeps_adams_moments(tmp_path):
    """After each step m and v follow from the gradients' moving averages: those of a training that ends there."""
    model, rows, kept = tiny_model(), random_rows(6, seed=4), {}
    settings = TrainConfig(max_steps=3, batch_size=4, schedule="constant", warmup_ratio=0.0, learning_rate=1e-2)
    trained = train(
        model, rows, settings, folder=tmp_path / "whole", seed=0, row_length=64, keep_steps=(1, 3), keep_moments=True,
        keep=lambda step, tree: kept.update({step: jax.tree.map(np.array, tree)}),
    )  # fmt: skip
    assert sorted(kept) == [1, 3] and set(kept[1]) == {"parameters", "m", "v"}
    short = train(
        model, rows, dataclasses.replace(settings, max_steps=1), folder=tmp_path / "one", seed=0, row_length=64
    )
    for number, end in ((1, short), (3, trained)):
        jax.tree.map(np.testing.assert_array_equal, kept[number]["parameters"], jax.tree.map(np.asarray, end.lora))
        corrected = jax.tree.map(lambda v, n=number: v / (1 - np.float32(0.999) ** n), kept[number]["v"])
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), corrected, end.second_moment)


# ---------------------------------------------------------------------------------------------------------------
# Runs


def test_less_of_a_run_is_the_formula(finished):
    assert_less(*finished, 0.9)


def test_less_without_the_first_moment(inputs):
    """By default: what the example itself brings."""
    methods = {"methods": ["less"], "count": 6, "less": {"checkpoints": 2}}
    config = tiny_run_config(inputs, "own", **{**SETTINGS, "select": methods})
    assert_less(config, run(config, until="select"), 0.0)


def assert_less(config, folder, keeps):
    """Per-example gradients one at a time from whole logits, Adam's formula by hand, the explicit projection, cosines,
    and the weights from the learning rates of the history. keeps: the share of m in an update."""
    state = open_run(config, Job(folder, lambda *_: lambda *_: None))
    domain = state.domain
    pool = [(record, row) for record, row in state.encoder.rows(list(read_records(config.data.pool)), "response")]
    usable = [place for place, (_, row) in enumerate(pool) if hasattr(row, "ids")]
    history = [json.loads(line) for line in (folder / "warmup/history.jsonl").read_text().splitlines()]
    rates = [entry["learning_rate"] for entry in history]
    weights = np.array([np.mean(rates[:2]), rates[2]])  # two of three steps: after steps 2 and 3
    weights /= weights.sum()
    total, objective = 0.0, Objective("cross_entropy")
    for number in (1, 2):
        path = folder / f"warmup/trajectory/{number}.safetensors"
        base = state.model.base
        kept = load_tree(path, {"parameters": base.lora, "m": base.lora, "v": base.lora})
        t = int(tree_facts(path)["step"])
        assert t == {1: 2, 2: 3}[number]
        model = with_lora(base, kept["parameters"])
        g = np.concatenate(reference_gradients(model, [pool[place][1] for place in usable], objective))  # [n, P]
        h = np.concatenate(reference_gradients(model, domain.rows, objective))
        m, v = (flatten(kept[name], 1)[0] for name in ("m", "v"))
        first, second = keeps * m + 0.1 * g, 0.999 * v + 0.001 * g**2
        updates = (first / (1 - 0.9 ** (t + 1))) / (np.sqrt(second / (1 - 0.999 ** (t + 1))) + 1e-8)
        z, y = (_project(config, base.lora, rows) for rows in (updates, h))
        z, y = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (z, y))
        total = total + weights[number - 1] * (z @ y.T).mean(axis=1)  # all of the domain is of one source
    store = open_store(folder / "less/1/pool.zarr")
    assert np.flatnonzero(read(store, "status") == 0).tolist() == usable
    records = [json.loads(line) for line in (folder / "select/less.jsonl").read_text().splitlines()]
    order = np.argsort(-total, kind="stable")[:6]
    assert [r["method"] for r in records] == ["less:subtask"] * 6
    np.testing.assert_allclose([r["score"] for r in records], total[order], atol=2e-3)  # rows are kept in float16
    by_id = {pool[place][0]["id"]: score for place, score in zip(usable, total, strict=True)}
    np.testing.assert_allclose([r["score"] for r in records], [by_id[r["id"]] for r in records], atol=2e-3)


def _project(config, like, rows):
    """[n, K] of rows [n, P], leaf by leaf as the run's projection takes them."""
    leaves, structure = jax.tree.flatten(like)
    ends = np.cumsum([leaf.size for leaf in leaves])
    parts = np.split(rows.astype(np.float32), ends[:-1], axis=1)
    shaped = [part.reshape(len(rows), 1, *leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    section = config.sketch
    projection = Projection(section.projection, section.dim, config.seed, section.sparsity)
    return projected(projection, jax.tree.unflatten(structure, shaped))


def test_low_rank_of_a_run_is_the_formula(finished):
    config, folder = finished
    state = open_run(config, Job(folder, lambda *_: lambda *_: None))
    pool = list(state.encoder.rows(list(read_records(config.data.pool)), "response"))
    usable = [(record, row) for record, row in pool if hasattr(row, "ids")]
    objective = Objective("cross_entropy")
    g = np.concatenate(reference_gradients(state.warm, state.domain.rows, objective))
    h = np.concatenate(reference_gradients(state.warm, [row for _, row in usable], objective))
    u = np.linalg.svd(g, full_matrices=False)[2][:3]
    expected = h @ (u.T @ (u @ g.mean(axis=0)))
    by_id = {record["id"]: score for (record, _), score in zip(usable, expected, strict=True)}
    records = [json.loads(line) for line in (folder / "select/low_rank.jsonl").read_text().splitlines()]
    scale = np.abs(expected).max()
    np.testing.assert_allclose([r["score"] for r in records], [by_id[r["id"]] for r in records], atol=2e-3 * scale)
    np.testing.assert_allclose([r["score"] for r in records], np.sort(expected)[::-1][:6], atol=2e-3 * scale)
    summary = json.loads((folder / "subspace/summary.json").read_text())
    sigma = np.linalg.svd(g, compute_uv=False)
    assert math.isclose(summary["energy_share"], (sigma[:3] ** 2).sum() / (sigma**2).sum(), rel_tol=1e-3)


def test_shards_leave_the_same_bytes(finished, inputs):
    """Each block of the stores is another command's."""
    _, folder = finished
    config = tiny_run_config(inputs, "sharded", **SETTINGS)
    run(config, until="warmup")
    for only in ("subspace", "low_rank", "less"):
        for index in (1, 0):
            run(config, only=only, shard=Shard(index, 2))
        run(config, only=only, merge=True)
    run(config, until="select")
    for method in ("less", "low_rank"):
        assert (inputs / f"sharded/select/{method}.jsonl").read_bytes() == (
            folder / f"select/{method}.jsonl"
        ).read_bytes()


class Stopped(Exception):
    """As if the process ended."""


def test_what_is_stopped_goes_on_to_the_same_bytes(finished, inputs):
    """In the warm-up behind its first kept checkpoint, and in the middle of the stores of each new stage."""
    _, folder = finished
    config = tiny_run_config(inputs, "stopped", **SETTINGS)
    for title, after in (
        ("warmup", 2),
        ("domain gradients", 8),
        ("low_rank", 16),
        ("domain at checkpoint 1 of 2", 8),
        ("pool at checkpoint 2 of 2", 16),
    ):

        def stop_there(name, *_, title=title, after=after):
            def say(done, *_):
                if name == title and done >= after:
                    raise Stopped

            return say

        with pytest.raises(Stopped):
            run(config, until="select", progress=stop_there)
        assert not (inputs / "stopped/select/manifest.json").exists()
    run(config, until="select")
    for method in ("less", "low_rank"):
        same = [(place / f"select/{method}.jsonl").read_bytes() for place in (inputs / "stopped", folder)]
        assert same[0] == same[1]


def test_behind_votes_the_candidates_have_the_scores_of_the_whole_pool(finished, inputs):
    _, folder = finished
    config = tiny_run_config(
        inputs, "voted", **{**SETTINGS, "preselect": {"method": "votes", "keep": 12, "neighbours": 4}}
    )
    run(config, until="select")
    for method, options in (("less", {"atol": 1e-3}), ("low_rank", {"rtol": 1e-4})):
        whole, voted = (_scores_by_id(config, place, method) for place in (folder, inputs / "voted"))
        assert len(voted) == 12 < len(whole)
        np.testing.assert_allclose(list(voted.values()), [whole[name] for name in voted], **options)


def _scores_by_id(config, folder, method):
    """{ordinal: score of the ranker} from the stores of a run."""
    stage = {"less": "less/1/pool.zarr", "low_rank": "low_rank/scores.zarr"}[method]
    ordinals = read(open_store(folder / stage), "ordinal")
    state = open_run(dataclasses.replace(config, out=str(folder)), Job(folder, lambda *_: lambda *_: None))
    places = np.searchsorted(state.pool.ordinals, ordinals)
    size = len(state.pool.ordinals)
    if method == "less":
        more = {"checkpoints": less.checkpoints_of(state, places)}
    else:
        more = {"components": low_rank.components_of(folder, size, places)}
    usable = np.zeros(size, bool)
    usable[places] = read(open_store(folder / stage), "status") == 0
    candidates = Candidates(
        count=1, seed=0, usable=usable, length=usable, span=usable, records=list, domain=state.domain.records, **more
    )
    ranker = RANKERS[method]
    scores = ranker.rank(candidates, ranker.options()).scores
    return {place: scores[place] for place in np.flatnonzero(usable).tolist()}


def test_a_domain_that_spans_fewer_directions_than_asked_for(inputs):
    """Four copies of one record: one direction, along which the score is the mean kernel itself."""
    record = json.loads((inputs / "domain.jsonl").read_text().splitlines()[0])
    copies = [json.dumps({**record, "id": f"copy-{number}"}) for number in range(4)]
    (inputs / "copies.jsonl").write_text("\n".join(copies) + "\n")
    config = tiny_run_config(
        inputs, "copies", data={"domain": [str(inputs / "copies.jsonl")]}, score={"objective": "cross_entropy"},
        select={"methods": ["kernel", "low_rank"], "count": 6, "low_rank": {"components": 3}},
    )  # fmt: skip
    folder = run(config, until="align")
    summary = json.loads((folder / "subspace/summary.json").read_text())
    assert (summary["asked"], summary["components"], summary["rank"]) == (3, 1, 1)
    kernel, low = ([json.loads(line) for line in (folder / f"select/{method}.jsonl").read_text().splitlines()]
                   for method in ("kernel", "low_rank"))  # fmt: skip
    assert [r["id"] for r in kernel] == [r["id"] for r in low]
    np.testing.assert_allclose([r["score"] for r in low], [r["score"] for r in kernel], rtol=1e-3)


def test_the_warm_up_keeps_checkpoints_only_where_they_are_asked_for(finished, inputs):
    _, folder = finished
    signed = json.loads((folder / "warmup/fingerprint.json").read_text())
    assert signed["kept"] == {"select.less.checkpoints": 2} and "select.less.checkpoints" not in signed["fingerprint"]
    methods = {"methods": ["kernel", "random"], "less": {"checkpoints": 3}}
    run(tiny_run_config(inputs, "plain", select=methods), until="warmup")
    assert "kept" not in json.loads((inputs / "plain/warmup/fingerprint.json").read_text())
    assert not (inputs / "plain/warmup/trajectory").exists()
    same = [(inputs / place / "warmup/adapter/adapter_model.safetensors").read_bytes() for place in ("plain", "run")]
    assert same[0] == same[1], "keeping checkpoints changes no training"


def test_a_warm_up_that_kept_checkpoints_serves_a_run_that_asks_for_none(finished, inputs):
    config, folder = finished
    shutil.copytree(folder, inputs / "fewer", ignore=shutil.ignore_patterns(".*", "select", "finetune", "evaluate"))
    before = (inputs / "fewer/warmup/manifest.json").stat().st_mtime_ns
    fewer = tiny_run_config(inputs, "fewer", **{**SETTINGS, "select": {"methods": ["kernel", "random"]}})
    assert "warmup" in same_results(PIPELINE, config, fewer)
    assert "warmup" not in same_results(PIPELINE, fewer, config), "what was not kept is not there"
    run(fewer, until="select")
    assert (inputs / "fewer/warmup/manifest.json").stat().st_mtime_ns == before
    run(tiny_run_config(inputs, "none", select={"methods": ["kernel", "random"]}), until="warmup")
    with pytest.raises(UserError, match=r"warmup was made from something else: select.less.checkpoints was absent"):
        run(tiny_run_config(inputs, "none", **LESS), until="warmup")


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"warmup": {"max_steps": 0}}, "less needs checkpoints of the warm-up, and warmup.max_steps = 0 makes none"),
        ({"select": {**LESS["select"], "less": {"checkpoints": 9}}}, "9 checkpoints of a warm-up of 3 steps; lower it"),
        (
            {"select": {**LESS["select"], "methods": ["low_rank"], "low_rank": {"components": 9}}},
            "select.low_rank.components = 9 is more than the 8 usable examples of data.domain",
        ),
        (
            {"select": {**LESS["select"], "less": {"checkpoints": 2, "group_by": "topic"}}},
            "select.less.group_by = topic: no record of the domain has this key",
        ),
        ({"warmup": {"learning_rate": 0.0}}, "less weights checkpoints by the learning rate"),
        ({"sketch": {"dim": 8192}}, "dim = 8192 is larger than the"),
        ({"score": {"direction": "adam"}}, "score.direction = adam has no say in low_rank"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(inputs, changes, message):
    config = tiny_run_config(inputs, "refused", **{**SETTINGS, **changes})
    with pytest.raises(UserError, match=message):
        run(config, until="select")
    assert not (inputs / "refused/warmup").exists()
