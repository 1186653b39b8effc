"""How alike two kernels, or two rankings, are: plain numbers between arrays."""

from __future__ import annotations

import numpy as np
from scipy.stats import rankdata

TINY = float(np.finfo(np.float64).tiny)
ROUNDING = 1e-12  # of squared correlations


def frobenius_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """cos_F(A, B) = ⟨A, B⟩ / (‖A‖ ‖B‖): 1 for kernels that differ by a factor only (the statistic of arXiv 2511.07380).

    A kernel whose entries all have one sign has a large part along the all-ones matrix, and so has every other such
    kernel: values near 1 then say little. `centered_alignment` takes that part out.
    """
    x, y = np.asarray(a, np.float64).ravel(), np.asarray(b, np.float64).ravel()
    return float(x @ y) / max(float(np.sqrt((x @ x) * (y @ y))), TINY)


def centered_alignment(a: np.ndarray, b: np.ndarray) -> float:
    """cos_F of the two [N, N] kernels after centring their features: HAH with H = I − 11ᵀ/N (Cortes et al., arXiv
    1203.0550)."""
    return frobenius_cosine(_double_centered(a), _double_centered(b))


def relative_error(estimate: np.ndarray, exact: np.ndarray, *, scaled: bool = False) -> float:
    """‖Â − A‖_F / ‖A‖_F; `scaled`: after Â was multiplied by the one factor that makes it smallest, √(1 − cos²)."""
    if scaled:
        return float(np.sqrt(max(0.0, 1.0 - frobenius_cosine(estimate, exact) ** 2)))
    exact = np.asarray(exact, np.float64)
    return float(np.linalg.norm(estimate - exact)) / max(float(np.linalg.norm(exact)), TINY)


def spectrum(gram: np.ndarray) -> np.ndarray:
    """[N] eigenvalues of a kernel of a set with itself, largest first, negative rounding set to 0."""
    values = np.linalg.eigvalsh((np.asarray(gram, np.float64) + np.asarray(gram, np.float64).T) / 2)
    return np.maximum(values[::-1], 0.0)


def effective_rank(gram: np.ndarray) -> float:
    """exp of the entropy of the normalised spectrum: between 1 and N (Roy & Vetterli, EUSIPCO 2007)."""
    values = spectrum(gram)
    share = values[values > 0] / values.sum()
    return float(np.exp(-(share * np.log(share)).sum()))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Rank correlation of two lists of numbers, ties at their mean rank; NaN where one of them is constant."""
    x, y = (rankdata(np.asarray(values).ravel()) for values in (a, b))
    x, y = x - x.mean(), y - y.mean()
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else float("nan")


def partial_spearman(a: np.ndarray, b: np.ndarray, given: np.ndarray) -> float:
    """Rank correlation of what is left of two lists of numbers after a line in the ranks of a third, such as lengths;
    NaN where nothing is left of one of them. A constant third takes nothing away."""
    ab, ag, bg = spearman(a, b), spearman(a, given), spearman(b, given)
    if np.all(given == np.ravel(given)[:1]):
        return ab
    left = 1 - np.square([ag, bg])
    return float((ab - ag * bg) / np.sqrt(left.prod())) if left.min() > ROUNDING else float("nan")


def top_overlap(a: np.ndarray, b: np.ndarray, count: int) -> float:
    """The share of the `count` best of one list of scores that are among the `count` best of the other (of all, where
    there are fewer)."""
    count = min(count, len(a))
    best = [set(np.argsort(-np.asarray(scores), kind="stable")[:count].tolist()) for scores in (a, b)]
    return len(best[0] & best[1]) / count


def _double_centered(gram: np.ndarray) -> np.ndarray:
    gram = np.asarray(gram, np.float64)
    return gram - gram.mean(axis=0, keepdims=True) - gram.mean(axis=1, keepdims=True) + gram.mean()
