"""The config of mining: what the domains are, where the corpus lies, who writes the seeds, how labels become a corpus,
and what is trained on it."""

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
)
from ntk_jax.pipelines.mine.pretrain_config import PretrainSection
from ntk_jax.settings import Count, Fraction, Natural, NotNegative, Positive, Range, section, setting

Cosine = Annotated[float, Range(-1, 1)]


@dataclass(frozen=True)
class GopherSection:
    """The quality rules of MassiveText (Rae et al., arXiv 2112.11446, appendix A1), for corpus.quality = gopher. A rule
    is switched off by a threshold that nothing passes."""

    min_words: Natural = setting(50, "words of a document at least")
    max_words: Count = setting(100_000, "and at most")
    min_word_length: NotNegative = setting(3.0, "characters of a word on average at least")
    max_word_length: NotNegative = setting(10.0, "and at most")
    max_symbols: NotNegative = setting(0.1, "# for each word, or ellipses")
    max_bullet_lines: Fraction = setting(0.9, "share of lines that begin with a bullet")
    max_ellipsis_lines: Fraction = setting(0.3, "share of lines that end with an ellipsis")
    min_alphabetic: Fraction = setting(0.8, "share of words with a letter")
    stop_words: tuple[str, ...] = setting(
        ("the", "be", "to", "of", "and", "that", "have", "with"), "common words of the language"
    )
    min_stop_words: Natural = setting(2, "different ones of them that a document has at least")
    max_repeated_lines: Fraction = setting(0.3, "share of lines that stood before in the document")
    max_repeated_paragraphs: Fraction = setting(0.3, "the same of paragraphs")
    max_repeated_line_characters: Fraction = setting(0.2, "the same of lines, by characters")
    max_repeated_paragraph_characters: Fraction = setting(0.2, "the same of paragraphs, by characters")
    max_top_runs: tuple[Fraction, ...] = setting(
        (0.2, 0.18, 0.16), "share of characters in the most frequent run of 2, 3, 4 words"
    )
    max_repeated_runs: tuple[Fraction, ...] = setting(
        (0.15, 0.14, 0.13, 0.12, 0.11, 0.1), "share of characters in repeated runs of 5, 6, ... words"
    )


@dataclass(frozen=True)
class CorpusSection:
    """The corpus: where it lies, what is taken out of a page, and what is dropped. Every drop is counted by reason."""

    files: tuple[str, ...] = setting(
        (),
        "WARC and WET files, JSONL, tables, Parquet, Arrow, text and HTML files, folders of these, tfds:NAME/SPLIT or "
        "hf:NAME/SPLIT; globs",
    )
    columns: Mapping[str, Any] | None = setting(
        None, "keys of records under other names, as {text: body, title: head, url: link, id: key, source: origin}"
    )
    limit: Count | None = setting(None, "a seeded sample of so many chunks is mined; null: all")
    shards: Count = setting(8, "pieces of the corpus, each the work of one process; whatever the number of files")
    workers: Count = setting(1, "local processes that work on shards at once")
    runner: Literal["local", "beam"] = setting("local", "beam: Apache Beam (extra beam), for a corpus on many machines")
    beam_options: tuple[str, ...] = setting((), "options of Beam, such as --runner=DataflowRunner")
    extractor: Literal["resiliparse", "trafilatura"] = setting(
        "resiliparse", "takes a page's main text out of its HTML (extras crawl, trafilatura)"
    )
    page_seconds: Positive = setting(5.0, "a page whose extraction takes longer is dropped, and its process ended")
    languages: tuple[str, ...] = setting((), "documents in these languages only, such as [en]; none: any")
    quality: Literal["none", "gopher"] = setting("none", "gopher: the rules of corpus.gopher")
    gopher: GopherSection = section(GopherSection)
    words: Count = setting(2500, "words of a chunk at most; it ends with a sentence")
    min_words: Natural = setting(20, "chunks with fewer words are left out")
    exact_duplicates: bool = setting(True, "drop documents whose text stood before")
    near_duplicates: Fraction = setting(
        0.8, "drop documents that share so much of their word runs with an earlier one (MinHash); 0: none"
    )
    paragraph_words: Natural = setting(
        10, "paragraphs of at least so many words that stood in an earlier document are cut out; 0: none"
    )
    decontaminate: tuple[str, ...] = setting(
        (), "evaluation files; documents that share a run of corpus.overlap words with one of them are dropped"
    )
    overlap: Count = setting(13, "words of such a run")


@dataclass(frozen=True)
class SeedsSection:
    """The texts that stand for a domain: written by a language model, or the user's own. The paper has 200 a domain."""

    per_domain: Natural = setting(200, "seeds that are written for each domain; 0: none is")
    files: Mapping[str, Any] | None = setting(
        None, "own seeds: {domain: file or list of files}, or {'*': a file whose records name their domains}"
    )
    keywords: Mapping[str, Any] | None = setting(None, "own seeds from words: {domain: [word, ...]}")
    own_limit: Count | None = setting(None, "a seeded sample of so many of each domain's own documents; null: all")
    dimensions: Mapping[str, Any] | None = setting(
        None, "other lists than the paper's, {types: [...], lengths: [...], demeanours: [...]}"
    )
    topics: Mapping[str, Any] | None = setting(
        None, "{domain: [topic, ...]}, which the written seeds go through; null: the model chooses"
    )
    topics_per_domain: Natural = setting(
        0, "topics that the model lists of each domain first, for the seeds to go through; 0: none"
    )
    two_domains: Fraction = setting(0.1, "share of the written seeds that belong to two domains")
    format: Literal["auto", "json", "text"] = setting(
        "auto", "how the model is asked to reply; text: for small models, which cannot write JSON"
    )
    max_tokens: Count = setting(1500, "tokens of a reply")
    temperature: NotNegative = setting(1.0, "of the replies")
    top_p: Fraction = setting(0.95, "of the replies")
    similarity: Fraction = setting(0.7, "Jaccard similarity from which on a seed is dropped as a near-duplicate")
    cosine: Cosine = setting(0.95, "cosine of embeddings from which on a seed is dropped as a near-duplicate")
    min_words: Natural = setting(20, "a seed with fewer words is dropped")


@dataclass(frozen=True)
class EmbedSection:
    """Embeds the corpus and compares it with all seeds in the same pass."""

    combine: Literal["best", "mean"] = setting(
        "best", "the score of a chunk that is longer than the encoder reads: that of its best window, or their mean"
    )
    neighbours: Count = setting(200, "nearest chunks kept of each seed")
    batch_tokens: Count | None = setting(None, "tokens of one compiled step over all devices; null: what suits them")
    block_chunks: Count = setting(2048, "chunks embedded between two commits")
    keep: bool = setting(True, "keep the embeddings on the disk, for the classifier; false: it embeds again")


@dataclass(frozen=True)
class LabelSection:
    """From nearest neighbours to a labelled set, which is what the classifier learns from."""

    source: Literal["seeds", "documents", "llm"] = setting(
        "seeds", "what labels: nearest seeds, your own documents (label.files), or a language model that reads a sample"
    )
    files: Mapping[str, Any] | None = setting(
        None,
        "own documents, for source documents: {domain: file or list of files} for every domain and contrast, or "
        "{'*': a file whose records name their domains}",
    )
    thresholds: Mapping[str, Any] | None = setting(
        None, "cosine from which on a chunk is labelled, {domain: number}; null: the suggested ones"
    )
    share: Annotated[float, Range(0, 1, open=True)] | None = setting(
        None, "the suggested threshold keeps this share of the corpus; null: it follows from the shape of the cosines"
    )
    judged: Natural = setting(0, "chunks of each domain that the language model judges to suggest a threshold")
    precision: Fraction = setting(0.9, "precision on the judged chunks that the suggested threshold aims at")
    per_seed: Count = setting(20, "labelled chunks that one seed may bring")
    most: Count | None = setting(
        None,
        "labelled chunks of a domain at most, those that lie far apart, for source seeds; null: all that are found",
    )
    margin: NotNegative = setting(0.05, "a chunk gets a second domain within this cosine of its best one")
    negatives: Positive = setting(3.0, "negative examples for each positive one")
    middle: Fraction = setting(0.5, "share of the negatives that are hard: from the middle band of cosines")
    with_seeds: bool = setting(False, "the seeds themselves are positive examples, too")
    sample: Count = setting(1000, "chunks that the language model labels, for source llm")


@dataclass(frozen=True)
class ClassifySection:
    """The classifier that spreads the labels over the corpus, and what it takes."""

    kind: Literal["head", "ngrams", "encoder"] = setting(
        "head",
        "on the encoder's embeddings; on hashed word n-grams, which is cheaper and needs none; or the encoder itself, "
        "fine-tuned, which embeds the corpus a second time",
    )
    hidden: Natural = setting(0, "width of a hidden layer of kind head; 0: linear")
    epochs: Positive = setting(2.0, "passes over the labelled set, for kind encoder")
    learning_rate: Positive = setting(2e-5, "of AdamW at its peak, for kind encoder")
    batch: Count = setting(32, "windows of the encoder in a step, for kind encoder")
    held_out: Fraction = setting(0.2, "share of the labelled set that the classifier is measured on")
    precision: Fraction | None = setting(
        None,
        "held-out precision that a domain's threshold aims at; null: the threshold of the best F1, for labels that "
        "were mined make precision look lower than it is: what belongs to a domain stands among their negatives, too",
    )
    thresholds: Mapping[str, Any] | None = setting(
        None, "probability from which on a chunk is taken, {domain: number}; null: by the held-out labels"
    )
    most_words: Count | None = setting(
        None, "words of the mined text at most, the best of each domain first, in turn; null: all that is taken"
    )
    near_duplicates: Fraction = setting(
        0.97, "cosine from which on a mined chunk is dropped as a semantic near-duplicate; 1: none is"
    )


@dataclass(frozen=True)
class AuditSection:
    """A language model judges a sample of the mined text, and planted wrong labels with it."""

    chunks: Natural = setting(0, "mined chunks judged for each domain; 0: no audit")
    planted: Fraction = setting(0.25, "share of wrong labels put among them, by which the judge itself is judged")
    max_tokens: Count = setting(200, "tokens of a verdict")


@dataclass(frozen=True)
class MineEstimateSection(TextsEstimateSection):
    """`ntk-jax estimate`: what to take for files, weights and devices that are not here. What is here is counted."""

    kept: Annotated[float, Range(0, 1, open=True)] = setting(0.9, "share of the corpus that its rules leave")


@dataclass(frozen=True)
class MineConfig:
    """DoPAMine: from the words for a domain and a corpus to the domain's text in it, and models trained on that."""

    out: str = setting("", "the run directory: a folder, gs://BUCKET/FOLDER or s3://BUCKET/FOLDER")
    seed: Annotated[int, Range(0, 2**32 - 1)] = setting(0, "seed of everything random")
    domains: Mapping[str, Any] | None = setting(None, "{name: what belongs to it, in a sentence}; at least one")
    contrast: Mapping[str, Any] | None = setting(
        None,
        "other subjects of the corpus, {name: what belongs to it}, that the domains are set against: they have seeds "
        "and labels too, and nothing is mined for them",
    )
    model: ModelSection = section(ModelSection)
    lora: LoRASection = section(LoRASection)
    llm: LLMSection = section(LLMSection)
    seeds: SeedsSection = section(SeedsSection)
    corpus: CorpusSection = section(CorpusSection)
    encoder: EncoderSection = section(EncoderSection)
    embed: EmbedSection = section(EmbedSection)
    label: LabelSection = section(LabelSection)
    classify: ClassifySection = section(ClassifySection)
    audit: AuditSection = section(AuditSection)
    pretrain: PretrainSection = section(PretrainSection)
    evaluate: EvaluateSection = section(EvaluateSection)
    report: PageSection = section(PageSection)
    estimate: MineEstimateSection = section(MineEstimateSection)
    mesh: MeshSection = section(MeshSection)


def mined_names(config: MineConfig) -> tuple[str, ...]:
    """The domains whose text is taken, in the config's order."""
    return tuple(config.domains or ())


def domain_names(config: MineConfig) -> tuple[str, ...]:
    """All domains that have seeds and labels: those that are mined, then those they are set against."""
    return (*mined_names(config), *(config.contrast or ()))


def asks_llm(config: MineConfig) -> bool:
    """Whether any stage of this run asks a language model."""
    label = config.label
    return bool(writes_seeds(config) or label.judged or label.source == "llm" or config.audit.chunks)


def writes_seeds(config: MineConfig) -> bool:
    """Whether seeds are written, beside the user's own."""
    return config.seeds.per_domain > 0
