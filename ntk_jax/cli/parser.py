"""The command line's grammar and its help: the commands of the pipelines' tables, and those that serve all of them."""

from __future__ import annotations

import argparse
import importlib.metadata
import platform
import re
import textwrap
from collections.abc import Sequence
from typing import Any, NoReturn

from ntk_jax.engine.stage import Pipeline, Stage, nothing
from ntk_jax.errors import UserError, shown
from ntk_jax.pipelines import all_pipelines
from ntk_jax.version import VERSION

WIDTH = 110  # of help
OVERRIDES = """\
Any value of the config can be set on the command line, and wins over the file:

  ntk-jax {name} configs/quickstart.yaml --seed=1 --section.key=value --data.pool='[a.jsonl, b.parquet]'

A stage that is finished in the run directory is skipped, one that was cut short goes on from its last committed
block. Changing a value that a finished stage depends on stops with the names of the keys that differ.
"""

SHARDS = """
Several processes fill the stage together (a job array): --shard i/n, i from 0 to n-1, computes the blocks whose number
leaves i when divided by n, and leaves the stage open; when all are done, --merge closes it. Killed, the same command
goes on. Blocks that are there are skipped whatever n they were computed with, so n may change on the way; the result
has the same bytes as that of one process.
"""

EXPORT = """\
What is there already is never overwritten.

  ntk-jax export runs/my_run
  ntk-jax export runs/my_run --merged my_model --selection chosen.parquet
  ntk-jax export my_run.yaml --arm random --adapter random_adapter
  ntk-jax export runs/my_questions --arm static --merged static_model --selection static.jsonl

RUN is a run directory of `run`, `mine` or `question` (a folder, gs://... or s3://...), or the config whose `out` it is.
The settings are those that the run was made with; where its model lies somewhere else now, --model.path=DIR says where.
"""

SEARCH = """\
  ntk-jax search runs/mine_medical "chest pain on exertion" "side effects of statins"
  ntk-jax search runs/mine_medical --index=faiss            (then a text a line)

RUN is a run directory (a folder, gs://... or s3://...), or the config whose `out` it is; its corpus must be embedded.
Where its encoder lies somewhere else now, --encoder.path=DIR says where.
"""

# Commands that serve every pipeline: (one line for the list, what its own --help says).
COMMON = {
    "report": (
        "one HTML page of the whole run",
        "Makes report/index.html, a self-contained page, from what the stages wrote. Reads the run directory only, "
        "which may stand in the place of the config.",
    ),
    "export": (
        "adapter, merged weights and selection for other programs",
        "Writes an arm's adapter as a PEFT folder, the model with the adapter merged into its weights as a Hugging "
        "Face folder (tensor by tensor, so that a large model needs no large memory), and a selection, the mined text "
        "or the kept questions as JSONL, Parquet or a Hugging Face dataset: those that are named, or all of an arm "
        "into the run's export/<arm>/. Arms whose weights were all trained have no adapter, and their whole model as "
        "merged. Reads a finished run directory and the run's model.",
    ),
    "search": (
        "what a mined corpus has near a text",
        "Prints the chunks of a run's corpus that are nearest to each text by the run's encoder, with their cosine and "
        "where they came from: what seeds would find, before they are written. Without a text, reads lines from "
        "standard input. Writes nothing.",
    ),
    "estimate": (
        "what a run will cost, before it starts",
        "Tokens, FLOPs, device time, memory a device and disk of every stage, from what is on this machine (the "
        "model's config.json, its tokenizer, the records) and, for what is not, from the section estimate; lists every "
        "value it rests on. Writes nothing but FILE of --json FILE, and downloads nothing. --measure runs the "
        "score step and the training step on this machine's devices for a few seconds instead of taking a stated rate.",
    ),
    "doctor": (
        "check devices, numerics, weights and data",
        "Checks devices and versions, the numerics of the kernel on a small random model, and with a config also that "
        "its weights, tokenizer and data files load and fit together. Exits 2 if a check fails.",
    ),
    "help": (
        "what the keys of a config mean",
        "Lists every key of every pipeline's config with its default, its values in brackets and its meaning, or those "
        "whose name begins with KEY: ntk-jax help score.objective, ntk-jax help finetune.",
    ),
}


# How the argument of a command is written where it is no CONFIG, and which options it has of its own.
PLACES = {"export": "RUN", "search": "RUN", "doctor": "[CONFIG]", "help": "[KEY]"}
OWN = {
    "export": "[--arm NAME] [--adapter DIR] [--merged DIR] [--selection PATH] ",
    "estimate": "[--json FILE] [--measure] ",
    "search": "[--nearest N] [--index exact|faiss] [--json] [TEXT ...] ",
}


class _Parser(argparse.ArgumentParser):
    """argparse prints its usage and exits; here a mistake is one line like every other."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def parser() -> argparse.ArgumentParser:
    """The whole command line."""
    top = _Parser(
        prog="ntk-jax",
        description="Which general examples, added to a scarce domain, make the model better there?",
        epilog="`ntk-jax COMMAND --help` says what a command reads and writes, `ntk-jax help KEY` what a key of a "
        "config means.",
        allow_abbrev=False,
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=30, width=WIDTH),
    )
    top.add_argument("-V", "--version", action=_Versions, nargs=0, help="print the versions and exit")
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    for pipeline in all_pipelines():
        stages = [stage for stage in pipeline.stages if stage.name != pipeline.command]
        sub = _add(commands, pipeline.command, pipeline.help, pipeline.description, "[--until STAGE] " * bool(stages))
        sub.add_argument("-h", "--help", action=_HelpWithKeys, nargs=0, pipeline=pipeline, help="show this and exit")
        if stages:
            sub.add_argument("--until", metavar="STAGE", help="stop after this stage")
        _add_processes(sub)
        for stage in stages:
            if stage.name not in commands.choices:  # where pipelines share a name, the config says which is meant
                _add_stage(commands, stage)
    for name, (line, description) in COMMON.items():
        sub = _add(commands, name, line, description, OWN.get(name, ""), config=PLACES.get(name, "CONFIG"))
        sub.add_argument("-h", "--help", action="help", help="show this and exit")
        if name == "estimate":
            sub.add_argument("--json", metavar="FILE", help="also write all numbers and their grounds there")
            sub.add_argument("--measure", action="store_true", help="measure the rate on this machine's devices")
        if name == "search":
            sub.add_argument("text", metavar="TEXT", nargs="*", help="what to look for; none: lines of standard input")
            sub.add_argument("--nearest", metavar="N", type=_count, default=5, help="chunks shown of each text")
            sub.add_argument(
                "--index",
                choices=("exact", "faiss"),
                default="exact",
                help="faiss keeps an index in memory (extra ann), for many texts; exact reads all vectors for each",
            )
            sub.add_argument("--json", action="store_true", help="a JSON object a line")
        if name == "export":
            sub.add_argument(
                "--arm",
                metavar="NAME",
                help="whose: an arm or method; by default that of the first method, the mined text, the kept questions",
            )
            sub.add_argument("--adapter", metavar="DIR", help="write the arm's adapter there, in PEFT format")
            sub.add_argument("--merged", metavar="DIR", help="write the arm's model there, its adapter merged in")
            sub.add_argument(
                "--selection",
                metavar="PATH",
                help="write the method's records, mined text or questions: .jsonl, .parquet, or a dataset's folder",
            )
    return top


def _add(
    commands: Any, name: str, line: str, description: str, own: str, *, config: str = "CONFIG", epilog: str = ""
) -> argparse.ArgumentParser:
    """A sub-command. own: its options in the usage. config: how its argument is written."""
    keys = {"export": "--model.path=DIR", "search": "--encoder.path=DIR"}.get(name, "--section.key=value ...")
    rest = "" if config == "[KEY]" else f" [--out DIR] {own}[{keys}]"
    about = {"help": "", "export": EXPORT, "search": SEARCH}.get(name, OVERRIDES.format(name=name) + epilog)
    sub: argparse.ArgumentParser = commands.add_parser(
        name,
        help=line,
        description=textwrap.fill(description, WIDTH),
        epilog=about,
        formatter_class=lambda prog: argparse.RawDescriptionHelpFormatter(prog, max_help_position=26, width=WIDTH),
        allow_abbrev=False,
        add_help=False,
        usage=f"ntk-jax {name} {config}{rest}",
    )
    if config == "[KEY]":
        sub.add_argument("config", metavar="KEY", nargs="?", default="", help="a key or the beginning of one")
        return sub
    what = "a run directory, or its config" if config == "RUN" else "a YAML file"
    sub.add_argument("config", metavar=config.strip("[]"), nargs="?" if config == "[CONFIG]" else None, help=what)
    sub.add_argument(
        "--out", metavar="DIR", help="the run directory, or gs://... or s3://...; wins over `out` in the config"
    )
    return sub


def _add_stage(commands: Any, stage: Stage) -> None:
    shards = stage.stores is not nothing
    own, epilog = ("[--shard i/n | --merge] ", SHARDS) if shards else ("", "")
    sub = _add(commands, stage.name, stage.help, stage.description, own, epilog=epilog)
    sub.add_argument("-h", "--help", action="help", help="show this and exit")
    _add_processes(sub)
    if shards:
        either = sub.add_mutually_exclusive_group()
        either.add_argument("--shard", metavar="i/n", help="compute shard i of n only, counted from 0")
        either.add_argument("--merge", action="store_true", help="close the stage if all blocks are there")


def _add_processes(sub: argparse.ArgumentParser) -> None:
    several = sub.add_argument_group(
        "several processes with one mesh (found without these under Slurm, Open MPI and on GKE's TPU slices)"
    )
    several.add_argument("--coordinator", metavar="HOST:PORT", help="address of process 0")
    several.add_argument("--processes", metavar="N", type=_count, help="how many there are")
    several.add_argument("--process", metavar="I", type=_count, help="which of them this is, counted from 0")
    several.add_argument("--wait", metavar="S", type=_count, default=300, help="seconds to wait for the others")
    several.add_argument(
        "--heartbeat", metavar="S", type=_count, default=100, help="seconds until a silent one is given up"
    )


def _count(text: str) -> int:
    """A number of processes or seconds."""
    if not re.fullmatch(r"[0-9]{1,9}", text):
        raise argparse.ArgumentTypeError(f"{shown(text)} is not a whole number below 10^9")
    return int(text)


def explained(beginning: str = "", pipelines: Sequence[Pipeline] | None = None) -> str:
    """The keys of configs, with default, values and meaning: those whose name begins so, of all pipelines by default.

    Raises UserError: there is no such key (the nearest one is offered).
    """
    from ntk_jax.engine.config import explain_keys

    return explain_keys({p.name: p.config.resolve() for p in pipelines or all_pipelines()}, beginning, WIDTH)


class _HelpWithKeys(argparse.Action):
    """The help of a pipeline's command, which lists every key of its config."""

    def __init__(self, *arguments: Any, pipeline: Pipeline, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.pipeline = pipeline

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        print(parser.format_help())
        print(f"The keys of its config:\n\n{explained('', [self.pipeline])}")
        parser.exit()


class _Versions(argparse.Action):
    """Looks the versions up only when they are asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        jax, flax = (importlib.metadata.version(name) for name in ("jax", "flax"))
        print(f"ntk-jax {VERSION} (jax {jax}, flax {flax}, Python {platform.python_version()})")
        parser.exit()
