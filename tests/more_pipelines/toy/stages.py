"""The toy's table."""

from __future__ import annotations

from ntk_jax.engine.stage import Address, Pipeline, Stage

_WORK = "ntk_jax.pipelines.toy.work"

PIPELINE = Pipeline(
    name="toy",
    command="toy",
    title="Toy",
    help="the letters of a text",
    description="Counts the letters of every line and adds them up.",
    config=Address("ntk_jax.pipelines.toy.config:ToyConfig"),
    open=Address(f"{_WORK}:open_toy"),
    inputs=Address(f"{_WORK}:inputs"),
    final=lambda config: ("add",),
    part=Address(f"{_WORK}:part"),
    terminal=Address(f"{_WORK}:terminal"),
    doctor=Address(f"{_WORK}:doctor"),
    stages=(
        Stage(
            name="count",
            title="Counting",
            help="letters of each line",
            description="Writes count/letters.zarr.",
            function=Address(f"{_WORK}:count"),
            reads=("toy.file", "toy.block_lines"),
            inputs=("text",),
            stores=lambda config: ("letters.zarr",),
            check=Address(f"{_WORK}:check"),
            check_inputs=Address(f"{_WORK}:check_inputs"),
            cost=Address(f"{_WORK}:cost_of_count"),
        ),
        Stage(
            name="add",
            title="Sum",
            help="their sum",
            description="Writes add/summary.json.",
            function=Address(f"{_WORK}:add"),
            after=lambda config: ("count",),
            cost=Address(f"{_WORK}:cost_of_add"),
        ),
    ),
)
