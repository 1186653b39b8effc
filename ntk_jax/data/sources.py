"""Where records come from: files by path or glob, tfds, Hugging Face datasets, or any iterable.

Everything streams: a pool of millions of records is never held in memory, only a 64-bit hash of each id, to find
duplicates. The order is the order of the specification, then of each file; a glob is sorted.
"""

from __future__ import annotations

import functools
import glob
import gzip
import hashlib
import json
import lzma
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from ntk_jax.builtin.paths import DATA as BUILTIN_DATA
from ntk_jax.data import columns
from ntk_jax.data.records import Record, check_record
from ntk_jax.errors import UserError
from ntk_jax.storage.hashing import hash_tree, sha256_file

Spec = str | Path | Iterable[Any]
Located = tuple[Any, str, str | None, str]  # object, where it stands, default id, default source

_LINES = (".jsonl", ".ndjson", ".json")
_KNOWN = "JSONL (.jsonl, .jsonl.gz, .jsonl.xz), .parquet, .arrow, tfds:NAME/SPLIT or hf:NAME/SPLIT"


def read_records(spec: Spec) -> Iterator[Record]:
    """Streams the checked records of a source, or of several in order.

    Args:
        spec: a path, a glob, `builtin:NAME.jsonl`, `tfds:NAME/SPLIT`, `hf:NAME/SPLIT`, an iterable of these, or an
            iterable of dicts.

    Returns:
        An iterator of dicts. A record without id gets "<file stem>-<line number>", one without source the file's stem.

    Raises:
        UserError: a file that is missing, unreadable or damaged (file and line), a bad record (`check_record`), an id
            that occurs twice, no record at all.

    Example:
        >>> import ntk_jax as nj
        >>> next(nj.read_records("builtin:kitchen.train.jsonl"))["response"]
        'sweet'
    """
    seen: set[int] = set()
    for obj, where, default_id, default_source in _located(spec):
        record = check_record(obj, where, default_id=default_id, default_source=default_source)
        key = int.from_bytes(hashlib.blake2b(record["id"].encode("utf8"), digest_size=8).digest())
        if key in seen:
            raise UserError(f"{where}: the id {record['id']!r} occurs a second time; give every record its own id")
        seen.add(key)
        yield record
    if not seen:
        raise UserError(f"{_name(spec)}: no records; give a source with at least one")


def read_chosen(spec: Spec, ordinals: Iterable[int]) -> Iterator[Record]:
    """The records at these ascending positions of what `read_records` gives. The others are passed over, not parsed: of
    text lines only the line ends are looked at.

    Raises UserError: as `read_records` for what is read; a position behind the end.
    """
    wanted = iter(ordinals)
    target = next(wanted, None)
    place = 0
    for source in _sources(spec):
        for line in source():
            if target is None:
                return
            if place == target:
                obj, where, default_id, default_source = line()
                yield check_record(obj, where, default_id=default_id, default_source=default_source)
                target = next(wanted, None)
            place += 1
    if target is not None:
        raise UserError(f"{_name(spec)}: record {target + 1} is no longer there; did a file change during the run?")


def count_records(spec: Spec) -> int:
    """How many records `read_records` would give, without parsing them.

    Raises UserError: as `read_records` for files; an iterator that can be read only once.
    """
    total = 0
    for item in _items(spec, counting=True):
        if isinstance(item, Mapping):
            total += 1
        elif remote := columns.remote_kind(item):
            total += columns.count_remote(remote, item)
        else:
            for path in _paths(item):
                total += columns.count_file(path) if columns.is_columnar(path) else _count_lines(path)
    return total


def sample_indices(count: int, limit: int | None, seed: int) -> np.ndarray | None:
    """A seeded sample of `limit` out of range(count): sorted int64, or None for all of them.

    The sample keeps the indices of smallest hash (splitmix64, Steele et al. 2014), so it is the same with every
    version of NumPy, and a larger limit only adds to a smaller one.
    """
    if limit is None or limit >= count:
        return None
    # The seed picks where in the sequence of the generator the indices begin; its output is a bijection: no ties.
    start = int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=8).digest())
    z = np.arange(count, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(start)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    z = z ^ (z >> np.uint64(31))
    return np.sort(np.argpartition(z, limit)[:limit] if limit else np.zeros(0)).astype(np.int64)


def source_hashes(spec: Spec) -> dict[str, str]:
    """SHA-256 of every input, by its name: what a fingerprint holds to notice that the data have changed.

    Records given in memory are hashed together under "(records)".
    """
    hashes: dict[str, str] = {}
    records = hashlib.sha256()
    for item in _items(spec, counting=True):
        if isinstance(item, Mapping):
            records.update(hash_tree(item).encode())
            hashes["(records)"] = records.hexdigest()
        elif remote := columns.remote_kind(item):
            hashes[str(item)] = columns.fingerprint_remote(remote, item)
        else:
            for path in _paths(item):
                # A packaged file is named as the user named it, so that the name does not depend on the installation.
                builtin = str(item).startswith("builtin:")
                hashes[f"builtin:{path.relative_to(BUILTIN_DATA).as_posix()}" if builtin else str(path)] = sha256_file(
                    path
                )
    return hashes


def _items(spec: Spec, counting: bool = False) -> Iterator[Any]:
    """The parts of a specification: names of sources, or dicts."""
    if isinstance(spec, (str, Path, Mapping)):
        yield spec
        return
    if counting and iter(spec) is spec:
        raise UserError("the records are an iterator, which can be read only once; give a list or a file")
    for item in spec:
        if not isinstance(item, (str, Path, Mapping)):
            raise UserError(f"a source is a path or a record, got {type(item).__name__}; {_KNOWN}")
        yield item


def _located(spec: Spec) -> Iterator[Located]:
    """Everything in the specification, in order."""
    for source in _sources(spec):
        for line in source():
            yield line()


def _sources(spec: Spec) -> Iterator[Callable[[], Iterator[Callable[[], Located]]]]:
    """The parts of a specification, each as a function that streams functions that parse one record."""
    given = 0
    for item in _items(spec):
        if isinstance(item, Mapping):
            given += 1
            yield functools.partial(_rows, functools.partial(tuple, [item]), "record", "records", given)
        elif remote := columns.remote_kind(item):
            stem = columns.remote_stem(item)
            yield functools.partial(_rows, functools.partial(columns.read_remote, remote, item), f"{item} row", stem)
        else:
            for path in _paths(item):
                stem = path.name.split(".")[0] if path.name.split(".")[0] else path.name
                if columns.is_columnar(path):
                    yield functools.partial(_rows, functools.partial(columns.read_file, path), f"{path} row", stem)
                else:
                    yield functools.partial(_json_lines, path, stem)


def _rows(read: Callable[[], Iterable[Any]], name: str, stem: str, first: int = 1) -> Iterator[Callable[[], Located]]:
    """Rows that come as objects, numbered from `first`: there is nothing to parse."""
    for number, obj in enumerate(read(), start=first):
        yield functools.partial(_parsed, (obj, f"{name} {number}", f"{stem}-{number}", stem))


def _parsed(found: Located) -> Located:
    return found


def _json_lines(path: Path, stem: str) -> Iterator[Callable[[], Located]]:
    for number, line in _lines(path):
        yield functools.partial(_parse_line, path, number, line, stem)


def _name(spec: Spec) -> str:
    if isinstance(spec, (str, Path)):
        return str(spec)
    if isinstance(spec, (list, tuple)) and spec and all(isinstance(item, (str, Path)) for item in spec):
        return ", ".join(map(str, spec))
    return "the records"


def _paths(item: str | Path) -> list[Path]:
    """The files that a path or glob names, sorted; none is a user's mistake."""
    text = str(item)
    builtin = text.startswith("builtin:")
    path = BUILTIN_DATA / text.removeprefix("builtin:") if builtin else Path(text).expanduser()
    if path.is_dir():
        raise UserError(f"{text} is a folder; name its files, for example {text.rstrip('/')}/*.jsonl")
    if path.exists():
        found = [path]
    elif glob.has_magic(str(path)):
        found = [Path(name) for name in sorted(glob.glob(str(path), recursive=True)) if Path(name).is_file()]
        if not found:
            raise UserError(f"{text} matches no file; correct the pattern (relative paths start at {Path.cwd()})")
    else:
        near = ", ".join(sorted(p.name for p in BUILTIN_DATA.glob("*.jsonl*"))) if builtin else ""
        remedy = f"there are: {near}" if near else f"correct the path (relative paths start at {Path.cwd()})"
        raise UserError(f"{text} does not exist; {remedy}")
    for path in found:
        if not columns.is_columnar(path) and not _plain_name(path).endswith(_LINES):
            raise UserError(f"{path}: not a known kind of file; give {_KNOWN}")
    return found


def _plain_name(path: Path) -> str:
    return path.name.lower().removesuffix(".gz").removesuffix(".xz")


def _open(path: Path) -> IO[bytes]:
    if path.name.lower().endswith(".gz"):
        return gzip.open(path, "rb")  # type: ignore[return-value]
    if path.name.lower().endswith(".xz"):
        return lzma.open(path, "rb")
    return open(path, "rb")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """(line number from 1, line) of every line that is not blank."""
    number = 0
    try:
        with _open(path) as file:
            for number, line in enumerate(file, start=1):
                if number == 1:
                    line = line.removeprefix(b"\xef\xbb\xbf")  # the mark some editors put at the start
                if not line.isspace() and line:
                    yield number, line
    except (gzip.BadGzipFile, EOFError, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"{path}: the compressed file is damaged after line {number} ({error}); copy it anew") from None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; correct its path or its permissions") from None


def _count_lines(path: Path) -> int:
    return sum(1 for _ in _lines(path))


def _parse_line(path: Path, number: int, line: bytes, stem: str) -> Located:
    try:
        obj = json.loads(line.decode("utf8"))
    except UnicodeDecodeError as error:
        raise UserError(f"{path}:{number}: not UTF-8 text (byte {error.start}); save the file as UTF-8") from None
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{number}: not JSON ({error.msg}, column {error.colno}); correct or remove the line"
        ) from None
    except (RecursionError, ValueError) as error:  # nested too deep, or a number of too many digits
        raise UserError(f"{path}:{number}: cannot be read as JSON ({error}); remove the line") from None
    return obj, f"{path}:{number}", f"{stem}-{number}", stem
