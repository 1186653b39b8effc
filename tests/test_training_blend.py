"""Mixtures of a domain and a selection: what each step holds, in which proportion, and that all of it is arithmetic."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_reference import random_rows, tiny_model

from ntk_jax.data.batch import TokenRow
from ntk_jax.errors import UserError
from ntk_jax.parallel.mesh import make_mesh
from ntk_jax.training.blend import MIXTURES, Blend, blend, domain_labels, phases_of
from ntk_jax.training.feed import Examples
from ntk_jax.training.optimizer import TrainConfig
from ntk_jax.training.order import PLANNED_STEPS
from ntk_jax.training.train import Trained, train

ROWS = random_rows(22, seed=5, lengths=(5, 12, 16))
DOMAIN = [replace(row, id=f"d-{n}") for n, row in enumerate(ROWS[:6])]
SELECTED = [replace(row, id=f"s-{n}") for n, row in enumerate(ROWS[6:])]
CONFIG = TrainConfig(max_steps=8, batch_size=6, learning_rate=1e-2, tokens_per_microbatch=32)


def made(mixture: str, domain: list[TokenRow] = DOMAIN, selected: list[TokenRow] = SELECTED, **shares: Any) -> Any:
    return blend(domain, selected, mixture, CONFIG, steps=8, seed=3, row_length=16, **shares)


def steps_of(feed: Any) -> list[list[str]]:
    shapes = feed.shapes(CONFIG, 1)
    return [[row.id for row in feed.step(step, shapes)[0]] for step in range(feed.steps)]


def of_domain(step: list[str]) -> int:
    return sum(name.startswith("d-") for name in step)


def test_concat_is_the_plain_list() -> None:
    """The training of before, to the bit: the same feed."""
    feed = made("concat")
    assert isinstance(feed, Examples) and feed.steps == 8
    assert [row.id for row in feed.rows] == [row.id for row in [*DOMAIN, *SELECTED]]


def test_a_share_of_every_step() -> None:
    assert [of_domain(step) for step in steps_of(made("domain_share", domain_share=0.5))] == [3] * 8
    default = steps_of(made("domain_share"))  # 6 of 22 examples: 1.64 of 6, 13.1 of 48
    assert [of_domain(step) for step in default] == [2, 1, 2, 2, 1, 2, 1, 2] and all(len(step) == 6 for step in default)
    few = [of_domain(step) for step in steps_of(made("domain_share", domain_share=0.01))]
    assert sum(few) == 1, "at least one in all"


def test_in_turns() -> None:
    assert [of_domain(step) for step in steps_of(made("selected_then_domain"))] == [0] * 6 + [6] * 2  # 6 of 22 of 8
    assert [of_domain(step) for step in steps_of(made("selected_then_domain", domain_share=0.5))] == [0] * 4 + [6] * 4
    found = steps_of(made("replay", domain_share=0.5, replay_share=0.3))
    assert [of_domain(step) for step in found] == [0] * 4 + [4, 5, 4, 4] and {len(step) for step in found} == {6}


@pytest.mark.parametrize("mixture", MIXTURES)
def test_epochs_are_whole(mixture: str) -> None:
    """No example of a set is read again before all others of its set were read."""
    names = [name for step in steps_of(made(mixture, domain_share=0.5)) for name in step]
    for kind, size in (("d-", len(DOMAIN)), ("s-", len(SELECTED))):
        counts = Counter(name for name in names if name.startswith(kind))
        assert len(counts) == min(size, sum(counts.values())) and max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("mixture", MIXTURES)
def test_without_a_selection_it_is_the_domain_for_as_many_steps(mixture: str) -> None:
    found = steps_of(made(mixture, selected=[]))
    assert len(found) == 8 and all(name.startswith("d-") for step in found for name in step)


@pytest.mark.parametrize("mixture", MIXTURES)
def test_label_tokens_of_the_domain_are_counted_exactly(mixture: str) -> None:
    feed, labels = made(mixture), {row.id: int(row.span[:-1].sum()) for row in DOMAIN}
    assert domain_labels(feed, DOMAIN) == sum(labels.get(name, 0) for step in steps_of(feed) for name in step) > 0


@given(
    domain=st.integers(1, 50),
    selected=st.integers(1, 200),
    size=st.integers(2, 64),
    steps=st.integers(2, 40),
    share=st.none() | st.floats(0.01, 0.99),
    mixture=st.sampled_from(MIXTURES[1:]),
)
def test_phases_make_up_the_training(
    domain: int, selected: int, size: int, steps: int, share: float | None, mixture: str
) -> None:
    phases = phases_of(mixture, domain, selected, size, steps, share, 0.25)
    assert sum(many for many, _, _ in phases) == steps
    assert all(each == min(size, domain + selected) and 0 <= own <= many * each for many, each, own in phases)
    assert sum(own for _, _, own in phases) and sum(many * each - own for many, each, own in phases)


@given(
    sizes=st.tuples(st.integers(1, 6), st.integers(2, 16)),
    batch=st.integers(2, 9),
    steps=st.integers(2, 40),
    share=st.floats(0.01, 0.99),
    replay=st.floats(0.01, 0.99),
    mixture=st.sampled_from(MIXTURES[1:]),
)
def test_the_running_share_is_right(
    sizes: tuple[int, int], batch: int, steps: int, share: float, replay: float, mixture: str
) -> None:
    """After any number of steps of a phase, to an example; and each set is read on where the step before stopped."""
    config = replace(CONFIG, batch_size=batch)
    options: dict[str, Any] = {"steps": steps, "seed": 3, "row_length": 16}
    feed = blend(
        DOMAIN[: sizes[0]], SELECTED[: sizes[1]], mixture, config, domain_share=share, replay_share=replay, **options
    )
    assert isinstance(feed, Blend)
    size, (first, last) = min(batch, sum(sizes)), (0, steps)
    if mixture != "domain_share":
        last = min(max(round(share * steps), 1), steps - 1)
        first = steps - last
    wanted = {"domain_share": share, "selected_then_domain": 1.0, "replay": 1.0 - replay}[mixture]
    own = [len(feed.ordinals(step)[0]) for step in range(steps)]
    assert own[:first] == [0] * first and all(len(feed.rows_of(step)) == size for step in range(steps))
    for done in range(1, last + 1):
        exact = wanted * size * last
        clamped = exact if mixture == "selected_then_domain" else min(max(exact, 1), size * last - 1)
        assert abs(sum(own[first : first + done]) - clamped * done / last) <= 1.0 + 1e-9
    assert abs(sum(own) - clamped) <= 0.5 + 1e-9 and max(own[first:]) - min(own[first:]) <= 1
    for place, rows in ((0, DOMAIN[: sizes[0]]), (1, SELECTED[: sizes[1]])):
        read = np.concatenate([feed.ordinals(step)[place] for step in range(steps)])
        counts = np.bincount(read, minlength=len(rows))
        assert counts.max() - counts.min() <= 1


def fit(folder: Path, **changes: Any) -> Trained:
    options: dict[str, Any] = dict(folder=folder, seed=1, row_length=16) | changes
    config = options.pop("config", replace(CONFIG, checkpoint_every=1))
    return train(tiny_model(), made("replay", domain_share=0.5), config, **options)


@pytest.mark.parametrize("loss", ["token_mean", "example_mean"])
def test_a_resumed_training_gives_the_same_bits_on_any_devices(tmp_path: Path, loss: Any) -> None:
    config = replace(CONFIG, checkpoint_every=1, loss=loss)

    def stop(done: int, total: int, note: str) -> None:
        if done == 5:
            raise KeyboardInterrupt

    whole = fit(tmp_path / "whole", config=config)
    with pytest.raises(KeyboardInterrupt):
        fit(tmp_path / "cut", config=config, progress=stop)
    cut = fit(tmp_path / "cut", config=config)
    eight = fit(tmp_path / "eight", config=config, mesh=make_mesh(8))
    for a, b, c in zip(*map(jax.tree.leaves, (whole.lora, cut.lora, eight.lora)), strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_allclose(a, c, atol=2e-5)


def test_another_mixture_or_loss_is_another_training(tmp_path: Path) -> None:
    """A checkpoint of one is not gone on from with another."""
    fit(tmp_path)
    with pytest.raises(UserError, match="other examples, settings"):
        fit(tmp_path, config=replace(CONFIG, checkpoint_every=1, loss="example_mean"))
    with pytest.raises(UserError, match="come from a training with other examples"):
        train(tiny_model(), made("replay", domain_share=0.4), CONFIG, folder=tmp_path, seed=1, row_length=16)


def test_what_is_refused() -> None:
    with pytest.raises(UserError, match="mixture = 'both' is not one of concat, domain_share"):
        made("both")
    for share in (0.0, 1.0):
        with pytest.raises(UserError, match="outside"):
            made("domain_share", domain_share=share)
    with pytest.raises(UserError, match="cannot hold examples of both"):
        blend(DOMAIN, SELECTED, "domain_share", replace(CONFIG, batch_size=1), steps=2, seed=0, row_length=16)
    with pytest.raises(UserError, match="empty"):
        made("domain_share", domain=[])
    for mixture in ("selected_then_domain", "replay"):
        with pytest.raises(UserError, match=f"{mixture} has two phases, and the training a single step"):
            blend(DOMAIN, SELECTED, mixture, CONFIG, steps=1, seed=0, row_length=16)
    assert isinstance(made("replay"), Blend)


def test_shapes_come_from_the_first_steps_of_each_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    """A training of any length is planned in no more time than that of a list."""
    feed = blend(DOMAIN, SELECTED, "replay", CONFIG, steps=5000, seed=3, row_length=16, domain_share=0.5)
    looked: list[int] = []
    rows_of = Blend.rows_of
    monkeypatch.setattr(Blend, "rows_of", lambda self, step: looked.append(step) or rows_of(self, step))
    feed.shapes(CONFIG, 1)
    assert len(looked) == PLANNED_STEPS and {0, 2500} <= set(looked) and max(looked) < 2500 + PLANNED_STEPS
