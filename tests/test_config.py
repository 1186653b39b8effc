"""Configs are strict: what is mistyped is named, with the nearest known key."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import yaml

from ntk_jax.engine.config import Key, build, explain_keys, keys, load_config, read_tree, sections, to_tree
from ntk_jax.errors import UserError
from ntk_jax.pipelines import all_pipelines
from ntk_jax.pipelines.diagnose.config import DiagnoseConfig
from ntk_jax.pipelines.kernel.config import KernelConfig
from ntk_jax.pipelines.select.config import SelectConfig
from ntk_jax.settings import Range

ALL = {pipeline.name: pipeline.config.resolve() for pipeline in all_pipelines()}
CONFIGS = sorted((Path(__file__).resolve().parent.parent / "configs").glob("*.yaml"))


def write(folder: Path, text: str) -> Path:
    path = folder / "run.yaml"
    path.write_text(text)
    return path


def test_empty_config_is_all_defaults(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, ""), SelectConfig) == SelectConfig()
    assert (
        load_config(write(tmp_path, "score:\n"), SelectConfig) == SelectConfig()
    )  # a section with all its keys commented out
    assert load_config(write(tmp_path, "score:\n"), SelectConfig, ["--score.probes=2"]).score.probes == 2


def test_values_and_overrides(tmp_path: Path) -> None:
    path = write(
        tmp_path, "seed: 3\nscore: {objective: probe}\ndata: {pool: one.jsonl}\nfinetune: {learning_rate: 2e-4}\n"
    )
    config = load_config(
        path, SelectConfig, ["--score.probes=8", "warmup.max_steps=10", "--data.domain=[a.jsonl, b.jsonl]"]
    )
    assert config.seed == 3
    assert (config.score.objective, config.score.probes) == ("probe", 8)
    assert config.warmup.max_steps == 10
    assert config.data.pool == ("one.jsonl",)  # one path need not be a list
    assert config.data.domain == ("a.jsonl", "b.jsonl")
    assert config.finetune.learning_rate == 2e-4  # YAML 1.1 reads 2e-4 as text
    assert load_config(path, SelectConfig, ["--score.objective=cross_entropy"]).score.objective == "cross_entropy"
    assert load_config(path, SelectConfig, ["--seed=null", "--seed=5"]).seed == 5  # the last one counts


def test_resolved_config_reads_back(tmp_path: Path) -> None:
    config = load_config(
        write(tmp_path, "out: runs/x\nreport: {useful: [a, b]}\npreselect: {method: votes, keep: 40}\n"), SelectConfig
    )
    text = yaml.safe_dump(to_tree(config), sort_keys=False)
    assert load_config(write(tmp_path, text), SelectConfig) == config
    assert set(to_tree(config)) == {field.name for field in dataclasses.fields(SelectConfig)}


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
        ("a: [1\nb: 2", [], r"run\.yaml, line \d+: not valid YAML \(.*\); correct the syntax"),
        ("", ["--score.probes"], r"override '--score\.probes' is not of the form --section\.key=value"),
        ("seed: null", [], r"seed must be int, got None"),
        ("seed: 1", ["--seed.x=1"], r"override '--seed\.x=1': seed is not a section"),
        ("", ["--data.pool=[a"], r"the value, line 1: not valid YAML .*; quote it"),
        ("seed: 1\nseed: 2", [], r"run\.yaml, line 2: not valid YAML \(the key seed is there twice\)"),
        ("seed: -1", [], r"seed = -1 must be between 0 and 4294967295"),
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
        ("? [a, b]\n: c", [], r"run\.yaml, line 1: not valid YAML \(found unhashable key\)"),
        (
            "model: {template_options: {a: 2024-01-01}}",
            [],
            r"model\.template_options\.a is a date, .* put it in quotes",
        ),
        ("model: {template_options: &a {x: *a}}", [], r"template_options.* is nested too deeply, or holds itself"),
        ("model: {template_options: {x: {1: 2}}}", [], r"model\.template_options\.x: the name 1 is no text"),
        ("model: {template_options: {x: [!!set {a}]}}", [], r"model\.template_options\.x is a set, "),
        ("model: {template_options: {x: !!binary aGk=}}", [], r"model\.template_options\.x is a bytes, "),
        ("model: {template_options: {x: .inf}}", [], r"model\.template_options\.x = inf is not a finite number"),
        ('model: {template_options: {x: "\\ud800"}}', [], r"template_options\.x = .* holds a character that no text"),
        ("", ["--score.probez=2"], r"unknown key score\.probez; did you mean score\.probes\?"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(write(tmp_path, text), SelectConfig, overrides)
    assert "\n" not in str(caught.value)


def test_missing_config(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"cannot read .*nowhere\.yaml: No such file or directory; give the path"):
        load_config(tmp_path / "nowhere.yaml", SelectConfig)


def test_build_refuses_a_section_that_is_no_mapping() -> None:
    with pytest.raises(UserError, match="lora must be a mapping, got 'big'"):
        build(SelectConfig, {"lora": "big"}, "here")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.name)
def test_shipped_configs_read(path: Path) -> None:
    name = read_tree(path).get("pipeline", "select")
    own = next(pipeline for pipeline in all_pipelines() if pipeline.name == name)
    others = [cls for other, cls in ALL.items() if other != name]
    config = load_config(path, ALL[name], (), others)
    if name == "mine":
        assert config.domains and config.corpus.files and config.encoder.path
    elif name == "question":
        assert config.model.path and config.documents.files and config.expert.model and config.evaluate.files
    else:
        assert config.model.path and config.data.domain and config.data.pool and config.evaluate.files
    assert f"ntk-jax {own.command} configs/{path.name}" in path.read_text(), "the header carries the command"


def test_a_file_may_hold_the_sections_of_several_pipelines(tmp_path: Path) -> None:
    path = write(tmp_path, "pipeline: kernel\nseed: 2\nselect: {count: 5}\nkernel: {probes: 3}\ndiagnose: {top: 4}\n")
    several = (SelectConfig, DiagnoseConfig, KernelConfig)
    found = [load_config(path, cls, (), [other for other in ALL.values() if other is not cls]) for cls in several]
    assert isinstance(found[1], DiagnoseConfig) and isinstance(found[2], KernelConfig)
    assert (found[0].select.count, found[1].diagnose.top, found[2].kernel.probes) == (5, 4, 3)
    assert [config.seed for config in found] == [2, 2, 2]
    with pytest.raises(UserError, match="unknown key"):
        load_config(path, SelectConfig)  # alone it knows its own


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [
        ("kernel: {probez: 3}", [], r"unknown key kernel\.probez; did you mean kernel\.probes\?"),
        ("diagnose: {top: 0}", [], r"diagnose\.top = 0 must be at least 1"),
        ("kernel: 3", [], "kernel must be a mapping, got 3"),
        ("", ["--kernel.probes=3"], r"override '--kernel\.probes=3': this command has no section kernel; leave it out"),
        ("kernel: {probes: 3}", ["kernel.probes=3"], "this command has no section kernel"),
    ],
)
def test_sections_of_others_are_checked_and_not_overridden(
    tmp_path: Path, text: str, overrides: list[str], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        load_config(write(tmp_path, text), SelectConfig, overrides, [DiagnoseConfig, KernelConfig])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ALL)
def test_every_key_has_a_meaning(name: str) -> None:
    found = list(keys(ALL[name]))
    assert len(found) > 20 and len({key.name for key in found}) == len(found)
    for key in found:
        assert len(key.help) > 4 and (not key.help.endswith(".") or key.help.endswith("...")), (
            f"{key.name} does not say what it is"
        )
        assert key.values and "typing" not in key.values and "class" not in key.values, key
    for section, meaning in sections(ALL[name]):
        assert len(meaning) > 10 and "(self" not in meaning, f"section {section} does not say what it is"


def test_what_several_pipelines_share_is_the_same_everywhere() -> None:
    seen: dict[str, Key] = {}
    for cls in ALL.values():
        for key in keys(cls):
            assert seen.setdefault(key.name, key) == key


def test_defaults_and_values_are_stated_as_yaml_has_them() -> None:
    found = {key.name: key for cls in ALL.values() for key in keys(cls)}
    stated = {
        "out": ('""', "text"),
        "seed": ("0", "whole number, between 0 and 4294967295"),
        "model.quantization": ("null", "int8, float8_e4m3fn or null"),
        "model.add_eos": ("true", "true or false"),
        "finetune.learning_rate": ("2e-05", "number, at least 0"),
        "data.pool_limit": ("null", "whole number, at least 1, or null"),
        "model.adapter": ("null", "text or null"),
        "select.methods": ("[kernel, random]", "list of texts"),
        "diagnose.audit_dims": ("[256, 512, 1024, 2048, 4096, 8192]", "list of whole numbers, at least 1"),
        "estimate.utilization": ("0.4", "number, between 0.01 and 1"),
        "evaluate.confidence": ("0.95", "number, between 0 and 1, both excluded"),
        "evaluate.arms": ("null", "list of texts or null"),
    }
    assert {name: (found[name].default, found[name].values) for name in stated} == stated
    for cls in ALL.values():  # a default read as YAML is the default
        for key in keys(cls):
            tree: dict[str, Any] = {}
            *parents, last = key.name.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[last] = yaml.safe_load(key.default)
            assert build(cls, tree, "here") == cls(), key


def test_keys_are_explained_once_and_readably() -> None:
    text = explain_keys(ALL, "", 100)
    for cls in ALL.values():
        for key in keys(cls):
            assert text.count(f"  {key.name} = {key.default.split(',')[0]}") == 1, key.name
    assert max(map(len, text.splitlines())) <= 100
    assert explain_keys(ALL, "select.bm25.k1", 100) == (
        "select.bm25 (pipeline select): BM25 with all prompts and responses of the domain as the query.\n"
        "  select.bm25.k1 = 1.2  [number, at least 0]\n"
        "      how slowly repeated words saturate; 0 counts a word once"
    )
    assert "(pipeline select, mine, question, diagnose)" in explain_keys(ALL, "evaluate.limit", 100)
    assert "pipeline" not in explain_keys({"select": SelectConfig}, "select.count", 100)
    with pytest.raises(UserError, match=r"no key begins with selct; did you mean select\?"):
        explain_keys(ALL, "selct", 100)


def test_ranges_in_words() -> None:
    assert [str(Range(1)), str(Range(0, open=True)), str(Range(0.5, 2))] == [
        "at least 1",
        "above 0",
        "between 0.5 and 2",
    ]
