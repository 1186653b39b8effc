"""Which evaluation item a text holds a piece of: a run of words that both share (Brown et al. 2020, arXiv 2005.14165,
appendix C), the whole item where it is shorter than a run.

An item is looked for by the runs of its prompt, and of its prompt with the response behind it. Where these have fewer
words than a run they are looked for whole, from `shortest` words on; a short prompt that has choices only with its
response, for “which of the following is true” is asked everywhere. Upper case, punctuation and white space do not
count.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ntk_jax.data.records import prompt_text, response_text
from ntk_jax.data.words import bare_words, run_hashes, word_hashes


@dataclass(frozen=True)
class Overlap:
    """What a text shares with an evaluation item. item: its place among the items. share: of the item's runs, those
    that the text has too, in (0, 1]. words: the first run that both have."""

    item: int
    share: float
    words: str


@dataclass(frozen=True)
class EvaluationItems:
    """Evaluation items, as texts are compared with them. ids, files: of each item. runs: {words of a run: (hashes,
    ascending [n] uint64; the first item that has each, [n] int64)}. totals: [items] int64, runs that an item is the
    first to have. short: items that are too short to be looked for."""

    ids: tuple[str, ...]
    files: tuple[str, ...]
    runs: Mapping[int, tuple[np.ndarray, np.ndarray]]
    totals: np.ndarray
    short: int

    def overlap(self, text: str, least: float = 0.0) -> Overlap | None:
        """The item of which the text has the largest share of runs, the first of equals; None where it has none, or a
        smaller share than `least`, such as an instruction that many items begin with."""
        own = bare_words(text)
        hashes = word_hashes(own)
        hits: list[tuple[int, int, int]] = []  # (item, place in the text, words) of every run that is found
        different = np.zeros(0, np.int64)
        for words, (runs, items) in self.runs.items():
            found = run_hashes(hashes, words)
            at = np.minimum(np.searchsorted(runs, found), len(runs) - 1)
            places = np.flatnonzero(runs[at] == found)
            different = np.concatenate([different, items[np.unique(at[places])]])
            hits += [(int(items[at[place]]), int(place), words) for place in places]
        if not hits:
            return None
        items, counts = np.unique(different, return_counts=True)
        shares = counts / self.totals[items]
        if shares.max() < least:
            return None
        best = int(items[np.argmax(shares)])
        _, place, words = min((hit for hit in hits if hit[0] == best), key=lambda hit: hit[1:])
        return Overlap(best, float(shares.max()), " ".join(own[place : place + words]))


def evaluation_items(
    records: Iterable[tuple[str, Mapping[str, Any]]], words: int = 13, shortest: int = 5
) -> EvaluationItems:
    """Items to compare texts with. Memory: 16 bytes a run, so about 16 a word.

    records: (file, record) of each item. words: of a run. shortest: items with fewer words are not looked for.
    """
    ids: list[str] = []
    files: list[str] = []
    found: dict[int, list[np.ndarray]] = defaultdict(list)
    owners: dict[int, list[np.ndarray]] = defaultdict(list)
    short = 0
    for number, (file, record) in enumerate(records):
        ids.append(str(record.get("id", number)))
        files.append(file)
        runs = _runs(record, words, shortest)
        short += not runs
        for length, hashes in runs:
            found[length].append(hashes)
            owners[length].append(np.full(len(hashes), number, np.int64))
    made = {}
    totals = np.zeros(len(ids), np.int64)
    for length in sorted(found, reverse=True):
        hashes, first = np.unique(np.concatenate(found[length]), return_index=True)
        made[length] = hashes, np.concatenate(owners[length])[first]
        totals += np.bincount(made[length][1], minlength=len(ids))
    return EvaluationItems(tuple(ids), tuple(files), made, totals, short)


def _runs(record: Mapping[str, Any], words: int, shortest: int) -> list[tuple[int, np.ndarray]]:
    """[(words, hashes)] of the runs by which an item is looked for."""
    prompt = word_hashes(bare_words(prompt_text(record)))
    whole = np.concatenate([prompt, word_hashes(bare_words(response_text(record)))])
    alone = len(prompt) >= (words if "choices" in record else shortest)
    runs = []
    for hashes in ([prompt] if alone else []) + ([whole] if len(whole) >= shortest else []):
        length = min(words, len(hashes))
        runs.append((length, run_hashes(hashes, length)))
    return runs
