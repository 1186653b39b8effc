"""Sketches on disk: an array store that is written block by block, says what made it, and is ranked block by block.

| array         | of a row      | what                                                                              |
|---------------|---------------|-----------------------------------------------------------------------------------|
| `sketch`      | [K]           | the sketch z scaled to norm 1                                                     |
| `sketch_norm` | fp32          | ‖z‖, so z = sketch × sketch_norm                                                  |
| `norm`        | fp32          | ‖g(x)‖ itself, which the per-example gradient has for nothing                     |
| `id`          | [W] uint8     | the example's id in UTF-8, filled up with NUL                                     |
| `ordinal`     | int64         | its place in the pool                                                             |
| `status` ...  |               | what became of it (`data/account.py`); what was dropped has zeros in the rest     |

Rows are stored in float16 by default, half the disk: of unit rows u, v it moves ⟨u, v⟩ by at most 2 · 2⁻¹¹ Σ|u_k v_k| ≤
0.98e-3 (some 5e-6 is typical at K = 8192), where the projection itself moves it by about 1/√K = 11e-3.

Memory while writing: one block of rows, b K elements (a few copies, on their way to the disk), beside what
`kernels/sketch.py` states: with the number of examples only ordinals and account grow, some 20 bytes each. Measured at
K = 8192, P = 155,648, 128 rows a batch and 2,048 a block, for the whole process on the CPU: 1.35 GiB; the warm-up's
process has 0.9.

The file of a block does not depend on whether the writer was killed before: blocks are the same, and so are the batches
within them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ntk_jax.data.account import ACCOUNT, KEPT
from ntk_jax.data.batch import TokenRow
from ntk_jax.data.tokens import Dropped
from ntk_jax.errors import UserError
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.parameters import Tree
from ntk_jax.kernels.projections import Projection
from ntk_jax.kernels.rows import Layout
from ntk_jax.kernels.sketch import sketch_batches
from ntk_jax.models.model import Model
from ntk_jax.selection.sketch import Block
from ntk_jax.storage.arrays import Store, create, open_store, read
from ntk_jax.storage.hashing import hash_tree

MAX_ID = 1024  # bytes; every row has room for the longest id


def sketch_facts(
    model: Model, objective: Objective, projection: Projection, *, span: str, parameters: str, examples: Any
) -> dict[str, Any]:
    """What made a store. model, adapter: hashes of what was computed with, wherever it was loaded from. examples: JSON
    that says which examples; two stores may differ in it and be compared still."""
    kind = objective.kind
    name = kind if isinstance(kind, str) else f"{kind.__module__}.{getattr(kind, '__qualname__', type(kind).__name__)}"
    config = {key: value for key, value in dataclasses.asdict(model.config).items()}
    scales = model.scales
    scale = next(iter(scales.values()), 0.0) if len(set(scales.values())) < 2 else scales
    facts = {
        "model": hash_tree({"config": config, "weights": model.base}),
        "adapter": hash_tree({"scale": scale, "leaves": model.lora}),
        "objective": name,
        "span": span,
        "normalize": objective.normalize,
        "parameters": parameters,
        "projection": projection.kind,
        "dim": projection.dim,
        "seed": projection.seed,
    }
    if projection.kind == "countsketch":
        facts["sparsity"] = projection.sparsity
    if kind == "probe":
        facts |= {"probes": objective.probes, "probe_seed": objective.seed}
    return {**facts, "examples": examples}


def create_sketches(
    folder: str | Path,
    rows: int,
    block_rows: int,
    *,
    dim: int,
    dtype: str,
    longest_id: int,
    facts: Mapping[str, Any],
    account: Mapping[str, Any] = ACCOUNT,
) -> Store:
    """Makes a store of `rows` sketches, or opens the one that is there to go on with it. longest_id: bytes. account:
    the arrays that say what became of an example, {name: (shape of a row, dtype)}.

    Raises UserError: no rows, an id that is too long, or a store made by something else (the differing key is named).
    """
    if not rows:
        raise UserError("there are no examples to sketch; give at least one")
    if longest_id > MAX_ID:
        raise UserError(f"the longest id has {longest_id} bytes, a store of sketches takes {MAX_ID}; shorten the ids")
    arrays = {
        "sketch": ((dim,), np.dtype(dtype)),
        "sketch_norm": ((), np.float32),
        "norm": ((), np.float32),
        "id": ((max(1, longest_id),), np.uint8),
        "ordinal": ((), np.int64),
        **account,
    }
    return create(folder, arrays, rows, min(block_rows, rows), facts)  # a chunk is as long as a block, even if alone


def sketch_block(
    store: Store,
    encoded: Sequence[tuple[str, TokenRow | Dropped]],
    model: Model,
    objective: Objective,
    layout: Layout,
    projection: Projection,
    *,
    parameters: str,
    feature: Callable[[Tree], Tree] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, np.ndarray]:
    """The arrays of a block but for `ordinal` and the account. encoded: (id, token row or why there is none) of its
    examples. feature: as of `sketch_batches`.

    Raises UserError: K larger than P, or a gradient that is not finite (naming the example).
    """
    kept = np.array([place for place, (_, row) in enumerate(encoded) if isinstance(row, TokenRow)], np.int64)
    sketch = np.zeros((len(encoded), projection.dim), store.arrays["sketch"].dtype.numpy_dtype)
    sketch_norm, norm = (np.zeros(len(encoded), np.float32) for _ in range(2))
    rows = [row for _, row in encoded if isinstance(row, TokenRow)]
    batches = sketch_batches(
        model, rows, objective, layout, projection, parameters=parameters, feature=feature, progress=progress
    )
    for places, z, exact in batches if rows else ():
        lengths = np.sqrt(np.square(z, dtype=np.float64).sum(axis=1))
        sketch[kept[places]] = z / np.where(lengths > 0, lengths, 1.0)[:, None].astype(np.float32)
        sketch_norm[kept[places]], norm[kept[places]] = lengths, exact
    ids = _padded([id for id, _ in encoded], store.arrays["id"].shape[1])
    return {"sketch": sketch, "sketch_norm": sketch_norm, "norm": norm, "id": ids}


def open_sketches(folder: str | Path, expect: Mapping[str, Any] | None = None) -> Store:
    """Opens a store of sketches. Raises UserError: there is none, or a fact is not as in `expect` (it is named)."""
    store = open_store(folder, expect)
    if not {"sketch", "sketch_norm", "status"} <= set(store.arrays):
        raise UserError(f"{folder} is a store of {', '.join(store.arrays)}, not of sketches; give another folder")
    return store


def ranked_rows(store: Store, among: np.ndarray | None = None) -> np.ndarray:
    """[rows] bool: the rows that were not dropped and, where `among` is given, are among those."""
    kept = read(store, "status") == KEPT
    return kept if among is None else kept & among


def unit_rows(store: Store, among: np.ndarray | None = None) -> Iterator[Block]:
    """(unit rows, norms) of the `ranked_rows` of each block, block by block."""
    ranked = ranked_rows(store, among)
    for block in range(store.blocks):
        place = store.block_range(block)
        kept = ranked[slice(*place)]
        yield read(store, "sketch", *place)[kept], read(store, "sketch_norm", *place)[kept]


def ids_of(store: Store, start: int | None = None, stop: int | None = None) -> list[str]:
    """The ids of rows [start, stop)."""
    return [bytes(row).rstrip(b"\0").decode("utf8") for row in read(store, "id", start, stop)]


def id_bytes(id: str) -> bytes:
    """UTF-8; half a surrogate pair, which UTF-8 lacks, becomes the escape it was."""
    return id.encode("utf8", "backslashreplace")


def longest_id(ids: Iterable[str]) -> int:
    """Bytes of the longest id, 0 of none."""
    return max((len(id_bytes(id)) for id in ids), default=0)


def _padded(ids: Sequence[str], width: int) -> np.ndarray:
    """[n, W] uint8."""
    return np.frombuffer(b"".join(id_bytes(id).ljust(width, b"\0") for id in ids), np.uint8).reshape(len(ids), width)


def comparable_facts(store: Store) -> dict[str, Any]:
    """What must agree before sketches are compared: all that made the store but its examples."""
    return {key: value for key, value in store.facts.items() if key != "examples"}
