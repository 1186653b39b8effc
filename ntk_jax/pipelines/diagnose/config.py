"""The config of a diagnosis."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ntk_jax.pipelines.common.sections import (
    DataSection,
    EvaluateSection,
    LoRASection,
    MeshSection,
    ModelSection,
    ReportSection,
    ScoreSection,
    TrainSection,
)
from ntk_jax.settings import Count, Natural, Positive, Range, section, setting


@dataclass(frozen=True)
class DiagnoseSection:
    """Does fine-tuning stay in the NTK regime, and which approximation ranks right?"""

    trajectories: Count = setting(3, "fine-tunings on the domain from the LoRA seeds seed, seed + 1, ...")
    epochs: Positive = setting(
        20.0, "passes of each over the domain, with the other settings of warmup; 20 are the paper's"
    )
    checkpoints: Count = setting(
        5, "adapters kept after step 0: from the end of warmup to the end, each further by the same factor"
    )
    adapters: tuple[str, ...] = setting(
        (), "PEFT directories to compare instead, in the order of training: one trajectory"
    )
    examples: Annotated[int, Range(2)] = setting(16, "domain examples whose exact kernel is taken at every checkpoint")
    kernel: Literal["centered_trace", "trace", "pseudo", "probe"] = setting(
        "centered_trace", "which kernel is compared"
    )
    memory: Count = setting(
        2**28,
        "bytes of gradients held on each side of a block of pairs, by these kernels and cross-output cosines; an "
        "example's cosines cost D backward passes where its D gradients fit (4 bytes a LoRA weight each), else more",
    )
    candidates: Annotated[int, Range(2)] = setting(400, "pool examples ranked at every checkpoint")
    top: Count | None = setting(None, "N of the top-N overlap; null: a tenth of the candidates")
    objectives: tuple[str, ...] = setting(
        ("sum_logits", "probe", "cross_entropy"), "objectives whose scores are compared"
    )
    cross_output: Natural = setting(
        8, "domain examples whose gradients of single logits are compared, D backward passes or more for each; 0: none"
    )
    groups: Natural = setting(96, "groups of pool examples trained on, to measure what the scores predict; 0: none")
    group_size: Count = setting(16, "examples of a group, all of one family")
    group_steps: Count = setting(8, "Adam steps on a group")
    group_learning_rate: Positive | None = setting(None, "of these steps; null: warmup.learning_rate")
    held_out: Count = setting(64, "questions of evaluate.files (without them domain examples) whose loss is measured")
    rankings: tuple[str, ...] = setting(
        (), "run directories of `ntk-jax run` over the same pool, whose methods' scores are compared"
    )
    worth_candidates: Natural = setting(
        128, "pool examples whose worth to a fine-tuning is measured, by which scores are compared; 0: none"
    )
    worth_from: Literal["pool", "selected"] = setting(
        "pool", "what they are a sample of: the pool, or all that the methods of diagnose.rankings selected"
    )
    worth_start: Literal["warm", "fresh"] = setting(
        "warm",
        "where this fine-tuning starts: the warm adapter, at which scores are taken, or a fresh one, as trainings do",
    )
    worth_domain: Natural = setting(32, "domain examples that are trained on beside them, none whose loss is measured")
    worth_epochs: Positive = setting(1.0, "passes of this fine-tuning, with the other settings of warmup")
    worth_batch: Count = setting(16, "examples per optimiser step of it")
    worth_learning_rate: Positive | None = setting(None, "of it; null: warmup.learning_rate")
    worth_subsets: Natural = setting(32, "random subsets of the candidates that are trained on; 0: none")
    worth_subset_size: Count | None = setting(None, "candidates of a subset; null: half of them")
    worth_top: Count | None = setting(
        None, "N of the share of the N best by a score that are among the N best; null: a tenth of the candidates"
    )
    audit: bool = setting(True, "hold every approximation against the exact kernel")
    audit_domain: Count = setting(
        16, "domain examples on one side of it; an exact kernel costs D backward passes for each of them"
    )
    audit_pool: Annotated[int, Range(2)] = setting(48, "pool examples on its other side")
    audit_dims: tuple[Count, ...] = setting((256, 512, 1024, 2048, 4096, 8192), "K of the projections")
    regression: bool = setting(
        True, "compare kernel ridge regression with fine-tuning, where domain and test are multiple choice"
    )
    questions: Count = setting(200, "questions of each file of evaluate.files, for the regression")


@dataclass(frozen=True)
class DiagnoseConfig:
    """A diagnosis of the kernel over fine-tuning on the domain."""

    out: str = setting("", "the run directory: a folder, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER")
    seed: Annotated[int, Range(0, 2**32 - 1)] = setting(0, "seed of everything random")
    model: ModelSection = section(ModelSection)
    lora: LoRASection = section(LoRASection)
    data: DataSection = section(DataSection)
    warmup: TrainSection = section(TrainSection)
    score: ScoreSection = section(ScoreSection)
    evaluate: EvaluateSection = section(EvaluateSection)
    diagnose: DiagnoseSection = section(DiagnoseSection)
    report: ReportSection = section(ReportSection)
    mesh: MeshSection = section(MeshSection)
