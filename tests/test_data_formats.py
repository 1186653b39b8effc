"""Formats of other people's files: what is recognised, what columns may say, and that a run notices when either
changes. Each known format has its row in files_found/data.py."""

from __future__ import annotations

import io
import json
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_run import run, tiny_run_config, write_inputs

from ntk_jax import pipelines
from ntk_jax.data import files, formats
from ntk_jax.data.choices import AMBIGUOUS, index_of, labelled
from ntk_jax.data.files import read_rows
from ntk_jax.data.formats import Reading
from ntk_jax.data.mapping import getter
from ntk_jax.data.sources import count_records, formats_of, read_chosen, read_records, source_hashes
from ntk_jax.errors import UserError
from ntk_jax.report.page import write_report
from ntk_jax.selection.records import record_line

ALPACA = [{"instruction": f"Add {i}", "input": "1 2" if i % 2 else "", "output": str(i)} for i in range(9)]


def lines(rows: list[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def expect(message: str, spec: Any, **options: Any) -> None:
    with pytest.raises(UserError) as error:
        list(read_records(spec, **options))
    assert message in str(error.value)


# -- columns ----------------------------------------------------------------------------------------------------------

ROW = {"q": "Why?", "a.b": "dotted", "a": {"b": "inner", "list": ["x", {"y": 7}]}, "none": None, "empty": "", "n": 1.5}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("q", "Why?"),
        ("a.b", "dotted"),  # a column of that name wins over the path
        ("a.list.1.y", 7),
        ("none", None),
        ("none.deeper", None),
        ("absent?", None),
        ("'q'", "q"),
        ("{q}\n{a.list.0}", "Why?\nx"),
        ("{q}\n\n{empty}", "Why?"),
        ("{none}\n\n{q}", "Why?"),
        ("{q} {absent?} {n}", "Why? 1.5"),
        ("{{{q}}}", "{Why?}"),
        ("{a.list.0}: {q}", "x: Why?"),
        (("q", "a.b"), ["Why?", "dotted"]),
    ],
)
def test_where_a_field_comes_from(source: Any, expected: Any) -> None:
    assert getter(source)(ROW, "f:1") == expected


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("qq", "f:1: there is no column 'qq'; did you mean q?"),
        ("zzz", "f:1: there is no column 'zzz'; its columns are q, a.b, a, none, empty, n"),
        ("a.list.2", "f:1: there is no column 'a.list.2'"),
        ("{a}", "f:1: {a} in a template must be a text or a number"),
    ],
)
def test_a_field_that_is_not_there(source: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        getter(source)(ROW, "f:1")
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "csv"}, "format = 'csv' is not one of auto, records, alpaca, sharegpt, openai, text"),
        ({"columns": {"promt": "q"}}, "columns: a record has no 'promt'; did you mean prompt?"),
        ({"columns": {"prompt": ["q"]}}, "columns: prompt = ['q'] must be the name of a column, a path or a template"),
        ({"columns": {"prompt": "{q"}}, "columns: the template '{q' has a single brace"),
        ({"columns": {"prompt": "q", "messages": "m"}}, "columns: give messages, or prompt and response, not both"),
        ({"columns": {"prompt": "q"}, "format": "alpaca"}, "columns say all that format = alpaca would"),
        ({"columns": {"*.csv": {"promt": "q"}}}, "columns of *.csv: a record has no 'promt'"),
    ],
)
def test_settings_that_mean_nothing(options: dict[str, Any], message: str) -> None:
    expect(message, [{"prompt": "q", "response": "a"}], **options)


def test_columns_for_some_files(tmp_path: Path) -> None:
    (tmp_path / "clinic.csv").write_text("frage,antwort\nq,a\n")
    (tmp_path / "pool.json").write_text(json.dumps(ALPACA))
    columns = {"clinic*.csv": {"prompt": "frage", "response": "antwort", "source": "'clinic'"}}
    found = list(read_records([tmp_path / "clinic.csv", tmp_path / "pool.json"], columns=columns))
    assert [r["source"] for r in found] == ["clinic"] + ["pool"] * 9
    assert found[0] == {
        "frage": "q",
        "antwort": "a",
        "prompt": "q",
        "response": "a",
        "source": "clinic",
        "id": "clinic-1",
    }
    with pytest.raises(UserError, match="data.columns: no file is called 'klinik.csv'; the files are .*pool.json"):
        Reading("auto", {"klinik.csv": {}}, "data.").check_patterns([("pool.json", "x/pool.json")])


def test_a_clash_keeps_the_column_under_original() -> None:
    row = {"prompt": "Q", "original": "mine", "id": "x", "frage": "q", "antwort": "a", "nummer": 3}
    (found,) = read_records([row], columns={"prompt": "frage", "response": "antwort", "id": "nummer"})
    assert found["original"] == {"original": "mine", "prompt": "Q", "id": "x"}
    assert (found["prompt"], found["id"], found["frage"]) == ("q", "3", "q")
    again = json.loads(record_line(found))
    assert next(read_records([again])) == again, "what was written is read as it is"


def test_a_system_column_is_the_first_message() -> None:
    rows = [{"question": "q", "response": "a", "system_prompt": text} for text in ("s", "", None)]
    first, *others = read_records(rows)
    assert [m["role"] for m in first["messages"]] == ["system", "user", "assistant"]
    assert all((r["prompt"], r["response"]) == ("q", "a") for r in others)


@given(st.lists(st.sampled_from(["{q}", "{e}", " ", "\n", "x", "{{", "}}"]), max_size=8))
def test_a_template_is_a_text_without_gaps(parts: list[str]) -> None:
    source = "".join(parts) + "{q}"
    text = getter(source)({"q": "Q", "e": ""}, "f")
    assert text.count("Q") == parts.count("{q}") + 1 and text.count("x") == parts.count("x")
    if not {" ", "\n"} & set(parts):
        assert text == source.replace("{e}", "").replace("{{", "{").replace("}}", "}").replace("{q}", "Q")


# -- formats ----------------------------------------------------------------------------------------------------------


def test_a_record_of_ours_is_never_taken_for_another_format() -> None:
    row = {"prompt": "q", "response": "a", "instruction": "i", "output": "o", "text": "t", "question": "?", "label": 3}
    assert next(read_records([row])) == row | {"id": "records-1", "source": "records"}


def test_a_file_has_one_format(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text(lines([*ALPACA, {"question": "q", "answer": "a"}]))
    expect("a.jsonl:10: there is no column 'instruction'; its columns are question, answer", tmp_path / "a.jsonl")


def test_records_and_messages_may_stand_in_one_file(tmp_path: Path) -> None:
    talk = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
    (tmp_path / "a.jsonl").write_text(lines([talk, {"prompt": "q", "response": "a"}]))
    assert len(list(read_records(tmp_path / "a.jsonl"))) == 2


@pytest.mark.parametrize("shape", formats._SHAPES, ids=lambda shape: f"{shape.name}: {', '.join(shape.needs)}")
def test_every_known_shape_is_recognised_as_itself(shape: Any) -> None:
    found = formats.recognise(dict.fromkeys([*shape.needs, *shape.also], "x"), "f:1")
    assert found == (formats.RECORDS if shape.name in ("records", "openai") else shape.columns)


@pytest.mark.parametrize(
    ("keys", "advice"),
    [
        ("instruction response output", "columns: {prompt: instruction, response: response}"),
        ("question answer context", "columns: {prompt: question, response: answer}"),
        ("instruction output history", "columns: {prompt: instruction, response: output}"),
        ("article question options answer", "columns: {prompt: question, response: answer}"),
        ("text role parent_id", "columns: {prompt: text, response: ...}"),
    ],
)
def test_what_is_not_clear_is_refused_with_the_columns_to_write(keys: str, advice: str) -> None:
    expect(advice, [dict.fromkeys(keys.split(), "x")])


def test_a_named_format_needs_its_columns() -> None:
    expect(
        "record 1: the format alpaca has a column instruction; the columns are text", [{"text": "t"}], format="alpaca"
    )
    assert next(read_records([{"text": "t", "label": 1}], format="text"))["response"] == "t"


ANSWERS = [
    (1, 1), (1.0, 1), (1.5, None), (True, None), ("b", 1), ("B", 1), (" B ", 1), ("blue", 0), ("2", 2), ("9", 9),
    ("", None), ("no", None), (None, None), ([1], None),
]  # fmt: skip


@pytest.mark.parametrize(("answer", "expected"), ANSWERS)
def test_which_choice_is_meant(answer: Any, expected: int | None) -> None:
    assert index_of(answer, ["blue", "red", "pink"], None) == expected


def test_labels_and_ambiguous_answers() -> None:
    assert index_of("2", ["a", "b"], ["1", "2"]) == 1 and index_of(2, ["a", "b"], [1, 2]) == 1
    assert index_of("A", ["B", "A"], None) == AMBIGUOUS and index_of("x", ["x", "x"], None) == AMBIGUOUS
    assert labelled({"A": "x", "B": "y", "C": None}) == (["x", "y"], ["A", "B"])
    assert labelled({"x": "x"}) == ({"x": "x"}, None)


@given(st.text(max_size=600))
def test_a_refusal_is_one_short_line(text: str) -> None:
    line = str(UserError(f"a.jsonl:3: {text}; correct it"))
    assert line.isprintable() and len(line) <= 300 and line.startswith("a.jsonl:3: ") and line.endswith("; correct it")


# -- files ------------------------------------------------------------------------------------------------------------

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=12,
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.dictionaries(st.text(), json_values, max_size=4), max_size=6),
    st.sampled_from([None, 1]),
    st.integers(1, 40),
)
def test_an_array_in_pieces_is_what_json_says(
    tmp_path_factory: Any, rows: list[Any], indent: int | None, size: int
) -> None:
    """However few characters are read at a time."""
    path = tmp_path_factory.getbasetemp() / "array.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=size % 2 == 0), encoding="utf8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "_CHUNK", size)
        found = list(read_rows(path))
    assert [parse() for _, _, parse in found] == rows
    text = path.read_text(encoding="utf8").split("\n")
    assert all(text[line - 1].strip().startswith("{") for _, line, _ in found if indent)


class _Long(io.RawIOBase):
    """A pretty-printed array of so many records that only exists while it is read."""

    def __init__(self, count: int) -> None:
        self.pieces: Iterator[bytes] = self._make(count)
        self.rest = b""

    @staticmethod
    def _make(count: int) -> Iterator[bytes]:
        yield b"[\n"
        for i in range(count):
            row = {"prompt": f"q{i}", "response": "a" * 2000}
            yield (b",\n" if i else b"") + json.dumps(row, indent=2).encode()
        yield b"\n]\n"

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while len(self.rest) < len(buffer) and (piece := next(self.pieces, None)) is not None:
            self.rest += piece
        size = min(len(buffer), len(self.rest))
        buffer[:size], self.rest = self.rest[:size], self.rest[size:]
        return size


def test_an_array_is_never_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "open_bytes", lambda path: io.BufferedReader(_Long(10_000)))
    tracemalloc.start()
    try:
        assert sum(1 for _ in read_rows(Path("long.json"))) == 10_000
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert most < 12 * 2**20, f"{most / 2**20:.0f} MiB for a text of 20"


@pytest.mark.parametrize("name", ["a.json", "a.csv", "a.tsv", "a.jsonl"])
def test_chosen_records_are_those_that_were_read(tmp_path: Path, name: str) -> None:
    rows = [{"question": f'q "{i}",\t{"x" * i}\nmore', "answer": f"a{i}"} for i in range(30)]
    mark = "\t" if name == "a.tsv" else ","
    cells = [["question", "answer"], *([r["question"], r["answer"]] for r in rows)]
    quoted = "\r\n".join(mark.join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells)
    text = {"a.json": json.dumps(rows, indent=1), "a.jsonl": lines(rows)}.get(name, quoted)
    (tmp_path / name).write_bytes(text.encode())
    found = list(read_records(tmp_path / name))
    assert [r["prompt"] for r in found] == [r["question"] for r in rows] and found[7]["id"] == "a-8"
    assert count_records(tmp_path / name) == 30
    assert list(read_chosen(tmp_path / name, [0, 3, 29])) == [found[0], found[3], found[29]]
    assert list(read_chosen(tmp_path / name, [5])) == [found[5]]


def test_lines_of_tables_and_arrays_are_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text('question,answer\n"q\nmore",a\n\nq\n')
    expect("a.csv:5: the row has 1 cells and the header 2", tmp_path / "a.csv")
    (tmp_path / "a.json").write_text('[\n {"prompt": "q",\n  "response": "a"},\n {"prompt": "q",\n  "response": 1}]')
    expect('a.json:4: "response" must be text, got 1', tmp_path / "a.json")
    (tmp_path / "a.json").write_text('[\n {"prompt": "q",\n  "response" "a"}]')
    expect("a.json:3: not JSON (Expecting ':' delimiter)", tmp_path / "a.json")
    (tmp_path / "a.json").write_text('[{"prompt": "q", "response": "a')
    expect("a.json:1: not JSON (Unterminated string", tmp_path / "a.json")


# -- a run ------------------------------------------------------------------------------------------------------------


def test_hashes_follow_what_the_columns_are_taken_for(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps(ALPACA))
    auto = source_hashes(path)
    assert list(auto) == [str(path), f"{path} read as"]
    assert source_hashes(path, Reading("alpaca")) == auto, "the same records come out"
    assert source_hashes(path, Reading(columns={"prompt": "instruction", "response": "output"})) != auto
    (tmp_path / "b.jsonl").write_text(lines([{"prompt": "q", "response": "a"}]))
    assert list(source_hashes(tmp_path / "b.jsonl")) == [str(tmp_path / "b.jsonl")]
    assert str(formats_of(path)[str(path)]) == 'alpaca (prompt: "{instruction}\\n\\n{input?}", response: output)'


def test_a_run_over_other_peoples_files(tmp_path: Path) -> None:
    """The selection keeps their columns, what was recognised is printed and kept, another reading is another run."""
    write_inputs(tmp_path)
    (tmp_path / "pool.json").write_text(json.dumps(ALPACA, indent=2))
    (tmp_path / "domain.csv").write_text("frage,antwort\nRed?,yes\nBlue?,no\n")
    given = {str(tmp_path / "domain.csv"): {"prompt": "frage", "response": "antwort"}}
    data: dict[str, Any] = {"domain": [str(tmp_path / "domain.csv")], "pool": [str(tmp_path / "pool.json")]}
    printed: list[str] = []

    def progress(stage: str, *_: Any) -> Any:
        return lambda done, total=None, note="": printed.append(f"{stage}: {note}") if note else None

    def select(**changed: Any) -> Path:
        sections = {"data": {**data, "columns": given, **changed}, "report": {"useful": []}}
        config = tiny_run_config(tmp_path, select={"methods": ["random"], "count": 4}, **sections)
        return run(config, progress=progress, until="select")

    folder = select()
    kept = [json.loads(line) for line in (folder / "select" / "selection.jsonl").read_text().splitlines()]
    assert len(kept) == 4 and all({"instruction", "input", "output", "prompt", "rank"} <= set(row) for row in kept)
    assert any(line.startswith("data.pool: ") and "pool.json read as alpaca (prompt:" in line for line in printed)
    assert any("domain.csv read as columns (prompt: frage, response: antwort)" in line for line in printed)
    facts = json.loads((folder / "plan.json").read_text())["pipelines"]["select"]["facts"]["formats"]
    assert [(f["set"], f["format"].split()[0]) for f in facts] == [("data.domain", "columns"), ("data.pool", "alpaca")]
    page = write_report(folder, pipelines.report_parts()).read_text()
    assert "Read as" in page and "alpaca (prompt:" in page
    before = (folder / "select" / "manifest.json").stat().st_mtime_ns
    select(format="alpaca")  # what it was recognised as
    assert (folder / "select" / "manifest.json").stat().st_mtime_ns == before
    with pytest.raises(UserError, match="pool.json read as"):
        select(columns={**given, "*pool.json": {"prompt": "instruction", "response": "output"}})
    with pytest.raises(UserError, match="data.columns: no file is called 'clinic.csv'"):
        select(columns={"clinic.csv": {"prompt": "frage", "response": "antwort"}})


def test_null_keys_of_a_message_are_absent_in_either_spelling() -> None:
    both = [{"from": "human", "value": "q", "role": None, "content": None},
            {"from": None, "value": None, "role": "assistant", "content": "a"}]  # fmt: skip
    (record,) = read_records([{"conversations": both}])
    assert [(turn["role"], turn["content"]) for turn in record["messages"]] == [("user", "q"), ("assistant", "a")]


def test_a_column_that_only_later_records_have_is_not_left_out(tmp_path: Path) -> None:
    first = {"question": "q", "answer": "a", "context": None}
    (tmp_path / "f.jsonl").write_text(json.dumps(first) + "\n" + json.dumps(first | {"context": "He is Bob."}))
    with pytest.raises(UserError, match=r"f\.jsonl:2: the record has the column context, and the file's first one"):
        list(read_records(tmp_path / "f.jsonl"))
    columns = {"prompt": "{context} {question}", "response": "answer"}
    assert [r["prompt"] for r in read_records(tmp_path / "f.jsonl", columns=columns)] == ["q", "He is Bob. q"]
