"""Sources that are not lines: Parquet and Arrow files, tfds and Hugging Face data sets, read in small batches of rows.

Each library is imported when a source asks for it, so that nobody needs one that he does not use.
"""

from __future__ import annotations

import base64
import importlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.storage.hashing import hash_tree

Remote = Literal["tfds", "hf"]

_BATCH = 1024  # rows turned into Python objects at a time


def is_columnar(path: Path) -> bool:
    """Whether the file is Parquet or Arrow, by its name."""
    return path.suffix.lower() in (".parquet", ".arrow")


def read_file(path: Path) -> Iterator[dict[str, Any]]:
    """Streams the rows of a Parquet or Arrow file as dicts. Raises UserError: unreadable or damaged."""
    for batch in _batches(path):
        try:
            # Offsets of a damaged file may point anywhere, and pyarrow follows them unless it is asked to look first.
            batch.validate(full=True)
            rows = batch.to_pylist()
        except Exception as error:  # any of a dozen kinds: a time zone, a date or a type that there is not
            raise _unreadable(path, error) from None
        for row in rows:
            yield plain(row)


def count_file(path: Path) -> int:
    """The number of rows: from the footer of a Parquet file, from the batch headers of an Arrow file."""
    if path.suffix.lower() != ".parquet":
        return sum(batch.num_rows for batch in _batches(path))
    parquet, damaged = _library("pyarrow.parquet", path), _library("pyarrow", path).ArrowException
    try:
        return parquet.read_metadata(path).num_rows
    except (OSError, ValueError, damaged) as error:
        raise _unreadable(path, error) from None


def remote_kind(item: str | Path) -> Remote | None:
    """`tfds` or `hf` for names that begin so."""
    for kind in ("tfds", "hf"):
        if str(item).startswith(kind + ":"):
            return kind  # type: ignore[return-value]
    return None


def remote_stem(item: str | Path) -> str:
    """The data set's own name, for ids and sources: `name` for `hf:org/name/train` and `tfds:name/config/train`."""
    kind, _, rest = str(item).partition(":")
    parts = rest.rstrip("/").split("/")
    if not (kind == "hf" and _saved_whole(rest)):
        parts = parts[:-1]
    names = [part for part in parts if part and not re.fullmatch(r"\d+\.\d+\.\d+", part)]
    in_catalogue = kind == "tfds" and not Path("/".join(parts)).expanduser().is_dir()
    return (names[0] if in_catalogue else names[-1]).split(":")[0] if names else "data"


def read_remote(kind: Remote, item: str | Path) -> Iterator[dict[str, Any]]:
    """Streams a tfds or Hugging Face data set. Raises UserError: the library, the data set or the split is missing."""
    rows = _open_tfds(str(item)) if kind == "tfds" else _open_hf(str(item))
    if kind == "hf":
        try:
            rows.data.validate(full=True)  # as in `read_file`: its Arrow files may be damaged
        except (ValueError, OSError, _library("pyarrow", item).ArrowException) as error:
            raise UserError(f"{item}: its files are damaged ({_first_line(error)}); write the data set anew") from None
    for row in rows:
        yield plain(row)


def count_remote(kind: Remote, item: str | Path) -> int:
    """The number of rows of a tfds or Hugging Face data set. Raises UserError as `read_remote`."""
    return len(_open_tfds(str(item)) if kind == "tfds" else _open_hf(str(item)))


def fingerprint_remote(kind: Remote, item: str | Path) -> str:
    """SHA-256 of every row in order. Names and versions would be quicker, but a local data set may change under both.

    Raises UserError as `read_remote`."""
    return hash_tree([hash_tree(row) for row in read_remote(kind, item)])


def plain(value: Any) -> Any:
    """Columnar values as JSON has them: NumPy scalars and arrays as numbers and lists, bytes as UTF-8 text (or as
    Base64 where they are no text), dates and decimals as text."""
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, (bytes, bytearray)):
        try:
            return bytes(value).decode("utf8")
        except UnicodeDecodeError:
            return base64.b64encode(value).decode("ascii")
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    return str(value)


def _batches(path: Path) -> Iterator[Any]:
    """Record batches of a file; Arrow files come in two forms, with and without a footer."""
    damaged = _library("pyarrow", path).ArrowException
    try:
        if path.suffix.lower() == ".parquet":
            with _library("pyarrow.parquet", path).ParquetFile(path) as file:
                yield from file.iter_batches(batch_size=_BATCH)
            return
        arrow = _library("pyarrow", path)
        with arrow.memory_map(str(path)) as source:
            try:
                file = arrow.ipc.open_file(source)
            except arrow.ArrowInvalid:
                source.seek(0)
                yield from arrow.ipc.open_stream(source)
                return
            for number in range(file.num_record_batches):
                yield file.get_batch(number)
    except UserError:  # a ValueError too, but it says already what is wrong
        raise
    except (OSError, ValueError, OverflowError, damaged) as error:
        raise _unreadable(path, error) from None


def _open_tfds(item: str) -> Any:
    name, split = _name_and_split(item)
    tfds = _library("tensorflow_datasets", item)
    try:
        if Path(name).expanduser().is_dir():
            return tfds.builder_from_directory(str(Path(name).expanduser())).as_data_source(split=split)
        return tfds.data_source(name, split=split)
    except Exception as error:  # any of a dozen kinds: an unknown name, no network, a format without random access
        raise UserError(f"{item}: tfds cannot open it ({_first_line(error)}); correct the name or prepare it") from None


def _open_hf(item: str) -> Any:
    datasets = _library("datasets", item)
    whole = item.removeprefix("hf:")
    try:
        if _saved_whole(whole):
            return datasets.load_from_disk(str(Path(whole).expanduser()))
        name, split = _name_and_split(item)
        folder = Path(name).expanduser()
        if (folder / "dataset_dict.json").exists():
            splits = datasets.load_from_disk(str(folder))
            if split not in splits:
                raise UserError(f"{item}: there is no split {split}; there are: {', '.join(sorted(splits))}")
            return splits[split]
        return datasets.load_dataset(name, split=split)
    except UserError:
        raise
    except Exception as error:  # as above: the library raises what its many back ends raise
        raise UserError(
            f"{item}: datasets cannot open it ({_first_line(error)}); correct the name and split, or download it first"
        ) from None


def _saved_whole(name: str) -> bool:
    """Whether this is the folder of a data set that was saved without splits."""
    return (Path(name).expanduser() / "state.json").exists()


def _name_and_split(item: str) -> tuple[str, str]:
    kind, _, rest = item.partition(":")
    name, _, split = rest.rpartition("/")
    if not name or not split:
        raise UserError(f"{item}: the split is missing; write {kind}:NAME/SPLIT, for example {kind}:{rest}/train")
    return name, split


def _library(name: str, item: str | Path) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError:
        package = {"tensorflow_datasets": "tensorflow-datasets array-record"}.get(name, name.split(".")[0])
        raise UserError(f"{item} needs the package {package}; install it: pip install {package}") from None


def _unreadable(path: Path, error: Exception) -> UserError:
    kind = "Parquet" if path.suffix.lower() == ".parquet" else "Arrow"
    return UserError(f"cannot read {path} as {kind} ({_first_line(error)}); correct its permissions or write it anew")


def _first_line(error: Exception) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]
