"""A selection in other formats: the same records as the columns of a Parquet file or of a Hugging Face dataset.

A column is a key; a record that lacks it has null there, which every reader of this package takes for absent.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ntk_jax.errors import UserError
from ntk_jax.storage.atomic import new_folder, refuse_existing, replacing

SUFFIXES = (".jsonl", ".parquet")


def check_format(path: str | Path) -> str:
    """The suffix of a file that is to be written, or "" for a folder. Raises UserError: it is another suffix, or is
    there already."""
    suffix = Path(path).suffix.lower()
    if suffix and suffix not in SUFFIXES:
        raise UserError(
            f"{path}: a selection is written as {' or '.join(SUFFIXES)}, or to a folder (no suffix) as a Hugging Face "
            f"dataset, not as {suffix}"
        )
    if suffix and Path(path).is_dir():
        raise UserError(f"{path} is a folder; give another path, or delete it")
    refuse_existing(path)
    return suffix


def write_parquet(path: str | Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes records as a Parquet file. Raises UserError: a key whose values make no column, or as `replacing`."""
    table, parquet = _table(records, path), importlib.import_module("pyarrow.parquet")
    with replacing(path) as file:
        parquet.write_table(table, file)


def write_dataset(folder: str | Path, records: Sequence[Mapping[str, Any]]) -> None:
    """Writes records as a folder that `datasets.load_from_disk` reads. Raises UserError: the library is missing, a key
    whose values make no column, or as `new_folder`."""
    try:
        datasets = importlib.import_module("datasets")
    except ImportError:
        raise UserError(f"{folder}: a Hugging Face dataset needs the package datasets; pip install datasets") from None
    found = datasets.Dataset(datasets.table.InMemoryTable(_table(records, folder)))
    shown = datasets.is_progress_bar_enabled()
    datasets.disable_progress_bars()
    try:
        with new_folder(folder) as place:
            found.save_to_disk(str(place))
    finally:
        if shown:
            datasets.enable_progress_bars()


def _table(records: Sequence[Mapping[str, Any]], where: str | Path) -> Any:
    """A pyarrow table, a column for each key in the order in which keys first come."""
    try:
        arrow = importlib.import_module("pyarrow")
    except ImportError:
        raise UserError(f"{where}: columns need the package pyarrow; pip install pyarrow, or write .jsonl") from None
    columns: dict[str, Any] = {}
    for key in dict.fromkeys(key for record in records for key in record):
        try:
            columns[key] = arrow.array([record.get(key) for record in records])
        except (arrow.ArrowException, OverflowError) as error:
            reason = str(error).strip().split("\n")[0]
            raise UserError(
                f"{where}: the values of {key!r} are of several types, which one column cannot hold ({reason}); "
                "write .jsonl, which keeps them"
            ) from None
        if _holds_no_field(arrow, columns[key].type):
            raise UserError(
                f"{where}: {key!r} holds empty objects, which no column can; write .jsonl, which keeps them"
            )
    return arrow.table(columns)


def _holds_no_field(arrow: Any, kind: Any) -> bool:
    """Whether a type has an object without keys in it, which Parquet cannot write."""
    if arrow.types.is_struct(kind):
        return kind.num_fields == 0 or any(_holds_no_field(arrow, field.type) for field in kind)
    return bool(arrow.types.is_list(kind) and _holds_no_field(arrow, kind.value_type))
