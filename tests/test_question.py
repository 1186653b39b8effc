"""`ntk-jax question`: a whole run, an interruption that repeats no call, a spent cap, and mistakes."""

from __future__ import annotations

import dataclasses
import json
import random
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from faulty_server import Answer, FaultyServer, completion, error
from scripted_world import World, fact_of
from tiny_question import answer_of, question_config, question_tree, serving, write_lines, write_question_inputs
from tiny_run import quiet, write_config

from ntk_jax import cli, pipelines
from ntk_jax.data.words import text_hash
from ntk_jax.engine.config import build
from ntk_jax.engine.plan import Command
from ntk_jax.engine.stage import Job
from ntk_jax.errors import Note, UserError
from ntk_jax.pipelines.question import ask as ask_stage
from ntk_jax.pipelines.question.arms import arms_of, as_trained, own_arm
from ntk_jax.pipelines.question.config import QuestionConfig
from ntk_jax.pipelines.question.documents import read_documents, sampled_documents
from ntk_jax.pipelines.question.evaluate import check_inputs, expected_tasks
from ntk_jax.pipelines.question.stages import PIPELINE
from ntk_jax.pipelines.question.state import input_hashes, open_run, same_model
from ntk_jax.pipelines.question.train import rows_of, train
from ntk_jax.pipelines.select.config import SelectConfig
from ntk_jax.questions.gaps import EqualGaps
from ntk_jax.questions.methods.asked import NothingWritten
from ntk_jax.questions.methods.table import METHODS
from ntk_jax.questions.reach import locate
from ntk_jax.storage.atomic import make_folder

# The server of these tests takes no `n` and gives no log-probabilities, and a run says so.
pytestmark = pytest.mark.filterwarnings("ignore:.*the server does not honour:ntk_jax.errors.Note")


HERE = {"kind": "model", "model": "", "slots": 4}  # the target answers in this process, as it is by default


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("question")


@pytest.fixture(scope="module")
def made(inputs: Path) -> World:
    return write_question_inputs(inputs)


@pytest.fixture(scope="module")
def server(made: World) -> Iterator[FaultyServer]:
    with serving(made).running() as found:
        yield found


@pytest.fixture(scope="module")
def whole(inputs: Path, server: FaultyServer) -> Path:
    """A finished run, whose target answers at the server, too; its likelihoods are computed here."""
    return run(question_config(inputs, server.url, "whole"))


def test_the_target_answers_in_this_process(inputs: Path, server: FaultyServer) -> None:
    config = question_config(
        inputs, server.url, "here", target=HERE, ask={"rounds": 0, "per_chunk": 1}, documents={"chunks": 2}
    )
    folder = run(config, until="ask")
    said = [version["target"] for one in lines(folder / "questions.jsonl") for version in one["trace"]["rounds"]]
    assert said
    assert not any("pence" in text for text in said)  # a random model knows none
    assert "target" not in {body["model"] for body in server.bodies[-20:]}


def run(config: Any, **command: Any) -> Path:
    folder: Path = pipelines.run("question", config, Command(**command), progress=quiet)
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def summary(folder: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / stage / "summary.json").read_text())
    return found


def test_records_are_grounded_and_carry_their_trace(whole: Path, made: World) -> None:
    found = lines(whole / "questions.jsonl")
    chunks = {line["id"]: line for line in lines(whole / "chunk" / "chunks.jsonl")}
    prompts = {line["id"]: line["messages"] for line in lines(whole / "ask" / "prompts.jsonl")}
    assert len(found) >= 4
    for one in found:
        assert {"id", "source", "prompt", "response", "document_id", "gap", "round", "quotes", "trace"} <= set(one)
        text = chunks[one["chunks"][0]]["text"]
        assert all(locate(quote, text) for quote in one["quotes"])
        assert fact_of(one["prompt"]) in made.facts
        rounds = one["trace"]["rounds"]
        standing = [version for version in rounds if version["accepted"]][-1]
        assert (standing["question"], standing["expert"]["text"]) == (one["prompt"], one["response"])
        gaps = [version["gap"] for version in rounds if version["accepted"]]
        assert gaps == sorted(gaps)  # each rewriting that was taken has a larger one
        assert one["prompt"] in str(prompts[standing["prompts"]["expert"]])
        assert standing["calls"] >= 4


def test_the_judge_is_judged(whole: Path) -> None:
    one = summary(whole, "ask")["generations"][0]
    about, silent = one["calibrations"]
    assert (about["of"], silent["of"]) == ("answers", "unanswerable")
    for found in (about, silent):
        assert not found["void"] and not found["failures"]
        assert all(kind["read"] == kind["n"] > 0 for kind in found["kinds"].values())
    assert about["false_accept"] <= 0.1 and about["false_reject"] <= 0.3  # it overlooks some second values
    assert (silent["false_accept"], silent["false_reject"]) == (0, 0)
    assert one["voices"]["judge"]["calls"] >= about["pairs"] + silent["pairs"]


def test_every_slot_is_accounted_for(whole: Path) -> None:
    one = summary(whole, "ask")["generations"][0]
    kept, others = lines(whole / "ask" / "questions.jsonl"), lines(whole / "ask" / "traces.jsonl")
    assert one["slots"] == len(kept) + len(others) == sum(one["outcomes"].values())
    assert Counter(trace["not_kept"] for trace in others) == {
        reason: count for reason, count in one["outcomes"].items() if reason != "kept"
    }


def test_documents_are_split_and_items_are_told_apart(whole: Path) -> None:
    chunk = summary(whole, "chunk")
    assert chunk["unseen"]
    assert not set(chunk["unseen"]) & set(chunk["trained"])
    assert {line["document"] for line in lines(whole / "chunk" / "chunks.jsonl")} == set(chunk["trained"])
    results = json.loads((whole / "evaluate" / "results.json").read_text())
    tasks = [task["name"] for task in results["tasks"]]
    assert tasks == ["test (trained documents)", "test (unseen documents)"]
    assert results["tasks"][1]["questions"] == 2 * len(chunk["unseen"])
    assert [task["name"] for task in results["loss"]["tasks"]] == ["general"]
    assert {arm["name"] for arm in results["arms"]} == {"base", "adversarial", "static", "documents"}


def test_arms_read_the_same_number_of_tokens(whole: Path) -> None:
    found = summary(whole, "train")
    for arm in found["arms"]:
        history = lines(whole / "train" / arm["name"] / "history.jsonl")
        assert abs(arm["tokens"] - found["tokens"]) <= max(entry["tokens"] for entry in history)


def test_other_methods_write_as_many_tokens(whole: Path) -> None:
    methods = summary(whole, "ask")["methods"]
    assert set(methods) == {"static", "documents"}
    for name, one in methods.items():
        assert one["tokens"] >= one["asked_tokens"] or one["missing_tokens"] > 0
        assert len(lines(whole / "ask" / f"{name}.jsonl")) == one["records"] > 0


def test_what_decides_the_questions_is_in_their_fingerprint(whole: Path, inputs: Path, server: FaultyServer) -> None:
    config = question_config(inputs, server.url, "whole", model={"template": "plain"})
    with pytest.raises(UserError, match=r"model\.template"):
        run(config, until="ask")


def test_the_encoder_is_in_the_fingerprint_where_it_is_used(inputs: Path) -> None:
    def keys(**ask: Any) -> tuple[str, ...]:
        return PIPELINE.stage("ask").keys(question_config(inputs, "http://localhost:9/v1", ask=ask))

    assert "encoder" in keys(cosine=0.9) and "encoder" not in keys(cosine=1.0)
    assert "lora" in keys(generations=2) and "lora" not in keys()


def test_how_evaluation_items_are_read_is_in_the_fingerprint(inputs: Path, made: World) -> None:
    """Questions that share words with them are dropped."""
    columns = {"prompt": "id", "response": "source"}
    found = [
        input_hashes(question_config(inputs, "http://localhost:9/v1", evaluate={"general": [], **more}))
        for more in ({}, {"columns": columns})
    ]
    assert found[0]["decontaminate"]() != found[1]["decontaminate"]()


def test_the_target_answers_as_it_is_trained(inputs: Path, made: World) -> None:
    """With the template that the config names, and under a name of its own."""
    names = set[str]()
    for template in ("auto", "plain"):
        own = question_config(
            inputs, "http://localhost:9/v1", "t", target={"kind": "model", "model": ""}, model={"template": template}
        )
        state = open_run(own, Job(inputs / "job", quiet))
        client = state.target_client(state.model.base, "")
        assert client._inner().rendering.template == template  # type: ignore[attr-defined]
        names.add(client.name)
    assert len(names) == 2


class Stop(Exception):
    """An interruption."""


def stopping(at: int) -> Any:
    """Progress that interrupts the run at the so manieth reply."""
    count = [0]

    def make(*_: Any) -> Any:
        def progress(*_: Any) -> None:
            count[0] += 1
            if count[0] >= at:
                raise Stop

        return progress

    return make


@pytest.mark.parametrize("at", [30, 90])
def test_an_interrupted_run_repeats_no_call_and_keeps_the_same(inputs: Path, made: World, whole: Path, at: int) -> None:
    with serving(made).running() as own:
        config = question_config(inputs, own.url, f"interrupted-{at}")
        with pytest.raises(Stop):
            pipelines.run("question", config, Command(only=None, until="ask"), progress=stopping(at))
        before = len(own.bodies)
        assert before > 5
        run(config, until="ask")
        probes = 12  # what a server honours is asked in calls of equal body
        repeated = {body: count for body, count in own.counts.items() if count > 1 and "random sentence" not in body}
        # Those that were under way when it stopped had no reply yet; none else is repeated.
        assert sum(repeated.values()) - len(repeated) <= config.expert.workers, (probes, repeated)
    again, first = (lines(folder / "ask" / "questions.jsonl") for folder in (Path(config.out), whole))
    assert again == first


def test_a_spent_cap_stops_at_once_and_keeps_everything(inputs: Path, made: World, whole: Path) -> None:
    with serving(made).running() as own:
        config = question_config(inputs, own.url, "capped", expert={"cap": 0.01})
        with pytest.raises(UserError, match=r"round \d: \w+: \d+ of \d+ replies are there; the cap of 0.01 is reached"):
            run(config, until="ask")
        asked = len(own.bodies)
        assert asked > 0
        with pytest.raises(UserError, match=r"cap"):
            run(config, until="ask")
        assert len(own.bodies) == asked  # nothing further is asked
        raised = question_config(inputs, own.url, "capped")
        run(raised, until="ask")
        assert max(count for body, count in own.counts.items() if "random sentence" not in body) == 1
    assert lines(Path(raised.out) / "ask" / "questions.jsonl") == lines(whole / "ask" / "questions.jsonl")


def test_faults_of_a_server_are_counted_and_lose_no_record(inputs: Path, made: World) -> None:
    """Refusals, empty replies, malformed JSON, over-long replies, errors and a busy server, on a third of all calls."""
    kinds = Counter[str]()

    def answer(body: dict[str, Any], before: int) -> Answer:
        place = text_hash(json.dumps(body, sort_keys=True)) % 18
        good = answer_of(made, body)
        if "random sentence" in str(body) or "Say hello" in str(body):
            return good
        if before == 0 and place in (0, 1):
            kinds["busy"] += 1
            return error(429 if place else 500, retry_after="0")
        faulty = {
            2: ("refusal", completion("I'm sorry, I cannot help with that.")),
            3: ("empty", completion("")),
            4: ("malformed", completion('{"question": "What is', finish="stop")),
            5: ("long", completion("word " * 400, finish="length")),
        }
        if place in faulty:
            kinds[faulty[place][0]] += 1
            return faulty[place][1]
        return good

    with FaultyServer(answer).running() as own:
        folder = run(question_config(inputs, own.url, "faulty", ask={"format": "json"}), until="ask")
    one = summary(folder, "ask")["generations"][0]
    assert set(kinds) == {"busy", "refusal", "empty", "malformed", "long"}
    assert one["slots"] == sum(one["outcomes"].values())
    reasons = Counter[str]()
    for voice in one["voices"].values():
        reasons.update(voice["failures"])
    assert {"the model declined", "an empty reply"} <= set(reasons)
    assert one["kept"] > 0


def test_nothing_kept_says_why(inputs: Path, made: World) -> None:
    own = FaultyServer(lambda body, before: completion("I'm sorry, I cannot."))
    why = r"no question is kept, of 8 .*8 × question: the model declined"
    with own.running(), pytest.raises(UserError, match=why):
        run(question_config(inputs, own.url, "nothing"), until="ask")


@pytest.mark.parametrize(
    ("ask", "said"),
    [
        ({"calls": 3}, r"8 × nothing was asked: the calls were spent.*; raise ask\.calls$"),
        ({"least_gap": 99.0}, r"× its gap is too small.*; lower ask\.least_gap$"),
        ({"consistency": 1.0, "quotes": "found"}, r"no question is kept.*; take a stronger expert, or lower ask\.cons"),
    ],
)
def test_what_is_to_be_done_where_nothing_is_kept_goes_by_the_reason(
    inputs: Path, made: World, ask: dict[str, Any], said: str
) -> None:
    def answer(body: dict[str, Any], before: int) -> Answer:
        if "consistency" in ask and body.get("temperature") and "copy word for word" in str(body):
            return completion('{"stated": true, "answer": "Something else is true.", "quotes": ["The"]}')
        return answer_of(made, body)

    with FaultyServer(answer).running() as own, pytest.raises(UserError, match=said):
        run(question_config(inputs, own.url, f"none-{next(iter(ask))}", ask={"rounds": 0, **ask}), until="ask")


def test_a_later_generation_that_fails_says_what_is_kept(
    inputs: Path, made: World, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def generation(*given: Any) -> dict[str, Any]:
        if given[5] == 2:
            raise UserError("the gap judge is 0.75 for all 8 questions")
        return {"records": [{"prompt": "Who pays?"}]}

    monkeypatch.setattr(ask_stage, "_generation", generation)
    monkeypatch.setattr(ask_stage, "next_target", lambda *_: (None, "2"))
    config = question_config(inputs, server.url, "late", target=HERE, ask={"generations": 2})
    said = r"^generation 2: the gap judge is 0.75.*the questions that are kept up to now .1. lie in .*/questions.jsonl"
    with pytest.raises(UserError, match=said):
        run(config, until="ask")


def test_a_later_generation_whose_gaps_are_all_the_same_is_left_out(
    inputs: Path, server: FaultyServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = ask_stage._generation

    def generation(*given: Any) -> dict[str, Any]:
        if given[5] == 2:
            raise EqualGaps("the gap nll is 0 for all 8 questions")
        return first(*given)

    monkeypatch.setattr(ask_stage, "_generation", generation)
    monkeypatch.setattr(ask_stage, "next_target", lambda run, *_: (run.model.base, "2"))
    ask = {"generations": 2, "rounds": 0, "per_chunk": 1, "calibration": 0}
    config = question_config(inputs, server.url, "equal", target=HERE, ask=ask, train={"arms": ["adversarial"]})
    with pytest.warns(Note, match="generation 2 is left out: the gap nll is 0 for all 8"):
        folder = run(config, until="ask")
    assert len(summary(folder, "ask")["generations"]) == 1
    assert summary(folder, "ask")["questions"] == len(lines(folder / "questions.jsonl")) > 0


def test_a_judge_that_always_agrees_is_found_out(inputs: Path, made: World) -> None:
    """It cannot rank a question, and the run says so instead of keeping questions at random."""

    def answer(body: dict[str, Any], before: int) -> Answer:
        return completion('{"reason": "same", "score": 0}') if body["model"] == "judge" else answer_of(made, body)

    with FaultyServer(answer).running() as own:
        judge = {"kind": "server", "model": "judge", "base_url": own.url, "price_in": 0.0, "price_out": 0.0}
        config = question_config(inputs, own.url, "agreeing", judge=judge, ask={"signal": "judge", "per_chunk": 4})
        with pytest.raises(UserError, match=r"the gap judge is 0 for all"):
            run(config, until="ask")


def test_a_second_generation_asks_the_trained_target(inputs: Path, made: World, server: FaultyServer) -> None:
    folder = run(
        question_config(inputs, server.url, "again", target=HERE, ask={"generations": 2, "rounds": 1}), until="ask"
    )
    found = lines(folder / "questions.jsonl")
    assert {one["generation"] for one in found} <= {1, 2}
    assert (folder / "ask" / "generation-2" / "target" / "adapter" / "adapter_config.json").exists()
    questions = [one["prompt"] for one in found]
    assert len(set(questions)) == len(questions)
    one, two = summary(folder, "ask")["generations"]
    assert two["target"].startswith("generation 2")
    assert one["target"] is None
    assert [one["rank"] for one in found] == list(range(1, len(found) + 1))


def test_documents_that_hold_evaluation_items_are_named(inputs: Path, made: World, server: FaultyServer) -> None:
    text = made.chunks[0].text.removesuffix(".")
    item = {
        "id": "i",
        "source": "s",
        "prompt": f"{text}. Is it so in every year?",
        "choices": ["Yes", "No"],
        "answer": 0,
    }
    (inputs / "items.jsonl").write_text(json.dumps(item) + "\n")
    config = question_config(
        inputs, server.url, "items", ask={"rounds": 0, "decontaminate": [str(inputs / "items.jsonl")]},
        documents={"trained": 1.0},
    )  # fmt: skip
    with pytest.warns(Note, match="1 of 6 chunks share 8 words in a row with an evaluation item"):
        folder = run(config, until="ask")
    found = summary(folder, "ask")
    assert found["chunks_with_items"] == 1
    # No arm of questions is trained on what is asked of it later; the documents are what they are.
    for name, there in (("questions", False), ("static", False), ("documents", True)):
        documents = {one["document_id"] for one in lines(folder / "ask" / f"{name}.jsonl")}
        assert (made.chunks[0].document in documents) == there, name
    assert found["methods"]["static"]["dropped"]["it shares a run of words with an evaluation item"] > 0


@pytest.mark.parametrize(
    "error", [NothingWritten("no record, for \\escape is no JSON"), UserError("the cap is reached")]
)
def test_a_method_that_brings_nothing_has_no_arm_and_stops_no_run(
    inputs: Path, server: FaultyServer, monkeypatch: pytest.MonkeyPatch, error: UserError
) -> None:
    def write(*_: Any) -> Any:
        raise error

    monkeypatch.setitem(METHODS, "documents", dataclasses.replace(METHODS["documents"], write=write))
    arms = {"arms": ["adversarial", "documents"]}
    name = type(error).__name__
    config = question_config(inputs, server.url, name, ask={"rounds": 0, "per_chunk": 1}, train=arms)
    if name == "UserError":  # nobody answers any more, which is no fault of the method's
        with pytest.raises(UserError, match="cap is reached"):
            run(config, until="ask")
        return
    with pytest.warns(Note, match="escape is no JSON"):
        folder = run(config, until="ask")
    about = summary(folder, "ask")["methods"]["documents"]
    assert about["records"] == 0 and "escape" in about["failed"]


def test_what_is_kept_can_be_ranked_by_select(whole: Path, inputs: Path) -> None:
    tree = {
        "out": str(inputs / "ranked"),
        "model": {"path": str(inputs / "model"), "max_length": 1024},
        "lora": {"rank": 2, "alpha": 4},
        "data": {"domain": [str(inputs / "general.jsonl")], "pool": [str(whole / "questions.jsonl")]},
        "warmup": {"max_steps": 2, "batch_size": 2, "learning_rate": 1e-2},
        "select": {"count": 3},
    }
    folder = pipelines.run("select", build(SelectConfig, tree, "test"), Command(until="select"), progress=quiet)
    found = lines(folder / "select" / "selection.jsonl")
    assert len(found) == 3
    assert all({"score", "rank", "trace", "gap", "document_id"} <= set(one) for one in found)


@pytest.mark.slow
def test_kill_9_repeats_no_call_and_keeps_the_same(inputs: Path, made: World) -> None:
    """A real process that is killed at drawn moments, and started again until it is through."""

    def command(out: str, url: str) -> list[str]:
        path = write_config(inputs, question_config(inputs, url, out))
        return [sys.executable, "-m", "ntk_jax", "question", str(path), "--until=ask"]

    with serving(made).running() as own:
        subprocess.run(command("alone", own.url), check=True, capture_output=True)
    with serving(made).running() as own:
        kills, draw = 0, random.Random(0)
        while True:
            process = subprocess.Popen(command("killed", own.url), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            try:
                # The later it is killed, the further the next one gets: at the latest the tenth ends.
                assert process.wait(5 + draw.random() * 5 * (1 + kills)) == 0
                break
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                kills += 1
        repeated = sum(n - 1 for body, n in own.counts.items() if "random sentence" not in body)
        print(f"killed: {kills} times, {len(own.bodies)} calls, {repeated} of them repeated")
        assert kills > 0
        assert repeated <= kills * 4  # workers
    found = [(inputs / out / "ask" / "questions.jsonl").read_bytes() for out in ("alone", "killed")]
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("sections", "said"),
    [
        ({"train": {"tokens": 9, "max_steps": 1}}, "train.tokens and train.max_steps both say how long to train"),
        ({"model": {"path": ""}}, "model.path is not set"),
        ({"expert": {"model": ""}}, "expert.model is not set"),
        ({"documents": {"files": []}}, "documents.files is not set"),
        ({"documents": {"trained": 0.0}}, "documents.trained = 0 leaves no document"),
        ({"model": {"max_length": 128}}, "max_length = 128 holds no chunk"),
        ({"ask": {"negative": 0.8, "cross": 0.4}}, "more than 1 together"),
        ({"ask": {"reference": "expert"}}, "needs the expert's likelihoods"),
        ({"ask": {"generations": 2}}, "leave target.model out"),
        ({"train": {"arms": ["adversarial", "other"]}}, "there is no arm other"),
        ({"train": {"arms": ["static", "static"]}}, "each once"),
        ({"evaluate": {"arms": []}}, "evaluate.arms is empty"),
        ({"evaluate": {"arms": ["base", "statik"]}}, "evaluate.arms: there is no arm statik; choose from base, adv"),
        ({"evaluate": {"arms": ["round-0"]}}, "evaluate.arms: there is no arm round-0"),
        ({"expert": {"price_in": None, "cap": 1.0}}, "price_in"),
    ],
)
def test_mistakes_have_one_line(
    inputs: Path, made: World, sections: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = inputs / "mistake.yaml"
    tree = question_tree(inputs, "http://localhost:9/v1", "mistake", **sections)
    path.write_text(yaml.safe_dump({"pipeline": "question", **tree}))
    assert cli.main(["question", str(path)]) == 2
    found = capsys.readouterr().err.strip()
    assert said in found
    assert len(found.splitlines()) == 1


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "no records|is empty|no example"),
        ([{"id": "a", "text": "   "}], "nothing|empty"),
        ([{"id": "a", "text": "x#~ 9|| ;;_ ^^ 1/ -- ::" * 30}], "nothing|no "),
    ],
)
def test_documents_of_no_use_are_named(inputs: Path, made: World, rows: list[Any], said: str) -> None:
    path = inputs / "useless.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = question_config(inputs, "http://localhost:9/v1", "useless", documents={"files": [str(path)]})
    with pytest.raises(UserError, match=said):
        run(config, until="chunk")


def test_documents_without_a_chunk_are_unseen_and_names_that_never_match_are_said(
    inputs: Path, server: FaultyServer
) -> None:
    """Of a sample of chunks some documents have none: no arm has read these."""
    ask, train = {"rounds": 0, "per_chunk": 1}, {"arms": ["documents", "adversarial"]}
    sections: dict[str, Any] = {"documents": {"trained": 1.0, "chunks": 4}, "ask": ask, "train": train}
    limited = question_config(inputs, server.url, "sampled", evaluate={"limit": 3}, **sections)
    folder = run(limited)
    asked = {line["document"] for line in lines(folder / "chunk" / "chunks.jsonl")}
    assert len(asked) == 4
    assert [len(task.records) for task in expected_tasks(limited)] == [6, 3]
    for side in ("trained", "unseen"):  # the limit is of each
        found = lines(folder / "evaluate" / "predictions" / "base" / f"test ({side} documents).jsonl")
        assert len(found) == 3 and all((one["group"] in asked) == (side == "trained") for one in found)

    items = [one | {"document_name": f"contract {one['document_id']}"} for one in lines(inputs / "test.jsonl")]
    write_lines(inputs / "named.jsonl", items)
    other = {"files": [str(inputs / "named.jsonl")], "by_document": "document_name", "general": []}
    with pytest.warns(Note, match=r"named.jsonl: no item is about a document .* of an item 'contract doc-0'"):
        run(question_config(inputs, server.url, "misnamed", **sections, evaluate=other))


def test_items_on_a_copy_of_a_document_that_was_asked_about_are_not_unseen(inputs: Path, server: FaultyServer) -> None:
    rows = lines(inputs / "documents.jsonl")
    write_lines(inputs / "twice.jsonl", [*rows[1:], rows[1] | {"id": rows[0]["id"]}])
    sections: dict[str, Any] = {"documents": {"files": [str(inputs / "twice.jsonl")], "trained": 1.0}}
    sections |= {"ask": {"rounds": 0, "per_chunk": 1}, "train": {"arms": ["documents"]}}
    folder = run(question_config(inputs, server.url, "twice", **sections))
    found = sorted(path.stem for path in (folder / "evaluate" / "predictions" / "base").glob("test*.jsonl"))
    assert found == ["test (trained documents)"]


def test_the_report_can_be_made_anew_from_a_run_or_its_config(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has no key `pipeline`, for a folder may hold several; plan.json says which."""
    folder = tmp_path / "run"
    shutil.copytree(whole, folder, ignore=shutil.ignore_patterns("adapter", "llm"))
    (folder / "report" / "index.html").unlink()
    assert cli.main(["report", str(folder / "config.yaml"), f"--out={folder}"]) == 0
    assert cli.main(["report", str(folder)]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"Report: {folder / 'report' / 'index.html'}"
    assert "Adversarial questions" in (folder / "report" / "index.html").read_text()


def test_one_model_for_both_is_in_memory_once(inputs: Path, server: FaultyServer, tmp_path: Path) -> None:
    own = str(inputs / "model")
    for dtype, same in (("float32", True), ("bfloat16", False)):
        config = question_config(inputs, server.url, expert={"kind": "model", "model": own, "dtype": dtype})
        opened = open_run(config, Job(tmp_path, quiet))
        assert (opened._model(config.expert) is opened.model.base) == same


def test_one_model_is_known_by_whatever_path(inputs: Path, made: World) -> None:
    own, url = str(inputs / "model"), "http://localhost:9/v1"
    (inputs / "link").symlink_to(own)
    for path in (f"{own}/", f"{inputs}/../{inputs.name}/model", str(inputs / "link")):
        config = question_config(inputs, url, target=HERE, expert={"kind": "model", "model": path})
        assert same_model(config)
    assert not same_model(question_config(inputs, url, target=HERE, expert={"kind": "model", "model": str(inputs)}))
    assert not same_model(question_config(inputs, url, target=HERE, expert={"kind": "server", "model": own}))


def test_one_model_for_both_is_said(inputs: Path, server: FaultyServer) -> None:
    target = {"model": "expert"}
    config = question_config(inputs, server.url, "one", target=target, ask={"rounds": 0, "per_chunk": 1})
    with pytest.warns(Note, match="target and expert are one model"):
        run(config, until="ask")


def test_items_that_do_not_name_their_document_are_refused_before_anything_is_asked(inputs: Path, made: World) -> None:
    config = question_config(inputs, "http://localhost:9/v1", "unnamed", evaluate={"by_document": "document"})
    with pytest.raises(UserError, match=r'record .doc-0-0. has no "document", which names its document'):
        run(config)


def test_every_item_is_looked_at_before_anything_is_asked(inputs: Path, made: World, tmp_path: Path) -> None:
    """Which ones evaluate.limit takes depends on the chunks."""
    items = [{"id": f"i{n}", "prompt": "How much?", "response": f"{n} pence", "document_id": "x"} for n in range(9)]
    asked = {"files": [str(tmp_path / "items.jsonl")], "metrics": ["generated"], "answer_rule": "number", "limit": 1}
    config = question_config(inputs, "http://localhost:9/v1", evaluate={**asked, "general": []})
    for bad in range(9):
        write_lines(
            tmp_path / "items.jsonl", [one | {"response": "none"} if n == bad else one for n, one in enumerate(items)]
        )
        with pytest.raises(UserError, match=f"the response of record 'i{bad}' has no number"):
            check_inputs(open_run(config, Job(tmp_path, quiet)), True)


def test_a_round_without_questions_has_no_arm_and_training_is_as_asked(whole: Path, tmp_path: Path) -> None:
    lines_of = lines(whole / "questions.jsonl")
    for line in lines_of:  # none stood after the first round
        line["trace"]["rounds"] = [one | {"accepted": one["round"] > 0} for one in line["trace"]["rounds"]]
        line["trace"]["rounds"].append(line["trace"]["rounds"][-1] | {"accepted": True, "round": 1})
    (tmp_path / "ask").mkdir()
    write_lines(tmp_path / "ask" / "questions.jsonl", lines_of)
    shutil.copytree(whole / "chunk", tmp_path / "chunk")
    tree = yaml.safe_load((whole / "config.yaml").read_text())
    tree["train"] |= {"arms": ["adversarial"], "by_round": True, "with_passage": True}
    tree.pop("pipeline", None)
    asked = SimpleNamespace(config=build(QuestionConfig, tree, "test"), job=SimpleNamespace(folder=tmp_path))
    assert [arm.name for arm in arms_of(asked)] == ["adversarial", "round-1"]  # type: ignore[arg-type]
    chunks = {line["id"]: line["text"] for line in lines(whole / "chunk" / "chunks.jsonl")}
    for line, record in zip(lines_of, as_trained(asked, lines_of), strict=True):  # type: ignore[arg-type]
        assert chunks[line["chunks"][0]] in str(record["messages"])


def test_only_documents_that_are_asked_about_count_as_such(inputs: Path, made: World) -> None:
    """Not those of which no chunk is drawn; a copy of one that is asked about is not unseen either."""
    texts = {f"d{n}": f"{one.text} This is number {n}." for n, one in enumerate(made.chunks)}
    rows = [{"id": name, "text": text, "kind": "a"} for name, text in texts.items()]
    rows += [{"id": f"copy of {name}", "text": f"  {text}", "kind": "a"} for name, text in texts.items()]
    (inputs / "copies.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    documents = {"files": [str(inputs / "copies.jsonl")], "trained": 1.0, "chunks": 2, "where": {"kind": "a"}}
    folder = run(question_config(inputs, "http://localhost:9/v1", "copies", documents=documents), until="chunk")
    found = summary(folder, "chunk")
    asked = {line["document"] for line in lines(folder / "chunk" / "chunks.jsonl")}
    assert set(found["trained"]) == asked and len(asked) <= 2
    assert set(found["unseen"]) == set(texts) - asked
    assert set(found["copies"]) == {f"copy of {name}" for name in asked}
    assert found["documents"] == 2 * len(texts)


def test_documents_are_read_one_at_a_time(inputs: Path, made: World) -> None:
    config = question_config(inputs, "http://localhost:9/v1", documents={"limit": 3})
    whole = [one["id"] for one in read_documents(config)]
    few = [one["id"] for one in sampled_documents(config)]
    assert len(few) == 3 and set(few) < set(whole) and few == [one for one in whole if one in few]
    for where, said in (({"kind": "b"}, "no document has kind"), ({"source": "scripted", "title": "x"}, "title = ")):
        other = question_config(inputs, "http://localhost:9/v1", documents={"where": where})
        with pytest.raises(UserError, match=said):
            list(read_documents(other))


def test_a_first_generation_that_keeps_nothing_ends_the_run(inputs: Path, made: World) -> None:
    own = FaultyServer(lambda body, before: completion("I'm sorry, I cannot."))
    config = question_config(inputs, own.url, "barren", target=HERE, ask={"generations": 2})
    with own.running(), pytest.raises(UserError, match="no question is kept, of 8 "):
        run(question_config(inputs, own.url, "barren", target=HERE, ask={"generations": 2}), until="ask")
    assert not (Path(config.out) / "ask" / "generation-2").exists()


def test_tokens_are_those_of_the_kept_questions_whichever_arm_is_first(inputs: Path, server: FaultyServer) -> None:
    """And an arm of a round after which nothing stood is left out."""
    config = question_config(
        inputs, server.url, "order", ask={"rounds": 1, "per_chunk": 1}, documents={"chunks": 3},
        train={"arms": ["documents", "adversarial"], "by_round": True, "epochs": 2, "batch_size": 1},
    )  # fmt: skip
    folder = run(config, until="ask")
    path = folder / "ask" / "questions.jsonl"
    found = lines(path)
    for line in found:  # as if none had stood after the first round
        for version in line["trace"]["rounds"]:
            version["round"] = 1
    state = open_run(config, Job(folder, quiet))
    assert [arm.name for arm in arms_of(state)] == ["documents", "adversarial", "round-0"]
    path.write_text("".join(json.dumps(line) + "\n" for line in found))
    assert [arm.name for arm in arms_of(state)] == ["documents", "adversarial"]
    made = train(state, make_folder(folder / "train"))
    assert made["arms"] == ["documents", "adversarial"]
    rows = rows_of(state, own_arm(state))
    assert summary(folder, "train")["tokens"] == 2 * sum(len(row.ids) for row in rows)
