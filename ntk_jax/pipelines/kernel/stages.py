"""The kernel pipeline's table: one stage."""

from __future__ import annotations

from ntk_jax.engine.stage import Address, Pipeline, Stage

_HERE = "ntk_jax.pipelines.kernel"
# How the files are read counts by the records that come out: it stands among the inputs.
_KERNEL = tuple(
    f"kernel.{key}" for key in ("a", "b", "limit", "kind", "method", "probes", "orthogonal", "block_examples")
)

PIPELINE = Pipeline(
    name="kernel",
    command="kernel",
    title="Kernel matrix",
    help="a kernel matrix between two files",
    description=(
        "The exact neural tangent kernel of model.path, with the adapter model.adapter, between the examples of "
        "kernel.a and those of kernel.b, or kernel.a itself: over score.span and score.parameters, of "
        "kernel.kind trace, centered_trace, pseudo, probe or full. Writes kernel/: kernel.npz (kernel, ids_a, "
        "ids_b, kind), summary.json and data.json."
    ),
    config=Address(f"{_HERE}.config:KernelConfig"),
    open=Address(f"{_HERE}.kernel:open_run"),
    inputs=Address(f"{_HERE}.kernel:input_hashes"),
    final=lambda config: ("kernel",),
    facts=Address("ntk_jax.pipelines.common.inputs:facts"),
    part=Address(f"{_HERE}.report:part"),
    terminal=Address(f"{_HERE}.report:terminal"),
    stages=(
        Stage(
            name="kernel",
            title="Kernel",
            help="a kernel matrix between two files",
            description="Writes kernel/.",
            function=Address(f"{_HERE}.kernel:kernel"),
            reads=("seed", "model", "lora", *_KERNEL, "score.span", "score.parameters"),
            inputs=("model", "a", "b"),
            check=Address(f"{_HERE}.kernel:check"),
            check_inputs=Address(f"{_HERE}.kernel:check_inputs"),
        ),
    ),
)
