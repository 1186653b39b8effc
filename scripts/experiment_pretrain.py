"""Continual pre-training on mined text beside controls, at equal tokens: perplexity of held-out text of the domain and
of general text.

    python scripts/experiment_pretrain.py --model DIR --tokens 2000000 --replay general.jsonl \\
        --held-out medical.jsonl --held-out-general books.jsonl --arm dopamine=mined.jsonl --out runs/pretrain
    python scripts/experiment_pretrain.py --model DIR --tokens 2000000 --corpus ../shared/data/corpus --out DIR

An arm is a file of texts, best first; it is read as far as its share of the tokens needs. `base` (the model as it was)
and `general` (replayed text only) always stand beside the arms. With --corpus the files are made from a folder of
sources: medical documents are held out, and the arms are drawn from chunks of all sources but the replayed books: at
random, by medical words, and by the hidden source itself, which is what a miner without error would bring.

Stopped at any moment, the same command goes on. The table is printed, and summary.json in --out holds all figures.
"""

from __future__ import annotations

import argparse
import json
import lzma
import re
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

import ntk_jax  # noqa: F401 (sets XLA's flags before the first computation)
from ntk_jax.data.sources import read_records
from ntk_jax.engine.progress import Progress
from ntk_jax.engine.stage import Job
from ntk_jax.errors import UserError
from ntk_jax.pipelines.common.model import RunModel, run_model
from ntk_jax.pipelines.common.sections import LoRASection, MeshSection, ModelSection, PageSection
from ntk_jax.pipelines.mine.pretrain import GENERAL, ArmTexts, check_pretraining, pretrain_arms
from ntk_jax.pipelines.mine.pretrain_config import PretrainSection
from ntk_jax.report.text import align
from ntk_jax.storage.atomic import make_folder, read_json, write_json, write_lines
from ntk_jax.storage.run import lock

WORDS = 180  # of a chunk of the prepared arms
HELD_OUT = 10  # one in so many medical documents is held out
FILES = ("replay", "held-out", "held-out-general")  # of those that are made, what is no arm
MEDICAL = re.compile(
    r"\b(patients?|symptoms?|diagnos\w+|treatments?|disease|syndrome|clinical|disorders?|cancer|infections?|surgery)\b"
)


@dataclass(frozen=True)
class Config:
    """The settings that `pretrain_arms` asks a run for."""

    seed: int
    model: ModelSection
    lora: LoRASection
    pretrain: PretrainSection
    mesh: MeshSection = MeshSection()  # noqa: RUF009
    report: PageSection = PageSection()


@dataclass
class Run:
    """As a run of the pipeline has them."""

    config: Config
    job: Job
    model: RunModel


def main() -> None:
    options = _options()
    try:
        print("\n".join(experiment(options)))
    except UserError as error:
        sys.exit(f"error: {error}")


def experiment(options: argparse.Namespace) -> list[str]:
    """Trains what is missing and returns the table's lines."""
    out = make_folder(options.out)
    with lock(out):
        section = PretrainSection(
            tokens=options.tokens,
            shares=tuple(options.share),
            replay=tuple(options.replay),
            held_out=tuple(options.held_out),
            held_out_general=tuple(options.held_out_general),
            held_out_limit=options.held_out_limit,
            held_out_tokens=options.held_out_tokens,
            evaluations=options.evaluations,
            parameters=options.parameters,
            row_length=options.row_length,
            batch_tokens=options.batch_tokens,
            learning_rate=options.learning_rate,
            tokens_per_microbatch=options.tokens_per_microbatch,
        )
        arms = dict(arm.split("=", 1) for arm in options.arm)
        if options.corpus:
            made = prepared(Path(options.corpus), out / "texts", options.seed)
            arms |= {
                name: file for name, file in made.items() if name not in ("replay", "held-out", "held-out-general")
            }
            section = replace(
                section,
                replay=section.replay or (made["replay"],),
                held_out=section.held_out or (made["held-out"],),
                held_out_general=section.held_out_general or (made["held-out-general"],),
            )
        check_pretraining(section)
        model = ModelSection(path=options.model, max_length=options.row_length)
        config = Config(options.seed, model, LoRASection(rank=options.rank), section)
        _settle(out, config, arms)
        run = Run(config, Job(out, Progress), run_model(config))
        general = ArmTexts(GENERAL, "general text only")
        pretrain_arms(run, out, [general, *(ArmTexts(name, name, texts_of(file)) for name, file in arms.items())])
    return table(read_json(out / "summary.json", dict))


def texts_of(file: str) -> Callable[[], Iterator[tuple[str, str]]]:
    """(id, text) of a file's records in their order."""

    def texts() -> Iterator[tuple[str, str]]:
        for record in read_records(file):
            yield record["id"], record["response"]

    return texts


def table(found: dict[str, Any]) -> list[str]:
    """A line an arm: tokens, passes over its own text, perplexity of each held-out file with its interval."""
    rows = [["arm", "tokens", "of its own", "passes", *(f"{name}: perplexity" for name in found["held_out"])]]
    for arm in found["arms"]:
        own = arm.get("sources", {}).get(arm["name"].rsplit("-", 1)[0]) or arm.get("sources", {}).get(arm["name"]) or {}
        shown = [arm["perplexity"][name] for name in found["held_out"]]
        rows.append(
            [
                arm["title"],
                f"{arm['tokens']:,}",
                f"{own.get('tokens', 0):,}",
                f"{own.get('passes', 0):.2f}",
                *(f"{each['value']:.2f} ({each['low']:.2f} to {each['high']:.2f})" for each in shown),
            ]
        )
    lines = align(rows, rules_before={1})
    lines += ["", "Differences of the loss, nats a token (below 0: the first is better):"]
    rows = []
    for each in found["sets"]:
        for pair in each["paired"]:
            bounds = f"{pair['difference']:+.4f} ({pair['low']:+.4f} to {pair['high']:+.4f})"
            rows.append([each["name"], f"{pair['a']} - {pair['b']}", bounds])
    return [*lines, *align(rows, rules_before=set())]


def _settle(out: Path, config: Config, arms: dict[str, str]) -> None:
    """Refuses to go on with other settings: what is there would not belong to them."""
    section = {key: value for key, value in vars(config.pretrain).items() if key != "arms"}
    wanted = json.loads(json.dumps({"model": config.model.path, "seed": config.seed, "arms": arms, **section}))
    if (out / "settings.json").exists():
        there = read_json(out / "settings.json", dict)
        other = [key for key in wanted if there.get(key) != wanted[key] and key != "arms"]
        if other:
            raise UserError(f"{out} was begun with another {', '.join(other)}; give another --out, or delete this one")
    write_json(out / "settings.json", wanted)


# -- files from a folder of sources --------------------------------------------------------------------------------


def prepared(corpus: Path, folder: Path, seed: int) -> dict[str, str]:
    """{arm or kind of file: file} made of the sources of a folder, once."""
    names = (*FILES, "random", "keywords", "hidden_source")
    files = {name: folder / f"{name}.jsonl" for name in names}
    if not all(file.exists() for file in files.values()):
        make_folder(folder)
        medical = list(_documents(corpus, "medical-*.train.jsonl.xz"))
        held = [document for document in medical if zlib.crc32(document["id"].encode()) % HELD_OUT == 0]
        kept = [document for document in medical if zlib.crc32(document["id"].encode()) % HELD_OUT]
        others = [*_documents(corpus, "books-03*"), *_documents(corpus, "legal-*"), *_documents(corpus, "speeches*")]
        others += _documents(corpus, "textbooks-*")
        own, chunks = _chunks(kept), _chunks(others)
        order = np.random.default_rng(seed)
        everything = [(text, True) for text in own] + [(text, False) for text in chunks]
        everything = [everything[place] for place in order.permutation(len(everything))]
        by_words = sorted(everything, key=lambda each: -len(MEDICAL.findall(each[0].lower())))  # ties in random order
        _write(files["held-out"], [document["text"] for document in held])
        _write(files["held-out-general"], _chunks(_documents(corpus, "books.valid*"), 1000)[::20])
        _write(files["replay"], _chunks(_documents(corpus, "books-00*"), 1000))
        _write(files["random"], [text for text, _ in everything])
        _write(files["keywords"], [text for text, _ in by_words])
        _write(files["hidden_source"], [text for text, is_own in everything if is_own])
    return {name: str(file) for name, file in files.items()}


def _documents(corpus: Path, pattern: str) -> Iterator[dict[str, Any]]:
    found = sorted(corpus.glob(pattern))
    if not found:
        raise UserError(f"--corpus: {corpus} has no file {pattern}")
    for file in found:
        with lzma.open(file, "rt", encoding="utf8") as lines:
            yield from map(json.loads, lines)


def _chunks(documents: Any, words: int = WORDS) -> list[str]:
    found = []
    for document in documents:
        split = document["text"].split()
        found += [" ".join(split[start : start + words]) for start in range(0, len(split), words)]
    return found


def _write(file: Path, texts: list[str]) -> None:
    write_lines(file, (json.dumps({"id": f"{file.stem}-{n}", "text": text}) for n, text in enumerate(texts)))


def _options() -> argparse.Namespace:
    made = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--model", required=True, help="a Hugging Face directory, a hub id, or builtin:model")
    add("--out", required=True, type=Path, help="folder of everything that is made")
    add("--tokens", required=True, type=int, help="that each arm is trained on")
    add("--arm", action="append", default=[], metavar="NAME=FILE", help="an arm and its texts, best first")
    add("--corpus", help="folder of sources to make the files from")
    add("--replay", nargs="+", default=[], help="files of general text that is mixed in")
    add("--held-out", nargs="+", default=[], help="files of the domain's text that no arm reads")
    add("--held-out-general", nargs="+", default=[], help="files of general text that no arm reads")
    add("--held-out-limit", type=int, default=200, help="documents of each held-out file")
    add("--held-out-tokens", type=int, default=512, help="tokens of a held-out document")
    add("--share", nargs="+", type=float, default=[0.25], help="of an arm's own text; several are a sweep")
    add("--parameters", choices=("lora", "all"), default="lora", help="what is trained")
    add("--rank", type=int, default=16, help="of the adapter")
    add("--row-length", type=int, default=512, help="tokens of a row")
    add("--batch-tokens", type=int, default=8192, help="tokens of an optimiser step")
    add("--tokens-per-microbatch", type=int, default=4096, help="tokens of a compiled step")
    add("--learning-rate", type=float, default=1e-4, help="peak")
    add("--evaluations", type=int, default=2, help="perplexities along the way")
    add("--seed", type=int, default=0, help="of the order of the text and of the adapter")
    return made.parse_args()


if __name__ == "__main__":
    main()
