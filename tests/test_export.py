"""`ntk-jax export`: what a finished run hands to other programs, and what it says where it cannot."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from model_calls import logits_of
from tiny_run import run, tiny_run_config, write_config, write_inputs

from ntk_jax import cli
from ntk_jax.errors import Note, UserError
from ntk_jax.models.model import load_model
from ntk_jax.selection.formats import check_format, write_dataset, write_parquet

IDS = np.arange(3, 63).reshape(2, 30)
KEEP = {"select": {"methods": ["random", "length_matched"], "count": 6, "length_matched": {"to": "random"}},
        "evaluate": {"arms": ["base", "domain", "random", "file:{}/domain.jsonl"]}}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The inputs, a config, and a run that was fine-tuned and not evaluated; its model may be read, not changed."""
    folder = tmp_path_factory.mktemp("export")
    write_inputs(folder)
    arms = [arm.format(folder) for arm in KEEP["evaluate"]["arms"]]
    config = tiny_run_config(folder, **{**KEEP, "evaluate": {"arms": arms}})
    write_config(folder, config)
    run(config, until="finetune")
    return folder


def export(*arguments: Any) -> int:
    return cli.main(["export", *map(str, arguments)])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf8").splitlines()]


def test_all_three_of_an_arm(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    targets = ["--adapter", tmp_path / "a", "--merged", tmp_path / "m", "--selection", tmp_path / "s.jsonl"]
    assert export(folder / "run", *targets) == 0
    said = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in said] == ["Selection", "Adapter", "Merged"]
    assert "6 records, method random" in said[0] and "7 of 12 tensors changed, arm random" in said[2]
    trained = folder / "run" / "finetune" / "random" / "adapter"
    assert (tmp_path / "s.jsonl").read_bytes() == (folder / "run" / "select" / "selection.jsonl").read_bytes()
    name = "adapter_model.safetensors"
    assert (tmp_path / "a" / name).read_bytes() == (trained / name).read_bytes()
    ours = load_model(str(folder / "model"), adapter=str(trained))
    again = load_model(str(folder / "model"), adapter=str(tmp_path / "a"))
    merged = load_model(str(tmp_path / "m"))
    assert np.array_equal(logits_of(ours, IDS), logits_of(again, IDS))
    assert np.abs(logits_of(ours, IDS) - logits_of(merged, IDS)).max() < 1e-4
    bare = load_model(str(folder / "model"))
    assert np.abs(logits_of(ours, IDS) - logits_of(bare, IDS)).max() > 1e-2
    assert merged.tokenizer("A box").input_ids == ours.tokenizer("A box").input_ids


@pytest.mark.reference
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")  # of peft calling transformers
def test_transformers_and_peft_give_the_same_logits(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch, peft = pytest.importorskip("torch"), pytest.importorskip("peft")
    from parity_torch import torch_model

    assert export(folder / "run", "--adapter", tmp_path / "a", "--merged", tmp_path / "m") == 0
    ours = load_model(str(folder / "model"), adapter=str(folder / "run" / "finetune" / "random" / "adapter"))
    expected = logits_of(ours, IDS)
    monkeypatch.chdir("/")  # the adapter finds its base model from anywhere
    merged = torch_model(tmp_path / "m")
    adapted = peft.AutoPeftModelForCausalLM.from_pretrained(str(tmp_path / "a"), dtype=torch.float32).eval()
    with torch.no_grad():
        for model in (merged, adapted):
            assert np.abs(model(torch.tensor(IDS)).logits.numpy() - expected).max() < 1e-4


def test_another_arm_by_the_config_and_a_file(folder: Path, tmp_path: Path) -> None:
    assert export(folder / "config.json", "--arm", "domain", "--adapter", tmp_path / "d") == 0
    assert export(folder / "run", "--arm", f"file:{folder}/domain.jsonl", "--adapter", tmp_path / "f") == 0
    weights = [
        (path / "adapter_model.safetensors").read_bytes()
        for path in (tmp_path / "d", tmp_path / "f", *(folder / "run/finetune" / n / "adapter"
                                                       for n in ("domain", "file-domain")))
    ]  # fmt: skip
    assert weights[:2] == weights[2:] and weights[0] != weights[1]
    assert export(folder / "run", "--arm", "length_matched", "--selection", tmp_path / "new" / "l.jsonl") == 0
    assert {record["method"] for record in lines(tmp_path / "new" / "l.jsonl")} == {"length_matched"}


def test_selections_are_the_same_row_for_row(folder: Path, tmp_path: Path) -> None:
    datasets, parquet = pytest.importorskip("datasets"), pytest.importorskip("pyarrow.parquet")
    expected = lines(folder / "run" / "select" / "selection.jsonl")
    for name in ("s.parquet", "dataset", "s.jsonl"):
        assert export(folder / "run", "--selection", tmp_path / name) == 0
    keys = {key for record in expected for key in record}
    whole = [{key: record.get(key) for key in keys} for record in expected]
    assert parquet.read_table(tmp_path / "s.parquet").to_pylist() == whole
    assert list(datasets.load_from_disk(str(tmp_path / "dataset"))) == whole
    json_set = datasets.load_dataset("json", data_files=str(tmp_path / "s.jsonl"), cache_dir=str(tmp_path / "cache"))
    assert [{key: row[key] for key in keys} for row in json_set["train"]] == whole
    from ntk_jax.data.sources import read_records

    ours = [{key: value for key, value in record.items() if value is not None} for record in expected]
    for source in (tmp_path / "s.parquet", f"hf:{tmp_path}/dataset"):
        read = [{key: value for key, value in record.items() if value is not None} for record in read_records(source)]
        assert read == ours


def test_without_targets_everything_goes_beside_the_stages(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(folder / "run", tmp_path / "run")
    for arguments, arm, found in (
        ([], "random", {"adapter", "merged", "selection.parquet"}),
        (["--arm", "domain"], "domain", {"adapter", "merged"}),
    ):
        assert export(tmp_path / "run", *arguments) == 0
        assert {path.name for path in (tmp_path / "run" / "export" / arm).iterdir()} == found
    assert export(tmp_path / "run") == 2 and "is there already" in capsys.readouterr().err
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "export", *(path.name for path in (folder / "run").iterdir())}  # fmt: skip


def test_names_that_only_this_package_reads_are_said(folder: Path, tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    from ntk_jax.models.hub import has_wrapped_names

    shutil.copytree(folder / "model", tmp_path / "wrapped")
    weights = tmp_path / "wrapped" / "model.safetensors"
    save_file({f"_orig_mod.{name}": value for name, value in load_file(weights).items()}, weights)
    assert has_wrapped_names(tmp_path / "wrapped") and not has_wrapped_names(folder / "model")
    # an adapter is of the model at its path, whose names are those of the base that peft would load
    with pytest.warns(Note, match="transformers does not read the names of its tensors"):
        assert export(folder / "run", "--adapter", tmp_path / "a", f"--model.path={tmp_path}/wrapped") == 0


def test_mistakes_are_one_line_and_write_nothing(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "x").write_text("mine")
    (tmp_path / "empty.yaml").write_text("seed: 1")
    out = folder / "run"
    for arguments, message in [
        ([out, "--arm", "bm25"], "bm25 was not fine-tuned in this run"),
        (["gs://mine/run"], "gs://mine/run: say where to write: --adapter DIR, --merged DIR"),
        (["nowhere", "--merged", "m"], "neither a run directory nor a config at nowhere"),
        (["empty.yaml", "--merged", "m"], "empty.yaml names no run directory"),
        (["mine", "--merged", "m"], "mine is no run directory of NTK-Selector"),
        ([out, "--merged", "mine"], "mine is there already"),
        ([out, "--adapter", "mine"], "mine is there already"),
        ([out, "--selection", "mine"], "mine is there already"),
        ([out, "--selection", "mine/x"], "mine/x is there already"),
        ([out, "--selection", "s.csv"], "s.csv: a selection is written as .jsonl or .parquet"),
        ([out, "--merged", "m", "--arm", "base"], "--arm: base is the model as it was, without an adapter; choose"),
        ([out, "--merged", "m", "--arm", "bm25"], "bm25 was not fine-tuned in this run; choose from domain, random,"),
        ([out, "--selection", "s.jsonl", "--arm", "domain"], "domain is no method of this run, which has random,"),
        ([out, "--merged", "m", "--seed=1"], "--seed=1: a run is read as it was made"),
        ([out, "--merged", "m", "--out", "x"], "is the run directory already; leave --out out"),
        ([out, "--merged", "m", "--model.path=builtin:model"], "is not the model that this run was trained on"),
        ([out, "--merged", "m", "--model.path=gone"], "or say where the run's model lies now: --model.path=DIR"),
        ([out, "--merged", "m", "--selection", "s.jsonl", "--model.path=gone"], "no model folder at 'gone'"),
        ([out, "--adapter", "mine/x/a"], "a part of the path is a file"),
        ([out, "--adapter", "m", "--merged", "m"], "share a folder; give each a place of its own"),
        ([out, "--adapter", "m/adapter", "--merged", "m"], "share a folder; give each a place of its own"),
        ([out, "--merged", "m", "--selection", "m/s.jsonl"], "share a folder; give each a place of its own"),
    ]:
        assert export(*arguments) == 2, arguments
        said = capsys.readouterr()
        assert message in said.err and said.err.count("\n") == 1 and said.out == "", arguments
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty.yaml", "mine", "x"]


def test_the_current_folder_is_no_target(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert export(folder / "run", "--merged", ".") == 2
    assert "cannot write .: it is the folder that you are in" in capsys.readouterr().err


def test_a_run_that_has_not_got_that_far_names_the_stage(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "run"
    shutil.copytree(folder / "run", moved)
    (moved / "finetune" / "manifest.json").unlink()
    assert export(moved, "--merged", tmp_path / "m") == 2
    assert "stage finetune is not done, so there is nothing to read from it; run `ntk-jax finetune" in (
        capsys.readouterr().err
    )
    assert export(moved, "--selection", tmp_path / "s.jsonl") == 0  # what is done is there to be had
    (moved / "select" / "selection.jsonl").write_text("{}")
    assert export(moved, "--selection", tmp_path / "t.jsonl") == 2
    assert "selection.jsonl is not as its stage wrote it (checksum)" in capsys.readouterr().err


def test_a_model_that_has_moved(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder / "model", tmp_path / "elsewhere")
    assert export(folder / "run", "--merged", tmp_path / "m", f"--model.path={tmp_path}/elsewhere") == 0
    load_model(str(tmp_path / "m"))


def test_a_model_with_a_key_that_the_user_answers_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_inputs(tmp_path)
    written = tmp_path / "model" / "config.json"
    written.write_text(json.dumps({**json.loads(written.read_text()), "a_note": 3}))
    model = {"path": str(tmp_path / "model"), "ignore_config_keys": ["a_note"], "max_length": 64}
    config = tiny_run_config(tmp_path, **KEEP | {"evaluate": {"arms": ["base", "domain"]}}, model=model)
    run(config, until="finetune")
    assert export(tmp_path / "run", "--arm", "domain", "--merged", tmp_path / "m") == 0
    assert load_model(str(tmp_path / "m"), ignore_config_keys=["a_note"]).config.ignored_keys == ("a_note",)


def test_a_quantized_run_says_so(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tiny_run_config(
        folder, str(tmp_path / "eight"), model={"quantization": "int8"}, select={"methods": ["random"], "count": 3},
        evaluate={"arms": ["domain"]}, finetune={"max_steps": 1},
    )  # fmt: skip
    run(config, until="finetune")
    assert export(tmp_path / "eight", "--arm", "domain", "--merged", tmp_path / "m") == 0
    assert "The run held the layers in int8" in capsys.readouterr().out
    adapter = str(tmp_path / "eight" / "finetune" / "domain" / "adapter")
    ours, merged = load_model(str(folder / "model"), adapter=adapter), load_model(str(tmp_path / "m"))
    assert np.abs(logits_of(ours, IDS) - logits_of(merged, IDS)).max() < 1e-4  # of the weights before rounding


@pytest.mark.parametrize(
    ("records", "message"),
    [
        ([{"id": "a", "n": 1}, {"id": "b", "n": "two"}], "the values of 'n' are of several types"),
        ([{"id": "a", "n": 2**70}], "the values of 'n' are of several types"),
        ([{"id": "a", "n": {}}], "'n' holds empty objects"),
        ([{"id": "a", "n": [{"m": {}}]}], "'n' holds empty objects"),
    ],
)
def test_what_no_column_can_hold(records: list[dict[str, Any]], message: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    for write, name in ((write_parquet, "s.parquet"), (write_dataset, "dataset")):
        with pytest.raises(UserError, match=message):
            write(tmp_path / name, records)
    assert not list(tmp_path.iterdir())


def test_columns_of_records_that_differ(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    records = [{"id": "a", "tags": ["x"], "of": {"n": 1}}, {"id": "b", "messages": [{"role": "user", "content": "é"}]}]
    write_parquet(tmp_path / "s.parquet", records)
    keys = ("id", "tags", "of", "messages")
    assert parquet.read_table(tmp_path / "s.parquet").to_pylist() == [{k: r.get(k) for k in keys} for r in records]
    (tmp_path / "folder.parquet").mkdir()
    with pytest.raises(UserError, match="is a folder"):
        check_format(tmp_path / "folder.parquet")
