"""Continual pre-training of arms and their evaluation, as stages of a run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from small_texts import random_texts, reading_model

from ntk_jax.engine.stage import Job
from ntk_jax.errors import UserError
from ntk_jax.pipelines.common.model import RunModel
from ntk_jax.pipelines.common.sections import EvaluateSection, ModelSection
from ntk_jax.pipelines.mine import evaluate as evaluation
from ntk_jax.pipelines.mine.pretrain import ArmTexts, check_files, check_pretraining, pretrain_arms, trained_arms
from ntk_jax.pipelines.mine.pretrain_config import PretrainSection
from ntk_jax.storage.atomic import make_folder

L = 32
SECTION = PretrainSection(
    tokens=600,
    shares=(0.25,),
    held_out_tokens=40,
    evaluations=2,
    row_length=L,
    batch_tokens=4 * L,
    learning_rate=1e-2,
    tokens_per_microbatch=4 * L,
    checkpoint_every=2,
    bootstrap=50,
)


def texts(seed: int, letters: str = "abcdefgh ") -> Callable[[], Iterator[tuple[str, str]]]:
    found = random_texts(40, seed=seed, letters=letters, lengths=(20, 40))
    return lambda: ((f"{seed}-{number}", text) for number, text in enumerate(found))


def write_texts(file: Path, seed: int, letters: str = "abcdefgh ") -> str:
    lines = [json.dumps({"id": name, "text": text}) for name, text in texts(seed, letters)()]
    file.write_text("\n".join(lines[:12]))
    return str(file)


ARMS = [ArmTexts("general", "general text only"), ArmTexts("dopamine", "DoPAMine", texts(1))]


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    home = tmp_path_factory.mktemp("files")
    return {
        "held_out": (write_texts(home / "medical.jsonl", 8),),
        "held_out_general": (write_texts(home / "books.jsonl", 9, "ijklmnop "),),
        "replay": (write_texts(home / "replay.jsonl", 10, "ijklmnop "),),
    }


def run_in(folder: Path, held_out: dict[str, Any], section: PretrainSection = SECTION, **changes: Any) -> Any:
    def quiet(*_: Any) -> Callable[..., None]:
        return lambda *arguments: None

    section = dataclasses.replace(section, **held_out, **changes)
    config = SimpleNamespace(
        seed=3,
        pretrain=section,
        model=ModelSection(path="random", max_length=64, template="plain"),
        evaluate=EvaluateSection(bootstrap=50),
        report=SimpleNamespace(tensorboard=False),
    )
    model = reading_model()
    return SimpleNamespace(config=config, job=Job(folder, quiet), model=RunModel(lambda: None, lambda mesh: model))


def bytes_of(folder: Path) -> str:
    """Of everything but the time it took."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.parent.name != "checkpoints":
            text = path.read_bytes()
            if path.name == "summary.json":
                text = b"\n".join(line for line in text.splitlines() if b'"seconds"' not in line)
            digest.update(f"{path.relative_to(folder)}\0".encode() + text)
    return digest.hexdigest()


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, held_out: dict[str, Any]) -> Any:
    run = run_in(tmp_path_factory.mktemp("run"), held_out)
    pretrain_arms(run, make_folder(run.job.folder / "pretrain"), ARMS)
    return run


def test_every_arm_reads_the_same_number_of_tokens(trained: Any) -> None:
    folder = trained.job.folder / "pretrain"
    found = json.loads((folder / "summary.json").read_text())
    assert (found["held_out"], found["general"]) == (["medical", "books"], ["books"])
    base, general, dopamine = found["arms"]
    assert [arm["name"] for arm in found["arms"]] == ["base", "general", "dopamine"]
    assert (base["tokens"], general["tokens"], dopamine["tokens"]) == (0, 600, 600)
    assert general["sources"].keys() == {"general"}
    own = dopamine["sources"]["dopamine"]
    assert own["share"] == 0.25 and abs(own["tokens"] - 150) < L and own["passes"] <= 1
    for arm in (general, dopamine):
        assert [point["step"] for point in arm["curve"]] == [0, 2, 5]
        assert [point["tokens"] for point in arm["curve"]] == [0, 2 * 4 * L, 600]
        assert arm["curve"][0]["perplexity"] == base["perplexity"]
        assert arm["curve"][-1]["perplexity"]["medical"]["value"] == pytest.approx(
            arm["perplexity"]["medical"]["value"]
        )
        for about in arm["perplexity"].values():
            assert about["low"] <= about["value"] <= about["high"]
        assert (folder / arm["name"] / "adapter" / "adapter_config.json").exists()
        assert not (folder / arm["name"] / "checkpoints").exists()
    # The arm that reads letters of the domain knows them better than the one that reads others.
    assert dopamine["perplexity"]["medical"]["value"] < general["perplexity"]["medical"]["value"]
    (pair,) = [p for p in found["sets"][0]["paired"] if (p["a"], p["b"]) == ("dopamine", "general")]
    assert pair["difference"] < 0


def test_stopped_anywhere_it_ends_with_the_same_files(tmp_path: Path, held_out: dict[str, Any], trained: Any) -> None:
    class Stopped(Exception):
        pass

    calls, limit = 0, 0

    def noisy(*_: Any) -> Callable[..., None]:
        def tick(*arguments: Any) -> None:
            nonlocal calls
            calls += 1
            if calls >= limit:
                raise Stopped

        return tick

    run = run_in(tmp_path, held_out)
    folder, stops = make_folder(tmp_path / "pretrain"), 0
    run.job = Job(tmp_path, noisy)
    for stop in (3, 6, 5, 7, 9, 4, 10**6):  # calls of progress until the next stop
        calls, limit = 0, stop
        try:
            pretrain_arms(run, folder, ARMS)
        except Stopped:
            stops += 1
    assert stops > 3
    assert bytes_of(folder) == bytes_of(trained.job.folder / "pretrain")

    # Done: nothing is trained again.
    limit = 1
    pretrain_arms(run, folder, ARMS)


def test_no_arm_reads_held_out_text(tmp_path: Path) -> None:
    """Held-out documents stand first in both texts; what shares a run of words with them is passed over and counted."""
    plain = [f"word{n % 7} a{n} b{n} c{n} d{n} e{n} f{n}" for n in range(60)]
    held = [f"x {text} y" for text in plain[:3]]
    file = tmp_path / "held.jsonl"
    file.write_text("\n".join(json.dumps({"id": f"h{n}", "text": text}) for n, text in enumerate(held)))
    named = [(f"t{n}", text) for n, text in enumerate(plain)]
    run = run_in(tmp_path, {"held_out": (str(file),)}, tokens=200, evaluations=1, apart=5)
    pretrain_arms(
        run, make_folder(tmp_path / "pretrain"), [ArmTexts("dopamine", "D", lambda: iter(named))], lambda: iter(named)
    )
    _, arm = json.loads((tmp_path / "pretrain" / "summary.json").read_text())["arms"]
    assert {name: each["left_out"] for name, each in arm["sources"].items()} == {"dopamine": 3, "general": 3}
    assert arm["tokens"] == 200
    whole = run_in(tmp_path / "whole", {"held_out": (str(file),)}, tokens=200, evaluations=1, apart=0)
    pretrain_arms(
        whole, make_folder(tmp_path / "whole"), [ArmTexts("dopamine", "D", lambda: iter(named))], lambda: iter(named)
    )
    _, arm = json.loads((tmp_path / "whole" / "summary.json").read_text())["arms"]
    assert {each["left_out"] for each in arm["sources"].values()} == {0}
    only = run_in(
        tmp_path / "only", {"held_out": (str(file),)}, tokens=200, evaluations=1, apart=5, replay=(str(file),)
    )
    with pytest.raises(UserError, match=r"none of 3 documents has a token \(held-out text: 3\); give other files"):
        pretrain_arms(only, make_folder(tmp_path / "only"), [ArmTexts("general", "G")])


def test_a_sweep_trains_every_share(held_out: dict[str, Any]) -> None:
    section = dataclasses.replace(SECTION, shares=(0.25, 0.5))
    found = trained_arms(section, ARMS)
    assert [(arm.name, arm.share) for arm in found] == [
        ("general", 0.0),
        ("dopamine-0.25", 0.25),
        ("dopamine-0.5", 0.5),
    ]
    assert found[1].title == "DoPAMine, 25%"


def test_all_parameters_and_a_corpus_to_replay(tmp_path: Path) -> None:
    run = run_in(tmp_path, {}, parameters="all", tokens=150)  # nothing is held out: nothing is measured
    folder = make_folder(tmp_path / "pretrain")
    with pytest.raises(UserError, match="pretrain.replay is empty; give files of general text"):
        pretrain_arms(run, folder, ARMS[1:])
    pretrain_arms(run, folder, ARMS[1:], corpus=texts(20))
    assert (folder / "dopamine" / "model" / "model.safetensors").exists()
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["held_out"], summary["sets"]) == ([], []) and summary["arms"][1]["perplexity"] == {}
    (question,) = [{"id": "q", "source": "s", "prompt": "ab", "choices": ["c", "d"], "answer": 0}]
    file = tmp_path / "questions.jsonl"
    file.write_text(json.dumps(question))
    run.config.evaluate = EvaluateSection(files=(str(file),), arms=("dopamine",), bootstrap=20)
    evaluation.evaluate(run, make_folder(tmp_path / "evaluate"))
    found = json.loads((tmp_path / "evaluate" / "results.json").read_text())
    assert [arm["name"] for arm in found["arms"]] == ["dopamine"] == list(found["average"])


def test_evaluation_of_the_arms(trained: Any, tmp_path: Path) -> None:
    run, folder = trained, make_folder(trained.job.folder / "evaluate")
    file = write_texts(tmp_path / "answers.jsonl", 11)
    run.config.evaluate = EvaluateSection(files=(file,), bootstrap=50)
    evaluation.check(run.config)
    evaluation.check_inputs(run, False)
    assert evaluation.evaluate(run, folder) == {"tasks": ["answers"]}
    found = json.loads((folder / "results.json").read_text())
    losses = {arm: each["by_token"]["loss"] for arm, each in found["loss"]["average"].items()}
    assert losses["dopamine"] < losses["general"]
    assert [arm["tokens"] for arm in found["arms"]] == [0, 600, 600]
    (folder / "losses" / "base" / "answers.jsonl").write_text("damaged")  # not evaluated again: read as it is
    with pytest.raises(UserError, match="answers.jsonl, line 1, is damaged"):
        evaluation.evaluate(run, folder)
    run.config.evaluate = EvaluateSection(files=(file,), arms=("base", "domain"))
    with pytest.raises(UserError, match="evaluate.arms: there is no arm domain; choose from base, general, dopamine"):
        evaluation.evaluate(run, folder)


def test_what_is_refused(tmp_path: Path, held_out: dict[str, Any]) -> None:
    def refused(message: str, quantization: str | None = None, **changes: Any) -> None:
        with pytest.raises(UserError, match=message):
            check_pretraining(dataclasses.replace(SECTION, **changes), quantization)

    check_pretraining(SECTION)
    refused("pretrain.tokens = 1 leaves nothing to predict", tokens=1)
    refused(r"pretrain.shares = \[\]: give at least one", shares=())
    refused("give at least one share, each once", shares=(0.5, 0.5))
    refused("that is the arm general", shares=(0.0,))
    refused("pretrain: floor = 1.0 is outside", floor=1.0)
    refused("pretrain.parameters = all, but the weights are held in int8", "int8", parameters="all")
    with pytest.raises(UserError, match=r"pretrain.held_out: .*gone.jsonl"):
        check_files(dataclasses.replace(SECTION, held_out=(str(tmp_path / "gone.jsonl"),)))
    with pytest.raises(UserError, match="pretrain.row_length = 512 is more than the 256 positions of the model"):
        pretrain_arms(run_in(tmp_path, held_out, row_length=512), tmp_path, ARMS)
    with pytest.raises(UserError, match="evaluate.arms is empty"):
        evaluation.check(SimpleNamespace(evaluate=EvaluateSection(arms=())))
    with pytest.raises(UserError, match="evaluate.metrics: 'speed' is not one of"):
        evaluation.check(SimpleNamespace(evaluate=EvaluateSection(metrics=("speed",))))
