"""Documents that hold a piece of an evaluation text: a run of words that both share (Brown et al. 2020, appendix C)."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ntk_jax.data.words import bare_words, run_hashes, word_hashes


def evaluation_runs(texts: Iterable[str], words: int = 13) -> tuple[np.ndarray, int]:
    """(the hashes of all runs of so many words of the evaluation texts, ascending [n] uint64; how many of the texts are
    shorter than that, and so are not looked for)."""
    found, short = [np.zeros(0, np.uint64)], 0
    for text in texts:
        runs = run_hashes(word_hashes(bare_words(text)), words)
        short += not len(runs)
        found.append(np.unique(runs))
    return np.unique(np.concatenate(found)), short


def contamination(text: str, runs: np.ndarray, words: int = 13) -> str | None:
    """The first run of words of the text that an evaluation text has too; None where there is none.

    runs: as `evaluation_runs` gives them, for the same number of words."""
    if not len(runs):
        return None
    own = bare_words(text)
    hashes = run_hashes(word_hashes(own), words)
    places = np.minimum(np.searchsorted(runs, hashes), len(runs) - 1)
    shared = np.flatnonzero(runs[places] == hashes)
    return " ".join(own[shared[0] : shared[0] + words]) if len(shared) else None
