"""Embeddings a second of this package against sentence-transformers: same weights, same texts, same cores.

    python scripts/fetch_encoder.py --out models
    python scripts/benchmark_encoder.py --model models/all-MiniLM-L6-v2 --texts 'corpus/*.jsonl.xz'

Texts in hand to vectors in memory, tokenizers included, on both sides. Three sets: chunks of --words words, as a corpus
is cut into; the same cut to lengths of all kinds (log-normal, median --words / 6); short texts of 16 words. Without
--texts the words are drawn from the tokenizer's own. Texts are read to the encoder's limit, as sentence-transformers
does (combine = first).
"""

from __future__ import annotations

import argparse
import glob
import importlib.util
import os
import statistics
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import measurement as ms
import numpy as np

from ntk_jax.data.files import read_rows
from ntk_jax.errors import UserError
from ntk_jax.models.embedder import Embedder, load_embedder

SHORT_WORDS = 16


def main() -> None:
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").split("\n")[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--model", required=True, help="folder of the encoder")
    parser.add_argument("--texts", help="files of records with texts (a pattern)")
    parser.add_argument("--words", type=int, default=180, help="words of a chunk")
    parser.add_argument("--chunks", type=int, default=512)
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="of this package")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0, help="of the choice of chunks")
    parser.add_argument("--out", type=Path, help="file for the JSON")
    options = parser.parse_args()
    about = ms.environment(("sentence-transformers", "torch", "transformers"))
    ms.print_environment(about)
    embedder = load_embedder(options.model, dtype=options.dtype)
    peer = load_peer(options.model)
    if peer is None:
        print("sentence-transformers: not installed, so there are no ratios")
    figures: dict[str, Any] = {"benchmark": "encoder", **about, "model": Path(options.model).name}
    figures |= {name: getattr(options, name) for name in ("words", "chunks", "dtype", "repeats")} | {"sets": {}}
    table = []
    for name, texts in sets(chunks(options, embedder), options).items():
        found = compared(embedder, peer, texts, options.repeats)
        figures["sets"][name] = found
        table.append({"texts": name, **found})
    ms.print_table(f"{figures['model']}, {options.dtype}", table)
    ms.finish(figures, options.out)


def compared(embedder: Embedder, peer: Any, texts: Sequence[str], repeats: int) -> dict[str, Any]:
    """Speeds in turns, and the largest difference of a number between the two sides' vectors."""
    kept: dict[str, np.ndarray] = {}
    runs: dict[str, Callable[[], Any]] = {
        "ours": lambda: kept.update(ours=embedder.embed(texts, combine="first")),
    }
    if peer is not None:
        runs["peer"] = lambda: kept.update(peer=peer.encode(list(texts)))
    times, _ = ms.in_turns(runs, repeats, warm_up=1)
    windows = embedder.tokens.windows(texts, first_only=True)
    return {
        "count": len(texts),
        "mean tokens": statistics.fmean(len(own[0]) for own in windows),
        "ours/s": len(texts) / statistics.median(times["ours"]),
        "sentence-transformers/s": len(texts) / statistics.median(times["peer"]) if peer is not None else None,
        "ratio": ms.ratio(times, "peer", "ours") if peer is not None else None,
        "largest difference": float(np.abs(kept["ours"] - kept["peer"]).max()) if peer is not None else None,
    }


def load_peer(model: str) -> Any:
    """The same folder by sentence-transformers, on all cores; None where it is not installed."""
    if importlib.util.find_spec("sentence_transformers") is None:
        return None
    import torch
    from sentence_transformers import SentenceTransformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return SentenceTransformer(model, device="cuda" if torch.cuda.is_available() else "cpu")


def chunks(options: argparse.Namespace, embedder: Embedder) -> list[str]:
    """Chunks of `words` words: of files, as many of each, or of random words."""
    random = np.random.default_rng(options.seed)
    if options.texts is None:
        known = [word for word in embedder.tokens.tokenizer.get_vocab() if word.isalpha()]
        return [" ".join(random.choice(known, options.words)) for _ in range(options.chunks)]
    files = sorted(glob.glob(options.texts))
    if not files:
        raise UserError(f"--texts {options.texts}: no such file")
    found: list[str] = []
    for file in files:
        of_file = cut(file, options.words)
        wanted = -(-options.chunks // len(files))
        some = [chunk for chunk, _ in zip(of_file, range(20 * wanted), strict=False)]
        found += [some[i] for i in random.permutation(len(some))[:wanted]]
    return [found[i] for i in random.permutation(len(found))[: options.chunks]]


def cut(file: str, words: int) -> Iterator[str]:
    """The chunks of a file of records, in order; of one record ten at most, so that many records are seen."""
    for _, _, parse in read_rows(Path(file)):
        found = str(parse().get("text") or "").split()
        for start in range(0, min(len(found), 10 * words), words):
            yield " ".join(found[start : start + words])


def sets(found: Sequence[str], options: argparse.Namespace) -> dict[str, list[str]]:
    """The three sets of texts; those of short texts have more of them."""
    lengths = ms.lognormal_lengths(2 * len(found), options.words, options.seed)
    lists = [text.split() for text in found]
    return {
        f"{options.words} words": list(found),
        "mixed lengths": [" ".join(lists[i % len(lists)][:n]) for i, n in enumerate(lengths)],
        f"{SHORT_WORDS} words": [
            " ".join(words[start : start + SHORT_WORDS]) for words in lists for start in range(0, 64, SHORT_WORDS)
        ],
    }


if __name__ == "__main__":
    ms.command_line(main)
