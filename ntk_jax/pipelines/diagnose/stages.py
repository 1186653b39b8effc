"""The diagnosis' table: one stage, whose parts are kept one by one."""

from __future__ import annotations

from ntk_jax.engine.stage import Address, Pipeline, Stage

_HERE = "ntk_jax.pipelines.diagnose"
# How the files are read counts by the records that come out: it stands among the inputs.
_DATA = ("data.domain", "data.pool", "data.domain_limit", "data.pool_limit")
_SCORE = ("score.span", "score.normalize", "score.probes", "score.batch_tokens")

PIPELINE = Pipeline(
    name="diagnose",
    command="diagnose",
    title="Diagnosis",
    help="does fine-tuning stay in the NTK regime?",
    description=(
        "Fine-tunes on the domain from several LoRA seeds, keeps adapters on the way, and compares their "
        "kernels and the rankings they make of the pool: stability, cross-output cosines, approximations "
        "against the exact kernel, which score predicts the measured drop of the loss, what the scores of finished "
        "runs are worth to a fine-tuning, and kernel regression against fine-tuning. Writes diagnose/: JSON and "
        "figures, which the report shows."
    ),
    config=Address(f"{_HERE}.config:DiagnoseConfig"),
    open=Address(f"{_HERE}.state:open_run"),
    inputs=Address(f"{_HERE}.state:input_hashes"),
    final=lambda config: ("diagnose",),
    check=Address("ntk_jax.pipelines.common.checks:check_model_and_data"),
    doctor=Address("ntk_jax.pipelines.common.doctor:checks"),
    facts=Address("ntk_jax.pipelines.common.inputs:facts"),
    part=Address(f"{_HERE}.report:part"),
    beside=Address("ntk_jax.pipelines.common.tensorboard:write_events"),
    terminal=Address(f"{_HERE}.report:terminal"),
    stages=(
        Stage(
            name="diagnose",
            title="Diagnosis",
            help="does fine-tuning stay in the NTK regime?",
            description="Writes diagnose/.",
            function=Address(f"{_HERE}.diagnose:diagnose"),
            reads=("seed", "model", "lora", *_DATA, "warmup", "diagnose", "evaluate.files", "report.group_by", *_SCORE),
            inputs=("model", "adapters", "rankings", "domain", "pool", "evaluate"),
            check=Address(f"{_HERE}.diagnose:check"),
            check_inputs=Address(f"{_HERE}.diagnose:check_inputs"),
        ),
    ),
)
