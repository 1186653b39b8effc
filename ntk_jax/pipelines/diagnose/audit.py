"""The approximation audit: every cheaper kernel against the exact one, between domain and pool examples.

One table, whose rows are kernels [Na, Nb] computed once and kept in audit/; errors and rank correlations are taken at
the end. Random kernels are drawn `DRAWS` times and their figures averaged.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.sources import sample_indices
from ntk_jax.kernels.agreement import relative_error, spearman
from ntk_jax.kernels.backbone import span_mean, stacked
from ntk_jax.kernels.exact import Kind, tangent_kernel
from ntk_jax.kernels.gram import gradient_features_gram
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.parameters import split_parameters
from ntk_jax.kernels.projections import KINDS, Projection, ProjectionKind, projection_flops
from ntk_jax.kernels.rows import layout_for
from ntk_jax.kernels.sketch import sketches
from ntk_jax.models.model import Model, computing_in
from ntk_jax.pipelines.common.arrays import load_arrays, save_arrays
from ntk_jax.pipelines.diagnose.state import DiagnoseRun
from ntk_jax.storage.atomic import make_folder
from ntk_jax.training.flops import gradient_flops, kernel_flops

SPARE = 4  # times as many pool examples are looked at as are wanted: some are too long
DRAWS = 3  # of everything random
CORNER = 3  # the second exact route is checked on so many examples a side: its cost grows with their product
QUICK = 10.0  # seconds below which a kernel is computed again, so that its time holds no compilation
HEAD_LIMIT = 512  # outputs up to which all parameters, head included, are differentiated exactly: V passes an example
TRUNK = "^base/layers/.*kernel"

Kernels = Callable[[int], np.ndarray]  # seed -> [Na, Nb]


@dataclass(frozen=True)
class Line:
    """A row of the table: how to compute its kernel, and against which other lines it is held."""

    name: str
    group: str
    compute: Kernels
    flops: float
    random: bool = False
    against: str = "exact"  # the line whose kernel is the reference
    own: str | None = None  # what it approximates directly, where that is another
    same_as: str | None = None  # the line that has computed this kernel


def audit(run: DiagnoseRun, folder: Path, warm: Model) -> dict[str, Any]:
    """{"lines": [{name, group, reference, error, scaled_error, spearman_pairs, spearman_scores, own..., flops,
    seconds}], "domain", "pool", "tokens", ...}; docs/diagnosis.md says how to read it."""
    section = run.config.diagnose
    domain = _sample(run.scored_domain, section.audit_domain, run)
    from_pool = _sample(run.pool_sample(SPARE * section.audit_pool), section.audit_pool, run)
    lines = _lines(run, warm, domain, from_pool)
    home, progress = make_folder(folder / "audit"), run.job.progress("audit", len(lines), "kernels")
    kernels: dict[str, list[np.ndarray]] = {}
    seconds: dict[str, float] = {}
    for number, line in enumerate(lines):
        path = home / f"{number:02d}.npz"
        if line.same_as:
            kernels[line.name], seconds[line.name] = kernels[line.same_as], seconds[line.same_as]
        else:
            if not path.exists():
                _compute(path, line, run.config.seed)
            found = load_arrays(path)
            kernels[line.name], seconds[line.name] = list(found["kernels"]), float(found["seconds"])
        progress(number + 1, len(lines), line.name)
    return {
        "domain": len(domain),
        "pool": len(from_pool),
        "tokens": sum(len(row.ids) for row in [*domain, *from_pool]),
        "draws": DRAWS,
        "lora_parameters": run.model.adapter_size,
        "too_wide": [dim for dim in section.audit_dims if dim > run.model.adapter_size],
        "lines": [_compare(line, kernels) | {"seconds": seconds[line.name]} for line in lines],
    }


def _lines(run: DiagnoseRun, warm: Model, domain: list[TokenRow], pool: list[TokenRow]) -> list[Line]:
    config, section = warm.config, run.config
    a, b = stacked(domain), stacked(pool)
    tokens, pairs = a["tokens"].size + b["tokens"].size, len(domain) * len(pool)
    real = sum(len(row.ids) for row in [*domain, *pool])
    labels = sum(int(row.span[:-1].sum()) for row in [*domain, *pool])
    width, layers = config.hidden_size, config.num_layers
    lora, normalize = {"lora_parameters": run.model.adapter_size}, section.score.normalize

    def exact(model: Model, kind: Kind, parameters: str = "lora", **how: Any) -> Kernels:
        def compute(seed: int) -> np.ndarray:
            function, theta, frozen, head = span_mean(model, parameters)
            return tangent_kernel(function, theta, frozen, a, b, kind=kind, outputs=head, seed=seed, **how)

        return compute

    def flops(cotangents: int, **changes: Any) -> float:
        return kernel_flops(config, tokens, cotangents, pairs=pairs, **{**lora, **changes})

    def corner(_: int) -> np.ndarray:
        """The exact kernel with a corner of it computed by the other route."""
        few = [jax.tree.map(lambda leaf: leaf[:CORNER], x) for x in (a, b)]
        function, theta, frozen, head = span_mean(warm, "lora")
        return tangent_kernel(function, theta, frozen, *few, kind="centered_trace", outputs=head, method="products")

    layout = layout_for(max(len(row.ids) for row in [*domain, *pool]), section.score.batch_tokens, packed=False)

    def gram(model: Model, objective: str, probes: int = 1) -> Kernels:
        return lambda seed: gradient_features_gram(
            model, domain, pool, Objective(objective, normalize, probes, seed), layout
        )

    def projected(kind: ProjectionKind, dim: int) -> Kernels:
        def compute(seed: int) -> np.ndarray:
            sides = [
                sketches(warm, rows, Objective("sum_logits", normalize), layout, Projection(kind, dim, seed))
                for rows in (domain, pool)
            ]
            return sides[0] @ sides[1].T

        return compute

    low = computing_in(warm, "bfloat16")
    forward_backward = gradient_flops(config, real, **lora)
    sums = "sum of logits (pseudo-NTK)"
    found = [
        Line("exact", "exact", exact(warm, "centered_trace"), flops(width)),
        Line("exact by products, corner", "exact", corner, _products_flops(run, warm, a, b), against="exact"),
        Line("trace, not centred", "exact", exact(warm, "trace"), flops(width)),
        Line(sums, "objective", exact(warm, "pseudo"), flops(1)),
    ]
    for probes in (1, 4, 16):
        how = exact(warm, "probe", probes=probes)
        found.append(Line(f"{probes} probe{'s' * (probes > 1)}", "objective", how, flops(probes), random=True))
    for objective in ("cross_entropy", "target_logit"):
        if section.score.span != "last":
            cost = gradient_flops(config, real, labels, **lora)
            found.append(Line(objective, "objective", gram(warm, objective), cost))
    found.append(Line("sum of logits, per example", "objective", gram(warm, "sum_logits"), forward_backward))
    for kind in KINDS:
        for dim in section.diagnose.audit_dims:
            if dim <= run.model.adapter_size:
                each = projection_flops(Projection(kind, dim), warm.lora)
                cost = forward_backward + each * (len(domain) + len(pool))
                name = f"{kind}, K = {dim}"
                line = Line(name, "projection", projected(kind, dim), cost, True, own="sum of logits, per example")
                found.append(line)
    whole = config.vocab_size <= HEAD_LIMIT
    parameters = "^base/" if whole else TRUNK
    cotangents = config.vocab_size if whole else width
    dense = sum(leaf.size for leaf in jax.tree.leaves(split_parameters(warm, parameters)[0]))
    title = "all parameters" if whole else "all matrices of the layers"
    dearest = flops(cotangents, lora_parameters=0, dense_parameters=dense)
    found += [
        Line(title, "parameters", exact(warm, "centered_trace", parameters, memory=2**30), dearest, against=title),
        _again(found, "exact", f"LoRA only, against {title}", title),
        _again(found, sums, f"{sums}, against {title}", title),
    ]
    for last in sorted({1, max(1, layers // 4), max(1, layers // 2)} - {layers}):
        name = f"LoRA of the last {last} of {layers} layers"
        found.append(
            Line(name, "parameters", exact(warm, "centered_trace", f"lora[-{last}:]"), flops(width, late=last / layers))
        )
    found += [
        Line("exact in bfloat16", "precision", exact(low, "centered_trace"), flops(width)),
        Line(f"{sums} in bfloat16", "precision", exact(low, "pseudo"), flops(1), own=sums),
    ]
    if section.score.span != "last":
        cost = gradient_flops(config, real, labels, **lora)
        found.append(
            Line("cross_entropy in bfloat16", "precision", gram(low, "cross_entropy"), cost, own="cross_entropy")
        )
    return found


def _again(lines: Sequence[Line], name: str, title: str, against: str) -> Line:
    """A line that is there, held against another reference."""
    there = next(line for line in lines if line.name == name)
    return dataclasses.replace(there, name=title, group="parameters", against=against, same_as=name)


def _compute(path: Path, line: Line, seed: int) -> None:
    begun = time.monotonic()
    kernels = [line.compute(seed)]
    seconds = time.monotonic() - begun
    if seconds < QUICK:
        begun = time.monotonic()
        line.compute(seed)
        seconds = time.monotonic() - begun
    kernels += [line.compute(seed + draw) for draw in range(1, DRAWS if line.random else 1)]
    save_arrays(path, kernels=np.stack(kernels), seconds=seconds)


def _compare(line: Line, kernels: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """The figures of a line, averaged over its draws."""

    def against(name: str) -> dict[str, float]:
        exact = kernels[name][0]
        figures = []
        for kernel in kernels[line.name]:
            reference = exact[: kernel.shape[0], : kernel.shape[1]]
            figures.append(
                [
                    relative_error(kernel, reference),
                    relative_error(kernel, reference, scaled=True),
                    spearman(kernel, reference),
                    spearman(kernel.mean(axis=0), reference.mean(axis=0)),
                ]
            )
        names = ("error", "scaled_error", "spearman_pairs", "spearman_scores")
        return dict(zip(names, np.mean(figures, axis=0).tolist(), strict=True))

    found: dict[str, Any] = {"name": line.name, "group": line.group, "flops": line.flops, "reference": line.against}
    found |= against(line.against)
    if line.own is not None:
        found |= {"own": line.own} | {f"own_{key}": value for key, value in against(line.own).items()}
    return found


def _sample(rows: list[TokenRow], count: int, run: DiagnoseRun) -> list[TokenRow]:
    chosen = sample_indices(len(rows), count, run.config.seed)
    return rows if chosen is None else [rows[i] for i in chosen]


def _products_flops(run: DiagnoseRun, warm: Model, a: Any, b: Any) -> float:
    """Of the corner: D times a forward and a backward pass for each column, and a tangent with its primal a pair."""
    length, width = max(a["tokens"].shape[1], b["tokens"].shape[1]), warm.config.hidden_size
    passes = gradient_flops(warm.config, CORNER * length, lora_parameters=run.model.adapter_size)
    return width * passes * (1 + CORNER)
