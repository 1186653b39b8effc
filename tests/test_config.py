"""Configs are strict: what is mistyped is named, with the nearest known key."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import yaml

from ntk_jax.config import Config, build, load_config, to_tree
from ntk_jax.errors import UserError

CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_empty_config_is_all_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, "")) == Config()
    assert load_config(write(tmp_path, "score:\n")) == Config()  # a section with all its keys commented out
    assert load_config(write(tmp_path, "score:\n"), ["--score.probes=2"]).score.probes == 2


def test_values_and_overrides(tmp_path: Path) -> None:
    path = write(
        tmp_path, "seed: 3\nscore: {objective: probe}\ndata: {pool: one.jsonl}\nfinetune: {learning_rate: 2e-4}\n"
    )
    config = load_config(path, ["--score.probes=8", "warmup.max_steps=10", "--data.domain=[a.jsonl, b.jsonl]"])
    assert config.seed == 3
    assert (config.score.objective, config.score.probes) == ("probe", 8)
    assert config.warmup.max_steps == 10
    assert config.data.pool == ("one.jsonl",)  # one path need not be a list
    assert config.data.domain == ("a.jsonl", "b.jsonl")
    assert config.finetune.learning_rate == 2e-4  # YAML 1.1 reads 2e-4 as text
    assert load_config(path, ["--score.objective=cross_entropy"]).score.objective == "cross_entropy"
    assert load_config(path, ["--seed=null", "--seed=5"]).seed == 5  # the last one counts


def test_resolved_config_reads_back(tmp_path: Path) -> None:
    config = load_config(
        write(tmp_path, "out: runs/x\nreport: {useful: [a, b]}\npreselect: {method: votes, keep: 40}\n")
    )
    text = yaml.safe_dump(to_tree(config), sort_keys=False)
    assert load_config(write(tmp_path, text)) == config
    assert set(to_tree(config)) == {field.name for field in dataclasses.fields(Config)}


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("scores: {}", [], r"run\.yaml: unknown key scores; did you mean score\?"),
        ("score: {objectve: probe}", [], r"unknown key score\.objectve; did you mean score\.objective\?"),
        ("warmup: {zzz: 1}", [], r"unknown key warmup\.zzz; known keys: epochs, max_steps, "),
        ("seed: one", [], r"run\.yaml: seed must be int, got 'one'"),
        ("seed: true", [], r"seed must be int, got True"),
        ("seed: 1.5", [], r"seed must be int, got 1\.5"),
        ("model: {path: 3}", [], r"model\.path must be str, got 3"),
        ("model: builtin:model", [], r"model must be a mapping, got 'builtin:model'"),
        ("data: {pool: 7}", [], r"data\.pool must be a list, got 7"),
        ("data: {pool: [7]}", [], r"data\.pool must be str, got 7"),
        (
            "score: {objective: logits}",
            [],
            r"score\.objective = 'logits' is not one of sum_logits, probe, cross_entropy",
        ),
        ("- a\n- b", [], r"a config is a mapping of sections; found list"),
        ("a: [1\nb: 2", [], r"run\.yaml, line \d+: not valid YAML \(.*\); mend the syntax"),
        ("", ["--score.probes"], r"override '--score\.probes' is not of the form --section\.key=value"),
        ("seed: null", [], r"seed must be int, got None"),
        ("seed: 1", ["--seed.x=1"], r"override '--seed\.x=1': seed is not a section"),
        ("", ["--data.pool=[a"], r"the value is not valid YAML; quote it"),
        ("seed: 1\nseed: 2", [], r"run\.yaml, line 2: not valid YAML \(the key seed is there twice\)"),
        ("seed: -1", [], r"seed = -1 must be between 0 and 4\.29497e\+09"),
        ("score: {batch_tokens: 0}", [], r"score\.batch_tokens = 0 must be at least 1"),
        ("data: {pool_limit: -5}", [], r"data\.pool_limit = -5 must be at least 1"),
        ("warmup: {epochs: .nan}", [], r"warmup\.epochs = nan must be at least 0"),
        ("warmup: {learning_rate: .inf}", [], r"warmup\.learning_rate = inf must be at least 0"),
        ("lora: {alpha: 0}", [], r"lora\.alpha = 0\.0 must be above 0"),
        (
            "evaluate: {confidence: 1}",
            [],
            r"evaluate\.confidence = 1\.0 must be between 0 and 1, both excluded",
        ),
        ("", ["--score.probez=2"], r"unknown key score\.probez; did you mean score\.probes\?"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(write(tmp_path, text), overrides)
    assert "\n" not in str(caught.value)


def test_missing_config(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"cannot read the config .*nowhere\.yaml: No such file or directory; give the path"
    ):
        load_config(tmp_path / "nowhere.yaml")


def test_build_refuses_a_section_that_is_no_mapping() -> None:
    with pytest.raises(UserError, match="lora must be a mapping, got 'big'"):
        build(Config, {"lora": "big"}, "here")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_read(path: Path) -> None:
    config = load_config(path)
    assert config.model.path and config.data.domain and config.data.pool and config.evaluate.files
    command = "diagnose" if path.name.startswith("diagnose") else "run"
    assert f"ntk-jax {command} configs/{path.name}" in path.read_text(), "the header carries the command"
