"""The finished corpus: everything counted in one file, and its chunks by ordinal, whichever files they stand in."""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet

from ntk_jax.errors import UserError
from ntk_jax.mining.corpus import layout
from ntk_jax.mining.corpus.drops import merge
from ntk_jax.mining.corpus.process import Manifest, Settings, extracted_shards
from ntk_jax.storage import atomic


def close(folder: str | Path, count: int, settings: Settings) -> Manifest:
    """Writes corpus.json over all `count` shards, after `finish_shard` of each.

    Returns {"shards": chunks of each, "chunks", "words", "documents": that are left, "records": that were looked at,
    "drops": {"counts", "samples"} as `Drops.as_json`, "notes", "encodings", "languages"}. Records and drops add up:
    records = documents + all counts. Raises UserError: a shard is missing, or nothing is left (with the reasons).
    """
    first = extracted_shards(folder, count)
    paths = [layout.chunks(folder, shard, "json") for shard in range(count)]
    missing = [shard for shard, path in enumerate(paths) if not path.exists()]
    if missing:
        raise UserError(
            f"{folder}: shard {missing[0]} of {count} has no chunks yet; run the stage's shards to their end"
        )
    last = [atomic.read_json(path, dict) for path in paths]
    drops = merge([part["drops"] for part in [*first, *last]], settings.samples)
    _name_originals(folder, drops, [part["documents"] for part in first])
    result = {
        "shards": [part["chunks"] for part in last],
        "chunks": sum(part["chunks"] for part in last),
        "words": sum(part["words"] for part in last),
        "documents": sum(part["documents"] for part in last),
        "records": sum(part["records"] for part in first),
        "drops": drops,
        "notes": _sum(part["notes"] for part in [*first, *last]),
        "encodings": _sum(part["encodings"] for part in first),
        "languages": _sum(part["languages"] for part in first),
    }
    if not result["chunks"]:
        reasons = sorted(drops["counts"].items(), key=lambda pair: (-pair[1], pair[0]))
        why = ", ".join(f"{number:,} {reason}" for reason, number in reasons[:4]) or "there was none"
        raise UserError(
            f"the corpus is empty: of {result['records']:,} records none is left ({why}); give other files, or loosen "
            "the rules that dropped them"
        )
    atomic.write_json(Path(folder) / "corpus.json", result)
    return result


def read_corpus(folder: str | Path) -> Manifest:
    """What `close` returned. Raises UserError: the corpus is not finished."""
    return atomic.read_json(Path(folder) / "corpus.json", dict)


def count_chunks(folder: str | Path) -> int:
    """How many chunks there are. Raises UserError: the corpus is not finished."""
    return read_corpus(folder)["chunks"]


def read_chunks(
    folder: str | Path, start: int, stop: int, columns: Sequence[str] | None = None
) -> list[dict[str, Any]]:
    """The chunks [start, stop) in order, as dicts of the columns of `layout.CHUNKS`, or some of them. Only the row
    groups that hold them are read. Raises UserError: the corpus is not finished, or a file of it is damaged."""
    ends = list(accumulate(read_corpus(folder)["shards"]))
    start, stop, _ = slice(start, stop).indices(ends[-1] if ends else 0)
    found: list[dict[str, Any]] = []
    while start < stop:
        shard = bisect_right(ends, start)
        base = ends[shard - 1] if shard else 0
        found += _read(layout.chunks(folder, shard), start - base, min(stop, ends[shard]) - base, columns)
        start = ends[shard]
    return found


def _read(path: Path, start: int, stop: int, columns: Sequence[str] | None) -> list[dict[str, Any]]:
    """Rows of a file whose row groups are all alike but the last."""
    try:
        with parquet.ParquetFile(path) as file:
            group = file.metadata.row_group(0).num_rows
            groups = range(start // group, -(-stop // group))
            table = file.read_row_groups(list(groups), columns=list(columns) if columns else None)
    except (OSError, ValueError, pyarrow.ArrowException) as error:
        raise UserError(f"cannot read {path} ({str(error).splitlines()[0]}); delete it and run again") from None
    return table.slice(start - groups.start * group, stop - start).to_pylist()


def _name_originals(folder: str | Path, drops: dict[str, Any], counts: Sequence[int]) -> None:
    """Writes into the samples of duplicates which document each is like."""
    ends = list(accumulate(counts))
    for samples in drops["samples"].values():
        for sample in samples:
            if "like" in sample:
                shard = bisect_right(ends, sample["like"])
                row = sample["like"] - (ends[shard - 1] if shard else 0)
                path = layout.extracted(folder, "documents", shard)
                sample["like"] = _read(path, row, row + 1, ["id"])[0]["id"]


def _sum(parts: Any) -> dict[str, int]:
    total: Counter[str] = Counter()
    for part in parts:
        total.update(part)
    return dict(sorted(total.items()))
