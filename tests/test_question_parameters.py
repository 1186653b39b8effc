"""Runs of questions that train all the weights: the arms are models of their own, and everything that reads arms reads
these."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_server import FaultyServer
from safetensors.numpy import load_file
from tiny_question import question_config, serving, write_question_inputs
from tiny_run import quiet

from ntk_jax import pipelines
from ntk_jax.engine.costs import Grounds
from ntk_jax.engine.doctor import Doubt
from ntk_jax.engine.plan import Command
from ntk_jax.engine.stage import Job
from ntk_jax.errors import UserError
from ntk_jax.evaluation.loss import held_out_losses
from ntk_jax.models.model import load_model
from ntk_jax.pipelines.question import costs
from ntk_jax.pipelines.question.doctor import checks
from ntk_jax.pipelines.question.state import open_run
from ntk_jax.pipelines.question.train import check, model_of
from ntk_jax.storage.hashing import hash_model
from ntk_jax.training.flops import training_flops

pytestmark = pytest.mark.filterwarnings("ignore:.*the server does not honour:ntk_jax.errors.Note")
HERE = {"kind": "model", "model": "", "slots": 4}
WEIGHTS = "model.safetensors"
SMALL: dict[str, Any] = {
    "documents": {"chunks": 3},
    "ask": {"rounds": 1, "samples": 0, "calibration": 0},
    "train": {"parameters": "all", "arms": ["adversarial"], "evaluations": 2, "by_round": True}
    | {"batch_size": 2, "checkpoint_every": 2, "max_steps": 4},
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("parameters")


@pytest.fixture(scope="module")
def server(inputs: Path) -> Iterator[FaultyServer]:
    with serving(write_question_inputs(inputs)).running() as found:
        yield found


@pytest.fixture(scope="module")
def config(inputs: Path, server: FaultyServer) -> Any:
    return question_config(inputs, server.url, "whole", **SMALL)


@pytest.fixture(scope="module")
def whole(config: Any) -> Path:
    folder: Path = pipelines.run("question", config, progress=quiet)
    return folder


def summary_of(folder: Path) -> list[dict[str, Any]]:
    found: dict[str, Any] = json.loads((folder / "train" / "summary.json").read_text())
    assert found["parameters"] == "all"
    return list(found["arms"])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_arm_is_a_model_whose_own_weights_changed(whole: Path, inputs: Path) -> None:
    base = load_file(inputs / "model" / WEIGHTS)
    arms = summary_of(whole)
    assert [arm["name"] for arm in arms] == ["adversarial", "round-0"]
    for arm in arms:
        place = whole / "train" / arm["name"]
        points = [place / f"step-{step:06d}" for step in arm["points"][:-1]]
        assert points
        found = [load_file(folder / "model" / WEIGHTS) for folder in (*points, place)]
        for weights in found:
            assert weights.keys() == base.keys()
            changed = {name for name in base if not np.array_equal(weights[name], base[name])}
            assert changed == set(base)  # of norms and of the embedding, too, which have no adapter
        assert any(not np.array_equal(found[0][name], found[-1][name]) for name in base)
    assert not list(whole.rglob("adapter*")) and not list(whole.rglob("checkpoints"))


def test_the_evaluation_reads_these_models(whole: Path, config: Any) -> None:
    results = json.loads((whole / "evaluate" / "results.json").read_text())
    last = {arm["name"]: arm["points"][0] for arm in summary_of(whole)}
    names = [arm["name"] for arm in results["arms"]]
    assert set(names) == {"base", *last, *(f"{name}@{step}" for name, step in last.items())}
    records = lines(Path(config.evaluate.general[0]))
    run = open_run(config, Job(whole, quiet))
    losses = {}
    for name in ("adversarial", f"adversarial@{last['adversarial']}"):
        written = [one["loss"] for one in lines(whole / "evaluate" / "losses" / name / "general.jsonl")]
        place = whole / "train" / name.split("@")[0] / (f"step-{last['adversarial']:06d}" if "@" in name else "")
        for model in (load_model(str(place / "model")), model_of(run, whole / "train", name)):
            assert model.lora_config is None
            measured = held_out_losses(model, records, max_length=config.model.max_length, batch_tokens=8192)
            assert [one["loss"] for one in measured["losses"]] == pytest.approx(written, rel=1e-5)
        losses[name] = written
    base = [one["loss"] for one in lines(whole / "evaluate" / "losses" / "base" / "general.jsonl")]
    every = [*losses.values(), base]
    assert all(one != other for n, one in enumerate(every) for other in every[:n])


def test_the_page_says_what_was_trained(whole: Path) -> None:
    assert "Training changed all the weights." in (whole / "report" / "index.html").read_text()


def bytes_of(folder: Path) -> str:
    """Of everything but the time it took."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix in (".safetensors", ".json", ".jsonl") and path.name != "manifest.json":
            text = b"\n".join(line for line in path.read_bytes().splitlines() if b'"seconds"' not in line)
            digest.update(f"{path.relative_to(folder)}\0".encode() + text)
    return digest.hexdigest()


def test_stopped_anywhere_it_ends_with_the_same_bytes(inputs: Path, server: FaultyServer, whole: Path) -> None:
    class Stopped(Exception):
        pass

    left = 0

    def stopping(*_: Any) -> Any:
        def progress(*_: Any) -> None:
            nonlocal left
            left -= 1
            if left <= 0:
                raise Stopped

        return progress

    config = question_config(inputs, server.url, "stopped", **SMALL)
    folder, stops = Path(config.out), 0
    for stage in ("chunk", "ask"):
        shutil.copytree(whole / stage, folder / stage)
    for stop in (6, 7, 6, 10**6):  # calls of progress until the next stop: in the first steps, and further on
        left = stop
        try:
            pipelines.run("question", config, Command(until="train"), progress=stopping)
        except Stopped:
            stops += 1
    assert stops == 3
    assert bytes_of(folder / "train") == bytes_of(whole / "train")


def test_another_value_is_another_training(inputs: Path, server: FaultyServer, whole: Path) -> None:
    adapters = {**SMALL, "train": {**SMALL["train"], "parameters": "lora"}}
    config = question_config(inputs, server.url, "whole", **adapters)
    with pytest.raises(UserError, match=r"train\.parameters"):
        pipelines.run("question", config, progress=quiet)


def test_a_second_generation_asks_the_model_of_all_weights(inputs: Path, server: FaultyServer) -> None:
    sections = {**SMALL, "ask": {**SMALL["ask"], "generations": 2, "rounds": 0, "per_chunk": 1}}
    config = question_config(inputs, server.url, "again", target=HERE, **sections)
    folder = pipelines.run("question", config, Command(until="ask"), progress=quiet)
    one, two = json.loads((folder / "ask" / "summary.json").read_text())["generations"]
    target = folder / "ask" / "generation-2" / "target"
    assert {path.name for path in target.iterdir()} == {"model", "history.jsonl"}
    before, after = load_file(inputs / "model" / WEIGHTS), load_file(target / "model" / WEIGHTS)
    assert all(not np.array_equal(before[name], after[name]) for name in before)
    # Its replies and likelihoods are kept by its weights: those of another training are never taken for its own.
    assert (one["target"], two["target"]) == (None, f"generation 2 {hash_model(target / 'model')[:16]}")


def test_what_it_costs(inputs: Path) -> None:
    size = sum(array.size for array in load_file(inputs / "model" / WEIGHTS).values())
    arms = ["adversarial", "documents"]

    def load(parameters: str = "all", **sections: Any) -> costs.Load:
        train = {"parameters": parameters, "arms": arms, "evaluations": 2, "tokens": 5_000}
        sections = {"train": train, "target": HERE, **sections}
        return costs.load(question_config(inputs, "http://localhost:9/v1", **sections), Grounds())

    whole, low = load(), load("lora")
    found = costs.train(whole)
    text = found.works[1]
    assert [work.part for work in found.works] == arms
    assert text.flops == training_flops(whole.model.base.config, 5_000, 5_000, False, parameters="all")
    assert found.disk.kept == len(arms) * 2 * 4 * size  # in float32, at the end and once on the way
    assert found.disk.passing == 3 * 12 * size
    assert text.memory > costs.train(low).works[1].memory + 16 * (size - low.model.adapter_size)
    assert costs.train(load(model={"dtype": "bfloat16"})).disk.kept == len(arms) * 2 * 2 * size
    assert costs.ask(whole).disk.passing == 0
    again = costs.ask(load(ask={"generations": 3}))
    assert again.disk.passing == 3 * 12 * size
    assert [work.part for work in again.works][-2:] == ["target 2", "target 3"]


def test_doctor_and_what_is_refused(inputs: Path, config: Any) -> None:
    for name, look in checks(config):
        assert isinstance(look(), (str, Doubt)), name
    check(config)
    eight = question_config(inputs, "http://localhost:9/v1", **SMALL, model={"quantization": "int8"})
    with pytest.raises(
        UserError, match=r"^train.parameters = all, but the weights are held in int8 .*; train lora, or"
    ):
        check(eight)
