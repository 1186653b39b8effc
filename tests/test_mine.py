"""`ntk-jax mine`: a whole run, the same bytes after an interruption and from shards, and mistakes."""

from __future__ import annotations

import io
import json
import shutil
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from scripted_llm import ScriptedClient
from tiny_mine import SUBJECTS, mine_config, mine_tree, sentences, write_lines, write_mine_inputs

from ntk_jax import cli, pipelines
from ntk_jax.engine.costs import Grounds
from ntk_jax.engine.doctor import Doubt
from ntk_jax.engine.plan import Command
from ntk_jax.engine.shards import Shard
from ntk_jax.engine.stage import Job
from ntk_jax.errors import UserError
from ntk_jax.llm.request import Request
from ntk_jax.mining.classifier import CLEAN_PENALTIES
from ntk_jax.pipelines.mine import arms, costs, embed, state
from ntk_jax.storage import arrays


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mine")
    write_mine_inputs(folder)
    return folder


@pytest.fixture(scope="module")
def mined(inputs: Path) -> Path:
    """A finished run without training."""
    return pipelines.run("mine", mine_config(inputs, "whole"), progress=silent)


def silent(stage: str, total: int | None, unit: str) -> Any:
    return lambda *_: None


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "mined.jsonl").read_text().splitlines()]


def test_what_is_mined_is_of_the_domains(mined: Path) -> None:
    found = records(mined)
    assert len(found) > 20
    for name in ("medicine", "law"):
        own = [one for one in found if name in one["domains"]]
        right = sum(one["source"] == name for one in own)
        assert right / len(own) > 0.7, Counter(one["source"] for one in own)  # a third would be chance
    assert all(set(one["domains"]) <= {"medicine", "law"} for one in found)  # nothing is mined for a contrast


def test_every_record_says_where_it_came_from_and_why(mined: Path, inputs: Path) -> None:
    one = records(mined)[0]
    assert {"file", "offset", "document", "start", "end", "seed", "score", "probability", "domains", "method"} <= set(
        one
    )
    source = (inputs / "corpus" / one["file"]).read_text().splitlines()[one["offset"] - 1]
    assert json.loads(source)["text"][one["start"] : one["end"]] == one["text"]
    assert one["seed"] in {
        json.loads(line)["id"] for line in (mined / "seeds" / "seeds.jsonl").read_text().splitlines()
    }


def test_the_best_of_every_domain_come_first(mined: Path) -> None:
    """A model that reads some of the front reads of all domains."""
    found = records(mined)
    for name in ("medicine", "law"):
        own = [one["probability"][name] for one in found if one["domains"] == [name]]
        assert own == sorted(own, reverse=True)
        assert name in found[0]["domains"] + found[1]["domains"]
        assert abs(sum(name in one["domains"] for one in found[:10]) - 5) <= 2


def test_examples_are_of_every_domain_the_best_and_the_last(mined: Path) -> None:
    shown = json.loads((mined / "classify" / "summary.json").read_text())["examples"]
    for name in ("medicine", "law"):
        own = [one["id"] for one in records(mined) if name in one["domains"]]
        assert {own[0], own[-1]} <= {one["id"] for one in shown}


@pytest.mark.parametrize("stop", ["embed", "classify"])
def test_a_run_that_is_killed_goes_on_to_the_same_bytes(
    inputs: Path, mined: Path, monkeypatch: pytest.MonkeyPatch, stop: str
) -> None:
    config = mine_config(inputs, f"killed-{stop}")
    write, left = arrays.write_block, [2]
    module = "ntk_jax.engine.blocks.write_block"

    def dying(store: arrays.Store, block: int, values: Any) -> None:
        if f"/{stop}/" in store.folder + "/":
            left[0] -= 1
            if not left[0]:
                raise KeyboardInterrupt
        write(store, block, values)

    monkeypatch.setattr(module, dying)
    with pytest.raises(KeyboardInterrupt):
        pipelines.run("mine", config, progress=silent)
    monkeypatch.undo()
    again = pipelines.run("mine", config, progress=silent)
    assert (again / "mined.jsonl").read_bytes() == (mined / "mined.jsonl").read_bytes()


def test_shards_give_the_bytes_of_one_process(inputs: Path, mined: Path) -> None:
    config = mine_config(inputs, "sharded")
    run = Path(config.out)
    pipelines.run("mine", config, Command(only="seeds"), progress=silent)
    for stage in ("corpus", "embed", "label", "classify"):
        if stage != "label":
            for index in (1, 0):
                pipelines.run("mine", config, Command(only=stage, shard=Shard(index, 2)), progress=silent)
        pipelines.run("mine", config, Command(only=stage, merge=stage != "label"), progress=silent)
    pipelines.run("mine", config, progress=silent)
    assert (run / "mined.jsonl").read_bytes() == (mined / "mined.jsonl").read_bytes()


def test_embeddings_that_are_not_kept_are_made_again(inputs: Path, mined: Path) -> None:
    run = pipelines.run("mine", mine_config(inputs, "again", embed={"keep": False}), progress=silent)
    assert "vectors" not in arrays.open_store(run / "embed" / "chunks.zarr").arrays
    assert (run / "mined.jsonl").read_bytes() == (mined / "mined.jsonl").read_bytes()


def test_an_encoder_in_bfloat16_searches_in_it_too(inputs: Path, mined: Path) -> None:
    """Half of the digits, the same neighbours nearly always; the scores are those of the kept embeddings."""
    config = mine_config(inputs, "bf16", encoder={"path": str(inputs / "encoder"), "dtype": "bfloat16"})
    with pytest.MonkeyPatch.context() as patch:
        asked: list[Any] = []
        search = embed.best_of_block
        patch.setattr(
            embed,
            "best_of_block",
            lambda *given, **options: asked.append(options["dtype"]) or search(*given, **options),
        )
        run = pipelines.run("mine", config, Command(until="embed"), progress=silent)
    assert set(asked) == {"bfloat16"}
    one, other = (arrays.read(arrays.open_store(path / "embed" / "chunks.zarr"), "best") for path in (run, mined))
    assert np.abs(one - other).max() < 0.03


def test_a_classifier_of_ngrams_reads_texts(inputs: Path) -> None:
    found = records(pipelines.run("mine", mine_config(inputs, "ngrams", classify={"kind": "ngrams"}), progress=silent))
    own = [one for one in found if "medicine" in one["domains"]]
    assert sum(one["source"] == "medicine" for one in own) / len(own) > 0.7


@pytest.mark.slow
def test_the_encoder_itself_is_tuned_and_goes_on_where_it_was_killed(
    inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    section = {"kind": "encoder", "epochs": 1.0, "learning_rate": 1e-3, "batch": 16}
    whole = pipelines.run("mine", mine_config(inputs, "tuned", classify=section), progress=silent)
    own = [one for one in records(whole) if "medicine" in one["domains"]]
    assert sum(one["source"] == "medicine" for one in own) / len(own) > 0.7
    assert not (whole / "classify" / "classifier" / "checkpoints").exists()
    config, write = mine_config(inputs, "tuned-killed", classify=section), arrays.write_block

    def dying(store: arrays.Store, block: int, values: Any) -> None:
        write(store, block, values)
        if "/classify/" in store.folder + "/":
            raise KeyboardInterrupt

    monkeypatch.setattr("ntk_jax.engine.blocks.write_block", dying)
    with pytest.raises(KeyboardInterrupt):
        pipelines.run("mine", config, progress=silent)
    monkeypatch.undo()
    again = pipelines.run("mine", config, progress=silent)
    assert (again / "mined.jsonl").read_bytes() == (whole / "mined.jsonl").read_bytes()


def test_a_labelled_set_of_few_and_far_apart_chunks(inputs: Path) -> None:
    run = pipelines.run(
        "mine", mine_config(inputs, "apart", label={"most": 5}), Command(until="label"), progress=silent
    )
    found = json.loads((run / "label" / "summary.json").read_text())["domains"]
    assert all(one["counts"]["passed over for ones farther apart"] > 0 for one in found.values())
    with np.load(run / "label" / "labels.npz") as kept:
        assert (kept["labels"] == 1).sum(axis=0).tolist() == [5, 5, 5]


def test_a_sample_of_the_corpus_and_a_limit_of_words(inputs: Path) -> None:
    options: dict[str, Any] = {"corpus": {"limit": 100}, "classify": {"most_words": 200}}
    run = pipelines.run("mine", mine_config(inputs, "few", **options), progress=silent)
    assert arrays.open_store(run / "embed" / "chunks.zarr").rows == 100
    assert 100 < sum(one["words"] for one in records(run)) <= 200
    sources = json.loads((run / "corpus" / "summary.json").read_text())["sources"].values()
    assert sum(one["sampled"] for one in sources) == 100 and all(one["sampled"] < one["chunks"] for one in sources)


def test_arms_are_trained_and_compared(inputs: Path) -> None:
    options: dict[str, Any] = {
        "pretrain": {
            **{"tokens": 600, "row_length": 32, "batch_tokens": 64, "tokens_per_microbatch": 64, "evaluations": 1},
            **{"arms": ["general", "random", "retrieval", "dsir", "seeds_classifier", "dopamine"], "bootstrap": 20},
            "held_out": [str(inputs / "held_out.jsonl")],
        },
        "evaluate": {"files": [str(inputs / "test.jsonl")], "bootstrap": 20},
    }
    run = pipelines.run("mine", mine_config(inputs, "trained", **options), progress=silent)
    summary = json.loads((run / "pretrain" / "summary.json").read_text())
    assert [arm["name"] for arm in summary["arms"]] == ["base", *options["pretrain"]["arms"]]
    assert {arm["tokens"] for arm in summary["arms"][1:]} == {600}
    results = json.loads((run / "evaluate" / "results.json").read_text())
    assert [arm["name"] for arm in results["arms"]] == ["base", *options["pretrain"]["arms"]]
    page = (run / "report" / "index.html").read_text()
    assert "DoPAMine" in page and "cannot be shown" not in page
    assert "Continual pre-training" in pipelines.pipeline("mine").terminal(run)  # type: ignore[misc]


def test_replayed_text_is_not_what_the_random_arm_reads(inputs: Path, mined: Path) -> None:
    run = state.open_run(mine_config(inputs, "whole"), Job(mined, silent))
    own, general = ([name for name, _ in texts] for texts in (arms.texts_of(run, "random"), arms.replayed(run)))
    half = len(own) // 2
    assert sorted(own) == sorted(general) and not set(own[:half]) & set(general[:half])


def test_a_language_model_writes_seeds_judges_and_audits(inputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[str] = Counter()

    def answer(request: Request) -> str:
        text = str(request.messages)
        if "Does the text belong" in text:
            asked["judge"] += 1
            domain = "medicine" if "Domain: medicine" in text else "law"
            belongs = any(word in text.split("Text:")[1] for word in SUBJECTS[domain][:2])
            return json.dumps({"reason": "by its words", "answer": "yes" if belongs else "no"})
        asked["seed"] += 1
        subject = "medicine" if "medicine" in text else "law"
        rng = np.random.default_rng(zlib.crc32(text.encode()))
        words = " ".join(rng.choice(SUBJECTS[subject] + ["the", "of", "a"], 40))
        names = ("topic", "premise", "author", "audience", "motive")
        return json.dumps({name: subject for name in names} | {"document": f"{words}."})

    monkeypatch.setattr(state.MineRun, "client", ScriptedClient(answer))
    monkeypatch.setattr(state, "check_llm", lambda section: None)
    options: dict[str, Any] = {
        "contrast": None,
        "seeds": {"per_domain": 3, "two_domains": 0.0, "files": None, "similarity": 1.0, "cosine": 1.0},
        "label": {"judged": 20, "share": None},
        "audit": {"chunks": 5},
        "llm": {"kind": "server", "model": "scripted", "base_url": "http://localhost:1/v1"},
    }
    run = pipelines.run("mine", mine_config(inputs, "written", **options), progress=silent)
    assert asked["seed"] >= 6 and asked["judge"] >= 40 + 10
    audit = json.loads((run / "audit" / "summary.json").read_text())
    assert audit["agreement"]["value"] > 0.6 and set(audit["domains"]) == {"medicine", "law"}
    assert (run / "audit" / "verdicts.jsonl").read_text().count("planted") > 0


def test_labels_of_a_language_model_choose_the_penalty(
    inputs: Path, mined: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Counter[str]()

    def answer(request: Request) -> str:
        text = str(request.messages[-1]["content"]).split("Text:")[1].split("To which")[0].lower()
        read.update([max(SUBJECTS, key=lambda name: sum(text.count(word) for word in SUBJECTS[name]))])
        own = [name for name in SUBJECTS if sum(text.count(word) for word in SUBJECTS[name]) > 3]
        return json.dumps({"reason": "by its words", "domains": own})

    monkeypatch.setattr(state.MineRun, "client", ScriptedClient(answer))
    monkeypatch.setattr(state, "check_llm", lambda section: None)
    options: dict[str, Any] = {
        "label": {"source": "llm", "sample": 80},
        "llm": {"kind": "server", "model": "scripted", "base_url": "http://localhost:1/v1"},
    }
    run = pipelines.run("mine", mine_config(inputs, "annotated", **options), progress=silent)
    assert read["nature"] < 0.3 * sum(read.values())  # half of the sample is of the domains that are mined
    tried = [
        json.loads((one / "classify" / "summary.json").read_text())["training"]["held-out loss by penalty"]
        for one in (run, mined)
    ]
    assert [*map(float, tried[0])] == [*CLEAN_PENALTIES] and len(tried[1]) == 1


def test_own_documents_are_the_labelled_set(inputs: Path, tmp_path: Path) -> None:
    files = {}
    for name in SUBJECTS:
        rows = [{"id": f"{name}-{n}", "text": sentences(name, 6, 3000 + n)} for n in range(12)]
        write_lines(tmp_path / f"{name}.jsonl", rows)
        files[name] = str(tmp_path / f"{name}.jsonl")
    label = {"source": "documents", "files": files}
    config = mine_config(inputs, "documents", label=label, classify={"precision": 0.8})
    run = pipelines.run("mine", config, progress=silent)
    own = [one for one in records(run) if "medicine" in one["domains"]]
    assert sum(one["source"] == "medicine" for one in own) / len(own) > 0.7
    rows = [json.loads(line) for line in (run / "label" / "documents.jsonl").read_text().splitlines()]
    assert len(rows) == 3 * 12 * 2 and all(len(row["text"].split()) <= 24 for row in rows)  # chunks, as the corpus has
    summary = json.loads((run / "label" / "summary.json").read_text())
    assert summary["domains"]["law"]["counts"]["own documents"] == 12 and summary["source"] == "documents"
    with np.load(run / "label" / "labels.npz") as found:
        assert not (found["labels"] == 1).any()  # the corpus brings negatives alone
        assert summary["labelled"] == len(rows) + len(found["chunks"])
    training = json.loads((run / "classify" / "summary.json").read_text())["training"]
    assert training["rows"] == summary["labelled"] and len(training["held-out loss by penalty"]) == len(CLEAN_PENALTIES)
    doctor = pipelines.pipeline("mine").doctor
    assert doctor is not None
    assert "36 documents, 72 chunks" in str(dict(doctor(config))["labelled documents"]())


def test_what_is_mined_can_be_ranked_by_select(inputs: Path, mined: Path, tmp_path: Path) -> None:
    from tiny_run import tiny_run_config

    options: dict[str, Any] = {"data": {"pool": [str(mined / "mined.jsonl")]}, "report": {"useful": []}}
    options |= {"select": {"count": 3}, "model": {"overflow": "truncate"}}
    config = tiny_run_config(inputs, "ranked", **options)
    run = pipelines.run("select", config, Command(until="select"), progress=silent)
    chosen = [json.loads(line) for line in (run / "select" / "selection.jsonl").read_text().splitlines()]
    assert len(chosen) == 3 and all("seed" in one and "probability" in one for one in chosen)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"domains": None}, "domains is not set"),
        ({"domains": {"law": "courts", "Law": "laws"}}, "named twice"),
        ({"contrast": {"law": "courts"}}, "named twice"),
        ({"domains": {"law": ""}}, "give a sentence"),
        ({"corpus": {"files": []}}, "corpus.files is not set"),
        ({"corpus": {"files": ["nowhere/*.jsonl"]}}, "matches no file"),
        ({"corpus": {"min_words": 1000}}, "the corpus is empty"),
        ({"corpus": {"columns": {"body": "text"}}}, "corpus.columns.body"),
        ({"seeds": {"files": None}}, "has no seeds"),
        ({"seeds": {"files": {"sport": "seeds.jsonl"}}}, "there is no domain sport"),
        ({"seeds": {"per_domain": 2}}, "llm.model is not set"),
        ({"label": {"thresholds": {"medicine": 0.9999}}}, "keeps 0 of"),
        ({"label": {"thresholds": {"medicine": -1.0}}}, "keeps all"),
        ({"label": {"thresholds": {"sport": 0.5}}}, "there is no domain sport"),
        ({"label": {"source": "documents"}}, "label.files is not set"),
        ({"label": {"files": {"law": "seeds.jsonl"}}}, "label.files is read by label.source = documents alone"),
        ({"label": {"source": "documents", "files": {"law": "seeds.jsonl"}}}, "label.files: medicine has no file"),
        ({"label": {"source": "documents", "files": {"sport": "seeds.jsonl"}}}, "there is no domain sport"),
        ({"report": {"group_by": "source"}}, "report.group_by"),  # families of a pool are not mining's
        ({"classify": {"thresholds": {"law": 1.0}}}, "keeps 0 of"),
        ({"pretrain": {"tokens": 100, "arms": ["everything"]}}, "there is no arm everything"),
        ({"llm": {"kind": "server", "model": "m", "base_url": "http://localhost:1/v1", "cap": 0.0},
          "seeds": {"per_domain": 1}}, "llm.cap is 0"),
        ({"llm": {"kind": "server", "model": "m", "base_url": "https://somewhere.example/v1"},
          "seeds": {"per_domain": 1}}, "llm.price_in"),
    ],
)  # fmt: skip
def test_mistakes_get_one_line(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], words: str
) -> None:
    tree = mine_tree(inputs, **changes)
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"pipeline": "mine", **tree}))
    assert cli.main(["mine", str(tmp_path / "mine.yaml"), "--out", str(tmp_path / "run")]) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("ntk-jax: ")]
    assert len(lines) == 1 and words in lines[0]


def test_another_encoder_is_refused(inputs: Path, tmp_path: Path) -> None:
    config = mine_config(inputs, "other")
    pipelines.run("mine", config, Command(until="embed"), progress=silent)
    shutil.copytree(inputs / "encoder", tmp_path / "encoder")
    said = json.loads((tmp_path / "encoder" / "sentence_bert_config.json").read_text())
    (tmp_path / "encoder" / "sentence_bert_config.json").write_text(json.dumps({**said, "max_seq_length": 30}))
    with pytest.raises(UserError, match="encoder"):
        pipelines.run(
            "mine", mine_config(inputs, "other", encoder={"path": str(tmp_path / "encoder")}), progress=silent
        )


def test_the_estimate_counts_what_is_trained_measured_and_asked(inputs: Path) -> None:
    options: dict[str, Any] = {
        "pretrain": {
            **{"tokens": 600, "arms": ["general", "random", "autods"], "shares": [0.25, 0.5], "evaluations": 3},
            **{"held_out": [str(inputs / "held_out.jsonl")], "held_out_tokens": 10},
        },
        "evaluate": {"files": [str(inputs / "test.jsonl")], "limit": 2},
    }
    load = costs.load(mine_config(inputs, **options), Grounds())
    training, perplexity, yes_or_no = costs.pretrain(load).works
    assert training.examples == 5  # two arms with two shares, general once
    assert (perplexity.examples, perplexity.tokens) == (3 * (1 + 5 * 3), 3 * (1 + 5 * 3) * 10)
    assert yes_or_no.examples == 2 * load.chunks  # nothing is asked of the contrast
    assert costs.evaluate(load).works[0].examples == 2 * (1 + 5)


def test_estimate_and_doctor_look_at_what_is_here(
    inputs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = mine_tree(inputs, pretrain={"tokens": 600}, evaluate={"files": [str(inputs / "test.jsonl")]})
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"pipeline": "mine", **tree}))
    assert cli.main(["estimate", str(tmp_path / "mine.yaml")]) == 0
    printed = capsys.readouterr().out
    assert "embed" in printed and "pretrain" in printed and "No language model is asked" in printed
    doctor = pipelines.pipeline("mine").doctor
    assert doctor is not None
    found = {name: str(look()) for name, look in doctor(mine_config(inputs, pretrain={"tokens": 600}))}
    assert "3 files" in found["corpus.files"] and "12 of your own" in found["own seeds"]
    assert "32 numbers a text" in found["encoder"] and "parameters" in found["weights"]
    named = mine_config(inputs, pretrain={"tokens": 600}, evaluate={"files": [str(inputs / "test.jsonl")]})
    (doubt,) = [look() for name, look in doctor(named) if name == "text to train on"]
    assert isinstance(doubt, Doubt) and "corpus.decontaminate does not name it" in doubt.text


class TestSearch:
    def test_of_each_text_the_nearest_chunks(self, mined: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert cli.main(["search", str(mined), "heart blood fever", "court law", "--nearest", "4", "--json"]) == 0
        hits = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert [hit["query"] for hit in hits] == 4 * ["heart blood fever"] + 4 * ["court law"]
        assert {hit["source"] for hit in hits[:4]} == {"medicine"} and {hit["source"] for hit in hits[4:]} == {"law"}
        scores = [hit["score"] for hit in hits[:4]]
        assert scores == sorted(scores, reverse=True) and hits[0]["file"].endswith(".jsonl")

    def test_lines_of_standard_input_by_an_index(
        self, mined: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        pytest.importorskip("faiss")
        monkeypatch.setattr("sys.stdin", io.StringIO("heart blood\n\ncourt law\n"))
        assert cli.main(["search", str(mined), "--index", "faiss", "--nearest", "1"]) == 0
        said = capsys.readouterr().out.splitlines()
        assert (
            said[1] == "heart blood"
            and "(0.jsonl at " in said[2]
            and any(word in said[3] for word in ("heart", "blood"))
        )
        assert said[5] == "court law" and "(1.jsonl at " in said[6]

    def test_mistakes_are_one_line(self, mined: Path, inputs: Path, capsys: pytest.CaptureFixture[str]) -> None:
        for arguments, message in (
            ([str(mined), "a", "--nearest", "0"], "--nearest 0: give at least 1"),
            ([str(inputs), "a"], "is no run directory of DoPAMine"),
            ([str(mined), "a", "--seed=1"], "the one key that may be given is --encoder.path"),
            ([str(mined), "a", f"--encoder.path={inputs / 'model'}"], "encoder"),
        ):
            assert cli.main(["search", *arguments]) == 2
            said = capsys.readouterr().err
            assert message in said and said.count("\n") == 1, said
