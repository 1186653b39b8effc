"""Kernel ridge regression with a fixed kernel: does Θ_0 predict what fine-tuning learns? (arXiv 2511.07380, Table 3)

α = (Θ + λ s I)⁻¹ (Y − Ȳ), and the prediction at x' is Σ_i Θ(x', x_i) α_i + Ȳ, with Ȳ the class means: the intercept.
s = n · (mean diagonal of Θ) = tr Θ, so that the ridge λ has no units: scaling the kernel changes nothing.

Everything is NumPy in float64 and knows nothing of files or models: `gram` is any symmetric kernel matrix, for example
`nj.ntk(model, a)`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.linalg

from ntk_jax.errors import UserError

RIDGES = tuple(10.0**power for power in range(-8, 2))


def one_hot(labels: Sequence[int] | np.ndarray, classes: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """(targets [n, c] without their class means, those means [c]: the intercept) of labels 0..c-1.

    Raises UserError: no labels, labels that are not classes, fewer than two of them.
    """
    labels = np.asarray(labels)
    if labels.ndim != 1 or not len(labels):
        raise UserError(f"labels: a list of at least one class is needed, got shape {labels.shape}")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0:
        raise UserError("labels: classes are whole numbers from 0 on; number them")
    present = np.unique(labels)
    if len(present) < 2:
        raise UserError(f"labels: all {len(labels)} examples are of class {present[0]}; give at least two classes")
    count = int(present[-1]) + 1 if classes is None else classes
    if present[-1] >= count:
        raise UserError(f"labels: class {present[-1]} is not one of {count} classes (0 to {count - 1})")
    targets = (labels[:, None] == np.arange(count)).astype(np.float64)
    mean = targets.mean(axis=0)
    return targets - mean, mean


def kernel_ridge(gram: np.ndarray, targets: np.ndarray, ridge: float) -> np.ndarray:
    """α [n, c] = (Θ + λ tr(Θ) I)⁻¹ Y for gram [n, n] and targets [n, c] or [n] (arXiv 2511.07380, Table 3).

    ridge: λ, in units of the trace; 0 interpolates where Θ is positive definite, and is refused where it is singular.
    Raises UserError: an empty or unfitting matrix, NaN or Inf, an asymmetric gram, a ridge that leaves it singular.
    """
    gram, targets, scale = _checked(gram, targets)
    _check_ridge(ridge)
    try:
        factor = scipy.linalg.cho_factor(gram + ridge * scale * np.eye(len(gram)), lower=True)
    except np.linalg.LinAlgError:
        raise UserError(f"gram: not positive definite with ridge = {ridge:g}; raise the ridge") from None
    return scipy.linalg.cho_solve(factor, targets)


def choose_ridge(gram: np.ndarray, targets: np.ndarray, ridges: Sequence[float] = RIDGES) -> tuple[float, np.ndarray]:
    """(the ridge of the smallest error, [r] mean squared leave-one-out errors of all), the larger ridge where two tie.
    A ridge too small to make the matrix positive definite has an infinite error.

    In closed form from one eigendecomposition Θ = UDUᵀ: with G = (Θ + λ s I)⁻¹ = U (D + λ s)⁻¹ Uᵀ, the residual of
    example i under the fit to all others is (G Y)_i / G_ii (Rifkin & Lippert, "Notes on regularized least squares",
    MIT-CSAIL-TR-2007-025; it is Allen's PRESS). s and the targets stay those of the whole set: what is left out is
    the example's row, not its share in the trace and in the class means.

    Raises UserError as `kernel_ridge`; no ridges; no ridge large enough.
    """
    gram, targets, scale = _checked(gram, targets)
    if not len(ridges):
        raise UserError("ridges: there are none to choose from; give at least one")
    if len(gram) < 2:
        raise UserError("gram: leaving one out of 1 example leaves none; give at least two")
    values, vectors = np.linalg.eigh(gram)
    rotated = vectors.T @ targets.reshape(len(gram), -1)
    errors = []
    for ridge in ridges:
        _check_ridge(ridge)
        shifted = values + ridge * scale
        if shifted[0] <= np.finfo(float).eps * shifted[-1]:  # fp32 kernels have eigenvalues a little below 0
            errors.append(np.inf)
            continue
        residual = (vectors / shifted) @ rotated / np.square(vectors).dot(1 / shifted)[:, None]
        errors.append(np.square(residual).mean())
    if np.isinf(errors).all():
        raise UserError(f"gram: not positive definite with ridge = {max(ridges):g}; give a larger one")
    order = sorted(range(len(ridges)), key=lambda i: (errors[i], -ridges[i]))
    return float(ridges[order[0]]), np.array(errors)


def predict(cross: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    """[n', c]: the values of kernel rows cross [n', n] with the training examples. Raises UserError: they do not fit,
    or are not finite."""
    cross, alpha = np.asarray(cross, np.float64), np.asarray(alpha, np.float64)
    if cross.ndim != 2 or not alpha.ndim or cross.shape[1] != len(alpha):
        raise UserError(f"cross: shape {cross.shape} does not fit alpha of shape {alpha.shape}; it is [n', n]")
    _check_finite("cross", cross)
    _check_finite("alpha", alpha)
    return cross @ alpha


def accuracy(values: np.ndarray, labels: Sequence[int] | np.ndarray) -> float:
    """The share of examples whose largest of values [n, c] is that of their class; ties go to the first. Where the
    targets were centred, add their means to the values first. Raises UserError: empty, unfitting or not finite."""
    values, labels = np.asarray(values, np.float64), np.asarray(labels)
    if values.ndim != 2 or labels.shape != values.shape[:1] or not values.size:
        raise UserError(f"values: shape {values.shape} and labels of {labels.shape} do not fit; give [n, c] and [n]")
    _check_finite("values", values)
    return float((values.argmax(axis=1) == labels).mean())


def _checked(gram: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """(gram, targets, trace) in float64."""
    gram, targets = np.asarray(gram, np.float64), np.asarray(targets, np.float64)
    if gram.ndim != 2 or gram.shape[0] != gram.shape[1] or not gram.size:
        raise UserError(f"gram: a square matrix of at least one example is needed, got shape {gram.shape}")
    if targets.ndim not in (1, 2) or len(targets) != len(gram) or not targets.size:
        raise UserError(f"targets: shape {targets.shape} does not fit {len(gram)} examples; give [n, c]")
    _check_finite("gram", gram)
    _check_finite("targets", targets)
    # fp32 kernels are symmetric to rounding; half of what is left is averaged away.
    if np.abs(gram - gram.T).max() > 1e-3 * np.abs(gram).max():
        raise UserError("gram: not symmetric; it must be the kernel of the training examples with themselves")
    scale = float(np.trace(gram))
    if scale <= 0:
        raise UserError(f"gram: its trace is {scale:g}, and that of a kernel is above 0; is the adapter fresh?")
    return (gram + gram.T) / 2, targets, scale


def _check_finite(name: str, values: np.ndarray) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        raise UserError(f"{name}: NaN or Inf at {tuple(map(int, bad[0]))} ({len(bad)} in all); compute it in float32")


def _check_ridge(ridge: float) -> None:
    if not (np.isfinite(ridge) and ridge >= 0):
        raise UserError(f"ridge = {ridge!r} must be a number of at least 0")
