"""What a run is: frozen dataclasses for every stage, read from YAML and `--a.b=value` overrides.

An unknown key, a wrong type or a value outside its choices or its range is a `UserError` that names the key
(`score.objective`) and offers the nearest known one. Every default is stated here and nowhere else.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml

from ntk_jax.errors import UserError

Span = Literal["response", "all", "last"]
Normalize = Literal["mean", "sum", "none"]


@dataclass(frozen=True)
class Range:
    """The values a number may take; both ends belong unless `open`."""

    low: float
    high: float = math.inf
    open: bool = False

    def holds(self, value: float) -> bool:
        inside = self.low < value < self.high if self.open else self.low <= value <= self.high
        return inside and math.isfinite(value)

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"above {self.low:g}" if self.open else f"at least {self.low:g}"
        return f"between {self.low:g} and {self.high:g}" + (", both excluded" if self.open else "")


Count = Annotated[int, Range(1)]
Natural = Annotated[int, Range(0)]
Positive = Annotated[float, Range(0, open=True)]
NotNegative = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]  # the trainer refuses 1
Axis = Annotated[int, Range(-1)]  # of the mesh; `make_mesh` has the last word


@dataclass(frozen=True)
class ModelSection:
    """The backbone and how text meets it."""

    path: str = ""  # a Hugging Face directory, a hub id, or builtin:model
    adapter: str | None = None  # a PEFT directory to start from instead of fresh LoRA
    dtype: Literal["float32", "bfloat16"] = "float32"  # compute and frozen weights; adapters stay fp32
    quantization: Literal["int8", "float8_e4m3fn"] | None = None  # of the layers' frozen matrices; null: none, as dtype
    max_length: Annotated[int, Range(2)] = 1024  # tokens; longer examples are dropped or truncated, and counted
    overflow: Literal["drop", "truncate"] = "drop"
    template: Literal["auto", "chat", "plain"] = "auto"  # auto: the tokenizer's chat template if it has one
    add_eos: bool = True  # plain template only: close the response with the tokenizer's EOS token


@dataclass(frozen=True)
class LoRASection:
    """Adapter shape, unless model.adapter brings its own. The paper states only "about 0.5% of parameters": rank 16 on
    all seven linears fits."""

    rank: Count = 16
    alpha: Positive = 32.0
    targets: tuple[str, ...] = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class DataSection:
    """Files (or globs, tfds:NAME/SPLIT, hf:NAME/SPLIT) of the domain and of the pool."""

    domain: tuple[str, ...] = ()
    pool: tuple[str, ...] = ()
    domain_limit: Count | None = None  # a seeded sample of the domain, None = all of it
    pool_limit: Count | None = None  # likewise for the pool


@dataclass(frozen=True)
class TrainSection:
    """One LoRA fine-tuning (used for the warm-up and for the final training)."""

    epochs: NotNegative = 3.0
    max_steps: Natural | None = None  # instead of epochs; warmup.max_steps = 0 takes model.adapter as it is
    learning_rate: NotNegative = 2e-5
    batch_size: Count = 128  # examples per optimiser step
    schedule: Literal["linear", "cosine", "constant"] = "linear"
    warmup_ratio: Fraction = 0.03
    weight_decay: NotNegative = 0.0
    beta1: Fraction = 0.9
    beta2: Fraction = 0.999
    max_grad_norm: NotNegative = 1.0  # 0: no clipping
    tokens_per_microbatch: Count = 8192  # gradient accumulation: a step runs as many microbatches as it needs
    checkpoint_every: Count = 50  # optimiser steps


@dataclass(frozen=True)
class ScoreSection:
    """What scalar is differentiated, over which positions and parameters, along which direction."""

    objective: Literal["sum_logits", "probe", "cross_entropy", "target_logit"] = "sum_logits"
    span: Span = "response"
    normalize: Normalize = "mean"
    parameters: str = "lora"  # lora, lora[-4:] (of the last four layers), all, or a pattern over parameter names
    probes: Count = 4  # for objective: probe
    direction: str = "mean_gradient"  # mean_gradient, adam, or the path of a direction.safetensors
    attention: Literal["auto", "xla", "pallas"] = (
        "xla"  # pallas: a kernel for GPUs, not yet measured; auto: where it runs
    )
    batch_tokens: Count = 8192  # tokens of one compiled step, over all devices
    block_examples: Count = 2048  # examples scored between two commits
    allow_fresh_lora: bool = False  # score with B = 0, where every A-gradient vanishes


@dataclass(frozen=True)
class PreselectSection:
    """The paper's coarse stage. `none` scores the whole pool exactly."""

    method: Literal["none", "votes"] = "none"
    keep: Count | None = None  # M; default 4 N
    neighbours: Count | None = None  # K; default M / 4


@dataclass(frozen=True)
class SketchSection:
    """Projected gradients of pool and domain in stores. Objective, span, normalize, parameters and probes are those of
    `score`, the seed is the run's."""

    projection: Literal["rademacher", "countsketch", "kronecker"] = "rademacher"
    dim: Count = 8192  # K, the paper's; at most the number of parameters differentiated
    sparsity: Count = 1  # for projection: countsketch
    dtype: Literal["float16", "float32"] = "float16"  # of the stored unit rows; moves their products by 1e-3 at most
    block_examples: Count = 2048  # examples sketched between two commits; one block of rows is in memory


@dataclass(frozen=True)
class SelectSection:
    """The best N, ties by pool order."""

    count: Count = 9000
    by: Literal["score", "mean", "cosine", "max", "round_robin"] = "score"  # score: exact; the others: of sketches


@dataclass(frozen=True)
class EvaluateSection:
    """Multiple-choice files and the arms compared on them."""

    files: tuple[str, ...] = ()
    limit: Count | None = None  # a seeded sample of each file
    arms: tuple[str, ...] = ("base", "domain", "random", "selected")
    bootstrap: Count = 1000  # resamples
    confidence: Annotated[float, Range(0, 1, open=True)] = 0.95


@dataclass(frozen=True)
class DiagnoseSection:
    """`ntk-jax diagnose`: does fine-tuning stay in the NTK regime, and which approximation ranks right?"""

    trajectories: Count = 3  # fine-tunings on the domain from the LoRA seeds seed, seed + 1, ...
    epochs: Positive = 20.0  # of each, with the other settings of `warmup`; 20 are the paper's
    checkpoints: Count = 5  # kept after step 0: from the end of `warmup` to the end, each further by the same factor
    adapters: tuple[str, ...] = ()  # PEFT directories to compare instead, in the order of training: one trajectory
    examples: Annotated[int, Range(2)] = 16  # domain examples whose exact kernel is taken at every checkpoint
    kernel: Literal["centered_trace", "trace", "pseudo", "probe"] = "centered_trace"
    candidates: Annotated[int, Range(2)] = 400  # pool examples ranked at every checkpoint
    top: Count | None = None  # N of the top-N overlap; by default a tenth of the candidates
    objectives: tuple[str, ...] = ("sum_logits", "probe", "cross_entropy")  # whose scores are compared
    groups: Natural = 96  # groups of pool examples trained on, to measure what the scores predict; 0: none
    group_size: Count = 16  # examples of one family
    group_steps: Count = 8  # Adam steps on them
    group_learning_rate: Positive | None = None  # by default warmup.learning_rate
    held_out: Count = 64  # questions of evaluate.files (without them domain examples) whose loss is measured
    audit: bool = True  # every approximation against the exact kernel
    audit_domain: Count = 16  # examples on its two sides; an exact kernel costs D backward passes for each of them
    audit_pool: Annotated[int, Range(2)] = 48
    audit_dims: tuple[Count, ...] = (256, 512, 1024, 2048, 4096, 8192)  # K of the projections
    regression: bool = True  # kernel ridge regression against fine-tuning, where domain and test are multiple choice
    questions: Count = 200  # of each file of evaluate.files, for the regression


@dataclass(frozen=True)
class ReportSection:
    """What the HTML report shows besides the tables."""

    examples: Natural = 20  # selected examples shown with the domain example they align with most
    group_by: str = "auto"  # the record key that names a family; auto: task if present, else source
    useful: tuple[str, ...] = ()  # families known to be useful, where that is known by construction


@dataclass(frozen=True)
class KernelSection:
    """A kernel matrix between two sets, over score.span and score.parameters."""

    a: tuple[str, ...] = ()
    b: tuple[str, ...] = ()  # empty: a itself
    limit: Count | None = None  # a seeded sample of each
    kind: Literal["full", "trace", "centered_trace", "pseudo", "probe"] = "trace"
    method: Literal["jacobian", "products"] = "jacobian"
    probes: Count = 16  # for kind: probe
    orthogonal: bool = False  # likewise; as many as the vocabulary has tokens are exact
    block_examples: Count = 16  # rows computed between two commits


@dataclass(frozen=True)
class MeshSection:
    """Devices along each axis; -1 takes what is left."""

    data: Axis = -1
    fsdp: Axis = 1
    tensor: Axis = 1


@dataclass(frozen=True)
class ShapeSection:
    """A model's shape in the words of Hugging Face's config.json, for where that file is not at hand."""

    model_type: str | None = None  # llama, qwen2, qwen3
    vocab_size: Count | None = None
    hidden_size: Count | None = None
    intermediate_size: Count | None = None
    num_hidden_layers: Count | None = None
    num_attention_heads: Count | None = None
    num_key_value_heads: Count | None = None
    head_dim: Count | None = None
    max_position_embeddings: Count | None = None
    tie_word_embeddings: bool | None = None


@dataclass(frozen=True)
class EstimateSection:
    """`ntk-jax estimate`: what to take for files, weights and devices that are not here. What is here is counted."""

    shape: ShapeSection = field(default_factory=ShapeSection)
    pool_examples: Count | None = None
    domain_examples: Count | None = None
    tokens_per_example: Positive | None = None  # mean of prompt and response, after truncation
    response_share: Fraction = 0.5  # of an example's tokens
    questions: Count | None = None  # of all files of evaluate.files together
    tokens_per_question: Positive | None = None  # its prompt once and all choices; by default tokens_per_example
    choice_tokens: Positive = 16.0  # of these, in all choices of a question together
    bytes_per_token: Positive = 4.5  # of text in a record
    id_bytes: Count = 32  # of the longest id
    sample: Annotated[int, Range(2)] = 400  # pool records that are tokenized, where they are here
    devices: Count | None = None  # by default those of this machine
    device: str | None = None  # A100, H100, H200, v4, v5e, v5p or v6e; by default this machine's
    rate: Positive | None = None  # a device's peak in FLOP/s, where its kind is not one of these
    utilization: Annotated[float, Range(0.01, 1)] = 0.4  # of that peak; --measure makes it a measurement
    reported: str = ""  # a cost reported elsewhere and its source, printed beside that of scoring the whole pool


@dataclass(frozen=True)
class Config:
    """A whole run."""

    out: str = ""
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    model: ModelSection = field(default_factory=ModelSection)
    lora: LoRASection = field(default_factory=LoRASection)
    data: DataSection = field(default_factory=DataSection)
    warmup: TrainSection = field(default_factory=TrainSection)
    score: ScoreSection = field(default_factory=ScoreSection)
    preselect: PreselectSection = field(default_factory=PreselectSection)
    sketch: SketchSection = field(default_factory=SketchSection)
    select: SelectSection = field(default_factory=SelectSection)
    finetune: TrainSection = field(default_factory=TrainSection)
    evaluate: EvaluateSection = field(default_factory=EvaluateSection)
    diagnose: DiagnoseSection = field(default_factory=DiagnoseSection)
    report: ReportSection = field(default_factory=ReportSection)
    kernel: KernelSection = field(default_factory=KernelSection)
    estimate: EstimateSection = field(default_factory=EstimateSection)
    mesh: MeshSection = field(default_factory=MeshSection)


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads YAML and applies overrides such as `score.objective=probe` (values are YAML too).

    Relative data and model paths are kept as written: they are relative to the working directory.
    """
    path = Path(path)
    try:
        tree = yaml.load(path.read_text(encoding="utf8"), Loader=_Loader)
    except OSError as error:
        raise UserError(f"cannot read the config {path}: {error.strerror}; give the path of a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        where = getattr(error, "problem_mark", None)
        line = f", line {where.line + 1}" if where else ""
        what = f" ({error.problem})" if isinstance(error, yaml.MarkedYAMLError) and error.problem else ""
        raise UserError(f"{path}{line}: not valid YAML{what}; mend the syntax") from None
    if tree is None:
        tree = {}
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a config is a mapping of sections; found {type(tree).__name__}")
    for override in overrides:
        _apply_override(tree, override)
    return build(Config, tree, str(path))


class _Loader(yaml.SafeLoader):
    """YAML that refuses a key given twice, of which the library would keep the last one silently."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen and isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key.value} is there twice", key.start_mark
                )
            seen.add(str(key.value))
        return super().construct_mapping(node, deep=deep)


def build(cls: type, tree: Mapping[str, Any], where: str, prefix: str = "") -> Any:
    """Makes dataclass `cls` from a mapping, strictly."""
    if not isinstance(tree, Mapping):
        raise UserError(f"{where}: {prefix.rstrip('.')} must be a mapping, got {tree!r}")
    hints = typing.get_type_hints(cls, include_extras=True)
    names = [f.name for f in dataclasses.fields(cls)]
    values = {}
    for key, value in tree.items():
        if key not in names:
            near = difflib.get_close_matches(str(key), names, n=1)
            mend = f"did you mean {prefix}{near[0]}?" if near else f"known keys: {', '.join(names)}"
            raise UserError(f"{where}: unknown key {prefix}{key}; {mend}")
        hint = hints[key]
        if dataclasses.is_dataclass(hint):
            values[key] = build(typing.cast(type, hint), value if value is not None else {}, where, f"{prefix}{key}.")
        else:
            values[key] = _coerce(value, hint, where, prefix + str(key))
    return cls(**values)


def to_tree(config: Any) -> Any:
    """The plain mapping that `build` reads back: what config.yaml of a run directory holds."""
    if dataclasses.is_dataclass(config):
        return {f.name: to_tree(getattr(config, f.name)) for f in dataclasses.fields(config)}
    return list(config) if isinstance(config, tuple) else config


def _apply_override(tree: dict[str, Any], override: str) -> None:
    name, equals, text = override.removeprefix("--").partition("=")
    if not equals or not name:
        raise UserError(f"override {override!r} is not of the form --section.key=value")
    *parents, last = name.split(".")
    node = tree
    for parent in parents:
        if node.get(parent) is None:  # absent, or a section whose keys are all commented out
            node[parent] = {}
        node = node[parent]
        if not isinstance(node, dict):
            raise UserError(f"override {override!r}: {parent} is not a section")
    try:
        node[last] = yaml.safe_load(text)
    except yaml.YAMLError:
        raise UserError(f"override {override!r}: the value is not valid YAML; quote it") from None


def _coerce(value: Any, hint: Any, where: str, key: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        value = _coerce(value, args[0], where, key)
        if not args[1].holds(value):
            raise UserError(f"{where}: {key} = {value!r} must be {args[1]}")
        return value
    if origin in (typing.Union, types.UnionType):
        if value is None:
            return None
        return _coerce(value, next(a for a in args if a is not type(None)), where, key)
    if origin is Literal:
        if value is None and "none" in args:  # YAML reads a bare `none` as a string, but `null` is a habit
            return "none"
        if value not in args:
            raise UserError(f"{where}: {key} = {value!r} is not one of {', '.join(map(str, args))}")
        return value
    if origin is tuple:
        items = [value] if isinstance(value, str) else value
        if not isinstance(items, (list, tuple)):
            raise UserError(f"{where}: {key} must be a list, got {value!r}")
        return tuple(_coerce(item, args[0], where, key) for item in items)
    if hint is float and isinstance(value, str):  # YAML 1.1 reads 2e-5 as text
        with contextlib.suppress(ValueError):
            value = float(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (isinstance(value, bool) and hint is not bool):
        raise UserError(f"{where}: {key} must be {hint.__name__}, got {value!r}")
    return value
