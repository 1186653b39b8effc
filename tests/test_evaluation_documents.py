"""Evaluation by document: which ones are trained on, the tasks of both sides, and what predictions say of theirs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_reference import tiny_model
from small_tokenizers import byte_tokenizer

from ntk_jax.data.splitting import split_documents
from ntk_jax.errors import UserError
from ntk_jax.evaluation.accuracy import evaluate_records
from ntk_jax.evaluation.bootstrap import GROUP
from ntk_jax.evaluation.generated import Grading, generated_answers
from ntk_jax.evaluation.loss import held_out_losses
from ntk_jax.evaluation.tasks import Task, comparison, split_task

RECORDS = [
    {"id": f"q{i}", "prompt": f"{i}?", "choices": ["Yes", "No"], "answer": i % 2, "response": ["Yes", "No"][i % 2]}
    | {"document_id": f"contract {i // 3}"}
    for i in range(9)
]
TASK = Task("clauses", "clauses.jsonl", RECORDS, ("accuracy",))


@given(st.lists(st.text(min_size=1), min_size=1, max_size=30), st.floats(0.01, 0.99), st.integers(0, 9))
def test_every_document_is_on_one_side(names: list[str], share: float, seed: int) -> None:
    trained, unseen = split_documents(names, share, seed)
    own = list(dict.fromkeys(names))
    assert not set(trained) & set(unseen) and set(trained) | set(unseen) == set(own)
    assert trained == [n for n in own if n in trained] and unseen == [n for n in own if n in unseen]
    assert abs(len(trained) - share * len(own)) <= 1.0
    if len(own) > 1:
        assert trained and unseen
    assert (trained, unseen) == split_documents(names, share, seed)
    again = split_documents([*reversed(names), *names], share, seed)
    assert tuple(map(set, again)) == (set(trained), set(unseen))  # neither order nor repetition matters


@given(st.sets(st.text(min_size=1), min_size=2, max_size=30), st.integers(0, 9))
def test_a_larger_share_only_adds(names: set[str], seed: int) -> None:
    sides = [set(split_documents(names, share / 10, seed)[0]) for share in range(1, 10)]
    assert all(small <= large for small, large in zip(sides[:-1], sides[1:], strict=True))


def test_the_seed_decides() -> None:
    names = [f"contract {i}" for i in range(40)]
    assert len({tuple(split_documents(names, 0.5, seed)[0]) for seed in range(5)}) == 5
    assert split_documents(["a", "b"], 0.5, 0) == split_documents(["a", "b"], 0.99, 0)  # one on each side


@pytest.mark.parametrize(
    ("names", "share", "message"),
    [([], 0.5, "there are no documents"), (["a"], 0.0, "share of documents"), (["a"], 1.0, "share of documents")],
)
def test_splits_that_are_none(names: list[str], share: float, message: str) -> None:
    with pytest.raises(UserError, match=message):
        split_documents(names, share, 0)


def test_a_task_is_split_by_document() -> None:
    trained, unseen = split_task(TASK, "document_id", ["contract 0", "contract 2", "contract 9"])
    assert (trained.name, unseen.name) == ("clauses (trained documents)", "clauses (unseen documents)")
    assert [r["id"] for r in trained.records] == ["q0", "q1", "q2", "q6", "q7", "q8"]
    assert [r["id"] for r in unseen.records] == ["q3", "q4", "q5"]
    assert {r[GROUP] for r in unseen.records} == {"contract 1"}
    assert (trained.where, trained.metrics, trained.shots) == (TASK.where, TASK.metrics, TASK.shots)
    assert all(GROUP not in record for record in RECORDS)  # the task itself stays as it is
    assert [t.name for t in split_task(TASK, "document_id", [])] == ["clauses (unseen documents)"]
    everything = [f"contract {i}" for i in range(3)]
    assert [t.name for t in split_task(TASK, "document_id", everything)] == ["clauses (trained documents)"]
    numbered = replace(TASK, records=[r | {"document_id": i % 2} for i, r in enumerate(RECORDS)])
    assert [len(t.records) for t in split_task(numbered, "document_id", {"0"})] == [5, 4]


def test_a_document_has_one_name_whatever_file_it_was_in() -> None:
    filed = replace(TASK, records=[r | {"document_id": f"{r['document_id']}.PDF"} for r in RECORDS])
    assert [len(t.records) for t in split_task(filed, "document_id", ["Contract 0", "contract 2.txt"])] == [6, 3]
    assert [t.name for t in split_task(filed, "document_id", ["contract"])] == ["clauses (unseen documents)"]


def test_a_record_without_a_document_is_named() -> None:
    with pytest.raises(UserError, match=r'clauses.jsonl: record \'q0\' has no "document_name"'):
        split_task(TASK, "document_name", [])


def test_documents_are_drawn_where_a_task_is_split() -> None:
    """From records through every metric of a model to the intervals."""
    model = replace(tiny_model(vocab_size=300), tokenizer=byte_tokenizer())
    task = split_task(TASK, "document_id", ["contract 0", "contract 1"])[0]
    found = [
        evaluate_records(model, task.records, max_length=64)["predictions"],
        held_out_losses(model, task.records, max_length=64)["losses"],
        generated_answers(model, task.records, grading=Grading(max_tokens=1), max_length=160)["answers"],
    ]
    for lines in found:
        assert [line["group"] for line in lines] == ["contract 0"] * 3 + ["contract 1"] * 3
    assert (found[2][1]["choices"], found[2][1]["answer"]) == (["Yes", "No"], 1)
    results = comparison(*({"base": {task.name: lines}} for lines in found), bootstrap=20, confidence=0.9, seed=0)
    for part in (results, results["generated"]):
        assert (part["tasks"][0]["resampled"], part["tasks"][0]["documents"]) == ("documents", 2)
        assert part["tasks"][0]["constant"] == {"label": "No", "accuracy": 0.5, "balanced": 0.5}
    assert results["loss"]["tasks"][0]["documents"] == 2
    plain = evaluate_records(model, TASK.records, max_length=64)["predictions"]
    assert all("group" not in line for line in plain)
