"""What the stages cost that rank by gradients of single examples or by their main directions."""

from __future__ import annotations

from dataclasses import replace

import jax
import numpy as np

from ntk_jax.engine.costs import Cost, Disk, Work
from ntk_jax.errors import UserError
from ntk_jax.kernels.projections import check_width
from ntk_jax.pipelines.select import costs
from ntk_jax.pipelines.select import less as less_stage
from ntk_jax.pipelines.select import subspace as subspace_stage
from ntk_jax.pipelines.select.config import checkpoints_kept
from ntk_jax.pipelines.select.load import Load
from ntk_jax.pipelines.select.memory import peak_memory
from ntk_jax.training.flops import score_flops


def subspace(load: Load) -> Cost:
    """The gradients of the domain's Gram matrix, and the weighted passes that make the directions. Raises UserError:
    more directions than the domain has examples."""
    run, domain, count = load.run, load.domain, _components(load)
    rows = domain.count * domain.span
    flops = subspace_stage.flops(run, domain.count, domain.total, rows, count)
    padded = subspace_stage.flops(run, domain.count, domain.total / domain.single_fill, rows, count)
    memory = peak_memory(run, "subspace", load.pool, load.questions)
    theta = sum(leaf.size for leaf in jax.tree.leaves(run.theta))
    disk = 4.0 * domain.count**2 + 4.0 * count * run.objective.channels * theta + costs.SMALL
    return Cost((Work(domain.count, domain.total, flops, padded, "backward", memory),), Disk(disk))


def low_rank(load: Load) -> Cost:
    """A forward pass with a tangent for each direction, over the candidates."""
    run, pool, count = load.run, load.pool, costs.candidates(load)
    directions = _components(load)
    tokens, labels = count * pool.tokens, 0 if run.objective.is_linear else round(count * pool.span)
    tangents = directions * run.objective.channels
    flops = score_flops(run.model.base.config, round(tokens), labels, directions=tangents, **run.differentiated)
    memory = peak_memory(run, "low_rank", pool, load.questions)
    disk = costs.store_bytes(count, run.config.score.block_examples, 4.0 * directions + costs.ACCOUNT_BYTES)
    return Cost((Work(count, tokens, flops, flops / pool.fill, memory=memory),), Disk(disk + costs.SMALL))


def less(load: Load) -> Cost:
    """At each checkpoint a backward pass an example, one example a row, and a projection. Raises UserError: the sketch
    is wider than the adapter."""
    run, pool, domain, count = load.run, load.pool, load.domain, costs.candidates(load)
    check_width(run.projection, run.model.base.lora)
    examples, tokens = count + domain.count, count * pool.tokens + domain.total
    labels, times = count * pool.responses + domain.count * domain.responses, checkpoints_kept(run.config)
    flops = less_stage.flops(run, examples, tokens, labels)
    computed = count * pool.tokens / pool.single_fill + domain.total / domain.single_fill
    padded = less_stage.flops(run, examples, computed, labels)
    work = Work(times * examples, times * tokens, flops, padded, "backward")
    section = run.config.sketch
    row = section.dim * np.dtype(section.dtype).itemsize + 8.0 + costs.ACCOUNT_BYTES
    stored = sum(
        costs.store_bytes(number, min(section.block_examples, round(number)), row + ids)
        for number, ids in ((count, pool.id_bytes), (domain.count, domain.id_bytes))
    )
    memory = peak_memory(run, "less", pool, load.questions)
    return Cost((replace(work, memory=memory),), Disk(times * stored + costs.SMALL))


def _components(load: Load) -> int:
    count = load.run.config.select.low_rank.components
    if count > load.domain.count:
        raise UserError(
            f"select.low_rank.components = {count} is more than the {round(load.domain.count)} usable examples of "
            "data.domain; lower it"
        )
    return count
