"""The estimate of a run of questions: calls by role against arithmetic by hand and against the loop itself, money
against caps, and what models of this process are asked to do."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_methods import chunks_of_documents
from scripted_methods import run as methods_run
from scripted_world import Scripted, likelihood, world
from tiny_question import CHUNKS, question_config, question_tree, write_question_inputs

from ntk_jax import cli, pipelines
from ntk_jax.engine.config import build
from ntk_jax.engine.costs import Grounds
from ntk_jax.engine.estimate import estimate_run
from ntk_jax.errors import UserError
from ntk_jax.llm.estimate import Counts
from ntk_jax.pipelines.question import costs
from ntk_jax.pipelines.question.ask import settings_of, shares
from ntk_jax.pipelines.question.calls import Line, Sizes, calls_of, measured, total
from ntk_jax.pipelines.question.config import QuestionConfig
from ntk_jax.questions.loop import Voices, search
from ntk_jax.questions.methods.table import METHODS
from ntk_jax.questions.slots import plan_slots
from ntk_jax.questions.verify import second_opinion
from ntk_jax.questions.voice import PROBE, Voice
from ntk_jax.training.flops import forward_flops, training_flops

URL = "http://localhost:9/v1"
SIZES = Sizes(passage=100, longest=180, question=35, answer=50)
TRAINED = 4  # chunks that are asked about, of one document each


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("costs")
    write_question_inputs(folder)
    return folder


def by_kind(lines: list[Line]) -> dict[str, Line]:
    return {f"{line.role}: {line.what}": line for line in lines}


def config_of(**ask: Any) -> QuestionConfig:
    server = {"kind": "server", "model": "m", "base_url": URL}
    config: QuestionConfig = build(
        QuestionConfig,
        {"expert": server, "ask": ask, "train": {"arms": ["adversarial"]}, "estimate": {"kept_questions": 0.5}},
        "test",
    )
    return config


def test_calls_follow_from_the_settings() -> None:
    config = config_of(rounds=3, patience=2, samples=2, format="json")
    found = by_kind(calls_of(config, 10, SIZES, 0))
    likely = {name: line.likely.calls for name, line in found.items()}
    assert likely == {
        "generator: question": 10,
        "reviser: revision": 20,
        "judge: feedback": 10,
        "expert: answer": 30,
        "target: answer": 15,
        "judge: verdict": 10,
        "expert: answer again": 20,
        "judge: planted answers": (4 + 2) * 5,  # of no more questions than are kept
    }
    most = {name: line.most.calls for name, line in found.items()}
    assert most == {
        "generator: question": 2 * 10,
        "reviser: revision": 2 * 30,
        "judge: feedback": 30,  # plain text, which is not asked for again
        "expert: answer": 2 * 40,
        "target: answer": 40,
        "judge: verdict": 2 * 40,
        "expert: answer again": 2 * 2 * 40,
        "judge: planted answers": 2 * (4 + 2) * 10,
    }
    assert {line.owner for line in found.values()} == {"expert", None}
    assert found["target: answer"].most.completion_tokens == config.ask.answer_tokens
    assert found["expert: answer"].likely.prompt_tokens > SIZES.passage + SIZES.question
    auto = by_kind(calls_of(config_of(rounds=3, patience=2, samples=2), 10, SIZES, 0))
    assert auto["expert: answer"].most.calls == 2 * 40 + PROBE  # the form is found out, too
    text = by_kind(calls_of(config_of(rounds=3, format="text"), 10, SIZES, 0))
    assert text["expert: answer"].most.calls == 40 and text["judge: verdict"].most.calls == 80
    for name in ("generator: question", "expert: answer"):  # prompts are shorter, and show no earlier questions
        assert SIZES.passage < text[name].likely.prompt_tokens < found[name].likely.prompt_tokens


@pytest.mark.parametrize(
    ("ask", "there", "absent"),
    [
        ({"judged": False}, "expert: feedback", "judge: verdict"),
        ({"feedback": False}, "judge: verdict", "judge: feedback"),
        ({"signal": "judge"}, "judge: divergence", "expert: draws"),
        ({"signal": "band"}, "expert: draws", "judge: planted pairs"),
        ({"rounds": 0}, "generator: question", "reviser: revision"),
        ({"samples": 0}, "expert: answer", "expert: answer again"),
    ],
)
def test_what_is_not_asked_is_not_counted(ask: dict[str, Any], there: str, absent: str) -> None:
    found = by_kind(calls_of(config_of(**ask), 10, SIZES, 0))
    assert there in found and absent not in found
    if ask.get("signal") == "judge":
        assert found["judge: planted pairs"].likely.calls == 5 * 4
        many = by_kind(calls_of(config_of(**ask, calibration=3), 10, SIZES, 0))
        assert many["judge: planted pairs"].likely.calls == 3 * 4
        assert many["judge: planted answers"].likely.calls == 3 * 6  # and two of every passage on its silence
        silent = by_kind(calls_of(config_of(**ask, calibration=3, unanswerable=0), 10, SIZES, 0))
        assert silent["judge: planted answers"].likely.calls == 3 * 4
    if ask.get("signal") == "band":
        assert found["target: draws"].most.calls == 4 * 40
        assert measured(config_of(**ask), 10) == (0.0, 0.0)
    elif "rounds" not in ask:
        assert measured(config_of(**ask), 10) == ((0.0, 0.0) if ask.get("signal") == "judge" else (15.0, 40.0))


def test_generations_multiply_and_a_bound_on_calls_holds() -> None:
    once, twice = (total(calls_of(config_of(generations=n, format="text"), 10, SIZES, 0), "most") for n in (1, 2))
    assert twice.calls == 2 * once.calls
    bounded = calls_of(config_of(calls=50, format="text"), 10, SIZES, 0)
    verdicts = by_kind(bounded)["judge: verdict"].most.calls
    planted = by_kind(bounded).pop("judge: planted answers")  # the bound is of the loop
    assert total(bounded, "most").calls - verdicts / 2 - planted.most.calls <= 50 + len(bounded)  # each is rounded up
    assert total(bounded, "likely").calls - planted.likely.calls <= 50 + len(bounded)


@given(
    st.integers(0, 500),
    st.integers(0, 3),
    st.integers(1, 3),
    st.sampled_from(["nll", "band"]),
    st.booleans(),
    st.booleans(),
)
@settings(max_examples=15, deadline=None)
def test_no_loop_makes_more_calls_than_the_most(
    seed: int, rounds: int, patience: int, signal: str, judged: bool, feedback: bool
) -> None:
    made = world(seed, 3)
    ask = {"rounds": rounds, "patience": patience, "signal": signal, "judged": judged, "feedback": feedback}
    config = config_of(per_chunk=2, samples=2, target_samples=2, **ask)
    config = dataclasses.replace(config, second_judge=config.expert)
    slots, parts = plan_slots(made.chunks, 2, shares(config), seed)

    def voice(role: str) -> Voice:
        return Voice(role, Scripted(made, role))

    voices = Voices(*map(voice, ("generator", "expert", "target", "reviser")), voice("judge") if judged else None)
    found = search(slots, voices, settings_of(config, seed), target=likelihood(made), focuses=parts)
    second = voice("second_judge")
    second_opinion(found.traces, second)
    most: dict[str, int] = {}
    for line in calls_of(config, len(slots), SIZES, 0):
        role = "writer" if line.role in ("generator", "reviser") else line.role
        most[role] = most.get(role, 0) + line.most.calls
    made_calls = {one.role: one.calls for one in (voices.expert, voices.target, second)}
    made_calls |= {"writer": voices.generator.calls + voices.reviser.calls}
    made_calls |= {"judge": voices.judge.calls} if voices.judge is not None else {}
    for role, calls in made_calls.items():
        assert calls <= most.get(role, 0), role


def test_a_method_asks_as_often_as_its_tokens_take() -> None:
    config = dataclasses.replace(
        config_of(),
        train=dataclasses.replace(config_of().train, arms=("adversarial", "static", "paraphrase", "documents")),
    )
    found = by_kind(calls_of(config, 200, SIZES, 12_000))
    assert found["method paraphrase: records"].likely.calls == 12_000 // 100  # 8 + 16 + 32 + 64
    # Half of the pairs, of 85 tokens in two calls, are kept: 283 questions and their answers, in whole waves.
    assert found["method static: records"].likely.calls == 2 * (8 + 16 + 32 + 4 * 64)
    few = by_kind(calls_of(config, 4, SIZES, 12_000))
    assert few["method paraphrase: records"].likely.calls == 2 * 8, "two chunks, in eight styles each"
    assert "method documents: records" not in found  # nobody is asked
    assert found["method static: records"].most.calls > found["method static: records"].likely.calls


@pytest.mark.parametrize("tokens", [60, 600])
@pytest.mark.parametrize("name", [name for name in METHODS if name != "documents"])
def test_what_a_method_asks_stays_below_the_most(name: str, tokens: int) -> None:
    chunks = chunks_of_documents(6, 4)
    _, voice, _, _ = methods_run(name, chunks=chunks, tokens=tokens, form="text")
    config = dataclasses.replace(config_of(), train=dataclasses.replace(config_of().train, arms=("adversarial", name)))
    words = sum(len(chunk.text.split()) for chunk in chunks)
    lines = calls_of(config, 2 * len(chunks), Sizes(46, 50, 9, 9), tokens, 6, words)
    own = [line for line in lines if line.role == f"method {name}"]
    likely, most = (sum(getattr(line, which).calls for line in own) for which in ("likely", "most"))
    assert likely / 4 <= voice.calls <= min(most, 4 * likely)


def test_documents_are_read_however_few_tokens_are_wanted() -> None:
    arms = ("adversarial", "facts", "entities", "strategies")
    config = dataclasses.replace(config_of(), train=dataclasses.replace(config_of().train, arms=arms))
    found = by_kind(calls_of(config, 20_000, SIZES, 100, 30, 1_000_000))
    assert found["method facts: entities"].likely.calls == 1_000, "a thousand words at a time, once for both methods"
    assert "method entities: entities" not in found and found["method strategies: strategies"].likely.calls == 30
    assert found["method facts: entities"].likely.prompt_tokens == 1_000 + 150, "a part has ten chunks"


def test_all_calls_together_have_all_tokens() -> None:
    lines = [
        Line("a", "x", "expert", Counts(2, 10, 3), Counts(4, 20, 6)),
        Line("b", "y", None, Counts(1, 100, 1), Counts(1, 100, 2)),
    ]
    assert total(lines, "likely") == Counts(3, 120, 7) and total(lines, "most") == Counts(5, 180, 26)


def test_documents_are_counted_and_cut_as_the_stage_does_it(inputs: Path) -> None:
    grounds = Grounds()
    load = costs.load(question_config(inputs, URL), grounds)
    assert (load.chunks, load.slots, load.devices) == (TRAINED, 2 * TRAINED, jax.device_count())
    known = {ground.name: ground for ground in grounds.found}
    assert known["documents"].value == CHUNKS and not known["documents"].assumed
    assert known["tokens of a chunk"].value == pytest.approx(load.sizes.passage, abs=0.5)
    assert load.sizes.longest >= load.sizes.passage
    assert costs.load(question_config(inputs, URL, documents={"chunks": 2}), Grounds()).chunks == 2


def test_documents_that_are_not_here_are_taken_from_the_estimate(inputs: Path) -> None:
    absent = {"files": ["not/here.jsonl"], "trained": 1.0, "words": 100}
    with pytest.raises(UserError, match=r"not/here.jsonl is here; .* of all of them as estimate.words"):
        costs.load(question_config(inputs, URL, documents=absent), Grounds())
    given_ = {"words": 90_000}  # of eighteen documents, by the command's own rule
    load = costs.load(question_config(inputs, URL, documents=absent, estimate=given_), Grounds())
    assert load.chunks == 1_000 and load.words == 90_000
    few = costs.load(question_config(inputs, URL, documents=absent | {"limit": 9}, estimate=given_), Grounds())
    assert few.chunks == 500 and few.words == 45_000


def test_trainings_and_evaluations_cost_what_their_tokens_cost(inputs: Path) -> None:
    train = {"tokens": 4_000, "by_round": True, "evaluations": 2}
    load = costs.load(question_config(inputs, URL, train=train), Grounds())
    works = costs.train(load).works
    assert [work.part for work in works] == ["adversarial", "static", "documents", "round-0", "round-1"]
    model, size = load.model.base.config, load.model.adapter_size
    assert works[2].flops == training_flops(model, 4_000, 4_000, False, lora_parameters=size)  # a text, all of it
    record = load.sizes.question + load.sizes.answer + costs.AROUND
    labels = round(4_000 * load.sizes.answer / record)
    assert works[0].flops == training_flops(model, 4_000, labels, False, lora_parameters=size)
    assert works[0].memory > 4 * size
    accuracy, loss = costs.evaluate(load).works
    passes = 1 + 5 * 2  # the base once, every arm at its end and once on its way
    assert (accuracy.examples, loss.examples) == (passes * 2 * CHUNKS, passes * 6)
    some = question_config(inputs, URL, train=train, evaluate={"arms": ["adversarial"], "limit": 4})
    assert [work.examples for work in costs.evaluate(costs.load(some, Grounds())).works] == [
        2 * 8,
        2 * 4,
    ]  # four of each part
    epochs = costs.load(question_config(inputs, URL, train={"epochs": 3}), Grounds())
    assert costs.train(epochs).works[0].tokens == pytest.approx(3 * epochs.kept * record)


def test_weights_of_one_model_are_counted_once(inputs: Path) -> None:
    def memory(**roles: str) -> float:
        own = {"kind": "model", "slots": 4, "price_in": None, "price_out": None, "dtype": "float32"}
        sections = {role: {**own, "model": str(inputs / path)} for role, path in roles.items()}
        works = costs.ask(costs.load(question_config(inputs, URL, **sections), Grounds())).works
        return next(work.memory for work in works if work.part == "likelihoods")

    if not (inputs / "other").exists():
        (inputs / "other").mkdir()
        (inputs / "other" / "config.json").write_bytes((inputs / "model" / "config.json").read_bytes())
    alone = memory(expert="model")
    assert alone == memory(expert="model", judge="model")
    assert alone < memory(expert="other") == memory(expert="other", judge="other")
    assert alone < memory(expert="model", target="other")


def test_what_models_here_write_is_counted_with_their_caches(inputs: Path) -> None:
    here = {"kind": "model", "model": str(inputs / "model"), "slots": 4, "price_in": None, "price_out": None}
    config = question_config(inputs, URL, expert=here, target={"kind": "model", "model": "", "slots": 3})
    grounds = Grounds()
    load = costs.load(config, grounds)
    works = {work.part: work for work in costs.ask(load).works}
    assert set(works) == {"written by expert", "written by target", "likelihoods"}
    own = [line for line in load.lines if line.owner is None]
    assert [line.what for line in own] == ["answer"]
    counts = own[0].likely
    target = works["written by target"]
    written = counts.calls * counts.completion_tokens
    assert target.tokens == counts.calls * counts.prompt_tokens + written
    model = load.model.base.config
    assert target.flops == forward_flops(model, round(target.tokens), written)
    cache = next(ground for ground in grounds.found if ground.name == "cache of the target")
    longest = own[0].most.prompt_tokens + own[0].most.completion_tokens
    places = -(-longest // 128) * 128
    assert (
        cache.value == 2 * -(-3 // load.devices) * places * model.num_layers * model.num_kv_heads * model.head_dim * 4
    )
    assert target.memory >= cache.value
    asked, _ = measured(config, load.slots)
    assert works["likelihoods"].examples == 2 * asked
    server = costs.ask(costs.load(question_config(inputs, URL), Grounds())).works
    assert [work.part for work in server] == ["likelihoods"]
    again = question_config(inputs, URL, ask={"generations": 3})
    assert [work.part for work in costs.ask(costs.load(again, Grounds())).works][1:] == ["target 2", "target 3"]


def test_money_is_that_of_the_prices_and_caps_are_held_against_it(inputs: Path) -> None:
    load = costs.load(question_config(inputs, URL), Grounds())
    values, lines = costs.notes(load, None)
    expert = [value for value in values["calls"] if value["section"] == "expert"]
    for value in expert:
        for which in ("likely", "most"):
            one = value[which]
            exact = (one["prompt_tokens"] * 1.0 + one["completion_tokens"] * 2.0) / 1e6
            assert one["money"] == pytest.approx(exact, rel=1e-6)
        assert value["likely"]["money"] <= value["most"]["money"]
    likely, most = (sum(value[which]["money"] for value in expert) for which in ("likely", "most"))
    assert any(f"{likely:.4g} at 1 and 2 a million tokens, {most:.4g} at most" in line for line in lines)
    for cap, said in (
        (2 * most, "is enough"),
        ((likely + most) / 2, "is less than the most, so it may stop"),
        (likely / 2, "is less than what is likely, so it may stop"),
    ):
        capped = costs.load(question_config(inputs, URL, expert={"cap": cap}), Grounds())
        assert any(f"expert.cap = {cap:g} {said}" in line for line in costs.notes(capped, None)[1]), said
    timed = costs.load(question_config(inputs, URL, estimate={"reply_tokens_per_second": 50.0}), Grounds())
    assert any("min, one kind of call after the other" in line for line in costs.notes(timed, None)[1])
    assert json.loads(json.dumps(values)) == values


def test_the_command_prints_both_cases(inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "question.yaml"
    path.write_text(yaml.safe_dump({"pipeline": "question", **question_tree(inputs, URL)}))
    assert cli.main(["estimate", str(path)]) == 0
    printed = capsys.readouterr().out
    for words in ("ask likelihoods", "train static", "evaluate accuracy", "expert: answer again", "at most", "money"):
        assert words in printed, words
    assert not Path(question_tree(inputs, URL)["out"]).exists()  # an estimate writes nothing
    found = estimate_run(pipelines.pipeline("question"), question_config(inputs, URL))
    assert {row["stage"] for row in found["stages"]} == {"ask", "train", "evaluate"}
    assert found["kept"] == 4 and found["calls"]
    no_files = question_config(inputs, URL, evaluate={"files": ["gone.jsonl"], "general": []})
    assert "not counted" in str(estimate_run(pipelines.pipeline("question"), no_files)["grounds"])
