"""The config of adversarial questions: the documents, who asks and answers, what counts as a gap, what is kept, and how
the arms are trained and compared."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from ntk_jax.pipelines.common.llm import LLMSection
from ntk_jax.pipelines.common.sections import (
    EncoderSection,
    EvaluateSection,
    LoRASection,
    MeshSection,
    ModelSection,
    PageSection,
    TextsEstimateSection,
    TrainSection,
)
from ntk_jax.settings import Count, Fraction, Natural, NotNegative, Range, section, setting

Cosine = Annotated[float, Range(-1, 1)]


@dataclass(frozen=True)
class DocumentsSection:
    """The documents that questions are asked about."""

    files: tuple[str, ...] = setting(
        (),
        "text files (.txt, .md), each a document; JSONL, tables, Parquet or Arrow files, hf:NAME/SPLIT, one document a "
        "record; globs",
    )
    columns: Mapping[str, Any] | None = setting(
        None,
        "which columns of records hold what, as {text: body, title: head, id: key}, or {pattern: such a mapping} for "
        "the files of that name",
    )
    where: Mapping[str, Any] | None = setting(
        None, "only records whose keys have these values, as {kind: contract}; null: all"
    )
    limit: Count | None = setting(None, "a seeded sample of so many documents; null: all")
    trained: Annotated[float, Range(0, 1)] = setting(
        1.0, "share of the documents that questions are asked about; the others are kept unseen, to be evaluated on"
    )
    words: Count = setting(200, "words of a chunk at most; it ends with a sentence")
    chunks: Count | None = setting(None, "a seeded sample of so many chunks is asked about; null: all")
    languages: tuple[str, ...] = setting((), "documents in these languages only, such as [en]; none: any")


@dataclass(frozen=True)
class AskSection:
    """The loop: what is asked, how it is rewritten, what is verified and how much is kept. The paper states neither the
    rounds nor the number of questions; these defaults are this package's."""

    per_chunk: Count = setting(2, "questions that are looked for in each chunk")
    count: Count | None = setting(None, "questions that each generation keeps; null: all that are verified")
    negative: Fraction = setting(0.1, "share of the questions whose right answer is no")
    unanswerable: Fraction = setting(0.05, "share of the questions that the document does not answer")
    cross: Fraction = setting(0.05, "share of the questions that take passages of two documents")
    rounds: Natural = setting(3, "rounds of rewriting after the first question; 0: none")
    patience: Count = setting(2, "rounds without a larger gap until a question is left alone")
    min_gain: NotNegative = setting(0.0, "by how much a rewritten question must widen the gap")
    enough: float | None = setting(None, "gap from which on a question is not rewritten any more; null: there is none")
    calls: Count | None = setting(None, "calls to all models that the loop may make, about; null: no bound")
    signal: Literal["nll", "judge", "both", "band"] = setting(
        "nll",
        "the gap: nats a token of the expert's answer under the target, less those of ask.reference; judge: how far a "
        "judge finds the answers apart; band: the target sometimes right where the expert is sure",
    )
    reference: Literal["context", "expert"] = setting(
        "context", "of signal nll: the target with the passage in view, or the expert, which then is in this process"
    )
    target_sees_document: bool = setting(
        True, "the target answers with the passage in view, as the paper has it; false: it does not see it"
    )
    feedback: bool = setting(True, "what the answers show is put into words for whoever rewrites the question")
    quotes: Literal["copied", "found"] = setting(
        "copied",
        "the expert copies the words that show its answer; found: where these do not stand in the chunk, the sentence "
        "that says most of the answer serves",
    )
    judged: bool = setting(True, "a judge decides whether the chunk gives the answer; false: only what needs no model")
    samples: Natural = setting(3, "times that the expert answers again, to see whether it is sure; 0: none")
    consistency: Fraction = setting(0.55, "agreement of these answers that a question needs to be kept")
    target_samples: Count = setting(4, "of signal band: answers that target and expert draw")
    calibration: Natural = setting(24, "planted pairs of each kind by which every judge is judged itself; 0: none")
    quota: Count = setting(1, "questions of every chunk that are kept before any chunk has more")
    most_per_chunk: Count | None = setting(None, "questions of a chunk that are kept at most; null: any number")
    least_gap: float | None = setting(None, "gap below which a question is not kept; null: there is none")
    similarity: Fraction = setting(0.7, "Jaccard similarity from which on a question is dropped as a near-duplicate")
    cosine: Cosine = setting(0.95, "cosine of embeddings from which on it is one; 1: embeddings are not compared")
    decontaminate: tuple[str, ...] = setting(
        (), "files of evaluation items besides evaluate.files; questions that share words with one are dropped"
    )
    overlap: Count = setting(8, "words in a row that a question may not share with an evaluation item")
    generations: Count = setting(1, "times that all is asked anew, each against the target trained on what was kept")
    format: Literal["auto", "json", "text"] = setting(
        "auto", "how models are asked to reply; text: for small models, which cannot write JSON"
    )
    temperature: NotNegative = setting(1.0, "of questions; answers and verdicts are greedy")
    top_p: Fraction = setting(0.95, "of questions")
    question_tokens: Count = setting(120, "tokens of a question at most")
    answer_tokens: Count = setting(240, "tokens of an answer at most")
    verdict_tokens: Count = setting(160, "tokens of a verdict or of feedback at most")
    method_tokens: Count = setting(600, "tokens of a reply of the other methods at most")
    tokens: Count | None = setting(
        None, "tokens of training text that every other method writes; null: as many as the kept questions have"
    )


@dataclass(frozen=True)
class QuestionTrainSection(TrainSection):
    """One fine-tuning for each arm, all with the same number of training tokens."""

    arms: tuple[str, ...] = setting(
        ("adversarial", "static", "paraphrase", "entities", "facts", "calibration", "strategies", "documents"),
        "what is trained on and compared; base, the model as it was, always stands beside them",
    )
    parameters: Literal["lora", "all"] = setting("lora", "train an adapter, or all the weights")
    tokens: Count | None = setting(
        None, "tokens that each arm is trained on, to within a step; null: train.epochs of the kept questions"
    )
    evaluations: Count = setting(1, "times that an arm is evaluated along its training, evenly, the last at the end")
    by_round: bool = setting(False, "also an arm for each round: the questions as they stood after it")
    with_passage: bool = setting(False, "the chunk stands before the question in training, too")


@dataclass(frozen=True)
class QuestionEvaluateSection(EvaluateSection):
    """Files that the arms are compared on, and what shows what they forget."""

    general: tuple[str, ...] = setting((), "files of other subjects: what a model forgets shows there")
    by_document: str | None = setting(
        None,
        "the key of an item that names its document, such as document_id: items on documents that were asked about "
        "and on others have results of their own, each of evaluate.limit items",
    )


@dataclass(frozen=True)
class QuestionEstimateSection(TextsEstimateSection):
    """`ntk-jax estimate`: what to take for files, weights and devices that are not here. What is here is counted."""

    kept_questions: Annotated[float, Range(0, 1, open=True)] = setting(0.5, "share of the questions that are kept")
    answer_words: Count = setting(40, "words of an answer")


@dataclass(frozen=True)
class QuestionConfig:
    """Adversarial questions: from documents, a model and a stronger one to the questions that the model fails, and
    models trained on the answers."""

    out: str = setting("", "the run directory: a folder, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER")
    seed: Annotated[int, Range(0, 2**32 - 1)] = setting(0, "seed of everything random")
    model: ModelSection = section(ModelSection)
    lora: LoRASection = section(LoRASection)
    documents: DocumentsSection = section(DocumentsSection)
    expert: LLMSection = section(LLMSection)
    target: LLMSection = section(LLMSection)
    generator: LLMSection = section(LLMSection)
    reviser: LLMSection = section(LLMSection)
    judge: LLMSection = section(LLMSection)
    second_judge: LLMSection = section(LLMSection)
    encoder: EncoderSection = section(EncoderSection)
    ask: AskSection = section(AskSection)
    train: QuestionTrainSection = section(QuestionTrainSection)
    evaluate: QuestionEvaluateSection = section(QuestionEvaluateSection)
    report: PageSection = section(PageSection)
    estimate: QuestionEstimateSection = section(QuestionEstimateSection)
    mesh: MeshSection = section(MeshSection)


ROLES = ("expert", "generator", "reviser", "judge", "second_judge", "target")
_FALLS_BACK = {"generator": "expert", "reviser": "generator", "judge": "expert"}  # where a role names no model


def player(config: QuestionConfig, role: str) -> str | None:
    """The role whose section says who plays this one: its own where it names a model, else that of another; None: the
    target in this process, or nobody."""
    found: str | None = role
    while found is not None and not getattr(config, found).model:
        found = _FALLS_BACK.get(found)
    return found


def judges(config: QuestionConfig) -> bool:
    """Whether anybody judges in the loop."""
    return config.ask.judged or config.ask.signal in ("judge", "both")


def evaluation_sources(config: QuestionConfig) -> tuple[str, ...]:
    """All files that are evaluated on."""
    return (*config.evaluate.files, *config.evaluate.general)


def shares(config: QuestionConfig) -> Mapping[str, float]:
    """{kind: share of the questions} of the kinds that are not plain."""
    return {kind: getattr(config.ask, kind) for kind in ("negative", "unanswerable", "cross")}
