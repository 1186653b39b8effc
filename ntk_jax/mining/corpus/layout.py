"""The files of a corpus folder: their names, their columns, and how they are written, the same bytes each time.

extract/documents-00000.parquet   what a shard gave, before duplicates are known
extract/digests-00000.npy         of each document, a hash of its text                    [n] uint64
extract/signatures-00000.npy      of each document, its MinHash signature                 [n, permutations] uint32
extract/paragraphs-00000.npy      (hash, row) of each paragraph, ascending
extract/shard-00000.json          counts; it is written last
keep/verdicts-00000.npy           (reason, like) of each document: see `duplicates`
keep/repeats-00000.npy            (hash, row) of the paragraphs that stand in an earlier document
keep/keep.json                    it is written last
chunks-00000.parquet              what is left, cut into chunks
chunks-00000.json                 counts; it is written last
corpus.json                       everything counted, and how many chunks each file has
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
from pyarrow import parquet

from ntk_jax.errors import UserError
from ntk_jax.storage import atomic

PARAGRAPHS = np.dtype([("hash", "<u8"), ("row", "<u4")])
VERDICTS = np.dtype([("reason", "<u1"), ("like", "<i8")])
# Rows of a Parquet row group: what is held and read at a time. A document may be a book.
DOCUMENT_ROWS, CHUNK_ROWS = 64, 512

_TEXTS = ("id", "file", "url", "title", "date", "record_id", "source", "language", "encoding", "text")
DOCUMENTS = pyarrow.schema(
    [(name, pyarrow.string()) for name in _TEXTS] + [("offset", pyarrow.int64()), ("words", pyarrow.int32())]
)
CARRIED = ("file", "offset", "url", "title", "date", "record_id", "source", "language")  # from a document to its chunks
CHUNKS = pyarrow.schema(
    [("id", pyarrow.string()), ("document", pyarrow.string()), ("text", pyarrow.string()), ("words", pyarrow.int32())]
    + [("start", pyarrow.int64()), ("end", pyarrow.int64())]
    + [DOCUMENTS.field(name) for name in CARRIED]
)


EXTRACTED = ("documents", "digests", "signatures", "paragraphs")
KEPT = ("verdicts", "repeats")


def extracted(folder: str | Path, kind: str, shard: int) -> Path:
    """A file of the first step. kind: documents, digests, signatures, paragraphs or shard."""
    ending = {"documents": "parquet", "shard": "json"}.get(kind, "npy")
    return Path(folder) / "extract" / f"{kind}-{shard:05d}.{ending}"


def kept(folder: str | Path, kind: str, shard: int) -> Path:
    """A file of the second step. kind: verdicts or repeats."""
    return Path(folder) / "keep" / f"{kind}-{shard:05d}.npy"


def kept_manifest(folder: str | Path) -> Path:
    """What says that the second step is done."""
    return Path(folder) / "keep" / "keep.json"


def chunks(folder: str | Path, shard: int, ending: str = "parquet") -> Path:
    """A file of the last step."""
    return Path(folder) / f"chunks-{shard:05d}.{ending}"


def write_rows(path: Path, schema: Any, rows: Iterable[Mapping[str, Any]], group: int) -> int:
    """Writes a Parquet file of these rows as they come, `group` in a row group; their number.

    Raises UserError as `atomic.replacing`."""
    count, held = 0, []
    with atomic.replacing(path) as file, parquet.ParquetWriter(file, schema, compression="zstd") as writer:
        for row in rows:
            held.append(row)
            count += 1
            if len(held) == group:
                writer.write_table(pyarrow.Table.from_pylist(held, schema), row_group_size=group)
                held = []
        if held:
            writer.write_table(pyarrow.Table.from_pylist(held, schema), row_group_size=group)
    return count


def write_array(path: Path, array: np.ndarray) -> None:
    """Writes a .npy file. Raises UserError as `atomic.replacing`."""
    with atomic.replacing(path) as file:
        np.save(file, array, allow_pickle=False)


def read_array(path: Path) -> np.ndarray:
    """An array that stays on the disk until its parts are looked at. Raises UserError: absent or damaged."""
    try:
        try:
            return np.load(path, mmap_mode="r")
        except ValueError:  # an empty array cannot be mapped
            return np.load(path)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"cannot read {path} ({error}); delete {path.parent} and run again") from None
