"""`train` as a whole: what it learns, what it leaves alone, what it refuses, and that devices do not matter."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kernel_reference import random_rows, tiny_model

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.packing import pad
from ntk_jax.errors import UserError
from ntk_jax.models.model import random_model
from ntk_jax.parallel.mesh import make_mesh
from ntk_jax.training import train as train_module
from ntk_jax.training.flops import training_flops
from ntk_jax.training.loss import loss_sum
from ntk_jax.training.optimizer import TrainConfig, learning_rates, make_optimizer, settings_of
from ntk_jax.training.order import step_rows
from ntk_jax.training.train import Trained, train

ROWS = random_rows(16, seed=2, lengths=(5, 12, 16))
CONFIG = TrainConfig(max_steps=3, batch_size=8, learning_rate=1e-2, tokens_per_microbatch=32, weight_decay=0.01)


def run(folder: Path, config: TrainConfig = CONFIG, **changes: Any) -> Trained:
    options: dict[str, Any] = dict(model=tiny_model(), rows=ROWS, folder=folder, seed=1, row_length=16) | changes
    return train(options.pop("model"), options.pop("rows"), config, **options)


def largest_difference(a: Any, b: Any) -> float:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x, np.float32) - np.asarray(y, np.float32)).max()) for x, y in pairs)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Trained]:
    yield run(tmp_path_factory.mktemp("one"))


def test_accumulated_steps_equal_steps_on_one_big_batch(one_device: Trained) -> None:
    """The whole training written out: one padded batch a step, the token mean, plain optax."""
    model = tiny_model()
    optimizer = make_optimizer(settings_of(CONFIG))
    lora, state = model.lora, optimizer.init(model.lora)

    @jax.jit
    def big_step(lora: Any, state: Any, batch: Any, rate: Any) -> Any:
        count = (batch.label_segment > 0).sum()
        loss, gradient = jax.value_and_grad(lambda lora: loss_sum(model.graphdef, lora, model.base, batch)[0] / count)(
            lora
        )
        updates, state = optimizer.update(gradient, state, lora)
        return jax.tree.map(lambda leaf, update: leaf + rate * update, lora, updates), state, loss

    for step, rate in enumerate(learning_rates(CONFIG, 3)):
        rows = step_rows(ROWS, step, CONFIG, 1)
        batch = next(pad(rows, row_length=16, rows_per_batch=8)).batch
        lora, state, loss = big_step(lora, state, batch, rate)
        assert one_device.history[step]["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert largest_difference(one_device.lora, lora) < 1e-5


def test_a_mean_over_examples(tmp_path: Path) -> None:
    """Every example counts as much as any other, however long, over microbatches and devices: written out."""
    config = replace(CONFIG, loss="example_mean")
    model = tiny_model()
    optimizer = make_optimizer(settings_of(config))
    lora, state = model.lora, optimizer.init(model.lora)

    @jax.jit
    def mean_of_means(lora: Any, batches: Any) -> Any:
        each = [loss_sum(model.graphdef, lora, model.base, b)[0] / (b.label_segment > 0).sum() for b in batches]
        return sum(each) / len(each)

    found = run(tmp_path / "one", config)
    for step, rate in enumerate(learning_rates(config, 3)):
        rows = step_rows(ROWS, step, config, 1)
        assert len({int(row.span[:-1].sum()) for row in rows}) > 1
        batches = [next(pad([row], row_length=16, rows_per_batch=1)).batch for row in rows]
        loss, gradient = jax.value_and_grad(mean_of_means)(lora, batches)
        updates, state = optimizer.update(gradient, state, lora)
        lora = jax.tree.map(lambda leaf, update, rate=rate: leaf + rate * update, lora, updates)
        assert found.history[step]["loss"] == pytest.approx(float(loss), rel=1e-5)
    assert largest_difference(found.lora, lora) < 1e-5
    assert largest_difference(run(tmp_path / "eight", config, mesh=make_mesh(8)).lora, lora) < 2e-5
    assert largest_difference(run(tmp_path / "tokens").lora, lora) > 1e-4  # it is another training


def test_devices_do_not_matter(tmp_path: Path, one_device: Trained) -> None:
    """Eight devices agree with one, and a resumed run there gives the same bits."""
    config = replace(CONFIG, checkpoint_every=1)

    def stop(done: int, total: int, note: str) -> None:
        if done == 2:
            raise KeyboardInterrupt

    mesh = make_mesh(8)
    whole = run(tmp_path / "whole", config, mesh=mesh)
    assert largest_difference(whole.lora, one_device.lora) < 1e-5
    assert whole.history[0]["loss"] == pytest.approx(one_device.history[0]["loss"], rel=1e-5)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", config, mesh=mesh, progress=stop)
    seen: list[int] = []
    cut = run(tmp_path / "cut", config, mesh=mesh, progress=lambda done, total, note: seen.append(done))
    assert seen == [2, 3]
    assert largest_difference((cut.lora, cut.second_moment), (whole.lora, whole.second_moment)) == 0.0

    # A label that is not finite is traced back to its example through the devices' lists.
    model, rows = poisoned()
    with pytest.raises(UserError, match="example 'row-11' is not finite"):
        run(tmp_path / "broken", config, model=model, rows=rows, mesh=mesh)


def test_all_parameters_on_a_mesh(tmp_path: Path) -> None:
    """Weights, their fp32 masters and moments split over devices."""
    config = replace(CONFIG, max_steps=3)
    one, two = (
        run(tmp_path / name, config, parameters="all", mesh=mesh)
        for name, mesh in (("one", None), ("two", make_mesh(1, 2, devices=jax.devices()[:2])))
    )
    assert largest_difference((two.base, two.lora), (one.base, one.lora)) < 2e-5
    assert one.second_moment.keys() == two.second_moment.keys() == {"lora", "base"}
    assert not two.base["layers"]["q_proj"]["kernel"].sharding.is_fully_replicated

    model = tiny_model()
    assert largest_difference(one.lora, model.lora) > 1e-3
    assert largest_difference(one.base["norm"], model.base["norm"]) > 1e-3
    assert one.flops > training_flops(model.config, one.tokens, one.label_tokens)


def test_record_of_a_training(tmp_path: Path) -> None:
    model = tiny_model()
    before = jax.tree.map(np.array, (model.lora, model.base))
    notes: list[tuple[int, int, str]] = []
    trained = run(tmp_path, model=model, progress=lambda *note: notes.append(note))
    assert largest_difference((model.lora, model.base), before) == 0.0  # nothing donated that was not ours
    assert trained.base is model.base
    assert largest_difference(trained.lora, model.lora) > 1e-4
    assert [note[:2] for note in notes] == [(1, 3), (2, 3), (3, 3)]
    assert notes[0][2].startswith("loss ")

    seen = [row for step in range(3) for row in step_rows(ROWS, step, CONFIG, 1)]
    assert (trained.steps, trained.examples) == (3, len(seen))
    assert trained.tokens == sum(len(row.ids) for row in seen)
    assert trained.label_tokens == sum(int(row.span[:-1].sum()) for row in seen)
    adapter = sum(leaf.size for leaf in jax.tree.leaves(model.lora))
    assert trained.flops == training_flops(model.config, trained.tokens, trained.label_tokens, lora_parameters=adapter)
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert lines == trained.history
    assert list(lines[0]) == ["step", "loss", "learning_rate", "grad_norm", "tokens", "label_tokens"]
    assert jax.tree.map(np.shape, trained.second_moment) == jax.tree.map(np.shape, model.lora)
    assert min(float(leaf.min()) for leaf in jax.tree.leaves(trained.second_moment)) >= 0.0


def test_learns_all_parameters_without_an_adapter(tmp_path: Path) -> None:
    """Pre-training: the base alone, every position a label; a text of one repeated phrase is soon known."""
    from kernel_reference import tiny_config

    model = random_model(tiny_config("llama"), std=0.05)
    phrase = np.arange(10, 26, dtype=np.int32)
    rows = [TokenRow(np.roll(phrase, -i), np.ones(16, bool), f"turn-{i}") for i in range(16)]
    config = TrainConfig(max_steps=40, batch_size=16, learning_rate=1e-2, tokens_per_microbatch=256)
    trained = run(tmp_path, config, model=model, rows=rows, parameters="all")
    assert trained.lora == {} and list(trained.second_moment) == ["base"]
    assert trained.history[0]["loss"] == pytest.approx(np.log(97), rel=0.05)
    assert trained.history[-1]["loss"] < 0.5
    for name in ("embed", "norm", "head"):
        assert np.abs(np.asarray(trained.base[name] - model.base[name])).max() > 1e-3


def test_bfloat16_keeps_adapters_in_float32(tmp_path: Path, one_device: Trained) -> None:
    model = tiny_model()
    low = replace(model, base=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), model.base), dtype=jnp.bfloat16)
    trained = run(tmp_path, model=low)
    assert {leaf.dtype for leaf in jax.tree.leaves((trained.lora, trained.second_moment))} == {jnp.dtype("float32")}
    assert trained.history[0]["loss"] == pytest.approx(one_device.history[0]["loss"], rel=0.05)
    assert trained.history[0]["loss"] != one_device.history[0]["loss"]


def compiled() -> list[int]:
    """How many programs there are of each compiled step."""
    steps: list[Any] = [train_module._accumulate, train_module._update]
    return [step._cache_size() for step in steps]


def test_one_program_a_training(tmp_path: Path) -> None:
    config = replace(CONFIG, max_steps=10, batch_size=5)
    before = compiled()
    run(tmp_path / "a", config)
    assert max(np.subtract(compiled(), before)) <= 1
    programs = compiled()
    run(tmp_path / "b", replace(config, max_steps=12, learning_rate=1e-3), seed=1)
    assert compiled() == programs


def poisoned() -> tuple[Any, list[TokenRow]]:
    """A model with a NaN in the embedding of token 96, which only one example has."""
    model = tiny_model()
    rows = [replace(row, ids=np.minimum(row.ids, 95)) for row in ROWS]
    rows[11] = replace(rows[11], ids=np.where(np.arange(len(rows[11].ids)) == 0, 96, rows[11].ids).astype(np.int32))
    return replace(model, base={**model.base, "embed": model.base["embed"].at[96].set(jnp.nan)}), rows


def test_loss_that_is_not_finite_names_step_and_example(tmp_path: Path) -> None:
    model, rows = poisoned()
    where = next(step for step in range(2) if any(row.id == "row-11" for row in step_rows(rows, step, CONFIG, 1)))
    with pytest.raises(UserError, match=f"training step {where + 1}: the loss of example 'row-11' is not finite"):
        run(tmp_path, model=model, rows=rows)


def test_user_mistakes(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="the set of examples is empty"):
        run(tmp_path, rows=[])
    with pytest.raises(UserError, match="no example has a response token"):
        run(tmp_path, rows=[replace(row, span=np.zeros(len(row.ids), bool)) for row in ROWS])
    with pytest.raises(UserError, match="example 'row-.*' has 1[26] tokens, a row 8"):
        run(tmp_path, row_length=8)
    with pytest.raises(UserError, match="random has no LoRA adapter"):
        run(tmp_path, model=replace(tiny_model(), lora={}))
    with pytest.raises(UserError, match="batch_size = 0"):
        run(tmp_path, replace(CONFIG, batch_size=0))
