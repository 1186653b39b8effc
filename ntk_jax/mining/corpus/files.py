"""The files of a corpus, and how they are divided among shards: any number of files among any number of shards."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ntk_jax.data import columns, files
from ntk_jax.errors import UserError

WARC = (".warc", ".wet")
PAGES = (".html", ".htm")
_ROW = 2000  # bytes that a row of a tfds or Hugging Face data set counts for
_KNOWN = (
    "WARC and WET (.warc, .wet, .gz), JSONL (.jsonl, .gz, .xz, .zst), .json, .csv, .tsv, .parquet, .arrow, plain text "
    "(.txt, .md), .html, tfds:NAME/SPLIT or hf:NAME/SPLIT"
)


@dataclass(frozen=True)
class Piece:
    """A part of a file. path: as it is opened. name: how ids and people call it. kind: warc, rows, text or page. The
    part is what begins at [start, stop) of `size`: bytes of archives; of rows, a share of them."""

    path: str
    name: str
    kind: str
    start: int
    stop: int
    size: int


@dataclass(frozen=True)
class Shard:
    """Shard `index` of `count`, and what it reads."""

    index: int
    count: int
    pieces: tuple[Piece, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def shards_of(spec: str | Path | Sequence[str | Path], count: int) -> list[Shard]:
    """Divides the files into so many shards of about equal bytes, cutting files where needed: the same for the same
    files, wherever their folder stands.

    spec: paths, globs, folders (all files of known kinds in them), tfds:NAME/SPLIT, hf:NAME/SPLIT.
    Raises UserError: no file, a file that is not there or of no known kind.
    """
    whole = corpus_files(spec)
    total = sum(piece.size for piece in whole)
    if not total:
        raise UserError(f"{_shown(spec)}: the corpus is empty, all its files have 0 bytes; give files with text")
    edges = [total * number // count for number in range(count + 1)]
    shards, begin = [], 0
    parts: list[list[Piece]] = [[] for _ in range(count)]
    for piece in whole:
        for number in range(count):
            start, stop = max(edges[number] - begin, 0), min(edges[number + 1] - begin, piece.size)
            if start < stop:
                parts[number].append(Piece(piece.path, piece.name, piece.kind, start, stop, piece.size))
        begin += piece.size
    for number, found in enumerate(parts):
        shards.append(Shard(number, count, tuple(found)))
    return shards


def corpus_files(spec: str | Path | Sequence[str | Path]) -> list[Piece]:
    """Every file of the corpus, whole, in the order of the specification. Raises UserError as `shards_of`."""
    items = [spec] if isinstance(spec, (str, Path)) else list(spec)
    paths: list[str] = []
    for item in items:
        paths += [str(item)] if columns.remote_kind(item) else [str(path) for path in _paths(item)]
    if not paths:
        raise UserError(f"{_shown(spec)}: the corpus has no file; give {_KNOWN}")
    twice = [path for path in paths if paths.count(path) > 1] if len(set(paths)) < len(paths) else []
    if twice:
        raise UserError(f"{twice[0]} is named twice; name each file of the corpus once")
    local = [path for path in paths if not columns.remote_kind(path)]
    common = os.path.commonpath([str(Path(path).absolute().parent) for path in local]) if local else ""
    return [_whole(path, common) for path in paths]


def _whole(path: str, common: str) -> Piece:
    if remote := columns.remote_kind(path):
        size = columns.count_remote(remote, path) * _ROW
        return Piece(path, path, "rows", 0, size, size)
    try:
        size = Path(path).stat().st_size
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; correct its path or its permissions") from None
    name = Path(os.path.relpath(Path(path).absolute(), common)).as_posix()
    return Piece(path, name, _kind(Path(path)) or "", 0, size, size)


def _kind(path: Path) -> str | None:
    plain = files.plain_name(path)
    if plain.endswith(WARC) and not path.name.lower().endswith((".xz", ".zst")):
        return "warc"
    if columns.is_columnar(path) or plain.endswith((*files.JSON, *files.TABLES)):
        return "rows"
    if plain.endswith(files.TEXT):
        return "text"
    return "page" if plain.endswith(PAGES) else None


def _paths(item: str | Path) -> list[Path]:
    text = str(item)
    path = Path(text).expanduser()
    if path.is_dir():
        found = sorted(p for p in path.rglob("*") if p.is_file() and _kind(p) and not _hidden(p, path))
        if not found:
            raise UserError(f"{text}: the folder holds no file of a known kind; give {_KNOWN}")
        return found
    if path.exists():
        found = [path]
    elif glob.has_magic(str(path)):
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
        if not found:
            raise UserError(f"{text} matches no file; correct the pattern (relative paths start at {Path.cwd()})")
    else:
        raise UserError(f"{text} does not exist; correct the path (relative paths start at {Path.cwd()})")
    for one in found:
        if not _kind(one):
            raise UserError(f"{one}: not a known kind of file; give {_KNOWN}")
    return found


def _hidden(path: Path, below: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(below).parts)


def _shown(spec: str | Path | Sequence[str | Path]) -> str:
    return str(spec) if isinstance(spec, (str, Path)) else ", ".join(map(str, spec)) or "(no files)"
