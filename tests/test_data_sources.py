"""Where records come from: every kind of file, in order, streaming, with the file and line of whatever is wrong."""

from __future__ import annotations

import datetime
import decimal
import gzip
import json
import lzma
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ntk_jax.data import files, sources
from ntk_jax.data.sources import count_records, read_records, sample_indices, source_hashes
from ntk_jax.errors import UserError


def rows(count: int, prefix: str = "r") -> list[dict[str, Any]]:
    return [
        {"id": f"{prefix}{i}", "source": "s", "prompt": f"q{i} é", "response": f"a{i}", "level": i, "tags": ["x", "y"]}
        for i in range(count)
    ]


def jsonl(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode("utf8")


def write(path: Path, records: list[dict[str, Any]]) -> Path:
    path.write_bytes(jsonl(records))
    return path


WRITERS = {
    "a.jsonl": lambda path, data: path.write_bytes(jsonl(data)),
    "a.jsonl.gz": lambda path, data: path.write_bytes(gzip.compress(jsonl(data))),
    "a.jsonl.xz": lambda path, data: path.write_bytes(lzma.compress(jsonl(data))),
    "a.parquet": lambda path, data: pq.write_table(pa.Table.from_pylist(data), path, row_group_size=7),
    "a.arrow": lambda path, data: _write_arrow(path, data, pa.ipc.new_file),
    "stream.arrow": lambda path, data: _write_arrow(path, data, pa.ipc.new_stream),
}


def _write_arrow(path: Path, data: list[dict[str, Any]], opener: Any) -> None:
    table = pa.Table.from_pylist(data)
    with opener(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


@pytest.mark.parametrize("name", WRITERS)
def test_every_kind_of_file(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path, rows(20))
    assert list(read_records(str(path))) == rows(20)
    assert list(read_records(path)) == rows(20)
    assert count_records(path) == 20


def test_lines_without_id_and_source_get_the_stem_and_the_line(tmp_path: Path) -> None:
    path = tmp_path / "pool.train.jsonl"
    line = b'{"prompt": "q", "response": "r"}\n'
    path.write_bytes(b"\xef\xbb\xbf" + line + b"\n  \n" + line.rstrip())  # a mark, blank lines, no last newline
    found = list(read_records(path))
    assert [(r["id"], r["source"]) for r in found] == [("pool-1", "pool"), ("pool-4", "pool")]
    assert count_records(path) == 2


def test_a_glob_is_sorted_and_a_list_keeps_its_order(tmp_path: Path) -> None:
    for name in ("c", "a", "b"):
        write(tmp_path / f"{name}.jsonl", rows(2, name))
    ids = [r["id"] for r in read_records(str(tmp_path / "*.jsonl"))]
    assert ids == ["a0", "a1", "b0", "b1", "c0", "c1"]
    ids = [r["id"] for r in read_records([str(tmp_path / "c.jsonl"), str(tmp_path / "[ab].jsonl")])]
    assert ids == ["c0", "c1", "a0", "a1", "b0", "b1"]
    assert count_records((str(tmp_path / "c.jsonl"), str(tmp_path / "[ab].jsonl"))) == 6


def test_a_file_whose_name_looks_like_a_glob_is_itself(tmp_path: Path) -> None:
    write(tmp_path / "a[1].jsonl", rows(1))
    assert count_records(tmp_path / "a[1].jsonl") == 1


def test_records_in_memory() -> None:
    found = list(read_records(iter([{"prompt": "q", "response": "r"}, rows(1)[0]])))
    assert [(r["id"], r["source"]) for r in found] == [("records-1", "records"), ("r0", "s")]
    assert count_records(rows(3)) == 3
    with pytest.raises(UserError, match="an iterator, which can be read only once; give a list or a file"):
        count_records(iter(rows(3)))


def test_reading_streams(tmp_path: Path) -> None:
    """The first record comes before the second is looked at, from a generator and from a file."""
    looked_at = []

    def generate() -> Iterator[dict[str, Any]]:
        for record in rows(3):
            looked_at.append(record["id"])
            yield record

    next(iter(read_records(generate())))
    assert looked_at == ["r0"]
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(rows(1)) + b"not JSON\n")
    stream = read_records(path)
    assert next(stream)["id"] == "r0"
    with pytest.raises(UserError, match="a.jsonl:2: not JSON"):
        next(stream)


def test_parquet_values_become_json_values(tmp_path: Path) -> None:
    record = rows(1)[0] | {
        "when": datetime.date(2020, 1, 2),
        "price": decimal.Decimal("1.50"),
        "raw": b"text",
        "blob": b"\xff\x00",
        "messages": None,
    }
    pq.write_table(pa.Table.from_pylist([record]), tmp_path / "a.parquet")
    (found,) = read_records(tmp_path / "a.parquet")
    assert (found["when"], found["price"], found["raw"], found["blob"]) == ("2020-01-02", "1.50", "text", "/wA=")
    assert json.loads(json.dumps(found)) == found


def test_builtin_files_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BUILTIN_DATA", tmp_path)
    write(tmp_path / "toy.jsonl", rows(2))
    assert count_records("builtin:toy.jsonl") == 2
    assert list(source_hashes("builtin:toy.jsonl")) == ["builtin:toy.jsonl"]
    with pytest.raises(UserError, match="builtin:toys.jsonl does not exist; there are: toy.jsonl"):
        list(read_records("builtin:toys.jsonl"))


def expect(message: str, spec: Any) -> None:
    with pytest.raises(UserError) as error:
        list(read_records(spec))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_not_there(tmp_path: Path) -> None:
    expect("none.jsonl does not exist; correct the path", tmp_path / "none.jsonl")
    expect("*.jsonl matches no file; correct the pattern", str(tmp_path / "*.jsonl"))
    expect("is a folder; name its files, for example", tmp_path)
    (tmp_path / "a.doc").write_text("x")
    expect("a.doc: not a known kind of file; give JSONL (.jsonl, .jsonl.gz, .jsonl.xz, .jsonl.zst)", tmp_path / "a.doc")
    (tmp_path / "a.txt.gz").write_text("x")
    expect('plain text has no records; write each text as a line {"text": ...} of a .jsonl', tmp_path / "a.txt.gz")
    expect("a source is a path or a record, got int", [3])


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (b"{'id': 1}", "a.jsonl:3: not JSON (Expecting property name enclosed in double quotes, column 2); correct or"),
        (b'{"id": "x"', "a.jsonl:3: not JSON"),
        (b"[1, 2]", "a.jsonl:3: a record is a JSON object, found a list"),
        (b'{"id": "\xff"}', "a.jsonl:3: not UTF-8 text (byte 8); save the file as UTF-8"),
        (b"[" * 100_000, "a.jsonl:3: cannot be read as JSON"),
        (b'{"id": "r0", "prompt": "q", "response": "r"}', "a.jsonl:3: the id 'r0' occurs a second time; give every"),
        (b'{"id": "x", "prompt": "q"}', 'a.jsonl:3: the record has no "response"'),
        (b'{"id": "x", "prompt": 1, "response": "r"}', 'a.jsonl:3: "prompt" must be text, got 1'),
    ],
)
def test_a_bad_line_is_named(tmp_path: Path, line: bytes, message: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl(rows(2)) + line + b"\n")
    expect(message, path)


def test_an_id_may_not_return_in_another_file(tmp_path: Path) -> None:
    a, b = write(tmp_path / "a.jsonl", rows(2)), write(tmp_path / "b.jsonl", rows(1))
    expect("b.jsonl:1: the id 'r0' occurs a second time", [a, b])
    expect("record 2: the id 'r0' occurs a second time", rows(1) * 2)


def test_empty_sets(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_bytes(b"\n\n")
    expect("a.jsonl: no records; give a source with at least one", tmp_path / "a.jsonl")
    expect("the records: no records", [])
    pq.write_table(pa.table({"prompt": pa.array([], pa.string())}), tmp_path / "a.parquet")
    expect("a.parquet: no records", tmp_path / "a.parquet")
    b = write(tmp_path / "b.jsonl", rows(1))
    assert len(list(read_records([tmp_path / "a.jsonl", b]))) == 1  # one empty file of several is no mistake


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.xz", "a.parquet", "a.arrow", "stream.arrow"])
def test_damaged_files(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    WRITERS[name](path, rows(200))
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], b"\x00" * 64):
        path.write_bytes(damaged)
        kind = "as Parquet" if "parquet" in name else "as Arrow" if "arrow" in name else "compressed file is damaged"
        expect(kind, path)
        with pytest.raises(UserError, match=kind):
            count_records(path)


def test_a_file_that_cannot_be_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.jsonl", rows(1))

    def refuse(path: Path) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(files, "open_bytes", refuse)
    expect("a.jsonl: Permission denied; correct its path or its permissions", path)


def test_hashes_follow_the_bytes(tmp_path: Path) -> None:
    a = write(tmp_path / "a.jsonl", rows(2))
    before = source_hashes([a])
    assert list(before) == [str(a)] and len(before[str(a)]) == 64
    write(a, rows(3))
    assert source_hashes([a]) != before
    one, other = source_hashes(rows(2)), source_hashes(rows(2)[::-1])
    assert list(one) == ["(records)"] and one != other and one == source_hashes(rows(2))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 300), st.integers(0, 320), st.integers(-5, 2**70))
def test_samples(count: int, limit: int, seed: int) -> None:
    found = sample_indices(count, limit, seed)
    if limit >= count:
        assert found is None
        return
    assert found is not None and found.dtype == np.int64 and len(found) == limit
    assert (np.diff(found) > 0).all() and (limit == 0 or (found[0] >= 0 and found[-1] < count))
    more = sample_indices(count, limit + 1, seed)
    if more is not None:
        assert set(found) < set(more)


def test_samples_are_the_same_for_ever_and_spread() -> None:
    assert sample_indices(10, None, 0) is None
    np.testing.assert_array_equal(sample_indices(100, 5, 0), [4, 6, 7, 38, 42])
    one, other = sample_indices(100, 5, 0), sample_indices(100, 5, 1)
    assert one is not None and other is not None and set(one) != set(other)
    hits = np.zeros(50)
    for seed in range(2000):
        hits[sample_indices(50, 5, seed)] += 1
    # 200 expected each, standard deviation 13.4
    assert hits.min() > 200 - 5 * 13.4 and hits.max() < 200 + 5 * 13.4


# Newer protobufs deprecate what tensorflow_datasets calls where it writes and reads the description of its data.
@pytest.mark.filterwarnings("ignore:label\\(\\) is deprecated:DeprecationWarning")
def test_tfds_without_tensorflow(tmp_path: Path) -> None:
    tfds = pytest.importorskip("tensorflow_datasets")
    pytest.importorskip("array_record")

    class Tiny(tfds.core.GeneratorBasedBuilder):  # type: ignore[misc, name-defined]
        VERSION = tfds.core.Version("1.0.0")

        def _info(self) -> Any:
            text = tfds.features.Text()
            features = {"prompt": text, "response": text, "choices": tfds.features.Sequence(text), "answer": np.int64}
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager: Any) -> Any:
            return {"train": self._generate_examples()}

        def _generate_examples(self) -> Iterator[Any]:
            for i in range(5):
                yield i, {"prompt": f"q{i} é", "response": "a", "choices": ["a", "b"], "answer": 0}

    builder = Tiny(data_dir=str(tmp_path), file_format="array_record")
    builder.download_and_prepare()
    spec = f"tfds:{tmp_path}/tiny/1.0.0/train"
    found = list(read_records(spec))
    assert count_records(spec) == 5
    assert [r["id"] for r in found] == [f"tiny-{n}" for n in range(1, 6)]
    assert {r["prompt"] for r in found} == {f"q{i} é" for i in range(5)}
    assert all((r["choices"], r["answer"], r["source"]) == (["a", "b"], 0, "tiny") for r in found)
    assert json.loads(json.dumps(found)) == found
    assert source_hashes(spec) == source_hashes(spec) and list(source_hashes(spec)) == [spec]
    expect("tfds cannot open it", f"tfds:{tmp_path}/tiny/1.0.0/test")
    expect("tfds:tiny: the split is missing; write tfds:NAME/SPLIT", "tfds:tiny")
    expect("tfds:no_such_data_set/train: tfds cannot open it (Dataset no_such_data_set", "tfds:no_such_data_set/train")
    assert "tensorflow" not in sys.modules


def test_hugging_face_datasets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    whole = datasets.Dataset.from_list(rows(3))
    whole.save_to_disk(str(tmp_path / "whole"))
    datasets.DatasetDict({"train": whole}).save_to_disk(str(tmp_path / "splits"))
    (tmp_path / "folder").mkdir()
    write(tmp_path / "folder" / "train.jsonl", rows(3))
    for spec in (f"hf:{tmp_path}/whole", f"hf:{tmp_path}/splits/train", f"hf:{tmp_path}/folder/train"):
        assert list(read_records(spec)) == rows(3)
        assert count_records(spec) == 3
        assert source_hashes(spec)[spec] == source_hashes(f"hf:{tmp_path}/whole")[f"hf:{tmp_path}/whole"]
    expect("/splits/test: there is no split test; there are: train", f"hf:{tmp_path}/splits/test")
    expect("/folder/test: datasets cannot open it", f"hf:{tmp_path}/folder/test")
    expect("hf:name: the split is missing; write hf:NAME/SPLIT, for example hf:name/train", "hf:name")


def test_a_library_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    expect("hf:org/name/train needs the package datasets; install it: pip install datasets", "hf:org/name/train")


def test_datasets_is_imported_only_when_asked_for() -> None:
    code = "import sys, ntk_jax.data.sources; sys.exit('datasets' in sys.modules or 'pyarrow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parent.parent, check=False).returncode == 0


def test_real_files(shared: Path) -> None:
    path = shared / "data" / "psychological" / "goemotions_ekman.test.jsonl.gz"
    count = sum(1 for _ in read_records(path))
    assert count == count_records(path) > 100
