"""Files that are whole or absent: written beside their place, flushed to the disk, then renamed onto it."""

from __future__ import annotations

import contextlib
import errno
import io
import json
import math
import os
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from ntk_jax.errors import UserError
from ntk_jax.parallel.hosts import is_primary
from ntk_jax.storage import reading

# What the user can put right, and how. Any other error of the operating system is passed on as it is.
_REMEDIES = {
    errno.ENOSPC: "the disk is full; free some space and run again, what is written is kept",
    errno.EDQUOT: "the disk quota is used up; free some space and run again, what is written is kept",
    errno.EFBIG: "the file is larger than the file system allows; give another folder",
    errno.EROFS: "the file system is read-only; give another folder",
    errno.EACCES: "no permission to write there; give another folder or correct the permissions",
    errno.EPERM: "no permission to write there; give another folder or correct the permissions",
    errno.ENOTDIR: "a part of the path is a file; give another folder",
    errno.EISDIR: "there is a folder of that name; give another folder",
    errno.ENOENT: "the folder does not exist",
    errno.ENAMETOOLONG: "its name is too long; give another folder",
    errno.EBUSY: "it is the folder that you are in, or a disk is mounted there; give another folder",
    errno.ELOOP: "its links lead in a circle; give another folder",
}


def user_error(error: OSError, path: str | Path) -> Exception:
    """The UserError for a failed write to `path`, or `error` itself where no remedy is known."""
    remedy = _REMEDIES.get(error.errno or 0)
    return UserError(f"cannot write {path}: {remedy}") if remedy else error


def make_folder(folder: str | Path) -> Path:
    """Makes a folder with its parents, if it is not there. Raises UserError: it cannot be made."""
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise UserError(f"{folder} is a file, but a folder is needed there; give another folder") from None
    except OSError as error:
        raise user_error(error, folder) from None
    return folder


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[IO[bytes]]:
    """A binary file to write; at the end of the block it takes the place of `path`, at an error it vanishes.

    A crash at any moment leaves the old file or the new one. One writer at a time: the run's locks see to that, and
    they let the temporary file have a fixed name, so that a killed run leaves at most one behind, which the next uses.
    Where several processes compute together, what all but the first one write goes nowhere.
    Raises UserError: the disk is full or not writable.
    """
    if not is_primary():
        yield io.BytesIO()
        return
    path = Path(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        file = open(temporary, "wb")  # noqa: SIM115 (closed below, before the rename)
        try:
            yield file
            file.flush()
            os.fsync(file.fileno())
            file.close()
            os.replace(temporary, path)
        except BaseException:
            with contextlib.suppress(OSError):  # closing flushes again, and a full disk refuses again
                file.close()
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync(path.parent)  # the rename itself must reach the disk
    except OSError as error:
        raise user_error(error, path) from error


def refuse_existing(path: str | Path) -> None:
    """Raises UserError where a file or a folder that is not empty has this path: nothing is overwritten there. And
    where an empty folder cannot be replaced: the current one, or a mounted disk."""
    path = Path(path)
    if path.is_dir() and (path.samefile(".") or path.is_mount()) and not any(path.iterdir()):
        raise user_error(OSError(errno.EBUSY, os.strerror(errno.EBUSY)), path)
    if path.is_symlink() or path.is_file() or (path.is_dir() and any(path.iterdir())):
        raise UserError(f"{path} is there already; give another path, or delete it")


@contextlib.contextmanager
def new_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to fill; at the end of the block it appears as `folder` with all that was written, at an error it
    vanishes. A crash leaves `.<name>.tmp` beside the place, which the next writer of the same folder removes.

    Raises UserError: `folder` exists and is not empty, or cannot be made or written.
    """
    folder = Path(folder)
    refuse_existing(folder)
    temporary = folder.absolute().with_name(f".{folder.absolute().name}.tmp")
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        make_folder(temporary)
        try:
            yield temporary
            for path in (*temporary.rglob("*"), temporary):
                _sync(path)
            os.replace(temporary, folder)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync(folder.absolute().parent)
    except OSError as error:
        raise user_error(error, folder) from error


def write_bytes(path: str | Path, data: bytes) -> None:
    """Writes a file of these bytes. Raises UserError as `replacing`."""
    with replacing(path) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Writes a UTF-8 file of this text. Raises UserError as `replacing`."""
    write_bytes(path, text.encode("utf8"))


def write_lines(path: str | Path, lines: Iterable[str]) -> None:
    """Writes lines as they come, each closed by a newline. Raises UserError as `replacing`."""
    with replacing(path) as file:
        for line in lines:
            file.write(line.encode("utf8") + b"\n")


def write_json(path: str | Path, value: Any) -> None:
    """Writes JSON, indented, keys in their order. NumPy numbers and arrays are welcome; NaN and infinity become null,
    for JSON has neither. Raises UserError as `replacing`."""
    write_text(path, json.dumps(plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def link_file(source: Path, target: Path) -> None:
    """Gives a file a second name, or makes a copy where the file system has no links; nothing where the source is not
    there, or has that name already."""
    if not source.exists() or (target.exists() and target.samefile(source)):
        return
    with contextlib.suppress(FileNotFoundError):
        target.unlink()
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def read_json(path: str | Path, kind: type = object) -> Any:
    """Reads a JSON file of a run directory, as `reading.read_json`. Raises UserError: it is absent, unreadable, not
    JSON, or not of that kind."""
    return reading.read_json(path, f"delete the folder {Path(path).parent} and run again", kind)


def plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value


def _sync(path: Path) -> None:
    """Has the disk keep a file, or the names in a folder."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
