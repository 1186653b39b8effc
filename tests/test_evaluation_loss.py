"""Held-out loss against one example at a time with full logits, and the comparison against a bootstrap by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from kernel_reference import tiny_model
from model_calls import logits_of
from small_tokenizers import byte_tokenizer

import ntk_jax as nj
from ntk_jax.data.tokens import encode
from ntk_jax.errors import UserError
from ntk_jax.evaluation.loss import compare_losses, held_out_losses, mean_losses, refuse_nonfinite
from ntk_jax.evaluation.packed import row_length_of
from ntk_jax.evaluation.tasks import comparison, metrics_of, read_tasks
from ntk_jax.parallel.mesh import make_mesh
from ntk_jax.parallel.rules import param_shardings

MODEL = replace(tiny_model(vocab_size=300), tokenizer=byte_tokenizer())
PLAIN = {"id": "p", "source": "s", "prompt": "Why?", "response": "Because."}
QUESTION = {**PLAIN, "id": "q", "choices": ["yes", "no"], "answer": 1, "response": "no"}
WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=30).filter(str.strip)


def record(number: int, prompt: str, response: str) -> dict[str, Any]:
    return {"id": f"e{number}", "source": "s", "prompt": prompt, "response": response}


def direct(one: dict[str, Any]) -> float:
    """Mean −log p of the response's tokens, by the logits of the whole vocabulary at every position."""
    row = encode(one, MODEL.tokenizer)
    ids = np.zeros((1, 64), np.int32)
    ids[0, : len(row.ids)] = row.ids  # what stands behind changes nothing before it
    log_probs = np.asarray(jax.nn.log_softmax(jnp.asarray(logits_of(MODEL, ids))[0].astype(jnp.float32)))
    places = np.flatnonzero(row.span[:-1])
    return float(-np.mean([log_probs[place, row.ids[place + 1]] for place in places]))


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=7), st.sampled_from((64, 256)))
def test_losses_are_those_of_one_example_at_a_time(texts: list[tuple[str, str]], batch_tokens: int) -> None:
    records = [record(i, *pair) for i, pair in enumerate(texts)]
    found = held_out_losses(MODEL, records, max_length=64, batch_tokens=batch_tokens)
    assert [loss["id"] for loss in found["losses"]] == [one["id"] for one in records] and found["dropped"] == {}
    for loss, one in zip(found["losses"], records, strict=True):
        size = (
            len(one["response"]) + len(one["prompt"]) - len(one["prompt"].rstrip())
        )  # bytes; a prompt's last spaces too
        assert size < loss["tokens"] <= size + 2  # a line break before, the EOS
        assert loss["loss"] == pytest.approx(direct(one), rel=2e-5)


def test_several_devices_and_progress() -> None:
    records = [record(i, "ab" * (i % 5 + 1), "xyz" * (i % 3 + 1)) for i in range(40)]
    calls: list[tuple[int, int]] = []
    one = held_out_losses(
        MODEL, records, max_length=64, batch_tokens=128, progress=lambda done, total: calls.append((done, total))
    )
    many = held_out_losses(MODEL, records, max_length=64, batch_tokens=512, mesh=make_mesh(4, 2))
    for a, b in zip(one["losses"], many["losses"], strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=1e-5) and a["tokens"] == b["tokens"]
    assert [done for done, _ in calls] == sorted({done for done, _ in calls}) and calls[-1] == (40, 40)
    assert len(calls) > 2 and one["tokens"] == many["tokens"] and one["flops"] > 0


def test_mean_losses_of_rows_of_one_shape() -> None:
    """Rows of a fixed length give the same losses; a row without a label is named."""
    records = [record(i, "ab" * (i % 5 + 1), "xyz" * (i % 3 + 1)) for i in range(9)]
    rows = [encode(one, MODEL.tokenizer) for one in records]
    found = mean_losses(MODEL, rows, 256, row_length=128)
    np.testing.assert_allclose(found, [direct(one) for one in records], rtol=2e-5)
    assert mean_losses(MODEL, []).shape == (0,)
    silent = replace(rows[3], span=np.zeros(len(rows[3].ids), bool), id="quiet")
    with pytest.raises(UserError, match="example quiet has no response token, so no loss; give it a response"):
        mean_losses(MODEL, [*rows[:3], silent])


def test_a_loss_that_is_not_finite_names_its_example() -> None:
    """Of rows that are packed together, all of which it spoils."""
    rows = [encode(record(i, "ab", "c" if i else "~"), MODEL.tokenizer) for i in (2, 0, 1)]
    token = next(iter(set(rows[1].ids.tolist()) - set(rows[0].ids.tolist())))
    broken = replace(MODEL, base={**MODEL.base, "embed": MODEL.base["embed"].at[token].set(jnp.nan)})
    values = mean_losses(broken, rows)
    with pytest.raises(UserError, match=r"^example e0: its loss under the warm model is not finite \(\d of 3 so\)"):
        refuse_nonfinite(broken, rows, values, "under the warm model")
    refuse_nonfinite(MODEL, rows, mean_losses(MODEL, rows))


@pytest.mark.parametrize("sizes", [(8, 1), (2, 4)], ids=["data", "fsdp"])
def test_mean_losses_on_meshes(sizes: tuple[int, int]) -> None:
    rows = [encode(record(i, "ab" * (i % 5 + 1), "xyz" * (i % 3 + 1)), MODEL.tokenizer) for i in range(20)]
    mesh = make_mesh(*sizes)
    spread = replace(MODEL, base=jax.device_put(MODEL.base, param_shardings(MODEL.base, mesh)))
    one, many = mean_losses(MODEL, rows, 256), mean_losses(spread, rows, 512, mesh, row_length=64)
    np.testing.assert_allclose(many, one, rtol=1e-5)


def test_what_is_too_long_is_left_out_or_cut_and_counted() -> None:
    records = [record(0, "short", "enough"), record(1, "x" * 80, "response"), record(2, "no response", " ")]
    dropped = held_out_losses(MODEL, records, max_length=40)
    assert dropped["dropped"] == {"too long": 1, "no response tokens": 1}
    assert dropped["losses"][1:] == [{"id": "e1", "dropped": "too long"}, {"id": "e2", "dropped": "no response tokens"}]
    cut = held_out_losses(MODEL, records, max_length=40, overflow="truncate")["losses"]
    assert cut[1]["truncated"] and cut[1]["tokens"] == 10 and "truncated" not in cut[0]
    assert cut[0] == dropped["losses"][0]
    nothing = held_out_losses(MODEL, records[1:], max_length=40)
    assert nothing["tokens"] == 0 and len(nothing["losses"]) == 2
    with pytest.raises(UserError, match=r"no example of t can be used \(no response tokens, too long\); raise"):
        compare_losses({"base": {"t": nothing["losses"]}})


def test_mistakes() -> None:
    with pytest.raises(UserError, match=r"there are no examples"):
        held_out_losses(MODEL, [], max_length=40)
    with pytest.raises(UserError, match="loaded without a tokenizer"):
        held_out_losses(replace(MODEL, tokenizer=None), [PLAIN], max_length=40)
    broken = replace(MODEL, base={**MODEL.base, "norm": MODEL.base["norm"] * jnp.nan})
    with pytest.raises(UserError, match=r"exam.jsonl: example 'p' has a loss that is not finite"):
        held_out_losses(broken, [PLAIN], max_length=40, where="exam.jsonl")
    with pytest.raises(UserError, match="no arms"):
        compare_losses({})
    lines = [{"id": "a", "loss": 1.0, "tokens": 2}]
    with pytest.raises(UserError, match="arms base and other read other examples of t; redo both"):
        compare_losses({"base": {"t": lines}, "other": {"t": [{**lines[0], "tokens": 3}]}})


def lines_of(losses: Any, tokens: Any) -> list[dict[str, Any]]:
    return [
        {"id": f"e{i}", "loss": float(a), "tokens": int(n)} for i, (a, n) in enumerate(zip(losses, tokens, strict=True))
    ]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.sampled_from((0.8, 0.95)))
def test_the_comparison_is_a_direct_bootstrap(seed: int, count: int, confidence: float) -> None:
    """Examples are drawn with replacement in each task, the same ones for both arms; averages are over tasks."""
    random = np.random.default_rng(seed)
    sizes, resamples = {"t": count, "u": 5}, 40
    tokens = {task: random.integers(1, 50, n) for task, n in sizes.items()}
    arms = {arm: {task: random.gamma(2.0, 1.0, n) for task, n in sizes.items()} for arm in ("base", "tuned")}
    found = compare_losses(
        {arm: {task: lines_of(values[task], tokens[task]) for task in sizes} for arm, values in arms.items()},
        bootstrap=resamples, confidence=confidence, seed=seed,
    )  # fmt: skip

    def means(arm: str, task: str, chosen: np.ndarray) -> tuple[float, float]:
        losses, weights = arms[arm][task][chosen], tokens[task][chosen]
        return losses.mean(), (losses * weights).sum() / weights.sum()

    draws = {}
    for number, (task, n) in enumerate(sizes.items()):
        draws[task] = np.random.default_rng([seed, number]).integers(0, n, (resamples, n))
    tail = (1 - confidence) / 2
    for k, kind in enumerate(("by_example", "by_token")):
        resampled = {
            arm: np.mean([[means(arm, task, draw)[k] for draw in draws[task]] for task in sizes], axis=0)
            for arm in arms
        }
        values = {arm: np.mean([means(arm, t, np.arange(n))[k] for t, n in sizes.items()]) for arm in arms}
        for arm in arms:
            entry = found["average"][arm][kind]
            assert entry["loss"] == pytest.approx(values[arm])
            assert [entry["low"], entry["high"]] == pytest.approx(np.quantile(resampled[arm], [tail, 1 - tail]))
        (pair,) = [pair for pair in found["paired"] if pair["kind"] == kind]
        assert (pair["a"], pair["b"]) == ("tuned", "base")
        assert pair["difference"] == pytest.approx(values["tuned"] - values["base"])
        between = np.quantile(resampled["tuned"] - resampled["base"], [tail, 1 - tail])
        assert [pair["low"], pair["high"]] == pytest.approx(between)
    task = found["tasks"][0]
    assert (task["name"], task["examples"], task["tokens"]) == ("t", count, tokens["t"].sum())
    base = task["results"]["base"]
    assert base["perplexity"] == pytest.approx(np.exp(base["by_token"]["loss"]))
    assert base["by_example"]["loss"] == pytest.approx(arms["base"]["t"].mean())
    assert json.loads(json.dumps(found)) == found


@pytest.mark.parametrize(
    ("records", "asked", "metrics"),
    [
        ([QUESTION], None, ("accuracy",)),
        ([PLAIN], None, ("loss",)),
        ([QUESTION], ("loss", "accuracy"), ("accuracy", "loss")),
        ([PLAIN], ("accuracy", "loss"), ("loss",)),
        ([QUESTION], ("loss",), ("loss",)),
        ([PLAIN, QUESTION], ("loss",), ("loss",)),
        ([QUESTION, PLAIN], None, "exam: record 'p' has no choices, but others of the file have"),
        ([QUESTION, PLAIN], ("accuracy", "loss"), "exam: record 'p' has no choices, but others of the file have"),
        ([PLAIN], ("accuracy",), "exam: record 'p' has no choices, and accuracy needs them"),
        ([{**QUESTION, "answer": 2}], None, "exam: the answer of record 'q' is 2"),
    ],
)
def test_which_metrics_a_file_gets(records: list[Any], asked: Any, metrics: Any) -> None:
    if isinstance(metrics, str):
        with pytest.raises(UserError, match=metrics):
            metrics_of(records, "exam", asked)
    else:
        assert metrics_of(records, "exam", asked) == metrics


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return str(path)


def test_tasks_of_files(tmp_path: Path) -> None:
    plain = [record(i, "Why?", "Because." * (i + 1)) for i in range(4)]
    files = [write(tmp_path / "exam.jsonl", [QUESTION]), write(tmp_path / "notes.jsonl", plain)]
    exam, notes = read_tasks(files, limit=3, seed=1)
    assert (exam.metrics, notes.metrics) == (("accuracy",), ("loss",)) and len(notes.records) == 3
    assert notes.where == files[1] and [task.name for task in (exam, notes)] == ["exam", "notes"]
    for metrics, message in ((["f1"], "metrics: 'f1' is not one of accuracy, loss"), ([], "metrics is empty")):
        with pytest.raises(UserError, match=message):
            read_tasks(files, metrics)


def test_a_comparison_may_have_either_or_both() -> None:
    answers = {"exam": [{**QUESTION, "raw": 1, "normalized": 0}]}
    losses = {"notes": lines_of([1.0, 2.0], [3, 4])}
    only = comparison({"base": {}}, {"base": losses}, bootstrap=10, confidence=0.9, seed=0)
    assert (only["tasks"], only["average"], only["paired"], only["bootstrap"]) == ([], {}, [], 10)
    assert only["loss"]["average"]["base"]["by_example"]["loss"] == 1.5
    assert only["loss"]["average"]["base"]["by_token"]["loss"] == pytest.approx(11 / 7)
    both = comparison({"base": answers}, {"base": losses}, bootstrap=10, confidence=0.9, seed=0)
    assert both["loss"] == only["loss"] and both["average"]["base"]["raw"]["accuracy"] == 1.0
    assert "loss" not in comparison({"base": answers}, {"base": {}}, bootstrap=10, confidence=0.9, seed=0)


def test_in_python(tmp_path: Path) -> None:
    plain = [record(i, "Why?", "Because." * (i + 1)) for i in range(3)]
    models = {"base": replace(MODEL, lora=jax.tree.map(jnp.zeros_like, MODEL.lora)), "tuned": MODEL}
    found = nj.evaluate(models, [write(tmp_path / "notes.jsonl", plain), write(tmp_path / "exam.jsonl", [QUESTION])],
                        metrics=["accuracy", "loss"], bootstrap=20)  # fmt: skip
    assert [task["name"] for task in found["tasks"]] == ["exam"]
    assert [task["name"] for task in found["loss"]["tasks"]] == ["notes", "exam"]
    lines = found["losses"]["tuned"]["notes"]
    assert [line["loss"] for line in lines] == pytest.approx([direct(one) for one in plain], rel=2e-5)
    assert found["losses"]["tuned"]["exam"][0]["loss"] == pytest.approx(direct(QUESTION), rel=2e-5)
    short = nj.evaluate(MODEL, plain, add_eos=False)["losses"]["model"]["questions"]
    assert [line["tokens"] for line in short] == [9, 17, 25]
    assert "losses" not in nj.evaluate(MODEL, [QUESTION])


def test_rows_of_any_length() -> None:
    assert [row_length_of(n) for n in (1, 2, 4, 64, 65, 1000, 1025)] == [64, 64, 64, 64, 128, 1024, 1280]
    tiny = replace(MODEL, tokenizer=byte_tokenizer(eos=False))
    assert held_out_losses(tiny, [record(0, "q", "a")], max_length=8)["losses"][0]["tokens"] >= 1
