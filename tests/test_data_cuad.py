"""The two files of CUAD's clause annotations: the same questions of both, and what is wrong with one."""

from __future__ import annotations

import csv
import gzip
import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ntk_jax as nj
from ntk_jax.data.cuad import question
from ntk_jax.data.sources import count_records, formats_of, source_hashes
from ntk_jax.errors import UserError
from ntk_jax.evaluation.tasks import read_tasks, split_task

Clauses = dict[str, dict[str, list[str]]]  # {contract: {kind: spans}}

CLAUSES: Clauses = {
    "Acme_Supply": {"Audit Rights": ['It may "audit" us.', "Each year, twice."], "Non-Compete": []},
    "Baker_Lease": {"Audit Rights": [], "Non-Compete": ["Nobody else's bread."]},
}


def master(
    path: Path, clauses: Clauses, kinds: Sequence[str] | None = None, without_spans: Sequence[tuple[str, str]] = ()
) -> Path:
    """without_spans: (contract, kind) of clauses that are there, and of which no span is marked."""
    kinds = kinds or list(next(iter(clauses.values())))
    header = ["Filename", "Parties", "Parties-Answer"]
    header += [column for kind in kinds for column in (kind, f"{kind}-Answer")]
    with path.open("w", newline="", encoding="utf8") as file:
        rows = csv.writer(file)
        rows.writerow(header)
        for name, spans in clauses.items():
            yes = {kind for kind in kinds if spans[kind] or (name, kind) in without_spans}
            own = [cell for kind in kinds for cell in (str(spans[kind]), "Yes" if kind in yes else "No")]
            rows.writerow([f"{name}.pdf", "['One', 'Two']", "One; Two", *own])
    return path


def squad(path: Path, clauses: Clauses, title_first: bool = True) -> Path:
    def entry(name: str, kind: str, spans: list[str]) -> dict[str, Any]:
        answers = [{"text": span, "answer_start": 3} for span in spans]
        return {"id": f"{name}__{kind}", "question": f"Mark {kind}", "answers": answers, "is_impossible": not spans}

    data = []
    for name, kinds in clauses.items():
        qas = [entry(name, kind, spans) for kind, spans in ({"Parties": ["One"]} | kinds).items()]
        contract = {"title": name, "paragraphs": [{"qas": qas, "context": "A contract. " * 9}]}
        data.append(contract if title_first else dict(reversed(contract.items())))
    path.write_text(json.dumps({"version": "v", "data": data} if title_first else {"data": data, "version": "v"}))
    return path


def asked(records: Any) -> dict[str, tuple[Any, ...]]:
    return {r["id"]: (r["prompt"], r["answer"], r["response"], r["spans"], r["document_name"]) for r in records}


def test_records_of_the_table(tmp_path: Path) -> None:
    path = master(tmp_path / "master_clauses.csv", CLAUSES)
    first, *others = nj.read_records(path)
    assert first == {
        "id": "cuad/Acme_Supply/Audit Rights", "source": "CUAD", "task": "cuad", "category": "Audit Rights",
        "document_id": "Acme_Supply", "document_name": "Acme_Supply", "choices": ["Yes", "No"], "answer": 0,
        "response": "Yes", "spans": ['It may "audit" us.', "Each year, twice."],
        "prompt": 'Contract: Acme_Supply\nDoes this contract have a clause of the kind "Audit Rights"?\n'
                  "Options:\n- Yes\n- No\nAnswer:",
    }  # fmt: skip
    assert [(r["category"], r["response"]) for r in others] == [
        ("Non-Compete", "No"), ("Audit Rights", "No"), ("Non-Compete", "Yes"),
    ]  # fmt: skip
    assert count_records(path) == 4
    assert {str(shape) for shape in formats_of(path).values()} == {"the clauses of CUAD"}
    assert f"{path} read as" in source_hashes(str(path))
    (task,) = read_tasks([str(path)])
    assert task.metrics == ("accuracy",)
    assert [len(side.records) for side in split_task(task, "document_id", ["Acme_Supply"])] == [2, 2]


@pytest.mark.parametrize("title_first", [True, False])
def test_both_files_ask_the_same(tmp_path: Path, title_first: bool) -> None:
    table = asked(nj.read_records(master(tmp_path / "master_clauses.csv", CLAUSES)))
    assert asked(nj.read_records(squad(tmp_path / "CUAD_v1.json", CLAUSES, title_first))) == table
    packed = tmp_path / "CUAD_v1.json.gz"
    packed.write_bytes(gzip.compress((tmp_path / "CUAD_v1.json").read_bytes()))
    assert asked(nj.read_records(packed)) == table


span = st.text(min_size=1, max_size=12).filter(lambda text: text.strip() and "\0" not in text)


@settings(max_examples=40, deadline=None)
@given(spans=st.lists(st.lists(span, max_size=3), min_size=2, max_size=2))
def test_any_span_is_read_back(spans: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("t")
    clauses = {"Acme": {"Audit Rights": spans[0], "Insurance": spans[1]}}
    for path in (master(folder / "master_clauses.csv", clauses), squad(folder / "CUAD_v1.json", clauses)):
        assert [record["spans"] for record in nj.read_records(path)] == spans
        assert [record["answer"] for record in nj.read_records(path)] == [0 if own else 1 for own in spans]


def test_records_made_from_the_real_annotations(tmp_path: Path, shared: Path) -> None:
    """1,287 questions about 39 contracts, written in both forms and read back."""
    clauses: Clauses = defaultdict(dict)
    expected = {}
    for record in nj.read_records(shared / "data/legal/cuad_master.jsonl.gz"):
        key = record["document_name"], record["category"]
        clauses[key[0]][key[1]] = record["spans"]
        expected[key] = (record["prompt"], record["answer"], record["spans"])
    assert len(expected) == 1287
    bare = [key for key, (_, answer, spans) in expected.items() if answer == 0 and not spans]
    assert len(bare) == 1
    table = master(tmp_path / "master_clauses.csv", clauses, list(next(iter(clauses.values()))), bare)
    marked = squad(tmp_path / "CUAD_v1.json", clauses)  # says nothing of a clause without a span
    for path, known in ((table, {}), (marked, {bare[0]: (expected[bare[0]][0], 1, [])})):
        records = {(r["document_name"], r["category"]): r for r in nj.read_records(path)}
        found = {key: (record["prompt"], record["answer"], record["spans"]) for key, record in records.items()}
        assert found == expected | known


def test_one_odd_answer_does_not_silently_cost_its_kind(tmp_path: Path) -> None:
    more = {f"{name}{n}": kinds for n in range(2) for name, kinds in CLAUSES.items()}
    path = master(tmp_path / "master_clauses.csv", more)
    text = path.read_text()
    path.write_text(text.replace(",No,", ",Maybe,", 1))
    with pytest.raises(UserError, match=r"master_clauses.csv:\d: 'Audit Rights-Answer' must be Yes or No, got 'Maybe'"):
        list(nj.read_records(path))
    path.write_text(text)
    assert len(list(nj.read_records(path))) == 8


def test_an_answer_counts_more_than_spans(tmp_path: Path) -> None:
    rows = "Filename,Audit Rights,Audit Rights- Answer\nA.txt,[],Yes\nB,['x'],\nC,,\nD,a text,No \n"
    (tmp_path / "clauses.csv").write_text(rows)
    found = list(nj.read_records(tmp_path / "clauses.csv"))
    assert [r["response"] for r in found] == ["Yes", "Yes", "No", "No"]
    assert [r["spans"] for r in found] == [[], ["x"], [], ["a text"]]
    assert [r["document_name"] for r in found] == ["A", "B", "C", "D"]


def test_parts_and_numbers_of_a_contract_are_put_together(tmp_path: Path) -> None:
    def part(number: int, *spans: str) -> dict[str, Any]:
        return {"context": "c", "qas": [{"id": f"A__B__Insurance_{number}", "answers": [{"text": s} for s in spans]}]}

    data = {"data": [{"title": "A__B", "paragraphs": [part(0, "x"), part(1), part(2, "y")]}]}
    (tmp_path / "train_separate_questions.json").write_text(json.dumps(data, indent=1))
    (found,) = nj.read_records(tmp_path / "train_separate_questions.json")
    assert found == question("A__B", "Insurance", ["x", "y"], True)


TABLE = "Filename,Insurance,Insurance-Answer\n"
WHOLE = '{"data": [{"title": "A", "paragraphs": [{"qas": [{"id": "A__Insurance", "answers": []}]}]}]}'


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("m.csv", TABLE + "A,['x',No\n", r"m.csv:2: 'Insurance' is no list of texts, got"),
        ("m.csv", TABLE + "A,[],No\nB,\"['x', 3]\",No\n", r"m.csv:3: 'Insurance' is no list of texts"),
        ("m.csv", TABLE + "A,[]\n", r"m.csv:2: the row has 2 cells and the header 3"),
        ("m.csv", TABLE + ",[],No\n", r"m.csv:2: the Filename is empty"),
        ("m.csv", TABLE + "A,[],perhaps\n", r"m.csv:1: no column .* holds only Yes and No"),
        ("m.csv", TABLE, r"m.csv: no records"),
        ("m.csv", TABLE + "A.pdf,[],No\nA.txt,[],No\n", r"m.csv:3: the id 'cuad/A/Insurance' occurs a second time"),
        ("c.json", WHOLE[:-1], r"c.json:1: not JSON"),
        ("c.json", WHOLE.replace(', "answers"', ',\n"answers"')[:-4], r"c.json:2: not JSON"),
        ("c.json", WHOLE.replace("[]", "3"), r"c.json: data\[0\].paragraphs\[0\].qas\[0\]: 'answers' must be a list"),
        ("c.json", WHOLE.replace("__", "-"), r"qas\[0\]: its id names no kind of clause"),
        ("c.json", WHOLE.replace('[{"qas"', '3, [{"qas"').replace(": 3,", ': {}, "x":'), r"'paragraphs' must be"),
        ("c.json", WHOLE.replace("}]}]}]}", "}]}]}, 7]}"), r"c.json: data\[1\]: 'title' must be a text, got None"),
        ("c.json", WHOLE.replace("[]", '[{"text": 3}]'), r"'text' must be a text, got 3"),
        ("c.json", WHOLE.replace("A__Insurance", "A__Parties"), r"c.json: no records"),
    ],
)
def test_one_line_names_file_and_place(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message) as error:
        list(nj.read_records(tmp_path / name))
    assert "\n" not in str(error.value)


def test_damaged_files(tmp_path: Path) -> None:
    whole = gzip.compress(WHOLE.encode() + b" " * 200_000 + bytes(range(32, 127)) * 200, compresslevel=0)
    (tmp_path / "c.json.gz").write_bytes(whole[:-9000])
    with pytest.raises(UserError, match="c.json.gz: cannot be read"):
        list(nj.read_records(tmp_path / "c.json.gz"))
    (tmp_path / "c.json").write_bytes(WHOLE.encode().replace(b"Insurance", b"\xff"))
    with pytest.raises(UserError, match="c.json: not UTF-8 text"):
        list(nj.read_records(tmp_path / "c.json"))


def test_columns_mean_nothing_here(tmp_path: Path) -> None:
    path = master(tmp_path / "m.csv", CLAUSES)
    with pytest.raises(UserError, match="is read as the clauses of CUAD, and has no columns"):
        list(nj.read_records(path, columns={"prompt": "Filename", "response": "Parties"}))


def test_other_files_stay_what_they_were(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps({"prompt": "p", "response": "r", "data": [{"title": "t"}]}))
    assert next(nj.read_records(tmp_path / "a.json"))["prompt"] == "p"
    (tmp_path / "a.csv").write_text("Filename,prompt,response\nx,p,r\n")
    assert next(nj.read_records(tmp_path / "a.csv"))["response"] == "r"
