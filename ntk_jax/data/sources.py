"""Where records come from: files by path or glob, tfds, Hugging Face datasets, or any iterable.

Everything streams: a pool of millions of records is never held in memory, only a 64-bit hash of each id, to find
duplicates. The order is the order of the specification, then of each file; a glob is sorted.
"""

from __future__ import annotations

import functools
import glob
import hashlib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.builtin.paths import DATA as BUILTIN_DATA
from ntk_jax.data import columns, cuad, files, legalbench
from ntk_jax.data.formats import AUTO, Reading
from ntk_jax.data.mapping import RECORDS, Columns
from ntk_jax.data.records import Record, check_record
from ntk_jax.errors import UserError
from ntk_jax.storage.hashing import hash_tree, sha256_file

Spec = str | Path | Iterable[Any]
Located = tuple[Any, str, str]  # a row, where it stands, its id if it has none
Line = Callable[[], Located]

_KNOWN = (
    "JSONL (.jsonl, .jsonl.gz, .jsonl.xz, .jsonl.zst), a JSON array (.json), .csv, .tsv, .parquet, .arrow, "
    "tfds:NAME/SPLIT or hf:NAME/SPLIT"
)


def read_records(spec: Spec, *, format: str = "auto", columns: Mapping[str, Any] | None = None) -> Iterator[Record]:
    """Streams the checked records of a source, or of several in order.

    Args:
        spec: a path, a glob, `builtin:NAME.jsonl`, `tfds:NAME/SPLIT`, `hf:NAME/SPLIT`, an iterable of these, or an
            iterable of dicts.
        format: `auto` recognises each file by its first record (a task of LegalBench by the base_prompt.txt beside it,
            the two files of CUAD by their beginning); `records`, `alpaca`, `sharegpt`, `openai` and `text`
            say what all of them are.
        columns: instead of a format, where the fields of a record come from: {"prompt": "question", "response":
            "answers.text.0"}, or {pattern: such a mapping} for the files of that name. Fields are prompt, response,
            messages, choices, answer, id, source, task and system.

    Returns:
        An iterator of dicts. A record without id gets "<file stem>-<line number>" (in an array and in a table, the
        record's number), one without source the file's stem.

    Raises:
        UserError: a file that is missing, unreadable or damaged (file and line), of no known format, a bad record
            (`check_record`), an id that occurs twice, no record at all.

    Example:
        >>> import ntk_jax as nj
        >>> next(nj.read_records("builtin:kitchen.train.jsonl"))["response"]
        'sweet'
        >>> rows = [{"question": "Is rice white?", "best": "yes"}]
        >>> next(nj.read_records(rows, columns={"prompt": "question", "response": "best"}))["prompt"]
        'Is rice white?'
    """
    return read(spec, Reading(format, columns))


def read(spec: Spec, reading: Reading = AUTO) -> Iterator[Record]:
    """`read_records` for settings that were made before."""
    seen: set[int] = set()
    for source in _sources(spec, reading.documents):
        for line, shape in _shaped(source, reading):
            obj, where, default_id = line()
            obj = _without_null(obj, shape) if reading.documents else obj
            record = check_record(obj, where, default_id=default_id, default_source=source.stem, columns=shape)
            key = int.from_bytes(hashlib.blake2b(record["id"].encode("utf8"), digest_size=8).digest())
            if key in seen:
                raise UserError(f"{where}: the id {record['id']!r} occurs a second time; give every record its own id")
            seen.add(key)
            yield record
    if not seen:
        raise UserError(f"{_name(spec)}: no records; give a source with at least one")


def read_chosen(spec: Spec, ordinals: Iterable[int], reading: Reading = AUTO) -> Iterator[Record]:
    """The records at these ascending positions of what `read_records` gives. The others are passed over, not parsed: of
    text lines only the line ends are looked at.

    Raises UserError: as `read_records` for what is read; a position behind the end.
    """
    wanted = iter(ordinals)
    target = next(wanted, None)
    place = 0
    for source in _sources(spec, reading.documents):
        for line, shape in _shaped(source, reading):
            if target is None:
                return
            if place == target:
                obj, where, default_id = line()
                yield check_record(obj, where, default_id=default_id, default_source=source.stem, columns=shape)
                target = next(wanted, None)
            place += 1
    if target is not None:
        raise UserError(f"{_name(spec)}: record {target + 1} is no longer there; did a file change during the run?")


def count_records(spec: Spec) -> int:
    """How many records `read_records` would give, without parsing them where they are lines or have a count.

    Raises UserError: as `read_records` for files; an iterator that can be read only once.
    """
    _refuse_iterator(spec)
    return sum(source.count() for source in _sources(spec))


def formats_of(spec: Spec, reading: Reading = AUTO) -> dict[str, Columns]:
    """{name of a source: how it is read}, from the first record of each; a source without records is left out.

    Raises UserError: as `read_records` for what is looked at.
    """
    _refuse_iterator(spec)
    found: dict[str, Columns] = {}
    for source in _sources(spec, reading.documents):
        for _, shape in _shaped(source, reading):
            found.setdefault(source.name, shape)
            break
    return found


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


def source_hashes(spec: Spec, reading: Reading = AUTO) -> dict[str, str]:
    """SHA-256 of every input, by its name, and for those that are not read as plain records how they are: what a
    fingerprint holds to notice that the records have changed.

    Records given in memory are hashed together under "(records)".
    """
    _refuse_iterator(spec)
    hashes: dict[str, str] = {}
    records = hashlib.sha256()
    for item in _items(spec):
        if isinstance(item, Mapping):
            records.update(hash_tree(item).encode())
            hashes["(records)"] = records.hexdigest()
        elif remote := columns.remote_kind(item):
            hashes[str(item)] = columns.fingerprint_remote(remote, item)
        else:
            for path in _paths(item, reading.documents):
                beside = legalbench.companions(path) if legalbench.is_task(path) else []
                hashes |= {_public_name(item, each): sha256_file(each) for each in (path, *beside)}
    shapes = formats_of(spec, reading)
    return hashes | {f"{name} read as": str(shape) for name, shape in shapes.items() if shape != RECORDS}


def source_names(spec: Spec, reading: Reading = AUTO) -> list[tuple[str, ...]]:
    """What each source is called, as `Reading.check_patterns` takes it. Raises UserError: a file is not there."""
    return [source.names for source in _sources(spec, reading.documents)]


def _items(spec: Spec) -> Iterator[Any]:
    """The parts of a specification: names of sources, or dicts."""
    if isinstance(spec, (str, Path, Mapping)):
        yield spec
        return
    for item in spec:
        if not isinstance(item, (str, Path, Mapping)):
            raise UserError(f"a source is a path or a record, got {type(item).__name__}; {_KNOWN}")
        yield item


def _refuse_iterator(spec: Spec) -> None:
    if not isinstance(spec, (str, Path, Mapping)) and iter(spec) is spec:
        raise UserError("the records are an iterator, which can be read only once; give a list or a file")


@dataclass(frozen=True)
class _Source:
    """One file, data set, or dict in memory. name: as hashes and people call it. names: what a pattern may match. stem:
    for ids and sources. lines: streams functions that parse one record. count: how many there are. shape: how they are
    read, where the file says it and not its first record; plain: of such a file, its lines as they stand."""

    name: str
    names: tuple[str, ...]
    stem: str
    lines: Callable[[], Iterator[Line]]
    count: Callable[[], int]
    shape: Columns | None = None
    plain: Callable[[], Iterator[Line]] | None = None


def _shaped(source: _Source, reading: Reading) -> Iterator[tuple[Line, Columns]]:
    """Every line of a source with the columns of its records, which the first one decides."""
    shape, lines = source.shape, source.lines
    if shape is not None and reading.own_columns(source.names) is not None:
        if source.plain is None:
            raise UserError(
                f"{source.name}: it is read as {shape.name}, and has no columns; give those of other files by their "
                "names, as {other.jsonl: {...}}"
            )
        shape, lines = None, source.plain
    elif reading.format not in ("auto", "records"):
        shape = None
    for line in lines():
        if shape is None:
            first = line()
            shape = reading.columns_for(first[0], first[1], source.names)
            line = functools.partial(_parsed, first)
        yield line, shape


def _sources(spec: Spec, documents: bool = False) -> Iterator[_Source]:
    """The parts of a specification. documents: as of `Reading`."""
    given, alone = 0, _alone(spec) if documents else frozenset()
    seen: set[Path] = set()
    for item in _items(spec):
        if isinstance(item, Mapping):
            given += 1
            rows = functools.partial(_rows, functools.partial(tuple, [item]), "record", "records", given)
            yield _Source("(records)", ("(records)",), "records", rows, lambda: 1)
        elif remote := columns.remote_kind(item):
            name, stem = str(item), columns.remote_stem(item)
            rows = functools.partial(_rows, functools.partial(columns.read_remote, remote, item), f"{item} row", stem)
            yield _Source(name, (name,), stem, rows, functools.partial(columns.count_remote, remote, item))
        else:
            for path in _paths(item, documents):
                if not documents or path not in seen:  # patterns for documents may overlap
                    seen.add(path)
                    yield _file(item, path, alone)


def _alone(spec: Spec) -> frozenset[str]:
    """The names without their endings that one text file alone has."""
    local = [item for item in _items(spec) if not isinstance(item, Mapping) and not columns.remote_kind(item)]
    found = {path for item in local for path in _paths(item, True) if _is_text(path)}
    return frozenset(name for name, count in Counter(map(_bare, found)).items() if count == 1)


def _is_text(path: Path) -> bool:
    return files.plain_name(path).endswith(files.TEXT)


def _bare(path: Path) -> str:
    """The name of a text file without its endings."""
    name = path.name
    for endings in (files.COMPRESSED, files.TEXT):
        name = name[: -len(Path(name).suffix)] if name.lower().endswith(endings) else name
    return name or path.name


def _file(item: str | Path, path: Path, alone: Collection[str] = ()) -> _Source:
    stem = path.name.split(".")[0] if path.name.split(".")[0] else path.name
    name = _public_name(item, path)
    names = (name, str(item), path.name)
    if columns.is_columnar(path):
        rows = functools.partial(_rows, functools.partial(columns.read_file, path), f"{path} row", stem)
        return _Source(name, names, stem, rows, functools.partial(columns.count_file, path))
    if _is_text(path):
        bare = _bare(path)
        text = functools.partial(_made, functools.partial(_text, path, bare if bare in alone else name, bare))
        return _Source(name, names, stem, text, lambda: 1, Columns("a text"))
    plain = functools.partial(_lines, path, stem)
    if legalbench.is_task(path):
        read, shape = functools.partial(legalbench.read_task, path), Columns("a task of LegalBench")
        made = functools.partial(_made, lambda: ((f"{path}:{line}", record) for line, record in read()))
        return _Source(name, names, stem, made, lambda: len(legalbench.read_table(path)), shape, plain)
    if cuad.is_cuad(path):
        made = functools.partial(_made, functools.partial(cuad.read_cuad, path))
        return _Source(name, names, stem, made, lambda: sum(1 for _ in made()), Columns("the clauses of CUAD"))
    return _Source(name, names, stem, plain, lambda: sum(1 for _ in files.read_rows(path)))


def _public_name(item: str | Path, path: Path) -> str:
    """A packaged file is named as the user named it, so that the name does not depend on the installation."""
    return f"builtin:{path.relative_to(BUILTIN_DATA).as_posix()}" if str(item).startswith("builtin:") else str(path)


def _rows(read: Callable[[], Iterable[Any]], name: str, stem: str, first: int = 1) -> Iterator[Line]:
    """Rows that come as objects, numbered from `first`: there is nothing to parse."""
    for number, obj in enumerate(read(), start=first):
        yield functools.partial(_parsed, (obj, f"{name} {number}", f"{stem}-{number}"))


def _made(read: Callable[[], Iterable[tuple[str, Any]]]) -> Iterator[Line]:
    """Records that a reader has put together, each with where it stands and its own id."""
    for where, record in read():
        yield functools.partial(_parsed, (record, where, str(record["id"])))


def _text(path: Path, name: str, title: str) -> Iterator[tuple[str, Any]]:
    """A text file as a record. Its id is its name without the ending, or its path where others are called alike."""
    yield str(path), {"id": name, "prompt": "", "response": files.read_text(path), "title": title}


def _without_null(obj: Any, shape: Columns) -> Any:
    """A document whose text is null as an empty one, which is counted and stops nothing: columnar files have such."""
    text = dict(shape.fields).get("response", "response")
    is_null = isinstance(obj, Mapping) and isinstance(text, str) and text in obj and obj[text] is None
    return {**obj, text: ""} if is_null else obj


def _parsed(found: Located) -> Located:
    return found


def _lines(path: Path, stem: str) -> Iterator[Line]:
    for number, line, parse in files.read_rows(path):
        yield functools.partial(_parse, parse, f"{path}:{line}", f"{stem}-{number}")


def _parse(parse: Callable[[], Any], where: str, default_id: str) -> Located:
    return parse(), where, default_id


def _name(spec: Spec) -> str:
    if isinstance(spec, (str, Path)):
        return str(spec)
    if isinstance(spec, (list, tuple)) and spec and all(isinstance(item, (str, Path)) for item in spec):
        return ", ".join(map(str, spec))
    return "the records"


def _paths(item: str | Path, documents: bool = False) -> list[Path]:
    """The files that a path or glob names, sorted; none is a user's mistake. documents: also text files."""
    text = str(item)
    builtin = text.startswith("builtin:")
    path = BUILTIN_DATA / text.removeprefix("builtin:") if builtin else Path(text).expanduser()
    if path.is_dir():
        ending = files.TEXT[0] if documents else files.JSON[0]
        raise UserError(f"{text} is a folder; name its files, for example {text.rstrip('/')}/*{ending}")
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
    known = (*files.JSON, *files.TABLES, *(files.TEXT if documents else ()))
    for path in found:
        if not columns.is_columnar(path) and not files.plain_name(path).endswith(known):
            if _is_text(path):
                raise UserError(
                    f'{path}: plain text has no records; write each text as a line {{"text": ...}} of a .jsonl'
                )
            more = ".txt, .md (which pdftotext and pandoc make of other files), " if documents else ""
            raise UserError(f"{path}: not a known kind of file; give {more}{_KNOWN}")
    return found
