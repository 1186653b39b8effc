"""Reads damaged Parquet and Arrow files in a process of its own: what a damage may do is end the process.

    python damaged_columns.py KIND FIRST LAST FOLDER

KIND: parquet, file or stream (the two forms of Arrow). A case is its number: the seed of what is damaged. The number is
written to FOLDER/case before the file is read, so that whoever started this process knows where it died. Prints how
many files were read and how many refused; exits 1 for an answer that is neither."""

from __future__ import annotations

import datetime
import decimal
import random
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ntk_jax.data.sources import count_records, read_records
from ntk_jax.errors import UserError


def table(kind: str) -> Any:
    """Twenty records with columns of many types."""
    rows = [
        {"id": f"r{i}", "source": "s", "prompt": f"q{i} é", "response": f"a{i}", "level": i, "tags": ["x", "y"]}
        | {"inner": {"numbers": [1.0, 2.0], "text": None if i % 3 else "t"}, "day": datetime.date(2020, 1, 2)}
        | {"price": decimal.Decimal("1.50"), "raw": b"\xff", "at": datetime.datetime(2020, 1, 2)}
        for i in range(20)
    ]
    found = pa.Table.from_pylist(rows)
    found = found.append_column("kind", pa.array(["x", "y"] * 10).dictionary_encode())
    found = found.append_column("large", pa.array(["téxt"] * 20, pa.large_string()))
    found = found.append_column("map", pa.array([[("a", 1)]] * 20, pa.map_(pa.string(), pa.int64())))
    found = found.append_column("zone", pa.array([0] * 20, pa.timestamp("us", "Europe/Berlin")))
    if kind != "parquet":
        found = found.append_column("view", pa.array(["too long to stand in the view itself"] * 20, pa.string_view()))
        found = found.append_column("pair", pa.array([[1, 2]] * 20, pa.list_(pa.int32(), 2)))
    return found


def content(kind: str) -> bytes:
    """The file of that kind, whole."""
    sink, found = pa.BufferOutputStream(), table(kind)
    if kind == "parquet":
        pq.write_table(found, sink, row_group_size=7)
    else:
        with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(sink, found.schema) as writer:
            writer.write_table(found, max_chunksize=7)
    return sink.getvalue().to_pybytes()


def damaged(data: bytes, case: int) -> bytes:
    """The file with some bytes changed, or cut off."""
    rng = random.Random(case)
    found = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4, 16])):
        found[rng.randrange(len(found))] = rng.randrange(256)
    return bytes(found[: rng.randrange(len(found))] if rng.random() < 0.1 else found)


def main(kind: str, first: int, last: int, folder: Path) -> int:
    """See above."""
    path = folder / ("a.parquet" if kind == "parquet" else "a.arrow")
    data = content(kind)
    path.write_bytes(data)
    assert len(list(read_records(path))) == 20
    counts = {"read": 0, "refused": 0}
    for case in range(first, last):
        (folder / "case").write_text(str(case))
        path.write_bytes(damaged(data, case))
        try:
            for look in (lambda: list(read_records(path)), lambda: count_records(path)):
                look()
            counts["read"] += 1
        except UserError as error:
            if len(str(error)) > 300 or not str(error).isprintable():
                print(f"{kind} {case}: {str(error)!r}")
                return 1
            counts["refused"] += 1
    print(counts)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])))
