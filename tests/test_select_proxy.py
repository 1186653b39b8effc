"""A smaller model selects for another: the selection is the smaller one's own, what is trained is the other."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import pytest
from kernel_reference import tiny_config
from small_tokenizers import CHAT, learnt_tokenizer
from tiny_run import quiet, run, tiny_run_config, write_config, write_inputs

from ntk_jax import cli
from ntk_jax.engine.config import load_config
from ntk_jax.engine.costs import Grounds
from ntk_jax.engine.stage import Job
from ntk_jax.errors import UserError
from ntk_jax.models.hub import save_weights
from ntk_jax.models.model import random_model
from ntk_jax.pipelines.select import costs, measure
from ntk_jax.pipelines.select.config import SelectConfig
from ntk_jax.pipelines.select.doctor import checks
from ntk_jax.pipelines.select.load import load
from ntk_jax.pipelines.select.state import open_run

METHODS = {"methods": ["kernel", "sketch", "random"], "count": 6}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """write_inputs, and big/ and other/: models that are wider and deeper, with another tokenizer and a template."""
    folder = tmp_path_factory.mktemp("proxy")
    write_inputs(folder)
    tokenizer = learnt_tokenizer("byte level", chat=CHAT)
    for name, seed in (("big", 1), ("other", 2)):
        config = tiny_config("qwen2", vocab_size=len(tokenizer), num_layers=2, hidden_size=32, intermediate_size=40)
        save_weights(folder / name, dataclasses.replace(random_model(config, std=0.1, seed=seed), tokenizer=tokenizer))
    return folder


def through(inputs, out, model="big", **sections):
    return tiny_run_config(
        inputs,
        out,
        **{
            "model": {"path": str(inputs / model), "max_length": 64},
            "proxy": {"path": str(inputs / "model")},
            "select": METHODS,
            **sections,
        },
    )


@pytest.fixture(scope="module")
def finished(inputs):
    said = []

    def progress(title, *_):
        return lambda done, total, note="": said.append((title, note))

    folder = run(through(inputs, "through"), progress=progress)
    return folder, said


def test_the_selection_is_that_of_a_run_whose_model_is_the_proxy(inputs, finished):
    folder, said = finished
    alone = run(tiny_run_config(inputs, "alone", select=METHODS), until="select")
    for file in ("selection", *METHODS["methods"]):
        assert (folder / f"select/{file}.jsonl").read_bytes() == (alone / f"select/{file}.jsonl").read_bytes()
    path, big = inputs / "model", inputs / "big"
    assert ("proxy", f"{path} selects, {big} is fine-tuned and evaluated") in said


def test_what_is_too_long_for_the_model_is_counted(inputs):
    """An arm's file, chosen for another model, of which one record does not fit into this one's length."""
    pool = [json.loads(line) for line in (inputs / "pool.jsonl").read_text().splitlines()]
    (inputs / "arm.jsonl").write_text("".join(json.dumps(record) + "\n" for record in [*pool[:3], pool[-1]]))
    arms = {"arms": [f"file:{inputs / 'arm.jsonl'}"], "files": [str(inputs / "test.jsonl")]}
    select = {"methods": ["bm25"], "count": 6}
    folder = run(tiny_run_config(inputs, "short", select=select, evaluate=arms))
    found = json.loads((folder / "evaluate/results.json").read_text())["arms"][0]
    assert found["dropped"] == {"too long": 1} and found["examples"] == 8 + 3


def test_all_other_ways_to_select_are_the_proxys_too(inputs):
    every = {"methods": ["less", "low_rank", "embedding", "tsds", "perplexity", "paths", "bm25"], "count": 6,
             "less": {"checkpoints": 2}, "low_rank": {"components": 2}}  # fmt: skip
    folders = [run(through(inputs, "every", select=every), until="select"),
               run(tiny_run_config(inputs, "every_alone", select=every), until="select")]  # fmt: skip
    for method in every["methods"]:
        lines = [(folder / f"select/{method}.jsonl").read_bytes() for folder in folders]
        assert lines[0] == lines[1], method
    fingerprint = json.loads((folders[0] / "embed/fingerprint.json").read_text())["fingerprint"]
    assert "proxy.path" in fingerprint and "model.path" not in fingerprint


def test_what_is_trained_and_evaluated_is_the_model(inputs, finished):
    folder, _ = finished
    adapters = {
        place: json.loads((folder / place / "adapter_config.json").read_text())["base_model_name_or_path"]
        for place in ("warmup/adapter", "finetune/kernel/adapter", "finetune/domain/adapter")
    }
    big, small = str(inputs / "big"), str(inputs / "model")
    assert list(adapters.values()) == [small, big, big]
    # The same selection by another way: the records as the file of an arm of the model alone.
    selection = f"file:{folder / 'select/kernel.jsonl'}"
    other = tiny_run_config(
        inputs, "by_file", model={"path": big, "max_length": 64},
        select={"methods": ["random"], "count": 6}, evaluate={"arms": ["base", selection]},
    )  # fmt: skip
    by_file = run(other)
    weights = [(place / "adapter/adapter_model.safetensors").read_bytes()
               for place in (folder / "finetune/kernel", by_file / "finetune/file-kernel")]  # fmt: skip
    assert weights[0] == weights[1]
    found, same = (json.loads((place / "evaluate/results.json").read_text()) for place in (folder, by_file))
    assert found["average"]["base"] == same["average"]["base"]


def test_another_model_recomputes_nothing_that_selects(inputs):
    first = run(through(inputs, "swapped"), until="select")
    times = {path: path.stat().st_mtime_ns for path in first.rglob("manifest.json")}
    assert {path.parent.name for path in times} >= {"warmup", "gradient", "score", "sketch", "select"}
    run(through(inputs, "swapped", model="other"), until="select")
    assert {path: path.stat().st_mtime_ns for path in first.rglob("manifest.json")} == times
    run(through(inputs, "swapped", model="other"), until="finetune")
    with pytest.raises(UserError, match=r"swapped/finetune was made from something else: .* is another"):
        run(through(inputs, "swapped"), until="finetune")
    with pytest.raises(UserError, match=r"swapped/warmup was made from something else: .* is another"):
        run(through(inputs, "swapped", model="other", proxy={"path": str(inputs / "other")}), until="select")


def test_fingerprints_without_a_proxy_are_as_they_were(inputs):
    folder = run(tiny_run_config(inputs, "plain"), until="warmup")
    kept = json.loads((folder / "warmup/fingerprint.json").read_text())["fingerprint"]
    assert not [key for key in kept if key.startswith(("proxy.", "input.proxy."))]
    assert [key for key in kept if key.startswith("input.model.")] and kept["model.path"] == str(inputs / "model")


def test_the_proxy_is_let_go_of_before_the_model_comes(inputs):
    state = open_run(through(inputs, "held"), Job(inputs / "held", quiet))
    assert state.model.base.config.hidden_size == 16 and state.target.model.base.config.hidden_size == 32
    assert "base" not in state.model.__dict__ and "theta" not in state.__dict__
    plain = open_run(tiny_run_config(inputs, "held"), Job(inputs / "held", quiet))
    assert plain.target is plain


def test_a_proxy_of_its_own_length(inputs):
    """A run whose proxy reads at most 40 tokens is that of a model which does."""
    config = through(inputs, "own-length", proxy={"path": str(inputs / "model"), "max_length": 32})
    short = run(config, until="select")
    alone = tiny_run_config(
        inputs, "short_alone", model={"path": str(inputs / "model"), "max_length": 32}, select=METHODS
    )
    same = run(alone, until="select")
    assert (short / "select/kernel.jsonl").read_bytes() == (same / "select/kernel.jsonl").read_bytes()
    assert (short / "score/data.json").read_text() == (same / "score/data.json").read_text()


def test_a_model_may_be_its_own_proxy(inputs):
    config = through(inputs, "itself", model="model")
    said = []
    run(config, until="warmup", progress=lambda title, *_: lambda *a: said.append((title, a[-1])))
    assert ("proxy", f"{inputs / 'model'} selects as its own proxy, and is fine-tuned and evaluated") in said


@pytest.mark.parametrize(
    "proxy, message",
    [
        ({"path": "/nonexistent/small"}, "proxy.*/nonexistent/small"),
        ({"path": ""}, "proxy.path is empty"),
        ({"dtype": "bfloat16"}, "proxy.dtype is set but proxy.path is not"),
        ({"path": "builtin:nothing"}, "proxy.*builtin:nothing"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_written(inputs, proxy, message):
    config = through(inputs, "refused", proxy=proxy)
    with pytest.raises(UserError, match=message):
        run(config)
    assert not (inputs / "refused/warmup").exists()


def test_a_proxy_that_cannot_take_so_many_tokens(inputs):
    config = through(inputs, "long", model="big", proxy={"path": str(inputs / "model"), "max_length": 300})
    with pytest.raises(UserError, match=r"proxy\.max_length = 300 is more than the"):
        run(config, until="warmup")


def test_an_estimate_counts_each_with_its_own_model(inputs):
    both = load(through(inputs, "costs"), Grounds())
    small = load(tiny_run_config(inputs, "costs", select=METHODS), Grounds())
    big = load(tiny_run_config(inputs, "costs", model={"path": str(inputs / "big")}, select=METHODS), Grounds())
    for stage in ("warmup", "gradient", "score", "sketch", "select", "align"):
        assert getattr(costs, stage)(both) == getattr(costs, stage)(small)
    for stage in ("finetune", "evaluate"):
        assert getattr(costs, stage)(both) == getattr(costs, stage)(big)
        assert getattr(costs, stage)(both).works[0].flops > 2 * getattr(costs, stage)(small).works[0].flops


def test_the_recipe_needs_neither_weights_nor_data():
    recipe = Path(__file__).resolve().parent.parent / "configs/llama3_8b_proxy.yaml"
    config = load_config(recipe, SelectConfig, ["--model.path=not/here", "--proxy.path=not/there"])
    found = load(config, Grounds())
    small, large = (part.run.model.base for part in (found, found.target))
    sizes = [sum(leaf.size for leaf in jax.tree.leaves(model.base)) / 1e9 for model in (small, large)]
    assert [round(size, 2) for size in sizes] == [1.24, 8.03], "their published parameter counts"
    trunk = 16 * (2 * 2048 * 2048 + 2 * 2048 * 512 + 3 * 2048 * 8192)
    [score] = costs.score(found).works
    assert 4 * trunk * 1.8e6 * 256 < score.flops < 1.03 * 4 * trunk * 1.8e6 * 256  # the rest is LoRA


def test_an_estimate_and_a_doctor_say_both(inputs, capsys):
    config = through(inputs, "said")
    path = str(write_config(inputs, config))
    assert cli.main(["estimate", path]) == 0
    text = capsys.readouterr().out
    whole = "".join(text.split())  # long paths are cut where a line ends
    assert f"{inputs / 'model'}selects,{inputs / 'big'}isfine-tunedandevaluated" in whole
    assert "trained model: model shape: qwen2" in text and "- model shape: llama" in text
    found = {name: check() for name, check in checks(config) if "weights" in name or "proxy" in name}
    assert "qwen2" in str(found["weights"]) and "llama" in str(found["proxy, weights"])
    assert {"proxy, data.pool", "proxy, tokenizer"} <= set(found)


def test_each_is_measured_with_its_own_step(inputs, monkeypatch):
    seen = {}

    def once(name):
        def made(run, rows):
            seen[name] = (run.model.base.config.hidden_size, len(rows) > 0)
            return lambda: 0, 10, 100.0

        return made

    monkeypatch.setattr(measure, "SECONDS", 0.0)
    monkeypatch.setattr(measure, "score_once", once("score"))
    monkeypatch.setattr(measure, "train_once", once("training"))
    rate = measure.measured_rate(load(through(inputs, "measured"), Grounds()), Grounds())
    assert seen == {"score": (16, True), "training": (32, True)} and rate.forward > 0 and rate.backward > 0


def test_the_page_and_the_terminal_say_which_model_selected(inputs, finished):
    from ntk_jax.pipelines.select.terminal import terminal

    folder, _ = finished
    text = terminal(folder)
    assert "in whose tokens lengths are" in text
    page = (folder / "report/index.html").read_text()
    assert "Selected by" in page and "lengths of the domain and of the pool are in its tokens" in page
