"""The config of a kernel matrix."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ntk_jax.pipelines.common.sections import Format, LoRASection, MeshSection, ModelSection, ScoreSection
from ntk_jax.settings import Count, Range, section, setting


@dataclass(frozen=True)
class KernelSection:
    """A kernel matrix between two sets, over score.span and score.parameters."""

    a: tuple[str, ...] = setting((), "files of the examples whose kernel is asked for, as data.domain")
    b: tuple[str, ...] = setting((), "those of the other side; empty: a itself")
    format: Format = setting("auto", "what the files of both sides are, as data.format")
    columns: Mapping[str, Any] | None = setting(None, "where the fields of a record come from, as data.columns")
    limit: Count | None = setting(None, "a seeded sample of so many of each; null: all")
    kind: Literal["full", "trace", "centered_trace", "pseudo", "probe"] = setting("trace", "which kernel is computed")
    method: Literal["jacobian", "products"] = setting("jacobian", "the way it is computed: two exact ones")
    probes: Count = setting(16, "random directions of kind probe")
    orthogonal: bool = setting(False, "orthogonal probes; as many as the vocabulary has tokens are exact")
    block_examples: Count = setting(16, "rows computed between two commits")


@dataclass(frozen=True)
class KernelConfig:
    """The exact neural tangent kernel between two files of examples."""

    out: str = setting("", "the run directory: a folder, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER")
    seed: Annotated[int, Range(0, 2**32 - 1)] = setting(0, "seed of everything random")
    model: ModelSection = section(ModelSection)
    lora: LoRASection = section(LoRASection)
    score: ScoreSection = section(ScoreSection)
    kernel: KernelSection = section(KernelSection)
    mesh: MeshSection = section(MeshSection)
