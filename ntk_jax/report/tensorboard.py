"""Scalars as TensorBoard's event files, made from results that are on the disk already.

An event file follows its rows: what it holds and agrees with them stays, what does not (the end of a file that a kill
cut short, steps that a resumed training has not reached again) is cut off, and what is new is appended. So a
TensorBoard that watches the folder sees a training grow, and no step is ever there twice.

The records are those of the package `tensorboard` (its writer of records and its protocol buffers); neither TensorFlow
nor torch is imported.
"""

from __future__ import annotations

import importlib.util
import io
import struct
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.storage.atomic import make_folder, user_error

FILE = "events.out.tfevents.0.ntk_jax"  # TensorBoard reads every file of a folder that is called so
HEADER, FOOTER = 12, 4  # bytes around a record's data: its length and that number's checksum; the data's checksum

Row = tuple[int, Mapping[str, float]]  # (step, {tag: value})


def refuse_missing(key: str) -> None:
    """Raises UserError where the package is not installed. key: the setting that asks for it."""
    if importlib.util.find_spec("tensorboard") is None:
        raise UserError(
            f"{key} needs the package tensorboard; install it with pip install 'ntk_jax[tensorboard]', or leave it out"
        )


def write_scalars(folder: Path, rows: Sequence[Row]) -> None:
    """Brings the event file of a folder to these rows, in their order. Raises UserError: the disk is full or not
    writable."""
    path = make_folder(folder) / FILE
    try:
        whole = path.read_bytes() if path.exists() else b""
        kept, end = 0, 0
        for found, stop in _rows_in(whole):
            if found is not None:  # the first record says the version and has no row
                if kept == len(rows) or found != _as_stored(rows[kept]):
                    break
                kept += 1
            end = stop
        new = b"".join(_record(_event(row)) for row in rows[kept:])
        if not end:
            new = _record(_version()) + new
        if end == len(whole) and not new:
            return
        with path.open("r+b" if path.exists() else "wb") as file:
            file.truncate(end)
            file.seek(end)
            file.write(new)
    except OSError as error:
        raise user_error(error, path) from error


def _rows_in(data: bytes) -> Iterator[tuple[Row | None, int]]:
    """(row, where its record ends) of the whole records at the beginning of an event file; None: a record without."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    start = 0
    while start + HEADER <= len(data):
        length, check = struct.unpack("<QI", data[start : start + HEADER])
        stop = start + HEADER + length + FOOTER
        body = data[start + HEADER : stop - FOOTER]
        if check != masked_crc32c(data[start : start + 8]) or stop > len(data):
            return
        if struct.unpack("<I", data[stop - FOOTER : stop])[0] != masked_crc32c(body):
            return
        event = Event.FromString(body)
        values = {value.tag: value.simple_value for value in event.summary.value}
        yield ((event.step, values) if values else None), stop
        start = stop


def _as_stored(row: Row) -> Row:
    """Values are stored in 32 bits."""
    step, values = row
    return step, {tag: float(np.float32(value)) for tag, value in values.items()}


def _event(row: Row) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    step, values = row
    summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()])
    return _bytes(Event(wall_time=time.time(), step=step, summary=summary))


def _version() -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event

    return _bytes(Event(wall_time=time.time(), file_version="brain.Event:2"))


def _bytes(event: Any) -> bytes:
    found: bytes = event.SerializeToString()
    return found


def _record(data: bytes) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter

    buffer = io.BytesIO()
    RecordWriter(buffer).write(data)
    return buffer.getvalue()
