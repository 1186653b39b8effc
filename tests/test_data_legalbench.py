"""Tasks of LegalBench: what the prompt without examples is, how a table is read, and what is wrong with one."""

from __future__ import annotations

import csv
import gzip
import io
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import ntk_jax as nj
from ntk_jax.data.legalbench import labels_of, read_table, zero_shot
from ntk_jax.data.sources import count_records, formats_of, read_chosen, source_hashes
from ntk_jax.errors import UserError
from ntk_jax.evaluation.tasks import read_tasks, split_task

PROMPT = """Does the clause allow a visit?

Clause: You may come on Mondays.
Label: Yes

Clause: Nobody may come.
Label: No

Clause: {{text}}
Label:
"""
ROWS = [("0", "Yes", "Guests may come.", "a"), ("1", "No", 'The "Guest" stays away.', "a"), ("2", "No", "No.", "b")]


def table(rows: list[tuple[str, ...]], header: str = "index\tanswer\ttext\tdocument_name") -> str:
    """As pandas writes it."""
    out = io.StringIO(newline="")
    csv.writer(out, delimiter="\t", lineterminator="\n").writerows([header.split("\t"), *rows])
    return out.getvalue()


def task(folder: Path, name: str = "visits", prompt: str | None = PROMPT, **tables: str) -> Path:
    place = folder / "tasks" / name
    place.mkdir(parents=True)
    if prompt is not None:
        (place / "base_prompt.txt").write_text(prompt)
    for split, text in (tables or {"test": table(ROWS)}).items():
        (place / f"{split}.tsv").write_text(text, newline="")
    return place


# -- the prompt without its examples ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PROMPT, "Does the clause allow a visit?\n\nClause: {{text}}\nLabel:"),
        ("Q: one\nA: 1\n\nQ: {{text}}\nA:", "Q: {{text}}\nA:"),
        ("Say it.\n\nText: {{text}}\nLabel:", "Say it.\n\nText: {{text}}\nLabel:"),
        ("Say it.\nText: a\nLabel: x\nText: {{text}}\nLabel:", "Say it.\nText: {{text}}\nLabel:"),
        ("Say it: now.\n\nQ: a. Is it?\nA: x\n\nQ: {{text}} Is it?\nA:", "Say it: now.\n\nQ: {{text}} Is it?\nA:"),
        (
            "Read.\n\nContract: a\n\nQuestion: b\n\nAnswer: c\n\nContract: {{x}}\n\nQuestion: {{y}}\n\nAnswer:",
            "Read.\n\nContract: {{x}}\n\nQuestion: {{y}}\n\nAnswer:",
        ),
        (
            "Read.\n\nOne thing.\n\nAnswer: c\n\nAnother.\n\nAnswer: d\n\n{{text}}\n\nAnswer:",
            "Read.\n\n{{text}}\n\nAnswer:",
        ),
        ("Read.\n\nOne thing.\nAnswer: c\n\n{{text}}\nAnswer:", "Read.\n\n{{text}}\nAnswer:"),
        (
            "A.\n\nTitle: t\nBody: b\nFINAL: Yes\n\nTitle: {{t}}\nBody: {{ b }}\nFINAL:",
            "A.\n\nTitle: {{t}}\nBody: {{ b }}\nFINAL:",
        ),
        ("{{text}}", "{{text}}"),
    ],
)
def test_examples_are_left_out(text: str, expected: str) -> None:
    assert zero_shot(text) == expected


words = st.text("abc de\u00e9", min_size=1, max_size=20).map(str.strip).filter(bool)


@given(
    st.lists(words, max_size=3),
    st.lists(st.lists(words, min_size=2, max_size=2), max_size=4),
    st.sampled_from([("Clause", "Label"), ("Q", "A"), ("Contract text", "Answer")]),
    st.sampled_from(["\n", "\n\n"]),
)
def test_any_instruction_and_any_examples(
    instruction: list[str], examples: list[list[str]], names: tuple[str, str], between: str
) -> None:
    def form(text: str, answer: str) -> str:
        return f"{names[0]}: {text}{between}{names[1]}:{answer}"

    blocks = [form(text, f" {answer}") for text, answer in examples]
    last = form("{{text}}", "")
    assert zero_shot("\n\n".join([*instruction, *blocks, last]) + "\n") == "\n\n".join([*instruction, last])


def test_prompts_of_real_tasks(shared: Path) -> None:
    """Examples put between instruction and question are taken out again."""
    form = re.compile(r"(.*?\n\n)?(Clause|Q): (.*)\n(Label|A):", re.DOTALL)
    seen = {}
    for record in nj.read_records(shared / "data/legal/legalbench.test.jsonl.gz"):
        match = form.fullmatch(record["prompt"])
        if match and record["task"] not in seen:
            above, head, text, end = match.groups()
            examples = "".join(f"{head}: Nothing {i}.\n{end}: {'Yes' if i else 'No'}\n\n" for i in range(2))
            found = zero_shot(f"{above or ''}{examples}{head}: {{{{text}}}}\n{end}:\n")
            seen[record["task"]] = found.replace("{{text}}", text) == record["prompt"]
    assert len(seen) > 40 and all(seen.values()), [name for name, same in seen.items() if not same]


# -- records ----------------------------------------------------------------------------------------------------------


def test_records_of_a_task(tmp_path: Path) -> None:
    place = task(tmp_path)
    first, second, third = nj.read_records(place / "test.tsv")
    assert first == {
        "id": "visits/test-1", "source": "LegalBench", "task": "visits", "index": "0", "text": "Guests may come.",
        "document_name": "a", "choices": ["No", "Yes"], "answer": 1, "response": "Yes",
        "prompt": "Does the clause allow a visit?\n\nClause: Guests may come.\nLabel:",
    }  # fmt: skip
    assert second["prompt"].endswith('Clause: The "Guest" stays away.\nLabel:') and second["answer"] == 0
    assert count_records(place / "test.tsv") == 3
    assert [r["id"] for r in read_chosen(place / "test.tsv", [2])] == [third["id"]]
    assert {str(shape) for shape in formats_of(place / "test.tsv").values()} == {"a task of LegalBench"}
    (found,) = read_tasks([str(tmp_path / "tasks/*/test.tsv")])
    assert found.metrics == ("accuracy",)
    trained, unseen = split_task(found, "document_name", ["a"])
    assert [len(side.records) for side in (trained, unseen)] == [2, 1]


def test_several_tasks_have_ids_of_their_own(tmp_path: Path) -> None:
    task(tmp_path), task(tmp_path, "stays")
    tables = str(tmp_path / "tasks/*/test.tsv")
    assert len({record["id"] for record in nj.read_records(tables)}) == 6
    assert [found.name for found in read_tasks([tables])] == ["stays-test", "visits-test"]


def test_the_shots_are_those_of_the_task(tmp_path: Path) -> None:
    place = task(tmp_path, train=table([("0", "Yes", "Come in.", "c")]), test=table(ROWS))
    (found,) = read_tasks([str(place / "test.tsv")], shots=1)
    assert [shot["id"] for shot in found.shots.records] == ["visits/train-1"]


def test_several_columns_fill_the_slots(tmp_path: Path) -> None:
    prompt = "Contract: {{contract}}\nQuestion: {{ question }}\nAnswer:"
    rows = [("0", "x", "Is it?\nWhere?", "Yes"), ("1", "y", "Why?", "Yes")]
    place = task(tmp_path, prompt=prompt, test=table(rows, "index\tcontract\tquestion\tanswer"))
    first, _ = nj.read_records(place / "test.tsv")
    assert first["prompt"] == "Contract: x\nQuestion: Is it?\nWhere?\nAnswer:"
    assert first["choices"] == ["No", "Yes"] and first["answer"] == 1


def test_a_slot_for_the_answer_does_not_give_it_away(tmp_path: Path) -> None:
    place = task(tmp_path)
    prompt = place / "base_prompt.txt"
    prompt.write_text(prompt.read_text().rstrip() + " {{answer}}\n")
    found = list(nj.read_records(place / "test.tsv"))
    assert found and all(record["prompt"].endswith("Label:") for record in found)


def test_columns_of_our_names_are_kept(tmp_path: Path) -> None:
    rows = [("0", "Yes", "t", "their own", "theirs")]
    place = task(tmp_path, test=table(rows, "index\tanswer\ttext\tprompt\tid"))
    (record,) = nj.read_records(place / "test.tsv")
    assert record["original"] == {"prompt": "their own", "id": "theirs"} and record["id"] == "visits/test-1"


@pytest.mark.parametrize(
    ("answers", "labels"),
    [
        (["No", "Yes", "No"], ["No", "Yes"]),
        (["Yes"], ["No", "Yes"]),
        (["yes", "no"], ["no", "yes"]),
        (["b", "a", "b", "a"], ["a", "b"]),
        (["b", "a", "b"], []),  # one of them may be a text
        (["a", "a"], []),
        ([str(i) for i in range(26)] * 2, sorted(str(i) for i in range(26))),
        ([str(i) for i in range(27)] * 2, []),
        ([], []),
        (["", "Yes"], ["No", "Yes"]),
    ],
)
def test_which_answers_are_labels(answers: list[str], labels: list[str]) -> None:
    assert labels_of(answers) == labels


def test_labels_are_those_of_the_whole_task(tmp_path: Path) -> None:
    train = table([("0", "left", "a", "d"), ("1", "right", "b", "d")])
    place = task(tmp_path, train=train, test=table([("0", "left", "c", "d"), ("1", "right", "d", "d")]))
    assert [r["choices"] for r in nj.read_records(place / "test.tsv")] == [["left", "right"]] * 2
    (place / "train.tsv").unlink()  # once each: these may be texts
    assert all("choices" not in record for record in nj.read_records(place / "test.tsv"))
    assert read_tasks([str(place / "test.tsv")])[0].metrics == ("loss",)


def test_a_change_of_the_prompt_is_noticed(tmp_path: Path) -> None:
    place = task(tmp_path, train=table(ROWS), test=table(ROWS))
    before = source_hashes(str(place / "test.tsv"))
    assert {Path(name).name for name in before} == {"test.tsv", "train.tsv", "base_prompt.txt", "test.tsv read as"}
    (place / "base_prompt.txt").write_text(PROMPT.replace("visit", "stay"))
    after = source_hashes(str(place / "test.tsv"))
    assert [Path(name).name for name in before if before[name] != after[name]] == ["base_prompt.txt"]


def test_columns_that_are_given_count(tmp_path: Path) -> None:
    place = task(tmp_path, prompt=None)
    columns = {"prompt": "Clause: {text}", "response": "answer"}
    assert [r["prompt"] for r in nj.read_records(place / "test.tsv", columns=columns)][0] == "Clause: Guests may come."
    (place / "base_prompt.txt").write_text(PROMPT)
    assert next(nj.read_records(place / "test.tsv", columns=columns))["response"] == "Yes"


# -- quotes -----------------------------------------------------------------------------------------------------------

cells = st.text('ab" \n,', max_size=12).map(str.strip)


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(cells.filter(bool), cells), min_size=1, max_size=6))
def test_what_pandas_writes_is_read_back(rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("t") / "train.tsv"
    path.write_text(table(rows, "answer\ttext"), newline="")
    assert [tuple(row.values()) for _, row in read_table(path)] == rows


@settings(max_examples=60, deadline=None)
@given(rows=st.lists(st.tuples(st.text("ab", min_size=1), st.text('ab "', max_size=9)), min_size=1, max_size=6))
def test_quotes_that_are_no_quotes_lose_nothing(
    rows: list[tuple[str, str]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """As they stand, without those of CSV: no row is lost and none is refused."""
    path = tmp_path_factory.mktemp("t") / "train.tsv"
    path.write_text("".join(f"{a}\t{b}\n" for a, b in [("answer", "text"), *rows]))
    found = [tuple(row.values()) for _, row in read_table(path)]
    assert len(found) == len(rows) and [a for a, _ in found] == [a for a, _ in rows]
    assert [b.replace('"', "") for _, b in found] == [b.replace('"', "") for _, b in rows]


def test_a_quote_that_is_never_closed(tmp_path: Path) -> None:
    text = 'index\tanswer\ttext\n0\tYes\t"Open\n1\tNo\tquoted"\n2\tNo\t"whole ""one"""\n'
    place = task(tmp_path, test=text)
    texts = [record["text"] for record in nj.read_records(place / "test.tsv")]
    assert texts == ['"Open', 'quoted"', 'whole "one"']


def test_a_compressed_table(tmp_path: Path) -> None:
    place = task(tmp_path)
    (place / "test.tsv.gz").write_bytes(gzip.compress((place / "test.tsv").read_bytes()))
    (place / "test.tsv").unlink()
    assert len(list(nj.read_records(place / "test.tsv.gz"))) == 3


# -- what is wrong ----------------------------------------------------------------------------------------------------

HEADER = "index\tanswer\ttext\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompt": None}, r"test.tsv: a task of LegalBench needs its base_prompt.txt"),
        ({"prompt": "Q: {{question}}\nA:"}, r"base_prompt.txt:1: the slot 'question' is no column of test.tsv"),
        ({"prompt": "Instruction\n\nQ: {{text}} {{b}}\nA:"}, r"base_prompt.txt:3: the slot 'b' is no column"),
        ({"prompt": "Q:\nA:"}, r"base_prompt.txt: the prompt has no slot"),
        ({"test": HEADER + "0\tYes\ta\n1\tNo\n"}, r"test.tsv:3: the row has 2 cells and the header 3"),
        ({"test": HEADER + "0\tYes\ta\n1\t\tb\n"}, r"test.tsv:3: the answer is empty"),
        ({"test": ""}, r"test.tsv: no records"),
        ({"test": HEADER}, r"test.tsv: no records"),
        ({"test": "index\tlabel\ttext\n0\tYes\ta\n"}, r'test.tsv:1: a task of LegalBench has a column "answer"'),
        ({"test": "index\ttext\ttext\n0\tYes\ta\n"}, r"test.tsv:1: two columns are called 'text'"),
        ({"test": table(ROWS), "train": HEADER + "0\n"}, r"train.tsv:2: the row has 1 cells"),
    ],
)
def test_one_line_names_file_and_place(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    place = task(tmp_path, **options)
    with pytest.raises(UserError, match=message) as error:
        list(nj.read_records(place / "test.tsv"))
    assert "\n" not in str(error.value)


def test_texts_that_are_no_utf8(tmp_path: Path) -> None:
    place = task(tmp_path)
    (place / "base_prompt.txt").write_bytes(b"Q: {{text}} \xff")
    with pytest.raises(UserError, match="base_prompt.txt: not UTF-8 text"):
        list(nj.read_records(place / "test.tsv"))
    (place / "test.tsv").write_bytes(b"index\tanswer\ttext\n0\tYes\t\xff\n")
    with pytest.raises(UserError, match="test.tsv: not UTF-8 text"):
        list(nj.read_records(place / "test.tsv"))


def test_other_tables_stay_what_they_were(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").write_text("question\tanswer\nq\ta\n")
    assert next(nj.read_records(tmp_path / "train.tsv"))["id"] == "train-1"
    place = task(tmp_path, prompt=None, train="question\tanswer\nq\ta\n")
    assert next(nj.read_records(place / "train.tsv"))["prompt"] == "q"
