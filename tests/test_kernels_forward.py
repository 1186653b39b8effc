"""Sketches by forward mode and by backward passes: two routes with no differentiation code in common."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_reference import random_rows, tiny_model

from ntk_jax.errors import UserError
from ntk_jax.kernels.forward import forward_sketches
from ntk_jax.kernels.objectives import Objective
from ntk_jax.kernels.projections import Projection
from ntk_jax.kernels.rows import Layout
from ntk_jax.kernels.sketch import sketches

PADDED = Layout(row_length=64, rows_per_batch=4, packed=False)
PACKED = Layout(row_length=64, rows_per_batch=2)


@pytest.mark.parametrize(
    "family, kind, parameters, changes",
    [
        ("llama", "sum_logits", "lora", {}),
        ("qwen2", "cross_entropy", "lora", {}),
        ("qwen3", "probe", "lora", {}),
        ("llama", "sum_logits", "base/layers/up_proj|base/norm", {"intermediate_size": 96}),  # two blocks of signs
    ],
)
def test_forward_and_backward_agree(family, kind, parameters, changes):
    model, rows = tiny_model(family, **changes), random_rows(5, seed=41)
    objective, projection = Objective(kind, probes=2), Projection("rademacher", 64, seed=3)
    backward = sketches(model, rows, objective, PADDED, projection, parameters=parameters)
    forward = forward_sketches(model, rows, objective, PACKED, projection, parameters=parameters)
    assert forward.shape == (5, 64)
    assert np.abs(forward - backward).max() < 1e-4 * np.abs(backward).max()


class TestMistakes:
    def test_what_has_no_rows(self):
        with pytest.raises(UserError, match="projection 'countsketch': forward mode takes the rows"):
            forward_sketches(tiny_model(), random_rows(2), Objective(), PACKED, Projection("countsketch", 64))
        with pytest.raises(UserError, match="no examples to sketch"):
            forward_sketches(tiny_model(), [], Objective(), PACKED, Projection(dim=64))
        with pytest.raises(UserError, match="dim = 1048576 is larger than the"):
            forward_sketches(tiny_model(), random_rows(2), Objective(), PACKED, Projection(dim=2**20))
