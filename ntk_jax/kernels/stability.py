"""Does fine-tuning stay in the NTK regime? The kernel, and the ranking that selection makes of it, over checkpoints.

NTK-Selector rests on cos_F(Θ_t, Θ_0) ≥ 0.99 over 20 epochs of LoRA fine-tuning (arXiv 2511.07380, figure 2a). Selection
needs less and more: the *ranking* of candidates by score must not depend on when, and from which LoRA seed, it was
taken. So every pair of checkpoints is compared, by kernel and by scores; and each checkpoint is asked how far the
function is from its linearisation, and how far the kernel of summed logits from the trace it stands for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.errors import UserError
from ntk_jax.kernels.agreement import (
    centered_alignment,
    effective_rank,
    frobenius_cosine,
    partial_spearman,
    relative_error,
    spearman,
    spectrum,
    top_overlap,
)
from ntk_jax.kernels.backbone import span_mean, stacked
from ntk_jax.kernels.direction import mean_gradient
from ntk_jax.kernels.exact import MEMORY, Kind, tangent_kernel
from ntk_jax.kernels.linearization import linearization_gap
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.parameters import Tree
from ntk_jax.kernels.rows import Layout
from ntk_jax.kernels.score import directional_scores
from ntk_jax.models.model import Model, with_lora


@dataclass(frozen=True)
class Checkpoint:
    """An adapter on the way of a fine-tuning: which LoRA seed (or other name of the trajectory), after which step."""

    trajectory: str
    step: int
    lora: Tree

    @property
    def name(self) -> str:
        """`seed 0, step 12`: how figures and messages call it."""
        return f"{self.trajectory}, step {self.step}"


@dataclass(frozen=True)
class Measured:
    """What one checkpoint has to say: kernel and pseudo [n, n] over the probe set, scores {objective: [N]} of the
    candidates, linearization (see `linearization_gap`) from its trajectory's first checkpoint; outputs: V."""

    kernel: np.ndarray
    pseudo: np.ndarray
    outputs: int
    scores: dict[str, np.ndarray] = field(default_factory=dict)
    linearization: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class StabilityReport:
    """The comparison of all checkpoints; letters: m checkpoints, n probe examples, N candidates.

    points: one dict a checkpoint: trajectory, step, norm ‖Θ‖_F, effective_rank, spectrum [n], linearization, and of the
    pseudo-NTK: pseudo_cosine and pseudo_error (cos_F and least relative error against the kernel), coherence (1ᵀΘ1 /
    tr Θ over the probe set: 1 where cross-output terms cancel, V where all outputs agree; None for kind `pseudo`).
    kernel_cosine, kernel_alignment: [m, m]. score_spearman, score_overlap: {objective: [m, m]}.
    score_spearman_length: {objective: [m]}, scores with the number of label tokens; score_spearman_less_length:
    {objective: [m, m]}, score_spearman with that taken out of both: a score that follows length is as stable as lengths
    are, whatever else is in it. objectives_spearman: {"a ~ b": [m]}, two objectives' scores at one checkpoint.
    kernels: [m, n, n]. scores: {objective: [m, N]}.
    """

    kind: str
    top: int
    points: list[dict[str, Any]]
    kernel_cosine: np.ndarray
    kernel_alignment: np.ndarray
    score_spearman: dict[str, np.ndarray]
    score_overlap: dict[str, np.ndarray]
    score_spearman_length: dict[str, list[float]]
    score_spearman_less_length: dict[str, np.ndarray]
    objectives_spearman: dict[str, list[float]]
    kernels: np.ndarray
    scores: dict[str, np.ndarray]

    def to_dict(self) -> dict[str, Any]:
        """Everything but kernels and scores, as JSON values but for NaN where a correlation is not defined: of scores
        or lengths that are all alike, or where the length leaves nothing."""
        return {
            "kind": self.kind,
            "top": self.top,
            "examples": int(self.kernels.shape[1]),
            "candidates": max((scores.shape[1] for scores in self.scores.values()), default=0),
            "points": self.points,
            "kernel_cosine": self.kernel_cosine.tolist(),
            "kernel_alignment": self.kernel_alignment.tolist(),
            "score_spearman": {name: matrix.tolist() for name, matrix in self.score_spearman.items()},
            "score_overlap": {name: matrix.tolist() for name, matrix in self.score_overlap.items()},
            "score_spearman_length": self.score_spearman_length,
            "score_spearman_less_length": {n: matrix.tolist() for n, matrix in self.score_spearman_less_length.items()},
            "objectives_spearman": self.objectives_spearman,
        }

    def __str__(self) -> str:
        """A table: each checkpoint against the first of its trajectory."""
        names = list(self.scores)
        header = ["checkpoint", "cos_F", "aligned", "rank", "gap", *(f"rho {name}" for name in names)]
        lines = ["  ".join([f"{header[0]:<22}", *(f"{title:>8}" for title in header[1:])])]
        for number, point in enumerate(self.points):
            first = first_of(self.points, number)
            values = [self.kernel_cosine[first, number], self.kernel_alignment[first, number]]
            values += [point["effective_rank"], point["linearization"].get("gap", float("nan"))]
            values += [self.score_spearman[name][first, number] for name in names]
            cells = [f"{value:>{max(8, len(title))}.3f}" for value, title in zip(values, header[1:], strict=True)]
            lines.append("  ".join([f"{point['trajectory']}, step {point['step']}".ljust(22), *cells]))
        return "\n".join(lines)


def measure(
    model: Model,
    rows: Sequence[TokenRow],
    *,
    kind: Kind = "centered_trace",
    probes: int = 16,
    seed: int = 0,
    candidates: Sequence[TokenRow] = (),
    domain: Sequence[TokenRow] = (),
    objectives: Sequence[Objective] = (),
    layout: Layout | None = None,
    start: Model | None = None,
    memory: int = MEMORY,
) -> Measured:
    """Everything about one checkpoint, which is the model with its adapter.

    rows: the probe set, whose kernel is taken. candidates, domain: what is scored, along whose mean gradient, by each
    of the objectives, in the given layout. start: the trajectory's first checkpoint.
    """
    if len(rows) < 2:
        raise UserError(f"the probe set holds {len(rows)} examples; stability needs at least two")
    if kind not in ("trace", "centered_trace", "pseudo", "probe"):
        raise UserError(f"kind = {kind!r}: stability compares trace, centered_trace, pseudo or probe kernels")
    function, theta, frozen, head = span_mean(model, "lora")
    examples = stacked(rows)

    def kernel(kind: Kind) -> np.ndarray:
        how: dict[str, Any] = {"kind": kind, "outputs": head, "probes": probes, "seed": seed, "memory": memory}
        return tangent_kernel(function, theta, frozen, examples, examples, **how)

    scores = {}
    for objective in objectives if len(candidates) else ():
        assert layout is not None
        direction = mean_gradient(model, domain, objective, layout)
        scores[str(objective.kind)] = directional_scores(model, candidates, direction, objective, layout).values
    moved = linearization_gap(start, model.lora, rows) if start is not None else {}
    assert head is not None  # differentiating LoRA leaves only, the head is frozen
    return Measured(kernel(kind), kernel("pseudo"), head.shape[0], scores, moved)


def compare(
    places: Sequence[tuple[str, int]], measured: Sequence[Measured], lengths: np.ndarray, kind: str, top: int
) -> StabilityReport:
    """All checkpoints against each other. places: (trajectory, step) of each. lengths: [N] label tokens of the
    candidates."""
    points = [
        {
            "trajectory": trajectory,
            "step": step,
            "norm": float(np.linalg.norm(one.kernel)),
            "effective_rank": effective_rank(one.kernel),
            "spectrum": spectrum(one.kernel).tolist(),
            "pseudo_cosine": frobenius_cosine(one.pseudo, one.kernel),
            "pseudo_error": relative_error(one.pseudo, one.kernel, scaled=True),
            "coherence": _coherence(one, kind),
            "linearization": one.linearization,
        }
        for (trajectory, step), one in zip(places, measured, strict=True)
    ]
    names = list(measured[0].scores)

    def matrix(function: Callable[[Any, Any], float], items: Sequence[np.ndarray]) -> np.ndarray:
        return np.array([[function(x, y) for y in items] for x in items])

    kernels = [one.kernel for one in measured]
    scores = {name: np.stack([one.scores[name] for one in measured]) for name in names}
    pairs = [(a, b) for place, a in enumerate(names) for b in names[place + 1 :]]
    return StabilityReport(
        kind=kind,
        top=top,
        points=points,
        kernel_cosine=matrix(frobenius_cosine, kernels),
        kernel_alignment=matrix(centered_alignment, kernels),
        score_spearman={name: matrix(spearman, list(scores[name])) for name in names},
        score_overlap={name: matrix(lambda x, y: top_overlap(x, y, top), list(scores[name])) for name in names},
        score_spearman_length={name: [spearman(values, lengths) for values in scores[name]] for name in names},
        score_spearman_less_length={
            name: matrix(lambda x, y: partial_spearman(x, y, lengths), list(scores[name])) for name in names
        },
        objectives_spearman={
            f"{a} ~ {b}": [spearman(one.scores[a], one.scores[b]) for one in measured] for a, b in pairs
        },
        kernels=np.stack(kernels),
        scores=scores,
    )


def stability(
    model: Model,
    rows: Sequence[TokenRow],
    checkpoints: Sequence[Checkpoint],
    *,
    kind: Kind = "centered_trace",
    probes: int = 16,
    seed: int = 0,
    candidates: Sequence[TokenRow] = (),
    domain: Sequence[TokenRow] = (),
    objectives: Sequence[Objective] = (Objective(),),
    top: int | None = None,
    layout: Layout | None = None,
    memory: int = MEMORY,
    progress: Callable[[int, int], None] | None = None,
) -> StabilityReport:
    """`measure` at every checkpoint, then `compare`. The first checkpoint of a trajectory is what the others of it are
    linearised at. top: N of the overlap, by default a tenth of the candidates. domain: by default the probe set.

    Raises UserError: no checkpoints, one that does not fit the model (naming it), an empty probe set, a kernel or score
    that is not finite.
    """
    if not checkpoints:
        raise UserError("there are no checkpoints; give at least one adapter")
    measured: list[Measured] = []
    starts: dict[str, Model] = {}
    for number, checkpoint in enumerate(checkpoints):
        here = at_checkpoint(model, checkpoint)
        start = starts.setdefault(checkpoint.trajectory, here)
        measured.append(
            measure(
                here, rows, kind=kind, probes=probes, seed=seed, candidates=candidates, domain=domain or rows,
                objectives=objectives, layout=layout, start=start, memory=memory,
            )
        )  # fmt: skip
        if progress:
            progress(number + 1, len(checkpoints))
    places = [(checkpoint.trajectory, checkpoint.step) for checkpoint in checkpoints]
    lengths = np.array([row.span.sum() for row in candidates])
    return compare(places, measured, lengths, kind, top or max(1, len(candidates) // 10))


def at_checkpoint(model: Model, checkpoint: Checkpoint) -> Model:
    """The model with the checkpoint's adapter. Raises UserError naming it when its rank or its targets are others."""
    try:
        return with_lora(model, checkpoint.lora)
    except UserError:
        raise UserError(
            f"checkpoint {checkpoint.name}: its adapter ({_shape(checkpoint.lora)}) does not fit the model's "
            f"({_shape(model.lora)}); load the model with the rank and targets of the checkpoints"
        ) from None


def _coherence(one: Measured, kind: str) -> float | None:
    """1ᵀΘ1 / tr Θ over the probe set; tr Θ of a centred kernel with what centring took away, 1ᵀΘ1/V, the pseudo-NTK.
    None where no trace was taken."""
    if kind == "pseudo":
        return None
    lost = np.trace(one.pseudo) if kind in ("centered_trace", "probe") else 0.0
    return float(one.outputs * np.trace(one.pseudo) / max(float(np.trace(one.kernel) + lost), 1e-300))


def first_of(points: Sequence[dict[str, Any]], number: int) -> int:
    """The index of the first point of the same trajectory."""
    return next(i for i, point in enumerate(points) if point["trajectory"] == points[number]["trajectory"])


def _shape(lora: Tree) -> str:
    layers = lora.get("layers", {})
    ranks = sorted({leaf["a"].shape[-1] for leaf in layers.values()})
    return f"rank {'/'.join(map(str, ranks)) or 'none'} on {len(layers)} linears"
