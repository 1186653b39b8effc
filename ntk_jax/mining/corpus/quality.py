"""Which documents are prose worth reading: the rules of MassiveText (Rae et al. 2021, arXiv 2112.11446, appendix A1).

Every threshold can be set. A rule that does not fit a language is switched off by a threshold that nothing passes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ntk_jax.data.words import bare_words, run_hashes, word_hashes, written_words

_ALPHABETIC = re.compile(r"[^\W\d_]")
_BULLET = re.compile(r"^\s*[-*\u2022\u2023\u25cf\u25e6\u2043\u00b7]")
_SYMBOLS = (re.compile("#"), re.compile(r"\.\.\.|\u2026"))
_ELLIPSIS = ("...", "\u2026")


@dataclass(frozen=True)
class Quality:
    """The thresholds; a document that breaks one is dropped, for the first it breaks.

    min_words, max_words: of a document. min_word_length, max_word_length: characters, on average. max_symbols: #, or
    ellipses, for each word. max_bullet_lines, max_ellipsis_lines: shares of the lines that begin with a bullet, or end
    with an ellipsis. min_alphabetic: share of words with a letter. stop_words, min_stop_words: so many different ones
    must be there. max_repeated_lines, max_repeated_paragraphs: shares of those that stood before in the document;
    max_repeated_line_characters, max_repeated_paragraph_characters: the same by characters. max_top_runs: for n from 2
    on, the share of characters in the most frequent run of n words; max_repeated_runs: for n from 5 on, the share in
    any run of n words that occurs more than once.
    """

    min_words: int = 50
    max_words: int = 100_000
    min_word_length: float = 3.0
    max_word_length: float = 10.0
    max_symbols: float = 0.1
    max_bullet_lines: float = 0.9
    max_ellipsis_lines: float = 0.3
    min_alphabetic: float = 0.8
    min_stop_words: int = 2
    stop_words: tuple[str, ...] = ("the", "be", "to", "of", "and", "that", "have", "with")
    max_repeated_lines: float = 0.3
    max_repeated_paragraphs: float = 0.3
    max_repeated_line_characters: float = 0.2
    max_repeated_paragraph_characters: float = 0.2
    max_top_runs: tuple[float, ...] = (0.2, 0.18, 0.16)
    max_repeated_runs: tuple[float, ...] = (0.15, 0.14, 0.13, 0.12, 0.11, 0.1)


def broken_rule(text: str, rules: Quality) -> tuple[str, str] | None:
    """(name of the first rule that the text breaks, by how much); None where it breaks none."""
    words = written_words(text)
    if len(words) < rules.min_words:
        return "too_few_words", f"{len(words)}"
    if len(words) > rules.max_words:
        return "too_many_words", f"{len(words)}"
    return _prose(text, words, rules) or _repetition(text, words, rules)


def _prose(text: str, words: list[str], rules: Quality) -> tuple[str, str] | None:
    lines = [line for line in text.splitlines() if line.strip()]
    length = sum(map(len, words)) / max(len(words), 1)
    if not rules.min_word_length <= length <= rules.max_word_length:
        return "word_length", f"{length:.2f}"
    shares = {
        "symbols": (max(len(kind.findall(text)) for kind in _SYMBOLS) / max(len(words), 1), rules.max_symbols),
        "bullet_lines": (_share(bool(_BULLET.match(line)) for line in lines), rules.max_bullet_lines),
        "ellipsis_lines": (_share(line.rstrip().endswith(_ELLIPSIS) for line in lines), rules.max_ellipsis_lines),
        "not_alphabetic": (1 - _share(map(bool, map(_ALPHABETIC.search, words))), 1 - rules.min_alphabetic),
    }
    for name, (share, most) in shares.items():
        if share > most + 1e-9:
            return name, f"{share:.2f}"
    found = len(set(rules.stop_words) & set(bare_words(text)))
    return ("stop_words", str(found)) if found < rules.min_stop_words else None


def _repetition(text: str, words: list[str], rules: Quality) -> tuple[str, str] | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    paragraphs = [part.strip() for part in re.split(r"\n\s*\n", text) if part.strip()]
    checks = (
        ("repeated_lines", lines, rules.max_repeated_lines, rules.max_repeated_line_characters),
        ("repeated_paragraphs", paragraphs, rules.max_repeated_paragraphs, rules.max_repeated_paragraph_characters),
    )
    for name, parts, most, most_characters in checks:
        share, characters = _repeated(parts)
        if share > most or characters > most_characters:
            return name, f"{share:.2f} of them, {characters:.2f} of the characters"
    hashes, lengths = word_hashes([word.lower() for word in words]), np.array([len(word) for word in words])
    for length, most in enumerate(rules.max_top_runs, 2):
        share = top_run_share(hashes, lengths, length)
        if share > most:
            return f"top_{length}_words", f"{share:.2f}"
    for length, most in enumerate(rules.max_repeated_runs, 5):
        share = repeated_run_share(hashes, lengths, length)
        if share > most:
            return f"repeated_{length}_words", f"{share:.2f}"
    return None


def top_run_share(hashes: np.ndarray, lengths: np.ndarray, length: int) -> float:
    """The share of the characters of all words that the most frequent run of `length` words holds, if it occurs twice;
    of equally frequent ones the longest. hashes, lengths: of the words, [n]."""
    runs = run_hashes(hashes, length)
    if not len(runs):
        return 0.0
    _, first, counts = np.unique(runs, return_index=True, return_counts=True)
    if counts.max() < 2:
        return 0.0
    ends = np.concatenate([[0], np.cumsum(lengths)])
    characters = (ends[first + length] - ends[first])[counts == counts.max()]
    return float(counts.max() * characters.max() / lengths.sum())


def repeated_run_share(hashes: np.ndarray, lengths: np.ndarray, length: int) -> float:
    """The share of the characters of all words that stand in a run of `length` words that occurs more than once; each
    counted once, however many such runs it is in."""
    runs = run_hashes(hashes, length)
    if not len(runs):
        return 0.0
    _, inverse, counts = np.unique(runs, return_inverse=True, return_counts=True)
    starts = np.flatnonzero(counts[inverse] > 1)
    edges = np.zeros(len(hashes) + 1, np.int64)
    np.add.at(edges, starts, 1)
    np.add.at(edges, starts + length, -1)
    return float(lengths[np.cumsum(edges[:-1]) > 0].sum() / lengths.sum())


def _repeated(parts: list[str]) -> tuple[float, float]:
    """(share of the parts that stood before, share of the characters in them)."""
    if not parts:
        return 0.0, 0.0
    found: set[str] = set()
    repeated = [part for part in parts if part in found or found.add(part)]  # type: ignore[func-returns-value]
    return len(repeated) / len(parts), sum(map(len, repeated)) / sum(map(len, parts))


def _share(flags: Iterable[bool]) -> float:
    found = list(flags)
    return sum(found) / max(len(found), 1)
