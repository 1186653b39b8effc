"""Whole runs that clean and diversify their selections: what is planted is left out, and nothing else."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from report_page import page_of
from tiny_run import run, tiny_run_config, write_config, write_inputs

from ntk_jax import cli
from ntk_jax.engine.estimate import estimate_run
from ntk_jax.errors import UserError
from ntk_jax.pipelines.select.config import refines
from ntk_jax.pipelines.select.stages import PIPELINE
from ntk_jax.pipelines.select.terminal import terminal
from ntk_jax.report import amounts
from ntk_jax.selection.diversity import diversify
from ntk_jax.selection.text_features import text_features
from ntk_jax.selection.texts import text_of
from ntk_jax.storage.arrays import open_store, read

LEAKS = ("leak-0", "leak-1", "leak-2")
COPIES = {"copy-0": "ball-4", "copy-1": "ball-5", "copy-2": "ball-17"}
DOMAIN_COPY = "like-box-1"
BM25 = {"methods": ["bm25"], "count": 22}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory) -> Path:
    """The inputs of every run, with three evaluation items, three near-duplicates and one of the domain in the pool."""
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    records = lines(folder / "pool.jsonl")
    by_id = {record["id"]: record for record in [*records, *lines(folder / "domain.jsonl")]}
    tests = lines(folder / "test.jsonl")
    for id, item in zip(LEAKS, tests[3:6], strict=True):
        records.append(
            {"id": id, "source": "web", "prompt": f"Q: {item['prompt']}", "response": f"{item['response']}!"}
        )
    for id, other in [*COPIES.items(), (DOMAIN_COPY, "box-1")]:
        prompt = by_id[other]["prompt"].upper().replace(".", " -")
        records.append({"id": id, "source": "web", "prompt": prompt, "response": by_id[other]["response"]})
    (folder / "pool.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def ids(folder: Path, method: str = "bm25") -> list[str]:
    return [record["id"] for record in lines(folder / "select" / f"{method}.jsonl")]


def selected(inputs: Path, out: str, **select: Any) -> Path:
    return run(tiny_run_config(inputs, out, select={**BM25, **select}), until="select")


@pytest.fixture(scope="module")
def whole(inputs) -> list[str]:
    """The ids of all 47 usable examples as bm25 ranks them."""
    return ids(selected(inputs, "whole", count=47))


def test_nothing_is_left_out_by_default(inputs, whole):
    config = tiny_run_config(inputs, "default", select=BM25)
    assert refines(config) == ()
    folder = run(config, until="select")
    assert ids(folder) == whole[:22], "with evaluation items and copies"
    assert not list((folder / "select").glob("*.dropped.jsonl"))
    summary = json.loads((folder / "select" / "summary.json").read_text())
    assert "decontamination" not in summary and "refined" not in summary["by_method"]["bm25"]
    stage = json.loads((folder / "select" / "fingerprint.json").read_text())
    assert not re.search(r"select\.(clean|quotas|diversity)|input\.decontaminate", json.dumps(stage))


def test_all_that_is_planted_is_left_out_and_nothing_else(inputs, whole):
    clean = {"decontaminate": ["auto"], "near_duplicates": 0.7, "against_domain": True}
    folder = selected(inputs, "clean", clean=clean)
    planted = {*LEAKS, *COPIES, DOMAIN_COPY}
    assert ids(folder) == [id for id in whole if id not in planted][:22]
    dropped = {record["id"]: record for record in lines(folder / "select" / "bm25.dropped.jsonl")}
    assert set(dropped) == planted
    test = str(inputs / "test.jsonl")
    for number, id in enumerate(LEAKS, 3):
        found = dropped[id]
        assert (found["reason"], found["of"], found["where"]) == ("contamination", f"jar-{number}", test)
        assert found["similarity"] == 1.0 and found["shared"].startswith("jar ") and found["source"] == "web"
    for id, other in COPIES.items():
        assert (dropped[id]["reason"], dropped[id]["of"]) == ("near-duplicate", other)
    assert (dropped[DOMAIN_COPY]["reason"], dropped[DOMAIN_COPY]["of"]) == ("near-duplicate of the domain", "box-1")
    assert [record["rank"] for record in dropped.values()] == sorted(whole.index(id) + 1 for id in planted)
    summary = json.loads((folder / "select" / "summary.json").read_text())
    assert summary["by_method"]["bm25"]["refined"] == {
        "looked_at": 22 + 7,
        "dropped": {"contamination": 3, "near-duplicate of the domain": 1, "near-duplicate": 3},
    }
    assert summary["decontamination"] == {"items": 12, "items_too_short": 0}
    assert "Left out of BM25: contamination 3, near-duplicate of the domain 1, near-duplicate 3" in terminal(folder)
    page = page_of(folder)[1].text
    assert "Near-duplicate of the domain" in page and "What was left out" in page and "12 evaluation items" in page
    assert "BM2529313" in page, "looked at, and by reason"


def test_the_same_config_gives_the_same_bytes(inputs):
    select = {
        "methods": ["bm25", "random", "length_matched"],
        "length_matched": {"to": "bm25"},
        "count": 12,
        "clean": {"decontaminate": ["auto"], "near_duplicates": 0.7},
        "quotas": {"most": 0.75},
        "diversity": {"method": "facility_location", "candidates": 2},
    }
    folders = [selected(inputs, f"same-{number}", **select) for number in range(2)]
    digests = [
        {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / "select").glob("*.jsonl")}
        for folder in folders
    ]
    assert digests[0] == digests[1] and len(digests[0]) == 7
    for method in select["methods"]:
        chosen = lines(folders[0] / "select" / f"{method}.jsonl")
        assert not {record["id"] for record in chosen} & set(LEAKS)
        assert max(Counter(record["source"] for record in chosen).values()) <= 9 and len(chosen) == 12
    summary = json.loads((folders[0] / "select" / "summary.json").read_text())["by_method"]
    assert "diversity" in summary["random"]["refined"] and "diversity" not in summary["length_matched"]["refined"]


def test_the_whole_pool_is_cleaned_before_anything_is_ranked(inputs):
    folder = selected(
        inputs,
        "whole-pool",
        methods=["bm25", "random"],
        clean={"decontaminate": [str(inputs / "test.jsonl")], "whole_pool": True},
    )
    assert [record["id"] for record in lines(folder / "select" / "pool.dropped.jsonl")] == list(LEAKS)
    assert lines(folder / "select" / "random.dropped.jsonl") == []
    assert not set(LEAKS) & {*ids(folder), *ids(folder, "random")}
    summary = json.loads((folder / "select" / "summary.json").read_text())
    assert summary["decontamination"]["pool_dropped"] == 3


def test_what_is_like_an_item_by_its_embedding_is_left_out(inputs, whole):
    """The list names the nearest item and the cosine of their embeddings, taken anew here; all others stay."""
    every = {"embedding": {"pooling": "mean"}}
    clean = {"decontaminate": ["auto"], "decontaminate_cosine": 1.0}
    stored = run(
        tiny_run_config(inputs, "near-1", select={**BM25, "count": 5, "clean": clean}, **every), until="select"
    )
    arrays = {
        name: open_store(stored / name / f"{what}.zarr") for name, what in (("embed", "pool"), ("items", "items"))
    }
    pool, items = (read(store, "embedding").astype(np.float64) for store in arrays.values())
    norms = np.linalg.norm(pool, axis=1, keepdims=True)
    cosines = (pool / np.where(norms, norms, 1)) @ (items / np.linalg.norm(items, axis=1, keepdims=True)).T
    names = [record["id"] for record in lines(inputs / "pool.jsonl")]
    nearest = {id: (row.max(), int(row.argmax())) for id, row in zip(names, cosines, strict=True)}
    ranked = sorted((nearest[id][0] for id in whole if id not in LEAKS), reverse=True)
    threshold = (ranked[9] + ranked[10]) / 2
    clean["decontaminate_cosine"] = float(threshold)
    folder = run(tiny_run_config(inputs, "near", select={**BM25, "clean": clean}, **every), until="select")
    near = {id for id in whole if nearest[id][0] >= threshold} - set(LEAKS)
    assert len(near) == 10
    assert ids(folder) == [id for id in whole if id not in near | set(LEAKS)][:22]
    dropped = {record["id"]: record for record in lines(folder / "select" / "bm25.dropped.jsonl")}
    assert {id for id, record in dropped.items() if record["reason"] == "contamination"} == set(dropped) & set(LEAKS)
    for id in set(dropped) - set(LEAKS):
        cosine, item = nearest[id]
        found = dropped[id]
        assert (found["reason"], found["of"]) == ("contamination by embedding", f"jar-{item}")
        assert found["where"] == str(inputs / "test.jsonl") and found["similarity"] == pytest.approx(cosine, abs=1e-4)
    said = json.loads((folder / "select" / "summary.json").read_text())["decontamination"]
    assert said["nearest_cosine"]["largest"] == pytest.approx(max(c for c, _ in nearest.values()), abs=1e-4)
    assert "Contamination by embedding" in page_of(folder)[1].text
    clean |= {"whole_pool": True}
    whole_pool = run(tiny_run_config(inputs, "near-pool", select={**BM25, "clean": clean}, **every), until="select")
    assert {record["id"] for record in lines(whole_pool / "select" / "pool.dropped.jsonl")} == near | set(LEAKS)
    assert not set(ids(whole_pool)) & (near | set(LEAKS)) and len(ids(whole_pool)) == 22
    clean |= {"decontaminate_cosine": 1e-3, "whole_pool": False}
    with pytest.raises(UserError, match=r"0 examples are left of the 47 that bm25 has.* raise .*decontaminate_cosine"):
        run(tiny_run_config(inputs, "near-all", select={**BM25, "clean": clean}, **every), until="select")
    assert "Evaluation items" in json.dumps(
        estimate_run(PIPELINE, tiny_run_config(inputs, "e", select={**BM25, "clean": clean}))
    )


def test_quotas_take_the_best_of_each_group(inputs, whole):
    folder = selected(inputs, "quotas", quotas={"groups": {"ball": 8, "web": 0.1}})
    source = {record["id"]: record["source"] for record in lines(inputs / "pool.jsonl")}
    left = {"ball": 8, "web": 2, "sums": 22}
    expected = []
    for id in whole:
        if left[source[id]] and len(expected) < 22:
            left[source[id]] -= 1
            expected.append(id)
    assert ids(folder) == expected
    reasons = Counter(record["reason"] for record in lines(folder / "select" / "bm25.dropped.jsonl"))
    assert set(reasons) == {"quota"}


def test_another_key_than_that_of_the_report(inputs):
    folder = selected(inputs, "quotas-by", quotas={"by": "answer", "groups": {"0": 2, "1": 1}})
    counts = Counter(record.get("answer") for record in lines(folder / "select" / "bm25.jsonl"))
    assert counts[0] == 2 and counts[1] == 1 and sum(counts.values()) == 22


def test_candidates_are_diversified_by_their_texts(inputs, whole):
    part = {"method": "dpp", "candidates": 2, "quality": 0.2, "dim": 128}
    folder = selected(inputs, "diverse", count=10, diversity=part)
    text = {record["id"]: text_of(record) for record in lines(inputs / "pool.jsonl")}
    in_pool = [id for id in text if id in whole[:20]]
    features = dict(zip(in_pool, text_features([text[id] for id in in_pool], 128), strict=True))
    order = diversify(np.stack([features[id] for id in whole[:20]]), 10, method="dpp", quality=0.2)
    assert ids(folder) == [whole[place] for place in order]
    found = json.loads((folder / "select" / "summary.json").read_text())["by_method"]["bm25"]["refined"]
    page = page_of(folder)[1].text
    assert "Log-volume, the best N" in page and amounts.general(found["diversity"]["value"]) in page
    assert found["candidates"] == 20 and found["diversity"]["value"] >= found["diversity"]["value_of_best"]


def test_sketches_are_compared_and_diversified(inputs):
    """A copy has the gradient of what it copies; none of two alike stays, and no other goes."""
    select = {"methods": ["sketch"], "count": 12, "clean": {"cosine": 0.9999, "against_domain": True}}
    config = tiny_run_config(
        inputs, "sketches", select={**select, "diversity": {"method": "facility_location", "features": "sketch"}}
    )
    folder = run(config, until="select")
    dropped = lines(folder / "select" / "sketch.dropped.jsonl")
    assert {record["reason"] for record in dropped} <= {"near-duplicate by sketch", "near-duplicate of the domain"}
    assert all(record["similarity"] >= 0.9999 for record in dropped)
    assert len(set(ids(folder, "sketch"))) == 12
    lower = run(
        tiny_run_config(inputs, "sketches-lower", select={**select, "count": 4, "clean": {"cosine": 0.9}}),
        until="select",
    )
    assert lines(lower / "select" / "sketch.dropped.jsonl"), "examples of one family have similar gradients"


def test_scores_of_preselected_candidates_are_as_deep_as_it_goes(inputs):
    """Quotas reach past the best N to all candidates that have a score, and no further."""
    sections = {"preselect": {"method": "votes", "keep": 14, "neighbours": 6}}
    every = {"methods": ["kernel"], "count": 14}
    order = ids(run(tiny_run_config(inputs, "all-voted", select=every, **sections), until="select"), "kernel")
    answer = {record["id"]: str(record.get("answer", "(none)")) for record in lines(inputs / "pool.jsonl")}
    common, _ = Counter(answer[id] for id in order).most_common(1)[0]
    others = [id for id in order if answer[id] != common]
    assert len(order) == 14 and len(others) > 1, "of several answers"
    count = len(others) + 1
    select = {"methods": ["kernel"], "count": count, "quotas": {"by": "answer", "groups": {common: 1}}}
    folder = run(tiny_run_config(inputs, "voted", select=select, **sections), until="select")
    best = next(id for id in order if answer[id] == common)
    assert ids(folder, "kernel") == [id for id in order if id in {*others, best}]
    select["quotas"] = {"by": "answer", "groups": {common: 0}}
    with pytest.raises(UserError, match=rf"{len(others)} examples are left of the 14 that kernel has"):
        run(tiny_run_config(inputs, "voted-too-few", select=select, **sections), until="select")


def test_what_decides_is_in_the_fingerprint_and_only_then(inputs, tmp_path):
    folder = selected(inputs, "decides", count=5, clean={"decontaminate": ["auto"]})
    kept = json.loads((folder / "select" / "fingerprint.json").read_text())
    said = json.dumps(kept)
    assert "select.clean.ngram" in said and f"input.decontaminate.{inputs / 'test.jsonl'}" in said
    assert "select.quotas" not in said and "select.diversity" not in said
    with pytest.raises(UserError, match=r"select\.clean\.ngram"):
        selected(inputs, "decides", count=5, clean={"decontaminate": ["auto"], "ngram": 12})


class TestMistakes:
    def refused(self, inputs: Path, message: str, out: str = "mistake", **select: Any) -> None:
        """As a user sees it: exit code 2 and one clear line."""
        sections = {"evaluate": select.pop("evaluate")} if "evaluate" in select else {}
        with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()) as shown:
            config = tiny_run_config(inputs, out, select={**BM25, **select}, **sections)
            assert cli.main(["run", str(write_config(Path(folder), config)), "--until", "select"]) == 2
        last = shown.getvalue().splitlines()[-1]
        assert last.startswith("ntk-jax: error: ") and re.search(message, last), last
        assert "Traceback" not in shown.getvalue()

    @pytest.mark.parametrize(
        ("message", "select"),
        [
            ("near_duplicates = 0: a threshold is above 0 and at most 1", {"clean": {"near_duplicates": 0.0}}),
            ("near_duplicates = 1.2: a threshold", {"clean": {"near_duplicates": 1.2}}),
            ("cosine = -0.5: a threshold", {"clean": {"cosine": -0.5}}),
            ("clean.cosine compares sketches, which no method", {"clean": {"cosine": 0.9}}),
            (
                "diversity.features = sketch compares sketches, which no method of this run makes; add sketch",
                {"diversity": {"method": "dpp", "features": "sketch"}},
            ),
            ("against_domain compares nothing", {"clean": {"against_domain": True}}),
            ("whole_pool looks for evaluation items", {"clean": {"whole_pool": True}}),
            ("decontaminate_cosine = 1.5: a threshold", {"clean": {"decontaminate_cosine": 1.5}}),
            ("decontaminate_cosine compares with evaluation items", {"clean": {"decontaminate_cosine": 0.9}}),
            ("auto stands for evaluate.files", {"clean": {"decontaminate": ["auto"]}, "evaluate": {"files": []}}),
            ("select.quotas.most = 2: a share", {"quotas": {"most": 2.0}}),
            ("select.quotas.groups: ball = 'half'", {"quotas": {"groups": {"ball": "half"}}}),
            ("diversity.methods: kernel is not in", {"diversity": {"method": "dpp", "methods": ["kernel"]}}),
            (
                "diversity.methods: length_matched matches another's",
                {
                    "methods": ["bm25", "length_matched"],
                    "length_matched": {"to": "bm25"},
                    "diversity": {"method": "dpp", "methods": ["length_matched"]},
                },
            ),
        ],
    )
    def test_settings_that_cannot_be(self, inputs, message, select):
        self.refused(inputs, message, "cannot", **select)
        assert not (inputs / "cannot").exists(), "said before anything is computed"

    @pytest.mark.parametrize(
        ("message", "select"),
        [
            ("nowhere.jsonl", {"clean": {"decontaminate": ["nowhere.jsonl"]}}),
            ("none of 12 evaluation items has", {"clean": {"decontaminate": ["auto"], "shortest": 13}}),
            ("no record of data.pool has task or source = bal; groups are ball", {"quotas": {"groups": {"bal": 1}}}),
            (
                "quotas leave 12 examples for a selection of 22; they hold back .*web 3 of",
                {"quotas": {"groups": {"web": 3, "ball": 3, "sums": 3, "long": 3}}},
            ),
        ],
    )
    def test_inputs_that_cannot_be(self, inputs, message, select):
        self.refused(inputs, message, "bad-inputs", **select)
        assert not (inputs / "bad-inputs" / "pool").exists(), "said before anything is computed"

    def test_a_method_beyond_what_has_embeddings(self, inputs):
        clean = {"decontaminate": ["auto"], "decontaminate_cosine": 0.9}
        config = tiny_run_config(inputs, "b", select={**BM25, "clean": clean}, preselect={"method": "votes"})
        with pytest.raises(UserError, match="bm25 also selects what preselect leaves out"):
            run(config, until="select")

    def test_quotas_that_the_usable_examples_cannot_fill(self, inputs):
        message = r"select.quotas leave 21 examples for a selection of 22; they hold back ball 7 of 20, sums 7 of 20"
        self.refused(inputs, message, "unfilled", quotas={"groups": {"ball": 7, "sums": 7}})

    def test_groups_of_another_key(self, inputs):
        self.refused(inputs, "has answer = 7; groups are", "other-key", quotas={"by": "answer", "groups": {"7": 1}})

    def test_everything_is_left_out(self, inputs, tmp_path):
        (tmp_path / "all.jsonl").write_text((inputs / "pool.jsonl").read_text())
        clean = {"decontaminate": [str(tmp_path / "all.jsonl")], "shortest": 1}
        message = r"select: 0 examples are left of the 47 that bm25 has, .* \(left out: contamination 47\); lower"
        self.refused(inputs, message, "nothing-left", clean=clean)
        message = r"0 examples are left of the 47 that the pool has, .* raise select.clean.ngram"
        self.refused(inputs, message, "nothing-left-2", clean={**clean, "whole_pool": True})

    def test_too_few_are_left(self, inputs):
        message = r"44 examples are left of the 47 that bm25 has, fewer than .* 45 \(left out: near-duplicate 3\)"
        self.refused(inputs, message, "too-few", count=45, clean={"near_duplicates": 0.7})


def test_an_estimate_says_what_diversity_takes(inputs):
    part = {"diversity": {"method": "dpp", "candidates": 2, "dim": 16}, "clean": {"near_duplicates": 0.8}}
    config = tiny_run_config(inputs, "estimated", select={**BM25, "count": 10, **part})
    text = json.dumps(estimate_run(PIPELINE, config))
    flops = 2 * 10 * (20 * 16 + 16**2)
    assert f"{amounts.metric(flops, 'FLOP')} and" in text and "20 candidates a method" in text
