"""`ntk-jax export` of runs of questions and of mining: weights and records of every arm, and where there are none."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faulty_server import FaultyServer
from model_calls import logits_of
from tiny_mine import mine_config, write_mine_inputs
from tiny_question import question_config, serving, write_question_inputs
from tiny_run import quiet

from ntk_jax import cli, pipelines
from ntk_jax.data.sources import read_records
from ntk_jax.engine.plan import Command
from ntk_jax.models.model import load_model
from ntk_jax.storage.hashing import sha256_file
from ntk_jax.storage.run import SUMS

pytestmark = pytest.mark.filterwarnings("ignore:.*the server does not honour:ntk_jax.errors.Note")
IDS = np.arange(3, 63).reshape(2, 30)
QUESTIONS: dict[str, Any] = {
    "documents": {"chunks": 3},
    "ask": {"rounds": 1, "samples": 0, "calibration": 0},
    "train": {"arms": ["adversarial", "documents"], "evaluations": 2, "by_round": True, "batch_size": 2}
    | {"max_steps": 2, "tokens_per_microbatch": 2048, "learning_rate": 1e-2},
}
MINED: dict[str, Any] = {"tokens": 128, "arms": ["general", "dopamine"], "row_length": 32, "batch_tokens": 64}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def server(inputs: Path) -> Iterator[FaultyServer]:
    with serving(write_question_inputs(inputs)).running() as found:
        yield found


@pytest.fixture(scope="module")
def asked(inputs: Path, server: FaultyServer) -> Path:
    """A run of questions, trained and not evaluated."""
    config = question_config(inputs, server.url, "asked", **QUESTIONS)
    folder: Path = pipelines.run("question", config, Command(until="train"), progress=quiet)
    return folder


@pytest.fixture(scope="module")
def whole(asked: Path, inputs: Path, server: FaultyServer) -> Path:
    """The same, with all the weights of its arms trained."""
    for stage in ("chunk", "ask"):
        shutil.copytree(asked / stage, inputs / "all" / stage)
    few = {"parameters": "all", "evaluations": 1, "by_round": False, "max_steps": 1}
    sections = {**QUESTIONS, "train": {**QUESTIONS["train"], **few}}
    config = question_config(inputs, server.url, "all", **sections)
    folder: Path = pipelines.run("question", config, Command(until="train"), progress=quiet)
    return folder


@pytest.fixture(scope="module")
def mines(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs of mining: `bare` trained nothing, `lora` and `all` two shares of what was mined."""
    home = tmp_path_factory.mktemp("mines")
    write_mine_inputs(home)
    bare = pipelines.run("mine", mine_config(home, "bare"), progress=quiet)
    for out in ("lora", "all"):
        for stage in ("seeds", "corpus", "embed", "label", "classify"):
            shutil.copytree(bare / stage, home / out / stage)
        section = {**MINED, "parameters": out} | ({"shares": [0.5, 0.25]} if out == "lora" else {})
        pipelines.run("mine", mine_config(home, out, pretrain=section), progress=quiet)
    return home


def export(*arguments: Any) -> int:
    return cli.main(["export", *map(str, arguments)])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def refused(capsys: pytest.CaptureFixture[str], *arguments: Any) -> str:
    assert export(*arguments) == 2, arguments
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and said.out == "", arguments
    return said.err


def test_the_arm_of_the_kept_questions(
    asked: Path, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    targets = ["--adapter", tmp_path / "a", "--merged", tmp_path / "m", "--selection", tmp_path / "s.jsonl"]
    assert export(asked, *targets) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["Selection", "Adapter", "Merged"]
    assert "records, arm adversarial)" in said[0] and "arm adversarial, of " in said[1]
    assert (tmp_path / "s.jsonl").read_bytes() == (asked / "questions.jsonl").read_bytes()
    ours = load_model(str(inputs / "model"), adapter=str(asked / "train" / "adversarial" / "adapter"))
    again = load_model(str(inputs / "model"), adapter=str(tmp_path / "a"))
    merged = load_model(str(tmp_path / "m"))
    assert np.array_equal(logits_of(ours, IDS), logits_of(again, IDS))
    assert np.abs(logits_of(ours, IDS) - logits_of(merged, IDS)).max() < 1e-4
    assert np.abs(logits_of(ours, IDS) - logits_of(load_model(str(inputs / "model")), IDS)).max() > 1e-3


def test_other_arms_of_questions(asked: Path, tmp_path: Path) -> None:
    assert export(asked, "--arm", "documents", "--selection", tmp_path / "d.jsonl") == 0
    assert (tmp_path / "d.jsonl").read_bytes() == (asked / "ask" / "documents.jsonl").read_bytes()
    assert export(asked, "--arm", "round-0", "--selection", tmp_path / "r.jsonl", "--adapter", tmp_path / "r") == 0
    kept = {one["id"]: one for one in lines(asked / "questions.jsonl")}
    found = lines(tmp_path / "r.jsonl")
    assert found and all(one["trace"] == kept[one["id"]]["trace"] for one in found)
    for one in found:  # all of the version, nothing of the one that is kept
        first = one["trace"]["rounds"][0]
        assert (one["prompt"], one["response"]) == (first["question"], first["expert"]["text"])
        assert (one["quotes"], one["gap"], one["round"]) == (first["expert"]["quotes"], first["gap"], 0)
    assert any(one["gap"] != kept[one["id"]]["gap"] for one in found)
    name = "adapter_model.safetensors"
    assert (tmp_path / "r" / name).read_bytes() == (asked / "train" / "round-0" / "adapter" / name).read_bytes()
    assert export(asked, "--arm", "adversarial@1", "--adapter", tmp_path / "on") == 0
    way = asked / "train" / "adversarial" / "step-000001" / "adapter"
    assert (tmp_path / "on" / name).read_bytes() == (way / name).read_bytes()
    assert export(asked, "--arm", "round-0@1", "--selection", tmp_path / "way.jsonl") == 0
    assert (tmp_path / "way.jsonl").read_bytes() == (tmp_path / "r.jsonl").read_bytes()
    assert export(asked, "--arm", "documents@7", "--selection", tmp_path / "no.jsonl") == 2
    assert not (tmp_path / "no.jsonl").exists()


def test_kept_questions_are_the_same_in_every_format(asked: Path, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    pytest.importorskip("datasets")
    for name in ("q.parquet", "q"):
        assert export(asked, "--selection", tmp_path / name) == 0
    expected = [(one["id"], one["prompt"], one["response"], one["gap"]) for one in lines(asked / "questions.jsonl")]
    for source in (tmp_path / "q.parquet", f"hf:{tmp_path}/q"):
        assert [(one["id"], one["prompt"], one["response"], one["gap"]) for one in read_records(source)] == expected


def test_an_account_without_verdicts_has_columns(asked: Path, tmp_path: Path) -> None:
    """Where nobody judges, the accounts of the rounds have empty objects, which no column can hold."""
    parquet = pytest.importorskip("pyarrow.parquet")
    run = tmp_path / "run"
    shutil.copytree(asked, run)
    one = {"id": "a", "prompt": "p", "response": "r", "trace": {"judge": {}, "rounds": [{"round": 0, "judge": {}}]}}
    (run / "ask" / "questions.jsonl").write_text(json.dumps(one) + "\n")
    sums = run / "ask" / SUMS
    digest = sha256_file(run / "ask" / "questions.jsonl")
    sums.write_text(re.sub(r"[0-9a-f]{64}(?=  questions.jsonl)", digest, sums.read_text()))
    assert export(run, "--selection", tmp_path / "s.parquet", "--arm", "adversarial") == 0
    (found,) = parquet.read_table(tmp_path / "s.parquet").to_pylist()
    assert found == {**one, "trace": {"rounds": [{"round": 0}]}}
    assert export(run, "--selection", tmp_path / "s.jsonl") == 0 and lines(tmp_path / "s.jsonl") == [one]


def test_without_targets_everything_of_an_arm_goes_beside_the_stages(
    asked: Path, whole: Path, mines: Path, tmp_path: Path
) -> None:
    pytest.importorskip("pyarrow")
    for run, arm, own, found in (
        (asked, None, "adversarial", {"adapter", "merged", "selection.parquet"}),
        (asked, "documents", "documents", {"adapter", "merged", "selection.parquet"}),
        (whole, None, "adversarial", {"merged", "selection.parquet"}),
        (mines / "bare", None, "dopamine", {"selection.parquet"}),
        (mines / "lora", None, "dopamine-0.5", {"adapter", "merged", "selection.parquet"}),
        (mines / "lora", "general", "general", {"adapter", "merged"}),
        (mines / "all", None, "dopamine", {"merged", "selection.parquet"}),
    ):
        copy = tmp_path / f"{run.parent.name}-{run.name}-{arm}"
        shutil.copytree(run, copy)
        assert export(copy, *(["--arm", arm] if arm else [])) == 0
        assert {path.name for path in (copy / "export" / own).iterdir()} == found


def test_all_the_weights_are_a_model_of_their_own(
    whole: Path, mines: Path, inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, stage, arm in ((whole, "train", "adversarial"), (mines / "all", "pretrain", "dopamine")):
        target = tmp_path / arm
        assert export(run, "--merged", target) == 0
        assert f"all weights were trained, arm {arm})" in capsys.readouterr().out
        source = run / stage / arm / "model"
        assert {p.name: p.read_bytes() for p in target.iterdir()} == {p.name: p.read_bytes() for p in source.iterdir()}
        load_model(str(target))
        for more in ((), ("--merged", tmp_path / "more")):
            said = refused(capsys, run, "--adapter", tmp_path / "a", *more)
            assert f"all their weights were trained ({stage}.parameters = all); take --merged DIR" in said
    # The base is in them: it may be gone.
    assert export(whole, "--arm", "documents", "--merged", tmp_path / "r", "--model.path=gone") == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adversarial", "dopamine", "r"]


def test_mined_text_and_arms(mines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(mines / "bare", "--selection", tmp_path / "b.jsonl") == 0
    assert "records, the mined text)" in capsys.readouterr().out
    assert (tmp_path / "b.jsonl").read_bytes() == (mines / "bare" / "mined.jsonl").read_bytes()
    run, name = mines / "lora", "adapter_model.safetensors"
    assert export(run, "--arm", "dopamine-0.25", "--adapter", tmp_path / "a", "--selection", tmp_path / "s.jsonl") == 0
    assert (tmp_path / "a" / name).read_bytes() == (run / "pretrain" / "dopamine-0.25" / "adapter" / name).read_bytes()
    assert export(run, "--merged", tmp_path / "m") == 0
    ours = load_model(str(mines / "model"), adapter=str(run / "pretrain" / "dopamine-0.5" / "adapter"))
    assert np.abs(logits_of(ours, IDS) - logits_of(load_model(str(tmp_path / "m")), IDS)).max() < 1e-4
    pytest.importorskip("pyarrow")
    assert export(run, "--selection", tmp_path / "s.parquet") == 0
    texts = [one["text"] for one in lines(run / "mined.jsonl")]
    assert len(texts) > 20 and [record["response"] for record in read_records(tmp_path / "s.parquet")] == texts


def test_mistakes_are_one_line_and_write_nothing(
    asked: Path, inputs: Path, mines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for run, stage in ((asked, "train"), (asked, "ask"), (mines / "lora", "pretrain"), (mines / "bare", "classify")):
        shutil.copytree(run, tmp_path / f"not-{stage}", dirs_exist_ok=True)
        (tmp_path / f"not-{stage}" / stage / "manifest.json").unlink()
    (tmp_path / "x.jsonl").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    m, s = ("--merged", tmp_path / "m"), ("--selection", tmp_path / "s.jsonl")
    for arguments, message in (
        ((tmp_path / "not-train", *m), "stage train is not done, so there is nothing to read from it; run `ntk-jax tr"),
        ((tmp_path / "not-ask", *s), "stage ask is not done, so there is nothing to read from it; run `ntk-jax ask"),
        ((tmp_path / "not-pretrain", *m), "stage pretrain is not done, so there is nothing to read from it; run"),
        ((tmp_path / "not-classify", *s), "stage classify is not done, so there is nothing to read from it; run"),
        ((asked, *m, "--arm", "static"), "--arm: static was not trained in this run; choose from adversarial, advers"),
        ((asked, *m, "--arm", "base"), "--arm: base is the model as it was, without an adapter; choose from adversa"),
        ((asked, *m, "--arm", "adversarial@7"), "--arm: adversarial@7 was not trained in this run; choose from"),
        ((asked, *s, "--arm", "static"), "--selection: static has no records in this run; give one of adversarial, r"),
        ((asked, *m, f"--model.path={mines}/model"), "is not the model that this run was trained on (its files have"),
        ((asked, *m, "--model.path=gone"), "or say where the run's model lies now: --model.path=DIR"),
        ((asked, "--selection", tmp_path / "x.jsonl"), "x.jsonl is there already; give another path, or delete it"),
        ((asked, "--selection", tmp_path / "s.csv"), "s.csv: a selection is written as .jsonl or .parquet"),
        ((mines / "bare", *m), "this run trained nothing (pretrain.tokens = 0), so there are no weights; take --sele"),
        ((mines / "lora", *m, "--arm", "dopamine"), "--arm: dopamine was not trained in this run; choose from genera"),
        ((mines / "lora", *m, "--arm", "base"), "--arm: base is the model as it was, without an adapter; choose from"),
        ((mines / "lora", *s, "--arm", "general"), "--selection: general has no records of its own; the mined text i"),
        ((mines / "lora", *m, f"--model.path={inputs}/model"), "is not the model that this run was trained on"),
    ):
        assert message in refused(capsys, *arguments)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_run_of_mining_that_trained_other_arms_names_them(
    mines: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage in ("seeds", "corpus", "embed", "label", "classify"):
        shutil.copytree(mines / "bare" / stage, mines / "other" / stage)
    section = {**MINED, "arms": ["general", "random"], "tokens": 64}
    pipelines.run("mine", mine_config(mines, "other", pretrain=section), progress=quiet)
    said = refused(capsys, mines / "other", "--merged", tmp_path / "m")
    assert "--arm: dopamine was not trained in this run; choose from general, random" in said
    assert export(mines / "other", "--selection", tmp_path / "s.jsonl") == 0
