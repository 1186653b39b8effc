"""Derivatives of the held-out loss by the weights of training examples: against plain differentiation of the whole
training, finite differences, retraining, and the first-order kernel."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from metagradient_reference import CONFIG, LENGTH, SEED, WEIGHTS, data, found, fresh_model, loss_of, tiny_model

from ntk_jax.errors import UserError
from ntk_jax.kernels.direction import mean_gradient
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.rows import layout_for
from ntk_jax.kernels.score import directional_scores
from ntk_jax.models.memory import Shape, second_order_bytes
from ntk_jax.parallel.mesh import make_mesh
from ntk_jax.training import metagradient as module
from ntk_jax.training.flops import training_flops
from ntk_jax.training.metagradient import metagradient, metagradient_memory
from ntk_jax.training.optimizer import TrainConfig
from ntk_jax.training.train import train
from ntk_jax.training.unrolled import course, held_out_rows, trained

TINY = 1e-12
STRANGE = "of another model, training or held-out set; give another folder, or delete first"
HERE = Path(__file__).parent


def assert_like(values, expected, tolerance):
    """To a share of the largest."""
    assert np.abs(expected).max() > 1e-4
    np.testing.assert_allclose(values, expected, atol=tolerance * np.abs(expected).max(), rtol=0)


# The loss and its derivatives as the reference finds them in double precision, which takes half a minute.
AFTER = 5.44629843990364
PLAIN = np.array(
    [
        -0.0011755909,
        0.00906781347,
        -0.000525779169,
        -0.0015020813,
        0.00124642897,
        -0.00226037578,
        0.000666651673,
        -0.00139743444,
        -0.000177147344,
    ]
)


@pytest.mark.slow
def test_in_double_precision_it_is_exact():
    """A fresh adapter, unequal weights, clipping, decay, several microbatches a step. With B = 0 every A has gradient 0
    in the first step, where Adam's root has no derivative."""
    done = subprocess.run(
        [sys.executable, str(HERE / "metagradient_reference.py")], capture_output=True, text=True, cwd=HERE
    )
    assert done.returncode == 0, done.stderr
    double = json.loads(done.stdout)
    np.testing.assert_allclose([double["after"][1], *double["plain"]], [AFTER, *PLAIN], rtol=1e-6)
    ours, expected = np.array(double["ours"]), np.array(double["plain"])
    assert double["after"][0] == pytest.approx(double["after"][1], rel=1e-12)
    assert_like(ours, expected, 1e-6)
    differences = np.array(double["differences"])
    assert_like(ours[: len(differences)], differences, 1e-3)


def test_in_fp32():
    """As in double precision. Rounding is larger in derivatives through Adam than in its steps: within 2% of the
    largest."""
    result = found(fresh_model(), weights=WEIGHTS, by="example")
    assert result.after == pytest.approx(AFTER, rel=1e-5)
    assert_like(result.values, PLAIN, 0.02)


@pytest.mark.parametrize("loss", ["token_mean", "example_mean"])
def test_the_training_is_that_of_train(tmp_path, loss):
    """Fresh adapter, several epochs, several microbatches a step, clipping: to the rounding of fp32."""
    config = TrainConfig(
        epochs=3, learning_rate=1e-2, batch_size=5, weight_decay=0.1, tokens_per_microbatch=64, loss=loss
    )
    rows = [*data()["fixed"], *data()["candidates"]]
    theirs = train(fresh_model(), rows, config, folder=tmp_path, seed=SEED, row_length=LENGTH)
    ours = trained(course(fresh_model(), rows, config, seed=SEED, row_length=LENGTH))
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs.lora), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
    result = found(fresh_model(), config)
    np.testing.assert_allclose(result.losses, [entry["loss"] for entry in theirs.history], rtol=1e-5)


def test_leaving_an_example_out():
    """Retraining with weight 0 changes the loss by -w dL/dw, nearly, where the training is smooth in the weights. Adam
    is not at once: its first update is the gradients' signs, which jump. So here its eps is what divides: all weights
    are 1e-12, and gradients with them."""
    config = TrainConfig(max_steps=4, learning_rate=100.0, batch_size=6, tokens_per_microbatch=128, max_grad_norm=0.0)
    config = dataclasses.replace(config, warmup_ratio=0.0)
    ones = np.full(9, TINY)
    result = found(config=config, fixed=(), weights=ones)
    rows = data()["candidates"]
    here = loss_of(tiny_model(), ones, config, rows)
    changes = np.array(
        [loss_of(tiny_model(), ones * (np.arange(len(ones)) != j), config, rows) - here for j in range(9)]
    )
    assert result.after == pytest.approx(here) and abs(result.before - result.after) > 0.005
    assert np.corrcoef(-result.values, changes)[0, 1] >= 0.99
    assert np.polyfit(-TINY * result.values, changes, 1)[0] == pytest.approx(1.0, abs=0.1)


def test_of_one_step_it_is_the_first_order_kernel():
    """Gradients far below eps make of Adam plain descent with lr/eps."""
    config = TrainConfig(
        max_steps=1, learning_rate=1e-3, batch_size=64, max_grad_norm=0.0, warmup_ratio=0.0, tokens_per_microbatch=1024
    )
    rows, held_out = data()["candidates"], data()["held_out"]
    result = found(config=config, fixed=(), weights=np.full(len(rows), TINY))
    layout = layout_for(LENGTH, 1024, None)
    objective = Objective("cross_entropy", "sum")
    direction = mean_gradient(tiny_model(), held_out, objective, layout)
    kernel = directional_scores(tiny_model(), rows, direction, objective, layout).values
    labels = [sum(int(row.span[:-1].sum()) for row in part) for part in (held_out, rows)]
    expected = -kernel * len(held_out) / labels[0] / labels[1] * config.learning_rate / 1e-8
    assert_like(result.values, expected, 1e-3)


def test_of_a_mean_over_examples():
    """Where every step has all N examples, of L_j labels each, the mean over examples is the mean over labels with
    weights that are Σ L / (N L_j) times as large."""
    rows = data()["candidates"]
    labels = np.array([int(row.span[:-1].sum()) for row in rows])
    assert len(set(labels.tolist())) > 2
    times = labels.sum() / (len(rows) * labels)
    whole = dataclasses.replace(CONFIG, batch_size=len(rows))
    by_label = found(config=whole, fixed=(), weights=WEIGHTS * times)
    by_example = found(config=dataclasses.replace(whole, loss="example_mean"), fixed=(), weights=WEIGHTS)
    assert by_example.after == pytest.approx(by_label.after, rel=1e-6)
    assert_like(by_example.values, by_label.values * times, 1e-2)
    assert np.abs(times - 1).max() > 0.2  # another loss than that over labels


@pytest.mark.parametrize(("segments", "limit"), [(2, 64), (3, 256)])  # every limit is compiled anew
def test_neither_segments_nor_microbatches_matter(segments, limit):
    config = dataclasses.replace(CONFIG, tokens_per_microbatch=limit)
    expected = found().values
    assert_like(found(config=config, segments=segments).values, expected, 1e-2 if limit != 64 else 1e-6)


def test_recomputed_layers_and_a_mesh_do_not_matter():
    expected = found().values
    assert_like(found(remat=True).values, expected, 1e-2)
    mesh = make_mesh(data=4, fsdp=2)
    config = dataclasses.replace(CONFIG, tokens_per_microbatch=8 * LENGTH)
    assert_like(found(config=config, mesh=mesh, segments=2).values, expected, 1e-2)


def test_flops_are_counted_by_what_is_seen():
    """Three gradients a step; with segments, of which each is trained through again, four."""
    rows, config = data()["candidates"], dataclasses.replace(CONFIG, max_steps=None, epochs=2.0)
    tokens, labels = 2 * sum(len(row.ids) for row in rows), 2 * sum(int(row.span[:-1].sum()) for row in rows)
    size = sum(leaf.size for leaf in jax.tree.leaves(tiny_model().lora))
    once = training_flops(tiny_model().config, tokens, labels, lora_parameters=size)
    assert found(config=config, fixed=()).flops == pytest.approx(3 * once)
    assert found(config=config, fixed=(), segments=2).flops == pytest.approx(4 * once)


def test_what_is_not_trained_on_has_no_derivative():
    config = dataclasses.replace(CONFIG, max_steps=1, batch_size=4)
    result = found(config=config)
    assert 0 < (result.seen > 0).sum() < len(result.seen) and result.seen.sum() <= 4
    assert (result.values[result.seen == 0] == 0).all() and (result.values[result.seen > 0] != 0).all()


def test_steps_without_any_weight():
    """All gradients 0: neither the clipping's root nor Adam's makes NaN of it."""
    result = found(fixed=(), weights=np.zeros(9), config=dataclasses.replace(CONFIG, max_steps=2))
    assert np.isfinite(result.values).all() and (result.losses == 0).all()
    assert result.after != result.before, "decay alone moves the adapter"


class _Killed(Exception):
    pass


@pytest.mark.parametrize("segments", [1, 2])
def test_what_is_killed_goes_on_to_the_same_numbers(tmp_path, segments):
    """Killed at every call of progress there and back, each time once more: the same bytes, and less left each time
    that a segment is done."""
    config = dataclasses.replace(CONFIG, max_steps=5)
    whole = found(config=config, segments=segments)
    for at in range(1, 5 * (1 + segments) + 1):
        folder, calls, left = tmp_path / str(at), 0, []

        def dies(done, total, note, at=at, left=left):
            nonlocal calls
            calls += 1
            left.append(total - done)
            if calls == at:
                raise _Killed

        with pytest.raises(_Killed):
            found(config=config, segments=segments, keep=folder, progress=dies)
        after: list[tuple[int, int]] = []

        def said(done, total, note, after=after):
            after.append((done, total))

        result = found(config=config, segments=segments, keep=folder, progress=said)
        assert [done for done, _ in after] == list(range(1, after[0][1] + 1))
        np.testing.assert_array_equal(result.values, whole.values)
        np.testing.assert_array_equal(result.losses, whole.losses)
        assert (result.before, result.after, result.flops) == (whole.before, whole.after, whole.flops)
        assert (result.seen == whole.seen).all() and after[0][1] <= left[-1] + 3 + (3 if segments == 2 else 5)
    counts: list[int] = []
    options = {"config": config, "segments": segments, "keep": tmp_path / "done"}
    found(**options)
    again = found(progress=lambda *step: counts.append(step[0]), **options)
    np.testing.assert_array_equal(again.values, whole.values)
    assert not counts, "it was done already"


def test_a_damaged_or_strange_trail(tmp_path):
    config = dataclasses.replace(CONFIG, max_steps=4)
    found(config=config, keep=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"first-000000.npz", "first-000002.npz", "back.npz"}
    (tmp_path / "back.npz").write_bytes(b"PK")
    with pytest.raises(
        UserError, match=r"back.npz is damaged .*; delete first-\*.npz and back.npz in .* and run again"
    ):
        found(config=config, keep=tmp_path)
    (tmp_path / "back.npz").unlink()
    first = tmp_path / "first-000002.npz"
    with np.load(first) as stored:
        arrays = {name: stored[name] for name in stored.files}
    with pytest.raises(UserError, match=STRANGE):
        found(config=dataclasses.replace(config, learning_rate=2 * config.learning_rate), keep=tmp_path)
    for changed in ({"held_out": data()["held_out"][::-1]}, {"fixed": ()}, {"by": "example"}):
        with pytest.raises(UserError, match=STRANGE):
            found(config=config, keep=tmp_path, **changed)
    np.savez(first, **{**arrays, "leaf-0": arrays["leaf-0"][..., :-1]})
    with pytest.raises(UserError, match=STRANGE):
        found(config=config, keep=tmp_path)


def test_a_trail_with_a_gap(tmp_path):
    config = dataclasses.replace(CONFIG, max_steps=4)

    def dies(done, total, note):
        if note == "way back" and done == total - 2:
            raise _Killed

    with pytest.raises(_Killed):
        found(config=config, keep=tmp_path, progress=dies)
    (tmp_path / "first-000000.npz").unlink()
    with pytest.raises(UserError, match=r"first-000000.npz is missing; delete first-\*.npz and back.npz in"):
        found(config=config, keep=tmp_path)


def test_progress_counts_to_its_end():
    for segments, times in ((1, 2), (2, 3)):
        said = []
        found(segments=segments, progress=lambda done, total, note, said=said: said.append((done, total)))
        assert said == [(n, times * CONFIG.max_steps) for n in range(1, times * CONFIG.max_steps + 1)]


def test_the_memory_is_that_of_the_compiled_pass():
    """The formula against XLA's own account of the second-order pass, within a factor of 2, layers kept and not."""
    model, config = tiny_model(), dataclasses.replace(CONFIG, tokens_per_microbatch=8 * 64)
    for remat in (False, True):
        rows = [dataclasses.replace(row) for row in data()["candidates"] * 8]
        run = course(model, rows, dataclasses.replace(config, batch_size=64), seed=0, row_length=64, remat=remat)
        (piece, *_) = run.pieces(0)
        slots = np.ones(piece.owner.shape, np.float32)
        compiled = module._second.lower(
            run.static, run.lora, run.base, piece.batch, slots, run.lora, run.lora
        ).compile()
        expected = second_order_bytes(model.config, Shape(run.shapes.rows, 64, run.shapes.labels), 4, remat)
        assert 0.5 < expected / compiled.memory_analysis().temp_size_in_bytes < 2.0, remat


def test_more_steps_take_no_more_of_the_device():
    rows, held = data()["candidates"], held_out_rows(data()["held_out"], CONFIG, LENGTH)

    def memory(steps, segments=None):
        config = dataclasses.replace(CONFIG, max_steps=steps)
        run = course(tiny_model(), rows, config, seed=0, row_length=LENGTH)
        return metagradient_memory(run, held, tiny_model(), segments)

    few, many = memory(100, 10), memory(10_000, 100)
    assert few.device == many.device and many.host == pytest.approx(10 * few.host)
    assert memory(10_000, 100).host < memory(10_000, 1).host / 50
    assert memory(4).segments == 1


def test_mistakes(monkeypatch):
    with pytest.raises(UserError, match="no candidates"):
        found(candidates=[])
    with pytest.raises(UserError, match="no held-out examples with a response"):
        found(held_out=[])
    for weights in (np.ones(3), np.full(9, np.nan)):
        with pytest.raises(UserError, match="one finite number for each of the 9 candidates"):
            found(weights=weights)
    with pytest.raises(UserError, match="segments = 6: a training of 3 steps has 1 to 3"):
        found(segments=6)
    with pytest.raises(UserError, match="by = 'word' is neither"):
        found(by="word")
    with pytest.raises(UserError, match="has no LoRA adapter"):
        found(dataclasses.replace(tiny_model(), lora={}))
    with pytest.raises(UserError, match="not finite; lower the learning rate"):
        found(config=dataclasses.replace(CONFIG, learning_rate=1e30))
    monkeypatch.setattr(module, "memory_limit", lambda count: 1000)
    with pytest.raises(UserError, match="GB a device, of which there are 0.0; lower tokens_per_microbatch"):
        found()
    monkeypatch.setattr(module, "memory_limit", lambda count: None)
    monkeypatch.setattr(module, "host_memory", lambda: 1000)
    with pytest.raises(UserError, match="take about √3 = 2 segments"):
        found()


def test_only_the_adapter_given_is_used():
    """Arguments of the public function: one candidate alone, trained on itself, lowers its own loss."""
    row = data()["candidates"][:1]
    config = TrainConfig(max_steps=2, learning_rate=1e-3, batch_size=1, tokens_per_microbatch=64)
    result = metagradient(tiny_model(), row, row, config=config, seed=0, row_length=LENGTH)
    assert result.after < result.before and result.seen.tolist() == [2]
