"""The search of all seeds in a corpus' vectors, block by block, against faiss's exact index on the same cores.

    python scripts/benchmark_search.py                                  # 10^6 chunks, 4,200 seeds: minutes, 2 GB
    python scripts/benchmark_search.py --chunks 100000 --repeats 1

Both sides find each seed's nearest chunks; this package also finds each chunk's best seed in every domain, which faiss
does not, and a classifier then reads all chunks. faiss must have all vectors in memory, and its time is of the search
alone, without building the index. Ours reads each block from a file of vectors, as a pipeline does.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import resource
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import measurement as ms
import numpy as np

from ntk_jax.mining.classifier import Head, train_head
from ntk_jax.mining.search import best_of_block, merge_top
from ntk_jax.mining.seed_layout import Seeds, lay_out


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--chunks", type=int, default=10**6)
    parser.add_argument("--width", type=int, default=384)
    parser.add_argument("--seeds", type=int, default=4200)
    parser.add_argument("--domains", type=int, default=21)
    parser.add_argument("--top", type=int, default=100, help="chunks kept for each seed")
    parser.add_argument("--block", type=int, default=8192, help="chunks of a block")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), default="float32", help="of this package's products"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--faiss", choices=("on", "off"), default="on", help="off: this package's memory alone")
    parser.add_argument("--out", type=Path, help="file for the JSON")
    options = parser.parse_args()
    about = ms.environment(("faiss-cpu",))
    ms.print_environment(about)
    seeds, mask = drawn_seeds(options)
    laid = lay_out(seeds, mask)
    with tempfile.TemporaryDirectory() as folder:
        file = write_vectors(Path(folder) / "vectors.npy", options)
        results: dict[str, Any] = {}
        runs = {"this package": lambda: results.update(ours=search(file, laid, options))}
        search(file, laid, options, stop=8 * options.block)  # compiles
        head = train_head(seeds, mask.astype(np.float32), [f"domain {n}" for n in range(options.domains)])
        head.probabilities(np.zeros((options.block, options.width), np.float32))
        peaks = {"before": peak_bytes()}
        runs["classifier"] = lambda: results.update(taken=classify(file, head, options))
        if options.faiss == "on" and importlib.util.find_spec("faiss") is not None:
            index = faiss_index(file)
            runs["faiss"] = lambda: results.update(faiss=index.search(seeds, options.top))
        times, _ = ms.in_turns(runs, options.repeats, warm_up=0)
        peaks["after"] = peak_bytes()
    seconds = {name: sorted(values)[len(values) // 2] for name, values in times.items()}
    rows: list[dict[str, Any]] = [
        {"what": name, "seconds": s, "products/s (G)": products(options) / s / 1e9 if name != "classifier" else None}
        for name, s in seconds.items()
    ]
    ms.print_table(f"{options.chunks:,} × {options.width}, {options.seeds:,} seeds, top {options.top}", rows)
    figures: dict[str, Any] = {"benchmark": "search", **about, "seconds": seconds, "peak_bytes": peaks}
    figures |= {name: getattr(options, name) for name in ("chunks", "width", "seeds", "top", "block", "dtype")}
    figures["time_over_faiss"] = figures["largest_difference"] = None
    if "faiss" in results:
        figures["time_over_faiss"] = ms.ratio(times, "this package", "faiss")
        figures["largest_difference"] = float(np.abs(results["ours"][0] - results["faiss"][0]).max())
        print(f"\ntime over faiss's: {figures['time_over_faiss']:.3f}; largest difference of a score: ", end="")
        print(f"{figures['largest_difference']:.2g}")
    print(
        f"peak memory after 8 blocks {peaks['before'] / 2**20:,.0f} MiB, at the end {peaks['after'] / 2**20:,.0f} MiB"
    )
    ms.finish(figures, options.out)


def products(options: argparse.Namespace) -> float:
    """Multiplications and additions of all scores."""
    return 2.0 * options.chunks * options.seeds * options.width


def drawn_seeds(options: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """([S, D] unit vectors, [S, M] their domains): one seed of eight stands for two domains."""
    random = np.random.default_rng(0)
    seeds = unit(random.standard_normal((options.seeds, options.width), np.float32))
    mask = np.zeros((options.seeds, options.domains), bool)
    numbers = np.arange(options.seeds)
    mask[numbers, numbers % options.domains] = True
    two = numbers[::8]
    mask[two, (two + 1) % options.domains] = True
    return seeds, mask


def write_vectors(file: Path, options: argparse.Namespace) -> Path:
    """Unit vectors of the corpus, written a block at a time."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (options.chunks, options.width)}
    with file.open("wb") as out:  # not mapped: its pages would count as this process's memory
        np.lib.format.write_array_header_1_0(out, header)
        for start in range(0, options.chunks, options.block):
            count = min(options.block, options.chunks - start)
            random = np.random.default_rng([1, start])
            unit(random.standard_normal((count, options.width), np.float32)).tofile(out)
    return file


def blocks_of(file: Path, options: argparse.Namespace, total: int) -> Iterator[tuple[int, np.ndarray]]:
    """(first chunk, vectors) of the blocks of the first chunks, read, not mapped."""
    for start in range(0, total, options.block):
        count = min(options.block, total - start)
        with file.open("rb") as stream:
            stream.seek(start * options.width * 4 + os.path.getsize(file) - options.chunks * options.width * 4)
            yield start, np.fromfile(stream, np.float32, count * options.width).reshape(count, options.width)


def classify(file: Path, head: Head, options: argparse.Namespace) -> int:
    """The classifier's probabilities for every chunk, of which only how many reach a threshold is kept."""
    taken = 0
    for _, vectors in blocks_of(file, options, options.chunks):
        taken += int((head.probabilities(vectors) >= head.thresholds).any(axis=1).sum())
    return taken


def search(file: Path, seeds: Seeds, options: argparse.Namespace, stop: int | None = None) -> Any:
    """Each seed's nearest chunks, over all blocks."""
    merged = None
    total = options.chunks if stop is None else min(stop, options.chunks)
    for start, vectors in blocks_of(file, options, total):
        block = best_of_block(
            vectors,
            np.arange(len(vectors)),
            len(vectors),
            seeds,
            top=options.top,
            first=start,
            dtype=options.dtype,
            above=merged and merged[0][:, -1],
        )
        found = (block.top_score, block.top_chunk)
        merged = found if merged is None else merge_top(merged, found)
    return merged


def faiss_index(file: Path) -> Any:
    """faiss's exact index over all vectors, on as many threads as there are cores here."""
    import faiss

    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    vectors = np.load(file, mmap_mode="r")
    index = faiss.IndexFlatIP(vectors.shape[1])
    for start in range(0, len(vectors), 65_536):
        index.add(np.ascontiguousarray(vectors[start : start + 65_536]))
    return index


def unit(x: np.ndarray) -> np.ndarray:
    scaled: np.ndarray = x / np.linalg.norm(x, axis=1, keepdims=True)
    return scaled


def peak_bytes() -> int:
    """The most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    ms.command_line(main)
