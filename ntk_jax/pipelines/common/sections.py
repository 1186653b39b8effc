"""The sections of a config that pipelines share. Every default is stated here, or beside the section of one
pipeline."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ntk_jax.kernels.names import NormalizationName, ObjectiveName
from ntk_jax.settings import Count, Fraction, Natural, NotNegative, Positive, Range, section, setting

Format = Literal["auto", "records", "alpaca", "sharegpt", "openai", "text"]
Axis = Annotated[int, Range(-1)]  # of the mesh; `make_mesh` has the last word


@dataclass(frozen=True)
class ModelSection:
    """The backbone, and how text becomes its tokens."""

    path: str = setting("", "a Hugging Face directory, a hub id, or builtin:model")
    adapter: str | None = setting(None, "a PEFT directory to start from instead of fresh LoRA; lora.* then has no say")
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "type of computation and frozen weights; adapters stay float32"
    )
    quantization: Literal["int8", "float8_e4m3fn"] | None = setting(
        None, "hold the layers' frozen matrices in 8 bits; adapters train and score over them; null: as dtype"
    )
    max_length: Annotated[int, Range(2)] = setting(
        1024, "tokens of an example; longer ones are dropped or truncated, and counted"
    )
    overflow: Literal["drop", "truncate"] = setting(
        "drop", "what becomes of a longer example: left out, or the start of its prompt's text is cut"
    )
    template: Literal["auto", "chat", "plain"] = setting("auto", "auto: the tokenizer's chat template where it has one")
    template_options: Mapping[str, Any] | None = setting(
        None,
        "what the chat template is given besides the messages: enable_thinking, tools, documents, ...; chat_template "
        "is the name of one of several or a file, system a message for talks that have none",
    )
    control_tokens: Literal["literal", "keep", "drop"] = setting(
        "literal",
        "what becomes of control tokens such as <|im_end|> that a record's text spells: text, control tokens, or the "
        "record is dropped; counted",
    )
    add_eos: bool = setting(True, "plain template only: close the response with the tokenizer's EOS token")
    ignore_config_keys: tuple[str, ...] = setting(
        (), "unknown keys of config.json that you know not to change the model; without this they are refused"
    )


@dataclass(frozen=True)
class LoRASection:
    """Adapter shape, unless model.adapter brings its own. The paper states only "about 0.5% of parameters": rank 16 on
    all seven linears fits."""

    rank: Count = setting(16, "R, the adapter's rank")
    alpha: Positive = setting(32.0, "the adapter's output is scaled by alpha / rank")
    targets: tuple[str, ...] = setting(
        ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"),
        "linear layers that get an adapter; patterns",
    )


@dataclass(frozen=True)
class DataSection:
    """The examples of the domain and of the pool. Relative paths start at the working directory."""

    domain: tuple[str, ...] = setting(
        (), "the domain's examples: files, globs, builtin:NAME, tfds:NAME/SPLIT or hf:NAME/SPLIT"
    )
    pool: tuple[str, ...] = setting((), "the general pool: files, globs and names as of data.domain")
    format: Format = setting("auto", "what the files of both are; auto: each is recognised by its first record")
    columns: Mapping[str, Any] | None = setting(
        None, "where a record's fields come from, as {prompt: question}; or such a mapping for each {file pattern: ...}"
    )
    domain_limit: Count | None = setting(None, "a seeded sample of so many of the domain; null: all of it")
    pool_limit: Count | None = setting(None, "a seeded sample of so many of the pool; null: all of it")


@dataclass(frozen=True)
class EncoderSection:
    """The encoder whose embeddings are compared: BERT-type (bge, e5, gte, MiniLM), a decoder that embeds with its last
    token, or any Llama or Qwen model, whose mean hidden state then serves."""

    path: str = setting("builtin:model", "a Hugging Face directory, a hub id, or builtin:model")
    pooling: Literal["cls", "mean", "last"] | None = setting(None, "null: what the encoder's own files say")
    normalize: bool | None = setting(None, "to unit length; null: what the encoder's own files say, or true")
    query_prefix: str | None = setting(None, "put before a seed, such as 'query: '; null: what the files say")
    passage_prefix: str | None = setting(None, "put before a chunk, such as 'passage: '; null: what the files say")
    max_tokens: Count | None = setting(None, "tokens read at once; null: the encoder's limit")
    dtype: Literal["float32", "bfloat16"] = setting(
        "float32", "of weights and computation; the best of a search in bfloat16 are scored again in float32"
    )


@dataclass(frozen=True)
class TrainSection:
    """One LoRA fine-tuning."""

    epochs: NotNegative = setting(3.0, "passes over the examples")
    max_steps: Natural | None = setting(
        None, "optimiser steps instead of epochs; warmup.max_steps = 0 takes model.adapter as it is"
    )
    learning_rate: NotNegative = setting(2e-5, "peak of the learning rate")
    batch_size: Count = setting(128, "examples of an optimiser step")
    schedule: Literal["linear", "cosine", "constant"] = setting(
        "linear", "course of the learning rate after its warm-up"
    )
    warmup_ratio: Fraction = setting(0.03, "share of the steps over which the learning rate rises; below 1")
    weight_decay: NotNegative = setting(0.0, "AdamW's weight decay, on matrices")
    beta1: Fraction = setting(0.9, "decay of Adam's first moment; below 1")
    beta2: Fraction = setting(0.999, "decay of Adam's second moment; below 1")
    max_grad_norm: NotNegative = setting(1.0, "the gradient is clipped to this norm; 0: no clipping")
    loss: Literal["token_mean", "example_mean"] = setting(
        "token_mean",
        "mean over the label tokens of a step, where long responses weigh more, or over its examples, each by its mean",
    )
    tokens_per_microbatch: Count = setting(8192, "gradient accumulation: a step runs as many microbatches as it needs")
    checkpoint_every: Count = setting(50, "optimiser steps between two checkpoints")


@dataclass(frozen=True)
class ScoreSection:
    """What scalar is differentiated, over which positions and parameters, along which direction."""

    objective: ObjectiveName = setting("sum_logits", "the scalar that is differentiated; sum_logits is the paper's")
    span: Literal["response", "all", "last"] = setting("response", "the positions that count")
    normalize: NormalizationName = setting("mean", "how values are added up over the span; none is another name of sum")
    parameters: str = setting(
        "lora", "lora, lora[-4:] (of the last four layers, whose tangents start there), all, or a pattern over names"
    )
    probes: Count = setting(4, "random directions of objective probe")
    direction: str = setting(
        "mean_gradient",
        "mean_gradient, adam (preconditioned by the warm-up's second moments), or a direction.safetensors",
    )
    attention: Literal["auto", "xla", "pallas"] = setting(
        "xla", "pallas: a kernel for GPUs; auto: there, in bf16 with heads 128 wide, for which it was measured"
    )
    batch_tokens: Count = setting(
        8192, "tokens of one compiled step over all devices; the first thing to lower when memory is short"
    )
    block_examples: Count = setting(2048, "examples scored between two commits")
    allow_fresh_lora: bool = setting(False, "score with B = 0, where every gradient of A vanishes")


@dataclass(frozen=True)
class EvaluateSection:
    """Files of multiple-choice questions, or of any held-out examples, and the arms compared on them."""

    files: tuple[str, ...] = setting((), "each is a task: questions with choices, or any records with responses")
    format: Format = setting("auto", "what these files are, as data.format")
    columns: Mapping[str, Any] | None = setting(None, "where the fields of a question come from, as data.columns")
    metrics: tuple[str, ...] | None = setting(
        None,
        "accuracy (of records with choices), loss (of the response of any record) and generated (an answer that the "
        "model writes to any record); null: accuracy where a file has choices, else loss",
    )
    answer_rule: Literal["auto", "exact", "number", "letter", "regex"] = setting(
        "auto",
        "where a generated answer stands in a reply: exact (all of it), number (the last), letter (of the choices, "
        "which are listed), regex; auto: letter, number or exact by the record",
    )
    answer_pattern: str | None = setting(None, "of answer_rule regex: its first group, or all of it, is the answer")
    answer_tokens: Count = setting(256, "tokens of a generated answer at most")
    answer_stop: tuple[str, ...] = setting((), "texts that end a generated answer")
    shots: Natural = setting(0, "solved examples before each question, the same for all questions of a task")
    shot_files: Mapping[str, Any] | None = setting(
        None,
        "where these come from: {task or pattern: file}; a task that none fits has the file beside its own with train "
        "in place of test in its name; a record that asks what a question of the task asks is passed over",
    )
    limit: Count | None = setting(None, "a seeded sample of so many records of each file; null: all")
    arms: tuple[str, ...] | None = setting(
        None,
        "base, domain, a method of select.methods, or file:PATH; null: base, domain, and every method, the first last",
    )
    bootstrap: Count = setting(1000, "resamples of the records")
    confidence: Annotated[float, Range(0, 1, open=True)] = setting(0.95, "level of the intervals")


def evaluation_reads(config: Any) -> tuple[str, ...]:
    """The keys that decide what an evaluation finds of an arm."""
    shots = ("evaluate.shots", "evaluate.shot_files") if config.evaluate.shots else ()
    generated = "generated" in (config.evaluate.metrics or ())
    answers = tuple(f"evaluate.answer_{key}" for key in ("rule", "pattern", "tokens", "stop")) if generated else ()
    return ("evaluate.files", "evaluate.limit", *shots, *answers)


@dataclass(frozen=True)
class PageSection:
    """What the report shows besides the tables."""

    examples: Natural = setting(
        20, "examples shown: selected ones with the domain example they align with most, mined ones, drops"
    )
    tensorboard: bool = setting(
        False, "also write the metrics of trainings and evaluations for TensorBoard, into RUN/tensorboard"
    )


@dataclass(frozen=True)
class ReportSection(PageSection):
    """What the report shows besides the tables, where families of a pool are counted."""

    group_by: str = setting("auto", "the record key that names a family; auto: task if present, else source")
    useful: tuple[str, ...] = setting((), "families known to be useful, where that is known by construction")


@dataclass(frozen=True)
class MeshSection:
    """Devices along each axis; -1 takes what is left."""

    data: Axis = setting(-1, "devices over which batches are split")
    fsdp: Axis = setting(1, "devices over which weights are split, and batches too")
    tensor: Axis = setting(1, "devices over which the matrices of a layer are split")


@dataclass(frozen=True)
class ShapeSection:
    """A model's shape in the words of Hugging Face's config.json, for where that file is not at hand."""

    model_type: str | None = setting(None, "llama, mistral, qwen2 or qwen3")
    vocab_size: Count | None = setting(None, "V, tokens of the vocabulary")
    hidden_size: Count | None = setting(None, "D, width of the hidden states")
    intermediate_size: Count | None = setting(None, "inner width of the MLP")
    num_hidden_layers: Count | None = setting(None, "L, layers")
    num_attention_heads: Count | None = setting(None, "heads of the queries")
    num_key_value_heads: Count | None = setting(None, "heads of keys and values")
    head_dim: Count | None = setting(None, "width of a head")
    max_position_embeddings: Count | None = setting(None, "positions that the model knows")
    tie_word_embeddings: bool | None = setting(None, "whether the head is the embedding")


@dataclass(frozen=True)
class DevicesSection:
    """The model and the devices of an estimate, where they are not here."""

    shape: ShapeSection = section(ShapeSection)
    devices: Count | None = setting(None, "devices of the run; null: those of this machine")
    device: str | None = setting(None, "their kind: A100, H100, H200, v4, v5e, v5p or v6e; null: this machine's")
    rate: Positive | None = setting(None, "a device's peak in FLOP/s, where its kind is not one of these")
    utilization: Annotated[float, Range(0.01, 1)] = setting(
        0.4, "share of the peak that is reached; --measure makes it a measurement"
    )


@dataclass(frozen=True)
class TextsEstimateSection(DevicesSection):
    """`ntk-jax estimate`: what to take for texts, weights and devices that are not here. What is here is counted."""

    words: Count | None = setting(None, "words of all texts; null: from a sample of their files")
    documents: Count = setting(200, "documents that are read and tokenized to know the others")
    tokens_per_word: Positive = setting(1.35, "of the model that reads the texts, where its tokenizer is not here")
    reply_tokens_per_second: Positive | None = setting(None, "of one reply; null: no time is stated for replies")
