"""The block array store: named arrays with one row an example, written block by block by one or many processes.

Each array is zarr 3 with one chunk a block, so a block is one file, written whole or not at all, with a CRC32C behind
its bytes. A block is done when all its arrays are written, which its chunk of one more array, `done`, then says; a run
that was killed computes at most the blocks without that mark again. Compression gains 8% on gradients and costs
time: none. The folder may be anything tensorstore's key-value stores can name: a local path, or `gs://bucket/path`.
A store may carry facts, in the attributes of its group: what made it, so that a store that travels alone still says so.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import tensorstore as ts

from ntk_jax.errors import UserError
from ntk_jax.parallel import hosts
from ntk_jax.storage import atomic, reading

_META = "zarr.json"  # a zarr group, so that other readers open the store too
_MARK = "done"  # an array of one number a block, so that other readers find nothing they do not know


@dataclass(frozen=True)
class Store:
    """An open store of `rows` rows in blocks of `block_rows`; the last block may be shorter."""

    folder: str
    rows: int
    block_rows: int
    files: Any  # tensorstore.KvStore over the folder
    arrays: dict[str, Any]  # name -> tensorstore.TensorStore [rows, *row_shape]
    marks: Any  # tensorstore.TensorStore [blocks]: 1 where a block is done
    facts: Mapping[str, Any] = field(default_factory=dict)  # what made it; JSON values

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return -(-self.rows // self.block_rows)

    def block_range(self, block: int) -> tuple[int, int]:
        """The rows [start, stop) of a block."""
        if not 0 <= block < self.blocks:
            raise IndexError(f"block {block} of a store with {self.blocks} blocks")
        return block * self.block_rows, min((block + 1) * self.block_rows, self.rows)

    def read(self, name: str, start: int | None = None, stop: int | None = None) -> np.ndarray:
        """Rows [start, stop) of one array, see `read`."""
        return read(self, name, start, stop)


def create(
    folder: str | Path,
    arrays: Mapping[str, tuple[Sequence[int], Any]],
    rows: int,
    block_rows: int,
    facts: Mapping[str, Any] | None = None,
) -> Store:
    """Makes a store, or opens the one that is there if it has the same layout and facts. Of several processes that make
    one in the same moment the first wins, and the others open what it made.

    arrays: name -> (shape of one row, dtype). facts: JSON values that say what made it, kept in its attributes.
    Raises UserError: another layout or other facts lie there (the differing keys are named), or the disk refuses.
    """
    if rows < 1 or block_rows < 1 or not arrays or _MARK in arrays:
        raise ValueError(
            f"a store needs arrays (none of them named {_MARK}), rows and block_rows of at least 1, got {rows} and "
            f"{block_rows}"
        )
    layout = {
        "rows": int(rows),
        "block_rows": int(block_rows),
        "arrays": {name: [list(map(int, shape)), np.dtype(dtype).name] for name, (shape, dtype) in arrays.items()},
    }
    if not hosts.is_primary():
        hosts.barrier(f"store {folder}")
        return open_store(folder)
    if "://" not in str(folder):
        atomic.make_folder(folder)
    files = _files(str(folder))
    attributes = {"layout": layout} | ({"facts": json.loads(json.dumps(atomic.plain(facts)))} if facts else {})
    # The description comes first and is never overwritten: whoever opens the arrays agrees with it already.
    group = {"zarr_format": 3, "node_type": "group", "attributes": attributes}
    _write_key(str(folder), files, _META, json.dumps(group, indent=2).encode(), anew=False)
    found = _attributes(files, str(folder)) or {}
    _refuse_other_facts(str(folder), found.get("facts", {}), attributes.get("facts", {}))
    if found["layout"] != layout:
        difference = _difference(found["layout"], layout)
        raise UserError(f"{folder} holds a store of another layout ({difference}); delete it")
    store = _open(str(folder), files, found, new=True)
    hosts.barrier(f"store {folder}")
    return store


def is_store(folder: str | Path) -> bool:
    """Whether there is a store to open; one whose making was cut short is none yet."""
    files = _files(str(folder))
    attributes = _attributes(files, str(folder))
    arrays = [*attributes["layout"]["arrays"], _MARK] if attributes else []
    return bool(arrays) and all(files.read(f"{name}/{_META}").result().state != "missing" for name in arrays)


def open_store(folder: str | Path, expect: Mapping[str, Any] | None = None) -> Store:
    """Opens a store. Raises UserError: there is none, its description is damaged, or a fact is not as in `expect`."""
    files = _files(str(folder))
    attributes = _attributes(files, str(folder))
    if attributes is None:
        raise UserError(f"{folder} holds no array store; run the stage that writes it first")
    store = _open(str(folder), files, attributes, new=False)
    wanted = json.loads(json.dumps(atomic.plain(expect or {})))
    _refuse_other_facts(store.folder, {key: store.facts[key] for key in wanted if key in store.facts}, wanted)
    return store


def differing_facts(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The facts that are not the same, each with both values: "seed 1, not 0; ..."; empty if all are."""
    old, new = _flat(found), _flat(wanted)
    differing = [key for key in dict.fromkeys([*new, *old]) if old.get(key, "absent") != new.get(key, "absent")]
    return "; ".join(
        f"{key} {_short(old.get(key, 'absent'))}, not {_short(new.get(key, 'absent'))}" for key in differing
    )


def write_block(store: Store, block: int, arrays: Mapping[str, Any]) -> None:
    """Writes one block of every array, then its marker; where several processes compute together, the first one does.

    arrays: name -> [rows of the block, *row_shape]; all names of the store, cast to its dtypes.
    Raises UserError: the disk is full or not writable. ValueError: a name or a shape is wrong.
    """
    if set(arrays) != set(store.arrays):
        raise ValueError(f"a block holds {sorted(store.arrays)}, got {sorted(arrays)}")
    start, stop = store.block_range(block)
    pending = []
    for name, array in store.arrays.items():
        values = np.asarray(arrays[name], array.dtype.numpy_dtype)
        if values.shape != (stop - start, *array.shape[1:]):
            raise ValueError(f"{name}: block {block} has shape {(stop - start, *array.shape[1:])}, got {values.shape}")
        if hosts.is_primary():
            pending.append((name, array[start:stop].write(values)))
    for name, future in pending:
        try:
            future.result()
        except ValueError as error:
            raise _write_error(f"{store.folder}/{name}, block {block}", error) from None
    if hosts.is_primary():
        _write_mark(store, block)


def _write_mark(store: Store, block: int) -> None:
    try:
        store.marks[block : block + 1].write(np.ones(1, np.uint8)).result()
    except ValueError as error:
        raise _write_error(f"{store.folder}/{_MARK}/c/{block}", error) from None


def done_blocks(store: Store) -> set[int]:
    """The blocks that have their marker and all their chunks (so a chunk that was deleted is computed again)."""
    keys = {key.decode() for key in store.files.list().result()}
    marked = (re.fullmatch(rf"{_MARK}/c/(\d{{1,18}})", key) for key in keys)
    blocks = {int(found[1]) for found in marked if found}
    return {
        block
        for block in blocks
        if block < store.blocks and all(_chunk(store, name, block) in keys for name in store.arrays)
    }


def read(store: Store, name: str, start: int | None = None, stop: int | None = None) -> np.ndarray:
    """Rows [start, stop) of one array.

    Raises UserError naming the file and the block: a chunk is damaged (checksum, length) or was never written.
    """
    start, stop, _ = slice(start, stop).indices(store.rows)
    array = store.arrays[name]
    try:
        return array[start : max(start, stop)].read().result()
    except ValueError as error:
        raise _damage(store, name, start, stop) or _read_error(store.folder, error) from None


def _damage(store: Store, name: str, start: int, stop: int) -> UserError | None:
    """Finds the first block of a range that cannot be read."""
    for block in range(start // store.block_rows, -(-stop // store.block_rows)):
        first, last = store.block_range(block)
        try:
            store.arrays[name][first:last].read().result()
        except ValueError as error:
            path = f"{store.folder}/{_chunk(store, name, block)}"
            if "NOT_FOUND" in str(error):
                return UserError(f"{path}: block {block} is not written yet; run the stage to its end")
            return UserError(
                f"{path}: block {block} is damaged ({_reason(error)}); delete this file, and the stage's manifest.json"
                " if there is one, and run again: only this block is computed anew"
            )
    return None


def _open(folder: str, files: Any, attributes: dict[str, Any], new: bool) -> Store:
    layout = attributes["layout"]
    rows, block_rows = layout["rows"], layout["block_rows"]
    arrays = {
        name: _array(folder, name, [rows, *shape], [block_rows, *[max(n, 1) for n in shape]], dtype, new)
        for name, (shape, dtype) in layout["arrays"].items()
    }
    marks = _array(folder, _MARK, [-(-rows // block_rows)], [1], "uint8", new)
    return Store(folder, rows, block_rows, files, arrays, marks, attributes.get("facts", {}))


def _array(folder: str, name: str, shape: list[int], chunk: list[int], dtype: str, new: bool) -> Any:
    spec = {
        "driver": "zarr3",
        "kvstore": _location(folder, f"{name}/"),
        "metadata": {
            "shape": shape,
            "data_type": dtype,
            "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
            "codecs": [{"name": "bytes", "configuration": {"endian": "little"}}, {"name": "crc32c"}],
        },
        # zeros are results like any other: write them, and never let a missing chunk read as zeros
        "store_data_equal_to_fill_value": True,
        "fill_missing_data_reads": False,
    }
    try:
        return ts.open(spec, open=True, create=new).result()
    except ValueError as error:
        refused, damaged = _write_error(f"{folder}/{name}", error), _read_error(f"{folder}/{name}", error)
        raise (refused if isinstance(refused, UserError) and new else damaged) from None


def _location(folder: str, inside: str = "") -> Any:
    if "://" in folder:
        return f"{folder.rstrip('/')}/{inside}"
    return {"driver": "file", "path": f"{Path(folder).absolute().as_posix()}/{inside}"}


def _files(folder: str) -> Any:
    return ts.KvStore.open(_location(folder)).result()


def _attributes(files: Any, folder: str) -> dict[str, Any] | None:
    """What the group says of the store: "layout", and "facts" if it has any; None where there is no store."""
    try:
        found = files.read(_META).result()
        if found.state == "missing":
            return None
    except ValueError as error:
        raise _read_error(f"{folder}/{_META}", error) from None
    remedy = "delete the store and run the stage again"
    attributes = reading.parse_json(found.value, f"{folder}/{_META}", remedy, dict)["attributes"]
    try:
        layout, facts = attributes["layout"], attributes.get("facts", {})
        whole = layout["arrays"] and layout["rows"] and layout["block_rows"]  # another's group may have others
        sizes = [layout["rows"], layout["block_rows"], *(n for shape, _ in layout["arrays"].values() for n in shape)]
        names = [name for name, (_, dtype) in layout["arrays"].items() if np.dtype(dtype).name != dtype]
        names += [name for name in layout["arrays"] if not re.fullmatch(r"\w[\w.-]{0,99}", name)]
        if names or not isinstance(facts, dict) or not all(type(n) is int and 0 <= n < 2**48 for n in sizes):
            raise TypeError("its layout is none")
    except UserError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise _read_error(f"{folder}/{_META}", error) from None
    attributes.setdefault("facts", reading.described({}, f"{folder}/{_META}", remedy))
    return attributes if whole else None


def _refuse_other_facts(folder: str, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    difference = differing_facts(found, wanted)
    if difference:
        raise UserError(f"{folder} was made with {difference}; give another folder, or delete this one")


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested facts as {"a.b": value as JSON}; texts stand without quotes."""
    flat: dict[str, str] = {}
    for key, value in facts.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value if isinstance(value, str) else json.dumps(value)
    return flat


def _short(text: str) -> str:
    """Enough of a hash to tell two apart."""
    return text if len(text) <= 40 else text[:12] + "..."


def _difference(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    return "; ".join(f"{key} is {found.get(key)}, not {wanted[key]}" for key in wanted if found.get(key) != wanted[key])


def _chunk(store: Store, name: str, block: int) -> str:
    return "/".join([name, "c", str(block), *["0"] * (len(store.arrays[name].shape) - 1)])


def _write_key(folder: str, files: Any, key: str, value: bytes, anew: bool = True) -> None:
    """anew: over what is there; otherwise only where there is nothing yet, in one step."""
    try:
        before = None if anew else files.read(key).result()
        if before is None:
            files.write(key, value).result()
        elif before.state == "missing":
            files.write(key, value, if_equal=before.stamp.generation).result()
    except ValueError as error:
        raise _write_error(f"{folder}/{key}", error) from None


def _write_error(place: str, error: ValueError) -> Exception:
    """tensorstore reports the operating system's error number inside its message."""
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return atomic.user_error(OSError(int(code.group(1)), str(error)), place) if code else error


def _read_error(place: str, error: Exception) -> UserError:
    return UserError(f"{place} is damaged ({_reason(error)}); delete the store and run the stage again")


def _reason(error: Exception) -> str:
    """The gist of tensorstore's message: without its status word, the file, and the whole specification behind it."""
    text = str(error).split(" [")[0]
    return re.sub(r'^[A-Z_]+: (Error reading [^"]*"[^"]*": )?', "", text)
