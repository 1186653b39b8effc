"""Balanced accuracy against its plain definition, and bootstraps that draw documents."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.evaluation.accuracy import compare
from ntk_jax.evaluation.balanced import balanced_of, label_set
from ntk_jax.evaluation.bootstrap import drawn, groups_of, interval, resampled_means, resampled_sums
from ntk_jax.evaluation.generated import compare_generated
from ntk_jax.evaluation.loss import compare_losses

LABELS = ["No", "Yes", "Maybe"]


def question(number: int, truth: int, **more: Any) -> dict[str, Any]:
    return {"id": f"q{number}", "choices": LABELS, "answer": truth, **more}


def recall_mean(truth: Sequence[int], correct: Sequence[float]) -> float:
    """The definition: of each label that occurs, the share that is right; the mean of these."""
    shares = []
    for label in sorted(set(truth)):
        own = [right for true, right in zip(truth, correct, strict=True) if true == label]
        shares.append(sum(own) / len(own))
    return sum(shares) / len(shares)


def draws_of(count: int, resamples: int, seed: Sequence[int]) -> np.ndarray:
    """Which questions the bootstrap draws: a question's own number is the only thing that tells it from others."""
    found = resampled_sums(np.eye(count), resamples=resamples, seed=seed)
    assert (found.sum(axis=1) == count).all()
    return found.astype(int)


answered = st.lists(st.tuples(st.integers(0, 2), st.booleans(), st.booleans()), min_size=2, max_size=40)


@settings(max_examples=60, deadline=None)
@given(answered, st.integers(0, 99))
def test_it_is_what_the_definition_says(answers: list[tuple[int, bool, bool]], seed: int) -> None:
    truth = [t for t, *_ in answers]
    correct = np.asarray([[a, b] for _, a, b in answers], float)
    questions = [question(i, t) for i, t in enumerate(truth)]
    found = balanced_of(questions, correct, resamples=20, seed=(seed, 1))
    assert found is not None
    values, resampled = found.column
    for arm in range(2):
        assert values[arm] == pytest.approx(recall_mean(truth, correct[:, arm]))
    for draw, row in zip(draws_of(len(truth), 20, (seed, 1)), resampled, strict=True):
        taken = np.repeat(np.arange(len(truth)), draw)
        for arm in range(2):
            assert row[arm] == pytest.approx(recall_mean([truth[i] for i in taken], correct[taken, arm]))
    always = {label: sum(t == label for t in truth) / len(truth) for label in set(truth)}
    assert found.constant["accuracy"] == pytest.approx(max(always.values()))
    assert always[LABELS.index(found.constant["label"])] == max(always.values())
    best = [float(t == LABELS.index(found.constant["label"])) for t in truth]
    assert found.constant["balanced"] == pytest.approx(recall_mean(truth, best))
    assert found.constant["accuracy"] == pytest.approx(sum(best) / len(best))


@settings(max_examples=60, deadline=None)
@given(answered, st.integers(0, 99))
def test_equal_labels_make_it_the_accuracy(answers: list[tuple[int, bool, bool]], seed: int) -> None:
    """Each question once for every label, answered alike: both measures agree, and both bootstraps draw alike."""
    correct = np.asarray([[a, b] for _, a, b in answers for _ in LABELS], float)
    questions = [question(i, i % 3) for i in range(len(correct))]
    found = balanced_of(questions, correct, resamples=5, seed=(seed,))
    assert found is not None
    np.testing.assert_allclose(found.column[0], correct.mean(axis=0))
    one_label = balanced_of([question(i, 1) for i in range(len(correct))], correct, resamples=5, seed=(seed,))
    assert one_label is not None
    np.testing.assert_allclose(one_label.column[1], resampled_means(correct, resamples=5, seed=(seed,)))


def test_what_is_no_classification_has_none() -> None:
    assert label_set([question(0, 1)]) is None  # one question
    assert label_set([question(0, 1), {**question(1, 0), "choices": ["x", "y"]}]) is None
    assert label_set([{"id": "a"}, {"id": "b"}]) is None
    assert label_set([question(0, 1), {**question(1, 0), "choices": LABELS[::-1]}]) == set(LABELS)
    rows = [{**question(i, 0), "choices": [f"x{i}", "y"], "raw": 0, "normalized": 0} for i in range(4)]
    found = compare({"base": {"t": rows}, "other": {"t": rows}}, bootstrap=5)
    assert "balanced" not in json.dumps(found) and "constant" not in found["tasks"][0]


def predictions(truth: Sequence[int], raw: Sequence[int], normalized: Sequence[int], **more: Any) -> list[Any]:
    return [
        question(i, t, raw=r, normalized=n, **more)
        for i, (t, r, n) in enumerate(zip(truth, raw, normalized, strict=True))
    ]


def test_the_comparison_of_arms_has_it() -> None:
    """Nine No and one Yes: always No is right in 90%, and knows nothing."""
    truth = [0] * 9 + [1]
    arms = {
        "base": {"clauses": predictions(truth, [0] * 10, [0] * 10)},
        "trained": {"clauses": predictions(truth, [0] * 6 + [1] * 4, [1] * 10)},
    }
    found = compare(arms, bootstrap=200, confidence=0.9, seed=2)
    (task,) = found["tasks"]
    assert task["constant"] == {"label": "No", "accuracy": 0.9, "balanced": 0.5} and task["resampled"] == "questions"
    raw = {arm: task["results"][arm]["raw"] for arm in arms}
    assert raw["base"]["accuracy"] == 0.9 and raw["base"]["balanced"]["accuracy"] == 0.5
    assert raw["trained"]["accuracy"] == 0.7
    assert raw["trained"]["balanced"]["accuracy"] == pytest.approx((6 / 9 + 1) / 2)
    assert raw["trained"]["balanced"]["low"] <= (6 / 9 + 1) / 2 <= raw["trained"]["balanced"]["high"]
    assert [(p["a"], p["b"], p["kind"]) for p in task["paired_balanced"]] == [
        ("trained", "base", "raw"), ("trained", "base", "normalized"),
    ]  # fmt: skip
    assert task["paired_balanced"][0]["difference"] == pytest.approx((6 / 9 + 1) / 2 - 0.5)
    assert task["paired_balanced"][1]["difference"] == 0.0
    assert found["balanced"]["tasks"] == ["clauses"] and found["balanced"]["paired"] == task["paired_balanced"]
    assert found["balanced"]["average"]["trained"]["raw"] == raw["trained"]["balanced"]
    assert json.loads(json.dumps(found)) == found


def test_the_average_is_over_classifications_alone() -> None:
    other = [{**question(i, 0), "choices": [f"x{i}", "y"], "raw": 1, "normalized": 1} for i in range(4)]
    half = predictions([0, 0, 0, 1], [0, 0, 0, 0], [0, 0, 0, 1])
    found = compare({"base": {"a": half, "b": other, "c": predictions([0, 1], [0, 1], [0, 1])}}, bootstrap=20)
    assert found["balanced"]["tasks"] == ["a", "c"] and found["balanced"]["paired"] == []
    assert found["balanced"]["average"]["base"]["raw"]["accuracy"] == 0.75
    assert found["balanced"]["average"]["base"]["normalized"]["accuracy"] == 1.0


def test_generated_answers_have_it() -> None:
    def answers(*correct: bool) -> list[dict[str, Any]]:
        return [
            question(i, int(i == 3)) | {"correct": right, "found": "A" if right else None, "finish": "stop"}
            for i, right in enumerate(correct)
        ]

    found = compare_generated({"a": {"t": answers(True, True, True, False)}, "b": {"t": answers(*[True] * 4)}}, seed=1)
    (task,) = found["tasks"]
    assert task["results"]["a"]["balanced"]["accuracy"] == 0.5 and task["results"]["b"]["balanced"]["accuracy"] == 1.0
    assert task["constant"] == {"label": "No", "accuracy": 0.75, "balanced": 0.5}
    (pair,) = found["balanced"]["paired"]
    assert (pair["a"], pair["b"], pair["difference"]) == ("b", "a", 0.5) and "kind" not in pair
    assert found["balanced"]["average"]["a"] == task["results"]["a"]["balanced"]
    plain = [{key: value for key, value in answer.items() if key != "choices"} for answer in answers(True, False)]
    assert "balanced" not in json.dumps(compare_generated({"a": {"t": plain}}))


# -- documents are drawn ----------------------------------------------------------------------------------------------

grouped = st.lists(st.tuples(st.integers(0, 1), st.booleans(), st.sampled_from("abcd")), min_size=2, max_size=30)


@settings(max_examples=60, deadline=None)
@given(grouped, st.integers(0, 99))
def test_documents_are_drawn_whole(answers: list[tuple[int, bool, str]], seed: int) -> None:
    groups = [name for *_, name in answers]
    truth, correct = [t for t, *_ in answers], np.asarray([[right] for _, right, _ in answers], float)
    names = sorted(set(groups))
    means = resampled_means(correct, resamples=20, seed=(seed,), groups=groups)
    found = balanced_of(
        [question(i, t) for i, t in enumerate(truth)], correct, resamples=20, seed=(seed,), groups=groups
    )
    assert found is not None
    for place, draw in enumerate(draws_of(len(names), 20, (seed,))):
        taken = [i for name, times in zip(names, draw, strict=True) for i in np.flatnonzero(np.asarray(groups) == name)
                 for _ in range(times)]  # fmt: skip
        assert means[place, 0] == pytest.approx(correct[taken, 0].mean())
        assert found.column[1][place, 0] == pytest.approx(recall_mean([truth[i] for i in taken], correct[taken, 0]))


@given(st.integers(1, 30), st.integers(0, 99))
def test_a_question_a_document_is_a_bootstrap_over_questions(count: int, seed: int) -> None:
    values = np.random.default_rng(seed).integers(0, 2, (count, 3)).astype(float)
    groups = [f"{i:03}" for i in range(count)]
    np.testing.assert_allclose(
        resampled_means(values, resamples=10, seed=(seed,), groups=groups),
        resampled_means(values, resamples=10, seed=(seed,)),
    )


def test_alike_questions_of_a_document_widen_the_interval() -> None:
    """Ten documents of twenty questions that are all right or all wrong: ten draws, not two hundred."""
    correct = np.repeat([1.0, 0.0] * 5, 20)[:, None]
    groups = np.repeat([f"d{i}" for i in range(10)], 20).tolist()
    low, high = interval(resampled_means(correct, resamples=2000, seed=(0,), groups=groups)[:, 0], 0.95)
    apart = interval(resampled_means(correct, resamples=2000, seed=(0,))[:, 0], 0.95)
    assert high - low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 10), rel=0.15)
    assert high - low > 3 * (apart[1] - apart[0])


def test_results_say_what_was_drawn() -> None:
    truth = [0, 1, 0, 1]
    rows = [p | {"group": f"d{i // 2}"} for i, p in enumerate(predictions(truth, truth, [0] * 4))]
    (task,) = compare({"base": {"t": rows}}, bootstrap=5)["tasks"]
    assert (task["resampled"], task["documents"]) == ("documents", 2)
    missing = [*rows[:3], predictions(truth, truth, truth)[3]]
    (task,) = compare({"base": {"t": missing}}, bootstrap=5)["tasks"]
    assert task["resampled"] == "questions" and "documents" not in task
    assert groups_of([]) is None and drawn(None) == {"resampled": "questions"}
    losses = [{"id": f"e{i}", "loss": 1.0 + i, "tokens": 2, "group": "one"} for i in range(3)]
    loss = compare_losses({"base": {"t": losses}}, bootstrap=5)
    assert loss["tasks"][0]["documents"] == 1
    by_example = loss["average"]["base"]["by_example"]
    assert by_example == {"loss": 2.0, "low": 2.0, "high": 2.0}  # one document: there is nothing to draw
