"""Continual pre-training: its loss against one document at a time, resuming to the same bits, what it keeps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pretraining_child as child
import pytest
from model_calls import logits_of
from small_texts import TOKENIZER, random_texts, reading_model, records_of, store_of
from small_tokenizers import byte_tokenizer

from ntk_jax.errors import UserError
from ntk_jax.evaluation.perplexity import held_out_text, perplexities
from ntk_jax.models.model import load_model, without_adapter
from ntk_jax.parallel.mesh import make_mesh
from ntk_jax.training.flops import training_flops
from ntk_jax.training.mixture import mix
from ntk_jax.training.pretrain import measured_steps, pretrain, save_pretrained


class Killed(Exception):
    """Stands for the kill in the variants that stay in this process."""


def stop_at(step: int) -> Any:
    def progress(done: int, total: int, note: str) -> None:
        if done == step:
            raise Killed

    return progress


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("undisturbed")
    return child.run(folder), folder


def test_loss_is_that_of_single_pieces(undisturbed: Any) -> None:
    """The first step's loss: every piece of a document read alone, without padding, whole logits."""
    trained, folder = undisturbed
    model, feed = reading_model(), child.mixture(folder)
    total, labels = 0.0, 0
    for row in feed.rows_of(0):
        name, _, start, stop = feed.window(row)
        for _, ids in feed.sources[name].pieces(start, stop):
            log_probs = np.asarray(jax.nn.log_softmax(jnp.asarray(logits_of(model, ids[None])[0])))
            total -= sum(log_probs[place, token] for place, token in enumerate(ids[1:]))
            labels += len(ids) - 1
    first = trained.history[0]
    assert first["label_tokens"] == labels
    assert first["loss"] == pytest.approx(total / labels, rel=1e-5)


def test_budget_is_exact_and_counted(undisturbed: Any) -> None:
    trained, folder = undisturbed
    assert (trained.tokens, trained.steps, trained.examples) == (1250, child.STEPS, 40)
    assert [entry["tokens"] for entry in trained.history] == [128] * 9 + [98]
    rates = [entry["learning_rate"] for entry in trained.history]
    assert rates[1] == pytest.approx(1e-2) and rates[0] == pytest.approx(5e-3) and 1e-3 < rates[-1] < 2e-3
    assert trained.history[-1]["loss"] < trained.history[0]["loss"]
    adapter = sum(leaf.size for leaf in jax.tree.leaves(trained.lora))
    expected = training_flops(reading_model().config, 1250, trained.label_tokens, lora_parameters=adapter)
    assert trained.flops == expected


def test_interrupted_anywhere(tmp_path: Path, undisturbed: Any) -> None:
    expected = child.fingerprint(*undisturbed)
    for step in (1, 3, 4, 8, 10):
        with pytest.raises(Killed):
            child.run(tmp_path, stop_at(step))
    seen: list[int] = []
    trained = child.run(tmp_path, lambda done, total, note: seen.append(done))
    assert seen[-1] == child.STEPS and seen[0] > 3
    assert child.fingerprint(trained, tmp_path) == expected

    with pytest.raises(UserError, match="come from a training with other"):
        pretrain(reading_model(), child.mixture(tmp_path, tokens=1251), child.CONFIG, folder=tmp_path / "training")


@pytest.mark.slow
def test_killed_processes(tmp_path: Path, undisturbed: Any) -> None:
    root = Path(__file__).resolve().parent.parent
    paths = os.pathsep.join([str(root), str(root / "tests"), os.environ.get("PYTHONPATH", "")])

    def run(kill_at: int) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, str(root / "tests" / "pretraining_child.py"), str(tmp_path / "killed"), str(kill_at)]
        return subprocess.run(
            command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=240
        )

    for step in (2, 7):
        assert run(step).returncode == -signal.SIGKILL
    finished = run(0)
    assert finished.returncode == 0, finished.stderr
    command = [sys.executable, str(root / "tests" / "pretraining_child.py"), str(tmp_path / "whole"), "0"]
    whole = subprocess.run(command, env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True, timeout=240)
    assert finished.stdout == whole.stdout and len(whole.stdout.strip()) == 64


def test_measured_on_the_way(tmp_path: Path) -> None:
    """The model that is measured after a step is the one that a training of so many steps ends with."""
    held = held_out_text(records_of(random_texts(4, seed=9, lengths=(40,))), TOKENIZER, row_length=32)
    found: dict[int, float] = {}

    def measure(step: int, model: Any) -> None:
        found[step] = sum(each["nats"] for each in perplexities(model, held)["documents"])

    trained = child.run(tmp_path, measure_at=(2, 10), measure=measure)
    last = replace(reading_model(), lora=trained.lora)
    assert found[10] == sum(each["nats"] for each in perplexities(last, held)["documents"])
    before = sum(each["nats"] for each in perplexities(reading_model(), held)["documents"])
    assert found[10] < before  # the texts are made of the same letters

    # Resumed: steps behind the last checkpoint are measured again, and give the same.
    first = dict(found)
    with pytest.raises(Killed):
        child.run(tmp_path / "cut", stop_at(2), measure_at=(2, 10), measure=measure)
    found.clear()
    child.run(tmp_path / "cut", measure_at=(2, 10), measure=measure)
    assert found == first


@pytest.mark.slow
def test_all_parameters_on_a_mesh(tmp_path: Path) -> None:
    model, feed = reading_model(adapter=False), child.mixture(tmp_path, tokens=250)
    one, many = (
        pretrain(model, feed, child.CONFIG, folder=tmp_path / name, parameters="all", mesh=mesh)
        for name, mesh in (("one", None), ("many", make_mesh(1, 2, devices=jax.devices()[:2])))
    )
    pairs = list(zip(jax.tree.leaves(one.base), jax.tree.leaves(many.base), strict=True))
    assert max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs) < 1e-4
    assert many.history[0]["loss"] == pytest.approx(one.history[0]["loss"], rel=1e-5)


def test_all_parameters_become_a_checkpoint(tmp_path: Path) -> None:
    model, feed = reading_model(adapter=False), child.mixture(tmp_path, tokens=250)
    one = pretrain(model, feed, child.CONFIG, folder=tmp_path / "one", parameters="all")
    assert one.lora == {} and one.tokens == 250

    place = save_pretrained(tmp_path, model, one, "all", "a name")
    assert place == tmp_path / "model"
    loaded = load_model(str(place))
    ids = TOKENIZER("abc def")["input_ids"]
    trained = replace(model, base=one.base)
    np.testing.assert_array_equal(logits_of(loaded, [ids]), logits_of(trained, [ids]))
    assert np.abs(logits_of(loaded, [ids]) - logits_of(model, [ids])).max() > 0.1
    assert loaded.tokenizer("abc def")["input_ids"] == ids


def test_an_adapter_is_saved_and_folded(tmp_path: Path, undisturbed: Any) -> None:
    trained, _ = undisturbed
    model = reading_model()
    place = save_pretrained(tmp_path, model, trained, "lora", "a name")
    from ntk_jax.models.peft import load_adapter

    lora, _ = load_adapter(place, model.config)
    assert all(np.array_equal(a, b) for a, b in zip(jax.tree.leaves(lora), jax.tree.leaves(trained.lora), strict=True))
    ids = TOKENIZER("abc def")["input_ids"]
    adapted = replace(model, lora=trained.lora)
    plain = without_adapter(adapted)
    assert plain.lora == {} and plain.lora_config is None and without_adapter(plain) is plain
    np.testing.assert_allclose(logits_of(plain, [ids]), logits_of(adapted, [ids]), rtol=1e-3, atol=1e-3)


def test_steps_to_measure_at() -> None:
    assert measured_steps(100, 4) == [25, 50, 75, 100]
    assert measured_steps(3, 5) == [1, 2, 3]
    assert measured_steps(7, 1) == [7]


def test_another_tokenizer_is_refused(tmp_path: Path) -> None:
    model = replace(reading_model(), tokenizer=byte_tokenizer(eos=False))
    feed = mix(
        {"mined": store_of(tmp_path / "mined", random_texts(9))}, {"mined": 1}, tokens=99, row_length=8, batch_size=1
    )
    with pytest.raises(
        UserError, match="the tokens of mined in .* were written with another tokenizer than that of ran"
    ):
        pretrain(model, feed, folder=tmp_path / "training")
