"""Continual pre-training of one model for each arm: the same number of tokens, the same replayed text beside it, and
the perplexity of held-out text on the way."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ntk_jax.data.contamination import contamination, evaluation_runs
from ntk_jax.data.formats import Reading
from ntk_jax.data.records import response_text
from ntk_jax.data.sources import count_records, formats_of, read, read_chosen, sample_indices
from ntk_jax.data.token_store import TEXT, TokenStore, write_tokens
from ntk_jax.engine.clock import Clock
from ntk_jax.engine.stage import Facts, Job
from ntk_jax.errors import UserError
from ntk_jax.evaluation.accuracy import task_files
from ntk_jax.evaluation.perplexity import HeldOut, compare_perplexities, held_out_text, perplexities
from ntk_jax.models.model import Model
from ntk_jax.parallel import hosts
from ntk_jax.pipelines.common.model import RunModel, check_length
from ntk_jax.pipelines.common.tensorboard import followed
from ntk_jax.pipelines.common.weights import check_parameters, start_of, trained_model
from ntk_jax.pipelines.mine.pretrain_config import PretrainSection
from ntk_jax.storage.atomic import make_folder, read_json, write_json
from ntk_jax.training.checkpoints import discard_checkpoints
from ntk_jax.training.mixture import Mixture, mix
from ntk_jax.training.optimizer import TrainConfig, check_config
from ntk_jax.training.pretrain import measured_steps, pretrain, save_pretrained

BASE, GENERAL = "base", "general"
HELD_OUT = "held-out text"  # why a document is not trained on
TOKENS = "tokens"  # a folder that is there while arms are trained
_TRAINING = ("learning_rate", "schedule", "warmup_ratio", "floor", "weight_decay", "beta1", "beta2", "max_grad_norm")
Texts = Callable[[], Iterator[tuple[str, str]]]  # (id, text), the ones to take first at the front


class PretrainRun(Protocol):
    """What a run's state has: the config (with model, pretrain, report and a seed), the job and the model."""

    config: Any
    job: Job
    model: RunModel


@dataclass(frozen=True)
class ArmTexts:
    """An arm's own text. name: as in `pretrain.arms`. title: for people. texts: None where it has none of its own."""

    name: str
    title: str
    texts: Texts | None = None


@dataclass(frozen=True)
class TrainedArm:
    """An arm with one share of its own text. name: its folder. share: of its own text in its tokens."""

    name: str
    title: str
    source: ArmTexts
    share: float


@dataclass(frozen=True)
class Sources:
    """corpus: the text that is replayed where no files are. apart(record): why a document of any arm is left out."""

    corpus: Texts | None
    apart: Callable[[Any], str | None] | None


def trained_arms(section: PretrainSection, arms: list[ArmTexts]) -> list[TrainedArm]:
    """Every arm with every share; one without text of its own once."""
    found = []
    for arm in arms:
        shares = section.shares if arm.texts is not None else (0.0,)
        for share in shares:
            several = len(shares) > 1
            name = f"{arm.name}-{share:g}" if several else arm.name
            found.append(TrainedArm(name, f"{arm.title}, {share:.0%}" if several else arm.title, arm, share))
    return found


def pretrain_settings(section: PretrainSection, row_length: int) -> TrainConfig:
    """The trainer's settings; a step has as many whole rows as its tokens hold, one at least."""
    values = {name: getattr(section, name) for name in (*_TRAINING, "tokens_per_microbatch", "checkpoint_every")}
    return TrainConfig(batch_size=max(1, section.batch_tokens // row_length), **values)


def check_pretraining(section: PretrainSection, quantization: str | None = None) -> None:
    """Raises UserError for settings that cannot be trained with. quantization: of the model."""
    if section.tokens == 1:
        raise UserError("pretrain.tokens = 1 leaves nothing to predict; give many more")
    if not section.shares or len(set(section.shares)) < len(section.shares):
        raise UserError(f"pretrain.shares = {list(section.shares)}: give at least one share, each once")
    if 0 in section.shares:
        raise UserError("pretrain.shares: a share of 0 trains on general text only; that is the arm general")
    check_parameters(section.parameters, quantization, "pretrain")
    check_config(pretrain_settings(section, section.row_length or 1024), "pretrain")


def check_files(section: PretrainSection) -> None:
    """Raises UserError: a file of replayed or held-out text is not there, or is no text that can be read."""
    reading = Reading("auto", section.columns, "pretrain.")
    for key in ("replay", "held_out", "held_out_general"):
        if getattr(section, key):
            try:
                formats_of(getattr(section, key), reading)
            except UserError as error:
                raise UserError(f"pretrain.{key}: {error}") from None


def pretrain_arms(run: PretrainRun, folder: Path, arms: list[ArmTexts], corpus: Texts | None = None) -> Facts:
    """Writes <arm>/adapter or <arm>/model, <arm>/history.jsonl, <arm>/perplexity/ and <arm>/summary.json for every arm,
    and summary.json, which compares them; an arm whose summary is there is not trained again.

    corpus: the text to replay where `pretrain.replay` names no files.
    """
    section: PretrainSection = run.config.pretrain
    check_row(run)
    model = start_of(run.model, section.parameters)
    held_out, apart = held_out_sets(run), _apart(run)
    trained = trained_arms(section, arms)
    base = _measured(run, folder / BASE, model, held_out, 0) if held_out else {}
    for arm in trained:
        if not hosts.broadcast((folder / arm.name / "summary.json").exists):
            _train(run, folder, arm, model, held_out, Sources(corpus, apart))
    write_json(folder / "summary.json", _compared(section, folder, trained, base, run.config.seed))
    hosts.broadcast(lambda: shutil.rmtree(folder / TOKENS, ignore_errors=True))  # they are made anew in no time
    return {"arms": [arm.name for arm in trained]}


def model_of(run: PretrainRun, folder: Path, arm: str) -> Model:
    """The model of an arm of a run: the base, the base with the arm's adapter, or the arm's own weights. folder: of the
    stage."""
    if arm == BASE:
        return run.model.base
    return trained_model(run.model, run.config.model, folder / arm, run.config.pretrain.parameters)


# -- held-out text ---------------------------------------------------------------------------------------------------


def held_out_sets(run: PretrainRun) -> dict[str, HeldOut]:
    """The held-out files by their names, those of the domain first."""
    return {
        name: held_out_text(
            records,
            run.model.base.tokenizer,
            row_length=row_length_of(run.config),
            most_tokens=run.config.pretrain.held_out_tokens,
            where=file,
        )
        for name, file, records in _held_out_records(run)
    }


def _held_out_records(run: PretrainRun) -> Iterator[tuple[str, str, list[Any]]]:
    """(name, file, records that are read of it) of every held-out file."""
    section: PretrainSection = run.config.pretrain
    files = (*section.held_out, *section.held_out_general)
    for name, file in task_files(files).items() if files else ():
        reading = Reading("auto", section.columns, "pretrain.").for_patterns
        chosen = sample_indices(count_records(file), section.held_out_limit, run.config.seed)
        records = read(file, reading) if chosen is None else read_chosen(file, chosen.tolist(), reading)
        yield name, file, list(records)


def _apart(run: PretrainRun) -> Callable[[Any], str | None] | None:
    """Why a record is not trained on: it shares a run of `pretrain.apart` words with a held-out document."""
    words = run.config.pretrain.apart
    if not words or not run.config.pretrain.files:
        return None
    texts = (_words_of(record) for _, _, records in _held_out_records(run) for record in records)
    runs, _ = evaluation_runs(texts, words)
    return lambda record: HELD_OUT if contamination(_words_of(record), runs, words) else None


def _words_of(record: Any) -> str:
    talk = "\n".join(message["content"] for message in record.get("messages", ()))
    return talk or f"{record.get('prompt', '')}\n{response_text(record)}"


def row_length_of(config: Any) -> int:
    """Tokens of a row."""
    return int(config.pretrain.row_length or config.model.max_length)


def check_row(run: PretrainRun) -> None:
    """Raises UserError: a row has more tokens than the model takes."""
    check_length(run.config.model, run.model.base.config)
    length, most = row_length_of(run.config), run.model.base.config.max_positions
    if length > most:
        raise UserError(f"pretrain.row_length = {length} is more than the {most} positions of the model; lower it")


def _measured(
    run: PretrainRun, folder: Path, model: Model, held_out: Mapping[str, HeldOut], step: int
) -> dict[str, list[dict[str, Any]]]:
    """{set: documents} of a model after a step, from its file where it was measured before."""
    file = folder / "perplexity" / f"step-{step:06d}.json"
    if not hosts.broadcast(file.exists):
        sets = {}
        for name, each in held_out.items():
            progress = run.job.progress(f"perplexity of {name}, {folder.name}", len(each.rows), "windows")
            tokens = run.config.pretrain.tokens_per_microbatch
            sets[name] = perplexities(model, each, batch_tokens=tokens, mesh=run.model.mesh, progress=progress)
        make_folder(file.parent)
        write_json(file, {"step": step, "sets": {name: each["documents"] for name, each in sets.items()}})
        hosts.barrier(f"measured {file}")
    found: dict[str, list[dict[str, Any]]] = hosts.broadcast(lambda: read_json(file, dict))["sets"]
    return found


# -- one arm ---------------------------------------------------------------------------------------------------------


def _train(
    run: PretrainRun, folder: Path, arm: TrainedArm, model: Model, held_out: Mapping[str, HeldOut], texts: Sources
) -> None:
    section: PretrainSection = run.config.pretrain
    name, place = f"{folder.name}/{arm.name}", make_folder(folder / arm.name)
    clock = Clock(run.job.folder, name)
    mixture = _mixture(run, folder, arm, model, texts)
    progress = clock.ticking(run.job.progress(f"pretrain {arm.name}", mixture.steps, "steps"))

    def measure(step: int, now: Model) -> None:
        _measured(run, place, now, held_out, step)

    trained = pretrain(
        model,
        mixture,
        pretrain_settings(section, mixture.row_length),
        folder=place,
        parameters=section.parameters,
        mesh=run.model.mesh,
        progress=followed(run.config, run.job.folder, name, progress),
        measure_at=measured_steps(mixture.steps, section.evaluations),
        measure=measure if held_out else None,
    )
    save_pretrained(place, model, trained, section.parameters, run.config.model.path)
    summary = {
        "title": arm.title,
        "share": arm.share,
        "sources": {
            name: about | {"left_out": mixture.sources[name].dropped.get(HELD_OUT, 0)}
            for name, about in mixture.account().items()
        },
        "steps": trained.steps,
        "rows": trained.examples,
        "tokens": trained.tokens,
        "label_tokens": trained.label_tokens,
        "flops": trained.flops,
        "seconds": clock.seconds(),
        "final_loss": trained.history[-1]["loss"],
        "tokens_at": {str(s): n for s, n in enumerate(itertools.accumulate(h["tokens"] for h in trained.history), 1)},
    }
    write_json(place / "summary.json", summary)
    hosts.barrier(f"trained {name}")
    discard_checkpoints(place)


def _mixture(run: PretrainRun, folder: Path, arm: TrainedArm, model: Model, texts: Sources) -> Mixture:
    section, length = run.config.pretrain, row_length_of(run.config)
    sources, shares = {}, {}
    if arm.share < 1:
        sources[GENERAL] = _store(run, folder, GENERAL, _replayed(section, texts.corpus), section.tokens, model, texts)
        shares[GENERAL] = 1 - arm.share
    if arm.source.texts is not None:
        # Its best text, as much as this share takes: a smaller share is a better choice, not a part of a larger one.
        most = round(section.tokens * arm.share)
        sources[arm.source.name] = _store(run, folder, arm.name, _records(arm.source.texts), most, model, texts)
        shares[arm.source.name] = arm.share
    batch = pretrain_settings(section, length).batch_size
    return mix(sources, shares, tokens=section.tokens, row_length=length, batch_size=batch, seed=run.config.seed)


def _store(
    run: PretrainRun,
    folder: Path,
    name: str,
    records: Callable[[int], Iterator[Any]],
    tokens: int,
    model: Model,
    texts: Sources,
) -> TokenStore:
    """The tokens of a text in tokens/<name>, some two rows more than are read."""
    progress = run.job.progress(f"tokens of {name}", None, "documents")
    return write_tokens(
        folder / TOKENS / name,
        records,
        model.tokenizer,
        rendering=TEXT,
        facts={"text": name},
        most_tokens=tokens + 2 * row_length_of(run.config),
        leave_out=texts.apart,
        progress=progress,
    )


def _records(texts: Texts) -> Callable[[int], Iterator[Any]]:
    def rest(start: int) -> Iterator[Any]:
        for name, text in itertools.islice(texts(), start, None):
            yield {"id": name, "prompt": "", "response": text}

    return rest


def _replayed(section: PretrainSection, corpus: Texts | None) -> Callable[[int], Iterator[Any]]:
    if section.replay:
        reading = Reading("auto", section.columns, "pretrain.").for_patterns
        return lambda start: itertools.islice(read(section.replay, reading), start, None)
    if corpus is None:
        raise UserError("pretrain.replay is empty; give files of general text")
    return _records(corpus)


# -- the comparison --------------------------------------------------------------------------------------------------


def _compared(
    section: PretrainSection, folder: Path, arms: list[TrainedArm], base: dict[str, Any], seed: int
) -> dict[str, Any]:
    """What summary.json holds: of each arm its costs, its perplexities with intervals, and how they went."""
    options: dict[str, Any] = {"bootstrap": section.bootstrap, "confidence": section.confidence, "seed": seed}
    summaries = {arm.name: read_json(folder / arm.name / "summary.json", dict) for arm in arms}
    curves = {arm.name: _steps(folder / arm.name) for arm in arms}
    last = {arm.name: steps[max(steps)] for arm in arms if (steps := curves[arm.name])}
    sets = compare_perplexities({BASE: base, **last}, **options) if base else []
    general = list(task_files(section.held_out_general)) if section.held_out_general else []
    rows = [
        {"name": BASE, "title": "base model", "share": 0.0, "tokens": 0, "perplexity": _of(sets, BASE), "curve": []}
    ]
    for arm in arms:
        found = summaries[arm.name]
        points = []
        for step, documents in {0: base, **curves[arm.name]}.items() if base else ():
            about = compare_perplexities({arm.name: documents}, **options)
            tokens = found["tokens_at"].get(str(step), 0)
            points.append({"step": step, "tokens": tokens, "perplexity": _of(about, arm.name)})
        own = {key: value for key, value in found.items() if key != "tokens_at"}
        rows.append({"name": arm.name, **own, "perplexity": _of(sets, arm.name), "curve": points})
    names = [each["name"] for each in sets]
    return {"held_out": names, "general": [name for name in names if name in general], "arms": rows, "sets": sets}


def _of(sets: list[dict[str, Any]], arm: str) -> dict[str, Any]:
    return {each["name"]: each["results"][arm]["perplexity"] for each in sets if arm in each["results"]}


def _steps(folder: Path) -> dict[int, dict[str, Any]]:
    """{step: {set: documents}} of an arm, in order."""
    files = sorted((folder / "perplexity").glob("step-*.json"))
    return {found["step"]: found["sets"] for found in (read_json(file, dict) for file in files)}
