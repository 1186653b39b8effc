"""What costs are computed from: the run without its weights, and how much text it reads, counted where files are
here."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ntk_jax.data.batch import TokenRow
from ntk_jax.data.packing import SHORTEST_ROW, pack, positions_by_length
from ntk_jax.data.records import Record
from ntk_jax.data.sources import count_records, sample_indices
from ntk_jax.engine.costs import Grounds
from ntk_jax.engine.progress import Progress
from ntk_jax.engine.stage import Job
from ntk_jax.errors import UserError
from ntk_jax.evaluation.tasks import METRICS, Task
from ntk_jax.kernels.rows import layout_for
from ntk_jax.kernels.sketch import GRADIENT_BYTES, within_budget
from ntk_jax.pipelines.common.evaluate import tasks_of
from ntk_jax.pipelines.common.evaluated_reads import NONE, Questions, count_questions, here, say_count, spread
from ntk_jax.pipelines.common.pool_run import pool_run
from ntk_jax.pipelines.common.shape import abstract_model
from ntk_jax.pipelines.select.config import SelectConfig
from ntk_jax.pipelines.select.proxy import has_proxy, in_words, selecting_config, sentence
from ntk_jax.pipelines.select.state import SelectRun

SINGLE_ROW = 1.44  # 1/ln 2: a power of two over a length, on average over lengths spread evenly by their logarithm
MAX_SEGMENTS = 16  # examples a packed row holds at most, as `kernels.rows.Layout` has it


@dataclass(frozen=True)
class Volume:
    """A set of examples, by means an example.

    records: read. count: of them usable. tokens, responses, span: of a usable example; responses are the positions a
    loss is taken at, span those of score.span. error: standard error of the mean of tokens. bytes: of a record as JSON.
    fill: share of a packed row's positions that hold tokens. training_fill: the same where a row takes all that fit;
    single_fill: where it takes one example and is no longer than that asks for.
    """

    records: int
    count: float
    tokens: float
    responses: float
    span: float
    error: float
    bytes: float
    id_bytes: int
    fill: float
    training_fill: float
    single_fill: float

    @property
    def total(self) -> float:
        """Tokens of all usable examples."""
        return self.count * self.tokens


@dataclass(frozen=True)
class Load:
    """The run as its stages know it, with shapes for weights, and what it reads; of the model that selects. What is
    evaluated is read by the model that is trained."""

    run: SelectRun
    pool: Volume
    domain: Volume
    questions: Questions
    held_out: Questions
    generated: Questions
    grounds: Grounds
    other: Load | None = None

    @property
    def target(self) -> Load:
        """That of the model that is trained and evaluated: this one, unless a proxy selects."""
        return self.other or self

    @property
    def devices(self) -> int:
        """Of the run's mesh."""
        mesh = self.run.model.mesh
        return 1 if mesh is None else mesh.size


def load(config: SelectConfig, grounds: Grounds) -> Load:
    """What the costs of a run are computed from; nothing is downloaded.

    Raises UserError: a number that is neither here nor given, a damaged file, fewer pool examples than are selected.
    """
    found = _load(config, grounds) if not has_proxy(config) else _load_both(config, grounds)
    if config.select.count > found.pool.records:
        raise UserError(
            f"select.count = {config.select.count} is larger than the pool ({found.pool.records} examples); lower it "
            "or add data"
        )
    return found


def _load(config: SelectConfig, grounds: Grounds, *, evaluates: bool = True) -> Load:
    run = pool_run(SelectRun, config, Job(Path(config.out), Progress), abstract_model(config, grounds))
    asked = evaluated(run, grounds) if evaluates else (NONE, NONE, NONE)
    return Load(run, pool_examples(run, grounds), domain_examples(run, grounds), *asked, grounds)


def _load_both(config: SelectConfig, grounds: Grounds) -> Load:
    """What a proxy reads and computes with, and beside it the same of the model that is trained, whose grounds say of
    what they are."""
    grounds.known("proxy", config.proxy.path, sentence(config), "proxy.path")
    try:
        found = _load(selecting_config(config), grounds, evaluates=False)
    except UserError as error:
        raise in_words(error) from None
    for place, ground in enumerate(grounds.found):
        if ground.name == "model shape":
            source = ground.source.replace("estimate.shape", "estimate.proxy_shape")
            grounds.found[place] = dataclasses.replace(ground, source=source)
    own = Grounds()
    other = _load(config, own)
    said = {(ground.name, ground.text) for ground in grounds.found}
    for ground in own.found:
        if (ground.name, ground.text) not in said:
            grounds.found.append(dataclasses.replace(ground, name=f"trained model: {ground.name}"))
    return dataclasses.replace(found, other=other)


def pool_examples(run: SelectRun, grounds: Grounds) -> Volume:
    """The pool, or its seeded sample of data.pool_limit; a seeded sample of estimate.sample records of it is tokenized
    and stands for all that were counted. Raises UserError: neither files nor numbers, a bad file, nothing usable."""
    data, section = run.config.data, run.config.estimate
    if not here(data.pool):
        return _assumed(run, grounds, "pool", data.pool_limit)
    total = count_records(data.pool)
    limit = total if data.pool_limit is None else min(total, data.pool_limit)
    grounds.known("pool examples", limit, f"{limit:,} of {total:,} records", f"counted in {', '.join(data.pool)}")
    if run.model.base.tokenizer is None:
        return _without_tokenizer(run, grounds, "pool", limit)
    chosen = sample_indices(total, data.pool_limit, run.config.seed)
    ordinals = np.arange(total) if chosen is None else chosen
    few = sample_indices(len(ordinals), section.sample, run.config.seed)
    records = list(run.pool.records(ordinals if few is None else ordinals[few]))
    return _sampled(run, grounds, "pool", records, limit)


def domain_examples(run: SelectRun, grounds: Grounds) -> Volume:
    """The domain set; all of it is tokenized. Raises UserError as `pool_examples`."""
    data = run.config.data
    if not here(data.domain):
        return _assumed(run, grounds, "domain", data.domain_limit)
    total = count_records(data.domain)
    limit = total if data.domain_limit is None else min(total, data.domain_limit)
    grounds.known("domain examples", limit, f"{limit:,} of {total:,} records", f"counted in {', '.join(data.domain)}")
    if run.model.base.tokenizer is None:
        return _without_tokenizer(run, grounds, "domain", limit)
    kept = run.domain.records
    found = _sampled(run, grounds, "domain", kept, len(kept))
    dropped = limit - len(kept)
    if dropped:
        grounds.known("domain dropped", dropped, f"{dropped:,} examples", "too long, or without a response")
    return found


def evaluated(run: SelectRun, grounds: Grounds) -> tuple[Questions, Questions, Questions]:
    """(questions whose choices are scored, examples whose loss is taken, questions that models write answers to) of
    evaluate.files, after evaluate.limit. An answer counts with as many tokens as it may have.

    Raises UserError as `pool_examples`."""
    config, section = run.config.evaluate, run.config.estimate
    if not config.files:
        grounds.known("questions", 0, "none", "evaluate.files is empty")
        return NONE, NONE, NONE
    if not here(config.files):
        if section.questions is None:
            raise UserError(
                f"evaluate.files: none of {', '.join(config.files)} is here; give the files, or their number "
                "of questions as estimate.questions"
            )
        files = len(config.files)
        count = min(section.questions, (config.limit or section.questions) * files)
        grounds.assume("questions", count, f"{count:,}", "estimate.questions: the files are not here")
        asked = config.metrics or ("accuracy",)  # as if all had choices
        found = {name: _assumed_questions(run, grounds, files, count, name) for name in METRICS if name in asked}
        return found.get("accuracy", NONE), found.get("loss", NONE), found.get("generated", NONE)
    tasks = tasks_of(run.config)
    if config.shots:
        names = ", ".join(task.shots.file for task in tasks)
        grounds.known("shots", config.shots, f"{config.shots:,} before each question", f"evaluate.shots, of {names}")
    asked_for = {metric: [task for task in tasks if metric in task.metrics] for metric in METRICS}
    choosing, held_out, generated = (_counted(run, grounds, asked_for[metric], metric) for metric in METRICS)
    return choosing, held_out, generated


def _counted(run: SelectRun, grounds: Grounds, tasks: Sequence[Task], metric: str) -> Questions:
    """Those of tasks that are here, by a tokenized sample."""
    if not tasks:
        return NONE
    count = say_count(tasks, metric, grounds)
    if run.model.base.tokenizer is None:
        return _assumed_questions(run, grounds, len(tasks), count, metric)
    return count_questions(run.config, tasks, metric, run.model.base.tokenizer, run.config.estimate.sample, grounds)


def _sampled(run: SelectRun, grounds: Grounds, name: str, records: list[Record], limit: int) -> Volume:
    """Means of a sample, for `limit` records."""
    model, span = run.config.model, run.config.score.span
    encoded = [(record, row) for record, row in run.encoder.rows(records, span) if isinstance(row, TokenRow)]
    if not encoded:
        raise UserError(
            f"data.{name}: none of {len(records)} sampled examples is usable; check model.max_length and the responses"
        )
    rows = [row for _, row in encoded]
    lengths = np.array([len(row.ids) for row in rows])
    responses = [
        int(row.span.sum())
        for _, row in run.encoder.rows([r for r, _ in encoded], "response")
        if isinstance(row, TokenRow)
    ]
    error = float(lengths.std(ddof=1) / np.sqrt(len(lengths))) if len(records) < limit and len(lengths) > 1 else 0.0
    whole = len(records) >= limit
    cut = sum(row.truncated for row in rows)
    lost = len(records) - len(rows)
    grounds.known(
        f"tokens a {name} example",
        float(lengths.mean()),
        spread(lengths, error) + (f"; {lost:,} dropped, {cut:,} truncated" if lost or cut else ""),
        f"tokenized {'all' if whole else 'a seeded sample of'} {len(records):,}, model.max_length {model.max_length:,}",
    )
    fills = []
    for most in (MAX_SEGMENTS, run.row_length):
        packed = sum(1 for _ in pack(rows, row_length=run.row_length, rows_per_batch=1, max_segments=most))
        fills.append(float(lengths.sum() / (packed * run.row_length)))
    fills.append(single_fill(run, lengths, limit))
    return Volume(
        limit,
        limit * len(rows) / len(records),
        float(lengths.mean()),
        float(np.mean(responses)),
        float(np.mean([row.span.sum() for row in rows])),
        error,
        float(np.mean([len(json.dumps(record, ensure_ascii=False).encode()) for record, _ in encoded])),
        max(len(record["id"].encode()) for record, _ in encoded),
        *fills,
    )


def single_fill(run: SelectRun, lengths: np.ndarray, count: int) -> float:
    """The share of positions that hold tokens where a block of as many examples as there are, or as a store has, is
    sketched; its lengths are the sample's, evenly repeated."""
    layout = layout_for(run.config.model.max_length, run.config.score.batch_tokens, run.model.mesh, packed=False)
    layout = within_budget(layout, run.theta, run.objective.channels, GRADIENT_BYTES)
    size = max(1, min(count, run.config.sketch.block_examples))
    block = np.sort(lengths)[np.arange(size) * len(lengths) // size]
    made = positions_by_length(
        block, row_length=layout.row_length, rows_per_batch=layout.rows_per_batch, most_rows=layout.most_rows
    )
    return float(block.sum() / made)


def _assumed(run: SelectRun, grounds: Grounds, name: str, limit: int | None) -> Volume:
    """The set by the numbers of the section `estimate`."""
    section, data = run.config.estimate, run.config.data
    files: tuple[str, ...] = getattr(data, name)
    count: int | None = getattr(section, f"{name}_examples")
    if count is None:
        absent = f"none of {', '.join(files)} is here" if files else "no file is given"
        raise UserError(
            f"data.{name}: {absent}; give the files, or their number of examples as estimate.{name}_examples"
        )
    count = count if limit is None else min(count, limit)
    grounds.assume(f"{name} examples", count, f"{count:,}", f"estimate.{name}_examples: its files are not here")
    return _without_tokenizer(run, grounds, name, count)


def _without_tokenizer(run: SelectRun, grounds: Grounds, name: str, count: int) -> Volume:
    section, span = run.config.estimate, run.config.score.span
    mean = section.tokens_per_example
    if mean is None:
        raise UserError(
            f"data.{name}: its tokens cannot be counted without the files and a tokenizer; give both, or the mean "
            "number of tokens as estimate.tokens_per_example"
        )
    mean = min(mean, float(run.config.model.max_length))
    share = section.response_share
    grounds.assume(f"tokens a {name} example", mean, f"{mean:g} on average", "estimate.tokens_per_example")
    grounds.assume(f"responses in the {name}", share, f"{100 * share:g}% of the tokens", "estimate.response_share")
    if name == "pool":
        grounds.assume(
            "bytes a token", section.bytes_per_token, f"{section.bytes_per_token:g}", "estimate.bytes_per_token"
        )
    positions = {"response": mean * share, "all": mean, "last": 1.0}[span]
    fill = min(1.0, MAX_SEGMENTS * mean / run.row_length)
    return Volume(
        count,
        count,
        mean,
        mean * share,
        positions,
        0.0,
        120 + mean * section.bytes_per_token,
        section.id_bytes,
        fill,
        1.0,
        min(1.0, mean / min(run.row_length, max(SHORTEST_ROW, SINGLE_ROW * mean))),
    )


def _assumed_questions(run: SelectRun, grounds: Grounds, files: int, count: int, metric: str) -> Questions:
    section, shots = run.config.estimate, run.config.evaluate.shots
    tokens = section.tokens_per_question or section.tokens_per_example
    if tokens is None:
        raise UserError(
            "evaluate.files: their tokens cannot be counted without the files and a tokenizer; give both, or the mean "
            "number of tokens as estimate.tokens_per_question"
        )
    key = "tokens_per_question" if section.tokens_per_question else "tokens_per_example"
    most_tokens = run.config.model.max_length
    longest, before = min(most_tokens, round((2 + shots) * tokens)), shots * tokens
    if shots:
        grounds.assume("tokens of shots", before, f"{before:g} before a question", f"evaluate.shots, estimate.{key}")
    if metric == "generated":
        most = run.config.evaluate.answer_tokens
        total = min((1 - section.response_share) * tokens + before + most, float(most_tokens))
        grounds.assume("tokens a generated answer", total, f"{total:g}", f"estimate.{key}, evaluate.answer_tokens")
        return Questions(files, count, total, most, 0.0, min(most_tokens, longest + most))
    if metric == "loss":
        labels = section.response_share * tokens
        tokens = min(tokens + before, float(most_tokens))
        text = f"{tokens:g}, {labels:g} of them in responses"
        grounds.assume("tokens a held-out example", tokens, text, f"estimate.{key}, response_share")
        return Questions(files, count, tokens, labels, 0.0, longest)
    labels = min(section.choice_tokens, tokens)
    tokens = min(tokens + before, float(most_tokens))
    grounds.assume(
        "tokens a question", tokens, f"{tokens:g}, {labels:g} of them in choices", f"estimate.{key}, choice_tokens"
    )
    return Questions(files, count, tokens, labels, labels * section.bytes_per_token + 20, longest)
