"""Progress counts what is computed: whenever a loop says that batches are done, their results are there.

Each loop's compiled step is made slow, so that a count taken when a batch is sent off comes long before its result.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from kernel_reference import random_rows, tiny_model
from test_evaluation_choice import random_questions
from tiny_run import run, tiny_run_config, write_inputs

from ntk_jax.data.batch import TokenRow
from ntk_jax.engine import run as engine
from ntk_jax.evaluation import choice, packed
from ntk_jax.kernels import direction, exact, per_example, score
from ntk_jax.kernels.backbone import span_mean, stacked
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.parameters import split_parameters
from ntk_jax.kernels.projections import Projection
from ntk_jax.kernels.rows import Layout
from ntk_jax.kernels.sketch import sketches
from ntk_jax.storage.atomic import make_folder
from ntk_jax.training import influence, train
from ntk_jax.training.optimizer import TrainConfig

Tell = Callable[..., None]
LAYOUT = Layout(row_length=64, rows_per_batch=1)
ONE_EACH = Layout(row_length=32, rows_per_batch=2, packed=False)
OBJECTIVE = Objective("cross_entropy")
UNDER_WAY = 2  # batches sent off and not yet computed: one being computed, one waiting for its turn


def rows(count: int = 10) -> list[TokenRow]:
    return [row for row in random_rows(4 * count, seed=3) if row.span[:-1].any()][:count]


def mean_gradient(progress: Tell, _: Path) -> None:
    direction.mean_gradient(tiny_model(), rows(), OBJECTIVE, LAYOUT, progress=progress)


def scores(progress: Tell, _: Path) -> None:
    model = tiny_model()
    score.directional_scores(model, rows(), split_parameters(model, "lora")[0], OBJECTIVE, LAYOUT, progress=progress)


def hidden_states(progress: Tell, _: Path) -> None:
    score.mean_hidden_states(tiny_model(), rows(), LAYOUT, progress=progress)


def sketched(progress: Tell, _: Path) -> None:
    sketches(tiny_model(), rows(), OBJECTIVE, ONE_EACH, Projection("rademacher", 64), progress=progress)


def kernel(progress: Tell, _: Path) -> None:
    function, theta, frozen, head = span_mean(tiny_model(), "lora")
    few = stacked(rows(3))
    size = 4 * sum(leaf.size for leaf in jax.tree.leaves(theta))
    options: dict[str, Any] = dict(kind="probe", probes=2, outputs=head, memory=size, progress=progress)
    exact.tangent_kernel(function, theta, frozen, few, few, **options)


def choices(progress: Tell, _: Path) -> None:
    choice.score_choice_rows(tiny_model(), random_questions(9), batch_tokens=64, progress=progress)


def training(progress: Tell, folder: Path) -> None:
    config = TrainConfig(max_steps=6, batch_size=2, learning_rate=1e-3, tokens_per_microbatch=64, checkpoint_every=4)
    train.train(tiny_model(), rows(), config, folder=folder, seed=0, row_length=32, progress=progress)


def drops(progress: Tell, _: Path) -> None:
    groups = [rows()[i : i + 2] for i in range(0, 8, 2)]
    options: dict[str, Any] = dict(steps=1, learning_rate=1e-3, row_length=32, progress=progress)
    influence.loss_drops(tiny_model(), groups, rows()[8:], **options)


LOOPS = [
    (mean_gradient, direction, "gradient_step"),
    (scores, score, "directional_step"),
    (hidden_states, score, "pooled_step"),
    (sketched, per_example, "example_gradient_step"),
    (kernel, exact, "_same_channel"),
    (choices, packed, "_slot_sums"),
    (training, train, "_update"),
    (drops, influence, "_trained"),
]


@pytest.mark.parametrize(("loop", "module", "step"), LOOPS, ids=[loop.__name__ for loop, *_ in LOOPS])
def test_what_is_counted_is_computed(
    loop: Callable[[Tell, Path], None], module: Any, step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One call of progress a batch; at the k-th, k are computed, and no more than two are ever under way."""
    counts: list[tuple[int, int]] = []
    sent = computed = 0
    plain = getattr(module, step)

    def wait(_: Any) -> np.ndarray:
        nonlocal computed
        time.sleep(0.02)
        computed += 1
        return np.zeros((), np.float32)

    @jax.jit
    def late(tree: Any) -> Any:
        """The same values, some time later."""
        first = jax.tree.leaves(tree)[0].ravel()[0]
        zero = jax.pure_callback(wait, jax.ShapeDtypeStruct((), np.float32), first)
        return jax.tree.map(lambda leaf: leaf + zero.astype(leaf.dtype), tree)

    def slow(*arguments: Any, **options: Any) -> Any:
        nonlocal sent
        sent += 1
        assert sent - computed <= UNDER_WAY
        return late(plain(*arguments, **options))

    def progress(done: int, total: int, note: str = "") -> None:
        counts.append((done, total))
        assert computed >= len(counts)

    monkeypatch.setattr(module, step, slow)
    loop(progress, tmp_path)
    assert len(counts) == sent > 2
    assert [done for done, _ in counts] == sorted({done for done, _ in counts})
    assert counts[-1][0] == counts[-1][1]


@pytest.mark.slow  # compiles every stage anew
def test_a_line_comes_before_the_first_compilation_of_every_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_inputs(tmp_path)
    events: list[str] = []

    def compiled(event: str, duration: float, **_: Any) -> None:
        if event.endswith("backend_compile_duration"):
            events.append("compiled")

    def made(stage: str, total: int | None, unit: str) -> Callable[..., None]:
        events.append(f"line of {stage}")
        return lambda *_: None

    def begins(folder: Path) -> Path:  # what a stage's function is called with
        events.append(f"{folder.name} begins")
        return make_folder(folder)

    jax.clear_caches()
    monkeypatch.setattr(engine, "make_folder", begins)
    jax.monitoring.register_event_duration_secs_listener(compiled)
    try:
        run(tiny_run_config(tmp_path, preselect={"method": "votes"}), progress=made)
    finally:
        jax.monitoring.unregister_event_duration_listener(compiled)
    assert events[0] == "line of inputs"
    begun = [number for number, event in enumerate(events) if event.endswith("begins")]
    assert len(begun) >= 8 and "compiled" in events
    assert "compiled" not in [events[number + 1] for number in begun]
