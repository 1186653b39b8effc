"""The table of stages of adversarial questions: what each reads, writes and depends on.

| stage    | reads             | writes (in its own folder)                                                            |
|----------|-------------------|----------------------------------------------------------------------------------------|
| chunk    | documents.files   | chunks.jsonl, summary.json                                                            |
| ask      | chunk, all roles  | questions.jsonl, traces.jsonl, prompts.jsonl, <method>.jsonl; calls in RUN/llm/<role> |
| train    | ask               | <arm>/: adapter or model, history.jsonl, summary.json                                 |
| evaluate | train             | results.json, predictions/<arm>/, losses/<arm>/, answers/<arm>/                       |
"""

from __future__ import annotations

from typing import Any

from ntk_jax.engine.stage import Address, Pipeline, Stage
from ntk_jax.pipelines.common.sections import evaluation_reads

_HERE = "ntk_jax.pipelines.question"
_ROLES = ("expert", "target", "generator", "reviser", "judge", "second_judge")
# Replies are those of a model, wherever its server stands: what was paid for stays when that moves.
_LLM = tuple(f"{role}.{key}" for role in _ROLES for key in ("kind", "model", "dtype", "body"))
# Of the methods that an `ask` runs; in which order arms are trained, and how, is the training's.
_ASK = ("model", "ask", "evaluate.files", "evaluate.general", "train.arms", *_LLM)
_TRAIN = tuple(
    f"train.{key}"
    for key in ("epochs", "max_steps", "learning_rate", "batch_size", "schedule", "warmup_ratio", "weight_decay")
    + ("beta1", "beta2", "max_grad_norm", "parameters", "tokens", "evaluations", "by_round", "with_passage", "arms")
)


def _final(config: Any) -> tuple[str, ...]:
    """What a run of this config leads up to: the evaluation where there is something to evaluate on."""
    return ("evaluate",) if config.evaluate.files or config.evaluate.general else ("train",)


def _ask_reads(config: Any) -> tuple[str, ...]:
    """The target's answers and likelihoods hang on all that is set of it; a later generation asks one that was
    trained."""
    encoder = ("encoder",) if config.ask.cosine < 1 else ()
    return (*_ASK, *encoder, *(("lora", *_TRAIN) if config.ask.generations > 1 else ()))


def _evaluate_reads(config: Any) -> tuple[str, ...]:
    return (*evaluation_reads(config), "evaluate.general", "evaluate.by_document")


PIPELINE = Pipeline(
    name="question",
    command="question",
    title="Adversarial questions",
    help="find what a model does not understand in documents, and train on an expert's answers",
    description=(
        "From documents, a model and a stronger one to the questions that the model fails: a question is asked of each "
        "chunk, both answer, the gap between them is measured and the question rewritten so that it grows; what is "
        "verified is kept, the model is trained on the expert's answers beside other methods with the same number of "
        "tokens, and all are compared. Runs the stages in order and skips what is finished. Writes "
        "RUN/questions.jsonl: records with the whole account of how each came to be."
    ),
    config=Address(f"{_HERE}.config:QuestionConfig"),
    open=Address(f"{_HERE}.state:open_run"),
    inputs=Address(f"{_HERE}.state:input_hashes"),
    final=_final,
    check=Address(f"{_HERE}.state:check"),
    facts=Address(f"{_HERE}.state:facts"),
    part=Address(f"{_HERE}.report:part"),
    beside=Address(f"{_HERE}.beside:write_questions"),
    terminal=Address(f"{_HERE}.terminal:terminal"),
    load=Address(f"{_HERE}.costs:load"),
    notes=Address(f"{_HERE}.costs:notes"),
    doctor=Address(f"{_HERE}.doctor:checks"),
    export=Address(f"{_HERE}.export:export"),
    spoken=("chunk", "ask", "train", "evaluate"),
    stages=(
        Stage(
            name="chunk",
            title="Chunks",
            help="documents cut into the chunks that questions are asked about",
            description="Reads documents.files, drops what is empty, doubled or unreadable (counted by reason), keeps "
            "a share of the documents unseen and cuts the others at the ends of sentences. Writes chunk/chunks.jsonl.",
            function=Address(f"{_HERE}.chunk:chunk"),
            reads=("seed", "documents", "model.max_length", "ask.answer_tokens"),
            inputs=("documents", "model"),
            check=Address(f"{_HERE}.chunk:check"),
            check_inputs=Address(f"{_HERE}.chunk:check_inputs"),
            cost=Address(f"{_HERE}.costs:chunk"),
        ),
        Stage(
            name="ask",
            title="Questions",
            help="asks, measures the gap, rewrites and verifies; and has the other methods write",
            description="Looks in every chunk for the questions with the largest gap between target and expert, in "
            "rounds over all chunks together; verifies them, drops near-duplicates and what an evaluation asks, and "
            "has the other methods write as many tokens from the same chunks. Writes ask/questions.jsonl, "
            "ask/traces.jsonl and ask/<method>.jsonl.",
            function=Address(f"{_HERE}.ask:ask"),
            after=lambda config: ("chunk",),
            reads=_ask_reads,
            inputs=("llm", "encoder", "decontaminate"),
            check=Address(f"{_HERE}.ask:check"),
            check_inputs=Address(f"{_HERE}.ask:check_inputs"),
            cost=Address(f"{_HERE}.costs:ask"),
        ),
        Stage(
            name="train",
            title="Training",
            help="one fine-tuning for each arm, the same number of tokens each",
            description="Trains the target on the records of every arm of train.arms, a fresh adapter or all the "
            "weights (train.parameters), all with the same number of training tokens. Writes train/<arm>/.",
            function=Address(f"{_HERE}.train:train"),
            after=lambda config: ("ask",),
            reads=("lora", *_TRAIN),
            check=Address(f"{_HERE}.train:check"),
            cost=Address(f"{_HERE}.costs:train"),
        ),
        Stage(
            name="evaluate",
            title="Evaluation",
            help="accuracy, held-out loss and generated answers of every arm",
            description="Evaluates the base and every arm on evaluate.files, items on documents that were asked about "
            "and on others apart, and on evaluate.general, where forgetting shows. Writes evaluate/.",
            function=Address(f"{_HERE}.evaluate:evaluate"),
            after=lambda config: ("train",),
            reads=_evaluate_reads,
            inputs=("evaluate",),
            shows=("evaluate.arms", "evaluate.metrics", "evaluate.bootstrap", "evaluate.confidence"),
            check=Address(f"{_HERE}.evaluate:check"),
            check_inputs=Address(f"{_HERE}.evaluate:check_inputs"),
            cost=Address(f"{_HERE}.costs:evaluate"),
        ),
    ),
)
