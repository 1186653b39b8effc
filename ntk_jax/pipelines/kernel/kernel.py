"""The exact kernel between two files of examples, as a matrix in a file: `ntk-jax kernel`, a stage that needs no other.

Rows are computed and committed in blocks. Where both sides are the same examples only the pairs with i ≤ j are, and the
others are their mirror images.
"""

from __future__ import annotations

import contextlib
import functools
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.sources import source_hashes
from ntk_jax.engine.blocks import Progress, fill_blocks
from ntk_jax.engine.clock import Clock
from ntk_jax.engine.stage import Job
from ntk_jax.errors import UserError
from ntk_jax.kernels.backbone import span_mean, stacked
from ntk_jax.kernels.exact import tangent_kernel
from ntk_jax.kernels.parameters import refuse_fresh_lora, split_parameters
from ntk_jax.pipelines.common.checks import check_model
from ntk_jax.pipelines.common.examples import Encoder, read_examples
from ntk_jax.pipelines.common.inputs import model_hashes
from ntk_jax.pipelines.common.model import RunModel, run_model
from ntk_jax.pipelines.common.reading import check_patterns, reading_of, say_formats
from ntk_jax.pipelines.common.sections import MeshSection
from ntk_jax.pipelines.kernel.config import KernelConfig
from ntk_jax.storage.arrays import create, read
from ntk_jax.storage.atomic import replacing, write_json

MOST_BYTES = 2**32  # of a kernel: it is held in memory to be written
COLUMNS = 16  # at least: with ever fewer of them, every one of the last blocks would be compiled anew
SPECTRUM_SIDE = 4096  # a larger matrix has no eigenvalues in its summary: they cost the cube of the side


@dataclass
class KernelRun:
    """What the stage is handed. What is dear is made once, when it is first asked for."""

    config: KernelConfig
    job: Job
    model: RunModel

    @functools.cached_property
    def sides(self) -> tuple[list[TokenRow], list[TokenRow], dict[str, Any]]:
        """(examples of a, of b, the account of both). Raises UserError: a side without usable examples."""
        section = self.config.kernel
        rows_a, account = self._examples("a", section.a)
        if not section.b:
            return rows_a, rows_a, {"a": account}
        rows_b, other = self._examples("b", section.b)
        return rows_a, rows_b, {"a": account, "b": other}

    def _examples(self, side: str, files: tuple[str, ...]) -> tuple[list[TokenRow], dict[str, Any]]:
        """(usable examples of one side, the account of all)."""
        encoder, config = Encoder(self.model, self.config.model), self.config
        reading = reading_of(config, "kernel")
        say_formats(self.job.progress, f"kernel.{side}", files, reading)
        found = read_examples(
            encoder, f"kernel.{side}", files, config.kernel.limit, config.seed, span=config.score.span, reading=reading
        )
        return found.rows, found.statistics.to_dict()


def open_run(config: KernelConfig, job: Job) -> KernelRun:
    """The run of a config. The exact kernel does not spread its pairs over devices: where the weights need not be
    split, one device does."""
    one = config.mesh.fsdp == config.mesh.tensor == 1
    return KernelRun(config, job, run_model(config, mesh=MeshSection(data=1) if one else None))


def input_hashes(config: KernelConfig) -> dict[str, Any]:
    """How the SHA-256 of each kind of input is found."""
    section = config.kernel
    return {
        "model": lambda: model_hashes(config.model),
        "a": lambda: source_hashes(section.a, reading_of(config, "kernel")),
        "b": lambda: source_hashes(section.b, reading_of(config, "kernel")),
    }


def check(config: KernelConfig) -> None:
    """Raises UserError for settings of the kernel that cannot work, alone or together."""
    section = config.kernel
    check_model(config.model)
    if not section.a:
        raise UserError("kernel.a is not set; give the files of the examples whose kernel is asked for")
    check_patterns(reading_of(config, "kernel"), section.a, section.b)
    if section.kind == "full" and section.method == "products":
        raise UserError(
            "kernel.kind = full needs kernel.method = jacobian; products give the traces: set one of the two"
        )


def check_inputs(run: KernelRun, closing: bool) -> None:
    """Raises UserError for all that can be known before the first block: a fresh adapter, a side without usable
    examples, a result that is too large, more probes than there are."""
    section, model, parameters = run.config.kernel, run.model.base, _differentiated(run.config)
    split_parameters(model, parameters)
    if not run.config.score.allow_fresh_lora:
        refuse_fresh_lora(model, parameters)
    outputs = model.config.vocab_size
    if section.kind == "probe" and section.orthogonal and section.probes > outputs:
        raise UserError(f"kernel.probes = {section.probes}: there are only {outputs} orthogonal ones; lower it")
    rows_a, rows_b, _ = run.sides
    _refuse_too_large(section.kind, len(rows_a), len(rows_b), outputs)


def kernel(run: KernelRun, folder: Path) -> dict[str, Any]:
    """Θ of kernel.a with kernel.b, or with itself. Writes kernel.npz (kernel [Na, Nb], or [Na, Nb, V, V] for `full`,
    fp32; ids_a, ids_b, kind), data.json and summary.json, and on the way kernel.zarr."""
    clock, section, model = Clock(run.job.folder, "kernel"), run.config.kernel, run.model.base
    rows_a, rows_b, data = run.sides
    same, parameters = not section.b, _differentiated(run.config)
    inner = (model.config.vocab_size,) * 2 if section.kind == "full" else ()
    write_json(folder / "data.json", data)
    store = create(
        folder / "kernel.zarr", {"kernel": ((len(rows_b), *inner), np.float32)}, len(rows_a), section.block_examples
    )
    function, theta, frozen, outputs = span_mean(model, parameters)
    # Padded once for all blocks, so that all share their shapes.
    a, b = stacked(rows_a), stacked(rows_b)

    def first(block: int) -> int:
        """The first column of a block that is computed."""
        return max(0, min(store.block_range(block)[0], len(rows_b) - COLUMNS)) if same else 0

    def pairs(block: int) -> int:
        start, stop = store.block_range(block)
        return (stop - start) * (len(rows_b) - first(block))

    def compute(block: int, rows: tuple[int, int], progress: Progress) -> dict[str, np.ndarray]:
        start, stop = rows
        values = np.zeros((stop - start, len(rows_b), *inner), np.float32)
        with _naming(rows_a[start:stop], rows_b[first(block) :]):
            values[:, first(block) :] = tangent_kernel(
                function,
                theta,
                frozen,
                _part(a, start, stop),
                _part(b, first(block), len(rows_b)),
                kind=section.kind,
                outputs=outputs,
                method=section.method,
                probes=section.probes,
                orthogonal=section.orthogonal,
                seed=run.config.seed,
                progress=lambda done, total: progress(pairs(block) * done // total, pairs(block)),
            )
        return {"kernel": values}

    fill_blocks(
        store,
        lambda blocks: ((block, store.block_range(block)) for block in sorted(blocks)),
        compute,
        progress=clock.ticking(run.job.progress("kernel", None, "pairs")),
        size=pairs,
    )
    matrix = read(store, "kernel")
    if same:
        _mirror(matrix)
    ids = {"ids_a": _names(rows_a), "ids_b": _names(rows_b)}
    _save_npz(folder / "kernel.npz", {"kernel": matrix, **ids, "kind": np.array(section.kind)})
    low, high = _extreme_eigenvalues(matrix) if same else (None, None)
    summary = {
        "kind": section.kind,
        "method": section.method,
        "parameters": parameters,
        "parameter_count": sum(leaf.size for leaf in jax.tree.leaves(theta)),
        "span": run.config.score.span,
        "shape": list(matrix.shape),
        "a_is_b": same,
        "left_out": {side: found["dropped"] for side, found in data.items()},
        "truncated": {side: found["truncated"] for side, found in data.items()},
        "smallest_eigenvalue": low,
        "largest_eigenvalue": high,
        "seconds": clock.seconds(),
    }
    write_json(folder / "summary.json", summary)
    return {"shape": list(matrix.shape)}


def _differentiated(config: KernelConfig) -> str:
    """Without model.adapter, `all` means the model itself: the fresh adapter that every run carries would add the
    gradients of its B to the kernel."""
    parameters = config.score.parameters
    return "^base/" if parameters == "all" and config.model.adapter is None else parameters


def _refuse_too_large(kind: str, a: int, b: int, outputs: int) -> None:
    size = 4 * a * b * (outputs**2 if kind == "full" else 1)
    if size > MOST_BYTES and kind != "full":
        raise UserError(
            f"kernel.kind = {kind}: {a:,} × {b:,} pairs are {_bytes(size)}, more than {_bytes(MOST_BYTES)}; lower "
            "kernel.limit, or estimate kernels from sketches (`ntk-jax sketch`)"
        )
    if size > MOST_BYTES:
        raise UserError(
            f"kernel.kind = full: {a} × {b} pairs of {outputs:,} × {outputs:,} outputs are {_bytes(size)}, more than "
            f"{_bytes(MOST_BYTES)}; take trace or centered_trace, or lower kernel.limit"
        )


def _bytes(size: int) -> str:
    return f"{size / 2**30:,.1f} GiB"


def _part(examples: dict[str, Any], start: int, stop: int) -> dict[str, Any]:
    return {name: leaf[start:stop] for name, leaf in examples.items()}


@contextlib.contextmanager
def _naming(rows_a: list[TokenRow], rows_b: list[TokenRow]) -> Iterator[None]:
    """The kernel counts the examples of a block and does not know their names: says from which ones it counts."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{error} (counted from {rows_a[0].id} in a and {rows_b[0].id} in b)") from None


def _mirror(matrix: np.ndarray) -> None:
    """Θ(x', x) = Θ(x, x')ᵀ, in place from the pairs i ≤ j; a pair of an example with itself becomes symmetric too."""
    for i in range(len(matrix)):
        mirrored = matrix[i, i:]
        if matrix.ndim == 4:
            mirrored = np.swapaxes(mirrored, 1, 2)
            matrix[i, i] = (matrix[i, i] + mirrored[0]) / 2
        matrix[i:, i] = mirrored


def _names(rows: list[TokenRow]) -> np.ndarray:
    return np.array([row.id for row in rows])


def _save_npz(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """What `np.load` reads; the same bytes for the same arrays, because no entry has a time. Straight to the disk."""
    with replacing(path) as file, zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
        for name, array in arrays.items():
            entry = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            with archive.open(entry, "w", force_zip64=True) as member:
                np.lib.format.write_array(member, np.asanyarray(array), allow_pickle=False)


def _extreme_eigenvalues(matrix: np.ndarray) -> tuple[float | None, float | None]:
    """(smallest, largest) of the symmetric matrix, [N V, N V] for `full`; None where it is too large to say."""
    side = len(matrix) * (matrix.shape[2] if matrix.ndim == 4 else 1)
    if side > SPECTRUM_SIDE:
        return None, None
    square = matrix.swapaxes(1, 2).reshape(side, side) if matrix.ndim == 4 else matrix
    values = np.linalg.eigvalsh(square.astype(np.float64))
    return float(values[0]), float(values[-1])
