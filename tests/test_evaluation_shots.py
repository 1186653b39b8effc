"""Solved examples before a question: which they are, where they stand, and what becomes of a question without room."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_page import page_of
from small_tokenizers import byte_tokenizer
from tiny_run import run, tiny_run_config, write_inputs

import ntk_jax as nj
from ntk_jax.data.templates import Rendering, render
from ntk_jax.engine.estimate import estimate_run
from ntk_jax.errors import UserError
from ntk_jax.evaluation import generated
from ntk_jax.evaluation.generated import Grading, before_replies
from ntk_jax.evaluation.shots import before_choices, before_responses, fitted, shots_of, with_shots
from ntk_jax.evaluation.tasks import read_tasks
from ntk_jax.llm.request import Reply, Request
from ntk_jax.pipelines.mine.terminal import terminal as mining_terminal
from ntk_jax.pipelines.select.stages import PIPELINE
from ntk_jax.pipelines.select.terminal import terminal
from ntk_jax.storage.atomic import read_json

CHAT = "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
CHAT += "{% if add_generation_prompt %}<assistant>{% endif %}"


def pair(number: int, prompt: str | None = None) -> dict[str, Any]:
    return {"id": f"s{number}", "source": "s", "prompt": prompt or f"{number} + 1 =", "response": str(number + 1)}


def choice(number: int) -> dict[str, Any]:
    found = pair(number, f"After {number}?")
    return {**found, "choices": [str(number + 1), "none"], "answer": 0, "response": str(number + 1)}


def talk(question: str, answer: str, system: str | None = None) -> dict[str, Any]:
    turns = [("system", system)] if system else []
    turns += [("user", question), ("assistant", answer)]
    return {"id": question, "messages": [{"role": role, "content": content} for role, content in turns]}


def write(path: Path, records: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def chatting() -> Any:
    tokenizer = byte_tokenizer()
    tokenizer.chat_template = CHAT
    return tokenizer


# -- which they are --------------------------------------------------------------------------------------------------


def test_shots_come_from_the_train_file_and_never_ask_what_is_asked(tmp_path: Path) -> None:
    exam = write(tmp_path / "sums.test.jsonl", [pair(i) for i in range(4)])
    write(tmp_path / "sums.train.jsonl", [pair(10), pair(2, " 2  + 1 ="), pair(3, "3 + 1 ="), pair(11), pair(12)])
    (task,) = read_tasks([exam], shots=3, seed=1)
    assert sorted(shot["id"] for shot in task.shots.records) == ["s10", "s11", "s12"]
    assert task.shots.file == str(tmp_path / "sums.train.jsonl")
    assert task.shots == read_tasks([exam], shots=3, seed=1, limit=1)[0].shots  # of all questions, used or not
    drawn = {tuple(s["id"] for s in read_tasks([exam], shots=1, seed=seed)[0].shots.records) for seed in range(12)}
    assert len(drawn) > 1 and read_tasks([exam])[0].shots.records == ()
    with pytest.raises(UserError, match=r"shots = 4, but .*sums.train.jsonl has 3 examples that sums does not ask"):
        read_tasks([exam], shots=4)


@given(
    st.lists(st.integers(0, 9), min_size=1, max_size=8), st.lists(st.integers(0, 12), max_size=8), st.integers(0, 99)
)
def test_no_shot_is_a_question(asked: list[int], offered: list[int], seed: int) -> None:
    questions = [pair(number) for number in asked]
    offers = [{**pair(number), "id": f"o{place}"} for place, number in enumerate(offered)]
    free = set(offered) - set(asked)
    if not free:
        return
    found = shots_of("t", "t.jsonl", questions, len(free), {"t": offers}, seed=seed).records
    assert {shot["prompt"] for shot in found} == {f"{number} + 1 =" for number in free}
    first = shots_of("t", "t.jsonl", questions, 1, {"*": offers}, seed=seed).records
    assert first == found[:1]  # fewer shots are the first ones


def test_what_is_refused(tmp_path: Path) -> None:
    exam = write(tmp_path / "exam.jsonl", [pair(1)])
    other = write(tmp_path / "other.jsonl", [pair(2), pair(3, " ")])

    def refused(message: str, files: Any, count: int = 1) -> None:
        with pytest.raises(UserError, match=message):
            read_tasks([exam], shots=count, shot_files=files)

    refused("beside .*exam.jsonl, whose name has no test", None)
    refused("exam.jsonl is the file of the task exam itself", {"exam": exam})
    refused("shot_files: exma fits no task; the tasks are exam", {"exma": other})
    refused("shot_files must be a mapping", other)
    refused("gone.jsonl", {"ex*": str(tmp_path / "gone.jsonl")})
    refused("has 1 examples that exam does not ask", {"exam": other}, count=2)
    assert read_tasks([exam], shots=1, shot_files={"ex*": other})[0].shots.records[0]["id"] == "s2"


# -- where they stand ------------------------------------------------------------------------------------------------


def test_plain_shots_stand_before_the_prompt() -> None:
    found = with_shots({**pair(5), "extra": 1}, [pair(1), talk("Why?", "So.", "ignored")], chat=False)
    assert found["prompt"] == "1 + 1 = 2\n\nWhy? So.\n\n5 + 1 =" and found["response"] == "6" and found["extra"] == 1
    own = with_shots(talk("How?", "Thus.", "Be brief."), [pair(1)], chat=False)
    assert own["prompt"] == "Be brief.\n\n1 + 1 = 2\n\nHow?" and "messages" not in own


def test_chat_shots_are_earlier_turns() -> None:
    found = with_shots(talk("How?", "Thus.", "Be brief."), [pair(1), talk("Why?", "So.", "other")], chat=True)
    prompt, response = render(found, chatting(), Rendering())
    assert prompt == (
        "<system>Be brief.\n<user>1 + 1 =\n<assistant>2\n<user>Why?\n<assistant>So.\n<user>How?\n<assistant>"
    )
    assert response == "Thus.\n"


def test_choices_are_answered_by_their_words_and_letters_by_letters() -> None:
    shots, tokenizer = [{**choice(1), "response": "two, I think"}], byte_tokenizer()
    (asked,), counts = before_choices([choice(5)], shots, tokenizer, max_length=None, rendering=Rendering())
    assert asked["prompt"] == "After 1? 2\n\nAfter 5?" and counts == [1] and asked["choices"] == ["6", "none"]
    options: dict[str, Any] = {"grading": Grading("letter", max_tokens=4), "context": 1000, "rendering": Rendering()}
    ((message,),), counts, stop = before_replies([choice(5)], shots, tokenizer, **options)
    lines = message["content"].split("\n\n")
    assert counts == [1] and lines[0] == "After 1?" and lines[2].endswith("choice. A") and lines[3] == "After 5?"
    assert stop == ("\n\n",)
    (turns,), _, stop = before_replies([choice(5)], shots, chatting(), **options)
    assert [turn["role"] for turn in turns] == ["user", "assistant", "user"] and turns[1]["content"] == "A"
    assert stop == ()  # a chat model ends its turn


def test_an_answer_with_an_empty_line_is_not_cut_at_one() -> None:
    options: dict[str, Any] = {"grading": Grading("exact", max_tokens=4, stop=("#",)), "context": 1000}
    shot = {**pair(1), "response": "a\n\nb"}
    assert before_replies([pair(2)], [shot], byte_tokenizer(), rendering=Rendering(), **options)[2] == ("#",)


# -- room ------------------------------------------------------------------------------------------------------------


def test_a_question_without_room_gets_fewer_and_is_never_cut() -> None:
    shots, tokenizer = [pair(i, f"{i} " * 8) for i in range(3)], byte_tokenizer()
    records = [pair(5), pair(6, "long " * 8), pair(7, "very long " * 9), {**pair(8), "prompt": ""}]
    found, counts = before_responses(records, shots, tokenizer, max_length=75, rendering=Rendering())
    assert counts == [3, 1, 0, 0] and found[2:] == records[2:]
    assert found[1]["prompt"].endswith("\n\n" + "long " * 8) and found[1]["prompt"].startswith("0 0 ")


@given(st.lists(st.integers(0, 40), min_size=1, max_size=6), st.integers(0, 4))
def test_as_many_shots_as_fit(room: list[int], number: int) -> None:
    shots, records = [pair(i) for i in range(number)], [{**pair(i), "room": size} for i, size in enumerate(room)]

    def fits(tried: list[dict[str, Any]]) -> list[bool]:
        return [record["prompt"].count("\n\n") * 10 <= record["room"] for record in tried]

    found, counts = fitted(records, shots, fits, chat=False)
    assert counts == [min(number, size // 10) for size in room]
    assert all(record["prompt"].count("\n\n") == count for record, count in zip(found, counts, strict=True))


# -- in an evaluation ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shots")
    write_inputs(folder)
    return folder


class Echo:
    """Replies with the last words that it was asked."""

    def __init__(self, model: Any, *, context: int, **_: Any) -> None:
        self.context = context

    def ask(self, requests: list[Request], progress: Any = None) -> Any:
        for ordinal, request in enumerate(requests):
            yield ordinal, Reply(request.messages[-1]["content"], "stop")


def test_evaluate_equals_the_same_text_as_one_prompt(
    inputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generated, "ModelClient", Echo)
    model, shots = nj.load_model(str(inputs / "model")), [choice(1), choice(2)]
    grading = nj.Grading("exact", max_tokens=2, slots=1, stop=("\n\n",))
    options: dict[str, Any] = {"metrics": ["accuracy", "loss", "generated"], "bootstrap": 20, "seed": 3}
    options |= {"grading": grading, "max_length": 64}
    found = nj.evaluate(model, [choice(7)], shots=2, shot_files={"questions": shots}, **options)
    order = found["shots"]["tasks"][0]["ids"]
    before = {"s1": "After 1? 2", "s2": "After 2? 3"}
    whole = {**choice(7), "prompt": "\n\n".join([*(before[name] for name in order), "After 7?"])}
    options |= {"metrics": ["accuracy", "loss"]}
    again = nj.evaluate(model, [whole], **options)
    (answer,) = found["answers"]["model"]["questions"]
    assert answer["shots"] == 2 and answer["reply"] == whole["prompt"]
    for kept in ("predictions", "losses"):
        (line,), (other,) = found[kept]["model"]["questions"], again[kept]["model"]["questions"]
        assert line.pop("shots") == 2 and {**line, "choices": 0} == {**other, "choices": 0}
    assert found["shots"]["count"] == 2 and "shots" not in again
    assert found["shots"]["tasks"][0]["fewer"] == {"accuracy": 0, "loss": 0, "generated": 0}

    (tmp_path / "evaluate").mkdir()  # as a mining run ends
    (tmp_path / "evaluate" / "manifest.json").write_text("{}")
    arms = [{"name": "model", "title": "as it is"}]
    (tmp_path / "evaluate" / "results.json").write_text(json.dumps(found | {"arms": arms}))
    text = mining_terminal(tmp_path)
    assert "Few-shot: 2 solved examples before each question (questions from the records given)." in text
    assert text.count("questions  ") == 3 and "as it is" in text


def config(folder: Path, **evaluate: Any) -> Any:
    files = {"files": [str(folder / "test.jsonl")], "arms": ["base"], "metrics": ["accuracy", "loss"]}
    files["shot_files"] = {"test": str(folder / "domain.jsonl")}
    return tiny_run_config(
        folder, evaluate.pop("out"), select={"methods": ["random"], "count": 6}, evaluate={**files, **evaluate},
        report={"examples": 0}, model={"max_length": 96}, warmup={"max_steps": 1},
    )  # fmt: skip


def test_a_run_says_how_many(inputs: Path) -> None:
    given = config(inputs, out="two", shots=2)
    folder = run(given)
    results = read_json(folder / "evaluate/results.json")
    (task,) = results["shots"]["tasks"]
    assert results["shots"]["count"] == 2 and task["file"] == str(inputs / "domain.jsonl") and len(task["ids"]) == 2
    said = "Few-shot: 2 solved examples before each question (test from"
    assert said in terminal(folder) and said in page_of(folder)[1].text
    stages = {(row["stage"], row["part"]): row["tokens"] for row in estimate_run(PIPELINE, given)["stages"]}
    for kept, part in (("predictions", "accuracy"), ("losses", "loss")):
        read = read_json(folder / f"evaluate/{kept}/base/tasks.json")["test"]["tokens"]
        assert stages["evaluate", part] == pytest.approx(read, rel=1e-6)
    with pytest.raises(UserError, match=r"evaluate was made from something else: evaluate.shots was 2, is now 4"):
        run(config(inputs, out="two", shots=4))
    assert "Few-shot: 4" not in terminal(folder)
    with pytest.raises(UserError, match=r"evaluate.shot_files: gone fits no task"):
        run(config(inputs, out="gone", shots=1, shot_files={"gone": "x.jsonl"}))
    with pytest.raises(UserError, match=r"evaluate.shot_files: .*/train.jsonl does not exist"):
        run(config(inputs, out="gone", shots=1, shot_files=None))


def test_a_run_counts_who_had_fewer(inputs: Path) -> None:
    folder = run(config(inputs, out="four", shots=4, metrics=["accuracy"]), until="evaluate")
    (task,) = read_json(folder / "evaluate/results.json")["shots"]["tasks"]
    lines = [json.loads(line) for line in (folder / "evaluate/predictions/base/test.jsonl").read_text().splitlines()]
    assert {line["shots"] for line in lines} <= {2, 3} and task["fewer"] == {"accuracy": 12}
    assert "test: fewer before 12 (accuracy) records" in terminal(folder)


def test_an_estimate_without_files_counts_the_shots(inputs: Path) -> None:
    stated = {"questions": 100, "tokens_per_question": 20.0}
    for metric in ("accuracy", "loss", "generated"):
        tokens = []
        for shots in (0, 2):
            away = tiny_run_config(
                inputs, select={"methods": ["random"], "count": 6}, estimate=stated,
                evaluate={"files": ["away.jsonl"], "arms": ["base"], "metrics": [metric], "shots": shots,
                          "answer_tokens": 2, "shot_files": {"away": "gone.jsonl"}},
            )  # fmt: skip
            (row,) = [row for row in estimate_run(PIPELINE, away)["stages"] if row["stage"] == "evaluate"]
            tokens.append(row["tokens"])
        assert tokens[1] - tokens[0] == pytest.approx(100 * 40)
